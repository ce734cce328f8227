"""Timing programs against each other on a machine whose speed drifts.

All programs take turns, round after round, and what is reported is the median over the rounds of
the ratio to a baseline timed in the same round.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable

import jax


def paired_ratios(
    programs: dict[str, tuple[Callable[[int], None], int]], baseline: str, rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Times programs in turn.

    Args:
      programs: for each name a function that takes a number of steps and waits for them, and how
        many steps to give it at a time.
      baseline: the program whose time is 1.
      rounds: how often each has its turn.

    Returns:
      For each name the median milliseconds a step, and the median and the spread (half the
      difference between the quartiles) of the ratio to the baseline.
    """
    seconds = {name: [] for name in programs}
    for run, _ in programs.values():
        run(1)
    for _ in range(rounds):
        for name, (run, steps) in programs.items():
            began = time.perf_counter()
            run(steps)
            seconds[name].append((time.perf_counter() - began) / steps)
    table = {}
    for name, own in seconds.items():
        ratios = [a / b for a, b in zip(own, seconds[baseline], strict=True)]
        low, _, high = statistics.quantiles(ratios, n=4) if rounds > 1 else ratios * 3
        table[name] = (1e3 * statistics.median(own), statistics.median(ratios), (high - low) / 2)
    return table


def arguments(description: str, *, rounds: int) -> argparse.Namespace:
    """Command line of a benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--rounds", type=int, default=rounds, help="turns of each program")
    parser.add_argument("--examples", type=int, default=64, help="examples of each task")
    return parser.parse_args()


def print_machine() -> None:
    """Prints what the figures were measured on."""
    device = jax.devices()[0]
    print(
        f"jax {jax.__version__}, {device.platform} ({device.device_kind}), "
        f"{platform.processor() or platform.machine()}"
    )
