"""Reads the ``config.gin`` of a run without importing anything that it names.

T5X writes the configuration that it ran with into ``MODEL_DIR``: imports, macros, and one binding a
line.
"""

import dataclasses
import tokenize
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ldro_jax.runtime import errors, paths

# What the report says elsewhere, or what is no choice.
_NOT_SHOWN = {
    *("checkpoint_cfg", "decay_steps", "learning_rate_fn", "num_tasks", "task_names"),
    "train_steps",
}
# What a run was trained with, besides its optimizer and its trainer: configurable, argument, scope.
_SHOWN = (
    ("text_mixture", "exponent", ""),
    ("get_dataset", "sampling", ""),
    ("get_dataset", "temperature", ""),
    ("DatasetConfig", "batch_size", "train"),
    ("DatasetConfig", "task_feature_lengths", "train"),
    ("Trainer", "num_microbatches", ""),
)


@dataclasses.dataclass(frozen=True)
class Reference:
    """``@name`` or ``@name()``; ``%name`` if it is a macro.

    Attributes:
      name: with its scope, as in ``train/utils.DatasetConfig``.
      is_macro: whether it is one.
    """

    name: str
    is_macro: bool = False


@dataclasses.dataclass(frozen=True)
class Config:
    """A configuration.

    Attributes:
      macros: values by name.
      bindings: by scope, name of the configurable as the file has it, and argument.
    """

    macros: dict[str, Any]
    bindings: dict[tuple[str, str, str], Any]

    def value(self, configurable: str, argument: str, scope: str = "") -> Any:
        """What an argument is bound to.

        Args:
          configurable: last part of its name, as in ``DatasetConfig``.
          argument: its name.
          scope: a binding without scope counts where there is none of this one.

        Returns:
          The value; macros are followed. None if there is no such binding.
        """
        for where in (scope, ""):
            for (bound_in, name, bound), value in self.bindings.items():
                if (bound_in, name.split(".")[-1], bound) == (where, configurable, argument):
                    return self._resolved(value)
        return None

    def unused(self) -> list[str]:
        """Names of the macros that nothing refers to, in order."""
        values = [*self.macros.values(), *self.bindings.values()]
        used = {reference.name.rpartition("/")[-1] for reference in _references(values)}
        return sorted(self.macros.keys() - used)

    def hyperparameters(self) -> dict[str, Any]:
        """What a run was trained with: weighting and optimizer, batches, and the trainer's options.

        Returns:
          Values by the names of the arguments, with the configurable's where two have the same. Of
          what refers to a configurable, its name.
        """
        model = self._bound(self.value("train", "model"))
        definitions = [value for _, argument, value in model if argument == "optimizer_def"]
        # A model of this library inherits what is bound for the class that it is derived from.
        definitions += [value for key, value in self.bindings.items() if key[2] == "optimizer_def"]
        definition = definitions[0] if definitions else None
        shown = list(self._below(definition))
        if "optimizer" not in {argument for _, argument, _ in shown}:
            shown.insert(0, ("", "optimizer", definition))
        if "learning_rate" not in {argument for _, argument, _ in shown}:
            shown += self._below(self.value("Trainer", "learning_rate_fn"))
        for configurable, argument, scope in _SHOWN:
            shown.append((configurable, argument, self.value(configurable, argument, scope)))
        shown += self._bound(self.value("train", "trainer_cls"))
        named: dict[str, Any] = {}
        for configurable, argument, value in shown:
            value = self._resolved(value)
            if argument in _NOT_SHOWN or value is None or value == ():
                continue
            value = value.name if isinstance(value, Reference) else value
            if argument in named and named[argument] != value:
                argument = f"{configurable}.{argument}"
            named.setdefault(argument, value)
        return named

    def _below(self, value: Any, seen: Sequence[str] = ()) -> Iterator[tuple[str, str, Any]]:
        """Arguments of a configurable and of all that it refers to, the nearest first."""
        value = self._resolved(value)
        if not isinstance(value, Reference) or value.name in seen:
            return
        own = [bound for bound in self._bound(value) if bound[1] not in _NOT_SHOWN]
        yield from own
        for _, _, deeper in own:
            yield from self._below(deeper, (*seen, value.name))

    def _bound(self, reference: Any) -> list[tuple[str, str, Any]]:
        """Of each argument that is bound for a configurable: its name there, and the value."""
        if not isinstance(reference, Reference):
            return []
        scope, _, name = reference.name.rpartition("/")
        arguments = {}
        for where in ("", scope):
            for (bound_in, configurable, argument), value in self.bindings.items():
                if (bound_in, configurable) == (where, name):
                    arguments[argument] = value
        return [(name.split(".")[-1], argument, value) for argument, value in arguments.items()]

    def _resolved(self, value: Any, seen: Sequence[str] = ()) -> Any:
        if not isinstance(value, Reference) or not value.is_macro:
            return value
        if value.name in seen or value.name not in self.macros:
            return None
        return self._resolved(self.macros[value.name], (*seen, value.name))


def read(model_dir: str) -> tuple[str, Config]:
    """The text of the ``config.gin`` of a run, and the configuration; both empty without the file.

    Raises errors as :func:`parse` does.
    """
    file = paths.make(model_dir) / "config.gin"
    text = file.read_text(encoding="utf-8") if file.exists() else ""
    return text, parse(text, str(file))


def parse(text: str, path: str = "config.gin") -> Config:
    """Reads a configuration as T5X writes it.

    Args:
      text: of the file.
      path: of the file, for errors.

    Returns:
      The configuration.

    Raises:
      ImportError: if gin is not installed.
      ValueError: if the text is something else.
    """
    config = Config({}, {})
    if not text:
        return config
    try:
        from gin import config_parser
    except ImportError as error:
        raise ImportError(
            f"{path} is read with gin, which can't be imported ({error}): pip install "
            "'ldro-jax[lm]'."
        ) from error

    class Delegate(config_parser.ParserDelegate):
        def configurable_reference(self, scoped_configurable_name, evaluate):
            del evaluate
            return Reference(scoped_configurable_name)

        def macro(self, macro_name):
            return Reference(macro_name, is_macro=True)

    try:
        for statement in config_parser.ConfigParser(text, Delegate()):
            if isinstance(statement, config_parser.BindingStatement):
                scope, name, argument = statement[:3]
                if argument:
                    config.bindings[scope, name, argument] = statement.value
                else:
                    config.macros[name] = statement.value
    except (SyntaxError, ValueError, tokenize.TokenError) as error:
        raise ValueError(
            f"Expected the configuration of a run of T5X in {path}, but it can't be read "
            f"({errors.first_line(error)}). Copy it again, or move it away."
        ) from error
    return config


def _references(value: Any) -> Iterator[Reference]:
    """All references in a value, however deep in lists and dictionaries."""
    if isinstance(value, Reference):
        yield value
    elif isinstance(value, Mapping):
        yield from _references([*value.keys(), *value.values()])
    elif isinstance(value, list | tuple):
        for part in value:
            yield from _references(part)
