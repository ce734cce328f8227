"""Real handwritten digits seen through ten optics, one task each; downloads nothing.

The 1,797 images of 8×8 pixels that scikit-learn ships are first divided into train, validation and
test images. Each task then sees the images of a split through its own optics, so no image is in two
splits, whichever task it is seen in. Some tasks resemble each other (clean, shifted, blurred), some
contradict each other (upside down, a 6 is a 9), one is partly unlearnable (noisy).

References:
  Alpaydin and Kaynak, *Optical Recognition of Handwritten Digits*, UCI Machine Learning Repository,
  1998.
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.tasks import base

_SIDE = 8


def _blur(images: np.ndarray) -> np.ndarray:
    padded = np.pad(images, ((0, 0), (1, 1), (1, 1)), mode="edge")
    windows = [padded[:, i : i + _SIDE, j : j + _SIDE] for i in range(3) for j in range(3)]
    return np.mean(windows, axis=0)


def _occlude(images: np.ndarray) -> np.ndarray:
    covered = images.copy()
    covered[:, _SIDE // 2 :] = 0
    return covered


# Images [example, 8, 8] with ink between 0 and 1 -> the same shape.
OPTICS: dict[str, Callable[[np.ndarray, np.random.Generator], np.ndarray]] = {
    "clean": lambda images, rng: images,
    "shifted": lambda images, rng: np.roll(images, 1, axis=2),
    "blurred": lambda images, rng: _blur(images),
    "faint": lambda images, rng: 0.3 * images,
    "rotated": lambda images, rng: np.rot90(images, axes=(1, 2)),
    "upside down": lambda images, rng: np.rot90(images, 2, axes=(1, 2)),
    "mirrored": lambda images, rng: images[:, :, ::-1],
    "inverted": lambda images, rng: 1 - images,
    "occluded": lambda images, rng: _occlude(images),
    "noisy": lambda images, rng: images + rng.normal(scale=0.4, size=images.shape),
}


def load(*, data_dir: str | None = None, seed: int = 0) -> base.MultitaskData:
    """Loads the digits as ten tasks of ten classes.

    Args:
      data_dir: ignored; scikit-learn's wheel holds the images.
      seed: of the division into splits and of the noise.

    Returns:
      The :class:`~ldro_jax.tasks.base.MultitaskData`, with inputs float32 ``[E, 8, 8]`` and
      1,077 train, 360 validation and 360 test images of each of the ten tasks.

    Raises:
      ImportError: if scikit-learn is not installed.
      ValueError: if the seed isn't an integer of 32 bits.
    """
    del data_dir
    checks.seed("seed", seed)
    rng = np.random.default_rng(seed)
    splits: dict[str, Any] = {
        name: _through_optics(images, labels, rng)
        for name, (images, labels) in divided(rng).items()
    }
    return base.MultitaskData(task_names=tuple(OPTICS), num_classes=10, **splits)


def divided(rng: np.random.Generator) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images and digits of each split; see :func:`images`."""
    everything, labels = images()
    parts = np.split(rng.permutation(len(labels)), [1077, 1437])
    splits = zip(("train", "validation", "test"), parts, strict=True)
    return {name: (everything[part], labels[part]) for name, part in splits}


def images() -> tuple[np.ndarray, np.ndarray]:
    """All images, float32 ``[E, 8, 8]`` from 0 to 1, and their digits, int ``[E]``.

    Raises:
      ImportError: if scikit-learn is not installed.
    """
    try:
        from sklearn import datasets
    except ImportError as error:
        raise ImportError(
            "The digits come with scikit-learn: pip install 'ldro-jax[trainer]'."
        ) from error
    digits: Any = datasets.load_digits()
    return (digits.images / 16).astype(np.float32), digits.target


def _through_optics(images, labels, rng) -> base.Split:
    labels = labels.astype(np.int32)
    return base.Split.join(
        (optics(images, rng).astype(np.float32), labels) for optics in OPTICS.values()
    )
