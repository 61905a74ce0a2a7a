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
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.ssm import diffuse
from probkit.ssm.components import Structure
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
        first: which observations are the first to see something, whose variance may be far above all others.
    """

    spent: Spent
    s: Structure
    constant: Float[Array, ""]
    start: Start
    first: Bool[Array, " time"]


def settle(y: Float[Array, " time"], s: Structure, keep: bool = False) -> Settled:
    r"""Exact diffuse, or vague where that would leave no digits (`probkit.ssm.diffuse`).

    Args:
        y: observations, NaN where missing.
        s: the model.
        keep: as in `spend_flat`.
    """
    seen, (z, place, unit) = ~jnp.isnan(y)[:, None], _flat_part(s)
    values = jnp.where(seen, (y - s.d)[:, None], 0)
    spent = diffuse.spend(seen, z, s.flat_T, unit, keep)
    begun = diffuse.settle(spent, values, z, unit)
    ill = jnp.any(begun.vague != 0)
    s = dataclasses.replace(s, P=s.P + place.T @ begun.P @ place)
    a, P, A = s.start()
    first = jnp.any(spent.w != 0, axis=(1, 2)) | _wide(seen[:, 0], s, ill)
    return Settled(_placed(begun.spent, s), s, begun.constant, Start(a, P, jnp.where(ill, 0, A)), first)


def _wide(seen: Array, s: Structure, ill: Array) -> Array:
    """Which values may meet a wide prior for the first time, and those soon after a start that is vague.

    Such a start is vague because the first values tell the states badly apart: what comes next is still uncertain.
    """
    others = [i for i in range(s.q.shape[0]) if i not in s.flat]
    wide = jnp.cumsum(seen) <= jnp.where(ill, 3 * len(s.flat), 0) + (s.q.shape[0] if others else 0)
    if s.z.ndim == 1 or not others:
        return wide
    begin = jnp.argmax((s.z[:, np.array(others)] != 0) & seen[:, None], axis=0)
    return wide | jnp.any(jnp.arange(len(seen))[:, None] == begin, axis=1)


def run_forward(y: Float[Array, " time"], s: Structure, spent: Spent, keep: bool = False) -> tuple[Errors, Start]:
    """The filter over y in the dtype of s, NaN where missing; and the law of the state after the last time.

    Args:
        y: observations.
        s: the model.
        spent: from `spend_flat`.
        keep: whether to keep the law of every state.
    """
    step = lambda state, now: one_time(s, state, now, keep)
    errors: Errors
    last, errors = lax.scan(step, (jnp.zeros_like(s.q), s.P), known(y, s, spent))
    return errors, Start(*last, spent.left)


def known(y: Float[Array, " time"], s: Structure, spent: Spent) -> dict[str, Array]:
    """What the filter reads at every time, a row each."""
    seen = ~jnp.isnan(y)
    data = {"y": jnp.where(seen, y - s.d, 0), "seen": seen, "proper": seen & (spent.size == 0), "gain": spent.gain}
    return data | moving(s)


def one_time(s: Structure, state: tuple[Array, Array], now: dict[str, Array], keep: bool = False) -> tuple:
    """Mean and variance of the state before one time, a row of `known`, to those before the next; and its `Errors`."""
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
