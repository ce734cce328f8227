"""Records are put together where they can be compared."""

import dataclasses

import pytest

from ldro_jax.records.joined import join
from ldro_jax.records.results import Results, Run


def record(*methods, **options):
    given = {"experiment": "x", "task_names": ["a", "b"], "metric": "m", "higher_is_better": True}
    return Results(**{**given, **options}, runs=[Run(method, 0, 5) for method in methods])


def test_names_that_several_records_have_are_told_apart():
    joined = join({"one": record("A", "B"), "two": record("B", "C"), "three": record("B", "B")})
    assert [run.method for run in joined.runs] == [
        *("A", "B (one)", "B (two)", "C", "B (three)", "B (three)"),
    ]
    assert (
        joined.experiment == "x" and joined.description == "Runs of one, two, three, put together."
    )


def test_of_what_is_shown_besides_nothing_is_lost():
    first = record("A", versions={"jax": "1", "flax": "2"}, directions={"m": True})
    references = {"test": {"a": 1.0}}
    second = record("B", versions={"jax": "3", "flax": "2"}, references=references)
    second = dataclasses.replace(second, task_sizes={"a": 7.0}, directions={"n": False})
    joined = join({"one": first, "two": second})
    assert joined.versions == {"jax": "1 (one), 3 (two)", "flax": "2"}
    assert joined.references == references and joined.task_sizes == {"a": 7.0}
    assert joined.directions == {"m": True, "n": False}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"task_names": ["a", "c"]}, "other tasks (b and c)"),
        ({"task_names": ["a", "b", "c"]}, "other tasks (no other and c)"),
        ({"task_names": ["b", "a"]}, "other tasks (a, b and b, a)"),
        ({"trained_names": ["z"]}, "other trained tasks (a, b and z)"),
        ({"metric": "n", "directions": {"m": True}}, "other metrics (m and n)"),
        ({"higher_is_better": False}, "directions of it (higher is better and lower is better)"),
        ({"data": {"sizes": [1, 2]}}, "other data (sizes [3, 4] and sizes [1, 2])"),
        ({"metric": "n", "task_names": ["z"]}, "other tasks (a, b and z); other metrics (m and n)"),
    ],
)
def test_what_differs_is_said(options, said):
    first = record("A", data={"sizes": [3, 4]})
    with pytest.raises(ValueError) as error:
        join({"one": first, "two": record("A", **options)})
    assert said in str(error.value)
    assert str(error.value).startswith("one and two can't be compared, because they have other ")


def test_data_that_an_older_record_does_not_name_is_no_difference():
    assert len(join({"one": record("A", data={"sizes": [3]}), "two": record("B")}).runs) == 2
