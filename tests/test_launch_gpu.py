"""What scripts/launch_gpu.sh would run, and what a node of its Slurm job then does run."""

import os
import pathlib
import shlex
import subprocess

import pytest

SCRIPT = pathlib.Path(__file__).parents[1] / "scripts" / "launch_gpu.sh"
# Quotes, blanks and dollars must arrive as they are.
ARGUMENTS = ["--gin_file=a file.gin", '--gin.MODEL_DIR="/tmp/$x"', "it's"]


def launch(*options, arguments=ARGUMENTS, **environment):
    return subprocess.run(
        ["bash", str(SCRIPT), *options, "--", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def dry(*options):
    done = launch("--dry_run", *options)
    assert done.returncode == 0, done.stderr
    return shlex.split(done.stdout)


def test_trains_here():
    assert dry() == ["python", "-m", "ldro_jax.main", *ARGUMENTS]
    t5x = dry("--trainer", "t5x")
    assert t5x == ["python", "-m", "t5x.main", "--run_mode=train", *ARGUMENTS]


@pytest.mark.parametrize(
    ("trainer", "expected"),
    [
        ("native", ["-m", "ldro_jax.main", *ARGUMENTS, "--distributed"]),
        (
            "t5x",
            [
                *("-m", "t5x.train", "--multiprocess_gpu", *ARGUMENTS),
                "--coordinator_address=first:12345",
                "--process_count=2",
                "--process_index=1",
            ],
        ),
    ],
)
def test_a_node_of_a_job_gets_the_arguments(tmp_path, trainer, expected):
    """Slurm's part is played by scripts: sbatch runs the job, srun one of its processes."""
    for name, body in {
        "sbatch": 'printf "%s\\n" "$@" >"$OUT/options"\nlast="${@: -1}"\nbash -c "${last#--wrap=}"',
        "srun": 'exec "$@"',
        "scontrol": "printf 'first\\nsecond\\n'",
        "python": 'printf "%s\\0" "$@" >"$OUT/arguments"',
    }.items():
        (tmp_path / name).write_text(f"#!/usr/bin/env bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    done = launch(
        *("--slurm", "--nodes", "2", "--gpus", "8", "--trainer", trainer),
        *("--sbatch", "--partition=a b"),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        OUT=str(tmp_path),
        SLURM_NTASKS="2",
        SLURM_PROCID="1",
        SLURM_JOB_NODELIST="node[1-2]",
    )
    assert done.returncode == 0, done.stderr
    options = (tmp_path / "options").read_text().splitlines()
    assert {"--nodes=2", "--gpus-per-node=8", "--partition=a b"} <= set(options)
    assert (tmp_path / "arguments").read_text().split("\0")[:-1] == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer", "torch"], "--trainer must be native or t5x, but it is 'torch'"),
        (["--nodes", "2"], "Several nodes need --slurm"),
        (["--gpus", "none"], "--gpus must be a positive number, but it is 'none'"),
        (["--cpus"], "There is no option --cpus"),
    ],
)
def test_what_is_wrong_is_said(options, message):
    done = launch("--dry_run", *options)
    assert done.returncode == 2 and message in done.stderr


def test_arguments_are_needed():
    assert "after --" in launch("--dry_run", arguments=[]).stderr
