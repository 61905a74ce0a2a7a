r"""Filters for nonlinear state space models given as pure functions: extended, unscented, and by particles.

The Gaussian filters take

$$x_1 \sim N(a, P), \qquad x_{t+1} = f(x_t, t) + w_t, \ w_t \sim N(0, Q), \qquad
  y_t = h(x_t, t) + v_t, \ v_t \sim N(0, R),$$

with t = 0, 1, ... They carry a mean and a variance: the extended filter through the tangents of f and h, the unscented
one through 2 m + 1 points, $a$ and $a \pm \sqrt{m + \kappa}$ times the columns of a root of P, with weights
$\kappa / (m + \kappa)$ and $1 / (2 (m + \kappa))$. Both are exact where f and h are linear. Their likelihoods are those
of the normal approximation. The bootstrap filter takes any model that can be simulated and whose observations have a
density; the exponential of its log-likelihood is an unbiased estimate of the likelihood.

References:
    Särkkä and Svensson (2023), Bayesian Filtering and Smoothing, 2nd ed., ch. 7, 8 and 11.
    Julier and Uhlmann (1997), A new extension of the Kalman filter to nonlinear systems.
    Gordon, Salmond and Smith (1993), Novel approach to nonlinear/non-Gaussian Bayesian state estimation.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.linalg import cho_solve
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from probkit.math.linalg import safe_cholesky


class Nonlinear(NamedTuple):
    """A nonlinear model with normal noise.

    Attributes:
        f: ``f(x, t)``, the mean of the next state, (m,).
        h: ``h(x, t)``, the mean of the observation, (p,).
        Q: variance of w, (m, m).
        R: variance of v, (p, p).
        a: mean of the first state.
        P: its variance.
    """

    f: Callable[[Array, Array], Array]
    h: Callable[[Array, Array], Array]
    Q: Float[ArrayLike, "m m"]
    R: Float[ArrayLike, "p p"]
    a: Float[ArrayLike, " m"]
    P: Float[ArrayLike, "m m"]


class Normal(NamedTuple):
    """What a Gaussian filter finds.

    Attributes:
        mean: of each state given the observations up to its own, (time, m).
        variance: (time, m, m).
        log_likelihood: of the normal approximation.
    """

    mean: Float[Array, "time m"]
    variance: Float[Array, "time m m"]
    log_likelihood: Float[Array, ""]


#: What carries a normal law through a function: the moments of ``g(x)``, and its covariance with x.
Moments = Callable[[Callable, Array, Array], tuple[Array, Array, Array]]


def extended(y: Float[ArrayLike, "time *p"], model: Nonlinear) -> Normal:
    """The extended Kalman filter.

    Args:
        y: observations, (time, p) or (time,); NaN is missing, entry by entry.
        model: the model; its functions are differentiated.
    """

    def moments(g: Callable, a: Array, P: Array) -> tuple[Array, Array, Array]:
        G = jax.jacfwd(g)(a)
        return g(a), G @ P @ G.T, P @ G.T

    return _filter(y, model, moments)


def unscented(y: Float[ArrayLike, "time *p"], model: Nonlinear, kappa: float = 1.0) -> Normal:
    """The unscented Kalman filter.

    Args:
        y: observations, (time, p) or (time,); NaN is missing, entry by entry.
        model: the model.
        kappa: how far the points stand out, not negative, so that variances are not either; 0 is the cubature filter.

    Raises:
        ValueError: `kappa` is negative.
    """
    if kappa < 0:
        raise ValueError(f"kappa is {kappa}; a number that is not negative is wanted.")

    def moments(g: Callable, a: Array, P: Array) -> tuple[Array, Array, Array]:
        m = a.shape[0]
        known = jnp.trace(P) <= 0  # a state known exactly has no spread to take apart
        L = safe_cholesky(jnp.where(known, jnp.eye(m, dtype=P.dtype), P))[0]
        root = math.sqrt(m + kappa) * jnp.where(known, 0.0, L).T
        steps = jnp.concatenate([jnp.zeros((1, m), a.dtype), root, -root])
        weight = jnp.full(2 * m + 1, 0.5 / (m + kappa), a.dtype).at[0].set(kappa / (m + kappa))
        values = jax.vmap(lambda step: g(a + step))(steps)
        mean = weight @ values
        off = values - mean
        return mean, (weight[:, None] * off).T @ off, (weight[:, None] * steps).T @ off

    return _filter(y, model, moments)


def _filter(y: ArrayLike, model: Nonlinear, moments: Moments) -> Normal:
    f, h, Q, R, a, P = model
    y = jnp.asarray(y)
    y = y[:, None] if y.ndim == 1 else y
    dtype = jnp.result_type(float, y, jnp.asarray(a), jnp.asarray(P), jnp.asarray(Q), jnp.asarray(R))
    y, Q, R, a, P = (jnp.asarray(x, dtype) for x in (y, Q, R, a, P))
    unit = jnp.eye(y.shape[1], dtype=dtype)

    def step(state: tuple, now: tuple) -> tuple:
        a, P = state
        y, t = now
        seen = ~jnp.isnan(y)
        mean, spread, cross = moments(lambda x: jnp.reshape(h(x, t), y.shape), a, P)
        # A missing entry is one of variance 1 that knows nothing of the state and is as expected.
        both = seen[:, None] & seen[None, :]
        S = jnp.where(both, spread + R, unit)
        error = jnp.where(seen, y - mean, 0.0)
        cross = jnp.where(seen[None, :], cross, 0.0)
        L, _ = safe_cholesky(S)
        gain = cho_solve((L, True), cross.T).T
        value = -0.5 * error @ cho_solve((L, True), error) - jnp.sum(jnp.log(jnp.diagonal(L)))
        value = value - 0.5 * math.log(2 * math.pi) * jnp.sum(seen, dtype=dtype)
        a, P = a + gain @ error, P - gain @ S @ gain.T
        P = 0.5 * (P + P.T)
        mean, spread, _ = moments(lambda x: f(x, t), a, P)
        return (mean, spread + Q), (a, P, value)

    times = jnp.arange(y.shape[0])
    out: Any = lax.scan(step, (a, P), (y, times))[1]
    mean, variance, values = out
    return Normal(mean, variance, jnp.sum(values))


class Particles(NamedTuple):
    """What the bootstrap filter finds.

    Attributes:
        mean: of each state given the observations up to its own, (time, m).
        effective: effective number of particles at each time, before they are drawn anew.
        log_likelihood: log of an unbiased estimate of the likelihood.
    """

    mean: Float[Array, "time m"]
    effective: Float[Array, " time"]
    log_likelihood: Float[Array, ""]


def bootstrap(
    key: Array, y: Float[ArrayLike, "time *p"], first: Callable[[Array], Array],
    move: Callable[[Array, Array, Array], Array], log_density: Callable[[Any, Array, Array], Array],
    particles: int = 1000,
) -> Particles:  # fmt: skip
    """The bootstrap particle filter; particles are drawn anew, systematically, where fewer than half are effective.

    Args:
        key: a JAX key.
        y: observations, time first; where all of one time are NaN nothing was seen.
        first: ``first(key)``, a draw of the first state, (m,).
        move: ``move(key, x, t)``, a draw of what follows x.
        log_density: ``log_density(y_t, x, t)`` of an observation.
        particles: how many.

    Raises:
        ValueError: `particles` is below 1.
    """
    if particles < 1:
        raise ValueError(f"particles is {particles}; at least 1 is wanted.")
    y = jnp.asarray(y)
    k_first, k_steps = jax.random.split(key)
    x = jax.vmap(first)(jax.random.split(k_first, particles))

    def step(state: tuple, now: tuple) -> tuple:
        x, log_w = state
        key, y, t = now
        nothing = jnp.all(jnp.isnan(y))
        terms = jax.vmap(lambda x: log_density(y, x, t))(x)
        weighed = log_w + jnp.where(nothing, 0.0, terms)
        value = jax.nn.logsumexp(weighed)
        possible = jnp.isfinite(value)
        weight = jnp.where(possible, jnp.exp(weighed - jnp.where(possible, value, 0.0)), 1 / particles)
        effective = 1 / jnp.sum(weight**2)
        k_choose, k_move = jax.random.split(key)
        anew = effective < 0.5 * particles
        # One uniform number for all: a comb over the distribution function of the weights.
        comb = (jax.random.uniform(k_choose, (), weight.dtype) + jnp.arange(particles)) / particles
        total = jnp.cumsum(weight)
        chosen = jnp.clip(jnp.searchsorted(total, comb * total[-1]), 0, particles - 1)
        chosen = jnp.where(anew, chosen, jnp.arange(particles))
        log_w = jnp.where(anew, -math.log(particles), jnp.log(weight))
        moved = jax.vmap(lambda key, x: move(key, x, t))(jax.random.split(k_move, particles), x[chosen])
        return (moved, log_w), (weight @ x, effective, value)

    start = x, jnp.full(particles, -math.log(particles), jnp.result_type(float, x))
    inputs = jax.random.split(k_steps, y.shape[0]), y, jnp.arange(y.shape[0])
    out: Any = lax.scan(step, start, inputs)[1]
    mean, effective, values = out
    return Particles(mean, effective, jnp.sum(values))
