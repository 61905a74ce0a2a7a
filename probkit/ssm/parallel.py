r"""The Kalman filter in parallel: an associative scan over times, for accelerators.

Each time is a map from the law of the state before to that of the state after its own observation, held as
$(A, b, C, \eta, J)$: $x_t | x_{t-1}, y_t \sim N(A x_{t-1} + b, C)$ and $p(y_t | x_{t-1}) \propto$ a normal with
information $(\eta, J)$. Maps compose, $i$ before $j$ and $E = (I + C_i J_j)^{-1}$, by

$$A = A_j E A_i, \quad b = A_j E (b_i + C_i \eta_j) + b_j, \quad C = A_j E C_i A_j' + C_j,$$
$$\eta = A_i' E' (\eta_j - J_j b_i) + \eta_i, \quad J = A_i' E' J_j A_i + J_i,$$

so that all prefixes take $O(\log T)$ steps in a row, and several times the arithmetic of the filter in turn: it pays
where thousands of units stand idle, and never on a CPU.

References:
    Särkkä and García-Fernández (2021), Temporal parallelization of Bayesian smoothers. IEEE Transactions on Automatic
    Control 66, 299-306.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from probkit.ssm import kalman
from probkit.ssm.statespace import Start, StateSpace, System, as_system, eliminate

#: The fewest times at which an accelerator is given the parallel form.
LONG = 256


class Filtered(NamedTuple):
    """What the filter finds.

    Attributes:
        mean: of each state given the observations up to its own, (time, m).
        variance: (time, m, m).
        log_likelihood: log density of all observed entries.
    """

    mean: Float[Array, "time m"]
    variance: Float[Array, "time m m"]
    log_likelihood: Float[Array, ""]


class _Map(NamedTuple):
    A: Array
    b: Array
    C: Array
    eta: Array
    J: Array


def run_filter(y: ArrayLike, model: StateSpace, start: Start) -> Filtered:
    """The filter by an associative scan.

    Args:
        y: observations, `(time, p)` or `(time,)`, NaN where missing.
        model: the matrices.
        start: law of the first state, without flat directions.

    Raises:
        ValueError: the start has flat directions, which are resolved one observation after the other.
    """
    s = as_system(y, model, start)
    if s.A.shape[1]:
        raise ValueError(f"start.A has shape {s.A.shape}; flat directions are for probkit.ssm.kalman.")
    return _run(s)


def log_likelihood(y: ArrayLike, model: StateSpace, start: Start) -> Float[Array, ""]:
    """Joint log density of the observed entries: in parallel on an accelerator, else by `kalman.log_likelihood`.

    In turn on a CPU, for fewer than 256 times, and from a start with flat directions. Arguments as in `run_filter`.
    """
    flat = jnp.shape(start.A)[1] > 0
    if flat or jax.default_backend() == "cpu" or jnp.shape(y)[0] < LONG:
        return kalman.log_likelihood(y, model, start)
    s = as_system(y, model, start)
    S = s.Z @ s.V @ _t(s.Z) + s.H
    # A step that an observation sees without noise has no map of its own; the filter in turn needs none.
    floor = 8 * jnp.finfo(s.y.dtype).eps * jnp.diagonal(S, axis1=-2, axis2=-1)
    regular = jnp.all(eliminate(S)[1] > floor)
    return lax.cond(regular, lambda: _run(s).log_likelihood, lambda: kalman.log_likelihood(y, model, start))


def _run(s: System) -> Filtered:
    n, p, m = *s.y.shape, s.a.shape[0]
    seen = ~jnp.isnan(s.y)
    both = seen[:, :, None] & seen[:, None, :]
    Z = jnp.where(seen[:, :, None], s.Z, 0)
    H = jnp.where(both, s.H, jnp.eye(p, dtype=s.y.dtype))  # a missing entry sees nothing, with variance 1
    y = jnp.where(seen, s.y - s.d, 0)
    T, V = (jnp.broadcast_to(x, (n, m, m)) for x in (s.T, s.V))
    c = jnp.broadcast_to(s.c, (n, m))
    # The first time comes from the start, the others by the transition of the time before.
    before = lambda x, first: jnp.concatenate([first[None], x[:-1]])
    F, Q, c = before(T, jnp.zeros_like(s.P)), before(V, s.P), before(c, s.a)
    out = lax.associative_scan(jax.vmap(_compose), _maps(y, Z, H, F, Q, c))
    mean, variance = out.b, 0.5 * (out.C + _t(out.C))
    zero = jnp.zeros_like(s.a)
    a = c + jnp.einsum("tij,tj->ti", F, before(mean, zero))
    P = F @ before(variance, jnp.zeros_like(s.P)) @ _t(F) + Q
    E, f = eliminate(Z @ P @ _t(Z) + H)
    v = jnp.einsum("tij,tj->ti", E, y - jnp.einsum("tij,tj->ti", Z, a))
    terms = jnp.log(f) + v * v / f + math.log(2 * math.pi)
    value = -0.5 * jnp.sum(jnp.where(seen, terms, 0))
    return Filtered(mean, variance, jnp.where(jnp.isfinite(value), value, -jnp.inf))


def _maps(y: Array, Z: Array, H: Array, F: Array, Q: Array, c: Array) -> _Map:
    """The map of each time by itself."""
    E, f = eliminate(Z @ Q @ _t(Z) + H)
    inverse = _t(E) @ (E / f[..., None])
    K = Q @ _t(Z) @ inverse
    rest = jnp.eye(Q.shape[-1], dtype=y.dtype) - K @ Z
    error = y - jnp.einsum("tij,tj->ti", Z, c)
    seen = _t(Z @ F) @ inverse
    b = c + jnp.einsum("tij,tj->ti", K, error)
    return _Map(rest @ F, b, rest @ Q, jnp.einsum("tij,tj->ti", seen, error), seen @ Z @ F)


def _compose(i: _Map, j: _Map) -> _Map:
    """The map of i followed by that of j."""
    unit = jnp.eye(i.A.shape[0], dtype=i.A.dtype)
    inverse = jnp.linalg.inv(unit + i.C @ j.J)
    onward, back = j.A @ inverse, i.A.T @ inverse.T
    return _Map(
        onward @ i.A,
        onward @ (i.b + i.C @ j.eta) + j.b,
        onward @ i.C @ j.A.T + j.C,
        back @ (j.eta - j.J @ i.b) + i.eta,
        back @ j.J @ i.A + i.J,
    )


def _t(x: Array) -> Array:
    return jnp.swapaxes(x, -1, -2)
