"""The filter over Markov processes, its adjoint, and what is read off them: likelihood, smoother, leave-one-out, paths.

:mod:`probkit.gp.markov` has the model and the references. Every step is written out in scalars, in bodies so small that
XLA:CPU makes native loops of them: 25 ns a step for two states, 950 ns as small matrices.
"""

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from probkit.gp.markov import Chain, Entries


def _total(terms: Any) -> Any:
    """A sum in which None is 0; 0.0 where all are."""
    found = [t for t in terms if t is not None]
    return sum(found[1:], found[0]) if found else 0.0


def _times(a: Any, b: Any) -> Any:
    return None if a is None or b is None else a * b


def _lower(m: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(m) for j in range(i + 1)]


def _square(P: Sequence[Any], m: int) -> list[list[Any]]:
    """A symmetric matrix from its lower triangle, row by row."""
    at = {pair: k for k, pair in enumerate(_lower(m))}
    return [[P[at[max(i, j), min(i, j)]] for j in range(m)] for i in range(m)]


class Filtered(NamedTuple):
    """The forward pass: one-step error, its variance, gain, and the law of each state before its own observation."""

    v: Array
    F: Array
    K: tuple[Array, ...]
    a: tuple[Array, ...]
    P: tuple[Array, ...]


def _filtered_variance(z: tuple[int, ...], P: Any, R: Array, seen: Array) -> tuple[Array, tuple, list]:
    """F, gain and the variance of the state once its observation is taken in."""
    m = len(P)
    M = [_total(P[i][j] for j in z) for i in range(m)]
    F = _total(M[j] for j in z) + R
    K = tuple(one * (seen / F) for one in M)
    return F, K, [[P[i][j] - K[i] * M[j] for j in range(m)] for i in range(m)]


def forward(z: tuple[int, ...], c: Chain, R: Array, y: Array, seen: Array) -> Filtered:
    """The filter, variances first. ``P`` is a lower triangle, row by row; ``seen`` is 1 or 0.

    Two scans with bodies as small as can be, not one: XLA:CPU makes a native loop of bodies that touch less than 1 kB.
    """
    m = len(c.A)
    lower = _lower(m)

    def wider(P: tuple, now: tuple) -> tuple:
        R, seen, A, Q = now
        _, _, after = _filtered_variance(z, _square(P, m), R, seen)
        AP = [[_total(_times(A[i][k], after[k][j]) for k in range(m)) for j in range(m)] for i in range(m)]
        return tuple(_total([Q[i][j], *(_times(AP[i][k], A[j][k]) for k in range(m))]) for i, j in lower), P

    def ahead(a: tuple, now: tuple) -> tuple:
        y, K, A = now
        v = y - _total(a[j] for j in z)
        after = [a[i] + K[i] * v for i in range(m)]
        return tuple(_total(_times(A[i][k], after[k]) for k in range(m)) for i in range(m)), a

    zero = jnp.zeros((), y.dtype)
    start = tuple(zero if c.P[i][j] is None else c.P[i][j] for i, j in lower)
    noise = tuple(tuple(c.Q[i][j] if j <= i else None for j in range(m)) for i in range(m))
    P: Any = lax.scan(wider, start, (R, seen, c.A, noise))[1]
    F, K, _ = _filtered_variance(z, _square(P, m), R, seen)
    a: Any = lax.scan(ahead, (zero,) * m, (y, K, c.A))[1]
    return Filtered(seen * (y - _total(a[j] for j in z)), F, K, a, P)


class Adjoint(NamedTuple):
    """The backward pass: scores r of each predicted state with their variance N, and u, D of each observation."""

    r: tuple[Array, ...]
    N: tuple[Array, ...]
    u: Array
    D: Array


def backward(z: tuple[int, ...], c: Chain, f: Filtered, seen: Array) -> Adjoint:
    """The adjoint of the filter, from 0 after the last input, in two scans as well."""
    m = len(c.A)
    lower = _lower(m)
    error, weight = f.v * (seen / f.F), seen / f.F

    def scores(r: tuple, now: tuple) -> tuple:
        error, K, A = now
        back = [_total(_times(A[k][i], r[k]) for k in range(m)) for i in range(m)]
        u = error - _total(K[k] * back[k] for k in range(m))
        before = tuple(back[i] + u if i in z else back[i] for i in range(m))
        return before, before

    def variances(N: tuple, now: tuple) -> tuple:
        weight, K, A = now
        W = _carried_back(A, _square(N, m))
        WK = [_total(W[i][k] * K[k] for k in range(m)) for i in range(m)]
        D = weight + _total(K[k] * WK[k] for k in range(m))
        before = []
        for i, j in lower:
            value = W[i][j]
            value = value - WK[j] if i in z else value
            value = value - WK[i] if j in z else value
            before.append(value + D if i in z and j in z else value)
        return tuple(before), tuple(before)

    zero = jnp.zeros((), f.v.dtype)
    r: Any = lax.scan(scores, (zero,) * m, (error, f.K, c.A), reverse=True)[1]
    N: Any = lax.scan(variances, (zero,) * len(lower), (weight, f.K, c.A), reverse=True)[1]
    after_r, after_N = _after(r), _after(N)
    back = [_total(_times(c.A[k][i], after_r[k]) for k in range(m)) for i in range(m)]
    W = _carried_back(c.A, _square(after_N, m))
    u = error - _total(f.K[k] * back[k] for k in range(m))
    D = weight + _total(f.K[i] * W[i][j] * f.K[j] for i in range(m) for j in range(m))
    return Adjoint(r, N, u, D)


def _carried_back(A: Any, N: list) -> list:
    """``A' N A``."""
    m = len(N)
    NA = [[_total(_times(N[i][k], A[k][j]) for k in range(m)) for j in range(m)] for i in range(m)]
    return [[_total(_times(A[k][i], NA[k][j]) for k in range(m)) for j in range(m)] for i in range(m)]


def _after(parts: Any) -> Any:
    """Values of the next input, 0 after the last."""
    return tuple(jnp.concatenate([one[1:], jnp.zeros_like(one[:1])]) for one in parts)


def _value(f: Filtered, seen: Array) -> Array:
    F = jnp.where(seen > 0, f.F, 1.0)
    value = -0.5 * jnp.sum(seen * (jnp.log(F) + f.v * f.v / F + math.log(2.0 * math.pi)))
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


@partial(jax.custom_jvp, nondiff_argnums=(0,))
def _log_density(z: tuple[int, ...], c: Chain, R: Array, y: Array, seen: Array) -> Array:
    return _value(forward(z, c, R, y, seen), seen)


@_log_density.defjvp
def _log_density_jvp(z: tuple[int, ...], primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    c, R, y, seen = primals
    f = forward(z, c, R, y, seen)
    value = _value(f, seen)
    b = backward(z, c, f, seen)
    gradient = _gradient(z, c, R, seen, f, b)
    slopes = jax.tree_util.tree_map(
        # None where the value is -inf, and none rather than NaN where a square overflows.
        lambda g, d: jnp.sum(jnp.where(jnp.isfinite(value) & jnp.isfinite(g), g, 0.0) * d),
        gradient,
        tangents[:3],
    )
    return value, sum(jax.tree_util.tree_leaves(slopes), jnp.zeros_like(value))


def _gradient(z: tuple[int, ...], c: Chain, R: Array, seen: Array, f: Filtered, b: Adjoint) -> tuple:
    """Derivatives to the chain, R and y: ``Q: (r r' - N) / 2``, ``A: r smoothed' - N A P``, ``R: (u² - D) / 2``."""
    m = len(c.A)
    r, N = _after(b.r), _square(_after(b.N), m)
    _, _, P = _filtered_variance(z, _square(f.P, m), R, seen)
    mean = smoothed_states(f, b)[0]
    AP = [[_total(_times(c.A[i][k], P[k][j]) for k in range(m)) for j in range(m)] for i in range(m)]

    def of_A(i: int, j: int) -> Array:
        return r[i] * mean[j] - _total(N[i][k] * AP[k][j] for k in range(m))

    def where_held(held: Entries, fn: Callable) -> Entries:
        return tuple(tuple(None if held[i][j] is None else fn(i, j) for j in range(m)) for i in range(m))

    def variance(r: Any, N: list) -> Callable:
        # The filter reads the lower triangle alone.
        return lambda i, j: jnp.zeros_like(r[i]) if j > i else (0.5 if i == j else 1.0) * (r[i] * r[j] - N[i][j])

    first = variance([one[0] for one in b.r], [[one[0] for one in row] for row in _square(b.N, m)])
    chained = Chain(where_held(c.A, of_A), where_held(c.Q, variance(r, N)), where_held(c.P, first))
    return chained, 0.5 * (b.u * b.u - b.D), -b.u


def smoothed_states(f: Filtered, b: Adjoint) -> tuple[list[Array], list[list[Array]]]:
    """Mean ``a + P r`` and variance ``P - P N P`` of every state given all that is seen."""
    m = len(f.a)
    P, N = _square(f.P, m), _square(b.N, m)
    mean = [f.a[i] + _total(P[i][j] * b.r[j] for j in range(m)) for i in range(m)]
    PN = [[_total(P[i][k] * N[k][j] for k in range(m)) for j in range(m)] for i in range(m)]
    return mean, [[P[i][j] - _total(PN[i][k] * P[k][j] for k in range(m)) for j in range(m)] for i in range(m)]


def _seen(y: Array) -> tuple[Array, Array]:
    missing = jnp.isnan(y)
    return jnp.where(missing, 0.0, y), jnp.where(missing, 0.0, jnp.ones_like(y))


def log_likelihood(z: tuple[int, ...], c: Chain, R: Float[Array, " n"], y: Float[Array, " n"]) -> Float[Array, ""]:
    """Joint log density of the observed entries in O(n), with the adjoint as its derivative.

    Args:
        z: which states add up to the observation, see :func:`observed_states`.
        c: the process at the sorted inputs.
        R: variances of the noise, (n,).
        y: observations less their mean, (n,); NaN is missing.

    Returns:
        A scalar; -inf with gradient 0 where a variance is not positive or a number overflows.
    """
    return _log_density(z, c, R, *_seen(y))


class Smoothed(NamedTuple):
    """The process at each input given all observations, and given all but its own.

    Attributes:
        mean: of the process, (n,).
        variance: of the process, (n,).
        loo_mean: of the observation given all others, (n,); of a fresh one where it is missing.
        loo_variance: likewise, noise included.
    """

    mean: Array
    variance: Array
    loo_mean: Array
    loo_variance: Array


def smooth(z: tuple[int, ...], c: Chain, R: Float[Array, " n"], y: Float[Array, " n"]) -> Smoothed:
    """The smoother, and leave-one-out ``y - u / D`` with variance ``1 / D``. Arguments as in :func:`log_likelihood`."""
    values, seen = _seen(y)
    f = forward(z, c, R, values, seen)
    b = backward(z, c, f, seen)
    means, variances = smoothed_states(f, b)
    mean = _total(means[i] for i in z)
    variance = jnp.maximum(_total(variances[i][j] for i in z for j in z), 0.0)
    D = jnp.where(seen > 0, b.D, 1.0)
    return Smoothed(
        mean, variance, jnp.where(seen > 0, values - b.u / D, mean), jnp.where(seen > 0, 1.0 / D, variance + R)
    )


def simulate(z: tuple[int, ...], c: Chain, key: Array, like: Array) -> Float[Array, " n"]:
    """One path of the process at sorted inputs ``like``, from the prior."""
    m, n = len(c.A), like.shape[0]
    Q, P = _factor(c.Q, m), _factor(c.P, m)
    e = jax.random.normal(key, (n + 1, m), like.dtype)

    def step(state: tuple, now: tuple) -> tuple:
        A, shock = now
        after = [_total([*(_times(A[i][k], state[k]) for k in range(m)), shock[i]]) for i in range(m)]
        return tuple(after), _total(state[i] for i in z)

    def shaken(L: list, e: Array) -> tuple:
        return tuple(
            jnp.broadcast_to(_total(_times(L[i][k], e[..., k]) for k in range(i + 1)), e.shape[:-1]) for i in range(m)
        )

    return lax.scan(step, shaken(P, e[0]), (c.A, shaken(Q, e[1:])))[1]


def _factor(S: Any, m: int) -> list[list[Any]]:
    """Cholesky factors entry by entry, over time at once; a pivot that is 0 leaves its column 0."""
    L: list[list[Any]] = [[None] * m for _ in range(m)]
    for j in range(m):
        pivot = S[j][j] - _total(_times(L[j][k], L[j][k]) for k in range(j))
        sound = pivot > 8 * jnp.finfo(pivot.dtype).eps * S[j][j]
        root = jnp.sqrt(jnp.where(sound, pivot, 1.0))
        L[j][j] = jnp.where(sound, root, 0.0)
        for i in range(j + 1, m):
            below = [_times(L[i][k], L[j][k]) for k in range(j)]
            if S[i][j] is None and all(one is None for one in below):
                continue
            rest = (0.0 if S[i][j] is None else S[i][j]) - _total(below)
            L[i][j] = jnp.where(sound, rest / root, 0.0)
    return L
