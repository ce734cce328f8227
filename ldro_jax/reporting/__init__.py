"""The report of a record: tables for a terminal, a page with figures.

What is compared is resolved once (`comparison`), from the record as a table (`frame`). `sections`
says what a page shows, `tables` and `figures` make its parts, `page` renders it with `templates/`.
"""

import contextlib
import os
import pathlib
from collections.abc import Sequence
from typing import Any

from absl import logging

from ldro_jax.records.results import Results, save_results
from ldro_jax.records.shown import Table
from ldro_jax.runtime import checks, paths, printing

__all__ = ["finish", "headline_text", "summary", "write_report"]


def write_report(
    record: Results,
    output_dir: str | os.PathLike[str],
    *,
    config_text: str = "",
    baseline: str | None = None,
    extra_sections: Sequence[tuple[str, str, Any]] = (),
) -> pathlib.Path:
    """Writes `report.html` and `figures/*.png`.

    For a sweep it shows the frontiers of all settings, and everything else with one setting per
    method, the one whose value `record.select_by` was best on validation.

    Args:
      record: what came out.
      output_dir: the folder; it is made if missing.
      config_text: the resolved configuration, shown as it is.
      baseline: what methods are compared with; by default the one that trains on the average loss.
      extra_sections: title, caption, and a matplotlib figure, trusted HTML, or a list of rows of
        texts, the first of them the header of a table. The figure is saved too. Title, caption and
        table are escaped.

    Returns:
      The path of `report.html`.

    Raises:
      ImportError: if the extra `plots` is not installed.
      ValueError: if there is no method of the name `baseline`.
    """
    try:
        import jinja2  # noqa: F401
        import matplotlib  # noqa: F401

        from ldro_jax.reporting import comparison, page, sections
    except ImportError as error:
        raise ImportError(
            f"A report needs what can't be imported here ({error}): pip install 'ldro-jax[plots]', "
            "then write the report again."
        ) from error
    compared = comparison.compare(record, baseline=baseline)
    return page.write(
        paths.make(output_dir),
        f"{record.experiment}: average and worst task",
        sections.introduction(compared),
        sections.of_page(compared, config_text, extra_sections),
    )


def summary(record: Results, *, baseline: str | None = None) -> Table:
    """The table of the report's summary: average and worst task of each method, and its cost.

    Raises:
      ValueError: if there is no method of the name `baseline`.
    """
    from ldro_jax.reporting import comparison, tables

    return tables.headline(comparison.compare(record, baseline=baseline))


def headline_text(record: Results) -> str:
    """The tables for a terminal, at most 100 columns wide, the best of a column marked with `*`.

    Of a sweep all settings are shown. Where the record has the values of models of one task each,
    relative values follow, with one setting of each method.
    """
    from ldro_jax.reporting import comparison, tables

    checks.instance("record", record, Results, "what load_results gives")
    if not record.runs:
        return "no runs"
    everything = comparison.compare(record, every_setting=True)
    shown = [tables.headline(everything), tables.relative(comparison.compare(record))]
    return "\n\n".join(table.text() for table in shown if table)


def finish(
    record: Results,
    output_dir: pathlib.Path,
    config_text: str,
    extra_sections: Sequence[tuple[str, str, Any]] = (),
) -> None:
    """Writes the report, then `results.json`, and prints the tables; see :func:`write_report`.

    Without the extra `plots` there may be neither, and a warning says why.
    """
    try:
        page = write_report(
            record, output_dir, config_text=config_text, extra_sections=extra_sections
        )
    except ImportError as error:
        logging.warning("No report is written: %s", error)
        page = output_dir / "results.json"
    # Last, because a directory that has it counts as finished.
    save_results(record, output_dir / "results.json")
    with contextlib.suppress(ImportError):
        printing.say(headline_text(record))
    printing.say(f"Everything is in {output_dir}; look at {page}.")
