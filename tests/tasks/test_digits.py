"""The ten digit tasks: real images, clean splits, optics that differ."""

import itertools

import numpy as np
import pytest

from ldro_jax.tasks import digits

pytest.importorskip("sklearn")

SPLITS = {"train": 1077, "validation": 360, "test": 360}


@pytest.fixture(scope="module")
def data():
    return digits.load()


@pytest.mark.parametrize("split", SPLITS)
def test_shapes(data, split):
    inputs, labels, sizes = getattr(data, split)
    assert inputs.shape == (10 * SPLITS[split], 8, 8) and inputs.dtype == np.float32
    assert labels.shape == (10 * SPLITS[split],) and labels.dtype == np.int32
    assert (sizes == SPLITS[split]).all()
    assert set(labels.flat) == set(range(10))


def test_no_image_is_in_two_splits(data):
    # The clean task shows the images themselves; every other task sees the same ones.
    clean = data.task_names.index("clean")
    seen = {split: {x.tobytes() for x in getattr(data, split).of(clean)[0]} for split in SPLITS}
    assert sum(map(len, seen.values())) == 1797
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def test_the_images_are_those_of_scikit_learn(data):
    from sklearn import datasets

    clean = data.task_names.index("clean")
    ours = np.concatenate([getattr(data, split).of(clean)[0] for split in SPLITS])
    labels = np.concatenate([getattr(data, split).of(clean)[1] for split in SPLITS])
    theirs = datasets.load_digits()
    found = {x.tobytes(): y for x, y in zip(ours, labels, strict=True)}
    for image, target in zip((theirs.images / 16).astype(np.float32), theirs.target, strict=True):
        assert found[image.tobytes()] == target


def test_loading_again_gives_the_same(data):
    again, other = digits.load(), digits.load(seed=1)
    for split in SPLITS:
        for ours, theirs in zip(getattr(data, split), getattr(again, split), strict=True):
            np.testing.assert_array_equal(ours, theirs)
    assert not np.array_equal(data.train.inputs, other.train.inputs)


def test_every_task_looks_different(data):
    inputs = [data.test.of(i)[0] for i in range(10)]
    for i, j in itertools.combinations(range(10), 2):
        assert np.abs(inputs[i] - inputs[j]).mean() > 0.02, (data.task_names[i], data.task_names[j])


def test_noise_is_drawn_for_each_image(data):
    clean, noisy = (data.task_names.index(name) for name in ("clean", "noisy"))
    noise = np.concatenate(
        [getattr(data, s).of(noisy)[0] - getattr(data, s).of(clean)[0] for s in SPLITS]
    ).reshape(1797, 64)
    assert noise.std() == pytest.approx(0.4, rel=0.02)
    correlations = np.corrcoef(noise[::9])
    assert np.abs(correlations - np.eye(len(correlations))).max() < 0.6


def test_optics_keep_what_they_should(data):
    of = {name: data.test.of(i)[0] for i, name in enumerate(data.task_names)}
    np.testing.assert_allclose(of["clean"] + of["inverted"], 1, atol=1e-6)
    np.testing.assert_array_equal(of["mirrored"][:, :, ::-1], of["clean"])
    np.testing.assert_array_equal(of["upside down"][:, ::-1, ::-1], of["clean"])
    np.testing.assert_array_equal(of["rotated"].transpose(0, 2, 1)[:, :, ::-1], of["clean"])
    np.testing.assert_array_equal(of["occluded"][:, :4], of["clean"][:, :4])
    assert not of["occluded"][:, 4:].any()
    # Away from the edge a pixel is the mean of itself and its eight neighbours.
    np.testing.assert_allclose(
        of["blurred"][:, 3, 3], of["clean"][:, 2:5, 2:5].mean(axis=(1, 2)), atol=1e-6
    )
