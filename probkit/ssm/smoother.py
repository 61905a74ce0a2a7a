r"""What a linear Gaussian state space model says after all observations are in: states, left-out entries, draws.

Model, start and missing values as in `probkit.ssm.statespace`; the recursions are those of `probkit.ssm.recursions`.

References:
    de Jong, P. (1988). A cross-validation filter for time series models. Biometrika 75, 594-600.
    Durbin, J. and Koopman, S. J. (2002). A simple and efficient simulation smoother for state space time series
        analysis. Biometrika 89, 603-616.
    Durbin, J. and Koopman, S. J. (2012). Time Series Analysis by State Space Methods, 2nd ed., ch. 4.4 to 4.9, 5.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from probkit.ssm.diffuse import Settled
from probkit.ssm.kalman import Moments
from probkit.ssm.recursions import (
    Cumulants,
    Filtered,
    backward,
    begin,
    flat_forms,
    forward,
    smoothed_mean,
    smoothed_variance,
)
from probkit.ssm.statespace import Start, StateSpace, System, as_entries, as_system, factor


@jax.jit
def smooth(y: ArrayLike, model: StateSpace, start: Start) -> Moments:
    r"""Mean and variance of each state given all observations, before and after it.

    $$\hat\alpha = a + P r_0 + A \hat\delta, \qquad \mathrm{Var} = P - P N_0 P + P B A' + A B' P + A C A'.$$

    Args:
        y: observations, `(time, p)` or `(time,)`, NaN where missing.
        model: the matrices.
        start: law of the first state.

    Returns:
        Mean `(time, m)` and variance `(time, m, m)`; NaN and an infinite diagonal for states that have a flat prior and
        that no observation determines.
    """
    s = as_system(y, model, start)
    f, e = forward(s)
    b = backward(f, e, s.T)
    V, m = smoothed_variance(f, b), s.a.shape[0]
    lost = flat_forms(jnp.broadcast_to(jnp.eye(m, dtype=V.dtype), V.shape), f.A, f.unresolved)
    on_diagonal = jnp.broadcast_to(jnp.eye(m, dtype=bool), V.shape)
    V = jnp.where(on_diagonal, jnp.maximum(V, 0), V)
    V = jnp.where(lost[:, :, None] & on_diagonal, jnp.inf, V)
    return Moments(jnp.where(lost, jnp.nan, smoothed_mean(f, b)), V)


@jax.jit
def leave_one_out(y: ArrayLike, model: StateSpace, start: Start) -> Moments:
    r"""Mean and variance of each entry of y given all other entries, those of the same time too.

    At an observed entry $y - u_i / D_{ii}$ and $1 / D_{ii}$ (de Jong 1988), in the original entries; at a missing one
    the moments of what was not seen, its disturbance correlated with those that were by H.

    Args:
        y: observations, `(time, p)` or `(time,)`, NaN where missing.
        model: the matrices.
        start: law of the first state.

    Returns:
        Mean and variance in the shape of y; NaN at an entry that a flat prior needs, which nothing else predicts.
    """
    s = as_system(y, model, start)
    f, e = forward(s)
    b = backward(f, e, s.T)
    mean, variance = _missing_entries(s, f, b)
    D = jnp.diagonal(b.D, axis1=1, axis2=2)
    improper = 100 * jnp.finfo(D.dtype).eps * b.D_scale >= D
    D = jnp.where(improper, jnp.nan, D)
    mean, variance = jnp.where(e.seen, s.y - b.u / D, mean), jnp.where(e.seen, 1 / D, variance)
    return Moments(mean.reshape(jnp.shape(y)), variance.reshape(jnp.shape(y)))


@jax.jit
def predict(y: ArrayLike, model: StateSpace, start: Start) -> Moments:
    r"""Mean and variance of a fresh observation of the smoothed state, $Z \hat\alpha + d$ and $Z V Z' + H$'s diagonal.

    Arguments as in `smooth`.

    Returns:
        Mean and variance in the shape of y; NaN and infinite where y leaves flat what an entry sees, huge where its
        start is vague (`probkit.ssm.diffuse`).
    """
    s = as_system(y, model, start)
    f, e = forward(s)
    mean, variance = _observed(s, f, backward(f, e, s.T))
    return Moments(mean.reshape(jnp.shape(y)), variance.reshape(jnp.shape(y)))


@partial(jax.jit, static_argnames="length")
def simulate(key: Array, model: StateSpace, start: Start, length: int) -> tuple[Array, Array]:
    """One draw of states and observations; flat states start at delta = 0.

    Args:
        key: a JAX key; many draws are `jax.vmap` over keys.
        model: the matrices.
        start: law of the first state.
        length: number of times.

    Returns:
        States `(time, m)` and observations `(time, p)`.
    """
    dtype = jnp.result_type(float, *jax.tree.leaves((model, start)))
    return _simulate(key, as_system(jnp.zeros((length, jnp.asarray(model.Z).shape[-2]), dtype), model, start))


@jax.jit
def simulate_states(key: Array, y: ArrayLike, model: StateSpace, start: Start) -> Float[Array, "time m"]:
    r"""One joint draw of all states given the observations (Durbin and Koopman's simulation smoother).

    With $(\alpha^+, y^+)$ drawn from the model, $\alpha^+ + E[\alpha | y - y^+]$ has the right mean and variance, since
    the variance of $\alpha - E[\alpha | y]$ is the same whatever y is. Under `jax.vmap` over keys the variances are
    worked out once for all draws.

    Args:
        key: a JAX key; many draws are `jax.vmap` over keys.
        y: observations, `(time, p)` or `(time,)`, NaN where missing.
        model: the matrices.
        start: law of the first state; every flat state must be determined by the observations.

    Returns:
        The states.
    """
    s = as_system(y, model, start)
    return _draw(key, s, begin(s, as_entries(s)))


class Forms(NamedTuple):
    """Moments of linear forms of the states given all of y, and one joint draw, each `(time, c)`."""

    mean: Array
    variance: Array
    draw: Array


@jax.jit
def smooth_forms(key: Array, y: ArrayLike, model: StateSpace, start: Start, rows: Float[Array, "time c m"]) -> Forms:
    """Mean and variance of linear forms of the states given all of y, and one joint draw of all of them.

    Args:
        key: a JAX key.
        y: observations, `(time, p)` or `(time,)`, NaN where missing.
        model: the matrices.
        start: law of the first state.
        rows: the forms at each time.

    Returns:
        The moments and the draw; NaN and infinite where y leaves flat what a form sees.
    """
    s = as_system(y, model, start)
    begun = begin(s, as_entries(s))
    f, e = forward(s, begun)
    b = backward(f, e, s.T)
    drawn = _draw(key, s, begun)
    along = lambda x: jnp.einsum("tcm,tm->tc", rows, x)
    lost = flat_forms(rows, f.A, f.unresolved)
    variance = jnp.maximum(_quadratic(rows, smoothed_variance(f, b), rows), 0)
    return Forms(
        jnp.where(lost, jnp.nan, along(smoothed_mean(f, b))),
        jnp.where(lost, jnp.inf, variance),
        jnp.where(lost, jnp.nan, along(drawn)),
    )


def _draw(key: Array, s: System, begun: Settled) -> Float[Array, "time m"]:
    """One draw of the states given y; what began vague for y is drawn from that law and begins so again."""
    states, observations = _simulate(key, s._replace(P=s.P + begun.P))
    difference = s._replace(y=s.y - observations, d=0 * s.d, c=0 * s.c, a=0 * s.a)
    f, e = forward(difference, begun)
    return states + smoothed_mean(f, backward(f, e, s.T))


def _simulate(key: Array, s: System) -> tuple[Array, Array]:
    (n, p), m = s.y.shape, s.a.shape[0]
    first, shock, noise = jax.random.split(key, 3)

    def normal(key, S, *shape):
        return jnp.einsum("...ij,...j->...i", factor(S), jax.random.normal(key, shape, s.y.dtype))

    def step(state, now):
        T, shock = now
        return T @ state + shock, state

    T, c, d = (jnp.broadcast_to(x, shape) for x, shape in ((s.T, (n, m, m)), (s.c, (n, m)), (s.d, (n, p))))
    _, states = lax.scan(step, s.a + normal(first, s.P, m), (T, c + normal(shock, s.V, n, m)))
    return states, jnp.einsum("tij,tj->ti", jnp.broadcast_to(s.Z, (n, p, m)), states) + d + normal(noise, s.H, n, p)


def _observed(s: System, f: Filtered, b: Cumulants) -> tuple[Array, Array]:
    """Mean and variance of every entry of a fresh observation given those of y."""
    sees = jnp.broadcast_to(s.Z, (*s.y.shape, s.a.shape[0]))
    d, H = jnp.broadcast_to(s.d, s.y.shape), jnp.broadcast_to(s.H, b.D.shape)
    mean = jnp.einsum("tij,tj->ti", sees, smoothed_mean(f, b)) + d
    variance = jnp.maximum(_quadratic(sees, smoothed_variance(f, b), sees), 0) + jnp.diagonal(H, axis1=1, axis2=2)
    lost = flat_forms(sees, f.A, f.unresolved)
    return jnp.where(lost, jnp.nan, mean), jnp.where(lost, jnp.inf, variance)


def _missing_entries(s: System, f: Filtered, b: Cumulants) -> tuple[Array, Array]:
    """Mean and variance of what was not seen: a fresh observation whose disturbance H ties to those of its time."""
    mean, variance = _observed(s, f, b)
    noise = jnp.where(jnp.isnan(s.y)[:, None, :], 0, jnp.broadcast_to(s.H, b.D.shape))
    cross = f.A @ jnp.swapaxes(b.B_noise, 1, 2) - f.P @ b.G  # of state and disturbances, H^-1 behind
    sees = jnp.broadcast_to(s.Z, (*s.y.shape, s.a.shape[0]))
    variance = variance - _quadratic(noise, b.D, noise) + 2 * _quadratic(sees, cross, noise)
    return mean + jnp.einsum("tij,tj->ti", noise, b.u), variance


def _quadratic(X: Array, S: Array, Y: Array) -> Array:
    return jnp.einsum("tij,tjk,tik->ti", X, S, Y)
