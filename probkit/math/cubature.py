"""Nodes and weights for means over independent standard normal variables."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

#: Nodes for one variable, for each of two, and in all for more.
ONE, TWO, MORE = 20, 12, 128


def normal_nodes(columns: int, dtype: Any, exact: bool = False) -> tuple[Float[Array, "Q columns"], Float[Array, " Q"]]:
    """Nodes and weights: Gauss-Hermite for one or two variables; for more, a mirrored additive recurrence.

    The latter is brought to normal, and to unit covariance, so that polynomials of third degree are exact.

    Args:
        columns: how many variables.
        dtype: of the result.
        exact: whether two nodes a variable will do, as they do for quadratics (of one or two variables).

    References:
        Niederreiter (1992), Random number generation and quasi-Monte Carlo methods, section 3.
    """
    if columns <= 2:
        x, w = np.polynomial.hermite_e.hermegauss(2 if exact else ONE if columns == 1 else TWO)
        grid = np.stack([g.ravel() for g in np.meshgrid(*[x] * columns, indexing="ij")], axis=1)
        weight = np.prod([g.ravel() for g in np.meshgrid(*[w / w.sum()] * columns, indexing="ij")], axis=0)
        return jnp.asarray(grid, dtype), jnp.asarray(weight, dtype)
    # The root of x^(columns + 1) = x + 1 gives the steps that spread most evenly.
    golden = 2.0
    for _ in range(60):
        golden = (1.0 + golden) ** (1.0 / (columns + 1))
    half_count = max(MORE // 2, 2 * columns)
    spread = (0.5 + np.outer(np.arange(1, half_count + 1), golden ** -np.arange(1.0, columns + 1))) % 1.0
    with jax.ensure_compile_time_eval():
        half = np.asarray(ndtri(jnp.asarray(spread, dtype)), float)
    half = np.linalg.solve(np.linalg.cholesky(half.T @ half / half_count), half.T).T
    weight = np.full(2 * half_count, 0.5 / half_count)
    return jnp.asarray(np.concatenate([half, -half]), dtype), jnp.asarray(weight, dtype)
