"""The paper's two-parameter problem as a problem to train on; see `ldro_jax.tasks.synthetic`."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from typing_extensions import override

from ldro_jax.problems import base
from ldro_jax.runtime import checks
from ldro_jax.tasks import synthetic
from ldro_jax.tasks.base import content
from ldro_jax.tasks.source import Source

LOSS = base.Metric("loss", higher_is_better=False)


class PointTasks(base.Problem):
    """Tasks that are points of the plane; the parameters are (r, φ).

    A batch has one row of each task, and is all there is, so the tasks are measured as they are
    trained on.

    Args:
      points: ``[N, 2]``, the outlier last.
      start: (r, φ) before the first step.
      noise: standard deviation of the Gaussian noise on losses and gradients.

    Raises:
      ValueError: if an argument isn't what it must be.
    """

    metrics: tuple[base.Metric, ...] = (LOSS,)
    splits: tuple[str, ...] = ("train",)
    observe: Callable[[Any], jax.Array] | None = staticmethod(synthetic.position)

    def __init__(
        self, points: np.ndarray | jax.Array, *, start: Sequence[float], noise: float = 0.0
    ):
        self._points = _array("points", points, (None, 2))
        self._start = _array("start", start, (2,))
        checks.number("noise", noise, "[0, inf)")
        num_similar = len(self._points) - 1
        self.task_names: tuple[str, ...] = (
            *(f"task {i + 1}" for i in range(num_similar)),
            "outlier",
        )
        self._noise = noise
        self.on_device: base.OnDevice | None = base.OnDevice(
            self._points[:, None], np.ones(len(self._points), np.int32), self._take
        )
        self._evaluate = jax.jit(jax.vmap(synthetic.task_loss, in_axes=(None, 0)))

    @property
    @override
    def identity(self) -> dict[str, Any]:
        return {"content": content([self._points])}

    def init(self, key: jax.Array) -> jax.Array:
        """The start, whatever the key."""
        del key
        return jnp.asarray(self._start)

    def row_losses(self, params: jax.Array, rows: dict[str, jax.Array]) -> jax.Array:
        """Squared distance of the model to each point, with noise on it and on its gradient."""
        losses = jax.vmap(synthetic.task_loss, in_axes=(None, 0))(params, rows["point"])
        # Zero, with the noise as its gradient.
        tilt = rows["gradient noise"] @ (params - jax.lax.stop_gradient(params))
        return losses + rows["loss noise"] + tilt

    def _take(self, arrays, key, step, tasks, indices):
        loss_key, gradient_key = jax.random.split(jax.random.fold_in(key, step))
        num_tasks = len(arrays)
        return {
            "point": arrays[tasks, indices],
            "loss noise": self._noise * jax.random.normal(loss_key, (num_tasks,))[tasks],
            "gradient noise": self._noise * jax.random.normal(gradient_key, (num_tasks, 2))[tasks],
        }

    def source(self, seed: int) -> Source:
        """There is none besides the rows on the device."""
        raise ValueError("The tasks of this problem are drawn on the device alone.")

    def evaluate(self, params: jax.Array, split: str) -> dict[str, jax.Array]:
        """Losses without noise."""
        del split
        return {LOSS.name: self._evaluate(params, self._points)}


def _array(name: str, values: Any, shape: tuple[int | None, ...]) -> np.ndarray:
    """Finite numbers as float32; their shape has ``None`` where any size will do."""
    try:
        array = np.asarray(values)
    except ValueError:  # ragged
        array = np.array(None)
    fits = array.dtype.kind in "iuf" and array.ndim == len(shape)
    fits = fits and all(n in (None, size) for n, size in zip(shape, array.shape, strict=True))
    expected = f"finite numbers of the shape {list(shape)}".replace("None", "N")
    checks.require(fits and array.size and np.isfinite(array).all(), name, expected, values)
    return array.astype(np.float32)
