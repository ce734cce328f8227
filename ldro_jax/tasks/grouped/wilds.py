"""Waterbirds, CelebA and CivilComments, from directories as WILDS lays them out.

Each is read from ``data_dir``, the root that WILDS downloads to; nothing is downloaded here. The
splits are the published ones. In Waterbirds' validation and test the backgrounds are independent
of the birds, which they are not in training; the splits of the other two are alike. Pictures stay
bytes until a batch is standardised, 3 · size² of them each. ``share`` takes fewer examples, of all
groups alike: a limit for each group would balance them.

References:
  Koh et al., *WILDS: A Benchmark of in-the-Wild Distribution Shifts*, ICML 2021.
  Sagawa et al., *Distributionally Robust Neural Networks for Group Shifts*, ICLR 2020 (Waterbirds,
    and the groups of CelebA).
  Liu et al., *Deep Learning Face Attributes in the Wild*, ICCV 2015 (CelebA).
  Borkan et al., *Nuanced Metrics for Measuring Unintended Bias with Real Data for Text
    Classification*, WWW 2019 (CivilComments).
"""

import itertools
import math
import os
import pathlib
import re
import zlib
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

import jax
import numpy as np

from ldro_jax.runtime import checks, errors
from ldro_jax.tasks import cifar100, csv_files
from ldro_jax.tasks.grouped.base import SPLITS, EvaluationGroups, GroupedData, GroupedSplit

# ImageNet's, with which the papers standardise, in [0, 1].
_MEAN = (0.485, 0.456, 0.406)
_STD = (0.229, 0.224, 0.225)
# What a picture is resized to before its middle is cut out, over what is cut out.
_MARGIN = 256 / 224
# The side of the square in the middle of a picture of CelebA, which has 218 x 178 pixels.
_FACE = 178
_IDENTITIES = (
    *("male", "female", "LGBTQ", "christian", "muslim", "other_religions", "black", "white"),
)
# Pillow's number of the bilinear filter, which the papers resize with.
_BILINEAR = 2
# Words, and each sign that is neither in one nor a space.
_WORD = re.compile(r"\w+|[^\w\s]")


def waterbirds(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    size: int = 224,
    share: float = 1.0,
    seed: int = 0,
) -> GroupedData:
    """Land birds and water birds, cut out and put before land or water: 11,788 pictures.

    A picture is resized to a square of 256/224 of ``size``, and the middle is taken, as in the
    papers. All of them take 1.8 GB at 224 pixels and 145 MB at 64.

    Args:
      data_dir: holds ``waterbirds_v1.0/`` with ``metadata.csv`` and the pictures.
      size: pixels of a side.
      share: of the examples of each group and split to take, at least one.
      seed: of which these are.

    Returns:
      The :class:`GroupedData`, with inputs uint8 ``[E, size, size, 3]``.

    Raises:
      FileNotFoundError: if a file isn't there.
      ImportError: if pandas or Pillow isn't installed.
      ValueError: if a file holds something else, or an argument isn't what it must be.
    """
    _check(share, seed, size=size)
    folder, how = "waterbirds_v1.0", _how("Waterbirds", "waterbirds_v1.0")
    columns = ("img_filename", "y", "split", "place")
    table = csv_files.read(data_dir, f"{folder}/metadata.csv", columns, how=how)
    ids = [_codes(table, column, (0, 1), how) for column in ("y", "place")]
    parts = _parts(_codes(table, "split", (0, 1, 2), how), ids, share, seed, how)
    margin = round(size * _MARGIN)
    crop = _middle((margin, margin), size)
    return _pictures(
        pathlib.Path(data_dir or "").expanduser() / folder,
        table["img_filename"],
        parts,
        ids,
        size,
        lambda picture: picture.resize((margin, margin), _BILINEAR).crop(crop),
        how,
        class_names=("landbird", "waterbird"),
        attribute_names=("land", "water"),
        between=" on ",
    )


def celeba(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    size: int = 224,
    share: float = 1.0,
    seed: int = 0,
) -> GroupedData:
    """Whether hair is blond, in 202,599 portraits of women and men.

    The middle 178 × 178 pixels are resized, as Sagawa and Idrissi do. All of them take 30 GB at 224
    pixels and 2.5 GB at 64; 0.1 of them at 64 pixels take 250 MB.

    Args:
      data_dir: holds ``celebA_v1.0/`` with ``list_attr_celeba.csv``, ``list_eval_partition.csv``
        and ``img_align_celeba/``.
      size: pixels of a side.
      share: of the examples of each group and split to take, at least one.
      seed: of which these are.

    Returns:
      The :class:`GroupedData`, with inputs uint8 ``[E, size, size, 3]``.

    Raises:
      FileNotFoundError: if a file isn't there.
      ImportError: if pandas or Pillow isn't installed.
      ValueError: if a file holds something else, or an argument isn't what it must be.
    """
    _check(share, seed, size=size)
    folder, how = "celebA_v1.0", _how("CelebA", "celebA_v1.0")
    columns = ("image_id", "Blond_Hair", "Male")
    table = csv_files.read(data_dir, f"{folder}/list_attr_celeba.csv", columns, how=how)
    columns = ("image_id", "partition")
    partition = csv_files.read(data_dir, f"{folder}/list_eval_partition.csv", columns, how=how)
    if table["image_id"].tolist() != partition["image_id"].tolist():
        raise ValueError(
            f"list_attr_celeba.csv and list_eval_partition.csv must have the same pictures in the "
            f"same order, but they differ. {how}"
        )
    ids = [_codes(table, column, (-1, 1), how) for column in ("Blond_Hair", "Male")]
    parts = _parts(_codes(partition, "partition", (0, 1, 2), how), ids, share, seed, how)
    return _pictures(
        pathlib.Path(data_dir or "").expanduser() / folder / "img_align_celeba",
        table["image_id"],
        parts,
        ids,
        size,
        lambda picture: picture.crop(_middle(picture.size, _FACE)).resize((size, size), _BILINEAR),
        how,
        class_names=("not blond", "blond"),
        attribute_names=("female", "male"),
    )


def civilcomments(
    *,
    data_dir: str | os.PathLike[str] | None = None,
    length: int = 128,
    vocabulary_size: int = 32_768,
    share: float = 1.0,
    seed: int = 0,
) -> GroupedData:
    """Whether a comment is toxic, in 448,000 comments, some of which mention people of some kind.

    The attribute to train with is whether any of eight identities is mentioned, which makes four
    groups. Those to evaluate are sixteen, toxic or not with each identity, and overlap; a comment
    that mentions none is in none. A comment is toxic, or mentions an identity, if at least half of
    those who read it said so.

    A comment is its first words, in lower case, each sign a word of its own, and a word is the
    CRC-32 of its UTF-8 bytes modulo ``vocabulary_size - 1``, plus 1, so that no vocabulary is
    needed and two words may share a number. The rest is 0. All of them take 229 MB at 128 words.

    Args:
      data_dir: holds ``civilcomments_v1.0/`` with ``all_data_with_identities.csv``.
      length: words of a comment.
      vocabulary_size: numbers that a word may have, with 0.
      share: of the examples of each group to train with and split to take, at least one.
      seed: of which these are.

    Returns:
      The :class:`GroupedData`, with inputs int32 ``[E, length]``.

    Raises:
      FileNotFoundError: if the file isn't there.
      ImportError: if pandas isn't installed.
      ValueError: if it holds something else, or an argument isn't what it must be.
    """
    _check(share, seed, length=length)
    checks.integer("vocabulary_size", vocabulary_size, low=2, high=2**31 - 1)
    folder, how = "civilcomments_v1.0", _how("CivilComments", "civilcomments_v1.0")
    columns = ("comment_text", "split", "toxicity", *_IDENTITIES)
    name = f"{folder}/all_data_with_identities.csv"
    table = csv_files.read(data_dir, name, columns, how=how)
    toxic: np.ndarray = csv_files.numbers(table, ["toxicity"], how=how)[:, 0] >= 0.5
    # WILDS takes one that nobody was asked about for one that isn't mentioned.
    asked = table[list(_IDENTITIES)].fillna(0)
    mentions: np.ndarray = csv_files.numbers(asked, _IDENTITIES, how=how) >= 0.5
    classes = toxic.astype(np.int32)
    attributes = np.asarray(mentions.any(axis=1), np.int32)
    parts = _parts(
        _codes(table, "split", ("train", "val", "test"), how),
        [classes, attributes],
        share,
        seed,
        how,
    )
    texts = np.asarray(table["comment_text"].fillna("").astype(str), object)
    splits: dict[str, Any] = {
        split: GroupedSplit(
            _hashed(texts[rows], length, vocabulary_size), classes[rows], attributes[rows]
        )
        for split, rows in parts.items()
    }
    names = ("not toxic", "toxic")
    return GroupedData(
        **splits,
        class_names=names,
        attribute_names=("no identity", "an identity"),
        evaluation=EvaluationGroups(
            tuple(
                f"{name}, {identity.replace('_', ' ')}"
                for name, identity in itertools.product(names, _IDENTITIES)
            ),
            **{
                split: np.concatenate([mentions[rows].T & (toxic[rows] == y) for y in (0, 1)])
                for split, rows in parts.items()
            },
        ),
    )


def standardise(images: jax.Array) -> jax.Array:
    """Shifts and scales uint8 ``[..., 3]`` by ImageNet's statistics, to float32."""
    return cifar100.standardise(images, mean=_MEAN, std=_STD)


def _check(share: float, seed: int, **sizes: int) -> None:
    for name, value in sizes.items():
        checks.integer(name, value)
    checks.number("share", share, "(0, 1]")
    checks.seed("seed", seed)


def _how(name: str, folder: str) -> str:
    return (
        f"data_dir must hold {folder}/ as WILDS's own package leaves it; pip install wilds, and "
        f"have it download {name}."
    )


def _codes(table: Any, column: str, values: Sequence[Any], how: str) -> np.ndarray:
    """Which of these values each row has in a column, int32 ``[row]``."""
    found = table[column].to_numpy()
    codes = np.full(len(found), -1, np.int32)
    for code, value in enumerate(values):
        codes[found == value] = code
    if (codes < 0).any():
        raise ValueError(
            f"The column {column} must hold {', '.join(map(str, values))}, but it holds "
            f"{found[codes < 0][0]}. {how}"
        )
    return codes


def _parts(splits, ids, share, seed, how) -> dict[str, np.ndarray]:
    """Which rows each split takes: a share of those of each class and attribute."""
    classes, attributes = ids
    rng = np.random.default_rng(seed)
    parts = {}
    for number, name in enumerate(SPLITS):
        rows = np.flatnonzero(splits == number)
        if not len(rows):
            raise ValueError(f"There must be {name} examples, but there are none. {how}")
        if share < 1:
            groups = classes[rows] * 2 + attributes[rows]
            members = [rng.permutation(rows[groups == group]) for group in np.unique(groups)]
            rows = np.sort(np.concatenate([x[: math.ceil(share * len(x))] for x in members]))
        parts[name] = rows
    return parts


def _pictures(
    folder: pathlib.Path,
    names: Any,
    parts: dict[str, np.ndarray],
    ids: Sequence[np.ndarray],
    size: int,
    fit: Callable[[Any], Any],
    how: str,
    **fields: Any,
) -> GroupedData:
    """Reads the pictures of each split; ``fit`` makes a square of this size of one of Pillow's."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError(
            "Pictures are read with Pillow: pip install 'ldro-jax[trainer]'."
        ) from error

    def read(name: str) -> np.ndarray:
        try:
            with Image.open(folder / name) as picture:
                return np.asarray(fit(picture.convert("RGB")))
        except FileNotFoundError as error:
            raise FileNotFoundError(f"There is no file {folder / name}. {how}") from error
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(
                f"{folder / name} can't be read ({errors.first_line(error)}). {how}"
            ) from error

    classes, attributes = ids
    splits: dict[str, Any] = {}
    with futures.ThreadPoolExecutor() as pool:
        for split, rows in parts.items():
            images = np.empty((len(rows), size, size, 3), np.uint8)
            pictures = pool.map(read, names.iloc[rows].astype(str))
            for image, found in zip(images, pictures, strict=True):
                image[:] = found
            splits[split] = GroupedSplit(images, classes[rows], attributes[rows])
    return GroupedData(**splits, prepare=standardise, **fields)


def _middle(sides: tuple[int, int], side: int) -> tuple[int, int, int, int]:
    """The square of this side in the middle, as Pillow crops."""
    left, top = ((long - side) // 2 for long in sides)
    return left, top, left + side, top + side


def _hashed(texts: np.ndarray, length: int, vocabulary_size: int) -> np.ndarray:
    words = np.zeros((len(texts), length), np.int32)
    for row, text in zip(words, texts, strict=True):
        found = itertools.islice(_WORD.finditer(text.lower()), length)
        hashes = [zlib.crc32(match.group().encode()) % (vocabulary_size - 1) + 1 for match in found]
        row[: len(hashes)] = hashes
    return words
