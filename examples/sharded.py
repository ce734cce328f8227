"""A model spread over several devices: here eight that are simulated on the CPU.

    python examples/sharded.py [OUTPUT_DIR]

Logical axes in the model say what can be split; `Layout` says over how many devices. Batches are
split four ways and the hidden layer two ways.
"""

import os
import sys

# Before JAX starts; leave it out where there are real devices.
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax
import optax
from flax import linen as nn

import ldro_jax
from ldro_jax import problems
from ldro_jax.tasks import digits
from ldro_jax.training import Batches, Layout, Method, Schedule


class Network(nn.Module):
    """A multilayer perceptron with logical axes."""

    num_classes: int

    @nn.compact
    def __call__(self, images):
        def kernel(*axes):
            return nn.with_logical_partitioning(nn.initializers.lecun_normal(), axes)

        inputs = images.reshape(len(images), -1)
        hidden = nn.relu(nn.Dense(32, kernel_init=kernel("embed", "mlp"))(inputs))
        return nn.Dense(self.num_classes, kernel_init=kernel("mlp", None))(hidden)


def main(output_dir: str = "results_local/sharded") -> None:
    """Trains and compares."""
    print(f"{jax.device_count()} devices")
    ldro_jax.compare(
        problems.classification(load_data=digits.load, model=Network),
        [
            Method("Average", "average"),
            Method("L-DRO", "lookahead_online", {"lookahead_lr": 1.0, "weight_lr": 0.01}),
        ],
        seeds=(0,),
        optimizer=optax.sgd(0.05, momentum=0.9, nesterov=True),
        schedule=Schedule(train_steps=300, eval_interval=50, checkpoint_interval=150, test="best"),
        batches=Batches(160, layout=Layout(data=4, model=2)),
        output_dir=output_dir,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
