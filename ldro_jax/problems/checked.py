"""Arrays and metrics as users give them, checked."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.runtime import checks, errors


def numbers(name: str, part: str, array: Any, *, finite: bool = True) -> np.ndarray:
    """The array that something is, checked."""
    # Of a list of them NumPy would keep no mask.
    parts = array if isinstance(array, (list, tuple)) else [array]
    for each in parts:
        checks.on_device(name, part, each)
    try:
        found = np.asarray(array)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name} must have {part} that are one array, but they can't be made one "
            f"({errors.first_line(error)})."
        ) from error
    is_small = found.dtype.name == "bfloat16"
    if not (is_small or (found.dtype.kind in "biuf" and found.itemsize <= 8)):
        raise ValueError(f"{name} must have {part} that are numbers, but they are {found.dtype}.")
    comparable = found.astype(np.float32) if is_small else found
    if finite and found.dtype.kind not in "biu" and not np.isfinite(comparable).all():
        raise ValueError(f"{name} must have {part} that are finite, but some are NaN or infinite.")
    checks.on_device(name, part, found)
    return found


def outputs(apply: Callable[[Any], Any], inputs: Any, group: int) -> Any:
    """A model's outputs for all rows, ``[E, ...]``, computed in groups of at most so many.

    The model is compiled once, and the activations of one group are all that are held.

    Raises:
      ValueError: if it doesn't give an output for each row.
    """
    size = len(jax.tree.leaves(inputs)[0])
    group = min(group, size)
    count = -(-size // group)
    places = jnp.minimum(jnp.arange(count * group, dtype=jnp.int32), size - 1)
    grouped = jax.lax.map(
        lambda where: apply(jax.tree.map(lambda x: x[where], inputs)), places.reshape(count, group)
    )
    for path, leaf in jax.tree_util.tree_leaves_with_path(grouped):
        if leaf.shape[1:2] != (group,):
            raise ValueError(
                f"model must give an output for each of {group} rows, [{group}, ...], but its "
                f"output{jax.tree_util.keystr(path)} has the shape {leaf.shape[1:]}."
            )
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[:size], grouped)


def value(
    measure: Callable[[Any, Any], Any], outputs: Any, rows: dict[str, jax.Array], count: jax.Array
) -> jax.Array:
    """What a metric says of one task's rows, of which there are ``count``."""
    size, name = len(rows["task"]), checks.called(measure)
    with errors.of(f"metrics: {name}"):
        given = measure(outputs, rows)
    try:
        found = jnp.asarray(given)
    except (TypeError, ValueError):  # text, a dictionary, or nothing
        found = None
    if found is None or found.shape not in ((), (size,)) or jnp.iscomplexobj(found):
        described = checks.shown(given) if found is None else f"{found.dtype}{list(found.shape)}"
        raise ValueError(
            "metrics must give one real number for each row of a task, a shape of "
            f"{[size]}, or one for all of them, but {name} gives {described}."
        )
    found = found.astype(jnp.float32)
    # XLA multiplies by the inverse of a number that it knows, and n · (1/n) may be less than 1.
    return jnp.sum(found) / count.astype(jnp.float32) if found.ndim else found


def number(measure: Callable[[Any, Any], Any], outputs: Any, rows: Any) -> float:
    """The value of a metric that NumPy computes: a number, or the mean of one for each row."""
    name = checks.called(measure)
    with errors.of(f"metrics: {name}"):
        values = np.asarray(measure(outputs, rows))
    fits = values.dtype.kind in "biuf" and values.shape in ((), rows["task"].shape)
    checks.require(fits, f"metrics: {name}", "a function that gives a real number", values)
    return float(np.mean(values))


def is_traced(measure: Callable[[Any, Any], Any], outputs: Any, rows: Any) -> bool:
    """Whether a metric can be compiled. Others, such as scikit-learn's, get NumPy's arrays."""
    try:
        jax.eval_shape(measure, outputs, rows)
    except (
        jax.errors.ConcretizationTypeError,
        jax.errors.NonConcreteBooleanIndexError,
        jax.errors.TracerArrayConversionError,
        jax.errors.TracerIntegerConversionError,
    ):
        return False
    except Exception:  # what is wrong with it is said where it is measured
        return True
    return True
