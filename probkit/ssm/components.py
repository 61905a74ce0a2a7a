r"""The parts of a structural time series: level, trend, seasons, cycle, autoregression, regression.

A part is a block of states with $y_t = z_t' \alpha_t + \dots$ and $\alpha_{t+1} = T \alpha_t + \eta_t$, written so that
little is left to do for T. **Seasons do not move at all**: with T the usual transition of a season, the states here are
$\beta_t = T^{-t} \alpha_t$, so that $\beta_{t+1} = \beta_t + T^{-(t+1)} \eta_t$ and what y sees, $z_t' = z' T^t$, goes
round instead. For harmonics, whose T is a rotation and whose disturbances are alike, that is a regression on sines and
cosines with random-walk coefficients; for a dummy season z and the direction of the disturbance hold 0, 1 and -1 alone,
and come back after a period. What is left has a T of ones, or of a diagonal and a few rows or ones (`Transition`).

Flat states have constant transitions: no parameter moves a direction of which nothing is known (`Block.flat_T`).

References:
    Harvey, A. C. (1989). Forecasting, Structural Time Series Models and the Kalman Filter, ch. 2.
    Durbin, J. and Koopman, S. J. (2012). Time Series Analysis by State Space Methods, 2nd ed., ch. 3.
"""

import operator
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from probkit.ssm.statespace import Start, StateSpace
from probkit.ssm.stationary import autocorrelations

FEW = 3  # rows of a transition that are worked off one by one


class Transition(eqx.Module):
    """A matrix: a diagonal, long rows added to those numbered in `heads`, and single ones.

    Attributes:
        diagonal: (m,); None for ones.
        rows: each (m,).
        heads: the number of the row that each is added to.
        links: (i, j) for a 1 added in row i and column j.
    """

    diagonal: ArrayLike | None = None
    rows: tuple[ArrayLike, ...] = ()
    heads: tuple[int, ...] = eqx.field(static=True, default=())
    links: tuple[tuple[int, int], ...] = eqx.field(static=True, default=())

    def apply(self, X: Array) -> Array:
        """T X for X of shape (m,) or (m, n)."""
        column = _column(X)
        out = X if self.diagonal is None else column(self.diagonal) * X
        unit = np.eye(X.shape[0])
        for i, j in self.links:
            out = out + column(unit[i]) * X[j]
        if len(self.rows) > FEW:
            return out + jnp.asarray(unit[list(self.heads)].T, X.dtype) @ (jnp.stack(self.rows) @ X)
        for i, row in zip(self.heads, self.rows, strict=True):
            out = out + column(unit[i]) * (row @ X)
        return out

    def moved(self, P: Float[Array, "m m"]) -> Float[Array, "m m"]:
        """T P T' for a symmetric P."""
        if len(self.rows) > FEW:
            return self.apply(self.apply(P).T)
        d, e = self._scale(P), np.eye(P.shape[0]).astype(P.dtype)
        forms: list[tuple[int, Callable]] = [(i, operator.itemgetter(j)) for i, j in self.links]
        forms += [(i, partial(jnp.matmul, row)) for i, row in zip(self.heads, self.rows, strict=True)]
        out = _scaled(P, d)
        for i, form in forms:
            g = form(P)
            half = (g if d is None else d * g) + 0.5 * sum(other(g) * e[k] for k, other in forms)
            out = out + (e[i][:, None] * half[None, :] + half[:, None] * e[i][None, :])
        return out

    def adjoint(self, X: Array) -> Array:
        """T' X for X of shape (m,) or (m, n)."""
        column = _column(X)
        out = X if self.diagonal is None else column(self.diagonal) * X
        return out + sum(column(row) * X[i : i + 1] for i, row in self._all_rows(X))

    def moved_back(self, N: Float[Array, "m m"]) -> Float[Array, "m m"]:
        """T' N T for a symmetric N."""
        d, rows = self._scale(N), self._all_rows(N)
        out = _scaled(N, d)
        for i, row in rows:
            own = 0.5 * sum(N[i, k] * other for k, other in rows)
            half = (N[i] if d is None else d * N[i]) + own
            out = out + (row[:, None] * half[None, :] + half[:, None] * row[None, :])
        return out

    def _all_rows(self, X: Array) -> list[tuple[int, Any]]:
        """Each head and its row, links among them."""
        unit = np.eye(X.shape[0]).astype(X.dtype)
        rows = [(i, jnp.asarray(row, X.dtype)) for i, row in zip(self.heads, self.rows, strict=True)]
        return [*((i, unit[j]) for i, j in self.links), *rows]

    def _scale(self, X: Array) -> Array | None:
        return None if self.diagonal is None else jnp.asarray(self.diagonal, X.dtype)


def _scaled(P: Array, d: Array | None) -> Array:
    return P if d is None else d[:, None] * P * d[None, :]


def _column(X: Array) -> Callable[[ArrayLike], Array]:
    """A vector in the dtype of X, shaped to scale its rows."""
    return lambda x: jnp.asarray(x, X.dtype).reshape(-1, *[1] * (X.ndim - 1))


class Block(eqx.Module):
    """One part: what y sees of its states, how they move, where they start.

    Attributes:
        z: what y sees, (m,) or (time, m).
        T: transition.
        q: variances of the state disturbances, (m,).
        P: variance of the first state where it is known, (m, m); 0 at flat states.
        flat_T: transition among the flat states, constant.
        flat: which states start flat.
        v: variance of one disturbance more, (), or None;
        g: the direction in which it moves the states at each time, (time, m).
        d: intercept of y, () or (time,).
        log_volume: log of what the flat states were scaled by, a constant of the likelihood.
        size: what coefficients were multiplied by to make the states, (m,).
        has_level: whether the first state is a flat level: y may then be counted from any origin.
    """

    z: ArrayLike
    T: Transition
    q: ArrayLike
    P: ArrayLike
    flat_T: ArrayLike
    flat: tuple[bool, ...] = eqx.field(static=True)
    v: ArrayLike | None = None
    g: ArrayLike | None = None
    d: ArrayLike = 0.0
    log_volume: ArrayLike = 0.0
    size: ArrayLike = 1.0
    has_level: bool = eqx.field(static=True, default=False)


def level(variance: ArrayLike) -> Block:
    """A random walk with a flat start, (level,)."""
    q = jnp.reshape(jnp.asarray(variance), (1,))
    return Block(np.ones(1), Transition(), q, np.zeros((1, 1)), np.eye(1), (True,), has_level=True)


def trend(level_variance: ArrayLike, slope_variance: ArrayLike, damping: ArrayLike | None = None) -> Block:
    r"""Level and slope, $\mu_{t+1} = \mu_t + \nu_t + \xi_t$, $\nu_{t+1} = \phi \nu_t + \zeta_t$; (level, slope).

    Both start flat; a damped slope ($\phi$ given, below 1) starts from its stationary law.
    """
    q, z = jnp.stack([jnp.asarray(level_variance), jnp.asarray(slope_variance)]), np.array([1.0, 0.0])
    if damping is None:
        T, flat_T = Transition(links=((0, 1),)), np.array([[1.0, 1.0], [0.0, 1.0]])
        return Block(z, T, q, np.zeros((2, 2)), flat_T, (True, True), has_level=True)
    phi = jnp.asarray(damping)
    P = jnp.diag(jnp.stack([jnp.zeros_like(phi), q[1] / ((1 - phi) * (1 + phi))]))
    T = Transition(jnp.stack([jnp.ones_like(phi), phi]), links=((0, 1),))
    return Block(z, T, q, P, np.ones((1, 1)), (True, False), has_level=True)


def seasonal(variance: ArrayLike, period: int, times: np.ndarray) -> Block:
    r"""Dummy season, $\gamma_{t+1} = -\sum_{j=0}^{s-2} \gamma_{t-j} + \omega_t$.

    Args:
        variance: of omega.
        period: s; the states are its first s - 1 effects.
        times: whole numbers, consecutive.
    """
    m, phase = period - 1, np.asarray(times) % period
    T = np.eye(m, k=-1) - np.outer(np.eye(m)[0], np.ones(m))
    powers = np.stack([np.linalg.matrix_power(T, k) for k in range(period)]).round()
    block = _all_flat(powers[phase][:, 0], np.zeros(m))
    g = powers[(-phase - 1) % period][:, :, 0]
    return eqx.tree_at(lambda b: (b.v, b.g), block, (variance, g), is_leaf=lambda x: x is None)


def trigonometric(variance: ArrayLike, period: float, harmonics: int, times: np.ndarray) -> Block:
    r"""Season by harmonics j = 1 .. h, each a rotation by $\lambda_j = 2 \pi j / s$; pairs $(\gamma_j, \gamma_j^*)$.

    $$\gamma' = \gamma \cos\lambda + \gamma^* \sin\lambda + \omega, \quad
      \gamma^{*\prime} = -\gamma \sin\lambda + \gamma^* \cos\lambda + \omega^*.$$

    Where $2 h = s$ the last sine is never seen and left out: 2 h - 1 states.

    Args:
        variance: of every omega.
        period: s, any number of at least 2 h.
        harmonics: h.
        times: whole numbers.
    """
    angle = 2 * np.pi * (np.outer(times, np.arange(1, harmonics + 1)) / period % 1)
    z = np.stack([np.cos(angle), np.sin(angle)], axis=-1).reshape(len(angle), -1)
    z = z[:, : 2 * harmonics - (2 * harmonics == period)]
    return _all_flat(z, jnp.broadcast_to(jnp.asarray(variance), z.shape[1:]))


def cycle(variance: ArrayLike, period: ArrayLike, damping: ArrayLike) -> Block:
    r"""A damped stochastic cycle, $\rho$ times a rotation by $2 \pi / p$, from its stationary law; $(c, c^*)$.

    Args:
        variance: of the disturbances of both states; that of the cycle is it over $1 - \rho^2$.
        period: p.
        damping: $\rho$, in [0, 1).
    """
    rho, angle = jnp.asarray(damping), 2 * jnp.pi / jnp.asarray(period)
    cosine, sine = rho * jnp.cos(angle), rho * jnp.sin(angle)
    none, q = jnp.zeros_like(sine), jnp.broadcast_to(jnp.asarray(variance), (2,))
    T = Transition(jnp.stack([cosine, cosine]), (jnp.stack([none, sine]), jnp.stack([-sine, none])), (0, 1))
    return _known(np.array([1.0, 0.0]), T, q, jnp.diag(q / ((1 - rho) * (1 + rho))))


def autoregression(variance: ArrayLike, phi: Float[ArrayLike, " p"]) -> Block:
    """AR(p) from its stationary law; states are the value and the p - 1 before it."""
    phi = jnp.asarray(phi)
    p = phi.shape[0]
    first, lags = np.eye(p)[0], np.abs(np.arange(p)[:, None] - np.arange(p))
    scale, rho = autocorrelations(phi, p)
    T = Transition(np.zeros(p), (phi, *np.eye(p)[:-1]), tuple(range(p)))
    return _known(first, T, first * jnp.asarray(variance), jnp.asarray(variance) * scale * rho[lags])


def regression(
    X: Float[ArrayLike, "time k"],
    variance: ArrayLike = 0.0,
    prior_variance: ArrayLike | None = None,
    size: ArrayLike = 1.0,
) -> Block:
    """Regression whose coefficients are the states: constant, or random walks.

    Args:
        X: inputs.
        variance: of the coefficients' steps, () or (k,).
        prior_variance: of the first coefficients around 0, () or (k,); None for flat ones.
        size: of each column, () or (k,): the states are coefficients times it, so that all are of one size.
    """
    X = jnp.asarray(X)
    k = X.shape[1]
    size = jnp.broadcast_to(jnp.asarray(size, X.dtype), (k,))
    q = jnp.asarray(variance) * size * size
    if prior_variance is None:
        volume = -jnp.sum(jnp.log(size))
        return eqx.tree_at(lambda b: (b.log_volume, b.size), _all_flat(X / size, q), (volume, size))
    block = _known(X / size, Transition(), q, jnp.diag(jnp.asarray(prior_variance) * size * size))
    return eqx.tree_at(lambda b: b.size, block, size)


def intercept(d: Float[ArrayLike, " time"]) -> Block:
    """A known part of y, without states."""
    nothing = np.zeros(0)
    return Block(nothing, Transition(), nothing, np.zeros((0, 0)), np.zeros((0, 0)), (), d=d)


def _all_flat(z: ArrayLike, q: ArrayLike) -> Block:
    """States that start flat and stay where they are but for their disturbances."""
    m = np.shape(z)[-1]
    return Block(z, Transition(), q, np.zeros((m, m)), np.eye(m), (True,) * m)


def _known(z: ArrayLike, T: Transition, q: ArrayLike, P: ArrayLike) -> Block:
    return Block(z, T, q, P, np.zeros((0, 0)), (False,) * np.shape(P)[0])


class Structure(eqx.Module):
    """A sum of parts observed with noise, as strong arrays of one dtype; names as in `Block`.

    Attributes:
        z: what y sees, (m,) or (time, m).
        T: transition.
        q: variances of the states' own disturbances.
        v: variances of those with moving directions.
        g: their directions.
        P: variance of the known part of the first state.
        h: variance of the observation noise, () or (time,).
        d: intercept of y, () or (time,).
        flat_T: transition among the flat states.
        log_volume: constant to add to the log-likelihood: the flat states are scaled.
        flat: numbers of the flat states.
        level: number of the flat level, if there is one.
        moves: numbers of the states that T moves, if y sees each by the same z at all times and no disturbance of
            moving direction meets them; else None.
    """

    z: Array
    T: Transition
    q: Float[Array, " m"]
    v: Float[Array, " b"]
    g: Float[Array, "time b m"] | None
    P: Float[Array, "m m"]
    h: Array
    d: Array
    flat_T: Float[Array, "k k"]
    log_volume: Float[Array, ""]
    flat: tuple[int, ...] = eqx.field(static=True)
    level: int | None = eqx.field(static=True, default=None)
    moves: tuple[int, ...] | None = eqx.field(static=True, default=None)

    def matrices(self) -> StateSpace:
        """The same model for the dense functions of `probkit.ssm.kalman` and `probkit.ssm.smoother`."""
        m, dtype = self.q.shape[0], self.q.dtype
        unit = jnp.eye(m, dtype=dtype)
        V = jnp.diag(self.q)
        if self.g is not None:
            V = V + jnp.einsum("b,tbi,tbj->tij", self.v, self.g, self.g)
        d = self.d[:, None] if self.d.ndim else self.d
        return StateSpace(self.z[..., None, :], self.h[..., None, None], self.T.apply(unit), None, V, d)

    def start(self) -> Start:
        """The law of the first state."""
        unit = jnp.eye(self.q.shape[0], dtype=self.q.dtype)
        return Start(jnp.zeros_like(self.q), self.P, unit[:, np.array(self.flat, int)])


def assemble(blocks: Sequence[Block], h: ArrayLike, dtype: type | jnp.dtype) -> Structure:
    """The sum of some parts, with noise of variance h, () or (time,)."""
    sizes = [len(block.flat) for block in blocks]
    offsets = [sum(sizes[:i]) for i in range(len(sizes))]
    pairs = list(zip(blocks, offsets, strict=True))
    m = sum(sizes)

    def cast(x: ArrayLike) -> Array:
        return jnp.asarray(x, dtype)

    def joined(values: list) -> Array:
        return jnp.concatenate([cast(x) for x in values], axis=-1)

    def padded(x: ArrayLike, at: int) -> Array:
        x = cast(x)
        return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(at, m - at - x.shape[-1])])

    scaled = any(block.T.diagonal is not None for block in blocks)
    diagonal = [np.ones(len(block.flat)) if block.T.diagonal is None else block.T.diagonal for block in blocks]
    rows = tuple(padded(row, at) for block, at in pairs for row in block.T.rows)
    heads = tuple(at + i for block, at in pairs for i in block.T.heads)
    links = tuple((at + i, at + j) for block, at in pairs for i, j in block.T.links)
    moving = [(block.v, block.g, at) for block, at in pairs if block.v is not None and block.g is not None]
    moved = [(block, at) for block, at in pairs if block.T.diagonal is not None or block.T.heads or block.T.links]
    times = [np.shape(block.z)[0] for block in blocks if np.ndim(block.z) == 2]
    return Structure(
        z=joined([jnp.broadcast_to(cast(block.z), (*times[:1], len(block.flat))) for block in blocks]),
        T=Transition(joined(diagonal) if scaled else None, rows, heads, links),
        q=joined([block.q for block in blocks]),
        v=jnp.stack([cast(v) for v, _, _ in moving]) if moving else jnp.zeros(0, dtype),
        g=jnp.stack([padded(g, at) for _, g, at in moving], axis=1) if moving else None,
        P=_block_diagonal([cast(block.P) for block in blocks]),
        h=cast(h),
        d=sum((cast(block.d) for block in blocks), jnp.zeros((), dtype)),
        flat_T=_block_diagonal([cast(block.flat_T) for block in blocks]),
        log_volume=sum((cast(block.log_volume) for block in blocks), jnp.zeros((), dtype)),
        flat=tuple(at + i for block, at in pairs for i, flat in enumerate(block.flat) if flat),
        level=next((at for block, at in pairs if block.has_level), None),
        moves=None
        if any(np.ndim(block.z) == 2 or block.g is not None for block, _ in moved)
        else tuple(at + i for block, at in moved for i in range(len(block.flat))),
    )


def _block_diagonal(blocks: list[Array]) -> Array:
    size, rows, at = sum(len(block) for block in blocks), [], 0
    for block in blocks:
        rows.append(jnp.pad(block, ((0, 0), (at, size - at - len(block)))))
        at += len(block)
    return jnp.concatenate(rows)
