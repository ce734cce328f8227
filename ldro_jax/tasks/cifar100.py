"""CIFAR-100 as twenty tasks: its coarse labels, five classes each, with one shared output layer.

References:
  Krizhevsky, *Learning Multiple Layers of Features from Tiny Images*, 2009; as tasks in Rosenbaum
  et al., *Routing Networks*, ICLR 2018.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldro_jax.runtime import checks, errors
from ldro_jax.tasks import base

# Published means and standard deviations of the channels of the training images, in [0, 1].
_MEAN = (0.5071, 0.4865, 0.4409)
_STD = (0.2673, 0.2564, 0.2762)
_FEATURES = ("coarse_label", "image", "label")


def load(
    *,
    data_dir: str | None = None,
    dataset: str = "cifar100",
    validation_per_class: int = 50,
    max_train_per_class: int | None = None,
    max_test_per_class: int | None = None,
    seed: int = 0,
) -> base.MultitaskData:
    """Loads CIFAR-100 from a TFDS directory; downloads nothing.

    Args:
      data_dir: the directory that TFDS prepared the data in, the one that holds ``cifar100/``; by
        default TFDS's own (``TFDS_DATA_DIR``, or ``~/tensorflow_datasets``).
      dataset: name of a TFDS data set with the features ``image``, ``label`` and ``coarse_label``.
      validation_per_class: images of each class that are held out of train to choose by.
      max_train_per_class: keep only so many of each class for training, to try things out.
      max_test_per_class: the same for test (and validation).
      seed: of the choice of the validation images.

    Returns:
      The :class:`~ldro_jax.tasks.base.MultitaskData`; images stay uint8 ``[E, 32, 32, 3]``
      until a batch is standardised.

    Raises:
      ImportError: if TFDS is not installed.
      FileNotFoundError: if the data set is not there.
      ValueError: if it can't be read, is not complete, or has no coarse labels, or if an argument
        is not what it must be.
    """
    checks.text("dataset", dataset)
    checks.integer("validation_per_class", validation_per_class)
    limits: dict[str, Any] = {
        "max_train_per_class": max_train_per_class,
        "max_test_per_class": max_test_per_class,
    }
    for name, value in limits.items():
        if value is not None:
            checks.integer(name, value)
    checks.seed("seed", seed)
    arrays = _read(dataset, data_dir)
    return from_arrays(**arrays, validation_per_class=validation_per_class, **limits, seed=seed)


def from_arrays(
    train: dict[str, np.ndarray],
    test: dict[str, np.ndarray],
    *,
    task_names: tuple[str, ...],
    num_classes: int,
    validation_per_class: int,
    max_train_per_class: int | None = None,
    max_test_per_class: int | None = None,
    seed: int = 0,
) -> base.MultitaskData:
    """Divides labelled images into tasks and splits; the options are those of :func:`load`.

    Train and test are ``image`` uint8 ``[example, 32, 32, 3]``, and ``label`` and ``coarse_label``
    ``[example]``. The names are those of the coarse labels, the classes the fine ones.

    Raises:
      ValueError: if a class has too few images, or belongs to two tasks.
    """
    task_of = np.full(num_classes, -1)
    for part in (train, test):
        task_of[part["label"]] = part["coarse_label"]
    for part in (train, test):
        if (task_of[part["label"]] != part["coarse_label"]).any():
            raise ValueError("Every class must belong to one task, but one has two coarse labels.")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(train["label"]))
    held_out, kept = [], []
    for label in range(num_classes):
        members = order[train["label"][order] == label]
        if len(members) <= validation_per_class or validation_per_class < 1:
            raise ValueError(
                f"validation_per_class must be from 1 to {len(members) - 1}, since class {label} "
                f"has {len(members)} training images, but it is {validation_per_class}."
            )
        held_out.append(members[:validation_per_class][:max_test_per_class])
        kept.append(members[validation_per_class:][:max_train_per_class])
    tested = [np.flatnonzero(test["label"] == c)[:max_test_per_class] for c in range(num_classes)]
    return base.MultitaskData(
        task_names=task_names,
        num_classes=num_classes,
        train=_split(train, np.concatenate(kept), len(task_names)),
        validation=_split(train, np.concatenate(held_out), len(task_names)),
        test=_split(test, np.concatenate(tested), len(task_names)),
        prepare=standardise,
        task_classes=task_of == np.arange(len(task_names))[:, None],
    )


def standardise(
    images: jax.Array, *, mean: tuple[float, ...] = _MEAN, std: tuple[float, ...] = _STD
) -> jax.Array:
    """Shifts and scales uint8 ``[..., 3]`` by the channels' published statistics, to float32."""
    shift, scale = (
        jnp.array(values, jnp.float32).reshape((1,) * (images.ndim - 1) + (3,))
        for values in (mean, std)
    )
    return (images.astype(jnp.float32) / 255 - shift) / scale


def _split(part: dict[str, np.ndarray], chosen: np.ndarray, num_tasks: int) -> base.Split:
    members = [chosen[part["coarse_label"][chosen] == task] for task in range(num_tasks)]
    return base.Split.join(
        (part["image"][rows].astype(np.uint8), part["label"][rows].astype(np.int32))
        for rows in members
    )


def _read(dataset: str, data_dir: str | None) -> dict[str, Any]:
    """Images, labels, names and number of classes, as :func:`from_arrays` takes them."""
    builder = _open(dataset, data_dir)
    features = builder.info.features
    names = tuple(name.replace("_", " ") for name in features["coarse_label"].names)
    return {
        **{split: _read_split(builder, dataset, split, data_dir) for split in ("train", "test")},
        "task_names": names,
        "num_classes": features["label"].num_classes,
    }


def _open(dataset: str, data_dir: str | None) -> Any:
    """The TFDS builder of a data set that has what is needed."""
    try:
        import tensorflow_datasets as tfds
    except ImportError as error:
        raise ImportError(
            "CIFAR-100 is read with TensorFlow Datasets: pip install 'ldro-jax[vision]'."
        ) from error
    try:
        builder: Any = tfds.builder(dataset, data_dir=data_dir)
        features, splits = set(builder.info.features or ()), builder.info.splits
    # TFDS has errors of its own for each way in which a directory can be wrong.
    except Exception as error:
        where = f" in {data_dir}" if data_dir else ""
        raise FileNotFoundError(
            f"TFDS can't open the data set {dataset}{where} ({errors.first_line(error)}). "
            f"{_how(data_dir)}"
        ) from error
    if not features.issuperset(_FEATURES):
        raise ValueError(
            f"The tasks are the coarse labels, so the data set needs the features "
            f"{', '.join(_FEATURES)}, but {dataset} has {', '.join(sorted(features))}."
        )
    if not {"train", "test"} <= set(splits):
        raise FileNotFoundError(
            f"Expected {dataset} with the splits train and test under {builder.data_path}, but "
            f"found {', '.join(splits) or 'nothing'} there. {_how(data_dir)}"
        )
    return builder


def _read_split(
    builder: Any, dataset: str, split: str, data_dir: str | None
) -> dict[str, np.ndarray]:
    where = f"The {split} split of {dataset} under {builder.data_path}"
    try:
        examples = builder.as_dataset(split=split, batch_size=-1)
        arrays = {name: np.asarray(examples[name]) for name in _FEATURES}
    except Exception as error:
        raise ValueError(
            f"{where} can't be read ({errors.first_line(error)}). Is a file cut off? "
            f"{_how(data_dir)}"
        ) from error
    read, expected = len(arrays["label"]), builder.info.splits[split].num_examples
    if read != expected:
        raise ValueError(
            f"{where} should have {expected} examples, but {read} were read. {_how(data_dir)}"
        )
    return arrays


def _how(data_dir: str | None) -> str:
    argument = f", data_dir={data_dir!r}" if data_dir else ""
    return (
        'Prepare it (170 MB) with: python -c "import tensorflow_datasets as tfds; '
        f"tfds.load('cifar100'{argument})\", or pass --data_dir, the directory that holds "
        "cifar100/."
    )
