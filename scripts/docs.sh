#!/usr/bin/env bash
# Builds the documentation as a web site, build/docs/index.html: bash scripts/docs.sh [SPHINX_ARGUMENTS...]
#
# Makes a virtual environment where there is none. What is wrong, such as a link that leads nowhere, fails.
# $LDRO_JAX_REPOSITORY is the web address that links to files of this repository begin with.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

use_environment docs,trainer
python -m sphinx --fail-on-warning --keep-going --nitpicky --quiet -b html \
  --doctree-dir build/doctrees "$@" docs build/docs
echo "The documentation is in build/docs/index.html."
