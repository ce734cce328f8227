"""CIFAR-100 as twenty tasks: every image keeps its label, its task and its split."""

import pathlib
import shutil
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldro_jax.tasks import cifar100

# Four tasks of three classes, whose numbers are not in the order of the tasks.
NUM_TASKS, CLASSES_PER_TASK = 4, 3
NUM_CLASSES = NUM_TASKS * CLASSES_PER_TASK
TASK_OF = np.array([2, 0, 3, 1, 1, 0, 2, 3, 3, 2, 1, 0])
NAMES = ("birds", "fish", "trees", "cars")
PER_CLASS = {"train": 10, "test": 6}
VALIDATION = 3


def labelled(split):
    """Images of random bytes, with the class in one and a number of their own in two others."""
    generator = np.random.default_rng(len(split))
    label = generator.permutation(np.repeat(np.arange(NUM_CLASSES), PER_CLASS[split]))
    image = generator.integers(0, 256, (len(label), 8, 8, 3)).astype(np.uint8)
    image[:, 0, 0, 0] = label
    image[:, 0, 0, 1] = np.arange(len(label))
    image[:, 0, 0, 2] = split == "test"
    return {"image": image, "label": label, "coarse_label": TASK_OF[label]}


def from_arrays(train=None, test=None, **options):
    return cifar100.from_arrays(
        labelled("train") if train is None else train,
        labelled("test") if test is None else test,
        task_names=NAMES,
        num_classes=NUM_CLASSES,
        **{"validation_per_class": VALIDATION, **options},
    )


def rows(split):
    """Task, image and label of every example."""
    for task in range(len(split.sizes)):
        for image, label in zip(*split.of(task), strict=True):
            yield task, image, int(label)


def splits(data):
    return {"train": data.train, "validation": data.validation, "test": data.test}


def assert_right(data, per_class):
    """Images as they were, in the right task and split, and so many of each class."""
    sources = {name: labelled(name)["image"] for name in PER_CLASS}
    seen = set()
    for name, split in splits(data).items():
        assert split.inputs.dtype == np.uint8
        assert split.targets.dtype == split.sizes.dtype == np.int32
        source = "test" if name == "test" else "train"
        counts = np.zeros(NUM_CLASSES, int)
        for task, image, label in rows(split):
            assert image[0, 0, 0] == label and TASK_OF[label] == task
            number = int(image[0, 0, 1])
            np.testing.assert_array_equal(image, sources[source][number])
            assert (source, number) not in seen
            seen.add((source, number))
            counts[label] += 1
        assert (counts == per_class[name]).all()
        assert (split.sizes == CLASSES_PER_TASK * per_class[name]).all()
    return seen


def test_every_image_keeps_its_label_task_and_split():
    data = from_arrays()
    assert data.task_names == NAMES and data.num_classes == NUM_CLASSES
    # All of them, once.
    assert len(assert_right(data, {"train": 7, "validation": 3, "test": 6})) == 12 * 16


def test_limits_keep_so_many_of_each_class():
    data = from_arrays(max_train_per_class=4, max_test_per_class=2)
    assert_right(data, {"train": 4, "validation": 2, "test": 2})


def test_limits_beyond_the_data_change_nothing():
    data = from_arrays(max_train_per_class=100, max_test_per_class=100)
    assert_right(data, {"train": 7, "validation": 3, "test": 6})


def test_limits_do_not_move_an_image_between_splits():
    whole, limited = from_arrays(), from_arrays(max_train_per_class=4, max_test_per_class=2)
    for name, split in splits(limited).items():
        images = {image.tobytes() for _, image, _ in rows(split)}
        assert images <= {image.tobytes() for _, image, _ in rows(splits(whole)[name])}


def test_the_seed_chooses_the_validation_images():
    chosen = []
    for seed in (0, 0, 1):
        validation = from_arrays(seed=seed).validation
        chosen.append({image.tobytes() for _, image, _ in rows(validation)})
    assert chosen[0] == chosen[1] != chosen[2]


def test_each_class_is_its_tasks():
    classes = from_arrays().task_classes
    assert classes.dtype == bool and classes.shape == (NUM_TASKS, NUM_CLASSES)
    expected = np.zeros((NUM_TASKS, NUM_CLASSES), bool)
    for label, task in enumerate(TASK_OF):
        expected[task, label] = True
    np.testing.assert_array_equal(classes, expected)


def test_tasks_may_differ_in_size():
    # A test set that lost one image of class 4, of task 1.
    test = labelled("test")
    gone = np.flatnonzero(test["label"] == 4)[0]
    data = from_arrays(test={name: np.delete(values, gone, 0) for name, values in test.items()})
    assert data.test.sizes.tolist() == [18, 17, 18, 18]
    assert all(TASK_OF[label] == task for task, _, label in rows(data.test))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_in_two_tasks_is_an_error(split):
    parts = {name: labelled(name) for name in PER_CLASS}
    coarse = parts[split]["coarse_label"] = parts[split]["coarse_label"].copy()
    coarse[0] = (coarse[0] + 1) % NUM_TASKS
    with pytest.raises(ValueError, match="must belong to one task, but one has two coarse labels"):
        from_arrays(**parts)


@pytest.mark.parametrize("wrong", [0, -1, 10, 11])
def test_validation_must_leave_images_to_train_on(wrong):
    message = f"must be from 1 to 9, since class 0 has 10 training images, but it is {wrong}"
    with pytest.raises(ValueError, match=message):
        from_arrays(validation_per_class=wrong)


def test_images_are_standardised_by_channel():
    images = np.stack([np.zeros((2, 2, 3)), np.full((2, 2, 3), 255)]).astype(np.uint8)
    found = jax.jit(from_arrays().prepare)(jnp.asarray(images))
    assert found.dtype == np.float32 and found.shape == images.shape
    mean, std = np.array([0.5071, 0.4865, 0.4409]), np.array([0.2673, 0.2564, 0.2762])
    np.testing.assert_allclose(found[0, 0, 0], -mean / std, rtol=1e-5)
    np.testing.assert_allclose(found[1, 1, 1], (1 - mean) / std, rtol=1e-5)


class Features(dict):
    """Features as TFDS describes them."""

    def __init__(self, *left_out):
        names = [name.replace(" ", "_") for name in ("sea birds", "fish", "trees", "cars")]
        everything = {
            "image": None,
            "label": types.SimpleNamespace(num_classes=NUM_CLASSES),
            "coarse_label": types.SimpleNamespace(names=names),
        }
        super().__init__({k: v for k, v in everything.items() if k not in left_out})


class Builder:
    """Stands in for a TFDS builder, whose import takes longer than all these tests."""

    data_path = "/somewhere/cifar100/3.0.2"

    def __init__(self, features=None, *, promised=None, fails=None, left_out=()):
        promised = promised or {name: n * NUM_CLASSES for name, n in PER_CLASS.items()}
        splits = {
            name: types.SimpleNamespace(num_examples=n)
            for name, n in promised.items()
            if name not in left_out
        }
        self.info = types.SimpleNamespace(features=features or Features(), splits=splits)
        self._fails = fails

    def as_dataset(self, *, split, batch_size):
        assert batch_size == -1
        if split == self._fails:
            raise RuntimeError("corrupted record at 12345\nand a long trace")
        return {**labelled(split), "id": np.zeros(3)}


def load(monkeypatch, builder, **options):
    """Loads with a TFDS that has one builder, or raises an error of its own."""
    asked = []

    def make(name, *, data_dir):
        asked.append((name, data_dir))
        if isinstance(builder, Exception):
            raise builder
        return builder

    monkeypatch.setitem(sys.modules, "tensorflow_datasets", types.SimpleNamespace(builder=make))
    data = cifar100.load(**{"validation_per_class": VALIDATION, **options})
    return data, asked


def test_load_reads_what_tfds_has(monkeypatch):
    data, asked = load(monkeypatch, Builder(), data_dir="/somewhere", dataset="tiny", seed=4)
    assert asked == [("tiny", "/somewhere")]
    assert data.task_names == ("sea birds", "fish", "trees", "cars")
    expected = from_arrays(seed=4)
    for name, split in splits(data).items():
        for ours, theirs in zip(split, splits(expected)[name], strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize(
    ("builder", "error", "message"),
    [
        (
            LookupError("no such data set\nor so"),
            FileNotFoundError,
            r"can't open the data set cifar100 in /d \(no such data set\)\. Prepare it .*"
            r"tfds\.load\('cifar100', data_dir='/d'\).*--data_dir",
        ),
        (KeyError(), FileNotFoundError, r"can't open the data set cifar100 in /d \(KeyError\)"),
        (
            Builder(Features("coarse_label")),
            ValueError,
            "needs the features coarse_label, image, label, but cifar100 has image, label",
        ),
        (Builder(left_out={"test"}), FileNotFoundError, "splits train and test.*but found train"),
        (Builder(left_out={"train", "test"}), FileNotFoundError, "3.0.2, but found nothing there"),
        (
            Builder(fails="train"),
            ValueError,
            r"train split .*can't be read \(corrupted record at 12345\)\. Is a file cut off\?",
        ),
        (Builder(fails="test"), ValueError, "test split .*can't be read"),
        (
            Builder(promised={"train": 121, "test": 72}),
            ValueError,
            "train split .*should have 121 examples, but 120 were read",
        ),
        (
            Builder(promised={"train": 120, "test": 73}),
            ValueError,
            "test split .*should have 73 examples, but 72 were read",
        ),
    ],
)
def test_what_can_not_be_used_is_explained(monkeypatch, builder, error, message):
    with pytest.raises(error, match=message):
        load(monkeypatch, builder, data_dir="/d")


def test_without_tfds_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_datasets", None)
    with pytest.raises(ImportError, match=r"pip install 'ldro-jax\[vision\]'"):
        cifar100.load()


# The real data, where someone has put it beside the repository.
REAL = pathlib.Path(__file__).parents[2].parent / "shared/data/tfds"


@pytest.fixture
def real():
    if not (REAL / "cifar100").is_dir():
        pytest.skip(f"no CIFAR-100 in {REAL}")
    pytest.importorskip("tensorflow_datasets")
    return REAL


@pytest.mark.heavy
@pytest.mark.filterwarnings("ignore")
def test_the_real_data(real):
    data = cifar100.load(data_dir=str(real))
    assert data.num_tasks == 20 and data.num_classes == 100
    assert (data.task_names[0], data.task_names[-1]) == ("aquatic mammals", "vehicles 2")
    assert "large carnivores" in data.task_names
    for split, size in [(data.train, 2250), (data.validation, 250), (data.test, 500)]:
        assert split.inputs.shape == (20 * size, 32, 32, 3) and split.inputs.dtype == np.uint8
        assert (split.sizes == size).all()
        for task in range(20):
            labels, counts = np.unique(split.of(task)[1], return_counts=True)
            assert len(labels) == 5 and (counts == size // 5).all()
            assert data.task_classes[task, labels].all()
    assert (data.task_classes.sum(axis=0) == 1).all() and (data.task_classes.sum(axis=1) == 5).all()
    # The published statistics are those of train and validation together.
    images = np.concatenate([data.train.inputs, data.validation.inputs])
    means = images.mean(axis=(0, 1, 2)) / 255
    np.testing.assert_allclose(means, [0.5071, 0.4865, 0.4409], atol=2e-4)


def copy_of(real, target, **tails):
    """The data set again, but of each file named (by its split) only some first bytes."""
    (version,) = (real / "cifar100").iterdir()
    copied = target / "cifar100" / version.name
    copied.mkdir(parents=True)
    for path in version.iterdir():
        cut = next((n for split, n in tails.items() if f"-{split}." in path.name), None)
        if cut is not None:
            with path.open("rb") as file:
                (copied / path.name).write_bytes(file.read(cut))
        elif path.suffix in (".json", ".txt"):
            shutil.copy(path, copied)
    return str(target)


@pytest.mark.filterwarnings("ignore")
def test_real_files_that_are_cut_off_or_missing(real, tmp_path):
    cut_off = copy_of(real, tmp_path / "cut off", train=100_000, test=100_000)
    with pytest.raises(ValueError, match="train split of cifar100 .*can't be read .*cut off"):
        cifar100.load(data_dir=cut_off)
    with pytest.raises(ValueError, match="train split of cifar100"):
        cifar100.load(data_dir=copy_of(real, tmp_path / "no records"))
    with pytest.raises(FileNotFoundError, match=r"found nothing.*Prepare it"):
        cifar100.load(data_dir=str(tmp_path / "nothing"))
