"""A Flax NNX model and your own weighting in the trainer: digits seen through ten optics.

python examples/nnx_model.py [OUTPUT_DIR]
"""

import sys

import jax
import optax
from flax import nnx

import ldro_jax
from ldro_jax import problems, weighting
from ldro_jax.tasks import digits
from ldro_jax.training import Batches, Method, Schedule


class Network(nnx.Module):
    """A multilayer perceptron of images of 8 × 8 pixels."""

    def __init__(self, rngs: nnx.Rngs):
        self.hidden = nnx.Linear(64, 16, rngs=rngs)
        self.output = nnx.Linear(16, 10, rngs=rngs)

    def __call__(self, images):
        return self.output(nnx.relu(self.hidden(images.reshape(len(images), 64))))


def softmax_of_losses(temperature: float) -> weighting.Weighting:
    """Weights that are larger the larger a task's loss is."""
    return weighting.stateless(lambda statistics: jax.nn.softmax(statistics.losses / temperature))


def main(output_dir: str = "results_local/nnx_model") -> None:
    """Trains and compares."""
    problem = problems.classification(load_data=digits.load, model=lambda num_classes: Network)
    ldro_jax.compare(
        problem,
        [
            Method("Average", "average"),
            Method("Softmax of losses", softmax_of_losses, {"temperature": 0.5}),
            Method("L-DRO", "lookahead_online", {"lookahead_lr": 1.0, "weight_lr": 0.01}),
        ],
        seeds=(0, 1, 2),
        optimizer=optax.sgd(0.05, momentum=0.9, nesterov=True),
        schedule=Schedule(train_steps=500, eval_interval=50, checkpoint_interval=250),
        batches=Batches(160),
        output_dir=output_dir,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
