"""One decoder fine-tuned on five languages by Tunix, on the average loss and with task weights.

    pip install google-tunix==0.1.7                       # Python 3.12
    python examples/tunix_languages.py DATA_DIR [SEEDS]

DATA_DIR has <language>/train.txt and validation.txt, or .txt.gz. A small Llama learns English bytes
first, and then five other languages, eight rows of each in a batch. Perplexities are per byte, of
validation text. Five seeds take 25 minutes on 2 cores.
"""

import gzip
import pathlib
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.llama3 import model as llama3
from tunix.sft import peft_trainer

from ldro_jax import ldro
from ldro_jax.integrations import tunix

LANGUAGES = ("de", "fi", "sw", "tr", "vi")
ROWS, LENGTH, STEPS = 8, 64, 1000
METHODS = {
    "average loss": None,
    "ldro.transform(5)": lambda: ldro.transform(5),
    "L-DRO": lambda: ldro.transform(
        5, lookahead_lr=0.1, weight_lr=0.1, interaction_interval=10, interaction="split"
    ),
}
CONFIG = llama3.ModelConfig(
    num_layers=2,
    vocab_size=256,
    embed_dim=128,
    hidden_dim=256,
    num_heads=4,
    head_dim=32,
    num_kv_heads=2,
    rope_theta=10_000,
    norm_eps=1e-5,
    weight_tying=True,
)


def text(data_dir, language, split):
    """The bytes of a language."""
    path = pathlib.Path(data_dir) / language / f"{split}.txt"
    packed = path.with_name(f"{path.name}.gz")
    given = gzip.decompress(packed.read_bytes()) if packed.exists() else path.read_bytes()
    return np.frombuffer(given, np.uint8)


def rows(texts, number, rng):
    """Stretches of each text, and which text each is of."""
    starts = [rng.integers(0, len(each) - LENGTH, number) for each in texts]
    tokens = [
        each[start : start + LENGTH + 1]
        for each, of in zip(texts, starts, strict=True)
        for start in of
    ]
    task = np.repeat(np.arange(len(texts), dtype=np.int32), number)
    return {"tokens": np.stack(tokens).astype(np.int32), "task": task}


def token_losses(model, tokens):
    """The loss of each next byte, ``[rows, LENGTH]``."""
    inputs = tokens[:, :-1]
    positions = jnp.broadcast_to(jnp.arange(LENGTH), inputs.shape)
    seen = jnp.tril(jnp.ones((1, LENGTH, LENGTH), bool))
    logits, _ = model(inputs, positions, None, seen)
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:])


def task_losses(model, tokens, task):
    """What the weighting asks for."""
    return ldro.Rows(token_losses(model, tokens), task)


def mean_loss(model, tokens, task):
    """The same mean of all rows, for Tunix alone."""
    del task
    return token_losses(model, tokens).mean()


@nnx.jit
def perplexities(model, tokens, task):
    """Of each language."""
    losses, _ = ldro.task_means(token_losses(model, tokens), task, len(LANGUAGES))
    return jnp.exp(losses)


def new_model(seed):
    """A Llama. Tunix leaves its MLPs at zero, to be loaded; no gradient moves them from there."""
    model, keys = llama3.Llama3(CONFIG, rngs=nnx.Rngs(seed)), nnx.Rngs(1000 + seed)
    for layer in model.layers:
        for linear in (layer.mlp.gate_proj, layer.mlp.up_proj, layer.mlp.down_proj):
            kernel = linear.kernel
            kernel[...] = jax.random.normal(keys(), kernel.shape) / jnp.sqrt(kernel.shape[0])
    return model


def trained(model, texts, learning_rate, seed, weighting=None):
    """Trains a model in its place."""
    schedule = optax.warmup_cosine_decay_schedule(0.0, learning_rate, 20, STEPS)
    config = peft_trainer.TrainingConfig(eval_every_n_steps=STEPS + 1, max_steps=STEPS)
    if weighting is None:
        trainer = peft_trainer.PeftTrainer(model, optax.adamw(schedule), config)
        trainer.with_loss_fn(mean_loss)
    else:
        adamw = optax.adamw(schedule)
        trainer = tunix.PeftTrainer(model, adamw, config, weighting=weighting)
        trainer.with_loss_fn(task_losses)
    rng = np.random.default_rng(seed)
    trainer.train(rows(texts, ROWS * len(LANGUAGES) // len(texts), rng) for _ in range(STEPS))


def main(data_dir, seeds="5"):
    """Prints the perplexities after fine-tuning, and their means and deviations."""
    english = [text(data_dir, "en", "train")]
    train = [text(data_dir, language, "train") for language in LANGUAGES]
    held_out = [text(data_dir, language, "validation") for language in LANGUAGES]
    held_out = rows(held_out, 128, np.random.default_rng(0))
    found = {name: [] for name in METHODS}
    print("seed  method             ", *LANGUAGES, "average", "worst", sep="  ")
    for seed in range(int(seeds)):
        base = new_model(seed)
        trained(base, english, 3e-3, seed)
        for name, make in METHODS.items():
            model = nnx.clone(base)
            trained(model, train, 3e-3, 100 + seed, make and make())
            by_language = np.asarray(perplexities(model, **jax.tree.map(jnp.asarray, held_out)))
            found[name].append([*by_language, by_language.mean(), by_language.max()])
            print(seed, f"{name:18}", *(f"{x:.3f}" for x in found[name][-1]), sep="  ", flush=True)
    average = np.array(found["average loss"])
    for name, of_seeds in found.items():
        apart = np.array(of_seeds) - average
        deviation = apart.std(0, ddof=1) if len(apart) > 1 else 0 * apart[0]
        pairs = zip(apart.mean(0), deviation, strict=True)
        print(f"{name:18}  minus average loss ", *(f"{m:+.3f} ± {s:.3f}" for m, s in pairs))


if __name__ == "__main__":
    main(*sys.argv[1:])
