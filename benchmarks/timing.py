"""Timing programs against each other on a machine whose speed drifts.

All programs take turns, one step each, round after round, so that a slow moment hits them all, and
in random order, so that what one leaves in the caches does so too; what is reported is the mean
over the rounds, relative to that of a baseline.
"""

import argparse
import platform
import random
import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp

BASELINE = "average loss"
RATES = {"lookahead_lr": 0.1, "weight_lr": 0.01}


def trainer_methods() -> dict[str, Any]:
    """The trainer's average loss, and L-DRO with several intervals k."""
    # Of the trainer, which the other benchmarks do without.
    from ldro_jax.training.method import Method

    methods = {BASELINE: Method("Average", "average")}
    for k in (1000, 100, 10, 1):
        ldro = Method("L-DRO", "lookahead_online", RATES, interaction_interval=k)
        methods[f"L-DRO, k = {k}"] = ldro
    return methods


def compiled_steps(
    programs: Mapping[str, tuple[Callable, Any]], params: Any, batch: Any
) -> tuple[dict[str, Any], dict[str, Callable[[], None]]]:
    """Compiled programs, and for each a function that takes one step after the last one.

    Args:
      programs: by name, ``(params, opt_state, batch) -> (params, opt_state, ...)`` and the
        optimizer.
      params: where they begin.
      batch: of every step.
    """
    compiled, timed = {}, {}
    for name, (step, tx) in programs.items():
        carry = jax.tree.map(jnp.copy, (params, tx.init(params)))
        compiled[name] = jax.jit(step, donate_argnums=(0, 1)).lower(*carry, batch).compile()
        timed[name] = _stepper(compiled[name], carry, batch)
    return compiled, timed


def _stepper(program, carry, batch):
    """A function that takes one step after the last one."""

    def step():
        nonlocal carry
        carry = jax.block_until_ready(program(*carry, batch))[:2]

    return step


def paired_ratios(
    programs: dict[str, Callable[[], None]], baseline: str, rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Times programs in turn, each a function that takes one step and waits for it.

    Where something happens now and then, the rounds are a multiple of its interval.

    Returns:
      For each name the mean milliseconds of a step, its ratio to the baseline's, and the standard
      error of that ratio, from the differences within the rounds.
    """
    seconds, order = {name: [] for name in programs}, random.Random(0)
    for _ in range(rounds):
        for name in order.sample(list(programs), len(programs)):
            began = time.perf_counter()
            programs[name]()
            seconds[name].append(time.perf_counter() - began)
    base = statistics.mean(seconds[baseline])
    table = {}
    for name, own in seconds.items():
        differences = [a - b for a, b in zip(own, seconds[baseline], strict=True)]
        error = statistics.stdev(differences) / rounds**0.5 if rounds > 1 else float("nan")
        mean = statistics.mean(own)
        table[name] = (1e3 * mean, mean / base, error / base)
    return table


def print_table(
    table: Mapping[str, tuple[float, float, float]],
    unit: str,
    speed: Callable[[float], str],
    compiled: Mapping[str, Any],
    baseline: str = BASELINE,
    paper: Mapping[str, float] | None = None,
) -> None:
    """Prints the table of :func:`paired_ratios`, with the memory of the programs that are known.

    ``speed`` is from milliseconds to what is printed; ``paper`` has ratios of the paper, by name.
    """
    memory = {n: c.memory_analysis().temp_size_in_bytes for n, c in compiled.items()}
    papers = "" if paper is None else f"{'paper':>7}"
    print(f"{'step':24}{unit:>10}{'ratio':>9}{'±':>7}{papers}{'temporary':>12}{'ratio':>7}")
    for name, (milliseconds, ratio, error) in table.items():
        row = f"{name:24}{speed(milliseconds):>10}{ratio:>8.3f}×{error:>7.3f}"
        if paper is not None:
            row += f"{paper[name]:>7.2f}" if name in paper else f"{'–':>7}"
        if name in memory:
            row += f"{memory[name] / 1e6:>9.1f} MB{memory[name] / memory[baseline]:>6.2f}×"
        print(row)


def arguments(
    description: str, flags: Mapping[str, str] = MappingProxyType({}), *, rounds: int
) -> argparse.Namespace:
    """Command line of a benchmark; flags that are true if given, with what they do."""
    parser = argparse.ArgumentParser(description=description)
    for flag, meaning in flags.items():
        parser.add_argument(flag, action="store_true", help=meaning)
    parser.add_argument("--rounds", type=int, default=rounds, help="steps of each program")
    parser.add_argument("--examples", type=int, default=64, help="examples of each task")
    return parser.parse_args()


def print_machine() -> None:
    """Prints what the figures were measured on."""
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, {device.platform} ({device.device_kind}), "
        f"{platform.processor() or platform.machine()}"
    )
