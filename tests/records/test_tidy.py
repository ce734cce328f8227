"""A record as a table of pandas, as CSV and as LaTeX."""

import dataclasses
import pathlib
import re

import numpy as np
import pytest

from ldro_jax.records import shown
from ldro_jax.records.results import Results, Run, summarise_evaluation

pd = pytest.importorskip("pandas")


def test_a_row_for_each_task_of_each_evaluation(full):
    frame = full.to_frame()
    expected = {
        (run.method, run.seed, e.step, e.split, e.metric, task): value
        for run in full.runs
        for e in run.evaluations
        for task, value in e.per_task.items()
    }
    key = ["method", "seed", "step", "split", "metric", "task"]
    assert frame.set_index(key).value.to_dict() == expected
    assert list(frame) == [
        *("method", "setting", "weight_lr", "seed", "finished"),
        *("step", "split", "metric", "task", "value"),
    ]
    rates = frame.groupby("method").weight_lr.first().to_dict()
    assert np.isnan(rates.pop("Average")) and set(rates.values()) == {0.1}


def test_averages_and_worst_tasks_are_a_frame_of_their_own(full):
    frame = full.to_frame(per_task=False)
    expected = [(e.average, e.worst, e.worst_task) for r in full.runs for e in r.evaluations]
    assert frame[["average", "worst", "worst_task"]].apply(tuple, axis=1).tolist() == expected


def runs_of(*hyperparameters, **options):
    entry = summarise_evaluation(5, "test", "loss", ["a"], [1.0], False)
    return [Run("m", 0, 5, given, evaluations=[entry], **options) for given in hyperparameters]


def test_settings_have_what_differs_and_any_hyperparameter_can_be_grouped_by():
    runs = runs_of({"rate": 0.1, "task": [1, 2], "seed": 3}, {"rate": 0.2, "task": [1, 2]})
    frame = Results("x", ["a"], "loss", False, runs).to_frame()
    assert frame.setting.tolist() == ["m (rate=0.1, seed=3)", "m (rate=0.2, seed=None)"]
    assert frame.groupby("hyperparameter_task").value.sum().to_dict() == {"[1, 2]": 2.0}
    assert frame.hyperparameter_seed[0] == 3 and frame.task.tolist() == ["a", "a"]
    assert frame.seed.tolist() == [0, 0]


def test_a_run_that_stopped_is_marked_and_no_runs_are_no_rows():
    runs = runs_of({}) + runs_of({"k": 1}, stopped="out of memory")
    assert Results("x", ["a"], "loss", False, runs).to_frame().finished.tolist() == [True, False]
    empty = Results("x", ["a"], "loss", False, [])
    assert len(empty.to_frame()) == 0 and "value" in empty.to_frame()


@pytest.mark.parametrize("per_task", [True, False])
def test_csv_is_the_frame(full, per_task, tmp_path):
    path = full.to_csv(tmp_path / "new" / "results.csv", per_task=per_task)
    pd.testing.assert_frame_equal(
        pd.read_csv(path), full.to_frame(per_task=per_task), check_dtype=False
    )


def test_latex_is_the_table_of_the_report(full):
    from ldro_jax import reporting

    table, text = reporting.summary(full), full.to_latex()
    assert text.startswith("\\begin{tabular}{lrrlrrrr}\n\\toprule\nmethod & average & worst task &")
    assert text.endswith("\n\\bottomrule\n\\end{tabular}\n")
    rows = [line.removesuffix(r" \\").split(" & ") for line in text.splitlines() if "&" in line]
    assert len(rows) == 1 + len(table.rows) and {len(row) for row in rows} == {len(table.header)}
    bold = {(i - 1, j) for i, r in enumerate(rows) for j, cell in enumerate(r) if "textbf" in cell}
    assert bold == table.best and bold
    assert r"$\pm$" in rows[1][1]
    # What LaTeX can't read without a font for it is gone.
    assert text.isascii()
    relative = full.to_latex(baseline="L-DRO online")
    row = next(line for line in relative.splitlines() if line.startswith("L-DRO online"))
    assert r"1.00$\times$" in row
    with pytest.raises(ValueError, match="Expected the baseline to be one of 'Average'"):
        full.to_latex(baseline="none")


def test_special_characters_of_latex_are_escaped():
    name = r"50% of a_b & #1 {x} ~ ^ \cite $5"
    table = shown.Table("t", ("method", "Δp %"), [(name, "−1.0 ± 2")])
    escaped = table.latex()
    assert r"50\% of a\_b \& \#1 \{x\} \textasciitilde{} \textasciicircum{} " in escaped
    assert r"\textbackslash{}cite \$5 & $-$1.0 $\pm$ 2 \\" in escaped
    assert r"method & $\Delta$p \% \\" in escaped


_ROOT = pathlib.Path(__file__).parents[2]
_PAGE = (_ROOT / "docs" / "results.md").read_text(encoding="utf-8")


def test_the_page_on_results_works_as_written(monkeypatch, tmp_path, capsys):
    matplotlib = pytest.importorskip("matplotlib")
    monkeypatch.chdir(_ROOT)
    matplotlib.use("agg")
    code = "\n".join(re.findall(r"```python\n(.*?)```", _PAGE, re.DOTALL))
    made = {}
    exec(compile(code.replace("/tmp", str(tmp_path)), "docs/results.md", "exec"), made)
    made["plt"].close("all")
    assert {p.name for p in tmp_path.iterdir()} == {
        *("tasks.csv", "overall.csv", "both.png", "step_time.png"),
    }
    said = capsys.readouterr().out
    assert "L-DRO (lookahead_lr=0.1, weight_lr=0.1)" in said and r"\toprule" in said
    # Each function that it lists is there.
    listed = set(re.findall(r"^\| `(\w+)\(", _PAGE, re.MULTILINE))
    assert listed == set(made["figures"].__all__)


def test_a_second_frame_agrees_with_the_first(full):
    frame, overall = full.to_frame(), full.to_frame(per_task=False)
    key = ["setting", "seed", "step", "split", "metric"]
    means = frame.groupby(key).value.mean().sort_index()
    np.testing.assert_allclose(means, overall.set_index(key).average.sort_index(), rtol=1e-12)
    fewer = dataclasses.replace(full, runs=full.runs[:1])
    assert len(fewer.to_frame()) == len(full.to_frame()) / len(full.runs)
