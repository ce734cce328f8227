"""A decoder-only transformer language model: pre-norm, gated MLP, rotary or learned positions.

Each parameter has logical axes, which rules map to the axes of a mesh
(:mod:`ldro_jax.sharding`). The output layer is the transposed embedding.

References:
  Vaswani et al., *Attention Is All You Need*, NeurIPS 2017; Shazeer, *GLU Variants Improve
  Transformer*, 2020; Su et al., *RoFormer*, 2021; Zhang and Sennrich, *Root Mean Square Layer
  Normalization*, NeurIPS 2019.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from ldro_jax.models.cross_entropy import token_losses
from ldro_jax.runtime import checks


def _unchanged(x: jax.Array) -> jax.Array:
    """Activations that are not sharded."""
    return x


class Decoder(nn.Module):
    """The losses of every token given those before it.

    Attributes:
      vocab_size: number of tokens, V.
      num_layers: number of blocks.
      embed_dim: width, D.
      num_heads: attention heads, H; must divide D.
      mlp_dim: hidden width of the gated MLP.
      context: L of training. Longer sequences can be evaluated: with rotary positions a token then
        sees as many tokens as in training, and learned positions are interpolated.
      positions: ``"rotary"`` or ``"learned"``.
      dtype: of the activations; parameters, softmax and losses are float32.
      scan_layers: compile one block for all layers; their parameters get a leading layer axis.
      remat: keep only the input of each block for the backward pass.
      logits_chunk: positions to have logits of at a time, see
        :func:`~ldro_jax.models.cross_entropy.token_losses`.
      constrain: applied to the activations ``[B, L, D]`` of every layer, to keep them sharded.

    Raises:
      ValueError: if one of these is out of range, or they don't fit together.
    """

    vocab_size: int
    num_layers: int = 2
    embed_dim: int = 128
    num_heads: int = 4
    mlp_dim: int = 352
    context: int = 128
    positions: str = "rotary"
    dtype: Any = jnp.float32
    scan_layers: bool = False
    remat: bool = False
    logits_chunk: int | None = None
    constrain: Callable[[jax.Array], jax.Array] = _unchanged

    def __post_init__(self) -> None:
        sizes = ("vocab_size", "num_layers", "embed_dim", "num_heads", "mlp_dim", "context")
        for name in sizes:
            checks.integer(name, getattr(self, name))
        if self.logits_chunk is not None:
            checks.integer("logits_chunk", self.logits_chunk)
        checks.one_of("positions", self.positions, ("rotary", "learned"))
        checks.flag("scan_layers", self.scan_layers)
        checks.flag("remat", self.remat)
        checks.function("constrain", self.constrain, example="x -> x")
        floating = ("float32", "bfloat16", "float16", "float64")
        dtype = getattr(self.dtype, "__name__", str(self.dtype))
        checks.one_of("dtype", dtype, floating)
        if self.embed_dim % (2 * self.num_heads):
            raise ValueError(
                f"embed_dim must be a multiple of twice num_heads, but they are {self.embed_dim} "
                f"and {self.num_heads}."
            )
        super().__post_init__()

    def setup(self) -> None:
        """Makes the parameters and layers."""

        def table(name, axis, rows) -> Any:
            init = _init((axis, "embed"), 0.02)
            return self.param(name, init, (rows, self.embed_dim), jnp.float32)

        self.embedding_VxD: jax.Array = table("embedding", "vocab", self.vocab_size)
        if self.positions == "learned":
            self.positions_LxD: jax.Array = table("positions", "position", self.context)
        block: Any = nn.remat(Block, prevent_cse=not self.scan_layers) if self.remat else Block
        names = [f"layer_{index}" for index in range(self.num_layers)]
        if self.scan_layers:
            names = ["layers"]
            block = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.num_layers,
                metadata_params={nn.PARTITION_NAME: "layers"},
            )
        self.layers: list[nn.Module] = [
            block(
                num_heads=self.num_heads,
                mlp_dim=self.mlp_dim,
                num_layers=self.num_layers,
                dtype=self.dtype,
                rotary=self.positions == "rotary",
                window=self.context,
                constrain=self.constrain,
                name=name,
            )
            for name in names
        ]
        self.final_norm: nn.Module = _norm(self.dtype, "final_norm")

    def __call__(self, tokens_BxL: jax.Array) -> jax.Array:
        """Cross-entropy of every int32 token given those before it in its row.

        Returns:
          ``[B, L]`` in nats, float32.
        """
        return token_losses(
            self._hidden(tokens_BxL), self.embedding_VxD, tokens_BxL, chunk=self.logits_chunk
        )

    def logits(self, tokens_BxL: jax.Array) -> jax.Array:
        """Logits of every int32 token given those before it: position l predicts token l.

        Returns:
          ``[B, L, V]`` float32.
        """
        hidden = self._hidden(tokens_BxL)
        return jnp.einsum(
            "bld,vd->blv",
            hidden,
            self.embedding_VxD.astype(hidden.dtype),
            preferred_element_type=jnp.float32,
        )

    def _hidden(self, tokens_BxL):
        # Token 0 is padding, and stands for the beginning.
        inputs_BxL = jnp.pad(tokens_BxL, ((0, 0), (1, 0)))[:, :-1]
        x_BxLxD = self.embedding_VxD.astype(self.dtype)[inputs_BxL]
        if self.positions == "learned":
            x_BxLxD += self._learned(tokens_BxL.shape[1]).astype(self.dtype)[None]
        x_BxLxD = self.constrain(x_BxLxD)
        for layer in self.layers:
            x_BxLxD, _ = layer(x_BxLxD, None)
        return self.final_norm(x_BxLxD)

    def _learned(self, length):
        if length <= self.context:
            return self.positions_LxD[:length]
        return jax.image.resize(self.positions_LxD, (length, self.embed_dim), "linear")


class Block(nn.Module):
    """Attention and a gated MLP, each after a norm and added to its input.

    Attributes:
      num_heads: H.
      mlp_dim: hidden width of the MLP.
      num_layers: of the whole model, for the initial scale.
      dtype: of the activations.
      rotary: whether positions are rotary.
      window: how many tokens, itself included, a token attends to.
      constrain: applied to the output.
    """

    num_heads: int
    mlp_dim: int
    num_layers: int
    dtype: Any
    rotary: bool
    window: int
    constrain: Callable[[jax.Array], jax.Array]

    @nn.compact
    def __call__(self, x_BxLxD: jax.Array, _: None) -> tuple[jax.Array, None]:
        """New activations ``[B, L, D]``, and ``None``, as a body of ``nn.scan``."""
        width = x_BxLxD.shape[-1]
        heads = (self.num_heads, width // self.num_heads)
        # The sum over 2 num_layers branches starts with the variance of one.
        out_scale = 0.02 / (2 * self.num_layers) ** 0.5

        def dense(name, features, axes, scale=0.02, axis: Any = -1):
            return nn.DenseGeneral(
                features,
                axis=axis,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=_init(axes, scale),
                name=name,
            )

        h_BxLxD = _norm(self.dtype, "attention_norm")(x_BxLxD)
        q, k, v = (
            dense(name, heads, ("embed", "heads", "head_dim"))(h_BxLxD)
            for name in ("query", "key", "value")
        )
        if self.rotary:
            q, k = rotate(q), rotate(k)
        window = (self.window - 1, 0) if x_BxLxD.shape[1] > self.window and self.rotary else None
        a_BxLxHxK = jax.nn.dot_product_attention(q, k, v, is_causal=True, local_window_size=window)
        x_BxLxD += dense("out", width, ("heads", "head_dim", "embed"), out_scale, (-2, -1))(
            a_BxLxHxK
        )
        h_BxLxD = _norm(self.dtype, "mlp_norm")(x_BxLxD)
        gate = dense("gate", self.mlp_dim, ("embed", "mlp"))(h_BxLxD)
        up = dense("up", self.mlp_dim, ("embed", "mlp"))(h_BxLxD)
        x_BxLxD += dense("down", width, ("mlp", "embed"), out_scale)(nn.silu(gate) * up)
        return self.constrain(x_BxLxD), None


def rotate(x_BxLxHxK: jax.Array, *, base: float = 10_000.0) -> jax.Array:
    """Rotary positions: the angle between a query and a key grows with their distance.

    Args:
      x_BxLxHxK: queries or keys, K even.
      base: longest wavelength, in tokens, over 2π.
    """
    length, half = x_BxLxHxK.shape[1], x_BxLxHxK.shape[-1] // 2
    frequencies = base ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles_LxK = jnp.arange(length, dtype=jnp.float32)[:, None] * frequencies[None, :]
    cos, sin = (f(angles_LxK)[None, :, None, :] for f in (jnp.cos, jnp.sin))
    left, right = jnp.split(x_BxLxHxK.astype(jnp.float32), 2, axis=-1)
    rotated = jnp.concatenate([left * cos - right * sin, right * cos + left * sin], axis=-1)
    return rotated.astype(x_BxLxHxK.dtype)


def _norm(dtype, name):
    # Flax takes the mean square in float32 whatever the dtype.
    scale_init = nn.with_logical_partitioning(nn.initializers.ones, ("norm",))
    return nn.RMSNorm(dtype=dtype, scale_init=scale_init, name=name)


def _init(axes, scale):
    return nn.with_logical_partitioning(nn.initializers.normal(scale), axes)
