"""What one input with many labels costs, as a ratio to a plain step of the same network in Flax.

    python benchmarks/shared_inputs.py
    python benchmarks/shared_inputs.py --labels 10,40,1000 --rounds 20
    taskset -c 0 python benchmarks/shared_inputs.py --labels 10,40 --torchjd

A residual network of six layers of 512 on batches of 128 rows of random numbers, with a head for
each label. Stretches of the trainer's steps, batches included, beside a compiled loop that draws
its rows in the same way and has nothing else of this library. For more than 100 labels only what
measures no matrix of them.

With `--torchjd`, where torch and TorchJD are installed too, the same network in TorchJD: `autogram`
(its Gram matrix layer by layer), `autojac` (every loss pulled back) and `mtl_backward` (the losses
pulled back to the features), each with UPGrad, as a ratio to a plain step of the same network in
torch. Torch runs eagerly; `taskset -c 0` gives both one core.
"""

import argparse
import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import timing
from flax import linen as nn

from ldro_jax import interaction
from ldro_jax.problems import Metric
from ldro_jax.problems.tables import Table, TableProblem
from ldro_jax.runtime import xla_flags
from ldro_jax.tasks import drawing
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.stacked import StackedEngine

WIDTH, LAYERS, FEATURES, BATCH_SIZE, ROWS = 512, 6, 64, 128, 2048

# What else A can be measured on in every step.
OTHERS = {
    "k = 1, on 32 rows": {"interaction_rows": 32},
    "k = 1, at the features": {"interaction": "features"},
    "products": {"interaction": "products"},
    "products, apart": {"interaction": interaction.products(apart=True)},
    "products, all at once": {"interaction": interaction.products(in_turn=False)},
    "products of all rows": {"interaction": interaction.products(share=1.0)},
}
_ENGINES = ("autogram", "autojac", "mtl_backward")
# The most labels that a matrix is measured of.
MOST = 100


class Network(nn.Module):
    """A residual trunk, and a head for each label."""

    labels: int

    @nn.compact
    def __call__(self, inputs):
        """Outputs ``[R, labels]``."""
        x = nn.Dense(WIDTH)(inputs)
        for _ in range(LAYERS):
            x = x + nn.relu(nn.Dense(WIDTH)(x)) / LAYERS
        return nn.Dense(self.labels)(self.perturb("features", x))


def squared(outputs, rows):
    return (outputs - rows["targets"]) ** 2


def data(labels, missing):
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(ROWS, FEATURES)).astype(np.float32)
    targets = rng.normal(size=(ROWS, labels)).astype(np.float32)
    targets[rng.random(targets.shape) < missing] = np.nan
    return inputs, targets


def plain(labels, optimizer, steps):
    """The same steps in Flax and Optax alone."""
    inputs, targets = map(jnp.asarray, data(labels, 0))
    network, sizes = Network(labels), np.array([ROWS])
    drawer = drawing.Drawer("balanced", BATCH_SIZE, 0 * sizes, sizes=sizes)
    params = network.init(jax.random.key(0), inputs[:1])["params"]

    @jax.jit
    def stretch(carry, inputs, targets):
        drawn = drawing.stretch(drawer, jax.random.key(1), carry[0], steps).indices

        def step(carry, indices):
            count, params, state = carry

            def loss(params):
                outputs = network.apply({"params": params}, inputs[indices])
                return jnp.mean((outputs - targets[indices]) ** 2)

            updates, state = optimizer.update(jax.grad(loss)(params), state, params)
            return (count + 1, optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, drawn)[0]

    carry = jnp.int32(0), params, optimizer.init(params)
    compiled = stretch.lower(carry, inputs, targets).compile()

    def run():
        nonlocal carry
        carry = jax.block_until_ready(compiled(carry, inputs, targets))

    return run, compiled


def trained(labels, optimizer, steps, method, missing):
    """The trainer's steps."""
    inputs, targets = data(labels, missing)
    table = Table(inputs, {f"label {i}": column for i, column in enumerate(targets.T)})
    splits = dict.fromkeys(("train", "validation", "test"), table)
    problem = TableProblem(splits, Network(labels), squared, {Metric("error", False): squared})
    program = StackedEngine(problem, optimizer, Batches(BATCH_SIZE)).program(method)
    trials = [Trial(method, 0)]
    states, settings = program.start(trials).states, program.settings(trials)

    def run():
        nonlocal states
        states, *_ = program.run(settings, states, steps)

    run()
    return run, program.compiled()[0]


def torchjd_steps(labels, steps):
    """As many steps in torch and TorchJD, by name."""
    import torch
    from torch import nn as torch_nn
    from torchjd import aggregation, autogram, autojac

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    print(f"\ntorch {torch.__version__}, threads: {torch.get_num_threads()}")

    class Trunk(torch_nn.Module):
        def __init__(self):
            super().__init__()
            self.first = torch_nn.Linear(FEATURES, WIDTH)
            self.layers = torch_nn.ModuleList(torch_nn.Linear(WIDTH, WIDTH) for _ in range(LAYERS))

        def forward(self, x):
            x = self.first(x)
            for layer in self.layers:
                x = x + torch_nn.functional.relu(layer(x)) / LAYERS
            return x

    inputs, targets = map(torch.tensor, data(labels, 0))

    def make(way):
        trunk, head = Trunk(), torch_nn.Linear(WIDTH, labels)
        model = torch_nn.Sequential(trunk, head)
        params = list(model.parameters())
        optimizer = torch.optim.SGD(params, lr=0.01, momentum=0.9)
        weighting, whole = aggregation.UPGradWeighting(), aggregation.UPGrad()
        engine = autogram.Engine(model, batch_dim=None) if way == "autogram" else None

        def step():
            rows = torch.randint(ROWS, (BATCH_SIZE,))
            if way == "mtl_backward":
                features = trunk(inputs[rows])
                outputs = head(features)
            else:
                outputs = model(inputs[rows])
            losses = ((outputs - targets[rows]) ** 2).mean(dim=0)
            if engine is not None:
                losses.backward(weighting(engine.compute_gramian(losses)))
            elif way == "autojac":
                autojac.backward(losses, inputs=params)
                autojac.jac_to_grad(params, whole)
            elif way == "mtl_backward":
                # One head for all labels: its rows are the tasks' own parameters.
                autojac.mtl_backward(list(losses), features=features, retain_graph=True)
                autojac.jac_to_grad(list(trunk.parameters()), whole)
            else:
                losses.mean().backward()
            optimizer.step()
            optimizer.zero_grad()

        def run():
            for _ in range(steps):
                step()

        return run

    names = {"plain torch": "plain", **{f"TorchJD, {n}": n for n in _ENGINES}}
    return {name: make(way) for name, way in names.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--labels", default="10,14,40", help="numbers of labels")
    parser.add_argument("--steps", type=int, default=20, help="steps of a program at a time")
    parser.add_argument("--rounds", type=int, default=50, help="how often each has its turn")
    parser.add_argument("--torchjd", action="store_true", help="time TorchJD's steps as well")
    args = parser.parse_args()
    xla_flags.set_cpu_defaults()
    timing.print_machine()
    optimizer = optax.sgd(0.01, momentum=0.9)
    methods = timing.trainer_methods()
    for labels in map(int, args.labels.split(",")):
        print(f"\n{labels} labels, batches of {BATCH_SIZE}.\n")
        programs = {"plain Flax": plain(labels, optimizer, args.steps)}
        for name, method in methods.items():
            if labels <= MOST or name == timing.BASELINE:
                programs[name] = trained(labels, optimizer, args.steps, method, 0)
        average, every = methods[timing.BASELINE], methods["L-DRO, k = 1"]
        for name, settings in OTHERS.items():
            method = dataclasses.replace(every, **settings)
            if labels <= MOST or method.uses_products:
                programs[name] = trained(labels, optimizer, args.steps, method, 0)
        programs["a fifth missing"] = trained(labels, optimizer, args.steps, average, 0.2)
        for run, _ in programs.values():
            run()
        timing.print_table(
            timing.paired_ratios(
                {n: run for n, (run, _) in programs.items()}, "plain Flax", args.rounds
            ),
            "steps/s",
            lambda milliseconds: f"{1e3 * args.steps / milliseconds:.2f}",
            {name: compiled for name, (_, compiled) in programs.items()},
            baseline="plain Flax",
        )
        if args.torchjd:
            steps = torchjd_steps(labels, args.steps)
            for step in steps.values():
                step()
            ratios = timing.paired_ratios(steps, "plain torch", args.rounds)
            timing.print_table(
                ratios,
                "steps/s",
                lambda milliseconds: f"{1e3 * args.steps / milliseconds:.2f}",
                {},
            )


if __name__ == "__main__":
    main()
