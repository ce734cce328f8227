#!/usr/bin/env bash
# Tests this library inside the trainers of others: bash scripts/test_trainers.sh [kauldron|keras|maxtext|tunix...]
#
# Makes an environment for each, .venv-TRAINER, with the version that its tests were written for, on Python 3.12:
# PYTHON, or what pyenv has, or python3.12. Not a part of scripts/test.sh, as they take minutes to install.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

declare -A packages=(
  [kauldron]="kauldron==1.4.4 tensorflow-cpu>=2.20 google-cloud-aiplatform>=1.120"
  [keras]="keras==3.15.1"
  [maxtext]="maxtext==0.2.5"
  [tunix]="google-tunix==0.1.7"
)
if [[ -z "${PYTHON:-}" ]]; then
  PYTHON="$(pyenv prefix 3.12 2>/dev/null)/bin/python"
  [[ -x "$PYTHON" ]] || PYTHON=python3.12
fi
unset VIRTUAL_ENV
(($#)) || set -- kauldron keras maxtext tunix
for trainer in "$@"; do
  LDRO_JAX_VENV=".venv-$trainer" use_environment plots,test
  # shellcheck disable=SC2086
  python -m pip install --quiet --disable-pip-version-check ${packages[$trainer]}
  if [[ "$trainer" == maxtext ]]; then
    # What it needs is in lists for accelerators alone, and not all of that.
    lists="$(python -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])')/dependencies/requirements"
    grep -vE '^(libtpu|nvidia|#|$)' "$lists/generated_requirements/tpu-requirements.txt" >".venv-maxtext/needed.txt"
    python -m pip install --quiet --disable-pip-version-check --no-deps -r .venv-maxtext/needed.txt
    python -m pip install --quiet --disable-pip-version-check httpx2  # newer huggingface_hub needs it
  fi
  python -m pytest -n0 -m "" "tests/integrations/test_$trainer.py" "ldro_jax/integrations/$trainer.py"
  deactivate
done
