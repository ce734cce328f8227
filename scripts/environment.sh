# Sourced by the other scripts: a virtual environment with ldro-jax in it.
#
# It is the environment that is active, or .venv, which is made where there is none. PYTHON=python3.13,
# say, takes .venv-3.13, made with that interpreter. CONSTRAINTS=.github/oldest.txt bounds what pip
# installs, in an environment of its own too. $LDRO_JAX_VENV is another place for any of these.
# Needs Python 3.11 or newer, and pip's access to a package index.

# Usage: use_environment EXTRAS
use_environment() {
  local extras="$1" python="${PYTHON:-python3}" version venv
  if [[ -z "${VIRTUAL_ENV:-}" || -n "${PYTHON:-}${CONSTRAINTS:-}" ]]; then
    if ! version="$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"; then
      echo "There is no interpreter $python. Set PYTHON to one of Python 3.11 or newer." >&2
      exit 1
    fi
    venv="${LDRO_JAX_VENV:-.venv${PYTHON:+-$version}${CONSTRAINTS:+-constrained}}"
    if [[ ! -x "$venv/bin/python" ]]; then
      if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
        echo "ldro-jax needs Python 3.11 or newer, but $python is $("$python" --version 2>&1)." >&2
        echo "Set PYTHON to a newer one." >&2
        exit 1
      fi
      "$python" -m venv "$venv"
    fi
    # shellcheck disable=SC1091
    source "$venv/bin/activate"
  fi
  # Installing again is quick when nothing has changed, and right when something has.
  python -m pip install --quiet --disable-pip-version-check \
    ${CONSTRAINTS:+--constraint "$CONSTRAINTS"} --editable ".[$extras]"
}
