#!/usr/bin/env bash
# Builds the documentation as a web site, build/docs/index.html: bash scripts/docs.sh [SPHINX_ARGUMENTS...]
#
# Makes a virtual environment where there is none. What is wrong, such as a link that leads nowhere, fails.
# The notebooks are executed, in two to four minutes, and again when they or the library have changed: their outputs are
# kept in build/notebooks. -D nb_execution_mode=off leaves them without outputs.
# $LDRO_JAX_REPOSITORY is the web address that links to files of this repository begin with.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

use_environment docs,trainer
python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -b html \
  --doctree-dir build/doctrees -D nb_execution_mode=cache "$@" docs build/docs
echo "The documentation is in build/docs/index.html."
