r"""Pareto-smoothed importance sampling: smoothed weights and the diagnostic k-hat, at fixed shapes and inside jit.

**Sign.** Log weights come in their natural sign, $\log p - \log q$: larger is heavier. (`arviz_stats`' `psislw` takes
*negative* log weights, as leave-one-out has them; fed with natural ones it looks at the wrong tail and praises it.)

The M largest of S weights are replaced by the quantiles of a generalised Pareto distribution fitted to their excess
over the next largest. Its shape, k-hat, tells how many moments the weights have: up to `khat_threshold(S)` the
estimates can be trusted.

References:
    Vehtari, A., Simpson, D., Gelman, A., Yao, Y. and Gabry, J. (2024). Pareto smoothed importance sampling.
        Journal of Machine Learning Research 25(72).
    Zhang, J. and Stephens, M. A. (2009). A new and efficient estimation method for the generalized Pareto distribution.
        Technometrics 51, 316-325.
"""

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.special import logsumexp
from jaxtyping import Array, Bool, Float

MINIMUM_TAIL = 5


@jax.jit
def pareto_smooth(log_weights: Float[Array, " draws"]) -> tuple[Float[Array, " draws"], Float[Array, ""]]:
    r"""Smooths the tail of importance weights, and measures it.

    With $M = \lfloor\min(S/5, 3\sqrt S)\rfloor$ (the draws are taken as independent) and the cutoff $c$ the largest
    weight below the tail, the i-th smallest tail weight becomes $c + F^{-1}((i - \frac12)/M)$, cut at the raw maximum.

    Args:
        log_weights: (draws,) log weights up to a constant, larger is heavier. -inf is a weight of zero, and so is NaN.

    Returns:
        The smoothed log weights, in the order they came in, normalised so that the weights sum to one; and k-hat. It is

        * -inf for equal weights (the tail spans no more than rounding): they have no tail;
        * +inf where nothing can be said: fewer than 5 weights in the tail stand out from the rest, or S < 25, or some
          weight is +inf (and then counted as zero). Weights that cannot be smoothed are only normalised, and uniform
          where all of them are zero.
    """
    unbounded = jnp.any(jnp.isposinf(log_weights))
    log_weights = jnp.where(jnp.isnan(log_weights) | jnp.isposinf(log_weights), -jnp.inf, log_weights)
    log_weights = log_weights - jnp.maximum(jnp.max(log_weights), jnp.finfo(log_weights.dtype).min)
    size = tail_length(log_weights.shape[0])
    if size < MINIMUM_TAIL:
        return _normalise(log_weights), jnp.full((), jnp.inf, log_weights.dtype)

    largest, places = lax.top_k(log_weights, size + 1)
    log_cutoff, tail, places = largest[size], largest[:size][::-1], places[:size][::-1]
    excess = jnp.exp(tail) - jnp.exp(log_cutoff)
    above = excess > 0
    count = jnp.sum(above, dtype=excess.dtype)
    k, sigma = fit_generalised_pareto(excess, above)

    flat = log_cutoff > -math.sqrt(jnp.finfo(excess.dtype).eps)
    fitted = (count >= MINIMUM_TAIL) & jnp.isfinite(k) & (sigma > 0) & ~flat
    probability = (jnp.cumsum(above, dtype=excess.dtype) - 0.5) / count
    smoothed = jnp.log(jnp.exp(log_cutoff) + _pareto_quantile(probability, k, sigma))
    tail = jnp.where(fitted & above, jnp.minimum(smoothed, tail[-1]), tail)
    k = jnp.where(flat, -jnp.inf, jnp.where(fitted & ~unbounded, k, jnp.inf))
    return _normalise(log_weights.at[places].set(tail)), k


def fit_generalised_pareto(
    excess: Float[Array, " tail"], above: Bool[Array, " tail"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    r"""Fits a generalised Pareto distribution to excesses over a threshold (Zhang and Stephens 2009).

    With $b = -k/\sigma$ the likelihood of $F(x) = 1 - (1 - b x)^{-1/k}$ has its maximum over k at
    $k(b) = n^{-1} \sum \log(1 - b x_i)$, where it is $\ell(b) = n (\log(-b / k(b)) - k(b) - 1)$. The estimate of b is
    its mean over a grid with weights $e^{\ell(b)}$. The shape is then drawn towards 0.5, a prior worth 10 observations.

    Args:
        excess: (tail,) excesses in ascending order.
        above: (tail,) which of them count; those that do not stand first.

    Returns:
        The shape k and the scale sigma; NaN where they cannot be fitted.
    """
    n = jnp.sum(above, dtype=excess.dtype)
    quartile = excess[excess.shape[0] - n.astype(int) + jnp.floor(n / 4 + 0.5).astype(int) - 1]
    points = 30 + math.isqrt(excess.shape[0])
    grid = (1 - jnp.sqrt(points / (jnp.arange(1, points + 1, dtype=excess.dtype) - 0.5))) / (3 * quartile)
    grid = grid + 1 / excess[-1]

    def shape(b):
        return jnp.sum(jnp.where(above, jnp.log1p(-b * excess), 0)) / n

    k = jax.vmap(shape)(grid)
    profile = n * (jnp.log(-grid / k) - k - 1)
    weights = jnp.exp(profile - logsumexp(profile))
    weights = jnp.where(weights >= 10 * jnp.finfo(excess.dtype).eps, weights, 0)
    b = jnp.sum(weights * grid) / jnp.sum(weights)
    k = shape(b)
    return (n * k + 10 * 0.5) / (n + 10), -k / b


def tail_length(num_draws: int) -> int:
    r"""Number of weights that make the tail, $\lfloor\min(S/5, 3\sqrt S)\rfloor$."""
    return int(min(num_draws / 5, 3 * math.sqrt(num_draws)))


def khat_threshold(num_draws: int) -> float:
    r"""The k-hat up to which S draws give reliable estimates, $\min(0.7, 1 - 1/\log_{10} S)$ (Vehtari et al. 2024).

    Args:
        num_draws: S, at least 2.

    Returns:
        The threshold; negative below 10 draws.
    """
    return min(0.7, 1 - 1 / math.log10(num_draws))


def effective_sample_size(log_weights: Float[Array, " draws"]) -> Float[Array, ""]:
    r"""Kish's effective sample size of importance weights, $(\sum w)^2 / \sum w^2$.

    Args:
        log_weights: (draws,) log weights up to a constant; -inf and NaN are weights of zero.

    Returns:
        A number between 1 and the number of draws; 0 if every weight is zero.
    """
    weights = jnp.exp(_normalise(log_weights))
    return jnp.where(jnp.any(log_weights > -jnp.inf), 1 / jnp.sum(weights**2), 0)


def _pareto_quantile(probability, k, sigma):
    exponential = -jnp.log1p(-probability)
    return sigma * jnp.where(k == 0, exponential, jnp.expm1(k * exponential) / jnp.where(k == 0, 1, k))


def _normalise(log_weights):
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    log_weights = jnp.where(jnp.all(jnp.isneginf(log_weights)), 0, log_weights)
    return log_weights - logsumexp(log_weights)
