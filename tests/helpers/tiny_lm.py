"""A few artificial languages, and a model of them that compiles in a second or two."""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from helpers import tiny

from ldro_jax import problems
from ldro_jax.models import cross_entropy, decoder
from ldro_jax.tasks import sequences
from ldro_jax.training.batches import Batches
from ldro_jax.training.meshed import MeshedEngine
from ldro_jax.training.method import Method

VOCAB_SIZE, LENGTH, BATCH_SIZE = 61, 8, 16
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


class Counted(sequences.ShuffledSequences):
    """A stream: what comes next depends on what it has given, not on what it is asked for."""

    has_state = True

    def __init__(self, tokens, length, seed):
        super().__init__(tokens, length, seed)
        self._given = np.zeros(len(tokens), np.int64)

    def rows(self, tasks, indices):
        own = []
        for task in tasks:
            own.append(self._given[task])
            self._given[task] += 1
        return super().rows(tasks, np.array(own))

    def save(self, directory):
        (directory / "given").write_text(" ".join(map(str, self._given)))

    def restore(self, directory):
        self._given[:] = (directory / "given").read_text().split()


class CountedText:
    """Where such a stream begins."""

    def __init__(self, tokens):
        self.sizes, self._tokens = np.array([len(text) for text in tokens]), tokens

    def source(self, length, seed):
        return Counted(self._tokens, length, seed)


def streamed():
    """The same languages, whose training text comes from a stream."""
    return dataclasses.replace(corpus(), train=(), stream=CountedText(corpus().train))


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


def problem(a_corpus=None, model=Bigram, *, length=LENGTH, **options):
    return problems.LanguageModel(a_corpus or corpus(), model, length=length, **options)


def make_program(
    method, a_problem=None, *, optimizer=None, layout=tiny.ONE, batch_size=BATCH_SIZE, **options
):
    """What an experiment calls: everything is compiled anew."""
    return MeshedEngine(
        a_problem or problem(),
        # Adam's bias correction breaks JAX's strict promotion.
        optimizer or optax.sgd(0.3, momentum=0.9),
        Batches(batch_size, layout=layout, **options),
    ).program(method)


_PROGRAMS: dict[Any, Any] = {}


def program(method=AVERAGE, layout=tiny.ONE):
    """The program of a method for the languages above, compiled once for all tests of a process."""
    key = (method.compile_key(), layout)
    if key not in _PROGRAMS:
        first = _PROGRAMS.get(layout)
        if first is None:
            first = _PROGRAMS[layout] = make_program(method, layout=layout)
        _PROGRAMS[key] = first.engine.program(method)
    return _PROGRAMS[key]


# A run of a language model tests its best checkpoint.
schedule = functools.partial(tiny.schedule, test="best")


def train(a_program, directory, a_schedule=None, **options):
    return tiny.train(a_program, directory, a_schedule or schedule(), **options)
