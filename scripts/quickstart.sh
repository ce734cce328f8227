#!/usr/bin/env bash
# Trains the digits experiment and writes a report: bash scripts/quickstart.sh [OUTPUT_DIR] [FLAGS...]
#
# Makes a virtual environment where there is none. Run again after an interruption, it goes on.
set -euo pipefail
cd "$(dirname "$0")/.."
source scripts/environment.sh

output_dir="${1:-results_local/digits}"
use_environment trainer
python -m ldro_jax.main \
  --gin_file=gin_configs/experiments/digits.gin --output_dir="$output_dir" "${@:2}"
