"""Names of runs for files: as they were where that is fine, and else short and different."""

import dataclasses

import pytest
from helpers import tiny

from ldro_jax.experiments import names, runs
from ldro_jax.training.method import Method, grid

STATIC = Method("Mixing", "static_mixing", {"sizes": (1.0,) * 40})


def named(*method_names):
    methods = [dataclasses.replace(tiny.AVERAGE, name=name) for name in method_names]
    return list(runs.list_runs(methods, (3,))[1])


@pytest.mark.parametrize("name", ["a/b c", "L-DRO λ=0.1", "..", "方法"])
def test_a_method_may_have_any_name(name):
    (file,) = named(name)
    assert file.endswith("-seed3") and "/" not in file and file.isascii()


def test_names_that_are_fine_stay():
    assert named("L-DRO", "Group DRO", "L-DRO (0.1)") == [
        "L-DRO-seed3",
        "Group_DRO-seed3",
        "L-DRO_0.1_-seed3",
    ]
    sweep = grid(tiny.GROUP_DRO, {"weight_lr": (0.1, 0.5)})
    expected = [f"Group_DRO-weight_lr={rate}-seed{s}" for s in (0, 1) for rate in (0.1, 0.5)]
    assert list(runs.list_runs(sweep, (0, 1))[1]) == expected
    exact = "x" * 94
    assert named(exact) == [f"{exact}-seed3"]


@pytest.mark.parametrize(
    "given",
    [
        ("l-dro", "L-DRO", "L-dro"),  # one file where case is folded
        ("方法一", "方法二"),
        ("a b", "a_b", "a/b"),
        ("x" * 300, "x" * 300 + "y"),
        ("\udc80", "\udc81"),  # bytes of a command line that are no UTF-8
    ],
)
def test_names_differ_even_where_case_is_folded_and_are_short(given):
    found = named(*given)
    assert len({name.casefold() for name in found}) == len(given)
    assert all(len(name.encode()) <= 100 and name.endswith("-seed3") for name in found)
    # The same at every start, and the first ones whatever comes after.
    assert named(*given, "another")[: len(given)] == found


def test_names_outside_ascii_are_the_same_whatever_comes_and_goes():
    # What is there under the name of another run would be refused.
    one, two = named("方法一", "方法二")
    assert named("方法二", "方法一", "λ")[:2] == [two, one]
    assert named("方法二") == [two]


def test_a_grid_of_many_sizes_has_short_names(tmp_path):
    mixes = grid(STATIC, {"exponent": (0.3, 1.0), "total": (1.0, None)})
    found = list(runs.list_runs(mixes, (0, 1))[1])
    assert len(set(found)) == 8 and max(map(len, found)) <= 100
    for name in found:
        (tmp_path / f".ldro_jax-{name}.json.12345678").write_text("fits")


def test_labels_without_a_seed_are_cut_too():
    (name,) = names.file_names(["z" * 200])
    assert len(name) <= 100
