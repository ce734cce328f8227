"""The report of a sweep of language models: perplexities, tested once, next to monolingual ones."""

import dataclasses
import itertools
import re

import numpy as np
import pytest

from ldro_jax import reporting
from ldro_jax.evaluation.perplexity import perplexity
from ldro_jax.records.compact import compact
from ldro_jax.reporting import Results, Run, plots, summarise_evaluation, sweeps

NAMES = ["<b>English", "German", "Tamil", "Yoruba"]
STEPS = (10, 20, 30, 40, 50)
# Losses of the two ends of the list, relative to Average.
SETTINGS = {
    ("Average", None): (0.0, 0.0),
    ("Proportional", None): (-0.05, 0.4),
    # The first is better in the average, the second on the worst task.
    ("L-DRO", 0.1): (0.0, -0.1),
    ("L-DRO", 1.0): (0.3, -0.2),
}


def language_models(seeds=3, **options):
    """A validation at each step, overfitting at the end, and a test at the best one, step 40."""
    own = np.array([3.2, 3.3, 3.9, 4.6])
    runs = []
    for ((method, eta), (first, last)), seed in itertools.product(SETTINGS.items(), range(seeds)):
        rng = np.random.default_rng([seed, int(10 * (eta or 0))])
        noise = 0.005 * rng.normal(size=4)
        final = own + np.linspace(first, last, 4) + np.linspace(0.1, -0.1, 4) + noise
        losses = [final + 0.05 * (step == 50) + 40 / step**2 * 8 for step in STEPS]
        entries = [entry(s, "validation", v) for s, v in zip(STEPS, losses, strict=True)]
        entries.append(entry(40, "test", losses[3]))
        setting = {} if eta is None else {"eta": eta}
        runs.append(Run(method, seed, 50, setting, 0.1, entries))
    options = {
        "references": {"test": dict(zip(NAMES, perplexity(own), strict=True))},
        "task_sizes": {name: 10 ** (8 - i) for i, name in enumerate(NAMES)},
        "select_by": "average",
        **options,
    }
    return Results("languages", NAMES, "perplexity", False, runs, **options)


def entry(step, split, losses):
    return summarise_evaluation(step, split, "perplexity", NAMES, perplexity(losses), False)


@pytest.fixture(scope="module")
def record():
    return language_models()


@pytest.fixture(scope="module")
def written(record, tmp_path_factory):
    return reporting.write_report(record, tmp_path_factory.mktemp("lm"), config_text="")


def sections(path):
    """The HTML of each section by title."""
    parts = path.read_text(encoding="utf-8").split("<h2>")[1:]
    return {part.split("</h2>")[0]: part.split("</h2>")[1] for part in parts}


def words(html):
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", html))


TITLE = "Relative to one model for each task"


def test_the_section_follows_the_summary_and_has_table_words_and_figure(record, written):
    found = sections(written)
    assert list(found)[:3] == ["Summary", TITLE, "Pareto frontiers"]
    part = found[TITLE]
    assert reporting.table1_html(record) in part
    text = words(part)
    for sentence in reporting.table1_words(record):
        assert sentence.replace("<", "&lt;") in text
    assert "<img" in part and (written.parent / "figures" / "relative_by_task.png").exists()
    assert "below it are better" in text and "<b>" not in part


def test_without_references_the_section_is_left_out(record, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    record = dataclasses.replace(record, references={})
    assert TITLE not in sections(reporting.write_report(record, tmp_path, config_text=""))


def test_without_matplotlib_the_section_has_its_table(record, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    part = sections(reporting.write_report(record, tmp_path, config_text=""))[TITLE]
    assert "Monolingual" in part and "<img" not in part


@pytest.mark.parametrize(
    "by, eta, text", [("average", 0.1, "the average"), ("worst", 1.0, "the worst task")]
)
def test_every_section_shows_the_setting_of_the_same_rule(by, eta, text, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    record = language_models(select_by=by)
    found = sections(reporting.write_report(record, tmp_path, config_text=""))
    note = f"for which {text} was best on validation, mean over seeds, at the last checkpoint that"
    assert note in found["Summary"] and f"L-DRO (eta={eta:g})." in found["Summary"]
    assert f"best on validation by {text}</caption>" in found["Chosen on validation"]
    (*_, shown) = reporting.select_best(record, by=by).runs
    assert shown.hyperparameters == {"eta": eta}
    assert sweeps.choose(record, by=by)["L-DRO"][0].setting.hyperparameters["eta"] == eta


def test_the_frontiers_are_of_the_checkpoints_on_validation(record, written):
    part = sections(written)["Pareto frontiers"]
    assert part.count("hypervolume of validation perplexity over") == 2
    assert "All checkpoints of all settings, on validation." in part
    figure = plots.pareto_frontiers(record)
    assert figure.get_supxlabel() == "validation perplexity (lower is better)"
    # Untrained models, with perplexities in the thousands, are far outside.
    assert figure.axes[0].get_ylim()[1] < 300


def trained(record):
    """The record without its first checkpoints."""
    runs = [
        dataclasses.replace(r, evaluations=[e for e in r.evaluations if e.step > 20])
        for r in record.runs
    ]
    return dataclasses.replace(record, runs=runs)


def test_early_checkpoints_do_not_drown_the_hypervolumes(record):
    late = sweeps.hypervolumes(trained(record))
    assert late == sweeps.hypervolumes(record)
    assert min(late["L-DRO"].values()) > max(late["Average"].values()) > 0


def test_captions_and_digits_suit_a_perplexity(written):
    found = sections(written)
    assert "Further down and left is better." in found["Average against worst task"]
    assert re.search(r"<td class=\"n\">\d\d\.\d ± \d\.\d</td>", found["Summary"])
    assert "test perplexity (lower is better)" in found["Summary"]
    assert "test perplexity of the checkpoints" in found["Chosen on validation"]


def test_curves_that_fall_by_orders_of_magnitude_have_a_log_axis(record):
    for figure in (plots.metric_over_steps(record), plots.worst_over_time(record)):
        figure.canvas.draw()
        assert {axes.get_yscale() for axes in figure.axes} == {"log"}
        labels = [text.get_text() for text in figure.axes[0].get_yticklabels()]
        assert "100" in labels and not any("$" in text for text in labels)
    late = plots.metric_over_steps(trained(record))
    assert late.axes[0].get_yscale() == "linear"


def test_on_a_log_axis_logarithms_are_smoothed():
    entries = [entry(step, "validation", [loss] * 4) for step, loss in ((1, 9.0), (2, 4.0))]
    record = dataclasses.replace(language_models(), runs=[Run("A", 0, 2, evaluations=entries)])
    _, strong = plots.worst_over_time(record).axes[0].lines[:2]
    np.testing.assert_allclose(np.log(strong.get_ydata()), [9.0, 0.6 * 9 + 0.4 * 4])


def test_a_compact_record_makes_the_same_page(record, tmp_path):
    loaded = reporting.load_results(reporting.save_results(record, tmp_path / "whole.json"))
    assert reporting.table1_text(loaded) == reporting.table1_text(record)
    reporting.save_results(compact(loaded), tmp_path / "compact.json")
    small = reporting.load_results(tmp_path / "compact.json")
    assert (tmp_path / "compact.json").stat().st_size < (tmp_path / "whole.json").stat().st_size
    pages = [
        reporting.write_report(r, tmp_path / name, config_text="").read_text(encoding="utf-8")
        for name, r in (("whole", loaded), ("compact", small))
    ]
    assert pages[0] == pages[1]


def test_one_seed_makes_a_page(tmp_path):
    path = reporting.write_report(language_models(seeds=1), tmp_path, config_text="")
    text = words(sections(path)[TITLE])
    assert "cannot be told from chance with so few seeds" in text and "±" in text
    assert "clearly" not in text
