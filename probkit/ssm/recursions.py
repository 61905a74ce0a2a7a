r"""The two passes over a linear Gaussian state space model: the filter, and its adjoint backwards.

Both take the observations one scalar at a time; `probkit.ssm.kalman` says what they compute and where it is from.
With $L = I - K z'$ and scores r, their variance N from 0 at the end, an entry is passed backwards by (de Jong 1988)

$$u = v / F - K' r, \quad D = 1 / F + K' N K, \quad r \leftarrow r + z u, \quad
  N \leftarrow L' N L + z z' / F,$$

with 1/F = 0 where it is missing (K = 0) or diffuse. What is flat, $\delta = \tilde w s + \Pi \delta'$ with
$\Pi = I - w \tilde w'$ and $s = v - z'x - \varepsilon$ at a diffuse entry, is followed by its moments: any disturbance
of prior variance S whose covariance with the rest of $\delta$ is $S b$ and whose score has covariance j with r obeys

$$b \leftarrow b \Pi + (j q) \tilde w', \qquad q = P z - F K,$$

and $\hat\delta \leftarrow \tilde w (v - q'r) + \Pi \hat\delta$.
In the book these are $r^{(1)}, N^{(1)}, N^{(2)}$.
"""

import math
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.ssm.diffuse import UNROLL, Settled, negligible, settle, spend
from probkit.ssm.statespace import Entries, Start, System, as_entries, split_by_time


class Filtered(NamedTuple):
    """What the forward pass knows: states before each time, and a row for every scalar entry, rotated as in `Entries`.

    Attributes:
        a: Mean of the state given all times before, whatever is flat taken at delta = 0.
        P: Variance of its proper part.
        A: Its flat directions; 0 once they are all resolved.
        v: One-step error; 0 where missing.
        F: Variance of the error, of its proper part where the entry is diffuse.
        F_inverse: 1 / F; 0 where the entry is missing or diffuse.
        K: Gain before the transition; 0 where missing.
        q: P z - F K; 0 but at diffuse entries.
        w: A' z at diffuse entries, 0 elsewhere.
        w_inverse: w / w'w at diffuse entries, 0 elsewhere.
        unresolved: Projector on the directions of delta that no observation determines.
        next: The law of the state after the last time: a start for the future.
        vague: Variance of delta where it was given one (`diffuse.settle`), else 0.
        constant: What the log-likelihood then lacks.
    """

    a: Float[Array, "time m"]
    P: Float[Array, "time m m"]
    A: Float[Array, "time m k"]
    v: Float[Array, "time p"]
    F: Float[Array, "time p"]
    F_inverse: Float[Array, "time p"]
    K: Float[Array, "time p m"]
    q: Float[Array, "time p m"]
    w: Float[Array, "time p k"]
    w_inverse: Float[Array, "time p k"]
    unresolved: Float[Array, "k k"]
    next: Start
    vague: Float[Array, "k k"]
    constant: Float[Array, ""]


class Cumulants(NamedTuple):
    r"""What the backward pass adds: scores and their covariances, the entries in their original form.

    The score of a disturbance is the derivative of the log-likelihood to its mean: r that of the state disturbance
    $R \eta_t$, r_before that of the state $\alpha_t$, u that of the observation disturbance $\varepsilon_t$ (so minus
    that of y_t). The conditional covariance of two disturbances is minus (variance, covariance of scores, variance).

    Attributes:
        r: Score of the state disturbance.
        N: Its variance.
        r_before: Score of the state.
        N_before: Its variance.
        u: Smoothing error, the score of the observation disturbance.
        D: Its variance: diagonal entries are precisions of an entry given all others.
        D_scale: Size of the terms that the diagonal of D was added up from.
        G: Covariance of r_before and u.
        J: Covariance of r and r_before.
        delta: Mean of delta given all observations.
        C: Its variance.
        B: Its covariance with the state's proper part, P^-1 in front.
        B_noise: Its covariance with the observation disturbance, H^-1 in front.
        B_shock: Its covariance with the state disturbance, V^-1 in front.
    """

    r: Float[Array, "time m"]
    N: Float[Array, "time m m"]
    r_before: Float[Array, "time m"]
    N_before: Float[Array, "time m m"]
    u: Float[Array, "time p"]
    D: Float[Array, "time p p"]
    D_scale: Float[Array, "time p"]
    G: Float[Array, "time m p"]
    J: Float[Array, "time m m"]
    delta: Float[Array, "time k"]
    C: Float[Array, "time k k"]
    B: Float[Array, "time m k"]
    B_noise: Float[Array, "time p k"]
    B_shock: Float[Array, "time m k"]


def flat_forms(rows: Float[Array, "time i m"], A: Float[Array, "time m k"], U: Float[Array, "k k"]) -> Array:
    """Which linear forms of the states see a direction of A that is left in the range of the projector U."""
    largest = jnp.max(jnp.abs(A), axis=(1, 2), initial=0)[:, None, None]
    return ~negligible(rows @ A @ U, rows * largest)


def _update(state, entry):
    """One scalar entry: the state before it to the state after it."""
    a, P = state
    y, seen, z, h, w, gain = entry
    M = P @ z
    F, v = z @ M + h, jnp.where(seen, y - z @ a, 0)
    diffuse = jnp.any(w != 0)
    proper = seen & ~diffuse & (F > 0)
    F_inverse = jnp.where(proper, 1 / jnp.where(proper, F, 1), 0)
    K = M * F_inverse + gain
    q = jnp.where(diffuse, M - K * F, 0)
    W = P - jnp.outer(K, M)
    P = W - jnp.outer(W @ z, K) + h * jnp.outer(K, K)
    return (a + K * v, 0.5 * (P + P.T)), (v, F, F_inverse, K, q)


def begin(s: System, e: Entries) -> Settled:
    """How the filter begins: what is flat determined by which entries, or vague."""
    return settle(spend(e.seen, e.z, s.T, s.A), e.y, e.z, s.A)


def forward(s: System, begun: Settled | None = None) -> tuple[Filtered, Entries]:
    """The filter over checked arrays, and the entries that it ran over; it may begin as other values of y have it."""
    e = as_entries(s)
    begun = begin(s, e) if begun is None else begun
    spent, w = begun.spent, begun.spent.w
    fixed, moving = split_by_time(z=(e.z, 2), h=(e.h, 1), T=(s.T, 2), c=(s.c, 1), V=(s.V, 2))
    known = {"y": e.y, "seen": e.seen, "w": w, "gain": spent.gain}

    def step(state, now):
        m = {**fixed, **now}
        entries = m["y"], m["seen"], m["z"], m["h"], m["w"], m["gain"]
        (a, P), found = lax.scan(_update, state, entries, unroll=min(s.y.shape[1], UNROLL))
        P = m["T"] @ P @ m["T"].T + m["V"]
        return (m["T"] @ a + m["c"], 0.5 * (P + P.T)), (state, found)

    last, ((a, P), (v, F, F_inverse, K, q)) = lax.scan(step, (s.a, s.P + begun.P), {**known, **moving})
    size = jnp.sum(w * w, axis=-1, keepdims=True)
    found = (v, F, F_inverse, K, q, w, w / jnp.where(size > 0, size, 1))
    beyond = spent.unresolved, Start(*last, spent.left), begun.vague, begun.constant
    return Filtered(a, P, jnp.asarray(spent.A), *found, *beyond), e


def log_density(f: Filtered, seen: Bool[Array, "time p"]) -> Float[Array, ""]:
    """Joint log density of the entries `seen`, whose errors and variances the filter found; -inf where it failed."""
    diffuse = jnp.any(f.w != 0, axis=-1)
    det = jnp.where(diffuse, jnp.sum(f.w * f.w, axis=-1), f.F)
    det = jnp.where(seen, det, 1)
    constant = math.log(2 * math.pi) * jnp.sum(seen, dtype=f.v.dtype)
    value = f.constant - 0.5 * (jnp.sum(jnp.log(det) + f.v * (f.v * f.F_inverse)) + constant)
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def _if_flat(columns, flat, then, otherwise, *operands):
    """A branch that is settled before tracing where the start is known and nothing is flat."""
    return lax.cond(flat, then, otherwise, *operands) if columns else otherwise(*operands)


class _Scores(NamedTuple):
    r: Array
    N: Array
    J: Array
    G: Array
    D: Array


class _Flat(NamedTuple):
    delta: Array
    C: Array
    B: Array
    B_noise: Array
    B_shock: Array


def _back(after: _Scores, entry: tuple[Array, ...]) -> tuple[_Scores, tuple[Array, Array]]:
    """The scores after one scalar entry to those before it; its own u, and the size of what D adds up."""
    r, N, J, G, D = after
    z, K, error, F_inverse, here = entry
    NK = N @ K
    u, precision = error - K @ r, F_inverse + K @ NK
    row = jnp.where(here, precision, -(K @ G))  # covariances of u with those of the entries after it
    D = jnp.where(here[:, None], row[None, :], jnp.where(here[None, :], row[:, None], D))
    G = jnp.where(here[None, :], (z * precision - NK)[:, None], G - jnp.outer(z, K @ G))
    W = N - jnp.outer(z, NK)
    N = W - jnp.outer(W @ K, z) + F_inverse * jnp.outer(z, z)
    scale = F_inverse + jnp.abs(K) @ (jnp.abs(after.N) @ jnp.abs(K))
    return _Scores(r + z * u, 0.5 * (N + N.T), J - jnp.outer(J @ K, z), G, D), (u, scale)


def _back_flat(after: _Flat, scores: _Scores, entry: tuple[Array, ...]) -> _Flat:
    """The same for the moments of delta; `scores` are those after the entry."""
    delta, C, B, B_noise, B_shock = after
    r, N, J, G, _ = scores
    z, v, F, K, q, w, w_inverse, here = entry

    def project(X):
        return X - (jnp.outer(X @ w, w_inverse) if X.ndim == 2 else (X @ w) * w_inverse)

    diffuse = jnp.any(w != 0).astype(z.dtype)
    Nq = N @ q
    own = -project(K @ B) - (diffuse + K @ Nq) * w_inverse
    cross = jnp.outer(w_inverse, project(q @ B))
    return _Flat(
        delta=delta + w_inverse * (v - q @ r - w @ delta),
        C=project(project(C).T) + (F * diffuse - q @ Nq) * jnp.outer(w_inverse, w_inverse) - cross - cross.T,
        B=project(B - jnp.outer(z, K @ B)) - jnp.outer(z * (diffuse + K @ Nq) - Nq, w_inverse),
        B_noise=jnp.where(here[:, None], own[None, :], project(B_noise) + jnp.outer(q @ G, w_inverse)),
        B_shock=project(B_shock) + jnp.outer(J @ q, w_inverse),
    )


def backward(f: Filtered, e: Entries, T: Float[Array, "*time m m"]) -> Cumulants:
    """The adjoint of the filter, from zero after the last time."""
    (_, p, k), m = f.w.shape, f.a.shape[1]
    fixed, moving = split_by_time(z=(e.z, 2), T=(T, 2))
    zeros = lambda *shape: jnp.zeros(shape, f.a.dtype)
    here = jnp.eye(p, dtype=bool)

    def entry_step(carry, x):
        scores, flat, alive = carry
        z, v, F, F_inverse, K, q, w, w_inverse, here = x
        flat_entry = z, v, F, K, q, w, w_inverse, here
        flat = _if_flat(k, alive, _back_flat, lambda flat, *_: flat, flat, scores, flat_entry)
        scores, out = _back(scores, (z, K, F_inverse * v, F_inverse, here))
        return (scores, flat, alive), out

    def step(later, now):
        r, N, delta, C, B = later
        x = {**fixed, **now}
        J = N @ x["T"]
        scores = _Scores(r @ x["T"], x["T"].T @ J, J, zeros(m, p), zeros(p, p))
        flat = _Flat(delta, C, x["T"].T @ B, zeros(p, k), B)
        entries = x["z"], *x["entries"], here
        (scores, flat, _), (u, scale) = lax.scan(
            entry_step, (scores, flat, x["alive"]), entries, reverse=True, unroll=min(p, UNROLL)
        )
        out = Cumulants(r, N, scores.r, scores.N, u, scores.D, scale, scores.G, scores.J, *flat)
        return (scores.r, scores.N, *flat[:3]), out

    alive = jnp.any(f.A != 0, axis=(1, 2))
    entries = (f.v, f.F, f.F_inverse, f.K, f.q, f.w, f.w_inverse)
    initial = zeros(m), zeros(m, m), zeros(k), zeros(k, k), zeros(m, k)
    _, b = lax.scan(step, initial, {"entries": entries, "alive": alive, **moving}, reverse=True)
    return b if e.rotation is None else _rotate_back(b, e.rotation)


def _rotate_back(b: Cumulants, E: Float[Array, "time p p"]) -> Cumulants:
    """u, D, G and B_noise of the rotated entries to those of the original ones, u = E' u_rotated."""
    E_t = jnp.swapaxes(E, 1, 2)
    return b._replace(
        u=jnp.einsum("tij,tj->ti", E_t, b.u),
        D=E_t @ b.D @ E,
        D_scale=jnp.einsum("tij,tj->ti", jnp.abs(E_t), jnp.sqrt(b.D_scale)) ** 2,
        G=b.G @ E,
        B_noise=E_t @ b.B_noise,
    )


def smoothed_mean(f: Filtered, b: Cumulants) -> Float[Array, "time m"]:
    """Mean of the state given all observations, a + P r_before + A delta."""
    return f.a + jnp.einsum("tij,tj->ti", f.P, b.r_before) + jnp.einsum("tij,tj->ti", f.A, b.delta)


def smoothed_variance(f: Filtered, b: Cumulants) -> Float[Array, "time m m"]:
    """Variance of the state given all observations, P - P N_before P + P B A' + A B' P + A C A'."""
    A_t = jnp.swapaxes(f.A, 1, 2)
    cross = f.P @ b.B @ A_t
    return f.P - f.P @ b.N_before @ f.P + cross + jnp.swapaxes(cross, 1, 2) + f.A @ b.C @ A_t
