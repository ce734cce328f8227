"""A few artificial languages, and a model of them that compiles in a second or two."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import tiny
from flax import linen as nn

from ldro_jax.models import cross_entropy, decoder
from ldro_jax.tasks import sequences
from ldro_jax.training import lm_loop, sharding, writers
from ldro_jax.training.lm_program import LanguageModelProgram
from ldro_jax.training.method import Method
from ldro_jax.training.program import Trial
from ldro_jax.training.schedule import Schedule

VOCAB_SIZE, LENGTH, BATCH_SIZE = 61, 8, 16
ONE = sharding.Layout(data=1)
# Makes a gin file of the language models small.
BINDINGS = (
    "BATCH_SIZE=8",
    "LENGTH=8",
    "SEEDS=(0,)",
    "Decoder.num_layers=1",
    "Decoder.embed_dim=16",
    "Decoder.num_heads=2",
    "Decoder.mlp_dim=16",
    "Decoder.scan_layers=False",
    "Decoder.remat=False",
    "Decoder.dtype='float32'",
)
PADDED_VOCAB = 128
AVERAGE = Method("Average", "average")
GROUP_DRO = Method("Group DRO", "group_dro", {"weight_lr": 0.3})
DRAWN = Method("Group DRO, drawn", "group_dro", {"weight_lr": 0.3}, sampling="weights")
LDRO = Method(
    "L-DRO", "lookahead_online", {"lookahead_lr": 0.2, "weight_lr": 0.2}, interaction_interval=5
)


@contextlib.contextmanager
def compiled_quickly():
    """Compiling is most of what these tests do; LLVM's optimisations are half of that."""
    jax.config.update("jax_disable_most_optimizations", True)
    try:
        yield
    finally:
        jax.config.update("jax_disable_most_optimizations", False)


@contextlib.contextmanager
def no_tensorboard():
    """For fixtures of a whole module, which are made before those of single tests."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(writers, "tensorboard_writer", lambda directory: writers.NullWriter())
        yield


@functools.cache
def corpus(num_tasks=4, *, vocabulary="tiny", seed=0):
    """Independent tokens: each language has more of them in use, and less text, than the last."""
    rng = np.random.default_rng(seed)

    def text(size, spread):
        return rng.geometric(1 / spread, size).clip(max=VOCAB_SIZE - 1).astype(np.uint16)

    spreads = 2.0 ** np.linspace(0.5, 4, num_tasks)
    sizes = 1500 // 2 ** np.arange(num_tasks) + 7
    return sequences.Corpus(
        tuple(f"spread{spread:.0f}" for spread in spreads),
        VOCAB_SIZE,
        vocabulary,
        train=[text(*pair) for pair in zip(sizes, spreads, strict=True)],
        # No multiples of a row, and one that is shorter than a row.
        validation=[text(90 if i else 11, spread) for i, spread in enumerate(spreads)],
        test=[text(150 + i, spread) for i, spread in enumerate(spreads)],
    )


class Bigram(nn.Module):
    """Every token from the one before it; with the logical axes of a decoder."""

    vocab_size: int
    constrain: Callable[[jax.Array], jax.Array] = lambda x: x

    @nn.compact
    def __call__(self, tokens_BxL):
        def param(name, axes, shape):
            init = nn.with_logical_partitioning(nn.initializers.normal(0.2), axes)
            return self.param(name, init, shape)

        embedding_VxD: Any = param("embedding", ("vocab", "embed"), (self.vocab_size, 16))
        kernel_DxD: Any = param("kernel", ("embed", "mlp"), (16, 16))
        before_BxL = jnp.pad(tokens_BxL, ((0, 0), (1, 0)))[:, :-1]
        hidden_BxLxD = self.constrain(jnp.tanh(embedding_VxD[before_BxL] @ kernel_DxD))
        return cross_entropy.token_losses(hidden_BxLxD, embedding_VxD, tokens_BxL)


def make_decoder(*, num_layers=1, scan_layers=False, **options):
    """A real decoder of the smallest size."""
    return decoder.Decoder(
        num_layers=num_layers,
        embed_dim=16,
        num_heads=2,
        mlp_dim=32,
        context=LENGTH,
        scan_layers=scan_layers,
        **options,
    )


def make_program(method, corpus, *, make_model=Bigram, optimizer=None, layout=ONE, **options):
    """What an experiment calls: everything is compiled anew."""
    return LanguageModelProgram(
        method,
        corpus,
        make_model,
        # Adam's bias correction breaks JAX's strict promotion.
        optimizer or optax.sgd(0.3, momentum=0.9),
        layout=layout,
        **{"batch_size": BATCH_SIZE, "length": LENGTH} | options,
    )


_PROGRAMS: dict[Any, LanguageModelProgram] = {}


def program(method=AVERAGE, **options):
    """The program of a method for the languages above, compiled once for all tests of a process."""
    settings = tuple(sorted(options.items()))
    key = (method.program(), settings)
    if key not in _PROGRAMS:
        first = _PROGRAMS.get(settings)
        if first is None:
            first = _PROGRAMS[settings] = make_program(method, corpus(), **options)
        _PROGRAMS[key] = first.for_method(method)
    return _PROGRAMS[key]


def schedule(train_steps=40, eval_interval=10, checkpoint_interval=10, **options):
    return Schedule(train_steps, eval_interval, checkpoint_interval, **options)


class Progress(tiny.Progress):
    """Stands in for the progress bar; calls `action` when so many steps have been taken."""

    def __init__(self, stop_after=None, *, at=None, action=None):
        super().__init__(stop_after)
        self._at, self._action = at, action

    def update(self, steps):
        super().update(steps)
        if self._action is not None and sum(self.steps) == self._at:
            self._action()


def train(a_program, directory, a_schedule=None, *, method=None, seed=0, progress=None, **options):
    return lm_loop.train(
        a_program,
        Trial(method or a_program.method, seed),
        a_schedule or schedule(),
        checkpoint_dir=directory / "checkpoints",
        tensorboard_dir=directory / "tensorboard",
        progress=progress or Progress(),
        **options,
    )
