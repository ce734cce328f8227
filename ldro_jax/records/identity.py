"""Whether data, programs and states are those that a record or a checkpoint was made with."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import logging

from ldro_jax.runtime import hashing

_OR_ELSE = (
    "choose another output_dir, or pass output_dir=Directories(…, overwrite=True) to delete what "
    "is there."
)
ADVICE = f"Give it what it began with, {_OR_ELSE}"


class OtherRunError(ValueError):
    """What is kept was made with other data, settings or programs than a run has now."""


def check(what: str, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> list[str]:
    """Compares what a record or a checkpoint was made with to what a run is made of now.

    Args:
      what: the record or the checkpoint, as an error calls it.
      theirs: the identity saved with it; see :func:`ldro_jax.training.fingerprint.of`.
      ours: the identity of the run now.

    Returns:
      The metrics that are new, gone, or measured otherwise: no number but their own depends on
      them.

    Raises:
      OtherRunError: naming the first entry that differs, where numbers would be others. Digests
        are compared under the same versions alone, as another version of JAX may trace other
        equations of the same function; where they differ, a warning says so.
    """
    if not all(part in theirs for part in ours):
        raise OtherRunError(f"{what} was made by another version of ldro_jax. {ADVICE}")
    _check_runs(what, theirs.get("runs", []), ours.get("runs", []))

    def differences(part):
        return list(differing(theirs.get(part, {}), ours.get(part, {})))

    # Which source it is isn't known before there is one.
    of_source = differences("source") if "source" in ours else []
    for name, was, now in differences("data") + of_source:
        raise OtherRunError(
            f"{what} was made with other data: {name} was {was}, now it is {now}. {ADVICE}"
        )
    for name, was, now in differences("settings"):
        raise OtherRunError(
            f"{what} was made with another {name}: it was {was}, now it is {now}. {ADVICE}"
        )
    programs = differences("programs")
    evaluation = [name for name, *_ in differences("evaluation")]
    versions = [f"{name} was {was}, now it is {now}" for name, was, now in differences("versions")]
    if programs and not versions:
        name, was, now = programs[0]
        raise OtherRunError(
            f"{what} was made with another {name}: the digest of its program was {was}, now it is "
            f"{now}. {ADVICE}"
        )
    if versions and (programs or evaluation):
        logging.warning(
            "%s is taken, though it can't be told whether its %s are the same: %s.",
            *(what, ", ".join([name for name, *_ in programs] + evaluation), "; ".join(versions)),
        )
        # A metric that only one of the two has is new or gone in any version.
        one = theirs["evaluation"].keys() ^ ours["evaluation"].keys()
        evaluation = [name for name in evaluation if name in one]
    return evaluation


def _check_runs(
    what: str, theirs: Sequence[Mapping[str, Any]], ours: Sequence[Mapping[str, Any]]
) -> None:
    if len(theirs) != len(ours):
        raise OtherRunError(f"{what} is of {len(theirs)} runs, not {len(ours)}. {ADVICE}")
    for pair in zip(theirs, ours, strict=True):
        flat = ({**r["settings"], **{k: r[k] for k in r if k != "settings"}} for r in pair)
        for name, was, now in differing(*flat):
            raise OtherRunError(
                f"{what} is that of another run: {name} was {was}, now it is {now}. {ADVICE}"
            )


def check_length(what: str, steps: int, train_steps: int) -> None:
    """Raises ``OtherRunError`` for a record or a checkpoint of more steps than a run has now."""
    if steps > train_steps:
        raise OtherRunError(
            f"{what} has {steps} steps, and train_steps is {train_steps} now. Train at least as "
            f"long, {_OR_ELSE}"
        )


def differing(theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yields name, their value and our value of each entry that differs; ``None`` for no entry."""
    for name in {**ours, **theirs}:
        if theirs.get(name) != ours.get(name):
            yield name, theirs.get(name), ours.get(name)


def key(run: Mapping[str, Any]) -> str:
    """A text that is the same for the same run, one of the ``runs`` of an identity."""
    return json.dumps(run, sort_keys=True)


def structure(state: Any) -> dict[str, str]:
    """Dtype and shape of each array of a pytree by its path, such as ``float32[3, 2]``.

    Another entry stands for the tree that holds them, which may differ between optimizers with the
    same arrays.
    """
    tree = re.sub(r" at 0x[0-9a-f]+", "", str(jax.tree.structure(state)))
    return {
        jax.tree_util.keystr(path): f"{leaf.dtype}{list(leaf.shape)}"
        for path, leaf in jax.tree_util.tree_leaves_with_path(state)
    } | {"the tree": hashing.short(tree)}


def digest(state: Any) -> list[list[int]]:
    """Two sums over the bits of each array of a pytree; both change where a single word does.

    They are integers of 32 bits, computed where the arrays are, and the same on any devices. With
    several processes, all of them must call this.
    """
    return [[int(x) for x in sums] for sums in _sums(jax.tree.leaves(state))]


@jax.jit
def _sums(leaves: list[jax.Array]) -> list[jax.Array]:
    return [_weighted_sums(leaf) for leaf in leaves]


def _weighted_sums(leaf: jax.Array) -> jax.Array:
    bits = leaf.astype(jnp.uint8) if leaf.dtype == bool else leaf
    size = min(bits.dtype.itemsize, 4)
    bits = jax.lax.bitcast_convert_type(bits, f"uint{8 * size}").astype(jnp.uint32)
    place, stride = jnp.zeros(bits.shape, jnp.uint32), 1
    for axis in reversed(range(bits.ndim)):
        index = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
        place, stride = place + index * jnp.uint32(stride % 2**32), stride * bits.shape[axis]
    # A change of one word changes both sums, because odd factors have an inverse modulo 2^32.
    factors = (place * 2 + 1, (place * jnp.uint32(2654435761)) | 1)
    return jnp.stack([jnp.sum(bits * factor, dtype=jnp.uint32) for factor in factors])
