#!/usr/bin/env bash
# Trains on every worker of a Google Cloud TPU VM slice:
#
#   bash scripts/launch_tpu_pod.sh --name NAME --zone ZONE --type TYPE [OPTIONS] -- ARGUMENTS
#
# ARGUMENTS are those of python -m ldro_jax.main, or with --trainer t5x of python -m t5x.main without
# --run_mode, and arrive as they are. Only language models are trained by several workers together.
# For example:
#
#   bash scripts/launch_tpu_pod.sh --name ldro --zone us-central2-b --type v4-128 --spot -- \
#     --gin_file=gin_configs/experiments/multilingual_lm_mc4.gin \
#     --gin_file=gin_configs/runs/tpu_pod.gin --data_dir=gs://BUCKET/tfds --output_dir=gs://BUCKET/mc4
#
# Options:
#   --dry_run             print the commands, as one gives them in the clone, and run none; it takes
#                         the slice not to exist, and all to go well
#   --trainer TRAINER     native (the default) or t5x, which names its directory --gin.MODEL_DIR
#   --project PROJECT     where it isn't gcloud's own
#   --version VERSION     TPU software; by default Google's choice for the type
#   --spot                cheaper, but Google may take the slice away at any time
#   --extras EXTRAS       what to install besides gcs and plots: lm (the default), vision, or vision,lm
#   --action ACTION       all (the default), create, install, run, follow or delete
#   --keep                all doesn't delete the slice
#   --allow_local_output  accept a directory that isn't gs://...; all keeps the slice then
#
# Needs gcloud, logged in (gcloud auth login) and with its ssh key at hand
# (ssh-add ~/.ssh/google_compute_engine). The slice's service account must be able to write to the
# bucket.
#
# The actions, which all takes in turn:
#   create   makes the slice, unless there is one of that name; replaces one that was preempted
#   install  copies this clone as it lies here, changes included, and installs it
#   run      starts the training on all workers; it needs no connection from then on
#   follow   shows the log of worker 0, and ends as the training ends, with its exit status
#   delete   deletes the slice
#
# What may go wrong:
# * create, install or run fails: all stops there, and the slice stays. Mend it, and give the same
#   command again.
# * The training fails: all shows the end of every worker's log, deletes the slice, and ends with
#   the training's exit status. With --keep the slice stays, with ~/ldro_jax.log on each worker.
# * The connection is lost, or you press Ctrl-C: the training goes on, and the slice stays. Look on
#   with --action follow, and delete it with --action delete.
# * A spot slice is preempted: SIGTERM makes the training save a checkpoint and stop. Give the same
#   command again: it makes the slice anew, and the training resumes from --output_dir.
#
# A slice can be deleted at any time: all that is saved lies in --output_dir, in a bucket, and the
# same command later trains at most the steps since the last checkpoint again. To stop a training
# so that it saves a checkpoint first:
#
#   gcloud compute tpus tpu-vm ssh NAME --zone=ZONE --worker=all \
#     --command='pkill -TERM -f "[l]dro_jax.main"'

set -euo pipefail

fail() {
  echo "Error: $*" >&2
  exit 1
}

usage_error() {
  echo "Error: $* (--help shows the usage.)" >&2
  exit 2
}

say() {
  if [[ "$dry_run" == false ]]; then
    echo "== $*" >&2
  fi
}

# ---- On this machine ----------------------------------------------------------------------------

name="" zone="" type="" project="" version="" extras=lm action=all trainer=native
spot="" dry_run=false keep=false allow_local_output=false
arguments=()

parse_options() {
  while (($# > 0)); do
    case "$1" in
      --)
        arguments=("${@:2}")
        break
        ;;
      -h | --help)
        sed -n '2,/^$/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}"
        exit
        ;;
      --dry_run | --spot | --keep | --allow_local_output)
        printf -v "${1#--}" true
        shift
        ;;
      --name=* | --zone=* | --type=* | --project=* | --version=* | --extras=* | --action=* | --trainer=*)
        set_option "${1%%=*}" "${1#*=}"
        shift
        ;;
      --name | --zone | --type | --project | --version | --extras | --action | --trainer)
        set_option "$1" "${2-}"
        shift 2
        ;;
      *) usage_error "There is no option $1. The training's own arguments come after --." ;;
    esac
  done
}

set_option() {
  if [[ -z "$2" || "$2" == -* ]]; then
    usage_error "$1 needs a value."
  fi
  printf -v "${1#--}" %s "$2"
}

check_options() {
  [[ "$trainer" =~ ^(native|t5x)$ ]] ||
    usage_error "--trainer must be native or t5x, but it is $trainer."
  [[ "$action" =~ ^(all|create|install|run|follow|delete)$ ]] ||
    usage_error "There is no action $action."
  [[ -n "$name" ]] || usage_error "--name is missing, the name of the slice."
  # gcloud would take another form for a user or a path.
  [[ "$name" =~ ^[a-z][-a-z0-9]*$ ]] ||
    usage_error "--name must be lower-case letters, digits and hyphens, but it is $name."
  [[ -n "$zone" ]] || usage_error "--zone is missing, the zone of the slice."
  [[ ! "$action" =~ ^(all|create)$ || -n "$type" ]] ||
    usage_error "--type is missing, such as v4-128."
  [[ ! "$action" =~ ^(all|run)$ ]] || check_arguments
}

check_arguments() {
  ((${#arguments[@]} > 0)) ||
    usage_error "The command is missing: the arguments of the training, after --."
  local output_dir="" distributed=false i argument
  for i in "${!arguments[@]}"; do
    argument="${arguments[i]}"
    # absl takes one hyphen for two.
    case "${argument/#--/-}" in
      -output_dir=*) output_dir="${argument#*=}" ;;
      -output_dir) output_dir="${arguments[i + 1]-}" ;;
      -gin.MODEL_DIR=*) output_dir="${argument#*=}" ;;
      -distributed | -distributed=* | -nodistributed) distributed=true ;;
    esac
  done
  # gin takes a string in quotes.
  output_dir="${output_dir//[\"\']/}"
  if [[ "$output_dir" == gs://?* ]]; then
    allow_local_output=false
  elif [[ "$allow_local_output" == false ]]; then
    local option=--output_dir
    [[ "$trainer" == native ]] || option=--gin.MODEL_DIR
    usage_error "$option must be gs://..., but it is '$output_dir'. All workers write there," \
      "and it must outlive the slice: a directory of a worker is deleted with it." \
      "--allow_local_output accepts one, such as a shared file system that the workers mount."
  fi
  if [[ "$trainer" == t5x ]]; then
    arguments=(t5x.main --run_mode=train "${arguments[@]}")
  else
    [[ "$distributed" == true ]] || arguments+=(--distributed)
    arguments=(ldro_jax.main "${arguments[@]}")
  fi
}

# The versions that Google names for JAX: https://cloud.google.com/tpu/docs/runtimes
default_version() {
  case "$type" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

# Runs a command, or shows how one would type it.
run() {
  if [[ "$dry_run" == true ]]; then
    printf '%q' "$1"
    printf ' %q' "${@:2}"
    echo
  else
    "$@"
  fi
}

# Usage: tpu_vm VERB ARGUMENTS...
tpu_vm() {
  run gcloud compute tpus tpu-vm "$@" --zone="$zone" ${project:+"--project=$project"}
}

# Usage: on_workers all|NUMBER WORKER_ACTION ARGUMENTS...
on_workers() {
  local command="bash launch_tpu_pod.sh on_worker"
  # The worker's shell takes the quotes off again.
  command+="$(printf ' %q' "${@:2}")"
  # Networks cut a connection that is silent for long, as one is while a large model compiles.
  tpu_vm ssh "$name" --worker="$1" --ssh-flag=-oServerAliveInterval=60 --command="$command"
}

create() {
  local state=""
  if [[ "$dry_run" == true ]]; then
    tpu_vm describe "$name" '--format=value(state)'
  else
    # It fails where there is no such slice. Where it fails for another reason, the next command
    # says which.
    state="$(tpu_vm describe "$name" '--format=value(state)' 2>/dev/null || true)"
  fi
  case "$state" in
    READY)
      say "The slice $name exists"
      return
      ;;
    PREEMPTED | TERMINATED)
      say "The slice $name was preempted"
      delete
      ;;
    "") ;;
    *) fail "The slice $name is $state. Try again when it is READY, or delete it." ;;
  esac
  say "Creating the slice $name, of type $type"
  tpu_vm create "$name" --accelerator-type="$type" --version="${version:-$(default_version)}" \
    ${spot:+--spot}
}

install() {
  # One for each slice: another launch may be copying its own.
  local archive="results_local/launch_$name.tar.gz"
  say "Copying the code to every worker"
  run mkdir -p results_local
  run tar -czf "$archive" --exclude=./.git --exclude='./.venv*' --exclude=./results_local \
    --exclude=./build --exclude=./dist --exclude='./*.egg-info' --exclude=__pycache__ \
    --exclude='.*_cache' .
  tpu_vm scp "$archive" scripts/launch_tpu_pod.sh "$name:" --worker=all
  say "Installing it on every worker"
  on_workers all install "launch_$name.tar.gz" "$extras" "$trainer"
}

start() {
  say "Starting the training on every worker"
  on_workers all start "${arguments[@]}"
}

# Sets training_status; fails where it can't be known.
follow() {
  say "Following worker 0; Ctrl-C ends this, and not the training"
  training_status=0
  on_workers 0 follow || training_status=$?
  if ((training_status != 0)); then
    # A status of gcloud's or ssh's own looks like one of the training's, so ask again.
    training_status="$(on_workers 0 status || true)"
  fi
  if [[ ! "$training_status" =~ ^[0-9]+$ ]]; then
    fail "Lost sight of the training. Unless the slice was preempted it may well go on: look on" \
      "with --action follow. If it was, the same command again resumes it."
  fi
  if ((training_status != 0)); then
    say "The training failed with exit status $training_status; every worker's log ends so"
    on_workers all log >&2 || true
  fi
}

delete() {
  say "Deleting the slice $name"
  tpu_vm delete "$name" --quiet
}

# shellcheck disable=SC2329  # A trap calls it.
say_kept() {
  say "The slice $name, where it exists, costs money until you delete it:" \
    "bash scripts/launch_tpu_pod.sh --name $name --zone $zone${project:+ --project $project}" \
    "--action delete"
}

all() {
  trap say_kept EXIT
  create
  install
  start
  follow
  if [[ "$keep" == false && "$allow_local_output" == false ]]; then
    delete
    trap - EXIT
  fi
  exit "$training_status"
}

launch() {
  parse_options "$@"
  check_options
  cd "$(dirname "${BASH_SOURCE[0]}")/.."
  if [[ "$dry_run" == false ]] && ! command -v gcloud >/dev/null; then
    fail "gcloud is missing. Install the Google Cloud CLI, see" \
      "https://cloud.google.com/sdk/docs/install, and log in with gcloud auth login." \
      "--dry_run shows the commands without it."
  fi
  case "$action" in
    all) all ;;
    create) create ;;
    install) install ;;
    run) start ;;
    follow)
      follow
      exit "$training_status"
      ;;
    delete) delete ;;
  esac
}

# ---- On a worker --------------------------------------------------------------------------------

worker_code=~/ldro_jax_code
worker_venv=~/ldro_jax_venv
worker_log=~/ldro_jax.log
worker_status=~/ldro_jax.status
# Held while the training runs. The system takes it from a process that ends, however it ends.
worker_lock=~/ldro_jax.lock
worker_command=~/ldro_jax.command

worker_find_python() {
  # Ubuntu leaves ensurepip, without which venv fails, to a package of its own.
  local python test='import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))'
  for python in python3.12 python3.11 python3; do
    if "$python" -c "$test" 2>/dev/null; then
      echo "$python"
      return
    fi
  done
  return 1
}

worker_install_python() {
  # A new machine may still be installing its updates.
  local apt_get=(sudo apt-get -o DPkg::Lock::Timeout=600)
  # The python3.11 of Ubuntu 22.04 is a release candidate, and serves where this can't be reached.
  sudo add-apt-repository --yes ppa:deadsnakes/ppa || "${apt_get[@]}" update || true
  "${apt_get[@]}" install --yes python3.11 python3.11-venv
}

# Usage: worker_install ARCHIVE EXTRAS TRAINER
worker_install() {
  local python
  flock --nonblock "$worker_lock" true ||
    fail "A training is running on $(hostname), and needs the code there. --action follow shows it."
  rm -rf "$worker_code"
  mkdir "$worker_code"
  tar -xzf ~/"$1" -C "$worker_code"
  cd "$worker_code"
  # pip is the last thing to come into an environment.
  if [[ ! -x "$worker_venv/bin/pip" ]]; then
    worker_find_python >/dev/null || worker_install_python
    python="$(worker_find_python)" || fail "There is no Python 3.11 or newer on $(hostname)."
    "$python" -m venv "$worker_venv"
  fi
  "$worker_venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    ".[$2,gcs,plots]" 'jax[tpu]'
  if [[ "$3" == t5x ]]; then
    VIRTUAL_ENV="$worker_venv" PATH="$worker_venv/bin:$PATH" bash scripts/install_t5x.sh
  fi
}

# Usage: worker_start MODULE ARGUMENTS...
worker_start() {
  local command
  command="$(printf '%q ' "$@")"
  [[ -x "$worker_venv/bin/python" ]] ||
    fail "ldro-jax isn't installed on $(hostname). --action install installs it."
  exec 9>>"$worker_lock"
  if ! flock --nonblock 9; then
    # gcloud gives a command again when its connection breaks.
    [[ "$(cat "$worker_command")" == "$command" ]] ||
      fail "Another training is running on $(hostname). --action follow shows it."
    echo "The training is running on $(hostname) already."
    return
  fi
  printf '%s\n' "$command" >"$worker_command"
  rm -f "$worker_status"
  if [[ -e "$worker_log" ]]; then
    mv "$worker_log" "$worker_log.old"
  fi
  cd "$worker_code"
  # In a session of its own, it doesn't end with the connection.
  setsid bash ~/launch_tpu_pod.sh on_worker train "$@" </dev/null >"$worker_log" 2>&1 &
  echo "The training is running on $(hostname)."
}

# Usage: worker_train MODULE ARGUMENTS...
worker_train() {
  local status=0
  # A machine that shuts down sends SIGTERM to all its processes; this one outlives the training, to
  # note how it ended.
  trap : TERM
  PYTHONUNBUFFERED=1 "$worker_venv/bin/python" -m "$@" 9>&- || status=$?
  echo "$status" >"$worker_status"
}

worker_follow() {
  [[ -e "$worker_log" ]] || fail "No training was started on $(hostname)."
  flock --shared "$worker_lock" true &
  tail -n 200 -f -s 0.2 --pid=$! "$worker_log"
  [[ -e "$worker_status" ]] || fail "The training on $(hostname) was killed."
  exit "$(cat "$worker_status")"
}

worker_status() {
  # The file of a run that ended; a later one removes it.
  if [[ -e "$worker_status" ]]; then
    cat "$worker_status"
  fi
}

worker_log() {
  # In one piece, so that workers don't mix.
  printf '==== %s\n%s\n' "$(hostname)" "$(tail -n 30 "$worker_log")"
}

# Usage: on_worker ACTION ARGUMENTS...
on_worker() {
  case "$1" in
    install) worker_install "${@:2}" ;;
    start) worker_start "${@:2}" ;;
    train) worker_train "${@:2}" ;;
    follow) worker_follow ;;
    status) worker_status ;;
    log) worker_log ;;
  esac
}

# Read as a whole before it runs: a new copy of this file may replace it meanwhile.
{
  if [[ "${1-}" == on_worker ]]; then
    on_worker "${@:2}"
  else
    launch "$@"
  fi
  exit
}
