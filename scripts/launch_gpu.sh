#!/usr/bin/env bash
# Trains on the GPUs of this machine, or on those of a Slurm cluster:
#
#   bash scripts/launch_gpu.sh [OPTIONS] -- ARGUMENTS
#
# ARGUMENTS are those of python -m ldro_jax.main, or with --trainer t5x of python -m t5x.main without
# --run_mode, and arrive as they are. For example:
#
#   bash scripts/launch_gpu.sh --slurm --nodes 2 --gpus 8 --trainer t5x -- \
#     --gin_file=gin_configs/t5x/mc4_base.gin --gin_file=gin_configs/t5x/runs/gpu.gin \
#     --tfds_data_dir=/shared/tfds '--gin.VOCABULARY_PATH="/shared/mc4.model"' \
#     --gin.VOCAB_SIZE=32128 '--gin.MODEL_DIR="/shared/run"'
#
# Options:
#   --trainer TRAINER   native (the default) or t5x
#   --slurm             submit a job; by default train here and now
#   --nodes NODES       of the job, one process for each (1)
#   --gpus GPUS         of each node (1)
#   --sbatch OPTION     another option for sbatch, such as --partition=gpu; repeatable
#   --dry_run           print the command, and run nothing
#
# The environment that is active is used, on all nodes; what is written must lie on a file system
# that they share. A job that is preempted or requeued goes on from its last checkpoint.
set -euo pipefail

usage_error() {
  echo "Error: $* (--help shows the usage.)" >&2
  exit 2
}

trainer=native slurm=false nodes=1 gpus=1 dry_run=false
sbatch_options=()
arguments=()
while (($# > 0)); do
  case "$1" in
    --)
      arguments=("${@:2}")
      break
      ;;
    -h | --help)
      sed -n '2,/^set/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
      exit
      ;;
    --slurm | --dry_run)
      printf -v "${1#--}" true
      shift
      ;;
    --trainer | --nodes | --gpus)
      printf -v "${1#--}" %s "${2-}"
      shift 2 || usage_error "$1 needs a value."
      ;;
    --sbatch)
      sbatch_options+=("${2-}")
      shift 2 || usage_error "$1 needs a value."
      ;;
    *) usage_error "There is no option $1. The training's own arguments come after --." ;;
  esac
done
((${#arguments[@]} > 0)) || usage_error "The arguments of the training are missing, after --."
[[ "$nodes" =~ ^[1-9][0-9]*$ ]] || usage_error "--nodes must be a positive number, but it is '$nodes'."
[[ "$gpus" =~ ^[1-9][0-9]*$ ]] || usage_error "--gpus must be a positive number, but it is '$gpus'."
[[ "$slurm" == true || "$nodes" == 1 ]] || usage_error "Several nodes need --slurm."

case "$trainer" in
  native)
    command=(python -m ldro_jax.main "${arguments[@]}")
    ((nodes == 1)) || command+=(--distributed)
    ;;
  t5x)
    # t5x.main can't join several processes, t5x.train can.
    command=(python -m t5x.main --run_mode=train "${arguments[@]}")
    ((nodes == 1)) || command=(python -m t5x.train --multiprocess_gpu "${arguments[@]}")
    ;;
  *) usage_error "--trainer must be native or t5x, but it is '$trainer'." ;;
esac

line="$(printf '%q ' "${command[@]}")"
if [[ "$slurm" == true ]]; then
  if [[ "$trainer" == t5x ]] && ((nodes > 1)); then
    # Only the job knows these.
    # shellcheck disable=SC2016
    line+='--coordinator_address="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1):12345"'
    # shellcheck disable=SC2016
    line+=' --process_count="$SLURM_NTASKS" --process_index="$SLURM_PROCID"'
  fi
  # The signal comes before a job is stopped, in time to save a checkpoint.
  command=(sbatch --job-name=ldro --nodes="$nodes" --ntasks-per-node=1 --gpus-per-node="$gpus"
    --requeue --signal=TERM@120 ${sbatch_options[@]+"${sbatch_options[@]}"}
    --wrap="srun bash -c $(printf %q "exec $line")")
fi

cd "$(dirname "${BASH_SOURCE[0]}")/.."
if [[ "$dry_run" == true ]]; then
  printf '%q ' "${command[@]}"
  echo
else
  exec "${command[@]}"
fi
