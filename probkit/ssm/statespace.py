r"""The linear Gaussian state space model as a bag of arrays, and what must happen before a filter can run over it.

$$y_t = Z_t \alpha_t + d_t + \varepsilon_t, \quad \varepsilon_t \sim N(0, H_t), \qquad
  \alpha_{t+1} = T_t \alpha_t + c_t + R_t \eta_t, \quad \eta_t \sim N(0, Q_t).$$

The letters are those of Durbin and Koopman. The engineering literature (and `cuthbert`, `dynamax`) writes H for our Z,
R for our H, F for our T, Q for our R Q R', and often starts one transition earlier: its first state is our
$\alpha_1$ after a transition.

References:
    Durbin, J. and Koopman, S. J. (2012). Time Series Analysis by State Space Methods, 2nd ed., ch. 3, 5.1, 6.4.
    Koopman, S. J. and Durbin, J. (2000). Fast filtering and smoothing for multivariate state space models.
        Journal of Time Series Analysis 21, 281-296.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float


class StateSpace(NamedTuple):
    """The matrices; each is constant or has a leading time axis.

    Attributes:
        Z: What each entry of y sees of the state, `(p, m)` or `(time, p, m)`.
        H: Variance of the observation disturbance, `(p, p)` or `(time, p, p)`; need not be diagonal, may be singular.
        T: Transition from t to t + 1, `(m, m)` or `(time, m, m)`; the last one leads out of the series.
        R: What each state disturbance moves, `(m, r)` or `(time, m, r)`; None for each its own state.
        Q: Variance of the state disturbance, `(r, r)` or `(time, r, r)`.
        d: Intercept of the observation, a scalar, `(p,)` or `(time, p)`.
        c: Intercept of the state, a scalar, `(m,)` or `(time, m)`.
    """

    Z: ArrayLike
    H: ArrayLike
    T: ArrayLike
    R: ArrayLike | None
    Q: ArrayLike
    d: ArrayLike = 0.0
    c: ArrayLike = 0.0


def depends_on_time(model: StateSpace) -> bool:
    """Whether one of the matrices has a time axis."""
    ranks = (2, 2, 2, 2, 2, 1, 1)
    return any(x is not None and jnp.ndim(x) > rank for x, rank in zip(model, ranks, strict=True))


class Start(NamedTuple):
    r"""The law of the first state, $\alpha_1 = a + x + A \delta$ with $x \sim N(0, P)$ and a flat prior on $\delta$.

    `known_start` and `diffuse_start` build one.

    Attributes:
        a: Mean, `(m,)`.
        P: Variance, `(m, m)`.
        A: Directions without any prior knowledge, `(m, k)`; k may be 0. $P_\\infty = A A'$.
    """

    a: ArrayLike
    P: ArrayLike
    A: ArrayLike


def known_start(a: ArrayLike, P: ArrayLike) -> Start:
    """The first state has mean a, `(m,)`, and variance P, `(m, m)`."""
    return Start(a, P, np.zeros((jnp.asarray(a).shape[0], 0)))


def diffuse_start(diffuse: Sequence[bool] | np.ndarray, a: ArrayLike = 0.0, P: ArrayLike = 0.0) -> Start:
    """The marked states have a flat prior, the others mean a and variance P.

    Args:
        diffuse: which of the m states are diffuse, as booleans or 0 and 1; concrete, never traced.
        a: mean, `(m,)` or a scalar; read at the other states only.
        P: variance, `(m, m)` or a scalar for all its entries; read at the other states only.

    Returns:
        The start, with one column of A for every diffuse state.
    """
    mask = np.asarray(diffuse).astype(bool)
    keep = (~mask).astype(float)
    return Start(keep * a, np.outer(keep, keep) * P, np.eye(mask.size)[:, mask])


class System(NamedTuple):
    """Data, matrices and start as strong arrays of one dtype, y as `(time, p)`; V is R Q R'."""

    y: Float[Array, "time p"]
    Z: Float[Array, "*time p m"]
    H: Float[Array, "*time p p"]
    d: Float[Array, "*time p"]
    T: Float[Array, "*time m m"]
    c: Float[Array, "*time m"]
    V: Float[Array, "*time m m"]
    a: Float[Array, " m"]
    P: Float[Array, "m m"]
    A: Float[Array, "m k"]


def as_system(y: ArrayLike, model: StateSpace, start: Start) -> System:
    """Checks shapes and brings everything to the dtype of y.

    Raises:
        ValueError: a shape does not fit; the message names the argument, its shape and the one wanted.
    """
    y = jnp.asarray(y)
    y = y if jnp.issubdtype(y.dtype, jnp.floating) else y.astype(float)
    y = y[:, None] if y.ndim == 1 else y
    Z, H, T, Q, d, c = (jnp.asarray(x, y.dtype) for x in (model.Z, model.H, model.T, model.Q, model.d, model.c))
    R = None if model.R is None else jnp.asarray(model.R, y.dtype)
    a, P, A = (jnp.asarray(x, y.dtype) for x in start)
    if y.ndim != 2:
        raise ValueError(f"y has shape {y.shape}; wanted (time, p), or (time,) for one entry at each time.")
    if Z.ndim not in (2, 3) or (R is not None and R.ndim not in (2, 3)):
        shapes = f"{Z.shape}, {None if R is None else R.shape}"
        raise ValueError(f"Z and R have shapes {shapes}; wanted (p, m) and (m, r), or (time, ...) of it.")
    (n, p), m = y.shape, Z.shape[-1]
    r = m if R is None else R.shape[-1]
    d, c = (jnp.broadcast_to(x, (k,)) if x.ndim == 0 else x for x, k in ((d, p), (c, m)))
    wanted = {"Z": (p, m), "H": (p, p), "T": (m, m), "R": (m, r), "Q": (r, r), "d": (p,), "c": (m,)}
    for (name, shape), x in zip(wanted.items(), (Z, H, T, R, Q, d, c), strict=True):
        if x is not None and x.shape not in (shape, (n, *shape)):
            raise ValueError(f"{name} has shape {x.shape}; y has shape {y.shape} and Z {Z.shape}, so it takes {shape}, "
                             f"or {(n, *shape)} if it depends on time.")  # fmt: skip
    for name, x, shape in (("start.a", a, (m,)), ("start.P", P, (m, m)), ("start.A", A, (m, *A.shape[1:2]))):
        if x.shape != shape:
            raise ValueError(f"{name} has shape {x.shape}; the model has {m} states, so it takes {shape}.")
    V = Q if R is None else jnp.einsum("...ij,...jk,...lk->...il", R, Q, R)
    return System(y, Z, H, d, T, c, V, a, P, A)


class Entries(NamedTuple):
    """The observations one scalar at a time, their disturbances uncorrelated; each may lack the time axis but y, seen.

    Attributes:
        y: Entries less their intercept, rotated; 0 where missing.
        seen: Which are observed.
        z: What each sees of the state.
        h: Variance of its disturbance.
        rotation: E with `y = E (y_t - d_t)`, unit lower triangular; None if there is one entry.
    """

    y: Float[Array, "time p"]
    seen: Bool[Array, "time p"]
    z: Float[Array, "*time p m"]
    h: Float[Array, "*time p"]
    rotation: Float[Array, "time p p"] | None


def as_entries(s: System) -> Entries:
    """Rotates the entries of each time by the unit triangular factor of the observed block of H (H = C D C', E = 1/C).

    Its determinant is 1, so the likelihood stays as it is; where H is diagonal it is the identity.
    """
    seen = ~jnp.isnan(s.y)
    y = jnp.where(seen, s.y - jnp.broadcast_to(s.d, s.y.shape), 0)
    if s.y.shape[1] == 1:
        return Entries(y, seen, s.Z, jnp.diagonal(s.H, axis1=-2, axis2=-1), None)
    both = seen[:, :, None] & seen[:, None, :]
    E, h = eliminate(jnp.where(both, jnp.broadcast_to(s.H, both.shape), 0))
    return Entries(jnp.einsum("tij,tj->ti", E, y), seen, E @ jnp.broadcast_to(s.Z, (*y.shape, s.Z.shape[-1])), h, E)


def eliminate(S: Float[Array, "*batch p p"]) -> tuple[Float[Array, "*batch p p"], Float[Array, "*batch p"]]:
    """E, unit lower triangular, and the diagonal h of E S E' for a semidefinite S; plain products, no LAPACK.

    XLA's batched factorisations are slow on CPU, and this one takes singular matrices: a zero pivot is passed over.
    """
    p = S.shape[-1]
    below = _below(S)

    def step(k, carry):
        S, E = carry
        pivot = S[..., k, k]
        usable = pivot != 0
        inverse = jnp.where(usable, 1 / jnp.where(usable, pivot, 1), 0)
        column = (S[..., :, k] * inverse[..., None] * below(k))[..., None]
        return S - column * S[..., k, :][..., None, :], E - column * E[..., k, :][..., None, :]

    S, E = lax.fori_loop(0, p, step, (S, jnp.broadcast_to(jnp.eye(p, dtype=S.dtype), S.shape)))
    return E, jnp.diagonal(S, axis1=-2, axis2=-1)


def factor(S: Float[Array, "*batch p p"]) -> Float[Array, "*batch p p"]:
    """A square root C with C C' = S of a semidefinite S, lower triangular; a negative pivot counts as 0."""
    p = S.shape[-1]
    below = _below(S)

    def step(k, carry):
        S, C = carry
        pivot = S[..., k, k]
        usable = pivot > 0
        scale = jnp.where(usable, lax.rsqrt(jnp.where(usable, pivot, 1)), 0)[..., None]
        column = S[..., :, k] * scale * below(k - 1)
        return S - column[..., :, None] * column[..., None, :], C.at[..., :, k].set(column)

    return lax.fori_loop(0, p, step, (S, jnp.zeros_like(S)))[1]


def _below(S):
    """1 at the rows under row k, 0 elsewhere, for a column of S."""
    rows = jnp.broadcast_to(jnp.arange(S.shape[-1]), S.shape[:-1])
    return lambda k: (rows > k).astype(S.dtype)


def split_by_time(**parts: tuple[Array, int]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What is constant and what has a time axis, from pairs (array, its rank without time)."""
    fixed = {name: x for name, (x, rank) in parts.items() if x.ndim == rank}
    return fixed, {name: x for name, (x, _) in parts.items() if name not in fixed}


def vague_log_likelihood(log_likelihood: ArrayLike, diffuse: int, variance: ArrayLike) -> Array:
    r"""Our exact diffuse value on the scale of a start with a large finite variance, as R's `StructTS` has it.

    $$\ell_\kappa \to \ell - \tfrac{k}{2} \log \kappa \qquad (\kappa \to \infty).$$

    Args:
        log_likelihood: the exact diffuse value.
        diffuse: k, the number of diffuse states.
        variance: kappa, their variance (`StructTS`: 1e6 times the variance of y; R's `arima`: 1e6 sigma2).

    Returns:
        The value that tends to the other program's as kappa grows.
    """
    return jnp.asarray(log_likelihood) - 0.5 * diffuse * jnp.log(variance)


def differenced_log_likelihood(log_likelihood: ArrayLike, diffuse: int) -> Array:
    r"""Our value less the constant $-\frac12 \log 2\pi$ of every diffuse observation.

    It is the likelihood of the differenced series where differencing removes the diffuse states (ARIMA, local level and
    trend), so R's `arima`, and statsmodels' `simple_differencing=True`. For models whose diffuse observations do not
    have $F_\infty = 1$, `kalman.burned_log_likelihood` leaves out their whole terms, as `loglikelihood_burn` does.

    Args:
        log_likelihood: the exact diffuse value.
        diffuse: the number of diffuse states.
    """
    return jnp.asarray(log_likelihood) + 0.5 * diffuse * math.log(2 * math.pi)
