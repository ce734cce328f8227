"""The convolutional networks of the L-DRO paper's image experiments.

References:
  Michel, Ruder and Yogatama, *Balancing Average and Worst-case Accuracy in Multitask Learning*,
  2021, section 5.1 and appendix B.3.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax

from ldro_jax.models import convolution
from ldro_jax.runtime import checks


class CNN(nn.Module):
    """Convolutions with ReLU and pooling, the mean over positions, and fully connected layers.

    The defaults are the paper's small network (0.07 million parameters). The larger one of its
    appendix B.3 has ``filters=(160, 160, 160)`` and ``features=(320, 320)``.

    Attributes:
      num_classes: number of outputs.
      filters: 3×3 filters of each convolution; each is followed by a ReLU and 2×2 max-pooling.
      features: width of each fully connected layer, with ReLU, before the outputs.

    Raises:
      ValueError: if one of these isn't a positive integer.
    """

    num_classes: int
    filters: Sequence[int] = (32, 32, 32, 32)
    features: Sequence[int] = (128, 128, 128)

    def __post_init__(self) -> None:
        checks.integer("num_classes", self.num_classes)
        checks.integers("filters", self.filters)
        checks.integers("features", self.features)
        super().__post_init__()

    @nn.compact
    def __call__(self, x_BxHxWxC: jax.Array) -> jax.Array:
        """Logits ``[B, num_classes]`` of a batch of images, float32."""
        x_BxHxWxC = convolved(self, x_BxHxWxC, self.filters)
        x_BxD = x_BxHxWxC.mean(axis=(1, 2))
        for width in self.features:
            x_BxD = nn.relu(nn.Dense(width)(x_BxD))
        return nn.Dense(self.num_classes)(x_BxD)


def convolved(module: nn.Module, x_BxHxWxC: jax.Array, widths: Sequence[int]) -> jax.Array:
    """Convolutions, each with ReLU and 2×2 max-pooling, with parameters of a module.

    Args:
      module: a Linen module, in its compact method.
      x_BxHxWxC: images.
      widths: 3×3 filters of each convolution.

    Returns:
      ``[B, H // 2^n, W // 2^n, D]`` after n of them.
    """
    for layer, filters in enumerate(widths):
        shape = (3, 3, x_BxHxWxC.shape[-1], filters)
        kernel = module.param(f"conv{layer}_kernel", nn.initializers.lecun_normal(), shape)
        bias = module.param(f"conv{layer}_bias", nn.initializers.zeros, (filters,))
        x_BxHxWxC = convolution.conv3x3(x_BxHxWxC, kernel)
        # Bias and ReLU don't change which is the largest, and there is a quarter left to do.
        x_BxHxWxC = nn.relu(convolution.max_pool_2x2(x_BxHxWxC) + bias[None, None, None, :])
    return x_BxHxWxC
