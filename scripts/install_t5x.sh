#!/usr/bin/env bash
# Installs T5X, which is not on the package index, and what it needs: bash scripts/install_t5x.sh
#
# Makes a virtual environment where none is active. T5X and two libraries that it imports come from
# their repositories, at the commits that ldro_jax.t5x was tested with, and without the dependencies
# they name: airio pins releases of grain and TFDS that don't run beside today's JAX. Other sources,
# such as clones on a machine without internet: $T5X_SOURCE, $AIRIO_SOURCE, $JESTIMATOR_SOURCE.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

github=git+https://github.com
t5x="${T5X_SOURCE:-$github/google-research/t5x@cc342d419ec3e3e9c4bf1df33c82330cafdc1e16#egg=t5x}"
airio="${AIRIO_SOURCE:-$github/google/airio@69897df7d9a427b947a9f7bb4164c7782b43e601}"
jestimator="${JESTIMATOR_SOURCE:-$github/google-research/jestimator@326824a477feef6d92e6f44175000907a72899ca}"

use_environment t5x
# Editable, because T5X's packages leave out its decoder-only network.
python -m pip install --quiet --disable-pip-version-check --no-deps --editable "$t5x"
python -m pip install --quiet --disable-pip-version-check --no-deps "$airio" "$jestimator"
python -c "import t5x.train, t5x.examples.decoder_only.network, ldro_jax.t5x.trainer"
echo "T5X is installed."
