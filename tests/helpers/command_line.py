"""The command line, run in the process of a test."""

import contextlib
import io
import pathlib
import sys

import gin
import pytest
from absl import flags, logging
from absl.testing import flagsaver

from ldro_jax import configuration, main
from ldro_jax.runtime import paths, signals

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


def typed(*args):
    """Types a command; its exit status, and what it prints to both streams."""
    out, err, status = io.StringIO(), io.StringIO(), 0
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        patch.setattr(sys, "argv", ["ldro-jax", *args])
        patch.setattr(signals, "end_at_once", lambda: None)
        patch.setattr(main.app, "run", lambda function, argv: command(*argv[1:]))
        patch.setenv("JAX_PLATFORMS", "cpu")
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                main.run()
            except SystemExit as error:
                status = error.code
                if isinstance(status, str):
                    print(status, file=err)
                    status = 1
    return status or 0, out.getvalue(), err.getvalue()


def snapshot(directory):
    """The content of every file in a directory, but for the lock, which says who had it last."""
    return {
        path: path.read_bytes()
        for path in directory.rglob("*")
        if path.is_file() and not path.name.startswith(paths.TEMPORARY)
    }
