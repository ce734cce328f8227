"""Imported first by every module that gin files name: one clear error where T5X is missing."""

try:
    import t5x.trainer  # noqa: F401
except ImportError as error:
    raise ImportError(
        f"ldro_jax.t5x needs T5X, but it can't be imported ({error}). Install it with "
        "scripts/install_t5x.sh of the ldro_jax repository. Everything else in ldro_jax works "
        "without it; ldro_jax.training trains language models too."
    ) from error
