#!/usr/bin/env bash
# Checks style and runs the tests: bash scripts/test.sh [PYTEST_ARGUMENTS...]
#
# Makes a virtual environment where there is none. PYTHON=python3.13 takes that interpreter, with an
# environment of its own beside the others, and CONSTRAINTS=.github/oldest.txt the oldest releases.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

use_environment vision,lm,plots,test
ruff check .
ruff format --check .
pyright
# One process per core, each with its own fake devices. The tests of a file share what they compile.
python -m pytest -n auto --dist=loadfile --no-loadscope-reorder "$@"
