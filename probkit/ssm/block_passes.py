r"""The filter over blocks of times and its adjoint: `probkit.ssm.structured_passes` with k observations at once.

With the letters of `probkit.ssm.blocks`, a and P the mean and variance of the state before a block, forwards

$$M = P Z', \quad R R' = Z M + G, \quad e = R^{-1} (y - Z a), \quad W = R^{-1} (\Phi M + C)', \quad
  a \leftarrow \Phi a + W' e, \quad P \leftarrow \Phi P \Phi' + Q - W' W,$$

where R is lower triangular: its diagonal are the standard deviations of the one-step errors, and e those errors in
their units. Backwards, with $\Lambda = R'^{-1} R^{-1}$ and the gain $K = W' R^{-1}$ (de Jong 1988),

$$u = R'^{-1} e - K' r, \quad D = \Lambda + K' N K, \quad r \leftarrow Z' u + \Phi' r,
  \quad N \leftarrow Z' \Lambda Z + (\Phi - K Z)' N (\Phi - K Z).$$

A one-step error loses the digits by which its variance is smaller than that of the observation given the state before
the block. So where an observation may be the first to see something, whose variance is flat, vague or wide, the block
is worked off time by time. In R, e and W an observation spent on flat states stands with a unit of 1; it is not in
$\Lambda$ nor in $R'^{-1} e$.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.ssm.blocks import Blocks, cut, picks
from probkit.ssm.components import FEW, Structure
from probkit.ssm.structured_passes import Spent, known, one_time


class BlockErrors(NamedTuple):
    r"""What the forward pass leaves.

    Attributes:
        e: errors in units of their standard deviations; 0 where missing.
        root: R.
        W: covariance of the state after the block with e.
        scored: 0 where an observation is spent on flat states, else 1.
        a: mean of the states that move before the block.
        P: covariance of all states with them.
    """

    e: Float[Array, "n k"]
    root: Float[Array, "n k k"]
    W: Float[Array, "n k m"]
    scored: Float[Array, "n k"]
    a: Float[Array, "n d"]
    P: Float[Array, "n m d"]


class BlockScores(NamedTuple):
    """What the backward pass leaves: derivatives of the log-likelihood.

    Attributes:
        u: minus that to the observations.
        noise: to G, C and Q.
        seen: to Z and U where they were wanted, right in the states that move and are not flat.
        first: score of the first state, and its variance.
    """

    u: Float[Array, "n k"]
    noise: tuple[Array, Array, Array]
    seen: tuple[Array, ...]
    first: tuple[Float[Array, " m"], Float[Array, "m m"]]


def run_forward(
    y: Float[Array, " time"], s: Structure, spent: Spent, first: Bool[Array, " time"], b: Blocks
) -> BlockErrors:
    """The filter.

    Args:
        y: observations, NaN where missing.
        s: the model.
        spent: from `structured_passes.settle`.
        first: which observations are the first to see something.
        b: the model by blocks.
    """
    k, moves = b.Z.shape[1], s.moves or ()
    rows = {name: cut(x, k) for name, x in known(y, s, spent).items()}
    stepwise = jnp.any(cut(first, k), axis=1)
    each = {"Z": b.Z, "G": b.G, "C": b.C} | ({"Q": b.Q} if b.Q.ndim == 3 else {})

    def step(state, now):
        i, stepwise = now
        at = lambda x: lax.dynamic_index_in_dim(x, i, keepdims=False)
        at_once = lambda state: _at_once(state, at(rows["y"]), b._replace(**jax.tree.map(at, each)), moves)
        by_time = lambda state: _by_time(s, state, jax.tree.map(at, rows))
        a, P = state
        state, found = lax.cond(stepwise, by_time, at_once, state)
        return state, (found, _picked(a, moves), _picked(P, moves).T)

    start = jnp.zeros_like(s.q), s.P
    _, ((e, root, W), a, P) = lax.scan(step, start, (jnp.arange(len(stepwise)), stepwise))
    scored = cut(spent.size == 0, k).astype(y.dtype)
    return BlockErrors(e, root, W, scored, a, P)


def _at_once(state, y, b, moves):
    a, P = state
    M = P @ b.Z.T
    root = lax.linalg.cholesky(b.Z @ M + b.G, symmetrize_input=False)
    both = jnp.concatenate([(_moved(M, b.U, moves) + b.C).T, (y - b.Z @ a)[:, None]], axis=1)
    both = lax.linalg.triangular_solve(root, both, left_side=True, lower=True)
    W, e = both[:, :-1], both[:, -1]
    P = _moved(_moved(P, b.U, moves).T, b.U, moves) + b.Q - W.T @ W
    return (_moved(a, b.U, moves) + e @ W, 0.5 * (P + P.T)), (e, root, W)


def _by_time(s, state, rows):
    """The same by steps: what each error makes of the states, W, and of the observations after it, R."""
    k, m = rows["y"].shape[0], s.q.shape[0]

    def step(carry, now):
        state, W = carry
        row = jnp.where(now["seen"], W @ now.get("z", s.z), 0) + now["unit"]
        state, f = one_time(s, state, now)
        W = s.T.apply((W + now["unit"][:, None] * f.K).T).T
        return (state, W), (f, row)

    rows = rows | {"unit": jnp.eye(k, dtype=s.q.dtype)}
    (state, W), (f, root) = lax.scan(step, (state, jnp.zeros((k, m), s.q.dtype)), rows)
    unit = jnp.where(rows["proper"], jnp.sqrt(jnp.where(rows["proper"], f.F, 1)), 1)
    return state, (f.v / unit, root * unit, W * unit[:, None])


def run_backward(f: BlockErrors, s: Structure, b: Blocks, inside: bool) -> BlockScores:
    """The adjoint of the filter, from 0 after the last time; `inside`: whether Z and U hold parameters."""
    moves, U = s.moves or (), b.U
    unit = jnp.broadcast_to(jnp.eye(f.e.shape[1], dtype=f.e.dtype), f.root.shape)
    inverse = lax.linalg.triangular_solve(f.root, unit, left_side=True, lower=True)
    back = jnp.swapaxes(inverse, 1, 2)
    known = {
        "K": jnp.swapaxes(f.W, 1, 2) @ inverse,
        "precision": (back * f.scored[:, None, :]) @ inverse,
        "error": jnp.einsum("njk,nk->nj", back, f.scored * f.e),
        "Z": b.Z,
    } | ({"a": f.a, "P": f.P} if inside else {})

    def step(later, now):
        r, N = later
        Z, K, precision = now["Z"], now["K"], now["precision"]
        NK = N @ K
        u, D = now["error"] - r @ K, precision + K.T @ NK
        before = u @ Z + _moved_back(r, U, moves)
        N_moved = _moved_back(_moved_back(N, U, moves).T, U, moves)
        N_before = N_moved + (Z.T @ D - 2 * _moved_back(NK, U, moves)) @ Z
        return (before, 0.5 * (N_before + N_before.T)), (u, D, r, NK, N, _to_law(now, before, u, r, NK, N, U, moves))

    nothing = jnp.zeros_like(s.q), jnp.zeros_like(s.P)
    first, (u, D, r, NK, N, seen) = lax.scan(step, nothing, known, reverse=True)
    outer = lambda x, y: x[:, :, None] * y[:, None, :]
    gQ = 0.5 * (outer(r, r) - N)
    gQ = jnp.sum(gQ, axis=0) if b.Q.ndim == 2 else gQ
    seen = (seen[0] @ picks(s), jnp.sum(seen[1], axis=0)) if inside else ()
    return BlockScores(u, (0.5 * (outer(u, u) - D), outer(r, u) + NK, gQ), seen, first)


def _to_law(now, before, u, r, NK, N, U, moves):
    r"""Derivatives to Z, $u \hat\alpha' - (\Lambda Z - K' N L) P$, and to $\Phi$, $r \hat\alpha' - N L P$.

    With $L = \Phi - K Z$ and $\hat\alpha$ the smoothed mean of the state before; in the columns of states that move.
    """
    if "P" not in now:
        return ()
    P = now["P"]
    alpha, seen = now["a"] + before @ P, now["Z"] @ P
    left = _moved(P, U, moves) - now["K"] @ seen
    return u[:, None] * alpha - now["precision"] @ seen + NK.T @ left, r[:, None] * alpha - N @ left


def _picked(X: Array, moves: tuple[int, ...]) -> Array:
    """E' X."""
    return jnp.stack([X[i] for i in moves]) if moves else X[:0]


def _moved(X: Array, U: Array, moves: tuple[int, ...]) -> Array:
    """Phi X. A product of matrices would cost more than these few rows."""
    if len(moves) > FEW:
        return X + U @ _picked(X, moves)
    return X + sum(U[:, j].reshape(-1, *[1] * (X.ndim - 1)) * X[i] for j, i in enumerate(moves))


def _moved_back(X: Array, U: Array, moves: tuple[int, ...]) -> Array:
    """Phi' X."""
    unit = np.eye(len(X), dtype=X.dtype)
    if len(moves) > FEW:
        return X + unit[:, list(moves)] @ (U.T @ X)
    return X + sum(unit[i].reshape(-1, *[1] * (X.ndim - 1)) * (U[:, j] @ X) for j, i in enumerate(moves))
