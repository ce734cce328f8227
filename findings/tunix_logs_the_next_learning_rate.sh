#!/usr/bin/env bash
# Tunix logs the learning rate of the step after; and none at all where gradients are clipped first.
#
# Versions: google-tunix 0.1.7 with jax 0.10.2, flax 0.12.8, optax 0.2.8 (Python 3.11); the same with jax
# 0.12.0.1 and flax 0.12.12 (Python 3.12).
# What one would guess: with `optax.inject_hyperparams`, as its docstring asks, the log has for each step the loss and
# the rate that this step was made with.
# What happens: a step's loss is kept until the next step has been started, and only then written, together with what
# the optimizer says now. Of the rates 0, 0.1, ... 0.5 the log has 0.1, 0.2, 0.3, 0.4, 0.5, 0.5: the first is missing, and
# the last is there twice. In `optax.chain(optax.clip_by_global_norm(1.0), ...)` no rate is logged at all, without a
# word, as the search for it ends at the first part that has no state; with the clipping behind it is.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "google-tunix==0.1.7" "jax==0.10.2" "jaxlib==0.10.2" "flax==0.12.8" "optax==0.2.8"
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.sft import peft_trainer

RATES = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5], np.float32)


class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(jnp.zeros(()))


def logged(optimizer):
    """Losses and rates in the log. The gradient is 1, so that losses fall by the rate."""
    config = peft_trainer.TrainingConfig(eval_every_n_steps=100)
    trainer = peft_trainer.PeftTrainer(Model(), optimizer, config)
    trainer.with_loss_fn(lambda model, x: (model.w[...] * x).mean())
    trainer.train([{"x": np.ones(2, np.float32)}] * len(RATES))
    log = trainer.metrics_logger
    found = log.metric_exists("", "learning_rate", "train")
    rates = log.get_metric_history("", "learning_rate", "train").astype(float) if found else None
    return log.get_metric_history("", "loss", "train").astype(float), rates


sgd = optax.inject_hyperparams(optax.sgd)(learning_rate=lambda count: jnp.asarray(RATES)[count])
clip = optax.clip_by_global_norm(1.0)
losses, rates = logged(sgd)
print("losses", losses.round(2).tolist(), "rates", rates.round(2).tolist())
np.testing.assert_allclose(losses[:-1] - losses[1:], RATES[:-1], atol=1e-6)
np.testing.assert_allclose(rates, [*RATES[1:], RATES[-1]], atol=1e-6)
(losses, without), (_, behind) = logged(optax.chain(clip, sgd)), logged(optax.chain(sgd, clip))
print("clipped first: losses", losses.round(2).tolist(), "rates", without)
print("clipped last: rates", behind.round(2).tolist())
assert without is None
np.testing.assert_array_equal(behind, rates)
EOF
