r"""The log-likelihood of a sum of structural parts and its derivatives, and what each value is given all others."""

import dataclasses
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike
from jaxtyping import Array, Bool, Float

from probkit.ssm import block_passes, smoother
from probkit.ssm.blocks import block_size, in_blocks
from probkit.ssm.components import Structure, Transition
from probkit.ssm.structured_passes import Errors, Scores, Spent, run_backward, run_forward, settle


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
    begun = settle(y, s)
    s = begun.s
    known = jax.tree.map(lax.stop_gradient, _Known(s.z, s.g, begun.spent, begun.first, s.moves))
    return _log_likelihood(y - s.d, s.h, s.T, s.q, s.v, s.P, known) + lax.stop_gradient(begun.constant)


def leave_one_out(y: Float[ArrayLike, " time"], s: Structure) -> tuple[Array, Array]:
    r"""Mean and variance of each y given all others, $y - u / D$ and $1 / D$ (de Jong 1988).

    Where y is missing, of what was not seen; NaN where nothing else determines a flat state that it sees.
    """
    y = jnp.asarray(y, s.q.dtype)
    missing = jnp.isnan(y)
    spent, s, _, start, _ = settle(y, s)
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


class _Known(eqx.Module):
    """What holds no parameters."""

    z: Array
    g: Array | None
    spent: Spent
    first: Array
    moves: tuple[int, ...] | None = eqx.field(static=True)


def log_density(f: Errors, spent: Spent, seen: Bool[Array, " time"]) -> Float[Array, ""]:
    """Joint log density of the observations whose errors the filter found; -inf where it failed."""
    return _summed(f.F, jnp.sum(f.v * (f.v * f.F_inverse)), spent, seen)


def _summed(F: Array, squares: Array, spent: Spent, seen: Array) -> Array:
    size = jnp.where(spent.size > 0, spent.size, F)
    terms = jnp.sum(jnp.log(jnp.where(seen, size, 1))) + squares
    value = -0.5 * (terms + math.log(2 * math.pi) * jnp.sum(seen, dtype=F.dtype))
    return jnp.where(jnp.isfinite(value), value, -jnp.inf)


def _as_structure(h, T, q, v, P, known):
    none = jnp.zeros((), q.dtype)
    return Structure(known.z, T, q, v, known.g, P, h, none, jnp.zeros((0, 0), q.dtype), none, (), moves=known.moves)


@jax.custom_jvp
def _log_likelihood(y, h, T, q, v, P, known):
    s = _as_structure(h, T, q, v, P, known)
    k, seen = block_size(s, len(y)), ~jnp.isnan(y)
    if k > 1:
        return _value_by_blocks(y, s, known, in_blocks(seen, s, k))[0]
    return log_density(run_forward(y, s, known.spent)[0], known.spent, seen)


def _value_by_blocks(y, s, known, b):
    f = block_passes.run_forward(y, s, known.spent, known.first, b)
    F = jnp.square(jnp.diagonal(f.root, axis1=1, axis2=2))
    return _summed(F.reshape(-1)[: len(y)], jnp.sum(f.scored * f.e * f.e), known.spent, ~jnp.isnan(y)), f


def _log_likelihood_jvp(primals, tangents):
    y, h, T, q, v, P, known = primals
    s = _as_structure(h, T, q, v, P, known)
    rule = _jvp_by_blocks if block_size(s, len(y)) > 1 else _jvp_by_steps
    value, pairs = rule(y, s, known, tangents)
    total = jnp.zeros_like(value)
    for gradient, direction in pairs:
        if _symbolic(direction):
            continue
        usable = jnp.isfinite(value) & jnp.isfinite(gradient)
        total = total + jnp.vdot(jnp.where(usable, gradient, 0), direction)
    return value, total


def _jvp_by_steps(y, s, known, tangents):
    """The value, and pairs of a derivative and the direction that it meets."""
    dy, dh, dT, dq, dv, dP, _ = tangents
    inside = _any_moves(dT)
    f, _ = run_forward(y, s, known.spent, keep=inside)
    b = run_backward(f, s, keep=inside)
    r, N = b.first
    by_time = 0.5 * (b.u * b.u - b.D)
    pairs = [(-b.u, dy), (by_time if s.h.ndim else jnp.sum(by_time), dh), (jnp.sum(b.q, axis=0), dq)]
    pairs += [(jnp.sum(b.v, axis=0), dv), (0.5 * (jnp.outer(r, r) - N), dP)]
    pairs += _transition_gradients(s, f, b, dT) if inside else []
    return log_density(f, known.spent, ~jnp.isnan(y)), pairs


def _jvp_by_blocks(y, s, known, tangents):
    """The same by blocks: what they are made of moves with the parameters by autodiff."""
    dy, dh, dT, dq, dv, dP, _ = tangents
    seen, k = ~jnp.isnan(y), block_size(s, len(y))
    leaves, tree = jax.tree.flatten((s.h, s.T, s.q, s.v))
    directions = jax.tree.leaves((dh, dT, dq, dv), is_leaf=_symbolic)
    move = [i for i, x in enumerate(directions) if not _symbolic(x)]

    def form(*values):
        now = dict(enumerate(leaves)) | dict(zip(move, values, strict=True))
        h, T, q, v = jax.tree.unflatten(tree, list(now.values()))
        return in_blocks(seen, dataclasses.replace(s, h=h, T=T, q=q, v=v), k)

    b, db = jax.jvp(form, [leaves[i] for i in move], [directions[i] for i in move])
    value, f = _value_by_blocks(y, s, known, b)
    inside = _any_moves(dT)
    scores = block_passes.run_backward(f, s, b, inside)
    r, N = scores.first
    pairs = [(-scores.u.reshape(-1)[: len(y)], dy), (0.5 * (jnp.outer(r, r) - N), dP)]
    pairs += list(zip(scores.noise, (db.G, db.C, db.Q), strict=True)) if move else []
    return value, pairs + (list(zip(scores.seen, (db.Z, db.U), strict=True)) if inside else [])


def _any_moves(directions: object) -> bool:
    return not all(_symbolic(x) for x in jax.tree.leaves(directions, is_leaf=_symbolic))


_log_likelihood.defjvp(_log_likelihood_jvp, symbolic_zeros=True)


def _symbolic(x: object) -> bool:
    return isinstance(x, SymbolicZero)


def _transition_gradients(s: Structure, f: Errors, b: Scores, dT: Transition) -> list[tuple]:
    r"""Derivatives to the entries of T in columns of states that are not flat, $\sum_t (r \hat\alpha' - N T L P)_{ij}$.

    Pairs of a derivative and the direction that it meets.
    """
    a, P, r, N, before = (jnp.asarray(x) for x in (f.a, f.P, b.r, b.N, b.r_before))
    M = jnp.einsum("tij,tj->ti", P, jnp.broadcast_to(s.z, f.K.shape))
    alpha = a + jnp.einsum("tij,tj->ti", P, before)

    TLP = jax.vmap(s.T.apply)(P - f.K[:, :, None] * M[:, None, :])

    def diagonal() -> Array:
        return jnp.sum(r * alpha - jnp.sum(N * jnp.swapaxes(TLP, 1, 2), axis=2), axis=0)

    def row(i: int) -> Array:
        return jnp.sum(r[:, i, None] * alpha - jnp.einsum("tj,tjk->tk", N[:, i], TLP), axis=0)

    held = [(diagonal, dT.diagonal), *((lambda i=i: row(i), d) for i, d in zip(s.T.heads, dT.rows, strict=True))]
    return [(find(), d) for find, d in held if not (d is None or _symbolic(d))]
