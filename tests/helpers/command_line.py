"""The command line, run in the process of a test."""

import pathlib

import gin
import pytest
from absl import flags, logging
from absl.testing import flagsaver

from ldro_jax import configuration, main
from ldro_jax.runtime import paths

ROOT = pathlib.Path(__file__).parents[2]


def gin_file(name):
    """The flag for an experiment's gin file."""
    return f"--gin_file={ROOT / 'gin_configs' / 'experiments' / name}"


DIGITS = gin_file("digits.gin")


def command(*args):
    """Runs the command line."""
    verbosity = logging.get_verbosity()
    try:
        with flagsaver.flagsaver():
            flags.FLAGS(["ldro-jax", *configuration.rewrite_gin_flags(args)])
            main.main(["ldro-jax"])
    finally:
        gin.clear_config()
        logging.set_verbosity(verbosity)


def fails(*args):
    """Runs a command that must fail, and returns what it says."""
    with pytest.raises(SystemExit) as error:
        command(*args)
    return str(error.value)


def snapshot(directory):
    """The content of every file in a directory, but for the lock, which says who had it last."""
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(paths.TEMPORARY)
    }
