"""Real images whose class goes with a mark that has nothing to do with it, in training alone.

A share of the training images of each class, 95 % by default, has the mark of that class, and the
others have the other one. In validation and test every image is there twice, once with each mark:
the mark says nothing of the class there, as in Waterbirds, and the groups of a class differ in
nothing else. The images are divided into splits first, so none is in two.

References:
  Sagawa et al., *Distributionally Robust Neural Networks for Group Shifts*, ICLR 2020 (Waterbirds).
"""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ldro_jax.runtime import checks
from ldro_jax.tasks import cifar100, digits
from ldro_jax.tasks.grouped.base import SPLITS, GroupedData, GroupedSplit, draw

# Images [E, ...] -> the same shape.
Mark = Callable[[np.ndarray, np.random.Generator], np.ndarray]

_RED, _BLUE = np.array([255, 0, 0]), np.array([0, 0, 255])
_BORDER_WIDTH = 3
# Of a pixel that is seen through coloured glass, what is the colour of the glass.
_CAST = 0.3


def spurious_digits(
    *,
    data_dir: str | None = None,
    optics: tuple[str, str] = ("clean", "blurred"),
    correlation: float = 0.95,
    seed: int = 0,
) -> GroupedData:
    """Handwritten digits, even or odd, which of the two goes with how they are seen.

    The images and the optics are those of :mod:`ldro_jax.tasks.digits`. Of each class 60 % are
    training and 20 % validation images, in all 1,079 and 359, and 359 are test images. Even digits
    go with the first optics, odd ones with the second.

    Args:
      data_dir: ignored; scikit-learn's wheel holds the images.
      optics: two names of :data:`ldro_jax.tasks.digits.OPTICS`.
      correlation: share of the training images of each class that are seen through its optics.
      seed: of the splits, of which images are the exceptions, and of noise.

    Returns:
      The :class:`GroupedData`, with inputs float32 ``[E, 8, 8]`` between 0 and 1, but for noise.

    Raises:
      ImportError: if scikit-learn is not installed.
      ValueError: if an argument isn't what it must be.
    """
    del data_dir
    checks.names("optics", optics, "('clean', 'blurred')")
    checks.require(len(optics) == 2, "optics", "two names, such as ('clean', 'blurred')", optics)
    for name in optics:
        checks.one_of("optics", name, tuple(digits.OPTICS))
    checks.number("correlation", correlation, "[0, 1]")
    checks.seed("seed", seed)
    rng = np.random.default_rng(seed)
    images, labels = digits.images()
    parts = zip(SPLITS, draw(labels % 2, (0.6, 0.2), rng), strict=True)
    splits = {name: (images[rows], labels[rows] % 2) for name, rows in parts}
    return GroupedData(
        **_marked(splits, [digits.OPTICS[name] for name in optics], correlation, rng),
        class_names=("even", "odd"),
        attribute_names=tuple(optics),
    )


def spurious_cifar100(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    classes: tuple[str, str] = ("aquatic mammals", "trees"),
    mark: str = "border",
    correlation: float = 0.95,
    seed: int = 0,
    **options: Any,
) -> GroupedData:
    """Two superclasses of CIFAR-100, which of the two goes with a colour, red or blue.

    A superclass has 2,250 training, 250 validation and 500 test images by default, those of
    :func:`ldro_jax.tasks.cifar100.load`, whose files it reads. The first goes with red, the second
    with blue.

    Args:
      data_dir: the directory that TFDS prepared the data in, the one that holds ``cifar100/``.
      classes: names of two superclasses.
      mark: "border", a frame of 3 pixels in that colour, or "colour", a cast that is 30 % of every
        pixel.
      correlation: share of the training images of each class that have its colour.
      seed: of the validation images, and of which images are the exceptions.
      **options: of :func:`ldro_jax.tasks.cifar100.load`, to take fewer images.

    Returns:
      The :class:`GroupedData`, with inputs uint8 ``[E, 32, 32, 3]``.

    Raises:
      ImportError: if TFDS is not installed.
      FileNotFoundError: if the data set is not there.
      ValueError: if it can't be read, or an argument isn't what it must be.
    """
    example = "('aquatic mammals', 'trees')"
    checks.names("classes", classes, example)
    checks.require(len(classes) == 2, "classes", f"two names, such as {example}", classes)
    checks.one_of("mark", mark, tuple(_MARKS))
    checks.number("correlation", correlation, "[0, 1]")
    directory = None if data_dir is None else os.fspath(data_dir)
    data = cifar100.load(data_dir=directory, seed=seed, **options)
    for name in classes:
        checks.one_of("classes", name, data.task_names)
    tasks = [data.task_names.index(name) for name in classes]
    splits = {}
    for name in ("train", "validation", "test"):
        images = [np.asarray(getattr(data, name).of(task)[0]) for task in tasks]
        splits[name] = np.concatenate(images), np.repeat([0, 1], [len(x) for x in images])
    colours = [lambda images, rng, c=c: _MARKS[mark](images, c) for c in (_RED, _BLUE)]
    return GroupedData(
        **_marked(splits, colours, correlation, np.random.default_rng(seed)),
        class_names=tuple(classes),
        attribute_names=tuple(f"{mark} {colour}" for colour in ("red", "blue")),
        prepare=cifar100.standardise,
    )


def _border(images: np.ndarray, colour: np.ndarray) -> np.ndarray:
    framed = np.empty_like(images)
    framed[:] = colour
    inside = slice(_BORDER_WIDTH, -_BORDER_WIDTH)
    framed[:, inside, inside] = images[:, inside, inside]
    return framed


def _cast(images: np.ndarray, colour: np.ndarray) -> np.ndarray:
    return np.rint((1 - _CAST) * images + _CAST * colour).astype(images.dtype)


_MARKS = {"border": _border, "colour": _cast}


def _marked(
    splits: dict[str, tuple[np.ndarray, np.ndarray]],
    marks: Sequence[Mark],
    correlation: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Splits of images and classes, 0 or 1, as the head of this file says."""
    marked = {}
    for name, (images, classes) in splits.items():
        seen = [np.asarray(mark(images, rng), images.dtype) for mark in marks]
        if name == "train":
            attributes = classes.copy()
            for number in (0, 1):
                members = rng.permutation(np.flatnonzero(classes == number))
                attributes[members[round(correlation * len(members)) :]] = 1 - number
            inputs = np.where(attributes.reshape(-1, *[1] * (images.ndim - 1)), seen[1], seen[0])
        else:
            inputs = np.concatenate(seen)
            attributes = np.repeat([0, 1], len(images))
            classes = np.tile(classes, 2)
        marked[name] = GroupedSplit(inputs, classes.astype(np.int32), attributes.astype(np.int32))
    return marked
