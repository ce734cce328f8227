"""A small multilayer perceptron."""

from collections.abc import Sequence

import flax.linen as nn
import jax

from ldro_jax.runtime import checks


class MLP(nn.Module):
    """Flattens its input and applies fully connected layers with ReLU between them.

    Attributes:
      num_classes: number of outputs.
      features: width of each hidden layer; ``()`` for a linear model.

    Raises:
      ValueError: if a width isn't a positive integer.
    """

    num_classes: int
    features: Sequence[int] = (32,)

    def __post_init__(self):
        checks.integer("num_classes", self.num_classes)
        checks.integers("features", self.features)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxW: jax.Array) -> jax.Array:
        """Logits ``[B, num_classes]`` of images, or of any array with a leading batch axis."""
        x_BxD = x_BxHxW.reshape(x_BxHxW.shape[0], -1)
        for width in self.features:
            x_BxD = nn.relu(nn.Dense(width)(x_BxD))
        return nn.Dense(self.num_classes)(x_BxD)
