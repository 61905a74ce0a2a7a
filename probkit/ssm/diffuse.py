r"""What is flat at the start: which observations determine it, by what gains, and where that leaves no digits.

What is flat moves by itself, whatever the variances are. An entry with $w = U A' z \ne 0$, U the projector on what the
entries before it left flat, is spent on delta by the gain $K = A w / w'w$; `probkit.ssm.kalman` has the conventions.

**Ill-determined starts.** Twenty harmonics of a week of hours are determined by the first forty hours, with gains of
1e9: the variances that they leave, of 1e18, cancel in what follows and no digit is left. Where an entry moves what y
sees of some state by more than 1e5 of its own unit (100 for float32), delta starts from a variance instead, so that y
sees each of its directions with a standard deviation of 1000 times its largest value (10 for float32). The
log-likelihood of the flat start is that of the vague one plus half the log determinant of the variance of what is
determined, up to $|\delta|^2$ over twice that variance. Derivatives to A itself, and to what y sees of it, then hold
few digits.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.ssm.statespace import eliminate, split_by_time

CHUNK = 16  # times that are worked off or passed over together
UNROLL = 4  # entries of one time that are worked off in line


class Spent(NamedTuple):
    """What the observations were spent on before anything was known.

    Attributes:
        w: the direction of delta that an entry is spent on; 0 for all others.
        gain: its gain before the transition, likewise.
        A: the flat directions before each time, 0 once all are resolved; None if not kept.
        unresolved: projector on the directions of delta that no observation determines.
        left: the flat directions after the last time.
    """

    w: Float[Array, "time p k"]
    gain: Float[Array, "time p m"]
    A: Float[Array, "time m k"] | None
    unresolved: Float[Array, "k k"]
    left: Float[Array, "m k"]


def negligible(part: Float[Array, "*batch k"], whole: Float[Array, "*batch k"]) -> Bool[Array, "*batch"]:
    """Whether a projection of a vector is no more than its rounding errors."""
    eps = jnp.finfo(part.dtype).eps
    return jnp.sum(part * part, axis=-1) <= eps ** (4 / 3) * jnp.sum(whole * whole, axis=-1)


def spend(
    seen: Bool[Array, "time p"],
    z: Float[Array, "*time p m"],
    T: Float[Array, "*time m m"],
    A: Float[Array, "m k"],
    keep: bool = True,
) -> Spent:
    """Which entries determine what is flat.

    Args:
        seen: which entries are observed.
        z: what each sees of the state.
        T: transition.
        A: directions without any prior knowledge.
        keep: whether to keep the flat directions before every time, which smoothing needs.
    """
    (n, p), (m, k), dtype = seen.shape, A.shape, A.dtype
    sizes = {"w": (p, k), "gain": (p, m)} | ({"A": (m, k)} if keep else {})
    if k == 0:
        none = {name: jnp.zeros((n, *shape), dtype) for name, shape in sizes.items()}
        return Spent(none["w"], none["gain"], none.get("A"), unresolved=jnp.zeros((0, 0), dtype), left=A)
    fixed, moving = split_by_time(z=(z, 2), T=(T, 2))

    def entry(carry, now):
        Phi, U, left = carry
        seen, z = now
        x = z @ Phi
        w = U @ (U @ x)  # twice, for the digits that the first projection cancels
        diffuse = seen & (left > 0) & ~negligible(w, x)
        w = jnp.where(diffuse, w, 0)
        w_inverse = w / jnp.where(diffuse, w @ w, 1)
        left = left - diffuse.astype(dtype)
        return (Phi, jnp.where(left > 0, U - jnp.outer(w, w_inverse), 0), left), (w, Phi @ w_inverse)

    def step(carry, now):
        at = {**fixed, **now}
        before = {"A": carry[0] @ carry[1]} if keep else {}
        (Phi, U, left), (w, gain) = lax.scan(entry, carry, (at["seen"], at["z"]), unroll=min(p, UNROLL))
        return (at["T"] @ Phi, U, left), {"w": w, "gain": gain, **before}

    def some(carry, now):
        skip = {name: jnp.zeros((CHUNK, *shape), dtype) for name, shape in sizes.items()}
        return lax.cond(carry[2] > 0, lambda carry: lax.scan(step, carry, now), lambda carry: (carry, skip), carry)

    now, whole, carry = {"seen": seen, **moving}, n - n % CHUNK, (A, jnp.eye(k, dtype=dtype), jnp.asarray(k, dtype))
    joined: list[dict[str, Array]] = []
    if whole:
        chunks = jax.tree.map(lambda x: x[:whole].reshape(whole // CHUNK, CHUNK, *x.shape[1:]), now)
        carry, found = lax.scan(some, carry, chunks)
        joined = [{name: x.reshape(whole, *sizes[name]) for name, x in found.items()}]
    (Phi, U, left), rest = lax.scan(step, carry, jax.tree.map(lambda x: x[whole:], now))
    out = {name: jnp.concatenate([*(x[name] for x in joined), rest[name]]) for name in sizes}
    return Spent(out["w"], out["gain"], out.get("A"), unresolved=U, left=jnp.where(left > 0, Phi @ U, 0))


class Settled(NamedTuple):
    """How the filter begins.

    Attributes:
        spent: what the observations are spent on; nothing where the start is vague.
        P: what to add to the variance of the first state, A vague A'.
        vague: the variance that delta was given, 0 where its start is flat.
        constant: what the log-likelihood then lacks.
    """

    spent: Spent
    P: Float[Array, "m m"]
    vague: Float[Array, "k k"]
    constant: Float[Array, ""]


def settle(spent: Spent, y: Float[Array, "time p"], z: Float[Array, "*time p m"], A: Float[Array, "m k"]) -> Settled:
    """Flat, or vague where the flat start would leave no digits.

    The choice depends on no unit of y or of a state; the constant does on those of states where y leaves some of delta
    undetermined.

    Args:
        spent: from `spend`.
        y: observations less their intercept, 0 where missing.
        z: what each sees of the state.
        A: directions without any prior knowledge.
    """
    k, dtype = A.shape[1], A.dtype
    if k == 0:
        return Settled(spent, jnp.zeros((A.shape[0],) * 2, dtype), jnp.zeros((0, 0), dtype), jnp.zeros((), dtype))
    most, wide = (1e5, 1e6) if dtype == jnp.float64 else (1e2, 1e2)
    y, z, A_known, spent_known = lax.stop_gradient((y, z, A, spent))
    unit = jnp.max(jnp.abs(y), axis=0)
    unit = jnp.where(unit > 0, unit, 1)[:, None]
    rows = z.reshape(-1, *z.shape[-2:])
    reach = jnp.max(jnp.abs(rows) / unit[None], axis=(0, 1))  # what y sees of a state, in its units
    ill = jnp.max(jnp.abs(spent_known.gain) * (reach[None] * unit)[None], initial=0) > most
    size = reach @ jnp.abs(A_known)
    size = jnp.where(size > 0, size, jnp.max(size))
    shape = 1 / jnp.square(jnp.where(size > 0, size, 1))
    resolved = jnp.eye(k, dtype=dtype) - spent_known.unresolved
    _, pivots = eliminate((resolved * shape[None]) @ resolved + spent_known.unresolved)
    determined = jnp.trace(resolved) * jnp.log(jnp.asarray(wide, dtype)) + jnp.sum(jnp.log(pivots))
    vague = jnp.where(ill, jnp.diag(wide * shape), 0)
    spent = jax.tree.map(lambda x: jnp.where(ill, 0, x), spent)
    return Settled(spent, A @ vague @ A.T, vague, jnp.where(ill, 0.5 * determined, 0))
