#!/usr/bin/env bash
# A model of Tunix that is trained from scratch never trains its MLPs.
#
# Versions: google-tunix 0.1.7 with jax 0.10.2, flax 0.12.8, optax 0.2.8 (Python 3.11); the same with jax
# 0.12.0.1 and flax 0.12.12 (Python 3.12).
# What one would guess: a model that is made with `rngs` begins with random weights, so that a small one can be trained
# from scratch, to try out a trainer or as a baseline.
# What happens: in all its families (Gemma, Gemma 3 and 4, Llama 3, Qwen 2 and 3) the three kernels of every MLP begin
# at zero, to be overwritten by a checkpoint. The gradient of each has another of them as a factor, so that all three
# stay exactly zero for ever. Attention and embeddings learn, and the loss falls from about 4.2 to less than 0.2 here,
# without a word. Once gate and up are drawn at random all three move.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet "google-tunix==0.1.7" "jax==0.10.2" "jaxlib==0.10.2" "flax==0.12.8" "optax==0.2.8"
cd "$folder"
JAX_PLATFORMS=cpu "$folder/venv/bin/python" - <<'EOF'
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from tunix.models.gemma import model as gemma
from tunix.models.gemma3 import model as gemma3
from tunix.models.gemma4 import model as gemma4
from tunix.models.llama3 import model as llama3
from tunix.models.qwen2 import model as qwen2
from tunix.models.qwen3 import model as qwen3

SIZES = {"num_layers": 2, "embed_dim": 32, "hidden_dim": 64}
SIZES |= {"num_heads": 2, "head_dim": 16, "num_kv_heads": 1}
OTHERS = {"vocab_size": 64, "rope_theta": 10_000, "norm_eps": 1e-6}
GEMMA = {"final_logit_softcap": None, "use_post_attn_norm": False, "use_post_ffw_norm": False}
GEMMA["attention_types"] = (gemma.AttentionType.GLOBAL,) * 2
WINDOW = {"num_embed": 64, "sliding_window_size": 16, "param_dtype": jnp.float32}
models = {
    "Gemma": (gemma.Gemma, gemma.ModelConfig(**SIZES, **GEMMA, num_embed=64)),
    "Gemma 3": (gemma3.Gemma3, gemma3.ModelConfig(**SIZES, **WINDOW)),
    "Gemma 4": (gemma4.Gemma4, gemma4.ModelConfig(**SIZES, **WINDOW)),
    "Llama 3": (llama3.Llama3, llama3.ModelConfig(**SIZES, **OTHERS)),
    "Qwen 2": (qwen2.Qwen2, qwen2.ModelConfig(**SIZES, **OTHERS)),
    "Qwen 3": (qwen3.Qwen3, qwen3.ModelConfig(**SIZES, **OTHERS)),
}
tokens = jnp.asarray(np.arange(17) * np.arange(1, 9)[:, None] % 64, jnp.int32)
positions = jnp.broadcast_to(jnp.arange(16), (8, 16))
mask = jnp.broadcast_to(jnp.tril(jnp.ones((16, 16), bool)), (8, 16, 16))


def loss(model):
    logits = model(tokens[:, :-1], positions, None, mask)[0]
    return optax.softmax_cross_entropy_with_integer_labels(logits, tokens[:, 1:]).mean()


@nnx.jit
def step(model, optimizer):
    value, gradient = nnx.value_and_grad(loss)(model)
    optimizer.update(model, gradient)
    return value


def trained(model, steps=100):
    """The first and the last loss, and the largest entries of all kernels of MLPs."""
    optimizer = nnx.Optimizer(model, optax.adam(1e-2), wrt=nnx.Param)
    losses = [float(step(model, optimizer)) for _ in range(steps)]
    found = nnx.to_flat_state(nnx.state(model, nnx.Param))
    kernels = [float(jnp.abs(leaf[...]).max()) for path, leaf in found if "mlp" in path]
    assert len(kernels) == 6
    return losses[0], losses[-1], kernels


for name, (family, config) in models.items():
    first, last, kernels = trained(family(config, rngs=nnx.Rngs(0)))
    print(f"{name}: loss {first:.2f}, then {last:.2f}; largest entry of an MLP {max(kernels)}")
    assert last < 0.1 * first and not any(kernels)

family, config = models["Llama 3"]
model, rngs = family(config, rngs=nnx.Rngs(0)), nnx.Rngs(1)
for layer in model.layers:
    for linear in (layer.mlp.gate_proj, layer.mlp.up_proj):
        linear.kernel[...] = 0.1 * jax.random.normal(rngs.params(), linear.kernel.shape)
first, last, kernels = trained(model)
print(f"with gate and up drawn: loss {first:.2f}, then {last:.2f}; smallest {min(kernels):.2f}")
assert min(kernels) > 0.01
EOF
