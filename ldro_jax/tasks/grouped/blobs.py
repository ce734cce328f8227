"""A linear toy of two blobs, in which what is easy to learn is right for most examples only.

References:
  Idrissi et al., *Simple Data Balancing Achieves Competitive Worst-Group-Accuracy*, CLeaR 2022, and
    its code, facebookresearch/BalancingGroups (``datasets.py`` and ``models.py``).
  After Sagawa et al., *An Investigation of Why Overparameterization Exacerbates Spurious
    Correlations*, ICML 2020.
"""

import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.tasks.grouped.base import GroupedData, GroupedSplit


def toy(
    num_examples: int = 1000,
    num_noise: int = 1200,
    *,
    data_dir: str | None = None,
    correlation: float = 0.8,
    std: float = 0.15,
    scales: tuple[float, float, float] = (4.0, 1.0, 2.0),
    seed: int = 0,
) -> GroupedData:
    """Two classes, two features, and more dimensions of noise than there are examples.

    With y = ±1, half of the examples each, and a = y for ``correlation`` of all examples and -y for
    the others, the features are spurious ~ N(a, std²), core ~ N(y, std²), and noise ~ N(0, 1) in
    each of the other dimensions. So the core feature tells the classes apart in every group. The
    columns are multiplied by ``scales``, which is how fast gradient descent learns each.

    Sizes, variances and the share of the majority are those of Idrissi's code, which multiplies by
    the scales in the model; it tries 2 and 4 for those of the noise. As there, validation and test
    have as many examples with the same shares, and noise that is 0, its mean, and the samples of
    each split are shifted so that both features have their means exactly. In Sagawa's toy, which
    isn't this one, the variance of the core feature is the larger one, and that of the noise falls
    with its dimensions.

    Args:
      num_examples: of each split, an even number.
      num_noise: dimensions of noise.
      data_dir: ignored; everything is drawn.
      correlation: share of the examples whose spurious feature agrees with the class.
      std: standard deviation of the two features about their means.
      scales: of the spurious feature, the core feature and the noise.
      seed: of everything that is drawn.

    Returns:
      The :class:`GroupedData`, with inputs float32 ``[E, 2 + num_noise]``, first the spurious and
      then the core feature; the attribute is the sign of the spurious feature's mean, a.

    Raises:
      ValueError: if an argument isn't what it must be.
    """
    del data_dir
    checks.integer("num_examples", num_examples, low=2)
    checks.require(num_examples % 2 == 0, "num_examples", "an even number", num_examples)
    checks.integer("num_noise", num_noise, low=0)
    checks.number("correlation", correlation, "[0, 1]")
    checks.number("std", std, "[0, inf)")
    checks.sequence("scales", scales, "numbers, such as (4.0, 1.0, 2.0)")
    checks.require(len(scales) == 3, "scales", "three numbers, such as (4.0, 1.0, 2.0)", scales)
    for scale in scales:
        checks.number("scales", scale, "(0, inf)")
    checks.seed("seed", seed)
    rng = np.random.default_rng(seed)
    columns = np.repeat(scales, (1, 1, num_noise))
    y = np.repeat([-1, 1], num_examples // 2)

    def split(*, with_noise: bool) -> GroupedSplit:
        blob = rng.normal(scale=std, size=(num_examples, 2))
        blob += 1 - blob.mean(axis=0)
        a = y.copy()
        a[rng.permutation(num_examples)[round(correlation * num_examples) :]] *= -1
        noise = np.zeros((num_examples, num_noise))
        if with_noise:
            noise = rng.normal(size=noise.shape)
        inputs = columns * np.column_stack([blob * np.stack([a, y], axis=1), noise])
        classes, attributes = ((sign > 0).astype(np.int32) for sign in (y, a))
        return GroupedSplit(inputs.astype(np.float32), classes, attributes)

    return GroupedData(
        train=split(with_noise=True),
        validation=split(with_noise=False),
        test=split(with_noise=False),
        class_names=("negative", "positive"),
        attribute_names=("spurious negative", "spurious positive"),
    )
