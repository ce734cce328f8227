#!/usr/bin/env bash
# A Keras model that is saved and loaded draws other dropout masks than one that trains on.
#
# Versions: keras 3.15.1 on JAX (jax 0.7.0, CPU, Python 3.11).
# What one would guess: model.save keeps all that fit needs to go on as if nothing had happened, as it
# keeps the optimizer's state; the state of a seed generator is one of the model's variables.
# What happens: save and save_weights leave out the states of seed generators. Without dropout a model
# goes on to the bit; with it the loaded one begins with a new seed, and ends with other weights.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "keras==3.15.1" "jax==0.7.0" "jaxlib==0.7.0"
cd "$folder"
KERAS_BACKEND=jax JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import keras
import numpy as np

inputs = np.random.default_rng(0).normal(size=(64, 4)).astype("float32")


def made(rate):
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(16, "relu"), keras.layers.Dropout(rate), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile("adam", "mse")
    return model


def fit(model):
    model.fit(inputs, inputs[:, :1], epochs=1, shuffle=False, verbose=0)
    return model


for rate in (0.0, 0.5):
    once = fit(made(rate))
    once.save("model.keras")
    trained_on, loaded = fit(once), fit(keras.models.load_model("model.keras"))
    both = zip(trained_on.get_weights(), loaded.get_weights())
    difference = max(np.abs(x - y).max() for x, y in both)
    print(f"dropout {rate}: weights differ by {difference:.2g}")
    assert (difference == 0) == (rate == 0), difference
states = [v.path for v in once.variables if "seed_generator_state" in v.path]
print("among the variables:", states)
assert states
EOF
