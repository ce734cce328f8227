"""What a language-model run would take on a mesh of accelerators, from its shapes alone.

    python benchmarks/plan.py --data 64 --fully_sharded --tasks 39 --vocab 32000 \\
        --gin_file gin_configs/models/decoder_large.gin

Compiles the training step for as many simulated CPU devices, without parameters or data. Sizes of
parameters and gradients are exact. Temporary memory is that of XLA:CPU, which may arrange a program
otherwise than the accelerator's compiler.
"""

import argparse
import os
import time


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gin_file", action="append", default=[], help="binds the Decoder")
    parser.add_argument("--gin", action="append", default=[], help="a binding; repeatable")
    parser.add_argument("--data", type=int, default=8, help="size of the mesh's data axis")
    parser.add_argument("--model", type=int, default=1, help="size of its model axis")
    parser.add_argument("--fully_sharded", action="store_true")
    parser.add_argument("--tasks", type=int, default=39)
    parser.add_argument("--vocab", type=int, default=32_000)
    parser.add_argument("--batch", type=int, default=256)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--interval", type=int, default=1000)
    parser.add_argument("--lagged", action="store_true", help="with an interval of 1")
    parser.add_argument("--tflops", type=float, default=275, help="peak of one device, bfloat16")
    parser.add_argument("--gbytes", type=float, default=300, help="GB/s one device sends to others")
    parser.add_argument("--utilisation", type=float, default=0.4, help="share of the peak reached")
    args = parser.parse_args()
    devices = args.data * args.model
    # Before jax starts.
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={devices}"

    import gin
    import jax
    import numpy as np

    from ldro_jax import configuration, optimizers, sharding
    from ldro_jax.models.decoder import Decoder
    from ldro_jax.problems import LanguageModel
    from ldro_jax.tasks import sequences
    from ldro_jax.training.batches import Batches
    from ldro_jax.training.meshed import MeshedEngine
    from ldro_jax.training.method import Method

    configuration._register()
    gin.parse_config_files_and_bindings(args.gin_file, args.gin)
    tokens = [np.zeros(args.length, np.int32)] * args.tasks
    names = tuple(map(str, range(args.tasks)))
    corpus = sequences.Corpus(names, args.vocab, "none", tokens, tokens, tokens)
    layout = sharding.Layout(args.data, args.model, args.fully_sharded)
    rates = {"lookahead_lr": 1.0, "weight_lr": 0.001}
    options = {"interaction_interval": args.interval, "lagged": args.lagged}
    ldro = Method("L-DRO", "lookahead_online", rates, **options)
    problem = LanguageModel(corpus, gin.get_configurable(Decoder), length=args.length)
    optimizer = optimizers.adam(3e-4, warmup_steps=10_000, train_steps=300_000)
    programs = {
        method.name: MeshedEngine(problem, optimizer, Batches(args.batch, layout=layout)).program(
            method
        )
        for method in (Method("average loss", "average"), ldro)
    }
    first = programs["average loss"]
    state = first.abstract_state()
    parameters = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    held = sum(
        np.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf in jax.tree.leaves(state)
    )
    print(
        f"{parameters / 1e6:.0f}M parameters, N = {args.tasks}, {args.batch} × {args.length} "
        f"tokens, mesh {args.data} × {args.model} (data × model)"
        f"{', fully sharded' if args.fully_sharded else ''}."
    )
    print(f"Parameters and optimizer state, a device: {held / 1e9:.3f} GB.")
    for name, program in programs.items():
        began = time.perf_counter()
        memory = program.lower().compile().memory_analysis()
        print(
            f"Temporary memory, a device, {name}: {memory.temp_size_in_bytes / 1e9:.3f} GB "
            f"(compiled in {time.perf_counter() - began:.0f} s)."
        )
    flops = 6 * parameters * args.batch * args.length
    seconds = flops / (devices * args.tflops * 1e12 * args.utilisation)
    # Each task's gradient is summed over the data axis and left in parts there.
    sent = args.tasks * 4 * parameters / args.model * (args.data - 1) / args.data
    # The rows of each task are filled up to a multiple of the data axis.
    rows = -(-args.batch // args.tasks)
    filled = args.tasks * -(-rows // args.data) * args.data
    # With an interval of 1 the rows of the step serve for A, if none are filled up.
    rows_apart = 0 if args.interval == 1 and filled == args.batch else filled
    measuring = seconds * rows_apart / args.batch + sent / (args.gbytes * 1e9)
    share = measuring / (args.interval * seconds)
    print(
        f"A step: {flops / 1e15:.2f} PFLOP, {1e3 * seconds:.0f} ms at {args.utilisation:.0%} of "
        f"the peak.\nA: {rows_apart} more rows forward and backward, each device sends "
        f"{sent / 1e9:.1f} GB: "
        f"{1e3 * measuring:.0f} ms, {share:.2%} of the time at k = {args.interval}."
    )


if __name__ == "__main__":
    main()
