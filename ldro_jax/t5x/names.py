"""Names that training in T5X and its report share; T5X itself is not needed for them."""

# What a run with L-DRO writes into MODEL_DIR.
TASKS_FILE = "ldro_tasks.json"
# What a run writes there whose trainer counts the tokens that it evaluates.
RUN_FILE = "ldro_run.json"
# The directory of its summaries over tasks, with the tags below; a checkpoint is chosen by one.
OVER_TASKS = "ldro_eval"
AVERAGE_LOSS, WORST_LOSS = "average_loss", "worst_loss"
# Tags of the summaries of each task.
TOKENS, BATCHES = "ldro/tokens", "ldro/batches"
NATS, PERPLEXITY = "ldro/nats_per_token", "ldro/perplexity"
# Registered by ldro_jax.t5x.data.
TEXT_MIXTURE, MC4_MIXTURE = "ldro_text", "ldro_mc4"
