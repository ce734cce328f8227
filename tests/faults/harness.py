"""Tiny experiments that are killed and damaged, and whether their numbers are still right."""

import concurrent.futures
import contextlib
import json
import os
import pathlib
import queue
import shutil
import subprocess
import sys

import numpy as np

ROOT = pathlib.Path(__file__).parents[2]
_EXPERIMENTS = ROOT / "gin_configs" / "experiments"
# What may differ between two runs of the same numbers.
_CLOCKS = ("seconds_per_step", "occasion", "checksum")

DIGITS = [
    f"--gin_file={_EXPERIMENTS / 'digits.gin'}",
    "--gin.TRAIN_STEPS=6",
    "--gin.SEEDS=(0,)",
    "--gin.MLP.features=(4,)",
    "--gin.Schedule.eval_interval=2",
    "--gin.Schedule.checkpoint_interval=2",
    "--gin.ldro/Method.interaction_interval=2",
    "--gin.compare.methods=[@average/Method(), @ldro/Method()]",
]
# Two runs of a method as one program, whose records are written one after the other.
TOGETHER = [
    *DIGITS,
    "--gin.SEEDS=(0, 1)",
    "--gin.compare.methods=[@ldro/Method()]",
    "--gin.Batches.runs_together=2",
]
SYNTHETIC = [
    f"--gin_file={_EXPERIMENTS / 'synthetic.gin'}",
    "--gin.Schedule.train_steps=20",
    "--gin.Schedule.eval_interval=10",
    "--gin.Schedule.checkpoint_interval=10",
    "--gin.trajectories.panels=[@b/Panel()]",
]
_TINY_MODEL = [
    "--gin.TRAIN_STEPS=4",
    "--gin.WARMUP_STEPS=1",
    "--gin.EVAL_INTERVAL=2",
    "--gin.BATCH_SIZE=4",
    "--gin.LENGTH=8",
    "--gin.SEEDS=(0,)",
    "--gin.Decoder.num_layers=1",
    "--gin.Decoder.embed_dim=8",
    "--gin.Decoder.num_heads=2",
    "--gin.Decoder.mlp_dim=8",
    "--gin.Decoder.scan_layers=False",
    "--gin.Decoder.remat=False",
    "--gin.Decoder.dtype='float32'",
    "--gin.language_model.max_test_tokens=64",
    "--gin.language_model.max_validation_tokens=64",
]


def multilingual(folder: pathlib.Path) -> list[str]:
    """Two artificial languages, each with a model of its own first."""
    rng = np.random.default_rng(0)
    for language, words in {"aa": "alpha beta gamma", "bb": "uno dos tres cuatro"}.items():
        for split, count in (("train", 30), ("validation", 40)):
            lines = (" ".join(rng.choice(words.split(), 5)) + "\n" for _ in range(count))
            (folder / language).mkdir(parents=True, exist_ok=True)
            (folder / language / f"{split}.txt").write_text("".join(lines))
    return [
        f"--gin_file={_EXPERIMENTS / 'multilingual_lm_small.gin'}",
        f"--data_dir={folder}",
        *_TINY_MODEL,
        "--gin.text.load.languages=None",
        "--gin.text.load.vocabulary_size=None",
        f"--gin.text.load.cache_dir='{folder / 'cache'}'",
        "--gin.compare.methods=[@baselined_dro/Method(), @ldro/Method()]",
        "--gin.alone/Batches.size=2",
    ]


def streamed(data_dir: pathlib.Path, languages) -> list[str]:
    """Text that is read while the training goes on, from a directory of TFDS."""
    return [
        f"--gin_file={_EXPERIMENTS / 'multilingual_lm_mc4.gin'}",
        f"--data_dir={data_dir}",
        *_TINY_MODEL,
        f"--gin.mc4.load.languages={tuple(languages)}",
        f"--gin.mc4.load.cache_dir='{data_dir / 'cache'}'",
        "--gin.mc4.load.max_heldout_tokens=100",
        "--gin.compare.methods=[@ldro/Method()]",
        "--gin.Report.references=None",
    ]


class Runners:
    """Programs that fork tiny runs, as many as there are cores; see :mod:`runner`."""

    def __init__(self, folder: pathlib.Path, size: int = 0):
        self._folder, self._free = folder, queue.Queue()
        self._whole: dict[tuple[str, ...], tuple[pathlib.Path, int]] = {}
        self.size = size or os.cpu_count() or 1
        self._all = [self._start(number) for number in range(self.size)]

    def _start(self, number):
        path = os.pathsep.join([str(ROOT), *filter(None, sys.path)])
        environment = os.environ | {
            "PYTHONPATH": path,
            "XLA_FLAGS": "--xla_cpu_experimental_ynn_fusion_type=",
            "JAX_COMPILATION_CACHE_DIR": str(self._folder / "compiled"),
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        program = str(pathlib.Path(__file__).with_name("runner.py"))
        with (self._folder / f"runner{number}.log").open("w") as errors:
            process = subprocess.Popen(
                [sys.executable, program],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
            )
        self._free.put((number, process))
        return process

    def run(self, args, output_dir, **options):
        """Runs the command line; its exit status, number of file operations and what it said."""
        number, process = self._free.get()
        log = self._folder / f"said{number}"
        job = {"args": [*args, f"--output_dir={output_dir}"], "log": str(log)}
        job |= {"watched": [str(output_dir)]} | options
        try:
            process.stdin.write(json.dumps(job) + "\n")
            process.stdin.flush()
            while (line := process.stdout.readline().strip()) == "ready":
                pass
            assert line, f"a runner ended: {self._folder / f'runner{number}.log'}"
            answer = json.loads(line)
            return answer["status"], answer["operations"], log.read_text(errors="replace")
        finally:
            self._free.put((number, process))

    def whole(self, args, target):
        """Copies what an uninterrupted run leaves, made once; how many operations that takes."""
        if (key := tuple(args)) not in self._whole:
            source = self._folder / f"whole{len(self._whole)}"
            status, operations, said = self.run(args, source)
            assert status == 0, said
            self._whole[key] = source, operations
        source, operations = self._whole[key]
        copied(source, target)
        return operations

    def map(self, function, items):
        """Calls a function of items side by side; its results in order."""
        with concurrent.futures.ThreadPoolExecutor(self.size) as pool:
            return list(pool.map(function, items))

    def close(self):
        for process in self._all:
            process.kill()
            process.communicate()


def record(output_dir: pathlib.Path) -> dict:
    """The record of an experiment, but for what clocks say."""
    return _without_clocks(_read(output_dir / "results.json"))


def outcome(output_dir: pathlib.Path) -> dict:
    """The record of an experiment and what its last checkpoints hold, but for what clocks say.

    Two equal ones have the same parameters to the bit: the checkpoints name sums over all bits.
    """
    found = {"record": record(output_dir)}
    for folder in sorted(output_dir.glob("**/checkpoints/*")):
        steps = [int(path.name) for path in folder.iterdir() if path.name.isdigit()]
        if steps:
            last = _read(folder / str(max(steps)) / "record" / "metadata")
            found[str(folder.relative_to(output_dir))] = _without_clocks(last)
    return found


def _read(path: pathlib.Path):
    return json.loads(path.read_text())


def _without_clocks(value):
    if isinstance(value, dict):
        return {k: _without_clocks(v) for k, v in value.items() if k not in _CLOCKS}
    return [_without_clocks(item) for item in value] if isinstance(value, list) else value


def leftovers(output_dir: pathlib.Path) -> list[str]:
    """What nobody needs any more."""
    return [str(p) for p in output_dir.rglob("*") if "orbax-checkpoint-tmp" in p.name]


def errors(said: str) -> list[str]:
    """The lines of a failure: one that begins with Error, and one that says how to see more."""
    lines = [line for line in said.splitlines() if line.strip()]
    return lines[-2:] if len(lines) > 1 and lines[-2].startswith("Error: ") else []


def remove(output_dir: pathlib.Path) -> None:
    """Deletes a directory that is of no more use: hundreds of them would fill a disk."""
    with contextlib.suppress(FileNotFoundError):
        shutil.rmtree(output_dir)


def copied(source: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    remove(target)
    shutil.copytree(source, target, symlinks=True)
    return target
