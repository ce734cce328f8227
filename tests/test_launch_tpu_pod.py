"""The launch script, against a gcloud whose workers are directories of this machine."""

import json
import os
import pathlib
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the workers run Linux")

_SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "launch_tpu_pod.sh"

OPTIONS = ("--name=slice", "--zone=us-central2-b", "--type=v4-16")
ARGUMENTS = ("--gin_file=a.gin", "--output_dir=gs://bucket/run")
LAUNCH = (*OPTIONS, "--", *ARGUMENTS)
WORKERS = 2

# $FAIL is part of the call that fails, with ssh's status for a lost connection.
GCLOUD = f"""#!{sys.executable} -IS
import json, os, pathlib, shutil, subprocess, sys

pod = pathlib.Path(os.environ["POD"])
argv = sys.argv[1:]
with open(pod / "calls", "a") as calls:
    print(json.dumps(argv), file=calls)
options = dict(arg[2:].split("=", 1) for arg in argv if arg.startswith("--") and "=" in arg)
if os.environ.get("FAIL", "nothing fails") in " ".join(argv):
    sys.exit(255)
verb, state = argv[3], pod / "state"
which = range({WORKERS}) if options.get("worker") == "all" else [int(options.get("worker", 0))]
homes = [pod / f"worker{{i}}" for i in which]
statuses = []
if verb == "describe":
    if not state.exists():
        sys.exit("NOT_FOUND")
    print(state.read_text())
elif verb == "create":
    state.write_text("READY")
elif verb == "delete":
    state.unlink()
elif verb == "scp":
    for home in homes:
        for source in argv[4 : argv.index("slice:")]:
            shutil.copy(source, home)
elif verb == "ssh":
    path = f"{{pod}}/worker_bin:{{os.environ['PATH']}}"
    for home in homes:
        env = {{**os.environ, "HOME": str(home), "PATH": path}}
        command = ["bash", "-c", options["command"]]
        statuses.append(subprocess.run(command, env=env, cwd=home).returncode)
sys.exit(next(filter(None, statuses), 0))
"""

# A Python that is new enough, and makes environments whose Python only notes what it is given.
PYTHON = """#!/usr/bin/env bash
if [[ "$1 $2" == "-m venv" ]]; then
  mkdir -p "$3/bin"
  cp "$POD/venv_python" "$3/bin/python"
  cp "$POD/venv_python" "$3/bin/pip"
fi
"""

VENV_PYTHON = """#!/usr/bin/env bash
if [[ "$1 $2" == "-m pip" ]]; then
  printf '%s\\0' "$PWD" "$@" >~/pip
  exit "$(cat "$POD/pip_status")"
fi
trap 'echo saved; exit 143' TERM
echo "$PPID" >~/parent
if [[ $(basename ~) == worker0 && -e "$POD/leave_process" ]]; then
  sleep 30 &
  echo "$!" >~/left
fi
for i in {1..1200}; do
  [[ -e "$POD/hold" ]] || break
  sleep 0.05
done
printf '%s\\0' "$@" >>~/trained
echo "the last line of $(basename ~)"
# Workers end together, as they do with jax.distributed; worker 0 is the one that is followed.
for i in {1..600}; do
  [[ $(basename ~) == worker0 && ! -e "$POD/worker1/ldro_jax.status" ]] || break
  sleep 0.05
done
exit "$(cat "$POD/training_status")"
"""


def executable(path, text):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)


class Pod:
    """A clone to launch from, and a slice of directories."""

    def __init__(self, root):
        self.root = root
        self.clone = root / "clone"
        for file in (".git/config", ".venv/bin/python", "results_local/old", "ldro_jax/a.py"):
            (self.clone / file).parent.mkdir(parents=True)
            (self.clone / file).touch()
        self.script = self.clone / "scripts" / _SCRIPT.name
        executable(self.script, _SCRIPT.read_text(encoding="utf-8"))
        executable(root / "bin" / "gcloud", GCLOUD)
        executable(root / "worker_bin" / "python3.12", PYTHON)
        executable(root / "venv_python", VENV_PYTHON)
        self.homes = [root / f"worker{i}" for i in range(WORKERS)]
        for home in self.homes:
            home.mkdir()
        for file in ("pip_status", "training_status"):
            (root / file).write_text("0")
        self.path = f"{root / 'bin'}:{os.environ['PATH']}"

    def launch(self, *args, check=True, fail="nothing fails", path=None):
        done = subprocess.run(
            [shutil.which("bash"), self.script, *args],
            env={"PATH": path or self.path, "POD": str(self.root), "FAIL": fail, "HOME": "/"},
            cwd=self.root,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
        )
        if check:
            assert done.returncode == 0, done.stderr
        return done

    def calls(self):
        """What gcloud was given since the last time."""
        file = self.root / "calls"
        if not file.exists():
            return []
        lines = file.read_text().splitlines()
        file.unlink()
        prefix = ["compute", "tpus", "tpu-vm"]
        calls = [json.loads(line) for line in lines]
        assert all(call[:3] == prefix for call in calls)
        return [call[3:] for call in calls]

    def verbs(self):
        """What gcloud did since the last time, and what the workers did."""
        return [verb(call) for call in self.calls()]

    def state(self):
        file = self.root / "state"
        return file.read_text() if file.exists() else None

    def set_state(self, state):
        (self.root / "state").write_text(state)

    def trained(self):
        """The arguments that Python was given on each worker, of all trainings there."""
        files = [home / "trained" for home in self.homes]
        return [file.read_text().split("\0")[:-1] for file in files if file.exists()]

    def hold(self):
        """Makes trainings go on until ``release``."""
        (self.root / "hold").touch()

    def release(self):
        (self.root / "hold").unlink(missing_ok=True)


def verb(call):
    command = next((arg for arg in call if arg.startswith("--command=")), None)
    return call[0] if command is None else shlex.split(command)[3]


def wait_for(path):
    deadline = time.monotonic() + 30
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline, path
        time.sleep(0.02)


def without_gcloud(tmp_path):
    """A PATH with the tools of this machine, but for gcloud."""
    directory = tmp_path / "tools"
    directory.mkdir()
    for tool in ("dirname", "sed", "tar", "mkdir", "bash", "cat"):
        (directory / tool).symlink_to(shutil.which(tool))
    return str(directory)


@pytest.fixture
def pod(tmp_path):
    pod = Pod(tmp_path)
    yield pod
    # A training that a test left behind ends.
    pod.release()


EVERYTHING = ["describe", "create", "scp", "install", "start", "follow", "delete"]


def test_a_dry_run_prints_every_command_in_order(pod):
    ssh = "gcloud compute tpus tpu-vm ssh slice --worker=all --ssh-flag=-oServerAliveInterval=60"
    worker = r"--command=bash\ launch_tpu_pod.sh\ on_worker\ "
    zone = "--zone=us-central2-b"
    lines = pod.launch("--dry_run", *LAUNCH).stdout.splitlines()
    assert lines[3].startswith("tar -czf results_local/launch_slice.tar.gz --exclude=./.git ")
    assert lines[:3] + lines[4:] == [
        rf"gcloud compute tpus tpu-vm describe slice --format=value\(state\) {zone}",
        "gcloud compute tpus tpu-vm create slice --accelerator-type=v4-16 "
        f"--version=tpu-ubuntu2204-base {zone}",
        "mkdir -p results_local",
        "gcloud compute tpus tpu-vm scp results_local/launch_slice.tar.gz "
        f"scripts/launch_tpu_pod.sh slice: --worker=all {zone}",
        rf"{ssh} {worker}install\ launch_slice.tar.gz\ lm\ native {zone}",
        rf"{ssh} {worker}start\ ldro_jax.main\ --gin_file=a.gin\ --output_dir=gs://bucket/run"
        rf"\ --distributed "
        f"{zone}",
        rf"{ssh.replace('all', '0')} {worker}follow {zone}",
        f"gcloud compute tpus tpu-vm delete slice --quiet {zone}",
    ]


def test_a_dry_run_runs_nothing_and_needs_no_gcloud(pod, tmp_path):
    done = pod.launch("--dry_run", *LAUNCH, path=without_gcloud(tmp_path))
    assert len(done.stdout.splitlines()) == 9
    assert not done.stderr and not pod.calls()
    assert not (pod.clone / "results_local" / "launch_slice.tar.gz").exists()


def test_a_dry_run_prints_what_is_run(pod):
    arguments = (*LAUNCH, "--gin.SEEDS=(0, 1)", 'it\'s "$HOME"\n*')
    printed = pod.launch("--dry_run", "--spot", "--project=p", *arguments).stdout
    pod.launch("--spot", "--project=p", *arguments)
    run = pod.calls()
    # As one would paste it. There is no slice again, so describe fails.
    subprocess.run(
        ["bash", "-c", printed],
        env={"PATH": pod.path, "POD": str(pod.root)},
        cwd=pod.clone,
        check=True,
        capture_output=True,
    )
    assert pod.calls() == run


def test_all_trains_on_every_worker_and_deletes_the_slice(pod):
    done = pod.launch(*LAUNCH)
    assert pod.verbs() == EVERYTHING
    assert pod.trained() == [["-m", "ldro_jax.main", *ARGUMENTS, "--distributed"]] * WORKERS
    assert "the last line of worker0" in done.stdout
    assert pod.state() is None
    assert "costs money" not in done.stderr


def test_arguments_arrive_unchanged(pod):
    arguments = [
        "--gin.SEEDS=(0, 1)",
        "--gin.MLP.name='two  words'",
        '--gin.MLP.name="quoted"',
        "--gin.MLP.name=it's $HOME `id` $(id) \\ * ! ~ # ; & | < >",
        "--gin.MLP.name=first line\nsecond line",
        "--gin.MLP.name=Überraschung",
        "",
    ]
    pod.launch(*LAUNCH, *arguments)
    expected = ["-m", "ldro_jax.main", *ARGUMENTS, *arguments, "--distributed"]
    assert pod.trained() == [expected] * WORKERS


def test_t5x_is_installed_and_trained_with(pod):
    scripts = pod.clone / "scripts"
    (scripts / "install_t5x.sh").write_text('echo "$VIRTUAL_ENV" >~/t5x\n')
    arguments = ["--gin_file=gin_configs/t5x/mc4_base.gin", '--gin.MODEL_DIR="gs://bucket/run"']
    pod.launch(*OPTIONS, "--trainer=t5x", "--", *arguments)
    assert pod.verbs() == EVERYTHING
    assert pod.trained() == [["-m", "t5x.main", "--run_mode=train", *arguments]] * WORKERS
    for home in pod.homes:
        assert (home / "t5x").read_text().strip() == f"{home}/ldro_jax_venv"
    done = pod.launch(*OPTIONS, "--trainer=t5x", "--", arguments[0], check=False)
    assert done.returncode == 2 and "--gin.MODEL_DIR must be gs://..." in done.stderr


def test_the_printed_command_can_be_decoded_twice(pod):
    argument = "--gin.SEEDS='(0, 1)'"
    printed = pod.launch("--dry_run", "--action=run", *LAUNCH, argument).stdout
    command = shlex.split(printed)[-2].removeprefix("--command=")
    assert shlex.split(command)[-2:] == [argument, "--distributed"]


@pytest.mark.parametrize(
    "action, verbs",
    [
        ("create", ["describe", "create"]),
        ("install", ["scp", "install"]),
        ("run", ["start"]),
        ("follow", ["follow"]),
        ("delete", ["delete"]),
    ],
)
def test_actions_can_be_taken_one_by_one(pod, action, verbs):
    printed = pod.launch("--dry_run", f"--action={action}", *LAUNCH).stdout.splitlines()
    calls = [shlex.split(line)[4:] for line in printed if line.startswith("gcloud")]
    assert [verb(call) for call in calls] == verbs


def test_actions_one_by_one_are_the_same_as_all(pod):
    for action in ("create", "install", "run", "follow", "delete"):
        # What an action has no need of is optional.
        needs = {"create": OPTIONS, "run": LAUNCH}.get(action, OPTIONS[:2])
        pod.launch(f"--action={action}", *needs)
    assert pod.verbs() == EVERYTHING
    assert pod.trained() == [["-m", "ldro_jax.main", *ARGUMENTS, "--distributed"]] * WORKERS


def test_values_may_be_arguments_of_their_own(pod):
    together = pod.launch("--dry_run", *LAUNCH).stdout
    apart = [part for option in OPTIONS for part in option.split("=")]
    assert pod.launch(*apart, "--dry_run", "--", *ARGUMENTS).stdout == together


def test_spot_asks_for_a_spot_slice(pod):
    pod.launch("--spot", "--action=create", *OPTIONS)
    assert "--spot" in pod.calls()[1]


def test_every_call_names_zone_and_project(pod):
    pod.launch("--project=p", *LAUNCH)
    for call in pod.calls():
        assert {"--zone=us-central2-b", "--project=p"} <= set(call)


@pytest.mark.parametrize(
    "options, version",
    [
        (["--type=v4-128"], "tpu-ubuntu2204-base"),
        (["--type=v5litepod-16"], "v2-alpha-tpuv5-lite"),
        (["--type=v5p-16"], "v2-alpha-tpuv5"),
        (["--type=v6e-16"], "v2-alpha-tpuv6e"),
        (["--type=v6e-16", "--version=mine"], "mine"),
    ],
)
def test_software_fits_the_type(pod, options, version):
    printed = pod.launch("--dry_run", "--action=create", *OPTIONS[:2], *options).stdout
    assert f" --version={version} " in printed


def test_keep_keeps_the_slice_and_says_what_it_costs(pod):
    done = pod.launch("--keep", *LAUNCH)
    assert pod.verbs() == EVERYTHING[:-1]
    assert pod.state() == "READY"
    kept = "--name slice --zone us-central2-b --action delete"
    assert "costs money" in done.stderr and kept in done.stderr


def test_a_slice_that_exists_is_not_created_again(pod):
    pod.set_state("READY")
    pod.launch(*LAUNCH)
    assert pod.verbs() == ["describe", *EVERYTHING[2:]]


def test_a_preempted_slice_is_made_anew(pod):
    pod.set_state("PREEMPTED")
    pod.launch(*LAUNCH)
    assert pod.verbs() == ["describe", "delete", *EVERYTHING[1:]]


def test_a_slice_that_is_not_ready_is_left_alone(pod):
    pod.set_state("CREATING")
    done = pod.launch(*LAUNCH, check=False)
    assert done.returncode == 1 and "is CREATING" in done.stderr
    assert pod.verbs() == ["describe"]


@pytest.mark.parametrize("fail, last", [("tpu-vm create", 2), ("scp", 3), ("on_worker install", 4)])
def test_a_failure_before_the_training_stops_everything(pod, fail, last):
    done = pod.launch(*LAUNCH, fail=fail, check=False)
    assert done.returncode == 255
    assert pod.verbs() == EVERYTHING[:last]
    assert "where it exists, costs money" in done.stderr


def test_an_installation_that_fails_on_a_worker_stops_everything(pod):
    (pod.root / "pip_status").write_text("7")
    done = pod.launch(*LAUNCH, check=False)
    assert done.returncode == 7
    assert pod.verbs() == EVERYTHING[:4]


def test_a_training_that_fails_shows_all_logs_and_deletes_the_slice(pod):
    (pod.root / "training_status").write_text("3")
    done = pod.launch(*LAUNCH, check=False)
    assert done.returncode == 3
    assert pod.verbs() == [*EVERYTHING[:-1], "status", "log", "delete"]
    for home in pod.homes:
        assert f"the last line of {home.name}" in done.stderr


def test_keep_keeps_the_slice_of_a_training_that_failed(pod):
    (pod.root / "training_status").write_text("3")
    assert pod.launch("--keep", *LAUNCH, check=False).returncode == 3
    assert pod.state() == "READY"


def test_a_lost_connection_ends_neither_the_training_nor_the_slice(pod):
    pod.hold()
    done = pod.launch(*LAUNCH, fail="on_worker follow", check=False)
    assert done.returncode == 1
    assert "Lost sight" in done.stderr and "costs money" in done.stderr
    assert pod.verbs() == [*EVERYTHING[:-1], "status"]
    assert pod.state() == "READY"
    pod.release()
    assert "the last line of worker0" in pod.launch("--action=follow", *OPTIONS).stdout


def test_a_connection_lost_at_the_end_does_not_look_like_a_failure(pod):
    # The training ends at once; only who follows it doesn't hear of that.
    pod.launch("--keep", *LAUNCH)
    pod.calls()
    pod.launch("--action=follow", *OPTIONS, fail="on_worker follow")
    assert pod.verbs() == ["follow", "status"]


def test_the_same_command_again_starts_nothing_twice(pod):
    pod.hold()
    pod.launch("--action=install", *LAUNCH)
    for _ in range(2):
        done = pod.launch("--action=run", *LAUNCH)
    assert "already" in done.stdout
    pod.release()
    pod.launch("--action=follow", *OPTIONS)
    assert pod.trained()[0] == ["-m", "ldro_jax.main", *ARGUMENTS, "--distributed"]


@pytest.mark.parametrize("again", [("--action=run", "--seed=1"), ("--action=install",)])
def test_a_training_that_is_running_is_not_disturbed(pod, again):
    pod.hold()
    pod.launch("--action=install", *LAUNCH)
    pod.launch("--action=run", *LAUNCH)
    action, *arguments = again
    done = pod.launch(action, *LAUNCH, *arguments, check=False)
    assert done.returncode == 1 and "--action follow shows it" in done.stderr
    pod.release()
    pod.launch("--action=follow", *OPTIONS)


def test_a_second_training_keeps_the_log_of_the_first(pod):
    pod.launch("--keep", *LAUNCH)
    pod.launch(*LAUNCH)
    assert (pod.homes[0] / "ldro_jax.log.old").read_text() == "the last line of worker0\n"
    assert (pod.homes[0] / "ldro_jax.log").read_text() == "the last line of worker0\n"


def test_a_training_that_is_terminated_notes_how_it_ended(pod):
    pod.hold()
    pod.launch("--action=install", *LAUNCH)
    pod.launch("--action=run", *LAUNCH)
    wait_for(pod.homes[0] / "parent")
    # The leader of the session, and everything in it: as where the machine shuts down.
    os.killpg(int((pod.homes[0] / "parent").read_text()), signal.SIGTERM)
    assert pod.launch("--action=follow", *OPTIONS, check=False).returncode == 143
    assert "saved" in (pod.homes[0] / "ldro_jax.log").read_text()


def test_a_training_that_is_killed_has_no_status(pod):
    # One that ended before has left its own.
    pod.launch("--keep", *LAUNCH)
    (pod.homes[0] / "parent").unlink()
    pod.hold()
    pod.launch("--action=run", *LAUNCH)
    wait_for(pod.homes[0] / "parent")
    os.killpg(int((pod.homes[0] / "parent").read_text()), signal.SIGKILL)
    done = pod.launch("--action=follow", *OPTIONS, check=False)
    assert done.returncode == 1
    assert "was killed" in done.stderr and "Lost sight" in done.stderr


def test_a_process_that_outlives_the_training_does_not_hold_up_its_end(pod):
    (pod.root / "leave_process").touch()
    pod.launch(*LAUNCH)
    left = int((pod.homes[0] / "left").read_text())
    # Empty where the process ended and nobody asked how.
    assert pathlib.Path(f"/proc/{left}/cmdline").read_bytes()
    os.kill(left, signal.SIGTERM)


@pytest.mark.parametrize("action", ["run", "follow"])
def test_a_worker_without_the_code_says_so(pod, action):
    for home in pod.homes:
        shutil.copy(_SCRIPT, home)
    done = pod.launch(f"--action={action}", *LAUNCH, check=False)
    assert done.returncode == 1
    assert {"run": "isn't installed", "follow": "No training"}[action] in done.stderr


def test_workers_get_the_clone_without_what_is_local(pod):
    (pod.clone / ".gitignore").touch()
    pod.launch("--action=install", *OPTIONS)
    with tarfile.open(pod.clone / "results_local" / "launch_slice.tar.gz") as archive:
        files = {member.name for member in archive if member.isfile()}
    assert files == {"./.gitignore", "./ldro_jax/a.py", "./scripts/launch_tpu_pod.sh"}


def test_a_second_installation_leaves_no_old_file(pod):
    pod.launch("--action=install", *OPTIONS)
    (pod.clone / "ldro_jax" / "a.py").rename(pod.clone / "ldro_jax" / "b.py")
    pod.launch("--action=install", *OPTIONS)
    code = pod.homes[1] / "ldro_jax_code" / "ldro_jax"
    assert [file.name for file in code.iterdir()] == ["b.py"]


@pytest.mark.parametrize("options, extras", [([], "lm"), (["--extras", "vision,lm"], "vision,lm")])
def test_extras_plots_storage_and_jax_for_tpu_are_installed(pod, options, extras):
    pod.launch("--action=install", *OPTIONS, *options)
    for home in pod.homes:
        directory, *arguments = (home / "pip").read_text().split("\0")[:-1]
        assert directory == str(home / "ldro_jax_code")
        assert arguments[:3] == ["-m", "pip", "install"]
        assert arguments[-2:] == [f".[{extras},gcs,plots]", "jax[tpu]"]


# What Ubuntu 22.04 has.
OLD_PYTHON = """#!/usr/bin/env bash
exit 1
"""


def test_a_worker_with_an_old_python_gets_a_newer_one(pod):
    for python in ("python3", "python3.11", "python3.12"):
        executable(pod.root / "worker_bin" / python, OLD_PYTHON)
    executable(pod.root / "new_python", PYTHON)
    executable(
        pod.root / "worker_bin" / "sudo",
        """#!/usr/bin/env bash
        echo "$*" >>~/sudo
        # Without a way to the PPA, what Ubuntu has must do.
        [[ "$1" != add-apt-repository ]] || exit 1
        [[ "$*" != *install* ]] || cp "$POD/new_python" "$POD/worker_bin/python3.11"
        """,
    )
    pod.launch("--action=install", *OPTIONS)
    assert [line.split()[-1] for line in (pod.homes[0] / "sudo").read_text().splitlines()] == [
        "ppa:deadsnakes/ppa",
        "update",
        "python3.11-venv",
    ]
    assert (pod.homes[0] / "pip").exists()


def test_a_worker_that_can_get_no_newer_python_says_so(pod):
    for python in ("python3", "python3.11", "python3.12", "sudo"):
        executable(pod.root / "worker_bin" / python, OLD_PYTHON)
    executable(pod.root / "worker_bin" / "sudo", "#!/usr/bin/env bash\n")
    done = pod.launch("--action=install", *OPTIONS, check=False)
    assert done.returncode == 1 and "There is no Python 3.11 or newer" in done.stderr


@pytest.mark.parametrize("given", ["--distributed", "-distributed", "--nodistributed"])
def test_distributed_is_added_only_where_it_is_not_given(pod, given):
    printed = pod.launch("--dry_run", "--action=run", *LAUNCH, given).stdout
    assert printed.count("distributed") == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ["--output_dir=gs://bucket/run"],
        ["-output_dir=gs://bucket/run"],
        ["--output_dir", "gs://bucket/run"],
        # absl takes the last one.
        ["--output_dir=/tmp/run", "--output_dir=gs://bucket/run"],
    ],
)
def test_output_may_go_to_a_bucket(pod, arguments):
    pod.launch("--dry_run", *OPTIONS, "--", *arguments)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--gin_file=a.gin"],
        ["--output_dir=/tmp/run"],
        ["--output_dir"],
        ["--output_dir=gs://"],
        ["--output_dir=gs://bucket/run", "--output_dir=/tmp/run"],
    ],
)
def test_output_that_would_be_deleted_with_the_slice_is_refused(pod, arguments):
    done = pod.launch(*OPTIONS, "--", *arguments, check=False)
    assert done.returncode == 2
    assert "deleted with it" in done.stderr and "--allow_local_output" in done.stderr
    assert not pod.calls()


def test_local_output_that_is_allowed_keeps_the_slice(pod):
    pod.launch("--allow_local_output", *OPTIONS, "--", "--output_dir=/tmp/run")
    assert pod.verbs() == EVERYTHING[:-1]


def test_allowing_local_output_changes_nothing_where_there_is_none(pod):
    pod.launch("--allow_local_output", *LAUNCH)
    assert pod.verbs() == EVERYTHING


@pytest.mark.parametrize(
    "args, message",
    [
        (["--zone=z", "--type=v4-8", "--", *ARGUMENTS], "--name is missing"),
        (["--name=n", "--type=v4-8", "--", *ARGUMENTS], "--zone is missing"),
        (["--name=n", "--zone=z", "--", *ARGUMENTS], "--type is missing"),
        (OPTIONS, "The command is missing"),
        ([*OPTIONS, "--"], "The command is missing"),
        ([*OPTIONS, "--action=run"], "The command is missing"),
        (["--nmae=n", *LAUNCH], "no option --nmae=n"),
        ([*OPTIONS, *ARGUMENTS], "The training's own arguments come after --."),
        (["--name", "--zone=z"], "--name needs a value"),
        (["--zone"], "--zone needs a value"),
        (["--name="], "--name needs a value"),
        (["--name=Big Slice", *LAUNCH[1:]], "lower-case letters, digits and hyphens"),
        (["--action=stop", *LAUNCH], "no action stop"),
    ],
)
def test_mistakes_are_one_clear_line(pod, args, message):
    done = pod.launch(*args, check=False)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.startswith("Error: ")
    assert len(done.stderr.splitlines()) == 1
    assert not done.stdout and not pod.calls()


def test_a_missing_gcloud_is_one_clear_line(pod, tmp_path):
    done = pod.launch(*LAUNCH, path=without_gcloud(tmp_path), check=False)
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 1
    for part in ("gcloud is missing", "https://cloud.google.com/sdk", "--dry_run"):
        assert part in done.stderr


def test_help_is_the_header_of_the_file(pod):
    text = pod.launch("--help").stdout
    assert text.startswith("Trains on every worker") and "What may go wrong:" in text
    assert "#" not in text and "set -e" not in text


def test_every_option_is_in_the_help(pod):
    text = pod.launch("--help").stdout
    for option in ("dry_run", "spot", "keep", "allow_local_output", "project", "extras", "action"):
        assert f"  --{option} " in text
