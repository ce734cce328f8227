"""The page is complete, well-formed, self-contained and escaped, whatever is missing."""

import dataclasses
import html.parser
import re

import numpy as np
import pytest

from ldro_jax import reporting
from ldro_jax.reporting import Run, plots

VOID = {"meta", "img", "br", "hr", "link", "input"}
FIGURES = {
    "average_vs_worst.png",
    "interaction_matrix.png",
    "metric_over_steps.png",
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
        "1 cpu made up",
    ):
        assert expected in page.words
    assert any(tag == "details" for tag, _ in page.tags)


def test_no_figure_stays_open(written):
    pyplot = pytest.importorskip("matplotlib.pyplot")
    assert written.exists() and pyplot.get_fignums() == []


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
    figure = plots.trajectories([("t", {"A": path})], path, [1, 0], [1, 0], 1.25)
    extra = [("Toy problem", "A caption.", figure), ("Toy problem", "Another.", "<b>table</b>")]
    record = made_up.results([made_up.run("A", 0, [0.1, 0.2])])
    page = read(reporting.write_report(record, tmp_path, config_text="", extra_sections=extra))
    assert (tmp_path / "figures" / "toy-problem.png").exists()
    assert "A caption." in page.words and ("b", {}) in page.tags


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


def test_a_loaded_record_makes_the_same_page(full, written, tmp_path):
    path = reporting.save_results(full, tmp_path / "results.json")
    again = reporting.write_report(
        reporting.load_results(path), tmp_path, config_text="rate = 0.1  # <why>"
    )
    assert read(again).words == read(written).words


def test_without_matplotlib_the_page_says_so(full, tmp_path, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    page = read(reporting.write_report(full, tmp_path, config_text=""))
    assert "pip install 'ldro-jax[plots]'" in page.words
    assert "L-DRO online has the best mean" in page.words
    assert not (tmp_path / "figures").exists()


def test_an_unknown_baseline_is_an_error(full, tmp_path):
    with pytest.raises(ValueError, match="found 'nobody'"):
        reporting.write_report(full, tmp_path, config_text="", baseline="nobody")
