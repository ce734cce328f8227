"""Data with groups: who is in which, what hides them, and what each data set holds."""

import dataclasses
import itertools
import os
import zlib

import numpy as np
import pandas as pd
import pytest
from helpers import public_files

from ldro_jax.tasks import cifar100, digits, grouped
from ldro_jax.tasks.grouped import census

image_lib = pytest.importorskip("PIL.Image")
datasets = pytest.importorskip("sklearn.datasets")
linear_model = pytest.importorskip("sklearn.linear_model")

_GIVEN = "LDRO_JAX_PUBLIC_DATA"
SPLITS = ("train", "validation", "test")


def split(classes, attributes):
    inputs = np.arange(3 * len(classes), dtype=np.float32).reshape(-1, 3)
    return grouped.GroupedSplit(inputs, np.int32(classes), np.int32(attributes))


def small(**changes):
    """Two classes, three attributes; no red cat is trained on."""
    fields = {
        "train": split([0, 0, 1, 1, 1], [1, 2, 0, -1, 2]),
        "validation": split([1, 0], [-1, 0]),
        "test": split([0, 1, 1, 0], [0, 0, 2, 0]),
        "class_names": ("cat", "dog"),
        "attribute_names": ("red", "green", "blue"),
    }
    return grouped.GroupedData(**{**fields, **changes})


def evaluation(data, **changes):
    """Cats; and every second example."""
    members = {}
    for name in SPLITS:
        classes = getattr(data, name).classes
        members[name] = np.stack([classes == 0, np.arange(len(classes)) % 2 == 0])
    return grouped.EvaluationGroups(**{"names": ("a cat", "even"), **members, **changes})


def assert_same(one, other):
    for name in SPLITS:
        for ours, theirs in zip(getattr(one, name), getattr(other, name), strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_groups_are_classes_times_attributes():
    data = small(between=" in ")
    assert data.group_names[1] == "cat in green" and data.group_names[3] == "dog in red"
    assert data.evaluation_names == data.group_names and len(data.group_names) == 6
    assert data.groups("train").tolist() == [1, 2, 3, -1, 5]
    assert data.groups("train").dtype == np.int32
    # An empty group is there, and so is one whose examples are in test alone.
    assert data.counts("train").tolist() == [0, 1, 1, 1, 0, 1]
    assert data.counts("test").tolist() == [2, 0, 0, 1, 0, 1]
    members = data.members("train")
    assert members.shape == (6, 5) and members.dtype == bool
    for group, (label, attribute) in enumerate(itertools.product(range(2), range(3))):
        expected = (data.train.classes == label) & (data.train.attributes == attribute)
        np.testing.assert_array_equal(members[group], expected)


def test_groups_to_evaluate_may_overlap():
    data = small()
    data = dataclasses.replace(data, evaluation=evaluation(data))
    assert data.evaluation_names == ("a cat", "even") and len(data.group_names) == 6
    found = data.members("test").tolist()
    assert found == [[True, False, False, True], [True, False, True, False]]
    # What trains is as it was.
    assert data.groups("train").tolist() == [1, 2, 3, -1, 5]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"train": split([0, 2], [0, 0])}, "train.classes must be from 0 to 1, .* 2 names, but"),
        ({"train": split([0, -1], [0, 0])}, "train.classes must be from 0 to 1.*from -1 to 0"),
        (
            {"validation": split([0, 1], [0, 3])},
            "validation.attributes must be from 0 to 2, .*or -1 where it isn't known.*from 0 to 3",
        ),
        ({"test": split([0, 1], [0, 3])}, "test.attributes must be from 0 to 2, .*from 0 to 3"),
        ({"test": split([0, 1], [0, -1])}, "test.attributes must be from 0 to 2, .*from -1 to 0"),
        ({"train": split([0, 1], [0])}, r"train must hold .* shapes are \(2, 3\), \(2,\) and \(1,"),
        ({"test": split([], [])}, "test must hold .* at least one"),
        ({"test": ([], [], [])}, "test must be a GroupedSplit"),
        (
            {"train": split([0], [0])._replace(classes=np.zeros(1))},
            "train.classes must be integers",
        ),
        ({"test": split([0], [0])._replace(inputs=np.zeros((1, 4)))}, r"test.inputs .*are \(4,\)"),
        ({"test": split([0], [0])._replace(inputs=np.array(["a"]))}, "test.inputs must be a NumPy"),
        ({"class_names": ("cat", "cat")}, "class_names must be a list of names that all differ"),
        ({"attribute_names": ()}, "attribute_names must be a list of names"),
        ({"between": None}, "between must be a text"),
        ({"shares": np.ones(6)}, "shares must be shares of the 6 groups, which sum to 1"),
        (
            {"evaluation": evaluation(small(), test=np.ones((2, 3), bool))},
            r"evaluation.test must be bool \[2, 4\], \[groups, examples\], but it is bool \[2, 3\]",
        ),
        (
            {"evaluation": evaluation(small(), test=np.ones((2, 4)))},
            r"evaluation.test must be bool \[2, 4\].* is float64 \[2, 4\]",
        ),
    ],
)
def test_what_does_not_fit_is_one_line(change, message):
    with pytest.raises(ValueError, match=message) as caught:
        small(**change)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match="split must be one of 'train', 'validation', 'test'"):
        small().groups("tset")


def test_a_share_of_the_attributes_is_kept():
    data = grouped.toy(200, 0)
    hidden = {share: grouped.hide(data, share, seed=3) for share in (0.0, 0.1, 0.5, 1.0)}
    known = {share: x.train.attributes >= 0 for share, x in hidden.items()}
    assert {share: x.sum() for share, x in known.items()} == {0.0: 0, 0.1: 20, 0.5: 100, 1.0: 200}
    # More are known with a larger share, and what is known is right.
    assert (known[0.1] <= known[0.5]).all()
    right = data.train.attributes[known[0.5]]
    np.testing.assert_array_equal(hidden[0.5].train.attributes[known[0.5]], right)
    assert_same(grouped.hide(data, 0.5, seed=3), hidden[0.5])
    assert (grouped.hide(data, 0.5, seed=4).train.attributes != hidden[0.5].train.attributes).any()
    for name in ("validation", "test"):
        assert getattr(hidden[0.0], name) is getattr(data, name)
    assert_same(grouped.unlabelled(data), hidden[0.0])
    assert (data.train.attributes >= 0).all()

    neither = grouped.unlabelled(data, splits=("train", "validation"))
    assert (neither.validation.attributes == -1).all() and not neither.counts("train").any()
    with pytest.raises(ValueError, match="splits must be one of 'train', 'validation', but"):
        grouped.unlabelled(data, splits=("test",))
    with pytest.raises(ValueError, match=r"share must be a number in \[0, 1\]"):
        grouped.hide(data, 1.5)


def test_as_many_of_each_group_or_class_are_drawn():
    data = grouped.toy(200, 2)
    groups = grouped.subsample(data, seed=1)
    fewest = data.counts("train").min()
    assert groups.counts("train").tolist() == [fewest] * 4 and fewest < 21
    # They are training examples, none of them twice, others with another seed.
    whole = {tuple(x): y for x, y in zip(data.train.inputs, data.train.classes, strict=True)}
    taken = {tuple(x): y for x, y in zip(groups.train.inputs, groups.train.classes, strict=True)}
    assert len(taken) == 4 * fewest and taken.items() <= whole.items()
    assert_same(grouped.subsample(data, seed=1), groups)
    other = grouped.subsample(data, seed=2)
    assert {tuple(x) for x in other.train.inputs} != set(taken)
    # What the average is taken by is still the shares of all of them.
    shares = data.counts("train") / 200
    np.testing.assert_allclose(groups.training_shares, shares)
    rare = grouped.subsample(data, by="classes", seed=1)
    assert np.bincount(rare.train.classes).tolist() == [100, 100]

    known = grouped.subsample(grouped.hide(data, 0.5), seed=1)
    assert (known.train.attributes >= 0).all() and len(set(known.counts("train"))) == 1
    np.testing.assert_allclose(known.training_shares, shares)
    assert small().training_shares is None
    with pytest.raises(
        ValueError, match="each of the groups .* none is known to be of cat, red, do"
    ):
        grouped.subsample(small())
    with pytest.raises(ValueError, match="by must be one of 'groups', 'classes', but it is 'y'"):
        grouped.subsample(data, by="y")


def test_some_examples_are_there_several_times():
    data = small(evaluation=evaluation(small()))
    rows = np.array([False, True, False, False, True])
    more = grouped.upsample(data, rows, 3)
    times = [1, 3, 1, 1, 3]
    for ours, theirs in zip(more.train, data.train, strict=True):
        np.testing.assert_array_equal(ours, np.repeat(theirs, times, axis=0))
    members = np.repeat(data.members("train"), times, axis=1)
    np.testing.assert_array_equal(more.members("train"), members)
    assert more.test is data.test
    for wrong, message in [
        ((rows[:4], 3), r"rows must be bool \[5\], one for each training example"),
        ((rows, 0), "factor must be a positive integer"),
    ]:
        with pytest.raises(ValueError, match=message):
            grouped.upsample(data, *wrong)


def logistic(data, of="test", **options):
    """Average and worst-group accuracy of scikit-learn's model of all rows, or of as many each."""

    def rows(part):
        return part.inputs.reshape(len(part.inputs), -1).astype(np.float64)

    groups, counts = data.groups("train"), data.counts("train")
    few = [np.flatnonzero(groups == g)[: counts.min()] for g in range(len(counts))]
    for chosen in (slice(None), np.concatenate(few)):
        model = linear_model.LogisticRegression(max_iter=500, **options)
        model.fit(rows(data.train)[chosen], data.train.classes[chosen])
        part = getattr(data, of)
        right = model.predict(rows(part)) == part.classes
        yield right.mean(), min(right[members].mean() for members in data.members(of))


def test_the_toy_is_idrissis():
    data = grouped.toy(seed=1)
    scales = np.array([4, 1])
    for name in SPLITS:
        inputs, classes, attributes = getattr(data, name)
        assert inputs.shape == (1000, 1202) and inputs.dtype == np.float32
        y, a = 2 * classes - 1, 2 * attributes - 1
        assert y.sum() == 0 and (y == a).sum() == 800
        blob = inputs[:, :2] / scales * np.stack([a, y], axis=1)
        np.testing.assert_allclose(blob.mean(axis=0), 1, atol=1e-5)
        np.testing.assert_allclose(blob.std(axis=0), 0.15, rtol=0.1)
        assert abs(np.corrcoef(blob.T)[0, 1]) < 0.15
        assert inputs[:, 2:].std() == (pytest.approx(2, rel=0.01) if name == "train" else 0)
    assert not np.array_equal(data.validation.inputs, data.test.inputs)
    assert_same(data, grouped.toy(seed=1))
    assert not np.array_equal(data.train.inputs, grouped.toy(seed=2).train.inputs)
    assert grouped.toy(10, 3, scales=(1, 1, 1)).train.inputs.shape == (10, 5)
    for options, message in (
        ({"num_examples": 9}, "num_examples must be an even number"),
        ({"num_noise": -1}, "num_noise must be an integer of at least 0"),
        ({"scales": (1, 2)}, "scales must be three numbers"),
        ({"scales": (1, 2, 0)}, "scales must be a number"),
        ({"correlation": 2}, "correlation must be a number"),
    ):
        with pytest.raises(ValueError, match=message):
            grouped.toy(**options)


def test_logistic_regression_fails_the_rare_groups_of_the_toy():
    # All rows, and as many of each group.
    (average, worst), (_, balanced) = logistic(grouped.toy(), C=1e-2)
    assert average == pytest.approx(0.8, abs=0.01) and worst < 0.01
    assert balanced > 0.99


def test_digits_are_correlated_in_training_alone():
    data = grouped.spurious_digits(seed=2)
    assert data.group_names == ("even, clean", "even, blurred", "odd, clean", "odd, blurred")
    theirs = datasets.load_digits()
    seen = [
        np.float32(digits.OPTICS[name](np.float32(theirs.images / 16), np.random.default_rng(0)))
        for name in data.attribute_names
    ]
    # Which of scikit-learn's images each is, and how it is seen.
    found = {
        image.tobytes(): (number, attribute)
        for attribute in (0, 1)
        for number, image in enumerate(seen[attribute])
    }
    numbers = {}
    for name, size in zip(SPLITS, (1079, 718, 718), strict=True):
        inputs, classes, attributes = getattr(data, name)
        which = [found[image.tobytes()] for image in inputs]
        assert len(which) == size and inputs.dtype == np.float32
        numbers[name] = [number for number, _ in which]
        assert [attribute for _, attribute in which] == attributes.tolist()
        np.testing.assert_array_equal(theirs.target[numbers[name]] % 2, classes)
        counts = data.counts(name).reshape(2, 2)
        if name == "train":
            sizes = np.bincount(classes)
            np.testing.assert_array_equal(counts.diagonal(), np.rint(0.95 * sizes))
            np.testing.assert_array_equal(counts.sum(axis=1), sizes)
        else:
            np.testing.assert_array_equal(counts[:, 0], counts[:, 1])
            assert sorted(numbers[name][:359]) == sorted(numbers[name][359:])
    for one, other in itertools.combinations(numbers.values(), 2):
        assert not set(one) & set(other)
    assert_same(data, grouped.spurious_digits(seed=2))
    # With correlation 1 two groups are empty.
    assert (grouped.spurious_digits(correlation=1).counts("train") == 0).tolist() == [0, 1, 1, 0]
    with pytest.raises(ValueError, match="optics must be one of 'clean'"):
        grouped.spurious_digits(optics=("clean", "green"))
    with pytest.raises(ValueError, match="optics must be two names"):
        grouped.spurious_digits(optics=("clean",))


def test_logistic_regression_fails_the_rare_groups_of_the_digits():
    (average, worst), (balanced_average, balanced) = logistic(grouped.spurious_digits())
    assert worst < average - 0.2 and balanced > balanced_average - 0.1
    assert balanced > worst + 0.3


def images_of(split, sizes):
    """Images of two tasks of two classes each; a pixel tells the class, a number and the split."""
    label = np.repeat(np.arange(4), sizes)
    image = np.random.default_rng(0).integers(0, 256, (len(label), 32, 32, 3)).astype(np.uint8)
    image[:, 16, 16] = np.stack(
        [60 * label, 2 * np.arange(len(label)), np.full(len(label), 200 * split)], axis=1
    )
    return {"image": image, "label": label, "coarse_label": label // 2}


@pytest.fixture
def cifar(monkeypatch):
    arrays = {"train": images_of(0, 30), "test": images_of(1, 5)}
    given = {**arrays, "task_names": ("fish", "trees"), "num_classes": 4}
    monkeypatch.setattr(cifar100, "_read", lambda dataset, data_dir: given)
    return arrays


@pytest.mark.parametrize("mark", ["border", "colour"])
def test_superclasses_go_with_a_colour(cifar, mark):
    options = {"classes": ("trees", "fish"), "validation_per_class": 10, "mark": mark}
    data = grouped.spurious_cifar100(**options)
    assert data.class_names == ("trees", "fish") and data.attribute_names[0] == f"{mark} red"
    assert data.counts("train").tolist() == [38, 2, 2, 38]
    assert data.counts("validation").tolist() == [20] * 4
    assert data.counts("test").tolist() == [10] * 4
    assert data.prepare is cifar100.standardise
    colours = np.array([[255, 0, 0], [0, 0, 255]])
    seen = {name: set() for name in SPLITS}
    for name in SPLITS:
        for image, label, attribute in zip(*getattr(data, name), strict=True):
            pixel = np.float64(image[16, 16])
            if mark == "colour":
                pixel = (pixel - 0.3 * colours[attribute]) / 0.7
            fine, number, source = np.rint(pixel / (60, 2, 200)).astype(int)
            original = cifar["test" if source else "train"]["image"][number]
            if mark == "border":
                expected = np.tile(colours[attribute], (32, 32, 1))
                expected[3:29, 3:29] = original[3:29, 3:29]
            else:
                expected = 0.7 * original + 0.3 * colours[attribute]
            # Half of what a byte can't hold.
            np.testing.assert_allclose(image, expected, atol=0.5 + 1e-9)
            assert label == (0 if fine >= 2 else 1) and source == (name == "test")
            seen[name].add(int(number))
    assert not seen["train"] & seen["validation"] and len(seen["train"] | seen["validation"]) == 120
    assert_same(data, grouped.spurious_cifar100(**options))


def test_what_cifar100_does_not_have_is_said(cifar):
    with pytest.raises(ValueError, match="classes must be one of 'fish', 'trees', but it is 'cat"):
        grouped.spurious_cifar100(classes=("fish", "cats"), validation_per_class=10)
    with pytest.raises(ValueError, match="classes must be two names"):
        grouped.spurious_cifar100(classes=("fish",))
    with pytest.raises(ValueError, match="mark must be one of 'border', 'colour'"):
        grouped.spurious_cifar100(mark="frame")


def test_adults_are_divided_by_sex_and_race(tmp_path):
    table = public_files.adults()
    # Ages tell the rows apart.
    table["age"] = np.random.default_rng(1).permutation(len(table))
    public_files.write_adults(tmp_path, table)
    data = grouped.adult(data_dir=tmp_path)
    assert data.group_names[0] == "≤50K, female American Indian" and len(data.group_names) == 20
    assert data.group_names[-1] == ">50K, male White"
    counts = np.stack([data.counts(name) for name in SPLITS])
    whole = counts.sum(axis=0)
    assert whole.sum() == 400 and (whole > 4).all()
    # A fifth of each, give or take rounding.
    assert (np.abs(counts - whole * np.array([[0.6], [0.2], [0.2]])) <= 1).all()
    train = data.train.inputs
    np.testing.assert_allclose(train[:, :5].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(train[:, :5].std(axis=0), 1, atol=1e-5)
    assert train.shape[1] == 5 + 5 and set(np.unique(train[:, 5:])) == {0, 1}

    rows = np.concatenate([data.train.inputs, data.validation.inputs, data.test.inputs])
    order = np.argsort(rows[:, 0])
    by_age = table.sort_values("age")
    groups = np.concatenate([data.groups(name) for name in SPLITS])[order]
    sets = [census._INCOME, *census._PROTECTED.values()]
    for number, (income, sex, race) in enumerate(itertools.product(*(x.values() for x in sets))):
        expected = by_age[income] * by_age[sex] * by_age[race] == 1
        np.testing.assert_array_equal(groups == number, expected)
    np.testing.assert_array_equal(rows[order, 9], by_age["relationship_Unmarried"])

    kept = grouped.adult(data_dir=tmp_path, by=("sex",), keep_protected=True)
    assert kept.group_names == ("≤50K, female", "≤50K, male", ">50K, female", ">50K, male")
    assert kept.train.inputs.shape[1] == 10 + 7
    assert_same(data, grouped.adult(data_dir=tmp_path))


def test_what_is_wrong_with_adults_is_one_line(tmp_path):
    def refused(kind, message, **options):
        with pytest.raises(kind, match=message) as caught:
            grouped.adult(data_dir=tmp_path, **options)
        assert "\n" not in str(caught.value)

    refused(FileNotFoundError, "There is no file .*adult.csv.zip. python scripts/public_data.py")
    refused(ValueError, "by must be one of 'sex', 'race', but it is 'age'", by=("age",))
    refused(ValueError, "keep_protected must be True or False", keep_protected=1)
    table = public_files.adults(20)
    public_files.write_adults(tmp_path, table.drop(columns="sex_Male"))
    refused(ValueError, "it lacks sex_Male")
    public_files.write_adults(tmp_path, table.assign(sex_Male=1, sex_Female=1))
    refused(ValueError, "must have a 1 in one of sex_Female, sex_Male and a 0 in the others")
    public_files.write_adults(tmp_path, table.assign(age="old"))
    refused(ValueError, "age, .* must be numbers")
    (tmp_path / "adult.csv.zip").write_bytes(b"PK, but no archive")
    refused(ValueError, "adult.csv.zip can't be read")


@pytest.mark.heavy
@pytest.mark.skipif(
    _GIVEN not in os.environ,
    reason=f"{_GIVEN} doesn't name a directory that scripts/public_data.py made",
)
def test_adult_public_data():
    data = grouped.adult(data_dir=os.environ[_GIVEN])
    sizes = [len(getattr(data, name).inputs) for name in SPLITS]
    assert sum(sizes) == 45_222 and data.train.inputs.shape[1] == 96
    counts = np.stack([data.counts(name) for name in SPLITS])
    assert counts.min() == 2 and counts.sum(axis=0).min() == 9
    assert counts.sum(axis=0)[-1] == 8752


def write_picture(path, pixels):
    """Without loss, whatever its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        image_lib.fromarray(pixels).save(file, format="png")


def write_waterbirds(folder, per_group=3, shape=(256, 256, 3)):
    rng = np.random.default_rng(0)
    root = folder / "waterbirds_v1.0"
    rows, pictures = [], {}
    for part, y, place, i in itertools.product(range(3), range(2), range(2), range(per_group)):
        name = f"{y}.Bird/Bird_{part}{place}{i}.jpg"
        pictures[part, y, place, i] = rng.integers(0, 256, shape).astype(np.uint8)
        write_picture(root / name, pictures[part, y, place, i])
        rows.append({"img_filename": name, "y": y, "split": part, "place": place})
    order = rng.permutation(len(rows))
    table = pd.DataFrame(rows).iloc[order]
    table.insert(0, "img_id", np.arange(1, len(rows) + 1))
    table.to_csv(root / "metadata.csv", index=False)
    return pictures


def assert_pictures(data, expected):
    """That each split has these pictures in each group, by (split, class, attribute, number)."""
    for part, name in enumerate(SPLITS):
        inputs, classes, attributes = getattr(data, name)
        assert inputs.dtype == np.uint8
        found = {(x.tobytes(), y, a) for x, y, a in zip(inputs, classes, attributes, strict=True)}
        whole = {(pixels.tobytes(), y, a) for (p, y, a, _), pixels in expected.items() if p == part}
        assert found == whole and len(inputs) == len(whole)


def test_waterbirds_in_the_layout_of_wilds(tmp_path):
    pictures = write_waterbirds(tmp_path)
    data = grouped.waterbirds(data_dir=tmp_path)
    names = ("landbird on land", "landbird on water", "waterbird on land", "waterbird on water")
    assert data.group_names == names
    # A picture of 256 pixels keeps its size, and the middle 224 are taken.
    assert_pictures(data, {key: x[16:240, 16:240] for key, x in pictures.items()})
    standardised = np.asarray(data.prepare(data.test.inputs[:1]))
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
    expected = (data.test.inputs[:1] / 255 - mean) / std
    np.testing.assert_allclose(standardised, expected, rtol=1e-5, atol=1e-5)

    less = grouped.waterbirds(data_dir=tmp_path, size=7, share=0.5)
    assert less.train.inputs.shape == (8, 7, 7, 3)
    assert all((less.counts(name) == 2).all() for name in SPLITS)
    assert (grouped.waterbirds(data_dir=tmp_path, size=7, share=0.01).counts("test") == 1).all()
    assert_same(less, grouped.waterbirds(data_dir=tmp_path, size=7, share=0.5))


def test_celeba_in_the_layout_of_wilds(tmp_path):
    rng = np.random.default_rng(0)
    root = tmp_path / "celebA_v1.0"
    rows, expected = [], {}
    for part, blond, male in itertools.product(range(3), range(2), range(2)):
        name = f"{len(rows) + 1:06}.jpg"
        pixels = rng.integers(0, 256, (218, 178, 3)).astype(np.uint8)
        write_picture(root / "img_align_celeba" / name, pixels)
        rows.append((name, 2 * blond - 1, 1, 2 * male - 1, part))
        expected[part, blond, male, 0] = pixels[20:198]
    table = pd.DataFrame(rows, columns=["image_id", "Blond_Hair", "Young", "Male", "partition"])
    table.drop(columns="partition").to_csv(root / "list_attr_celeba.csv", index=False)
    partition = table[["image_id", "partition"]]
    partition.to_csv(root / "list_eval_partition.csv", index=False)
    data = grouped.celeba(data_dir=tmp_path, size=178)
    assert data.group_names[1] == "not blond, male" and data.group_names[2] == "blond, female"
    assert_pictures(data, expected)
    partition[::-1].to_csv(root / "list_eval_partition.csv", index=False)
    with pytest.raises(ValueError, match="must have the same pictures in the same order"):
        grouped.celeba(data_dir=tmp_path, size=178)


COMMENTS = {
    "Nice, a BIRD": ("train", 0.0, {}),
    "Half of them said so": ("train", 0.5, {"black": 0.5, "female": 1.0}),
    "Muslims and\nChristians": ("train", 0.2, {"muslim": 0.7, "christian": 0.49}),
    "déjà vu": ("val", 0.9, {"LGBTQ": 1.0}),
    "no": ("test", 0.49, {"other_religions": 1.0, "white": 0.9}),
    "": ("test", 1.0, {"white": 0.4}),
}


def write_comments(folder, **changes):
    columns = grouped.wilds._IDENTITIES
    rows = [
        {"comment_text": text, "split": part, "toxicity": toxicity}
        | dict.fromkeys(columns, 0.0)
        | mentioned
        for text, (part, toxicity, mentioned) in COMMENTS.items()
    ]
    table = pd.DataFrame(rows).assign(**changes)
    path = folder / "civilcomments_v1.0" / "all_data_with_identities.csv"
    path.parent.mkdir(exist_ok=True)
    # The first column of theirs is the number of the row.
    table.to_csv(path)


def test_civilcomments_in_the_layout_of_wilds(tmp_path):
    write_comments(tmp_path)
    data = grouped.civilcomments(data_dir=tmp_path, length=4, vocabulary_size=1000)

    def word(text):
        return zlib.crc32(text.encode()) % 999 + 1

    assert data.train.inputs.tolist() == [
        [word("nice"), word(","), word("a"), word("bird")],
        [word("half"), word("of"), word("them"), word("said")],
        [word("muslims"), word("and"), word("christians"), 0],
    ]
    assert data.validation.inputs.tolist() == [[word("déjà"), word("vu"), 0, 0]]
    assert data.test.inputs.tolist() == [[word("no"), 0, 0, 0], [0] * 4]
    # Toxic or not by any identity, to train with.
    assert data.groups("train").tolist() == [0, 3, 1]
    assert data.groups("validation").tolist() == [3] and data.groups("test").tolist() == [1, 2]
    # Toxic or not by each, to evaluate; the last comment is in none.
    assert len(data.evaluation_names) == 16
    assert [x.shape for x in data.evaluation[1:]] == [(16, 3), (16, 1), (16, 2)]

    def names(split, example):
        members = data.members(split)[:, example]
        return {name for name, is_in in zip(data.evaluation_names, members, strict=True) if is_in}

    assert names("train", 0) == set()
    assert names("train", 1) == {"toxic, black", "toxic, female"}
    assert names("train", 2) == {"not toxic, muslim"}
    assert names("validation", 0) == {"toxic, LGBTQ"}
    assert names("test", 0) == {"not toxic, other religions", "not toxic, white"}
    assert names("test", 1) == set()


def test_what_is_wrong_with_directories_of_wilds_is_one_line(tmp_path):
    def refused(load, kind, message, **options):
        with pytest.raises(kind, match=message) as caught:
            load(**{"data_dir": tmp_path, **options})
        assert "\n" not in str(caught.value)

    for load in (grouped.waterbirds, grouped.celeba, grouped.civilcomments):
        refused(load, FileNotFoundError, "There is no file .*_v1.0.*pip install wilds")
        refused(load, FileNotFoundError, "data_dir must name", data_dir=None)
        refused(load, ValueError, "share must be a number in", share=0)
    refused(grouped.waterbirds, ValueError, "size must be a positive integer", size=0)
    refused(grouped.civilcomments, ValueError, "length must be a positive integer", length=0)

    write_waterbirds(tmp_path, 1, (8, 8, 3))
    root = tmp_path / "waterbirds_v1.0"
    picture = next(root.glob("*/*.jpg"))
    whole = picture.read_bytes()
    picture.write_bytes(whole[:60])
    refused(grouped.waterbirds, ValueError, f"{picture.name} can't be read", size=8)
    picture.unlink()
    refused(grouped.waterbirds, FileNotFoundError, f"There is no file .*{picture.name}", size=8)
    table = pd.read_csv(root / "metadata.csv")
    for change, message in (
        ({"place": 2}, "The column place must hold 0, 1, but it holds 2"),
        ({"split": 0}, "There must be validation examples, but there are none"),
    ):
        table.assign(**change).to_csv(root / "metadata.csv", index=False)
        refused(grouped.waterbirds, ValueError, message)
    table.drop(columns="place").to_csv(root / "metadata.csv", index=False)
    refused(grouped.waterbirds, ValueError, "it lacks place")
    write_comments(tmp_path, split="dev")
    refused(grouped.civilcomments, ValueError, "split must hold train, val, test, but it holds dev")
    write_comments(tmp_path, black="many")
    refused(grouped.civilcomments, ValueError, "black, white must be numbers")
    write_comments(tmp_path, toxicity=np.nan)
    refused(grouped.civilcomments, ValueError, "toxicity must be finite numbers")
