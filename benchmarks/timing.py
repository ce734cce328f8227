"""Timing programs against each other on a machine whose speed drifts.

All programs take turns, one step each, round after round, so that a slow moment hits them all; what
is reported is the mean over the rounds, relative to that of a baseline.
"""

import argparse
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType

import jax


def paired_ratios(
    programs: dict[str, Callable[[], None]], baseline: str, rounds: int
) -> dict[str, tuple[float, float, float]]:
    """Times programs in turn.

    Args:
      programs: for each name a function that takes one step and waits for it.
      baseline: the program whose time is 1.
      rounds: how many steps each takes; a multiple of the interval of what happens now and then.

    Returns:
      For each name the mean milliseconds of a step, its ratio to the baseline's, and the standard
      error of that ratio, from the differences within the rounds.
    """
    seconds = {name: [] for name in programs}
    for _ in range(rounds):
        for name, step in programs.items():
            began = time.perf_counter()
            step()
            seconds[name].append(time.perf_counter() - began)
    base = statistics.mean(seconds[baseline])
    table = {}
    for name, own in seconds.items():
        differences = [a - b for a, b in zip(own, seconds[baseline], strict=True)]
        error = statistics.stdev(differences) / rounds**0.5 if rounds > 1 else float("nan")
        mean = statistics.mean(own)
        table[name] = (1e3 * mean, mean / base, error / base)
    return table


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
