"""What gin files bind of a problem: loaded from a directory, and refused in one line."""

import functools

import numpy as np
import pytest
from helpers import tiny, tiny_lm

from ldro_jax import problems
from ldro_jax.models import cnn, mlp


def classification(**options):
    model = functools.partial(mlp.MLP, features=(4,))
    options = {"load_data": lambda data_dir: tiny.data(), "model": model} | options
    return problems.classification(**options)


def language_model(**options):
    options = {
        "load_data": lambda data_dir: tiny_lm.corpus(),
        "model": tiny_lm.Bigram,
        "length": tiny_lm.LENGTH,
    } | options
    return problems.language_model(**options)


@pytest.mark.parametrize(
    ("make", "data"), [(classification, tiny.data()), (language_model, tiny_lm.corpus())]
)
def test_data_is_loaded_from_its_directory(make, data):
    def load(data_dir):
        asked.append(data_dir)
        return data

    asked = []
    problem = make(load_data=load, data_dir="a directory")
    assert asked == ["a directory"]
    assert problem.task_names == data.task_names
    np.testing.assert_array_equal(problem.sizes, make().sizes)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_data": "digits"}, "load_data must be a function of data_dir, such as @digits.load"),
        ({"load_data": lambda data_dir: "data"}, "load_data must be a function that gives a Multi"),
        ({"model": "MLP"}, "model must be a function of num_classes, such as @MLP"),
        ({"model": lambda num_classes: 3}, "model must be a flax"),
        (
            {"model": lambda num_classes: mlp.MLP(num_classes=5)},
            "model must give 2 logits for each input, but it gives \\(5,\\)",
        ),
        (
            {"model": lambda num_classes: cnn.CNN(num_classes=2)},
            "model must take inputs of the shape \\(2,\\), but it doesn't",
        ),
    ],
)
def test_a_classification_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        classification(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"load_data": "text"}, "load_data must be a function of data_dir, such as @text.load"),
        ({"load_data": lambda data_dir: 3}, "load_data must be a function that gives a Corpus"),
        ({"model": "Decoder"}, "model must be a function of vocab_size, such as @Decoder"),
        ({"length": 0}, "length must be a positive integer, but it is 0"),
        ({"eval_length": -8}, "eval_length must be a positive integer, but it is -8"),
        ({"eval_batch_size": 1.5}, "eval_batch_size must be a positive integer, but it is 1.5"),
        ({"max_validation_tokens": 0}, "max_validation_tokens must be a positive integer"),
        ({"max_test_tokens": "all"}, "max_test_tokens must be a positive integer"),
    ],
)
def test_a_language_model_that_does_not_fit_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        language_model(**options)
