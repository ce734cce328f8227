"""What a training of groups may minimise in the place of the mean loss over a batch.

Each is given to :func:`ldro_jax.problems.groups`. An objective says, row by row, what the mean is
taken of. For example, the losses of four rows are 1, 4, 2 and 3. With ``CVaR(share=0.5)`` the worst
two count twice and the others not at all, 0, 8, 0 and 6, whose mean is that of the worst two, 3.5.
What is measured on held-out examples stays the same: the accuracy in each group.
"""

import abc
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
import optax
from typing_extensions import override

from ldro_jax.measuring import RowLosses
from ldro_jax.problems.arrays import ArrayProblem, RowFunction
from ldro_jax.runtime import checks

# Inputs as the model takes them, [R, ...] -> (its outputs in a training pass, what it replaces).
Call = Callable[[Any], tuple[Any, Any]]
Rows = dict[str, jax.Array]


class Objective(abc.ABC):
    """What is minimised; see the module.

    Attributes:
      known: what training may know of the groups; see :func:`ldro_jax.problems.groups`.
      task_names: the tasks that it makes of one row; ``None`` where a row is of one task.
      is_random: whether it draws something in each step.
      rows_depend: whether what a row counts depends on the other rows of its batch.
    """

    known: ClassVar[tuple[str, ...]] = ("nothing",)
    task_names: ClassVar[tuple[str, ...] | None] = None
    is_random: ClassVar[bool] = False
    rows_depend: ClassVar[bool] = False

    @abc.abstractmethod
    def losses(self, call: Call, loss: RowFunction, rows: Rows, key: Any) -> RowLosses:
        """What a training pass says of some rows.

        Args:
          call: the model with its parameters, called once.
          loss: ``(logits [R, C], rows) -> [R]``.
          rows: ``inputs`` as the model takes them, ``[R, ...]``, ``targets`` and ``task``, ``[R]``.
          key: for what :attr:`is_random` says.
        """

    def check(self, inputs: Any, outputs: Any, examples: np.ndarray) -> None:
        """Raises ``ValueError`` if it doesn't fit the data or the model.

        Args:
          inputs: their shapes, as the model takes them, ``[R, ...]``.
          outputs: the shapes of what the model makes of them.
          examples: all training inputs as they are stored.
        """
        del inputs, outputs, examples

    def logits(self, outputs: Any) -> Any:
        """The logits among the model's outputs, ``[R, C]``."""
        return outputs


@dataclasses.dataclass(frozen=True)
class CVaR(Objective):
    r"""CVaR over the examples of a batch: the mean loss of the worst share of its rows.

    .. math:: \max_p \sum_r p_r ℓ_r, \quad \sum_r p_r = 1, \quad 0 ≤ p_r ≤ \frac{1}{αR}

    with R rows and the share α. The αR rows with the highest losses have the weight 1 / (αR), the
    last of them what is left, and the others none; rows that are tied for the last place share it.
    The weights are constants of the gradient (Danskin's theorem). A share of 1 is ERM; of 1 / R or
    less, the worst row.

    It is the CVaR of each batch, whose expectation is less than that of all examples: the smaller
    αR, the more (Levy et al. bound the difference). With microbatches, each is taken by itself.

    Attributes:
      share: α, in (0, 1].

    Raises:
      ValueError: if the share lies outside (0, 1].

    References:
      Levy, Carmon, Duchi and Sidford, *Large-Scale Methods for Distributionally Robust
      Optimization*, NeurIPS 2020.
    """

    rows_depend: ClassVar[bool] = True

    share: float

    def __post_init__(self) -> None:
        checks.number("share", self.share, "(0, 1]")

    @override
    def losses(self, call: Call, loss: RowFunction, rows: Rows, key: Any) -> RowLosses:
        del key
        outputs, new = call(rows["inputs"])
        each = loss(outputs, rows)
        return RowLosses(_of_the_worst(each, self.share) * each, auxiliary=new)


@dataclasses.dataclass(frozen=True)
class Perturbed(Objective):
    r"""Probabilistically robust learning: the CVaR of a row's losses at perturbed inputs.

    .. math:: \frac{1}{R} \sum_r \min_t \; t + \frac{1}{ρ} \mathbb{E}_δ [ℓ(x_r + δ, y_r) - t]_+

    with δ uniform in a cube, the paper's ℓ∞ ball. Of a finite number of draws the minimum over the
    threshold t is the mean loss of the worst share of them, as in :class:`CVaR`, and that is taken;
    the paper takes a few gradient steps on t. A share of 1 is the mean over perturbations, which is
    augmentation by noise; 1 / draws or less, the worst draw.

    Perturbations are added to inputs as the model takes them, which aren't clipped to a range
    (the paper's code clips images to [0, 1]). All draws go through the model in one pass, of draws
    × R rows, and batch normalisation takes them together. Evaluations perturb nothing.

    Attributes:
      share: ρ, in (0, 1].
      radius: half the side of the cube, in units of the inputs.
      draws: perturbations of each row in each step; so many times the cost of a step.

    Raises:
      ValueError: if one of these is out of range.

    References:
      Robey, Chamon, Pappas and Hassani, *Probabilistically Robust Learning: Balancing Average- and
      Worst-case Performance*, ICML 2022.
    """

    known: ClassVar[tuple[str, ...]] = ("groups", "classes", "nothing")
    is_random: ClassVar[bool] = True

    share: float
    radius: float
    draws: int = 10

    def __post_init__(self) -> None:
        checks.number("share", self.share, "(0, 1]")
        checks.number("radius", self.radius, "[0, inf)")
        checks.integer("draws", self.draws)

    @override
    def losses(self, call: Call, loss: RowFunction, rows: Rows, key: Any) -> RowLosses:
        # The draws of a row side by side, so that rows stay on their devices.
        repeated = {name: jnp.repeat(x, self.draws, axis=0) for name, x in rows.items()}
        inputs = repeated["inputs"]
        radius = float(self.radius)
        repeated["inputs"] += jax.random.uniform(key, inputs.shape, inputs.dtype, -radius, radius)
        outputs, new = call(repeated["inputs"])
        each = loss(outputs, repeated).reshape(-1, self.draws)
        worst = _of_the_worst(each, self.share) * each
        return RowLosses(jnp.mean(worst, axis=1), auxiliary=new)

    @override
    def check(self, inputs: Any, outputs: Any, examples: np.ndarray) -> None:
        if not jnp.issubdtype(inputs.dtype, jnp.floating):
            raise ValueError(
                "objective must be another one than Perturbed for inputs that aren't "
                f"floating-point numbers, but the model takes {inputs.dtype}: nothing can be added "
                "to a token."
            )


@dataclasses.dataclass(frozen=True)
class Reconstruction(Objective):
    r"""Regularised multitask learning: reconstruct masked inputs from a sparse representation.

    Three tasks with labels of each row, so that any method can weigh them. With H the features of
    some inputs, H' those of the same inputs masked, and M the masked places,

    .. math::

      ℓ_1 = \text{cross-entropy}, \quad
      ℓ_2 = \frac{1}{|M|} \sum_{i ∈ M} |\hat x_i - x_i|, \quad
      ℓ_3 = \frac{‖H‖_1}{\text{numel}(H)} + \frac{‖H'‖_1}{\text{numel}(H')} .

    Of tokens, ℓ_2 is the cross-entropy of the masked ones. The paper's objective, e^a ℓ_1 + e^b ℓ_2
    + e^c ℓ_3, has fixed weights: ``w = (e^a, e^b, e^c)`` is ``Method("Regularised MTL", "erm",
    {"sizes": w}, total=sum(w))``.

    A model gives ``{"logits": [R, C], "features": [R, ...], "reconstruction": like its inputs}``,
    of tokens ``[R, L, V]``; :mod:`ldro_jax.models.autoencoder` has two. Inputs and masked inputs go
    through it in one pass, of 2R rows, and batch normalisation takes them together. Evaluations use
    the logits alone.

    In each step a share of the places of each row is masked, the same number where nothing is
    padding, and at least one: of ``[R, D]`` each number, of images ``[R, H, W]`` or ``[R, H, W,
    C]`` each square of pixels with all its channels. Masked numbers become 0, masked tokens the
    mask token, always (BERT leaves some as they are). In a step the paper's code masks other
    examples than those it classifies, here they are the same.

    Attributes:
      share: of the places that are masked, in (0, 1].
      token: the mask token, if inputs are tokens, integers ``[R, L]``.
      padding: a token that is never masked, if there is one.
      patch: side of the squares of an image that are masked together, in pixels.
      error: of numbers that were masked, "absolute" as in SimMIM, or "squared" as in MAE.

    Raises:
      ValueError: if one of these is out of range.

    References:
      Kulkarni, Dery, Setlur, Raghunathan, Talwalkar and Neubig, *Multitask Learning Can Improve
      Worst-Group Outcomes*, TMLR 2024.
    """

    task_names: ClassVar[tuple[str, ...]] = ("classes", "reconstruction", "sparsity")
    is_random: ClassVar[bool] = True

    share: float = 0.15
    token: int | None = None
    padding: int | None = None
    patch: int = 1
    error: str = "absolute"

    def __post_init__(self) -> None:
        checks.number("share", self.share, "(0, 1]")
        for name in ("token", "padding"):
            if (value := getattr(self, name)) is not None:
                checks.integer(name, value, low=0)
        differs = self.token is None or self.token != self.padding
        checks.require(differs, "token", "another one than the padding", self.token)
        checks.integer("patch", self.patch)
        checks.one_of("error", self.error, ("absolute", "squared"))

    @override
    def losses(self, call: Call, loss: RowFunction, rows: Rows, key: Any) -> RowLosses:
        inputs = rows["inputs"]
        masked = self.masks(inputs, key)
        hidden = jnp.where(masked, jnp.asarray(self.token or 0, inputs.dtype), inputs)
        # Both of a row side by side, so that rows stay on their devices.
        both = jnp.stack([inputs, hidden], axis=1).reshape(-1, *inputs.shape[1:])
        outputs, new = call(both)
        features = jnp.abs(outputs["features"]).reshape(len(inputs), 2, -1)
        classes = loss(outputs["logits"][::2], rows)
        found = outputs["reconstruction"][1::2].astype(classes.dtype)
        places = tuple(range(1, inputs.ndim))
        sums = [
            classes,
            jnp.sum(jnp.where(masked, self._errors(found, inputs), 0), axis=places),
            jnp.sum(jnp.mean(features.astype(classes.dtype), axis=2), axis=1),
        ]
        one, counts = jnp.ones_like(classes), jnp.sum(masked, axis=places, dtype=classes.dtype)
        return RowLosses(
            jnp.stack(sums, axis=1), jnp.stack([one, counts, one], axis=1), auxiliary=new
        )

    def masks(self, inputs: jax.Array, key: jax.Array) -> jax.Array:
        """Which places of some inputs are masked, bool like these, ``[R, ...]``."""
        size, *places = inputs.shape[:3]
        grid = [side // self.patch for side in places]
        order = jax.random.uniform(key, (size, math.prod(grid)), jnp.float32)
        can = jnp.ones(order.shape, bool) if self.padding is None else inputs != self.padding
        order = jnp.where(can, order, 2)
        number = jnp.round(self.share * jnp.sum(can, axis=1, keepdims=True, dtype=jnp.float32))
        last = jnp.maximum(number.astype(jnp.int32) - 1, 0)
        limit = jnp.take_along_axis(jnp.sort(order, axis=1), last, axis=1)
        masked = (can & (order <= limit)).reshape(size, *grid)
        for axis in range(1, masked.ndim):
            masked = jnp.repeat(masked, self.patch, axis=axis)
        channels = inputs.shape[3:]
        masked = masked.reshape(*masked.shape, *(1 for _ in channels))
        return jnp.broadcast_to(masked, inputs.shape)

    def _errors(self, found: jax.Array, inputs: jax.Array) -> jax.Array:
        if self.token is not None:
            return optax.softmax_cross_entropy_with_integer_labels(found, inputs)
        difference = found - inputs.astype(found.dtype)
        return jnp.abs(difference) if self.error == "absolute" else difference**2

    @override
    def check(self, inputs: Any, outputs: Any, examples: np.ndarray) -> None:
        if self.token is None:
            self._check_numbers(inputs)
        else:
            self._check_tokens(inputs)
        names = ("logits", "features", "reconstruction")
        is_mapping = isinstance(outputs, Mapping) and set(names) <= set(outputs)
        shapes: list[tuple[int, ...]] = [()] * 3
        if is_mapping:
            shapes = [jnp.shape(outputs[name]) for name in names]
        logits, features, found = shapes
        is_like = found[: inputs.ndim] == inputs.shape
        is_like = is_like and len(found) == inputs.ndim + (self.token is not None)
        rows = len(inputs)
        if not (is_like and len(logits) == 2 and {logits[0], *features[:1]} == {rows}):
            given = {name: jnp.shape(x) for name, x in outputs.items()} if is_mapping else outputs
            inner = ", ".join(
                [*map(str, inputs.shape[1:]), *(["V"] if self.token is not None else [])]
            )
            raise ValueError(
                "model must give a dictionary with objective=Reconstruction: logits [R, C], "
                f"features [R, ...] and reconstruction [R, {inner}], but of {rows} rows it gives "
                f"{checks.shown(given)}."
            )
        if self.token is None:
            return
        least, most = int(np.min(examples)), int(np.max(examples))
        if least < 0 or most >= found[-1]:
            raise ValueError(
                "model must give a reconstruction [R, L, V] with an output for each token, but V "
                f"is {found[-1]}, and tokens are from {least} to {most}."
            )

    def _check_numbers(self, inputs: Any) -> None:
        if not jnp.issubdtype(inputs.dtype, jnp.floating) or self.padding is not None:
            raise ValueError(
                "objective=Reconstruction without a mask token needs inputs of floating-point "
                f"numbers, without padding, but the model takes {inputs.dtype}, with padding="
                f"{self.padding}. Name the mask token of tokens: Reconstruction(token=…)."
            )
        is_divided = all(side % self.patch == 0 for side in inputs.shape[1:3])
        if not 2 <= inputs.ndim <= 4 or (self.patch > 1 and (inputs.ndim < 3 or not is_divided)):
            raise ValueError(
                "objective=Reconstruction needs inputs [R, D], [R, H, W] or [R, H, W, C], and a "
                f"patch that divides H and W, but inputs are {['R', *inputs.shape[1:]]}, and the "
                f"patch is {self.patch}."
            )

    def _check_tokens(self, inputs: Any) -> None:
        is_whole = jnp.issubdtype(inputs.dtype, jnp.integer)
        if not is_whole or inputs.ndim != 2 or self.patch > 1:
            raise ValueError(
                "objective=Reconstruction with a mask token needs tokens, integers [R, L], and no "
                f"patch, but inputs are {inputs.dtype} {['R', *inputs.shape[1:]]}, and the patch "
                f"is {self.patch}. Leave token=None for numbers."
            )

    @override
    def logits(self, outputs: Any) -> Any:
        return outputs["logits"]


class ObjectiveProblem(ArrayProblem):
    """An :class:`~ldro_jax.problems.arrays.ArrayProblem` that is trained on an objective.

    Args:
      objective: what is minimised in the place of the mean loss.
      task_names: of the problem's own tasks, in the place of which come those of the objective.
      *parts: see :class:`~ldro_jax.problems.arrays.ArrayProblem`.
      **options: of the same.

    Raises:
      ValueError: if the objective doesn't fit the data or the model.
    """

    def __init__(self, objective: Objective, task_names: Any, *parts: Any, **options: Any) -> None:
        self._objective = objective
        names = objective.task_names
        super().__init__(task_names if names is None else names, *parts, **options)
        self.draws_at_random: bool = self._model.draws or objective.is_random
        self.rows_depend: bool = objective.rows_depend
        if names is not None:
            self.labels: np.ndarray | None = np.ones((1, len(names)))

    @override
    def apply(self, params: Any, inputs: jax.Array) -> Any:
        return self._objective.logits(super().apply(params, inputs))

    @override
    def training_losses(
        self, params: Any, rows: dict[str, jax.Array], key: jax.Array | None = None
    ) -> RowLosses:
        model = self._model
        if self._objective.is_random:
            assert key is not None
            key, other = jax.random.split(key)
        else:
            other = None

        def call(inputs):
            if model.train is None:
                return model.apply(params, inputs), ()
            return model.train(params, inputs, key if model.draws else None)

        prepared = {**rows, "inputs": self._prepare(rows["inputs"])}
        return self._objective.losses(call, self._loss, prepared, other)

    @override
    def with_reference(self, params: Any) -> Self:
        if self.labels is not None:
            raise ValueError(
                "A reference model is compared with row by row, where each row is of one task, but "
                f"with objective={type(self._objective).__name__} it is of {self.num_tasks}."
            )
        return super().with_reference(params)

    @property
    @override
    def sizes(self) -> np.ndarray:
        return super().sizes if self.labels is None else np.full(self.num_tasks, super().sizes)

    @override
    def _looked_at(self, model: Any) -> Any:
        functions, stored = super()._looked_at(model), self._splits["train"].inputs
        shape = jax.ShapeDtypeStruct(
            (2, *stored.shape[1:]), jax.dtypes.canonicalize_dtype(stored.dtype)
        )
        inputs = jax.eval_shape(self._prepare, shape)
        params = jax.eval_shape(functions.init, jax.random.key(0), inputs)
        self._objective.check(inputs, jax.eval_shape(functions.apply, params, inputs), stored)
        return functions


def _of_the_worst(losses: jax.Array, share: float) -> jax.Array:
    """How much losses ``[..., R]`` count, so that the mean over R is that of the worst share.

    R times the weights p of :class:`CVaR`; constants of the gradient.
    """
    losses, size = jax.lax.stop_gradient(losses), losses.shape[-1]
    count = float(share) * size
    last = size - math.ceil(count)
    limit = jnp.sort(losses, axis=-1)[..., last : last + 1]
    above, tied = losses > limit, losses == limit
    several, most = (x.sum(axis=-1, keepdims=True, dtype=losses.dtype) for x in (tied, above))
    # None is tied where the limit is NaN.
    each = (count - most) / jnp.maximum(several, 1)
    return jnp.where(above, 1, jnp.where(tied, each, 0)) / float(share)
