r"""The filter, the likelihood and its gradient for sums of structural parts: a scalar y, and a T that is never formed.

The same algorithm, conventions and constants as `probkit.ssm.kalman`, which has the references; cheaper are:

* T and T' are a diagonal and a few rows (`probkit.ssm.components`, where seasons do not move at all);
* what is flat moves by itself, whatever the variances are, so its gains are found beforehand (`spend_flat`), and the
  filter has no branch;
* the gradient needs gains and errors alone, unless a parameter stands in T.

Mean a and variance P given the flat states at 0 move by, with $L = I - K z'$,

$$F = z'Pz + h, \quad v = y - z'a, \quad K = P z / F \ \text{or the flat gain}, \quad
  a \leftarrow T (a + K v), \quad P \leftarrow T (L P L' + h K K') T' + V, \quad
  V = \mathrm{diag}(q) + \textstyle\sum_b v_b g_b g_b',$$

and the scores backwards by $r \leftarrow T' r$, $N \leftarrow T' N T$, then

$$u = v / F - K' r, \quad D = 1 / F + K' N K, \quad r \leftarrow r + z u, \quad N \leftarrow L' N L + z z' / F.$$
"""

import dataclasses
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from probkit.ssm import diffuse, smoother
from probkit.ssm.components import Structure, Transition
from probkit.ssm.statespace import Start


class Spent(NamedTuple):
    r"""What the observations were spent on before anything was known.

    Attributes:
        gain: the gain at times whose observation determines a flat direction, 0 elsewhere.
        size: $F_\infty = w'w$ there, 0 elsewhere.
        left: the flat directions after the last time.
        A: the flat directions before each time, if they were kept.
        w: w.
        unresolved: projector on the directions that no observation determines.
    """

    gain: Float[Array, "time m"]
    size: Float[Array, " time"]
    left: Float[Array, "m k"]
    A: Float[Array, "time m k"] | None
    w: Float[Array, "time k"]
    unresolved: Float[Array, "k k"]


class Errors(NamedTuple):
    """What the forward pass leaves: one-step errors, their variances, gains before the transition.

    Attributes:
        v: error; 0 where missing.
        F: variance, of its proper part where the time is spent on flat states.
        F_inverse: 1 / F; 0 where missing or spent.
        K: gain.
        a: mean of the state before each time, if it was kept.
        P: its variance, likewise.
    """

    v: Float[Array, " time"]
    F: Float[Array, " time"]
    F_inverse: Float[Array, " time"]
    K: Float[Array, "time m"]
    a: Float[Array, "time m"] | None = None
    P: Float[Array, "time m m"] | None = None


class Scores(NamedTuple):
    """What the backward pass leaves; see `probkit.ssm.recursions.Cumulants`.

    Attributes:
        u: smoothing error.
        D: its variance.
        D_scale: size of the terms that D was added up from, if it was wanted.
        q: derivative of the log-likelihood to the variances q of each time.
        v: the same for the variances v.
        first: score of the first state, and its variance.
        r: score of the state disturbance, if it was kept.
        N: its variance, likewise.
        r_before: score of the state, likewise.
    """

    u: Float[Array, " time"]
    D: Float[Array, " time"]
    D_scale: Float[Array, " time"] | None
    q: Float[Array, "time m"]
    v: Float[Array, "time b"]
    first: tuple[Float[Array, " m"], Float[Array, "m m"]]
    r: Float[Array, "time m"] | None = None
    N: Float[Array, "time m m"] | None = None
    r_before: Float[Array, "time m"] | None = None


def spend_flat(seen: Bool[Array, " time"], s: Structure, keep: bool = False) -> Spent:
    """Which observations determine the flat states, and by what gain; it depends on no variance.

    Args:
        seen: which values are observed.
        s: the model.
        keep: whether to keep the flat directions of every time, which smoothing needs.
    """
    z, _, unit = _flat_part(s)
    return _placed(diffuse.spend(seen[:, None], z, s.flat_T, unit, keep), s)


def _flat_part(s: Structure) -> tuple[Array, Array, Array]:
    """What y sees of the flat states, (time, 1, k) or (1, k), their places among all, (k, m), and k unit vectors."""
    flat, dtype = np.array(s.flat, int), s.q.dtype
    return s.z[..., None, flat], jnp.eye(s.q.shape[0], dtype=dtype)[flat], jnp.eye(len(flat), dtype=dtype)


def _placed(found: diffuse.Spent, s: Structure) -> Spent:
    """The same in terms of all states."""
    _, place, _ = _flat_part(s)
    w = found.w[:, 0]
    A = None if found.A is None else jnp.einsum("km,tkl->tml", place, found.A)
    return Spent(found.gain[:, 0] @ place, jnp.sum(w * w, axis=1), place.T @ found.left, A, w, found.unresolved)


class Settled(NamedTuple):
    """How the filter begins.

    Attributes:
        spent: what the observations are spent on.
        s: the model, its first state known as far as the filter needs it.
        constant: what the log-likelihood lacks.
        start: the same law of the first state for the dense functions.
    """

    spent: Spent
    s: Structure
    constant: Float[Array, ""]
    start: Start


def settle(y: Float[Array, " time"], s: Structure, keep: bool = False) -> Settled:
    r"""Exact diffuse, or vague where that would leave no digits (`probkit.ssm.diffuse`).

    Args:
        y: observations, NaN where missing.
        s: the model.
        keep: as in `spend_flat`.
    """
    seen, (z, place, unit) = ~jnp.isnan(y)[:, None], _flat_part(s)
    known = jnp.where(seen, (y - s.d)[:, None], 0)
    begun = diffuse.settle(diffuse.spend(seen, z, s.flat_T, unit, keep), known, z, unit)
    ill = jnp.any(begun.vague != 0)
    s = dataclasses.replace(s, P=s.P + place.T @ begun.P @ place)
    a, P, A = s.start()
    return Settled(_placed(begun.spent, s), s, begun.constant, Start(a, P, jnp.where(ill, 0, A)))


def run_forward(y: Float[Array, " time"], s: Structure, spent: Spent, keep: bool = False) -> tuple[Errors, Start]:
    """The filter over y in the dtype of s, NaN where missing; and the law of the state after the last time.

    Args:
        y: observations.
        s: the model.
        spent: from `spend_flat`.
        keep: whether to keep the law of every state.
    """
    seen = ~jnp.isnan(y)
    known = {"y": jnp.where(seen, y - s.d, 0), "proper": seen & (spent.size == 0), "gain": spent.gain}

    def step(state, now):
        a, P = state
        z, h = now.get("z", s.z), now.get("h", s.h)
        M = times(P, z)
        F = z @ M + h
        v = jnp.where(now["seen"], now["y"] - z @ a, 0)
        proper = now["proper"] & (F > 0)
        F_inverse = jnp.where(proper, 1 / jnp.where(proper, F, 1), 0)
        K = M * F_inverse + now["gain"]
        P_next = moved(s, joseph(P, K, M, z, h), now)
        return (s.T.apply(a + K * v), P_next), Errors(v, F, F_inverse, K, *((a, P) if keep else ()))

    last, errors = lax.scan(step, (jnp.zeros_like(s.q), s.P), {**known, "seen": seen, **moving(s)})
    return errors, Start(*last, spent.left)


def moving(s: Structure) -> dict[str, Array]:
    """What a pass reads anew at every time."""
    each = {"z": s.z} if s.z.ndim == 2 else {}
    return each | ({"h": s.h} if s.h.ndim else {}) | ({} if s.g is None else {"g": s.g})


def moved(s: Structure, P: Array, now: dict[str, Array]) -> Array:
    """The variance of the next state from that of this one, ``T P T' + V``; `now` is a row of `moving`."""
    P = s.T.moved(P) + jnp.diag(s.q)
    return P if s.g is None else P + _moving_noise(s.v, now["g"])


def times(P: Array, x: Array) -> Array:
    """P x for a symmetric P, added up along the axis that vector units like."""
    return jnp.sum(P * x[:, None], axis=0)


def joseph(P: Array, K: Array, M: Array, x: Array, c: Array) -> Array:
    """(I - K x') P (I - K x')' + c K K' with M = P x, as two updates of rank one: what rounding adds to x'Px leaves.

    P is symmetric, so nothing is transposed: W and its transpose are worked out as they are read, never stored.
    """
    W, W_t = P - M[:, None] * K[None, :], P - K[:, None] * M[None, :]
    d = c * K - times(W, x)
    return 0.5 * (W + W_t + K[:, None] * d[None, :] + d[:, None] * K[None, :])


def _moving_noise(v: Array, g: Array) -> Array:
    parts = [v[b] * (g[b][:, None] * g[b][None, :]) for b in range(v.shape[0])]
    return sum(parts[1:], parts[0])


def run_backward(f: Errors, s: Structure, keep: bool = False, sizes: bool = False) -> Scores:
    """The adjoint of the filter, from 0 after the last time.

    Args:
        f: what the filter found.
        s: the model.
        keep: whether to keep the scores of every state.
        sizes: whether to find `D_scale`.
    """

    def step(later, now):
        r, N = later
        z, K, F_inverse = now.get("z", s.z), now["K"], now["F_inverse"]
        before, N_before = s.T.adjoint(r), s.T.moved_back(N)
        NK = times(N_before, K)
        u, D = now["error"] - K @ before, F_inverse + K @ NK
        size = F_inverse + jnp.abs(K) @ times(jnp.abs(N_before), jnp.abs(K)) if sizes else None
        N_seen = joseph(N_before, z, NK, K, F_inverse)
        scores = before + z * u
        gv = 0.5 * ((now["g"] @ r) ** 2 - jnp.sum((now["g"] @ N) * now["g"], axis=-1)) if s.g is not None else s.v
        out = (u, D, size, 0.5 * (r * r - jnp.diagonal(N)), gv), ((r, N, scores) if keep else ())
        return (scores, N_seen), out

    nothing = jnp.zeros_like(s.q), jnp.zeros_like(s.P)
    known = {"K": f.K, "F_inverse": f.F_inverse, "error": f.F_inverse * f.v}
    first, (out, kept) = lax.scan(step, nothing, {**known, **moving(s)}, reverse=True)
    u, D, size, q, v = out
    return Scores(u, D, size, q, v, first, *kept)


def log_likelihood(y: Float[ArrayLike, " time"], s: Structure) -> Float[Array, ""]:
    """Joint log density of the observed values, flat states integrated out; constants as in `kalman.log_likelihood`.

    Derivatives to y, h, q, P, d and the entries of T are read off the backward pass, and may be differentiated once
    more. z and the transition of flat states hold no parameters.

    Args:
        y: observations, NaN where missing.
        s: the model, from `components.assemble`.

    Returns:
        The log-likelihood; -inf with a zero gradient where some F is not positive or a number overflows.
    """
    y = jnp.asarray(y, s.q.dtype)
    spent, s, constant, _ = settle(y, s)
    spent, constant = jax.tree.map(lax.stop_gradient, (spent, constant))
    constants = jax.tree.map(lax.stop_gradient, (s.z, s.g)), spent
    return _log_likelihood(y - s.d, s.h, s.T, s.q, s.v, s.P, constants) + constant


def leave_one_out(y: Float[ArrayLike, " time"], s: Structure) -> tuple[Array, Array]:
    r"""Mean and variance of each y given all others, $y - u / D$ and $1 / D$ (de Jong 1988).

    Where y is missing, of what was not seen; NaN where nothing else determines a flat state that it sees.
    """
    y = jnp.asarray(y, s.q.dtype)
    missing = jnp.isnan(y)
    spent, s, _, start = settle(y, s)
    f, _ = run_forward(y, s, spent)
    b = run_backward(f, s, sizes=True)
    D = jnp.where(100 * jnp.finfo(b.D.dtype).eps * jnp.asarray(b.D_scale) >= b.D, jnp.nan, b.D)
    gaps = lambda y: tuple(smoother.leave_one_out(y, s.matrices(), start))
    mean, variance = lax.cond(jnp.any(missing), gaps, lambda y: (y, y), y)
    return jnp.where(missing, mean, y - b.u / D), jnp.where(missing, variance, 1 / D)


def origin_and_unit(y: Float[Array, " time"], from_first: bool) -> tuple[Array, Array]:
    """Where to count y from, its first value or 0, and the largest distance from there, never 0."""
    observed = ~jnp.isnan(y)
    first = jnp.where(jnp.any(observed), y[jnp.argmax(observed)], 0)
    origin = first if from_first else jnp.zeros_like(first)
    span = jnp.max(jnp.where(observed, jnp.abs(y - origin), 0))
    return origin, jnp.where(span > 0, span, jnp.where(origin != 0, jnp.abs(origin), 1))


def log_density(f: Errors, spent: Spent, seen: Bool[Array, " time"]) -> Float[Array, ""]:
    """Joint log density of the observations whose errors the filter found; -inf where it failed."""
    size = jnp.where(spent.size > 0, spent.size, f.F)
    terms = jnp.log(jnp.where(seen, size, 1)) + f.v * (f.v * f.F_inverse)
    value = -0.5 * (jnp.sum(terms) + math.log(2 * math.pi) * jnp.sum(seen, dtype=f.v.dtype))
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def _as_structure(h, T, q, v, P, constants):
    (z, g), spent = constants
    none = jnp.zeros((), q.dtype)
    return Structure(z, T, q, v, g, P, h, none, jnp.zeros((0, 0), q.dtype), none, ()), spent


@jax.custom_jvp
def _log_likelihood(y, h, T, q, v, P, constants):
    s, spent = _as_structure(h, T, q, v, P, constants)
    return log_density(run_forward(y, s, spent)[0], spent, ~jnp.isnan(y))


def _log_likelihood_jvp(primals, tangents):
    y, h, T, q, v, P, constants = primals
    dy, dh, dT, dq, dv, dP, _ = tangents
    s, spent = _as_structure(h, T, q, v, P, constants)
    inside = any(not isinstance(x, SymbolicZero) for x in jax.tree.leaves(dT, is_leaf=_symbolic))
    f, _ = run_forward(y, s, spent, keep=inside)
    value = log_density(f, spent, ~jnp.isnan(y))
    b = run_backward(f, s, keep=inside)
    r, N = b.first
    total = jnp.zeros_like(value)

    def add(total, gradient, direction):
        if isinstance(direction, SymbolicZero) or direction is None:
            return total
        gradient = gradient()
        usable = jnp.isfinite(value) & jnp.isfinite(gradient)
        return total + jnp.vdot(jnp.where(usable, gradient, 0), direction)

    total = add(total, lambda: -b.u, dy)
    by_time = 0.5 * (b.u * b.u - b.D)
    total = add(total, lambda: by_time if h.ndim else jnp.sum(by_time), dh)
    total = add(total, lambda: jnp.sum(b.q, axis=0), dq)
    total = add(total, lambda: jnp.sum(b.v, axis=0), dv)
    total = add(total, lambda: 0.5 * (jnp.outer(r, r) - N), dP)
    for gradient, direction in _transition_gradients(s, f, b, dT) if inside else ():
        total = add(total, gradient, direction)
    return value, total


def _symbolic(x: object) -> bool:
    return isinstance(x, SymbolicZero)


_log_likelihood.defjvp(_log_likelihood_jvp, symbolic_zeros=True)


def _transition_gradients(s: Structure, f: Errors, b: Scores, dT: Transition) -> list[tuple]:
    r"""Derivatives to the entries of T in columns of states that are not flat, $\sum_t (r \hat\alpha' - N T L P)_{ij}$.

    Pairs of a function that finds the derivative and the direction that it meets.
    """
    a, P, r, N, before = (jnp.asarray(x) for x in (f.a, f.P, b.r, b.N, b.r_before))
    M = jnp.einsum("tij,tj->ti", P, jnp.broadcast_to(s.z, f.K.shape))
    alpha = a + jnp.einsum("tij,tj->ti", P, before)

    TLP = jax.vmap(s.T.apply)(P - f.K[:, :, None] * M[:, None, :])

    def diagonal() -> Array:
        return jnp.sum(r * alpha - jnp.sum(N * jnp.swapaxes(TLP, 1, 2), axis=2), axis=0)

    def row(i: int) -> Array:
        return jnp.sum(r[:, i, None] * alpha - jnp.einsum("tj,tjk->tk", N[:, i], TLP), axis=0)

    pairs = [(diagonal, dT.diagonal)]
    return pairs + [(lambda i=i: row(i), direction) for i, direction in zip(s.T.heads, dT.rows, strict=True)]
