"""Experiments, from their gin files to their records."""

import gin
import jax

from ldro_jax import configuration
from ldro_jax.experiments.arguments import Directories
from ldro_jax.records import results


def run(name, output_dir, *bindings, data_dir=None):
    """Runs ``gin_configs/experiments/NAME``; its bindings stay until a test clears them.

    Returns:
      The record, as it was written.
    """
    experiment = configuration.load([f"gin_configs/experiments/{name}"], bindings)
    directories = Directories(
        output_dir, data_dir and str(data_dir), config_text=configuration.text()
    )
    # Optax's Adam is not made for strict promotion.
    with jax.numpy_dtype_promotion("standard"):
        experiment(output_dir=directories)
    return results.load_results(output_dir / "results.json")


def to_report(*args, **options):
    """The same with nothing left behind, and with a report."""
    try:
        record = run(*args, **options)
    finally:
        gin.clear_config()
    assert (args[1] / "report.html").exists()
    return record
