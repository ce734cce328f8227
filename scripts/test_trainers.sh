#!/usr/bin/env bash
# Tests this library inside the trainers of others: bash scripts/test_trainers.sh [tunix|kauldron|keras|maxtext...]
#
# Makes an environment for each, .venv-TRAINER, with the version that the tests were written for. They need
# Python 3.12: PYTHON=python3.12, or what pyenv has. Apart from scripts/test.sh, as they take minutes to install.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

declare -A packages=(
  [tunix]="google-tunix==0.1.7"
)
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$(pyenv prefix 3.12 2>/dev/null)/bin/python"
  [[ -x "$PYTHON" ]] || PYTHON=python3.12
fi
unset VIRTUAL_ENV
for trainer in "${@:-tunix}"; do
  LDRO_JAX_VENV=".venv-$trainer" use_environment plots,test
  python -m pip install --quiet --disable-pip-version-check ${packages[$trainer]}
  python -m pytest -n0 --doctest-modules "tests/integrations/test_$trainer.py" "ldro_jax/integrations/$trainer.py"
  deactivate
done
