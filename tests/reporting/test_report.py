"""The page is complete, well-formed, self-contained and escaped, whatever is missing."""

import dataclasses
import html.parser
import pathlib
import re
import sys

import numpy as np
import pytest

from ldro_jax import reporting
from ldro_jax.records.compact import compact
from ldro_jax.records.results import Run, load_results, save_results
from ldro_jax.reporting import sections, tables
from ldro_jax.reporting.comparison import compare
from ldro_jax.runtime import paths

pytest.importorskip("matplotlib")

VOID = {"meta", "img", "br", "hr", "link", "input"}
FIGURES = {
    "average_vs_worst.png",
    "interaction_matrix.png",
    "metric_over_steps.png",
    "signal_over_time.png",
    "step_time.png",
    "task_values.png",
    "weights_over_time.png",
}


class Checker(html.parser.HTMLParser):
    """Collects tags and attributes, and insists that every element is closed in order."""

    def __init__(self):
        super().__init__()
        self.open, self.tags, self.text = [], [], []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open and self.open[-1] == tag, (tag, self.open)
        self.open.pop()

    def handle_data(self, data):
        self.text.append(data)


def read(path):
    """Parses a report and checks what must hold for every one."""
    source = path.read_text(encoding="utf-8")
    page = Checker()
    page.feed(source)
    page.close()
    assert not page.open
    assert source.startswith("<!DOCTYPE html>")
    assert not {"script", "link", "iframe"} & {tag for tag, _ in page.tags}
    for tag, attrs in page.tags:
        for name in ("src", "href"):
            assert attrs.get(name, "#").startswith(("#", "data:image/png;base64,")), (tag, attrs)
        if tag == "img":
            assert attrs["alt"]
    assert "http:" not in source and "https:" not in source and "url(" not in source
    ids = [attrs["id"] for _, attrs in page.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    links = {attrs["href"][1:] for tag, attrs in page.tags if tag == "a"}
    assert links == set(ids)
    page.words = re.sub(r"\s+", " ", " ".join(page.text))
    return page


@pytest.fixture(scope="module")
def written(full, tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    return reporting.write_report(full, folder, config_text="rate = 0.1  # <why>")


def test_all_files_are_written(written):
    assert written.name == "report.html"
    assert {p.name for p in (written.parent / "figures").iterdir()} == FIGURES
    assert all(p.read_bytes()[:4] == b"\x89PNG" for p in (written.parent / "figures").iterdir())


def test_the_page_has_everything(written):
    page = read(written)
    assert sum(tag == "img" for tag, _ in page.tags) == len(FIGURES)
    for expected in (
        "made-up digits",
        "Nothing was trained",
        "L-DRO online has the best mean worst-task accuracy",
        "Group DRO, seed 1 had losses that were not finite: low contrast (2).",
        "95 % interval",
        "rate = 0.1 # <why>",
        "weight_lr = 0.1",
        "0, 1, 2",
        "3 CPU cores (made up)",
        "2026-01-02 03:04 UTC",
        "python made_up.py --now",
        "Group DRO the worst loss ∝ w exp(ηℓ) Sagawa 2020",
        "no single task need have a mean as bad",
    ):
        assert expected in page.words
    assert any(tag == "details" for tag, _ in page.tags)


def test_the_page_opens_with_the_verdict_and_the_picture(written):
    page = written.read_text(encoding="utf-8")
    verdict, picture, table = (page.index(f"<{x}") for x in ('p class="verdict"', "img", "table"))
    assert verdict < picture < table


def _differ(made_up, **gains):
    """Baseline and methods whose average and worst differ from it by so much in each of n seeds."""
    seeds = range(gains.pop("n", 4))
    rows = {"Average": (0.0, 0.0), **gains}
    return made_up.results(
        [
            made_up.run(m, s, [0.5 + w + 0.01 * s, 0.9 + 2 * a - w + 0.01 * s])
            for m, (a, w) in rows.items()
            for s in seeds
        ]
    )


@pytest.mark.parametrize(
    "gains, said",
    [
        ({"A": (0, 0.1)}, "A has a clearly better worst task than Average, at no clear cost"),
        ({"A": (-0.1, 0.1)}, "A has a clearly better worst task than Average, and a clearly worse"),
        (
            {"A": (0, 0.1), "B": (-0.1, 0.1), "C": (0, -0.1)},
            "A and B have a clearly better worst task than Average; B for a clearly worse average.",
        ),
        ({"A": (0, 0)}, "No method has a clearly better worst task than Average."),
        ({"A": (0.1, 0)}, "than Average; A has a clearly better average."),
        ({"A": (0, -0.1)}, "than Average; A has a clearly worse worst task."),
        ({"A": (0, 0.1), "n": 2}, "With 2 common seeds no difference to Average is clear."),
        ({f"M{i}": (0, 0.1) for i in range(5)}, "5 methods have a clearly better worst task"),
        ({}, ""),
    ],
)
def test_the_verdict_is_one_sentence(made_up, gains, said):
    found = sections.verdict(compare(_differ(made_up, **gains)))
    assert said in found and found.count(".") == bool(said)


@pytest.mark.parametrize(
    "device, said",
    [
        ({"platform": "gpu", "kind": "NVIDIA H200", "count": 1}, "1 × NVIDIA H200"),
        ({"platform": "cpu", "kind": "cpu", "count": 1, "cpu_cores": 2}, "2 CPU cores"),
        (
            {"platform": "cpu", "kind": "cpu", "count": 8, "cpu_cores": 2},
            "2 CPU cores as 8 devices",
        ),
        ({}, "not recorded"),
    ],
)
def test_the_machine_is_told(made_up, device, said):
    record = dataclasses.replace(made_up.record(["a", "b"], seeds=1), device=device)
    facts = dict(tables.provenance(compare(record))[1].rows)
    assert facts["machine"] == said


@pytest.mark.usefixtures("unpainted")
def test_everything_from_the_record_is_escaped(made_up, tmp_path):
    evil = "<script>alert('x')</script>&\"$"
    record = made_up.record([f"{evil}{i}" for i in range(3)], seeds=2)
    runs = [
        dataclasses.replace(r, method=r.method + evil, hyperparameters={evil: evil}, stopped=s)
        for r, s in zip(record.runs, [evil] + [None] * 9, strict=False)
    ]
    record = dataclasses.replace(
        record, runs=runs, experiment=evil, description=evil, versions={evil: evil}
    )
    record = dataclasses.replace(record, device={"kind": evil})
    path = reporting.write_report(
        record, tmp_path, config_text=evil, extra_sections=[(evil, evil, "<p>trusted</p>")]
    )
    page = read(path)
    assert "<p>trusted</p>" in path.read_text()
    assert evil in page.words


def test_extra_sections_take_figures_and_html(made_up, tmp_path):
    path = np.array([[-2.0, 1.0], [-1.0, 0.0]])
    from ldro_jax.reporting.figures import toy

    figure = toy.trajectories([("t", {"A": path})], path, [1, 0], 1.25)
    extra = [("Toy problem", "A caption.", figure), ("Toy problem", "Another.", "<b>table</b>")]
    record = made_up.results([made_up.run("A", 0, [0.1, 0.2])])
    page = read(reporting.write_report(record, tmp_path, config_text="", extra_sections=extra))
    assert (tmp_path / "figures" / "toy-problem.png").exists()
    assert "A caption." in page.words and ("b", {}) in page.tags


@pytest.mark.usefixtures("unpainted")
def test_missing_parts_still_make_a_page(made_up, tmp_path):
    records = {
        "no runs": made_up.results([]),
        "one run": made_up.results([made_up.run("A", 0, [0.3, 0.4])]),
        "stopped": made_up.results([Run("A", 0, 9, stopped="the loss was not finite")]),
        "diverged": made_up.results([made_up.run("A", 0, [np.nan, np.inf])]),
        "bare": made_up.results([Run("A", 0, 9), Run("B", 0, 9)]),
    }
    for name, record in records.items():
        page = read(reporting.write_report(record, tmp_path / name, config_text=""))
        assert "How it was run" in page.words
    assert "the loss was not finite" in read(tmp_path / "stopped" / "report.html").words
    assert "n/a" in read(tmp_path / "diverged" / "report.html").words
    assert not (tmp_path / "stopped" / "figures").exists()


@pytest.mark.usefixtures("unpainted")
def test_a_loaded_record_makes_the_same_page(full, written, tmp_path):
    path = save_results(full, tmp_path / "results.json")
    again = reporting.write_report(load_results(path), tmp_path, config_text="rate = 0.1  # <why>")
    assert read(again).words == read(written).words


@pytest.mark.usefixtures("unpainted")
def test_extra_sections_take_tables(made_up, tmp_path):
    rows = [["run", "tokens", "share"], ["<a>", "1,000", "–"], ["b", "2", "3.5"]]
    record = made_up.results([made_up.run("A", 0, [0.1, 0.2])])
    extra = [("Tokens", "A caption.", rows)]
    path = reporting.write_report(record, tmp_path, config_text="", extra_sections=extra)
    assert "A caption." in read(path).words
    text = path.read_text(encoding="utf-8")
    assert '<th>run</th><th class="n">tokens</th><th class="n">share</th>' in text
    assert "<td>&lt;a&gt;</td>" in re.sub(r"\s+", "", text)


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_without_the_extra_it_says_what_to_install(full, tmp_path, monkeypatch, capsys, module):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r"pip install 'ldro-jax\[plots\]', then"):
        reporting.write_report(full, tmp_path)
    assert not list(tmp_path.iterdir())
    # The results are kept and shown all the same.
    reporting.finish(full, tmp_path, "")
    printed = capsys.readouterr().out
    assert "L-DRO online" in printed and f"look at {tmp_path / 'results.json'}." in printed
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]


def test_without_pandas_the_results_are_kept(full, tmp_path, run_python):
    save_results(full, tmp_path / "before.json")
    printed = run_python(
        "import pathlib, sys\n"
        "sys.modules['pandas'] = None\n"
        "from ldro_jax import reporting\n"
        "from ldro_jax.records import results\n"
        f"folder = pathlib.Path({str(tmp_path)!r})\n"
        "reporting.finish(results.load_results(folder / 'before.json'), folder, '')\n"
    )
    assert printed == f"Everything is in {tmp_path}; look at {tmp_path / 'results.json'}.\n"
    assert load_results(tmp_path / "results.json").runs


@pytest.mark.usefixtures("unpainted")
def test_the_results_are_written_last_and_tables_are_printed(full, tmp_path, monkeypatch, capsys):
    written, write = [], paths.write
    monkeypatch.setattr(
        paths, "write", lambda path, text: (written.append(path.name), write(path, text))
    )
    references = {"test": dict.fromkeys(full.task_names, 0.5)}
    record = dataclasses.replace(full, references=references)
    reporting.finish(record, tmp_path, "x = 1")
    assert written[-2:] == ["report.html", "results.json"]
    printed = capsys.readouterr().out
    assert reporting.headline_text(record) in printed and "Monolingual" in printed
    assert str(tmp_path / "report.html") in printed


@pytest.mark.usefixtures("unpainted")
def test_a_compact_record_makes_the_same_page(full, tmp_path):
    save_results(compact(full), tmp_path / "results.json")
    small = load_results(tmp_path / "results.json")
    pages = [reporting.write_report(r, tmp_path / str(i)) for i, r in enumerate((full, small))]
    assert read(pages[0]).words == read(pages[1]).words


def test_an_unknown_baseline_is_an_error(full, tmp_path):
    with pytest.raises(ValueError, match="found 'nobody'"):
        reporting.write_report(full, tmp_path, config_text="", baseline="nobody")


def test_an_installed_package_has_the_templates():
    setup = pathlib.Path(__file__).parents[2] / "setup.py"
    assert '"ldro_jax.reporting": ["templates/*"]' in setup.read_text(encoding="utf-8")
    folder = pathlib.Path(reporting.__file__).parent / "templates"
    assert {p.name for p in folder.iterdir()} == {"blocks.html.j2", "report.css", "report.html.j2"}


@pytest.mark.usefixtures("unpainted")
@pytest.mark.parametrize("name", ["cifar100", "multilingual_lm"])
@pytest.mark.heavy  # as those made up do
def test_the_committed_records_make_a_page(name, tmp_path):
    folder = pathlib.Path(__file__).parents[2] / "results" / name
    page = read(reporting.write_report(load_results(folder / "results.json"), tmp_path))
    for title in ("Summary", "Pareto frontiers", "Chosen on validation", "Every task"):
        assert title in page.words
    assert ("Relative to one model for each task" in page.words) == (name == "multilingual_lm")
    drawn = {path.name for path in (tmp_path / "figures").iterdir()}
    assert {path.name for path in (folder / "figures").iterdir()} <= drawn


def conclusion(made_up, *, average, new, seeds=3):
    """For given worst values, by method and seed; the second task holds 0.9."""
    runs = [made_up.run("Average", s, [average[s], 0.9]) for s in range(seeds)]
    runs += [made_up.run("L-DRO", s, [new[s], 0.9]) for s in range(seeds)]
    return sections.conclusion(compare(made_up.results(runs)))


def test_a_clear_win_is_one(made_up):
    assert conclusion(made_up, average=[0.5, 0.51, 0.52], new=[0.6, 0.612, 0.618]) == (
        "L-DRO has the best mean worst-task accuracy (test): 0.610 ± 0.009 over 3 seeds. Against "
        "Average, on the worst task – clearly better: L-DRO; on the average – clearly better: "
        "L-DRO."
    )


def test_a_higher_mean_within_the_noise_is_no_win(made_up):
    text = conclusion(made_up, average=[0.5, 0.5, 0.5], new=[0.45, 0.52, 0.6])
    assert text.startswith("L-DRO has the best mean") and "not separated: L-DRO" in text
    assert "clearly" not in text


def test_a_loss_is_said_plainly_and_a_tie_is_shared(made_up):
    text = conclusion(made_up, average=[0.6, 0.61, 0.62], new=[0.5, 0.51, 0.521])
    assert text.startswith("Average has the best mean") and "clearly worse: L-DRO" in text
    assert "better" not in text
    text = conclusion(made_up, average=[0.5] * 3, new=[0.5] * 3)
    assert text.startswith("Average and L-DRO share the best mean") and "clearly" not in text


@pytest.mark.parametrize("seeds", [1, 2])
def test_few_seeds_are_never_enough(made_up, seeds):
    text = conclusion(made_up, average=[0.1, 0.1], new=[0.9, 0.9], seeds=seeds)
    assert "fewer than 3 finished seeds no difference is clear" in text
    assert "clearly" not in text


def test_a_diverged_method_never_leads(made_up):
    text = conclusion(made_up, average=[0.5] * 3, new=[0.6, np.nan, 0.6])
    assert text.startswith("Average has the best mean") and "cannot be compared: L-DRO" in text


def test_nothing_to_compare(made_up):
    alone = made_up.results([made_up.run("Average", 0, [0.5, 0.7])])
    assert "Average is the only method" in sections.conclusion(compare(alone))
    none = made_up.results([Run("Average", 0, 1, stopped="x"), Run("L-DRO", 0, 1)])
    assert "No run finished" in sections.conclusion(compare(none))


def test_problems_are_listed_by_run_and_task(made_up):
    runs = [
        Run("A", 3, 10, nonfinite_losses={"noisy": 2, "clean": 0}),
        Run("A", 4, 10, stopped="out of memory"),
        Run("A", 5, 10),
        Run("A", 6, 10, nonfinite_losses={"clean": 1}, unmeasured_interactions={"noisy": 3}),
        Run("A", 7, 10, unsolved_steps=4),
    ]
    assert sections.problems(compare(made_up.results(runs))) == [
        "A, seed 3 had losses that were not finite: noisy (2).",
        "A, seed 4 stopped before step 10: out of memory",
        "A, seed 6 had losses that were not finite: clean (1).",
        "A, seed 6 had interactions that could not be measured: noisy (3).",
        "A, seed 7 had steps in which the method found no weights, because its solver had "
        "no solution or they were not finite: 4 of 10.",
    ]


def sweep(made_up, splits=("validation", "test")):
    """Average, and L-DRO with two settings, evaluated twice."""
    runs = []
    for seed in range(2):
        for method, setting, value in [
            ("Average", {}, 0.1),
            *(("L-DRO", {"x": x}, x) for x in (0.2, 0.3)),
        ]:
            entries = [
                made_up.evaluation(step, [value, value + step / 100], split, metric)
                for step in (1, 2)
                for split in splits
                for metric in ("accuracy", "other accuracy")
            ]
            runs.append(Run(method, seed, 2, setting, 0.1, entries))
    return made_up.results(runs)


def titles(path):
    return [part.split("</h2>")[0] for part in path.read_text(encoding="utf-8").split("<h2>")[1:]]


@pytest.mark.usefixtures("unpainted")
def test_the_report_of_a_sweep_has_its_sections_in_order(made_up, tmp_path):
    path = reporting.write_report(sweep(made_up), tmp_path)
    assert titles(path) == [
        "Summary",
        "Pareto frontiers",
        "Chosen on validation",
        "Worst task over time",
        "Pareto frontiers: other accuracy",
        "Every task",
        "Over training",
        "Time per step",
        "How it was run",
        "Configuration",
    ]
    words = read(path).words
    assert "2 methods, 3 settings, 2 tasks, 2 seeds" in words
    assert "at the last checkpoint that was tested: L-DRO (x=0.3)." in words
    assert "L-DRO (x=0.2)" in words.split("How it was run")[-1]
    assert (tmp_path / "figures" / "pareto_frontiers_other_accuracy.png").exists()


@pytest.mark.usefixtures("unpainted")
def test_a_sweep_without_validation_says_so(made_up, tmp_path):
    words = read(reporting.write_report(sweep(made_up, ["test"]), tmp_path)).words
    assert "No checkpoint was evaluated on both validation and test." in words
    assert "comes first in the record" in words


@pytest.mark.usefixtures("unpainted")
def test_a_baseline_is_a_method_with_all_its_settings(made_up, tmp_path):
    for name in ("L-DRO", "L-DRO (x=0.2)"):
        path = reporting.write_report(sweep(made_up), tmp_path, baseline=name)
        assert "minus L-DRO</th>" in path.read_text(encoding="utf-8")


@pytest.mark.usefixtures("unpainted")
def test_models_of_one_task_have_a_section_after_the_summary(made_up, tmp_path):
    references = {"test": {"task 0": 0.5, "task 1": float("nan")}}
    record = dataclasses.replace(sweep(made_up), references=references)
    path = reporting.write_report(record, tmp_path)
    assert titles(path)[1] == "Relative to one model for each task"
    words = read(path).words
    assert "Relative values leave out, without own models: task 1." in words
    assert "below it are worse" in words
    assert (tmp_path / "figures" / "relative_by_task.png").exists()


@pytest.mark.usefixtures("unpainted")
def test_a_setting_that_is_not_shown_is_warned_of_too(made_up, tmp_path):
    record = sweep(made_up)
    runs = [
        dataclasses.replace(r, stopped="the loss was not finite")
        if r.hyperparameters == {"x": 0.2}
        else r
        for r in record.runs
    ]
    path = reporting.write_report(dataclasses.replace(record, runs=runs), tmp_path)
    words = read(path).words
    assert "L-DRO (x=0.2), seed 1 stopped before step 2: the loss was not finite" in words


def test_reporting_trains_nothing(run_python):
    names = "page, sections, tables, figures, __main__"
    found = run_python(
        f"import sys; from ldro_jax.reporting import {names}; print('\\n'.join(sys.modules))"
    ).split()
    assert "ldro_jax.reporting.sections" in found
    assert not [name for name in found if name.startswith("ldro_jax.training")]


@pytest.mark.usefixtures("unpainted")
def test_of_many_methods_pictures_show_the_best_and_one_shows_all(made_up, tmp_path):
    runs = [
        made_up.run(f"M{i:02d}" if i else "Average", seed, [0.5, 0.3 + 0.01 * i + 0.001 * seed])
        for i in range(16)
        for seed in range(3)
    ]
    compared = compare(made_up.results(runs))
    names = [setting.label for setting in compared.notable]
    assert names == ["Average", *(f"M{i:02d}" for i in range(5, 16))]
    page = reporting.write_report(made_up.results(runs), tmp_path).read_text(encoding="utf-8")
    assert "All methods" in page and (tmp_path / "figures" / "ranking.png").exists()
    few = compare(made_up.results(runs[:9]))
    assert few.notable == few.shown and not few.has_many
