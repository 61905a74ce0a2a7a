r"""The EM algorithm for the variances of a sum of structural parts.

With the states as missing data, the next variance of a disturbance is the mean of its expected squares given y,

$$q' = \frac1n \sum_t \mathrm{E}[\eta_t^2 | y] = q + \frac{q^2}{n} \sum_t (r_t^2 - N_t)
     = q + \frac{2 q^2}{n} \frac{\partial \ell}{\partial q},$$

since $\mathrm E[\eta_t | y] = q r_t$ and $\mathrm{Var}[\eta_t | y] = q - q^2 N_t$ (Koopman 1993): all that a step takes
is the gradient, which the smoothing pass leaves. The log-likelihood never falls, a variance never turns negative, and
0 stays 0. Near the optimum EM is slow where `pk.MLE` is not; it is at hand as a method that needs no step length.

References:
    Shumway, R. H. and Stoffer, D. S. (1982). An approach to time series smoothing and forecasting using the EM
        algorithm. Journal of Time Series Analysis 3, 253-264.
    Koopman, S. J. (1993). Disturbance smoother for state space models. Biometrika 80, 117-126.
"""

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from probkit.ssm import structured
from probkit.ssm.components import Structure


class Found(NamedTuple):
    """What the algorithm finds.

    Attributes:
        variances: after the last step.
        log_likelihoods: before each step, never falling.
    """

    variances: Float[Array, " k"]
    log_likelihoods: Float[Array, " steps"]


def maximise(
    build: Callable[[Array], Structure], y: Float[ArrayLike, " time"], start: Float[ArrayLike, " k"], steps: int = 100
) -> Found:
    """Maximum likelihood of variances by EM.

    Args:
        build: from the variances (k,) to the model, in which the variances of disturbances and of the noise are
            multiples of them, each of one of them: ``lambda p: assemble([trend(p[0], p[1])], p[2], dtype)``. A new
            function compiles again.
        y: observations, NaN where missing, at least two observed.
        start: where to begin, positive (0 stays 0).
        steps: how many.

    Raises:
        ValueError: a start is negative; a variance moves the law of the first state (a stationary part), or no
            disturbance: the step above does not hold for it.
    """
    start = jnp.asarray(start, jnp.result_type(float, jnp.asarray(y)))
    if not np.all(np.asarray(start) >= 0):
        raise ValueError(f"start is {np.asarray(start)}; variances that are not negative are wanted.")
    slopes = jax.jacfwd(lambda p: (lambda s: (s.q, s.v, s.h, s.P))(build(p)))(start)
    q, v, h, P = (np.asarray(slope) for slope in slopes)
    if np.any(P != 0):
        raise ValueError("A variance moves the law of the first state (a cycle, an autoregression): EM here is for "
                         "parts that start flat. Use pk.MLE().")  # fmt: skip
    seen = ~np.isnan(np.asarray(y))
    noisy = (h != 0).reshape(-1, len(start)).any(0)
    held = (len(seen) - 1) * ((q != 0).sum(0) + (v != 0).sum(0)) + seen.sum() * noisy
    if np.any(held == 0):
        raise ValueError(f"start[{int(np.argmin(held))}] is the variance of no disturbance of the model.")
    return _run(build, jnp.asarray(y, start.dtype), start, jnp.asarray(held, start.dtype), steps)


@partial(jax.jit, static_argnums=(0, 4))
def _run(build: Callable, y: Array, start: Array, counts: Array, steps: int) -> Found:
    value = jax.value_and_grad(lambda p: structured.log_likelihood(y, build(p)))

    def step(p: Array, _: None) -> tuple[Array, Array]:
        found, slope = value(p)
        return jnp.maximum(p + 2 * p * p * slope / counts, 0), found

    return Found(*lax.scan(step, start, None, length=steps))
