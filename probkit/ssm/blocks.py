r"""A sum of structural parts by blocks of times: k observations taken at once as one vector.

In the coordinates of `probkit.ssm.components` seasons and coefficients stay where they are, and what moves, trend,
cycle or autoregression, is seen by the same z at all times. So with x the state at the start of a block, e its
observations and x' the state after it,

$$e = Z x + \epsilon, \quad x' = \Phi x + \eta, \quad
  \mathrm{Var}\begin{pmatrix} \epsilon \\ \eta \end{pmatrix} = \begin{pmatrix} G & C' \\ C & Q \end{pmatrix},$$

where of states that stay the row j of Z is $z_{t + j}$ and, from their own disturbances q,
$G_{jl} = \min(j, l) z_j' \mathrm{diag}(q) z_l$, $C_l = l \, \mathrm{diag}(q) z_l$, $Q = k \, \mathrm{diag}(q)$;
what states that move add is the same in every block. Nothing here depends on the data: all blocks are formed in
batched products, and parameters are differentiated through them by autodiff.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

from probkit.ssm.components import Structure

BLOCK = 16  # times of a block: below it less is won, at 32 the products of matrices are spread over threads
WIDE = 12  # states from which on blocks are taken ...
LONG = 20 * 128  # ... where states times values are so many


class Blocks(NamedTuple):
    r"""The law of the observations of every block, and of the state after it, given the state before it.

    Attributes:
        Z: what the observations see of the state before, 0 where missing.
        G: variance of their noise; 1 where missing.
        C: covariance of the noise of the state after with theirs; 0 where missing.
        Q: variance of the noise of the state after.
        U: $\Phi = I + U E'$, where E' picks the states that move.
    """

    Z: Float[Array, "n k m"]
    G: Float[Array, "n k k"]
    C: Float[Array, "n m k"]
    Q: Float[Array, "*n m m"]
    U: Float[Array, "m d"]


def cut(x: Array, k: int, fill: float = 0) -> Array:
    """Rows of times, (time, ...), to blocks, (n, k, ...); the last is filled up."""
    x = jnp.pad(x, [(0, -len(x) % k), *[(0, 0)] * (x.ndim - 1)], constant_values=fill)
    return x.reshape(-1, k, *x.shape[1:])


def picks(s: Structure) -> np.ndarray:
    """E', the rows of the unit matrix that pick the states that move."""
    return np.eye(s.q.shape[0], dtype=s.q.dtype)[list(s.moves or ())]


def in_blocks(seen: Bool[Array, " time"], s: Structure, k: int) -> Blocks:
    """The model by blocks of k times; `seen` says which values are observed."""
    E, n = picks(s), -(-len(seen) // k)
    z = cut(jnp.broadcast_to(s.z, (len(seen), s.z.shape[-1])), k)
    stay = jnp.asarray(1 - E.sum(axis=0), z.dtype)
    Z_stay, q, j = z * stay, s.q * stay, np.arange(k, dtype=z.dtype)
    Z, G, C, Q, U = _moving_part(s, E, k)
    G = G + np.minimum(j[:, None], j) * ((Z_stay * q) @ jnp.swapaxes(Z_stay, 1, 2))
    C = C + q[:, None] * j * jnp.swapaxes(Z_stay, 1, 2)
    Q = Q + k * jnp.diag(q)
    if s.g is not None:
        g = cut(s.g, k)
        reach = jnp.einsum("njm,nibm->nbji", Z_stay, g) * np.tri(k, k=-1, dtype=z.dtype)
        G = G + jnp.einsum("b,nbji,nbli->njl", s.v, reach, reach)
        C = C + jnp.einsum("b,nibm,nbli->nml", s.v, g, reach)
        Q = Q + jnp.einsum("b,nibm,nibl->nml", s.v, g, g)
    noise = cut(jnp.broadcast_to(s.h, seen.shape), k)
    there = cut(seen, k)
    on = there.astype(z.dtype)
    G = G * on[:, :, None] * on[:, None, :] + jnp.where(there, noise, 1)[:, :, None] * np.eye(k)
    return Blocks((Z + Z_stay) * on[:, :, None], G, jnp.broadcast_to(C, (n, *C.shape[-2:])) * on[:, None, :], Q, U)


def _moving_part(s: Structure, E: np.ndarray, k: int) -> tuple[Array, Array, Array, Array, Array]:
    """Z, G, C, Q and U of the states that move, within all states; one block stands for all."""
    m, d = s.q.shape[0], len(E)
    if d == 0:
        zeros = lambda *shape: jnp.zeros(shape, s.q.dtype)
        return zeros(k, m), zeros(k, k), zeros(m, k), zeros(m, m), zeros(m, 0)
    T, z = E @ s.T.apply(jnp.asarray(E.T)), E @ s.z.reshape(-1, m)[0]

    def step(carry, j):
        power, N, C = carry
        here = (jnp.arange(k) == j).astype(z.dtype)
        C = C + (N @ z)[:, None] * here
        after = T @ power, T @ N @ T.T + jnp.diag(E @ s.q), T @ C
        return after, (z @ power, z @ C)

    zeros = lambda *shape: jnp.zeros(shape, z.dtype)
    (power, Q, C), (Z, G) = lax.scan(step, (jnp.eye(d, dtype=z.dtype), zeros(d, d), zeros(d, k)), jnp.arange(k))
    lower = jnp.tril(G)
    G = lower + jnp.tril(G, -1).T
    place = jnp.asarray(E)
    return Z @ place, G, place.T @ C, place.T @ Q @ place, place.T @ (power - jnp.eye(d))


def block_size(s: Structure, length: int) -> int:
    """How many times to take at once; 1, single steps, where blocks are not worth what they cost to compile.

    They cost twice as much to compile (a fit's first call takes a fifth longer) and save half of the time at 13 states,
    two thirds at 40. float32 goes by single steps: it has no digits to spare (`probkit.ssm.block_passes`).
    """
    states = s.q.shape[0]
    pays = states >= WIDE and length >= 8 * BLOCK and states * length >= LONG
    return BLOCK if pays and s.moves is not None and s.q.dtype == jnp.float64 else 1
