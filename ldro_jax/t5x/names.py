"""Names that training in T5X and its report share; T5X itself is not needed for them."""

import json

# Written into MODEL_DIR by a run with L-DRO.
TASKS_FILE = "ldro_tasks.json"
# By a run whose trainer counts the tokens that it evaluates.
RUN_FILE = "ldro_run.json"
# The directory of its summaries over tasks, with the tags below; a checkpoint is chosen by one.
OVER_TASKS = "ldro_eval"
AVERAGE_LOSS, WORST_LOSS = "average_loss", "worst_loss"
# Tags of the summaries of each task.
TOKENS, BATCHES = "ldro/tokens", "ldro/batches"
NATS, PERPLEXITY = "ldro/nats_per_token", "ldro/perplexity"
# Registered by ldro_jax.t5x.data.
TEXT_MIXTURE, MC4_MIXTURE = "ldro_text", "ldro_mc4"


def saved_tasks(text: str, path: str) -> list[str]:
    """The names of the tasks that a run with L-DRO began with.

    Args:
      text: what is in ``ldro_tasks.json``.
      path: where it is.

    Returns:
      The names, in the order of the weights.

    Raises:
      ValueError: if there is something else in it.
    """
    try:
        names = json.loads(text)["tasks"]
    except (ValueError, TypeError, KeyError):
        names = None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(
            f"Expected the names of the tasks in {path}, but found {text[:80]!r}. Write them: "
            '{"tasks": ["NAME", "NAME"]}, in the order of seqio, by name.'
        )
    return names
