"""Macros of a run that nothing uses, which gin takes without a word: most often mistyped ones."""

import difflib

import gin
import jax
from absl import logging

from ldro_jax.t5x import gin_text

# Similarity by difflib: LOOKAHED_LR and LOOKAHEAD_LR 0.96, EVAL_BATCH_SIZE and BATCH_SIZE 0.8.
_ALIKE = 0.9


def refuse_mistyped() -> None:
    """Raises ``ValueError`` for a macro without use whose name is almost that of another one.

    Logs the others without use, as some files of T5X's own have, and prints the values that the run
    trains with.
    """
    config = gin_text.parse(gin.config_str(), "the gin files and bindings of this run")
    unused = config.unused()
    for name in unused:
        others = [other for other in config.macros if other != name]
        if alike := difflib.get_close_matches(name, others, 1, _ALIKE):
            raise ValueError(
                f"Expected macros that the run uses, but nothing refers to {name}. Did you mean "
                f"{alike[0]}? Correct the name, or remove it."
            )
    if unused:
        logging.warning("Nothing in this run refers to the macros %s.", ", ".join(unused))
    values = ", ".join(f"{name} = {value}" for name, value in config.hyperparameters().items())
    if values and jax.process_index() == 0:
        print(f"Training with {values}", flush=True)
