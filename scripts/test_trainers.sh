#!/usr/bin/env bash
# Tests this library inside the trainers of others: bash scripts/test_trainers.sh [kauldron|keras|tunix...]
#
# Makes an environment for each, .venv-TRAINER, with the version that its tests were written for, on Python 3.12:
# PYTHON, or what pyenv has, or python3.12. Not a part of scripts/test.sh, as they take minutes to install.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

declare -A packages=(
  [kauldron]="kauldron==1.4.4 tensorflow-cpu>=2.20 google-cloud-aiplatform>=1.120"
  [keras]="keras==3.15.1"
  [tunix]="google-tunix==0.1.7"
)
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$(pyenv prefix 3.12 2>/dev/null)/bin/python"
  [[ -x "$PYTHON" ]] || PYTHON=python3.12
fi
unset VIRTUAL_ENV
(($#)) || set -- kauldron keras tunix
for trainer in "$@"; do
  LDRO_JAX_VENV=".venv-$trainer" use_environment plots,test
  # shellcheck disable=SC2086
  python -m pip install --quiet --disable-pip-version-check ${packages[$trainer]}
  python -m pytest -n0 -m "" "tests/integrations/test_$trainer.py" "ldro_jax/integrations/$trainer.py"
  deactivate
done
