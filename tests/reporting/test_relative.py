"""Table 1: numbers from paper and pencil, honest words, and nothing without references."""

import dataclasses
import itertools
import math

import numpy as np
import pytest

from ldro_jax import reporting
from ldro_jax.reporting import Results, Run, plots, summarise_evaluation

NAMES = ("rich", "poor")
OWN = (20.0, 50.0)
# 50 and 20 % above the own models; 20 and 60 %.
AVERAGE, LDRO = (30.0, 60.0), (24.0, 80.0)


def entry(step, values, split="test", names=NAMES):
    return summarise_evaluation(step, split, "perplexity", names, values, False)


def both(values):
    return (9, values, "validation"), (5, values, "test")


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
    """The rows of the table as lists of texts; bold ones in stars."""
    html = reporting.table1_html(results).replace("<strong>", "*").replace("</strong>", "*")
    rows = [part.split("</tr>")[0] for part in html.split("<tr>")[2:]]
    return [[c.split("</td>")[0].split(">", 1)[1] for c in r.split("<td")[1:]] for r in rows]


def test_the_text_table_is_pinned():
    found = reporting.table1_text(record({"Average": [AVERAGE], "L-DRO": [LDRO]}))
    assert found.splitlines() == [
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


def test_the_relative_record_is_that_of_a_loop():
    rng = np.random.default_rng(0)
    names = [f"t{i}" for i in range(7)]
    own = rng.uniform(10, 300, 7)
    values = rng.uniform(10, 300, (3, 7))
    found = reporting.relative_record(record({"Average": values}, own, names))
    assert found.metric == "relative perplexity" and not found.higher_is_better
    for run, ppl in zip(found.runs, values, strict=True):
        (e,) = run.evaluations
        expected = [100 * (p - o) / o for p, o in zip(ppl, own, strict=True)]
        np.testing.assert_allclose(list(e.per_task.values()), expected)
        assert e.average == pytest.approx(sum(expected) / 7)
        assert e.worst == pytest.approx(max(expected))
        assert e.worst_task == names[int(np.argmax(expected))]


def test_monolingual_is_never_the_best_nor_a_rival():
    results = record({"Average": [AVERAGE]})
    assert "*" not in "".join(text for row in cells(results) for text in row)
    assert "Monolingual" not in " ".join(reporting.table1_words(results))


def test_without_references_for_the_reported_split_there_is_nothing():
    without = record({"Average": [AVERAGE]}, own=None)
    other = dataclasses.replace(without, references={"validation": {"rich": 20.0, "poor": 50.0}})
    unknown = dataclasses.replace(without, references={"test": {"rich": math.nan}})
    for results in (without, other, unknown, record({})):
        assert reporting.table1_html(results) == reporting.table1_text(results) == ""
        assert reporting.table1_words(results) == []


def test_a_task_without_a_model_of_its_own_is_left_out_and_named():
    results = record({"Average": [AVERAGE], "L-DRO": [LDRO]}, own=(20.0, math.nan))
    rows = cells(results)
    assert rows[0][4:7] == ["50.0", "50.0", "rich"] and rows[1][4:7] == ["*20.0*", "*20.0*", "rich"]
    assert rows[0][1] == "*45.00*" and rows[2][1:4] == ["n/a"] * 3
    words = reporting.table1_words(results)
    assert "Relative values leave out, without own models: poor." in words


@pytest.mark.parametrize("bad", [0.0, -1.0])
def test_a_reference_that_is_not_positive_is_an_error(bad):
    with pytest.raises(ValueError, match="positive references"):
        reporting.table1_html(record({"Average": [AVERAGE]}, own=(20.0, bad)))


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


def test_clear_differences_are_called_so_in_every_column():
    ours, theirs = shifted(LDRO, -0.2, 0, 0.21), shifted(AVERAGE, -0.2, 0, 0.2)
    results = record({"Average": theirs, "L-DRO": ours})
    assert reporting.table1_words(results) == [
        "Best on test by the mean over seeds – average: Average (45.00 ± 0.20); worst task: "
        "Average (60.00 ± 0.20); relative average: Average (35.0 ± 0.7 %); relative worst task: "
        "Average (50.0 ± 1.0 %).",
        "Against Average, on the average – clearly worse: L-DRO.",
        "Against Average, on the worst task – clearly worse: L-DRO.",
        "Against Average, on the relative average – clearly worse: L-DRO.",
        "Against Average, on the relative worst task – clearly worse: L-DRO.",
    ]
    back = reporting.table1_words(results, baseline="L-DRO")
    assert "Against L-DRO, on the relative worst task – clearly better: Average." in back


def test_noise_is_no_win():
    results = record({"Average": [AVERAGE] * 3, "L-DRO": shifted(AVERAGE, -9, 8, -2)})
    words = reporting.table1_words(results)
    assert "relative average: L-DRO" in words[0]
    assert all(text.endswith("not separated: L-DRO.") for text in words[1:]) and len(words) == 5


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_cannot_tell(seeds):
    results = record({"Average": [AVERAGE] * seeds, "L-DRO": [LDRO] * seeds})
    words = reporting.table1_words(results)
    assert words[1:] == ["Differences to Average cannot be told from chance with so few seeds."]


def test_a_method_with_fewer_seeds_is_not_separated():
    results = record({"Average": [AVERAGE] * 3, "DRO": [LDRO] * 3, "L-DRO": [LDRO]})
    words = reporting.table1_words(results)
    assert "Against Average, on the average – clearly worse: DRO; not separated: L-DRO." in words
    assert words[-1] == "With fewer than 3 common seeds no difference is clear."


def test_the_thirds_by_training_data():
    names = [f"t{i}" for i in range(7)]
    sizes = dict(zip(names, (5, 1, 7, 2, math.nan, 6, 4), strict=True))
    # Known sizes in order: t1, t3 | t6, t0 | t5, t2; 10 and 30 % above, and 1 and 2 %.
    values = (100, 110, 102, 130, 900, 101, 100)
    results = record({"Average": [values]}, (100,) * 7, names, task_sizes=sizes)
    assert reporting.table1_words(results) == [
        "Mean relative perplexity on the 2 tasks with the least training data and on the 2 with "
        "the most – Average 20.0 and 1.5 %."
    ]
    few = dataclasses.replace(results, task_sizes={"t0": 1, "t1": 2})
    assert reporting.table1_words(few) == []


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
    assert "higher is better" in reporting.table1_html(results)


def test_everything_is_escaped():
    evil = '<b>&"'
    results = record({evil: [AVERAGE], "Average": [LDRO]}, names=(evil, "poor"))
    assert "<b>" not in reporting.table1_html(results)
    assert "&lt;b&gt;&amp;" in reporting.table1_html(results)


def test_a_line_fits_in_100_columns():
    names = ["a language with a name that is far too long " + c for c in "ab"]
    results = record(
        {"A method with a very long name, too " + c: [AVERAGE] * 2 for c in "ab"}, names=names
    )
    lines = reporting.table1_text(results).splitlines()
    assert max(map(len, lines)) <= 100 and lines[3] != lines[4]


def lines_of(figure):
    """The values of each method in the order they are drawn."""
    lines = figure.axes[0].lines
    return {
        str(k.get_label()): k.get_ydata() for k in lines if not str(k.get_label()).startswith("_")
    }


def test_the_figure_goes_from_the_largest_task_to_the_smallest():
    names = ("a", "b", "c", "d")
    sizes = {"a": 10, "b": 1000, "c": 100}
    results = record({"Average": [(11, 12, 13, 14)]}, (10,) * 4, names, task_sizes=sizes)
    figure = plots.relative_by_task(results)
    top, bottom = figure.axes
    assert [t.get_text() for t in bottom.get_xticklabels()] == ["b", "c", "a", "d"]
    np.testing.assert_allclose(lines_of(figure)["Average"], [20, 30, 10, 40])
    assert bottom.get_yscale() == "log" and "%" in top.get_ylabel()
    assert [bar.get_height() for bar in bottom.patches][:3] == [1000, 100, 10]
    (single,) = plots.relative_by_task(dataclasses.replace(results, task_sizes={})).axes
    assert [t.get_text() for t in single.get_xticklabels()] == list(names)


def test_without_references_the_figure_shows_the_values():
    figure = plots.relative_by_task(record({"Average": [AVERAGE, (40, 80)]}, own=None))
    np.testing.assert_allclose(lines_of(figure)["Average"], [35, 70])
    assert "%" not in figure.axes[0].get_ylabel() and figure.axes[0].get_yscale() == "linear"
    wide = plots.relative_by_task(record({"Average": [(20, 300)]}, own=None))
    assert wide.axes[0].get_yscale() == "log"


def test_forty_tasks_and_six_methods_fit():
    names = [f"language number {i}" for i in range(40)]
    rng = np.random.default_rng(0)
    methods = {f"method {m}": rng.uniform(20, 90, (2, 40)) for m in range(6)}
    sizes = {name: 10**i for i, name in zip(np.linspace(9, 4, 40), names, strict=True)}
    figure = plots.relative_by_task(record(methods, [40] * 40, names, task_sizes=sizes))
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()
    boxes = [t.get_window_extent(renderer) for t in figure.axes[1].get_xticklabels()]
    assert len(boxes) == 40
    assert all(a.x1 <= b.x0 + 1 for a, b in itertools.pairwise(boxes))
    assert all(figure.bbox.y0 <= b.y0 for b in boxes)
    assert len(lines_of(figure)) == 6


def test_the_figure_survives_what_is_missing():
    for results in (record({}), record({"A $x$": [(math.nan, math.nan)]})):
        (axes,) = plots.relative_by_task(results).axes
        assert axes.texts[0].get_text().startswith("no finished run")
    some = record({"A $x$": [(math.nan, 30.0)]}, task_sizes={"rich": 0, "poor": math.nan})
    plots.relative_by_task(some).canvas.draw()
