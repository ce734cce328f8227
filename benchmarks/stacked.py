"""What methods cost in small runs that share one program, as a ratio to the average loss.

    python benchmarks/stacked.py
    python benchmarks/stacked.py --vmap

The digits experiment: ten tasks, twenty seeds, 16 hidden units, so that the weights of a solver
cost as much as the network. "Closed form" measures the interaction as often as the methods above
it, and has weights without a solver. One run after the other, as on CPU; with `--vmap` at once, as
on accelerators.
"""

import functools

import optax
import timing

from ldro_jax import problems
from ldro_jax.models.mlp import MLP
from ldro_jax.tasks import digits
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedEngine

SEEDS, STEPS = 20, 40
SMOOTH = {
    "lookahead_lr": 1.0,
    "temperature": 0.3,
    "adversary_temperature": 0.1,
    "relative": True,
}
every_step = functools.partial(Method, interaction_interval=1)
now_and_then = functools.partial(Method, smoothing=0.99, interaction_interval=20)
METHODS = {
    timing.BASELINE: Method("Average", "average"),
    "smooth L-DRO, k = 20": now_and_then("Smooth", "smooth_lookahead", SMOOTH),
    "closed form, k = 20": now_and_then("Aioli", "aioli", {"weight_lr": 0.001}),
    "smooth L-DRO": every_step("Smooth", "smooth_lookahead", SMOOTH, smoothing=0.99),
    "exact L-DRO": every_step("Exact", "lookahead_exact", {"lookahead_lr": 0.3}),
    "CAGrad": every_step("CAGrad", "cagrad", {"c": 0.5}, total=1.0),
    "closed form": every_step("IMTL-G", "imtl_g", total=1.0),
}


def stretch(engine, method):
    """A function that trains the runs some more steps."""
    program = engine.program(method)
    trials = [Trial(method, seed) for seed in range(SEEDS)]
    states, settings = program.start(trials).states, program.settings(trials)

    def run():
        nonlocal states
        states, *_ = program.run(settings, states, STEPS)

    return run


def main():
    args = timing.arguments(__doc__ or "", {"--vmap": "runs at once"}, rounds=20)
    timing.print_machine()
    problem = problems.classification(
        load_data=digits.load, model=functools.partial(MLP, features=(16,))
    )
    optimizer = optax.sgd(0.05, momentum=0.9, nesterov=True)
    batches = Batches(size=160, runs_together=SEEDS)
    together = "vmap" if args.vmap else "map"
    engine = StackedEngine(problem, optimizer, batches, together=together)
    timed = {name: stretch(engine, method) for name, method in METHODS.items()}
    for run in timed.values():
        run()
    print(f"Digits, N = 10, {SEEDS} runs, {together}; milliseconds of {STEPS} steps of each run.\n")
    table = timing.paired_ratios(timed, timing.BASELINE, args.rounds)
    timing.print_table(table, "ms", "{:.1f}".format, {})


if __name__ == "__main__":
    main()
