"""What gin files can name, and the directory an experiment writes to.

The rest of the library knows nothing of gin: this module makes it configurable from outside.
"""

import difflib
import functools
import pathlib
import shutil
import tempfile
from collections.abc import Callable, Sequence

import gin
import optax

from ldro_jax.models import mlp
from ldro_jax.tasks import digits
from ldro_jax.tasks import synthetic as synthetic_tasks
from ldro_jax.training import experiment, loop, method
from ldro_jax.training import synthetic as synthetic_training

_PACKAGE = pathlib.Path(__file__).resolve().parent

_CONFIGURABLES = {
    "digits": [digits.load],
    "models": [mlp.MLP],
    "optax": [optax.adam, optax.adamw, optax.cosine_decay_schedule, optax.sgd],
    "synthetic": [synthetic_tasks.points, synthetic_training.Panel, synthetic_training.trajectories],
    "training": [experiment.multitask_classification, loop.Schedule, method.Method],
}


@functools.cache
def _register() -> None:
    for module, functions in _CONFIGURABLES.items():
        for function in functions:
            gin.external_configurable(function, module=module)
    # From a clone, from an installed package, and from wherever the user stands.
    for path in (_PACKAGE.parent, _PACKAGE):
        gin.add_config_file_search_path(str(path))


@gin.configurable
def run(experiment: Callable = gin.REQUIRED) -> Callable:
    """The experiment to run; gin files bind it.

    Args:
      experiment: a function of ``output_dir``, ``data_dir`` and ``config_text``.

    Returns:
      The same function.
    """
    return experiment


def load(gin_files: Sequence[str], gin_bindings: Sequence[str]) -> Callable:
    """Reads gin files and bindings.

    Args:
      gin_files: paths, from the working directory or from the directory that holds ``gin_configs``.
      gin_bindings: ``NAME=VALUE`` each; they win over the files.

    Returns:
      The experiment, a function of ``output_dir``, ``data_dir`` and ``config_text``.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a name is unknown, a value can't be read, or no experiment is bound.
    """
    _register()
    try:
        gin.parse_config_files_and_bindings(list(gin_files), list(gin_bindings))
    except OSError as error:
        raise FileNotFoundError(
            f"{error} Known experiments: {', '.join(_known_experiments()) or 'none found'}."
        ) from error
    except (ValueError, SyntaxError) as error:
        raise ValueError(f"The gin configuration can't be used. {error}{_known_names(error)}") from error
    return run()


def text() -> str:
    """The resolved configuration, every binding and macro, as gin text."""
    return gin.config_str()


def rewrite_gin_flags(argv: Sequence[str]) -> list[str]:
    """Turns ``--gin.NAME=VALUE`` into the flag that absl knows.

    Args:
      argv: the command line.

    Returns:
      The command line with ``--gin_bindings=NAME=VALUE`` instead.
    """
    prefix = "--gin."
    return [
        f"--gin_bindings={arg.removeprefix(prefix)}" if arg.startswith(prefix) else arg
        for arg in argv
    ]


def prepare_output_dir(
    directory: pathlib.Path, config_text: str, *, overwrite: bool = False
) -> pathlib.Path:
    """Makes the output directory, or finds that an interrupted run can go on in it.

    Args:
      directory: the directory.
      config_text: the resolved configuration; it is written to ``config.gin``.
      overwrite: delete what an earlier run left there.

    Returns:
      The directory, absolute.

    Raises:
      FileExistsError: if it holds a finished experiment, an unfinished one with another
        configuration, or something that isn't an experiment.
      PermissionError: if it can't be written to.
    """
    directory = directory.expanduser().absolute()
    config = directory / "config.gin"
    if directory.exists() and not directory.is_dir():
        raise FileExistsError(f"{directory} is a file. Choose a directory for --output_dir.")
    if directory.exists() and any(directory.iterdir()):
        if not config.exists():
            raise FileExistsError(
                f"{directory} holds files, but no experiment (no config.gin). Choose another "
                "--output_dir."
            )
        if overwrite:
            shutil.rmtree(directory)
        elif (directory / "results.json").exists():
            raise FileExistsError(
                f"{directory} holds a finished experiment. Choose another --output_dir, or pass "
                "--overwrite to delete it."
            )
        elif (earlier := config.read_text()) != config_text:
            changes = difflib.unified_diff(
                earlier.splitlines(), config_text.splitlines(), "there", "now", n=0, lineterm=""
            )
            raise FileExistsError(
                f"{directory} holds an unfinished experiment with another configuration. Go on with "
                "that one, choose another --output_dir, or pass --overwrite to delete it.\n"
                + "\n".join(changes)
            )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=directory):
            pass
        config.write_text(config_text)
    except OSError as error:
        raise PermissionError(
            f"The output directory {directory} can't be written to ({error.strerror}). Choose "
            "another --output_dir."
        ) from error
    return directory


def _known_experiments() -> list[str]:
    folders = (path / "gin_configs" / "experiments" for path in (_PACKAGE.parent, _PACKAGE))
    return sorted(f"gin_configs/experiments/{f.name}" for d in folders for f in d.glob("*.gin"))


def _known_names(error: Exception) -> str:
    if "No configurable matching" not in str(error):
        return ""
    names = sorted(f"{m}.{f.__name__}" for m, fs in _CONFIGURABLES.items() for f in fs)
    return f" Known names: {', '.join(names)}, run."
