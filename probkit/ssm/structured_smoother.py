r"""What a sum of structural parts says after all data are in: linear forms of its states, and joint draws of them.

The recursions are those of `probkit.ssm.recursions` for a scalar y. A form x of the state costs matrix-vector products
alone: with $p = P x$ and $b = A' x$,

$$\mathrm{mean} = x'a + p'r + b'\hat\delta, \qquad \mathrm{variance} = x'p - p'Np + 2 p'B b + b'C b.$$
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

from probkit.ssm.components import Structure
from probkit.ssm.recursions import flat_forms
from probkit.ssm.statespace import factor
from probkit.ssm.structured_passes import Errors, Spent, joseph, run_forward, settle, times


class Forms(NamedTuple):
    """Moments of linear forms of the states given all of y, and one joint draw, each `(time, c)`."""

    mean: Array
    variance: Array
    draw: Array


def smooth_forms(key: Array, y: Float[Array, " time"], s: Structure, rows: Float[Array, "time c m"]) -> Forms:
    """Mean and variance of linear forms of the states given all of y, and one joint draw of all of them.

    The draw is Durbin and Koopman's (2002): a draw from the model, and the smoothed mean of what it misses of y.
    While many states are still flat, float32 may leave no digits of a variance (it is then 0): use float64 there.

    Args:
        key: a JAX key.
        y: observations, NaN where missing.
        s: the model.
        rows: the forms at each time.

    Returns:
        The moments and the draw; NaN and infinite where y leaves flat what a form sees.
    """
    spent, s, *_ = settle(y, s, keep=True)
    f, _ = run_forward(y, s, spent, keep=True)
    mean, variance = _backward(f, spent, s, rows)
    states, imagined = simulate(key, s, y.shape[0])
    missed = _mean_alone(y - imagined, f, spent, s, rows)
    draw = jnp.einsum("tcm,tm->tc", rows, states) + missed
    lost = flat_forms(rows, _kept(spent), spent.unresolved)
    return Forms(
        jnp.where(lost, jnp.nan, mean),
        jnp.where(lost, jnp.inf, jnp.maximum(variance, 0)),
        jnp.where(lost, jnp.nan, draw),
    )


def _kept(spent: Spent) -> Array:
    """A, which was kept for the smoother."""
    if spent.A is None:
        raise ValueError("The flat directions were not kept: call spend_flat(..., keep=True).")
    return spent.A


def _inputs(f: Errors, spent: Spent, s: Structure, rows: Array) -> dict[str, Array]:
    A, w, diffuse = _kept(spent), spent.w, spent.size > 0
    z = jnp.broadcast_to(s.z, f.K.shape)
    M = jnp.einsum("tij,tj->ti", f.P, z)
    q = jnp.where(diffuse[:, None], M - f.K * f.F[:, None], 0)
    inverse = w / jnp.where(diffuse, spent.size, 1)[:, None]
    forms = jnp.einsum("tcm,tmn->tcn", rows, f.P), jnp.einsum("tcm,tmk->tck", rows, A)
    return {
        "z": z, "K": f.K, "F": f.F, "F_inverse": f.F_inverse, "v": f.v, "q": q, "w": w, "inverse": inverse,
        "diffuse": diffuse.astype(f.v.dtype), "rows": rows, "p": forms[0], "b": forms[1], "a": jnp.asarray(f.a),
    }  # fmt: skip


def _backward(f: Errors, spent: Spent, s: Structure, rows: Array) -> tuple[Array, Array]:
    k, m = len(s.flat), s.q.shape[0]

    def step(later, now):
        r, N, delta, C, B = later
        z, K, q, w, inverse = (now[name] for name in ("z", "K", "q", "w", "inverse"))
        r, N = s.T.adjoint(r), s.T.moved_back(N)
        B = s.T.adjoint(B)

        def project(X):
            return X - (jnp.outer(X @ w, inverse) if X.ndim == 2 else (X @ w) * inverse)

        NK, Nq = times(N, K), times(N, q)
        cross = jnp.outer(inverse, project(q @ B))
        left = now["F"] * now["diffuse"] - q @ Nq
        C = project(project(C).T) + left * jnp.outer(inverse, inverse) - cross - cross.T
        B = project(B - jnp.outer(z, K @ B)) - jnp.outer(z * (now["diffuse"] + K @ Nq) - Nq, inverse)
        delta = delta + inverse * (now["v"] - q @ r - w @ delta)
        r = r + z * (now["F_inverse"] * now["v"] - K @ r)
        N = joseph(N, z, NK, K, now["F_inverse"])
        x, p, b = now["rows"], now["p"], now["b"]
        mean = x @ now["a"] + p @ r + b @ delta
        along = lambda left, X, right: jnp.sum((left @ X) * right, axis=-1)
        variance = jnp.sum(x * p, axis=-1) - along(p, N, p) + 2 * along(p, B, b) + along(b, C, b)
        return (r, N, delta, C, B), (mean, variance)

    zeros = lambda *shape: jnp.zeros(shape, s.q.dtype)
    start = zeros(m), zeros(m, m), zeros(k), zeros(k, k), zeros(m, k)
    return lax.scan(step, start, _inputs(f, spent, s, rows), reverse=True)[1]


def _mean_alone(y: Array, f: Errors, spent: Spent, s: Structure, rows: Array) -> Array:
    """The smoothed means for other data with the same gaps and no intercept; the variances are those at hand."""
    known = _inputs(f, spent, s, rows)

    def forth(a, now):
        v = jnp.where(jnp.isnan(now["y"]), 0, now["y"] - now["z"] @ a)
        return s.T.apply(a + now["K"] * v), (a, v)

    known["a"], known["v"] = lax.scan(forth, jnp.zeros_like(s.q), {"y": y, "z": known["z"], "K": known["K"]})[1]

    def back(later, now):
        r, delta = later
        r = s.T.adjoint(r)
        delta = delta + now["inverse"] * (now["v"] - now["q"] @ r - now["w"] @ delta)
        r = r + now["z"] * (now["F_inverse"] * now["v"] - now["K"] @ r)
        return (r, delta), now["rows"] @ now["a"] + now["p"] @ r + now["b"] @ delta

    start = jnp.zeros_like(s.q), jnp.zeros(len(s.flat), s.q.dtype)
    return lax.scan(back, start, known, reverse=True)[1]


def simulate(key: Array, s: Structure, length: int) -> tuple[Array, Array]:
    """One draw of states, (time, m), and observations; flat states start at 0."""
    first, shock, more, noise = jax.random.split(key, 4)
    m, dtype = s.q.shape[0], s.q.dtype
    shocks = jnp.sqrt(s.q) * jax.random.normal(shock, (length, m), dtype)
    if s.g is not None:
        scale = jnp.sqrt(s.v) * jax.random.normal(more, (length, s.v.shape[0]), dtype)
        shocks = shocks + jnp.einsum("tb,tbm->tm", scale, s.g)
    start = factor(s.P) @ jax.random.normal(first, (m,), dtype)
    _, states = lax.scan(lambda state, shock: (s.T.apply(state) + shock, state), start, shocks)
    seen = jnp.sum(jnp.broadcast_to(s.z, states.shape) * states, axis=-1)
    return states, seen + s.d + jnp.sqrt(s.h) * jax.random.normal(noise, (length,), dtype)
