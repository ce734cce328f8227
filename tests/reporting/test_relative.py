"""Table 1: numbers from paper and pencil, and nothing without references."""

import dataclasses
import math

from ldro_jax import reporting
from ldro_jax.records.results import Results, Run, summarise_evaluation
from ldro_jax.reporting import tables
from ldro_jax.reporting.comparison import compare

NAMES = ("rich", "poor")
OWN = (20.0, 50.0)
# 50 and 20 % above the own models; 20 and 60 %.
AVERAGE, LDRO = (30.0, 60.0), (24.0, 80.0)


def entry(step, values, split="test", names=NAMES):
    return summarise_evaluation(step, split, "perplexity", names, values, False)


def record(methods, own=OWN, names=NAMES, **options):
    """Perplexities of each method and seed on test, at a step before the last validation."""
    runs = [
        Run(
            name,
            seed,
            9,
            evaluations=[entry(9, values, "validation", names), entry(5, values, "test", names)],
        )
        for name, seeds in methods.items()
        for seed, values in enumerate(seeds)
    ]
    references = {"test": dict(zip(names, own, strict=True))} if own is not None else {}
    return Results("lm", names, "perplexity", False, runs, references=references, **options)


def shifted(values, *amounts):
    return [tuple(v + amount for v in values) for amount in amounts]


def cells(results):
    """The rows of the table; the best in stars."""
    table = tables.relative(compare(results))
    return [
        [f"*{cell}*" if (i, j) in table.best else cell for j, cell in enumerate(row)]
        for i, row in enumerate(table.rows)
    ]


def test_the_text_table_is_pinned():
    found = reporting.headline_text(record({"Average": [AVERAGE], "L-DRO": [LDRO]}))
    assert found.split("\n\n")[1].splitlines() == [
        "test perplexity, and per cent above a model of each task alone (lower is better)",
        "method       average  worst task  which task  average %  worst %  which task  seeds",
        "-----------------------------------------------------------------------------------",
        "Average        45.00*      60.00* poor             35.0*    50.0* rich            1",
        "L-DRO          52.00       80.00  poor             40.0     60.0  poor            1",
        "Monolingual    35.00       50.00  poor              0.0      0.0",
        "* best of its column",
    ]


def test_three_seeds_have_a_mean_and_a_spread_and_the_best_is_bold():
    results = record({"Average": shifted(AVERAGE, -1, 0, 1), "L-DRO": [LDRO] * 3})
    # One more in both is 5 % of 20 and 2 % of 50, so 3.5 % in their mean.
    assert cells(results) == [
        [
            *("Average", "*45.00 ± 1.00*", "*60.00 ± 1.00*", "poor"),
            *("*35.0 ± 3.5*", "*50.0 ± 5.0*", "rich", "3"),
        ],
        ["L-DRO", "52.00 ± 0.00", "80.00 ± 0.00", "poor", "40.0 ± 0.0", "60.0 ± 0.0", "poor", "3"],
        ["Monolingual", "35.00", "50.00", "poor", "0.0", "0.0", "", ""],
    ]


def test_monolingual_is_never_the_best_nor_a_rival():
    results = record({"Average": [AVERAGE]})
    assert "*" not in "".join(text for row in cells(results) for text in row)


def test_without_references_for_the_reported_split_there_is_nothing():
    without = record({"Average": [AVERAGE]}, own=None)
    other = dataclasses.replace(without, references={"validation": {"rich": 20.0, "poor": 50.0}})
    unknown = dataclasses.replace(without, references={"test": {"rich": math.nan}})
    for results in (without, other, unknown, record({})):
        assert tables.relative(compare(results)) is None
        assert "Monolingual" not in reporting.headline_text(results)


def test_a_task_without_a_model_of_its_own_is_left_out():
    results = record({"Average": [AVERAGE], "L-DRO": [LDRO]}, own=(20.0, math.nan))
    rows = cells(results)
    assert rows[0][4:7] == ["50.0", "50.0", "rich"] and rows[1][4:7] == ["*20.0*", "*20.0*", "rich"]
    assert rows[0][1] == "*45.00*" and rows[2][1:4] == ["n/a"] * 3


def test_stopped_and_diverged_runs_are_missing_and_never_best():
    results = record({"Average": [AVERAGE, AVERAGE], "Wild": [(math.inf, 10.0)], "DRO": [LDRO]})
    runs = [
        dataclasses.replace(r, stopped="x") if r.seed or r.method == "DRO" else r
        for r in results.runs
    ]
    average, wild, dro, _ = cells(dataclasses.replace(results, runs=runs))
    assert average[1] == "45.00" and average[-1] == "1 of 2"
    assert wild == ["Wild", "n/a", "n/a", "rich", "n/a", "n/a", "rich", "1"]
    assert dro == ["DRO"] + ["n/a"] * 6 + ["0 of 1"]


def test_the_setting_shown_is_the_one_selected_on_validation():
    def run(rate, validation, test):
        entries = [entry(5, validation, "validation"), entry(5, test)]
        return Run("L-DRO", 0, 9, {"rate": rate}, evaluations=entries)

    runs = [run(1, (10, 90), (24, 80)), run(2, (80, 85), (30, 60))]
    results = dataclasses.replace(record({}), runs=runs)
    assert cells(results)[0][:3] == ["L-DRO", "45.00", "60.00"]
    assert cells(dataclasses.replace(results, select_by="average"))[0][1] == "52.00"
    assert len(cells(results)) == 2


def test_for_accuracies_higher_is_better():
    runs = [
        Run(m, 0, 1, evaluations=[summarise_evaluation(1, "test", "accuracy", NAMES, v, True)])
        for m, v in {"Average": (0.4, 0.9), "L-DRO": (0.6, 0.75)}.items()
    ]
    own = {"test": {"rich": 0.5, "poor": 0.75}}
    results = Results("x", NAMES, "accuracy", True, runs, references=own)
    assert [row[4:7] for row in cells(results)[:2]] == [
        ["0.0", "−20.0", "rich"],
        ["*10.0*", "*0.0*", "poor"],
    ]
    assert "higher is better" in tables.relative(compare(results)).title


def test_a_line_fits_in_100_columns():
    names = ["a language with a name that is far too long " + c for c in "ab"]
    results = record(
        {"A method with a very long name, too " + c: [AVERAGE] * 2 for c in "ab"}, names=names
    )
    lines = reporting.headline_text(results).split("\n\n")[1].splitlines()
    assert max(map(len, lines)) <= 100 and lines[3] != lines[4]
