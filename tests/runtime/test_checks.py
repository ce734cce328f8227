"""Checks of arguments: what passes, and the line that what doesn't gives."""

import functools

import numpy as np
import pytest

from ldro_jax.runtime import checks


@pytest.mark.parametrize("value", [1, 7, np.int64(2), np.uint8(3)])
def test_integers_of_numpy_are_integers(value):
    found = checks.integer("n", value)
    assert found == value and type(found) is int


@pytest.mark.parametrize("value", [0, -1, 1.0, np.float32(1), True, np.True_, "1", None, [1]])
def test_what_is_no_positive_integer(value):
    with pytest.raises(ValueError, match="^n must be a positive integer, but it is .+\\.$"):
        checks.integer("n", value)


def test_the_range_of_an_integer():
    assert checks.integer("n", 0, low=0) == 0
    with pytest.raises(ValueError, match="n must be an integer of at least 0, but it is -1"):
        checks.integer("n", -1, low=0)
    with pytest.raises(ValueError, match="n must be an integer from 1 to 3, but it is 4"):
        checks.integer("n", 4, high=3)


@pytest.mark.parametrize(
    ("interval", "inside", "outside"),
    [
        ("[0, 1)", [0, 0.5, np.float32(0.9)], [1, -1e-9, float("nan"), float("inf"), "0", None]),
        ("(0, 1]", [1, 1e-300], [0, 1.0001, True, [0.5]]),
        ("[0, inf)", [0, 10**400, 1e300], [float("inf"), float("nan"), -1]),
        ("(-inf, inf)", [-1e300, 0], [float("-inf"), float("inf"), 1j]),
    ],
)
def test_the_ends_of_an_interval(interval, inside, outside):
    for value in inside:
        checks.number("x", value, interval)
    for value in outside:
        with pytest.raises(ValueError) as error:
            checks.number("x", value, interval)
        assert str(error.value) == f"x must be a number in {interval}, but it is {value!r}."


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (3, "seeds must be a list of seeds, such as (0, 1, 2), but it is 3."),
        ((), "seeds must be a list of seeds, such as (0, 1, 2), but it is ()."),
        ((0, 0.5), "seeds must be an integer from 0 to 4294967295, but it is 0.5."),
        ((2**32,), "seeds must be an integer from 0 to 4294967295, but it is 4294967296."),
        ((1, 2, 1), "seeds must be seeds that are all different, but it is (1, 2, 1)."),
    ],
)
def test_seeds(values, message):
    assert checks.seeds("seeds", (np.int64(3), 0)) == [3, 0]
    with pytest.raises(ValueError) as error:
        checks.seeds("seeds", values)
    assert str(error.value) == message


class Takes:
    def __init__(self, *, size):
        self.size = size


@pytest.mark.parametrize(
    "value", [Takes, functools.partial(Takes), lambda size: size, lambda **options: options, dict]
)
def test_functions_are_known_by_their_arguments(value):
    assert checks.function("f", value, "size", example="@Takes") is value


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("Takes", "'Takes'"),
        (Takes(size=1), f"<{__name__}.Takes object>"),
        (len, "the function len"),
        (lambda other: other, "the function <lambda>"),
    ],
)
def test_what_is_no_such_function(value, shown):
    with pytest.raises(ValueError) as error:
        checks.function("f", value, "size", example="@Takes")
    text = f"f must be a function of size, such as @Takes, but it is {shown}."
    assert str(error.value) == text


def test_what_is_long_or_of_several_lines_is_shown_on_one():
    assert checks.shown("a\nb" + "c" * 200).count("\n") == 0
    assert len(checks.shown(np.zeros((50, 50)))) == 101
    assert " at 0x" not in checks.shown(object())


def test_other_checks_name_what_is_expected():
    for check, message in [
        (lambda: checks.flag("f", "yes"), "f must be True or False, but it is 'yes'."),
        (lambda: checks.text("t", " "), "t must be a text in quotes, but it is ' '."),
        (lambda: checks.one_of("o", ["a"], ("a", "b")), "o must be one of 'a', 'b', but it is "),
        (lambda: checks.sequence("s", "ab", "names"), "s must be a list of names, but it is 'ab'."),
        (lambda: checks.instance("i", 1, Takes, "@T()"), "i must be a Takes, such as @T(), but it"),
    ]:
        with pytest.raises(ValueError) as error:
            check()
        assert str(error.value).startswith(message)
