"""Small convex problems of N tasks, solved inside a program: no callbacks, float32, fixed bounds.

All of them work under ``jit`` and ``vmap``, for Gram matrices of any rank and scale; gradients stop
at them.
"""

from ldro_jax.solvers.balance import balance
from ldro_jax.solvers.quadratic import above, min_norm, on_simplex, steepest

__all__ = ["above", "balance", "min_norm", "on_simplex", "steepest"]
