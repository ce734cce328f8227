"""Classifiers that also say what their input was: a trunk, logits, and a linear decoder.

They are models for :class:`ldro_jax.problems.Reconstruction`. Both give ``logits`` ``[B,
num_classes]``, ``features``, what both heads are computed from, and ``reconstruction``, of the
shape of the inputs.
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax

from ldro_jax.models import cnn
from ldro_jax.runtime import checks


class MLPAutoencoder(nn.Module):
    """Fully connected layers with ReLU, then a linear layer each for logits and reconstruction.

    Attributes:
      num_classes: number of logits.
      features: width of each hidden layer, the last of which is the representation.

    Raises:
      ValueError: if a width isn't a positive integer, or there is none.
    """

    num_classes: int
    features: Sequence[int] = (32,)

    def __post_init__(self) -> None:
        checks.integer("num_classes", self.num_classes)
        checks.integers("features", self.features)
        checks.require(len(self.features), "features", "at least one width", self.features)
        super().__post_init__()

    @nn.compact
    def __call__(self, inputs: jax.Array) -> dict[str, jax.Array]:
        """See the module; inputs are ``[B, ...]``, and features ``[B, D]``."""
        x_BxD = inputs.reshape(inputs.shape[0], -1)
        for width in self.features:
            x_BxD = nn.relu(nn.Dense(width)(x_BxD))
        decoded = nn.Dense(math.prod(inputs.shape[1:]), name="decoder")(x_BxD)
        return {
            "logits": nn.Dense(self.num_classes, name="classes")(x_BxD),
            "features": x_BxD,
            "reconstruction": decoded.reshape(inputs.shape),
        }


class CNNAutoencoder(nn.Module):
    """Convolutions with ReLU and pooling; logits from the mean over positions, pixels from each.

    Each of the positions that are left after pooling gives the square of pixels that it stands for,
    by one linear layer: the decoder of SimMIM.

    Attributes:
      num_classes: number of logits.
      filters: 3×3 filters of each convolution; each is followed by a ReLU and 2×2 max-pooling.

    Raises:
      ValueError: if one of these isn't a positive integer, or height and width of the images aren't
        multiples of two to the number of convolutions.

    References:
      Xie et al., *SimMIM: A Simple Framework for Masked Image Modeling*, CVPR 2022.
    """

    num_classes: int
    filters: Sequence[int] = (32, 32)

    def __post_init__(self) -> None:
        checks.integer("num_classes", self.num_classes)
        checks.integers("filters", self.filters)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> dict[str, jax.Array]:
        """See the module; features are ``[B, H / side, W / side, D]``."""
        batch, height, width, channels = x_BxHxWxC.shape
        side = 2 ** len(self.filters)
        if height % side or width % side:
            raise ValueError(
                f"images must have a height and a width that are multiples of {side}, as "
                f"{len(self.filters)} poolings halve them, but they are {height} and {width}."
            )
        x_BxHxWxD = cnn.convolved(self, x_BxHxWxC, self.filters)
        decoded = nn.Dense(side * side * channels, name="decoder")(x_BxHxWxD)
        squares = decoded.reshape(batch, height // side, width // side, side, side, channels)
        return {
            "logits": nn.Dense(self.num_classes, name="classes")(x_BxHxWxD.mean(axis=(1, 2))),
            "features": x_BxHxWxD,
            "reconstruction": squares.swapaxes(2, 3).reshape(x_BxHxWxC.shape),
        }
