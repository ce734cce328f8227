"""What L-DRO and PCGrad cost on the paper's image experiment, as a ratio to the average loss.

    python benchmarks/cifar100_overhead.py

Training steps of the trainer itself, batches included, on random images of the size of CIFAR-100.
With PyTorch installed there is a row for the same step in PyTorch.
"""

import argparse
import importlib.util

import numpy as np
import optax
import timing

from ldro_jax.models.cnn import CNN
from ldro_jax.problems import classifiers
from ldro_jax.runtime import xla_flags
from ldro_jax.tasks import base, cifar100
from ldro_jax.training.batches import Batches
from ldro_jax.training.engine import Trial
from ldro_jax.training.method import Method
from ldro_jax.training.stacked import StackedEngine, StackedProgram

NUM_TASKS, NUM_CLASSES, BATCH_SIZE = 20, 100, 128
# Measured by the paper on its larger network (appendix C).
PAPER = {"L-DRO, k = 100": 1.06, "PCGrad": 1.36}
MODELS = {
    "small": {},
    "large": {"filters": (160, 160, 160), "features": (320, 320)},
}
METHODS = {
    **timing.trainer_methods(),
    "PCGrad": Method("PCGrad", "pcgrad", interaction_interval=1),
}


def random_data() -> base.MultitaskData:
    """Random images and labels."""
    rng = np.random.default_rng(0)

    def split(size):
        return base.Split(
            rng.integers(0, 256, (NUM_TASKS * size, 32, 32, 3), np.uint8),
            np.arange(NUM_CLASSES, dtype=np.int32).repeat(size // 5),
            np.full(NUM_TASKS, size, np.int32),
        )

    names = tuple(f"task {i}" for i in range(NUM_TASKS))
    splits = {"train": split(500), "validation": split(5), "test": split(5)}
    return base.MultitaskData(names, NUM_CLASSES, **splits, prepare=cifar100.standardise)


def stretch(program: StackedProgram, method: Method, steps: int):
    """A function that trains some more steps."""
    trials = [Trial(method, 0)]
    states, settings = program.start(trials).states, program.settings(trials)

    def run():
        nonlocal states
        states, *_ = program.run(settings, states, steps)

    return run


def torch_stretch(steps: int):
    """The same step of the small network with the average loss in PyTorch."""
    import torch
    from torch import nn

    layers, channels = [], 3
    for _ in range(4):
        layers += [nn.Conv2d(channels, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        channels = 32
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    for width in (128, 128, 128):
        layers += [nn.Linear(channels, width), nn.ReLU()]
        channels = width
    # PyTorch's faster memory layout on CPU.
    net = nn.Sequential(*layers, nn.Linear(channels, NUM_CLASSES)).to(
        memory_format=torch.channels_last
    )
    optimizer = torch.optim.SGD(net.parameters(), 0.025, momentum=0.9, nesterov=True)
    images = torch.randn(BATCH_SIZE, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(0, NUM_CLASSES, (BATCH_SIZE,))

    def run():
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(images), labels).backward()
            optimizer.step()

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=list(MODELS), default="small")
    parser.add_argument("--steps", type=int, default=20, help="steps of a program at a time")
    parser.add_argument("--rounds", type=int, default=50, help="how often each has its turn")
    args = parser.parse_args()
    if args.steps * args.rounds % 1000:
        print("Not a multiple of 1000 steps: the first measurement weighs too much in k = 1000.")
    xla_flags.set_cpu_defaults()
    timing.print_machine()
    print(f"The {args.model} network, N = {NUM_TASKS}, batches of {BATCH_SIZE}.\n")
    model = CNN(NUM_CLASSES, **MODELS[args.model])
    problem = classifiers.from_data(random_data(), model)
    optimizer = optax.sgd(0.025, momentum=0.9, nesterov=True)
    programs = {
        name: StackedEngine(problem, optimizer, Batches(BATCH_SIZE)).program(method)
        for name, method in METHODS.items()
    }
    timed = {name: stretch(p, METHODS[name], args.steps) for name, p in programs.items()}
    if args.model == "small" and importlib.util.find_spec("torch"):
        timed["PyTorch, average loss"] = torch_stretch(args.steps)
    for run in timed.values():
        run()  # compiles, and takes the measurement that comes at step 0
    timing.print_table(
        timing.paired_ratios(timed, timing.BASELINE, args.rounds),
        "steps/s",
        lambda milliseconds: f"{1e3 * args.steps / milliseconds:.2f}",
        {name: program.compiled()[0] for name, program in programs.items()},
        paper=PAPER,
    )


if __name__ == "__main__":
    main()
