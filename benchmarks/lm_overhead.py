"""What L-DRO costs in language modelling, as a ratio to the average loss.

    python benchmarks/lm_overhead.py --tasks 4,16,40

    python benchmarks/lm_overhead.py --tasks 8,40 --scan --data 4 --model 2

Training steps of the trainer itself, batches included, on random tokens. ``bare`` is a jitted step
of the same model and optimizer with nothing of this library around it. With ``--data`` and
``--model`` the devices are simulated.
"""

import argparse
import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing

from ldro_jax import optimizers, sharding
from ldro_jax.models.decoder import Decoder
from ldro_jax.problems import LanguageModel
from ldro_jax.runtime import xla_flags
from ldro_jax.tasks import sequences
from ldro_jax.training.batches import Batches
from ldro_jax.training.meshed import MeshedEngine, MeshedProgram
from ldro_jax.training.method import Method
from ldro_jax.training.prefetch import prefetched

# Measured by the paper at N = 40 on its TPU (appendix C).
PAPER = {"L-DRO, k = 1000": 1.55}
METHODS = {
    **timing.trainer_methods(),
    "L-DRO, k = 1, lagged": Method(
        "L-DRO", "lookahead_online", timing.RATES, interaction_interval=1, lagged=True
    ),
}
OPTIMIZER = functools.partial(optimizers.adam, 1e-3, warmup_steps=100, train_steps=10_000)


def random_corpus(num_tasks: int, vocab_size: int) -> sequences.Corpus:
    """Random tokens."""
    rng = np.random.default_rng(0)
    tokens = [rng.integers(1, vocab_size, 200_000, np.int32) for _ in range(num_tasks)]
    names = tuple(f"task {i}" for i in range(num_tasks))
    return sequences.Corpus(names, vocab_size, "random", tokens, tokens, tokens)


def stretch(program: MeshedProgram, steps: int):
    """A function that trains some more steps."""
    state = program.init(0)
    source, drawer = program.problem.source(0), program.feed.drawer(program.method, 0)

    def batches():
        nonlocal drawer
        for _ in range(steps):
            batch, drawer = program.feed.batch(source, drawer)
            yield batch

    def run():
        nonlocal state
        with prefetched(batches()) as ready:
            for batch in ready:
                state, losses = program.step(state, batch, program.method)
        jax.block_until_ready((state, losses))

    return run


def bare(model: Decoder, batch_size: int, length: int, steps: int):
    """A function that trains some more steps with nothing around the model."""
    optimizer = OPTIMIZER()
    tokens = jax.random.randint(jax.random.key(0), (batch_size, length), 1, model.vocab_size)
    params = jax.jit(model.init)(jax.random.key(0), tokens)
    state = (params, optimizer.init(params))

    @functools.partial(jax.jit, donate_argnums=0)
    def step(state, tokens):
        params, opt_state = state
        loss, gradient = jax.value_and_grad(lambda p: jnp.mean(model.apply(p, tokens)))(params)
        updates, opt_state = optimizer.update(gradient, opt_state, params)
        return (optax.apply_updates(params, updates), opt_state), loss

    def run():
        nonlocal state
        for _ in range(steps):
            state, loss = step(state, tokens)
        jax.block_until_ready((state, loss))

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", default="4,16,40", help="numbers of tasks, N")
    parser.add_argument("--rows", type=int, default=2, help="rows of each task in a batch")
    parser.add_argument("--length", type=int, default=64, help="tokens of a row")
    parser.add_argument("--vocab", type=int, default=4096)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--scan", action="store_true", help="one compiled block for all layers")
    parser.add_argument("--remat", action="store_true", help="compute activations again")
    parser.add_argument("--data", type=int, default=1, help="size of the mesh's data axis")
    parser.add_argument("--model", type=int, default=1, help="size of its model axis")
    parser.add_argument("--steps", type=int, default=10, help="steps of a program at a time")
    parser.add_argument("--rounds", type=int, default=20, help="how often each has its turn")
    args = parser.parse_args()
    if args.data * args.model > 1:
        flag = f"--xla_force_host_platform_device_count={args.data * args.model}"
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {flag}".strip()
        # With few threads simulated devices may wait for each other forever.
        os.environ.setdefault("PJRT_NPROC", "64")
    layout = sharding.Layout(args.data, args.model)
    xla_flags.set_cpu_defaults()
    timing.print_machine()
    make_model = functools.partial(
        Decoder,
        num_layers=args.layers,
        embed_dim=args.width,
        mlp_dim=args.width * 11 // 4,
        context=args.length,
        scan_layers=args.scan,
        remat=args.remat,
    )
    for num_tasks in map(int, args.tasks.split(",")):
        batch_size = num_tasks * args.rows
        corpus = random_corpus(num_tasks, args.vocab)
        problem = LanguageModel(corpus, make_model, length=args.length)
        programs = {
            name: MeshedEngine(problem, OPTIMIZER(), Batches(batch_size, layout=layout)).program(
                method
            )
            for name, method in METHODS.items()
        }
        first = programs[timing.BASELINE]
        size = sum(leaf.size for leaf in jax.tree.leaves(first.init(0).params))
        print(
            f"\nN = {num_tasks}, {batch_size} × {args.length} tokens, {args.layers} "
            f"{'scanned ' if args.scan else ''}layers of {args.width}, vocabulary {args.vocab}, "
            f"{size / 1e6:.1f}M parameters, {args.data} × {args.model} devices."
        )
        timed = {name: stretch(program, args.steps) for name, program in programs.items()}
        if args.data * args.model == 1:
            model = make_model(vocab_size=args.vocab)
            timed["bare"] = bare(model, batch_size, args.length, args.steps)
        compiled = {name: program.lower().compile() for name, program in programs.items()}
        for run in timed.values():
            run()  # compiles, and takes the measurement that comes at step 0
        tokens = args.steps * batch_size * args.length
        timing.print_table(
            timing.paired_ratios(timed, timing.BASELINE, args.rounds),
            "tokens/s",
            lambda milliseconds, tokens=tokens: f"{1e3 * tokens / milliseconds:.0f}",
            compiled,
            paper=PAPER,
        )


if __name__ == "__main__":
    main()
