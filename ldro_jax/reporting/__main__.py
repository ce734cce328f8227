"""Makes the report of a saved record again.

For example::

    python -m ldro_jax.reporting results.json /tmp/report

The output directory gets ``report.html``, ``figures/`` and, with ``--compact``, a ``results.json``
that is small enough to be kept beside code. The configuration is read from the ``config.gin``
beside the record, if there is one.
"""

import argparse
import sys

from ldro_jax import reporting
from ldro_jax.records.compact import compact
from ldro_jax.records.results import load_results, save_results
from ldro_jax.runtime import paths, printing


def main(argv: list[str] | None = None) -> None:
    """Reads the command line, and the record; writes the report."""
    parser = argparse.ArgumentParser(
        prog="python -m ldro_jax.reporting", description="Makes the report of a record again."
    )
    parser.add_argument("record", help="a results.json")
    parser.add_argument("output_dir", help="where the report goes")
    parser.add_argument("--baseline", help="method to compare with")
    parser.add_argument("--compact", action="store_true", help="also write a small results.json")
    args = parser.parse_args(argv)
    try:
        record, output_dir = paths.make(args.record), paths.make(args.output_dir)
        results = load_results(record)
        if args.compact:
            results = compact(results)
        config = record.with_name("config.gin")
        text = config.read_text(encoding="utf-8") if config.exists() else ""
        page = reporting.write_report(results, output_dir, config_text=text, baseline=args.baseline)
        if args.compact:
            save_results(results, output_dir / "results.json")
    except (ImportError, OSError, ValueError) as error:
        sys.exit(f"Error: {error}")
    printing.say(f"Look at {page}.")


if __name__ == "__main__":
    main()
