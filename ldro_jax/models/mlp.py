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
      zero_head: begin with a last layer of zeros, and so with logits of zero.

    Raises:
      ValueError: if a width isn't a positive integer.
    """

    num_classes: int
    features: Sequence[int] = (32,)
    zero_head: bool = False

    def __post_init__(self) -> None:
        checks.integer("num_classes", self.num_classes)
        checks.integers("features", self.features)
        checks.flag("zero_head", self.zero_head)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxW: jax.Array) -> jax.Array:
        """Logits ``[B, num_classes]`` of images, or of any array with a leading batch axis."""
        x_BxD = x_BxHxW.reshape(x_BxHxW.shape[0], -1)
        for width in self.features:
            x_BxD = nn.relu(nn.Dense(width)(x_BxD))
        kernel_init = nn.initializers.zeros if self.zero_head else nn.initializers.lecun_normal()
        return nn.Dense(self.num_classes, kernel_init=kernel_init)(x_BxD)
