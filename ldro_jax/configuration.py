"""What gin files can name.

The rest of the library knows nothing of gin: this module makes it configurable from outside.
"""

import collections
import functools
import inspect
import os
import pathlib
import re
import tokenize
from collections.abc import Callable, Sequence
from typing import Any

import gin
import optax
from gin import config as gin_config

from ldro_jax import optimizers, sharding, shipped
from ldro_jax.experiments import (
    alone,
    approaches,
    arguments,
    compare,
    grouped,
    trajectories,
    worst_groups,
)
from ldro_jax.interaction import products
from ldro_jax.models import autoencoder, cnn, decoder, mlp
from ldro_jax.problems import (
    CVaR,
    Perturbed,
    Reconstruction,
    classification,
    language_model,
    public_data,
)
from ldro_jax.tasks import cifar100, corrupted, digits, mc4
from ldro_jax.tasks import grouped as grouped_tasks
from ldro_jax.tasks import synthetic as synthetic_tasks
from ldro_jax.tasks import text as text_tasks
from ldro_jax.training import batches, method, schedule

_CONFIGURABLES = {
    "cifar100": [cifar100.load],
    "corrupted": [corrupted.corrupted],
    "digits": [digits.load],
    "experiments": [compare.compare, alone.monolingual, arguments.Report],
    "groups": [grouped.Affinity, grouped.Choices, grouped.compare_groups],
    "grouped": [
        grouped_tasks.adult,
        grouped_tasks.celeba,
        grouped_tasks.civilcomments,
        grouped_tasks.spurious_cifar100,
        grouped_tasks.spurious_digits,
        grouped_tasks.toy,
        grouped_tasks.waterbirds,
    ],
    "interaction": [products],
    "lm": [optimizers.adam],
    "mc4": [mc4.load],
    "models": [
        autoencoder.CNNAutoencoder,
        autoencoder.MLPAutoencoder,
        cnn.CNN,
        decoder.Decoder,
        mlp.MLP,
    ],
    "optax": [
        optimizers.checked(function)
        for function in (optax.adam, optax.adamw, optax.cosine_decay_schedule, optax.sgd)
    ],
    "optimizers": [optimizers.sgd_l2],
    "problems": [CVaR, Perturbed, Reconstruction, classification, language_model],
    "public_data": [public_data.chicago, public_data.moleculeace, public_data.yeast],
    "synthetic": [synthetic_tasks.points, trajectories.Panel, trajectories.trajectories],
    "text": [text_tasks.load],
    "training": [
        method.Method,
        method.grid,
        schedule.Schedule,
        schedule.epochs,
        sharding.Layout,
        batches.Batches,
    ],
    "worst_groups": [
        approaches.Approach,
        approaches.DFR,
        approaches.JTT,
        worst_groups.compare_worst_groups,
    ],
}


# By gin's description of a function: its name in gin files, with the module where that is needed.
_ALL = [(module, function) for module, found in _CONFIGURABLES.items() for function in found]
_TIMES = collections.Counter(function.__name__ for _, function in _ALL)
_CALLED = {
    str(f): (f"{m}.{f.__name__}" if m == "optax" or _TIMES[f.__name__] > 1 else f.__name__, f)
    for m, f in _ALL
}


@functools.cache
def _register() -> None:
    for module, functions in _CONFIGURABLES.items():
        for function in functions:
            gin.external_configurable(function, module=module)
    # gin would look for a/b.gin in a Python package a before it comes to the search path, and fails
    # at a mere folder of that name. It would also read files in the locale's encoding.
    utf8 = functools.partial(open, encoding="utf-8-sig")
    gin_config._FILE_READERS = [(utf8, os.path.isfile)]
    for path in shipped.ROOTS:
        gin.add_config_file_search_path(str(path))


@gin.configurable
def run(experiment: Any = gin.REQUIRED) -> Callable:
    """The experiment to run, which gin files bind: a function of ``output_dir``."""
    return experiment


def load(gin_files: Sequence[str], gin_bindings: Sequence[str]) -> Callable:
    """Reads gin files and bindings; those of an earlier call are forgotten.

    Args:
      gin_files: paths, from the working directory or from the directory that holds ``gin_configs``.
      gin_bindings: ``NAME=VALUE`` each; they win over the files.

    Returns:
      The experiment, a function of ``output_dir``, a
      :class:`~ldro_jax.experiments.arguments.Directories`.

    Raises:
      FileNotFoundError: if there is no such file.
      ValueError: if a name is unknown, a value can't be read, a binding has no effect, or no
        experiment is bound.
    """
    _register()
    gin.clear_config()
    gin_bindings = [_as_utf8(binding) for binding in gin_bindings]
    for file in gin_files:
        if not any((root / file).is_file() for root in (pathlib.Path(), *shipped.ROOTS)):
            raise FileNotFoundError(f"There is no gin file {file}. {_known_experiments()}")
    try:
        gin.parse_config_files_and_bindings(list(gin_files), list(gin_bindings))
    except OSError as error:
        raise FileNotFoundError(f"A gin file can't be read. {error}") from error
    except (ValueError, SyntaxError, tokenize.TokenError) as error:
        # gin quotes the whole configuration where a macro is missing.
        reason = str(error).partition(" in config string:")[0]
        reason = re.sub(r"No bindings .* '(.*)/gin\.macro'", r"Nothing binds the macro \1.", reason)
        # It shows the line as well, and points to the place.
        reason = re.sub(r"\n  In .*? line \d+\n +(.*)(\n +\^)?", r" (\1)", reason)
        raise ValueError(
            f"The gin configuration can't be used. {reason}{_known_names(reason)}"
        ) from error
    for binding in gin_bindings:
        _check_effect(binding, text())
    try:
        experiment = run()
    except RuntimeError as error:
        raise ValueError(f"No gin file binds run.experiment. {_known_experiments()}") from error
    if not callable(experiment):
        raise ValueError(
            f"run.experiment must be a function, such as @compare, but it is {experiment!r}."
        )
    return experiment


def text() -> str:
    """The resolved configuration, every binding and macro, as gin text."""
    return gin.config_str()


def explain(error: Exception) -> str:
    """What an error says, beginning with the gin name of the argument that is wrong.

    gin appends to the error of a function which function that was. If the message begins with one
    of its arguments, it gets the name of the function in front in place of that. Arguments that are
    flags on the command line are called so.
    """
    message = _explained(error)
    message = message.replace("output_dir=Directories(…, overwrite=True)", "--overwrite")
    return re.sub(r"(^|\banother |\bfor )output_dir\b", r"\1--output_dir", message)


def _explained(error: Exception) -> str:
    message, *calls = re.split(r"\n  In call to configurable ", str(error))
    # gin's list of the arguments that it has; Python has said which one is missing.
    message = message.partition("\n  No values supplied by Gin")[0]
    first = re.match(r"\w*", message)[0]  # pyright: ignore[reportOptionalSubscript]
    for call in calls:
        described = re.match(r"'\S+' \((.*)\)(?: in scope '(\S+)')?$", call)
        name, function = _CALLED.get(described[1] if described else "", (None, None))
        if described is None or function is None:
            continue
        scoped = f"{described[2]}/{name}" if described[2] else name
        if missing := re.search(r"missing \d+ required .*arguments?: (.*)", message):
            return f"{scoped} needs {missing[1]}, which nothing binds."
        if first in inspect.signature(function).parameters:
            message = f"{scoped}.{message}"
            break
    return message


def rewrite_gin_flags(argv: Sequence[str]) -> list[str]:
    """The command line with ``--gin_bindings=NAME=VALUE``, which absl knows, for ``--gin.…``."""
    prefix = "--gin."
    return [
        f"--gin_bindings={arg.removeprefix(prefix)}" if arg.startswith(prefix) else arg
        for arg in argv
    ]


def _as_utf8(argument: str) -> str:
    """An argument of the command line, whatever the locale."""
    try:
        return os.fsencode(argument).decode()
    except UnicodeError:
        return argument


def _known_experiments() -> str:
    known = [f"{shipped.FOLDER}/{name}.gin" for name in shipped.experiments()]
    return f"Known experiments: {', '.join(known) or 'none found'}."


def _known_names(error: str) -> str:
    """What could have been meant by a name that gin doesn't know."""
    if match := re.search(r"Configurable '(\S+)' doesn't have a parameter", error):
        name = match[1].split(".")[-1]
        functions = [f for fs in _CONFIGURABLES.values() for f in fs if f.__name__ == name]
        parameters = ", ".join(inspect.signature(functions[0]).parameters) if functions else ""
        return f" Known parameters: {parameters}." if parameters else ""
    if "No configurable matching" in error:
        names = sorted(f"{m}.{f.__name__}" for m, fs in _CONFIGURABLES.items() for f in fs)
        return f" Known names: {', '.join(names)}, run."
    return ""


def _check_effect(binding: str, config_text: str) -> None:
    """Refuses a macro or scope that nothing refers to: gin keeps it, and a slip goes unnoticed."""
    key, equals, _ = (part.strip() for part in binding.partition("="))
    if not equals:
        return
    scope, slash, _ = key.rpartition("/")
    macros = set(re.findall(r"%([\w.]+)", config_text))
    scopes = set(re.findall(r"@([\w./]+)/", config_text))
    if slash and scope not in scopes:
        kind, known = "scope", scopes
    elif not slash and "." not in key and key not in macros:
        kind, known = "macro", macros
    else:
        return
    raise ValueError(
        f"The binding {binding} has no effect, because nothing uses the {kind} {scope or key!r}. "
        f"Known {kind}s: {', '.join(sorted(known)) or 'none'}."
    )
