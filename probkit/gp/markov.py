r"""Gaussian processes on a line in O(n): stochastic differential equations, a filter and its adjoint written by hand.

A covariance with a rational spectrum is the first entry of a Markov state,

$$\alpha_{t+1} = A_t \alpha_t + \eta_t, \quad \eta_t \sim N(0, Q_t), \qquad
  y_t = z'\alpha_t + e_t, \quad e_t \sim N(0, R_t),$$

where A and Q follow from the gaps of the inputs. The states are scaled by the rate of the process,
$(f, f'/\lambda, \dots)$, and Q is integrated from the impulse response, never as a difference, so that short gaps lose
no digits, in float32 too.

Matrices are nested tuples of arrays over time, ``None`` where an entry is always 0. The filter and its adjoint (de
Jong 1988: r and N, from 0 at the end, give the gradient, the smoother and leave-one-out) are in
:mod:`probkit.gp.markov_filter`.

References:
    Hartikainen and Särkkä (2010), Kalman filtering and smoothing solutions to temporal Gaussian process regression
        models.
    de Jong (1988), A cross-validation filter for time series models. Biometrika 75, 594-600.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probkit.gp.kernels import damped_waves

#: A matrix as rows of arrays over time; None is a structural 0.
Entries = tuple[tuple[Array | None, ...], ...]


class Block(NamedTuple):
    """One covariance as a stochastic differential equation.

    Attributes:
        step: the transition and the variance of its noise over gaps, (n,), entry by entry.
        stationary: variance of the state.
    """

    step: Callable[[Array], tuple[Entries, Entries]]
    stationary: Entries


class Chain(NamedTuple):
    """A process at sorted inputs: transitions to the next input, their noise, and the law of the first state.

    Attributes:
        A: transition from each input to the next one, the last leads nowhere.
        Q: variance of its noise.
        P: variance of the first state.
    """

    A: Entries
    Q: Entries
    P: Entries


def _tails(x: Array, count: int) -> list[Array]:
    """``P_k = exp(-x) sum_(j > k) x^j / j!`` for k = 0 .. count - 1: incomplete gamma functions, exact for small x."""
    decay = jnp.exp(-x)
    small = jnp.minimum(x, 2.0)
    series = jnp.ones_like(x)
    for j in range(count + 20, count, -1):
        series = 1.0 + series * small / j
    head = sum((x**j / math.factorial(j) for j in range(1, count)), jnp.ones_like(x))
    last = jnp.where(x < 2.0, decay * small**count / math.factorial(count) * series, 1.0 - decay * head)
    out = [last]
    for k in range(count - 1, 0, -1):  # sums of positive terms
        out.append(out[-1] + decay * x**k / math.factorial(k))
    return out[::-1]


#: Polynomials of the impulse response of (f, f'/rate, ...) for the orders 1/2, 3/2, 5/2, over exp(-t).
_IMPULSE = {0.5: ((1.0,),), 1.5: ((0.0, 1.0), (1.0, -1.0)), 2.5: ((0.0, 0.0, 0.5), (0.0, 1.0, -0.5), (1.0, -2.0, 0.5))}


def _matern_transition(order: float, t: Array) -> Entries:
    d = jnp.exp(-t)
    if order == 0.5:
        return ((d,),)
    if order == 1.5:
        return ((d * (1 + t), d * t), (-d * t, d * (1 - t)))
    h = 0.5 * t * t
    return (
        (d * (1 + t + h), d * (t + 2 * h), d * h),
        (-d * h, d * (1 + t - 2 * h), d * (t - h)),
        (d * (h - t), d * (2 * h - 3 * t), d * (1 - 2 * t + h)),
    )


def matern(order: float, lengthscale: Float[Array, ""], scale: Float[Array, ""]) -> Block:
    """The Matérn covariance of order 1/2, 3/2 or 5/2, with 1, 2 or 3 states ``(f, f'/rate, f''/rate²)``.

    ``(d/dt + rate)^(order + 1/2) f = white noise``, ``rate = sqrt(2 order) / lengthscale``.

    Args:
        order: 0.5, 1.5 or 2.5.
        lengthscale: in the units of the inputs.
        scale: standard deviation of the process.

    References:
        Hartikainen and Särkkä (2010), section 3.
    """
    impulse = _IMPULSE[order]
    m, rate = len(impulse), math.sqrt(2 * order) / lengthscale
    norm = sum(a * b * math.factorial(i + j) / 2.0 ** (i + j + 1)
               for i, a in enumerate(impulse[0]) for j, b in enumerate(impulse[0]))  # fmt: skip

    def noise(tails: Sequence[Any]) -> Entries:
        def entry(p: Sequence[float], q: Sequence[float]) -> Any:
            terms: dict[int, float] = {}
            for i, a in enumerate(p):
                for j, b in enumerate(q):
                    terms[i + j] = terms.get(i + j, 0.0) + a * b * math.factorial(i + j) / 2.0 ** (i + j + 1)
            return scale**2 * (sum(c * tails[k] for k, c in terms.items() if c) / norm)

        return tuple(tuple(entry(impulse[i], impulse[j]) for j in range(m)) for i in range(m))

    def step(gaps: Array) -> tuple[Entries, Entries]:
        t = rate * gaps
        return _matern_transition(order, t), noise(_tails(2.0 * t, 2 * m - 1))

    one = jnp.ones_like(jnp.asarray(scale))
    return Block(step, noise([one] * (2 * m - 1)))


def oscillator(omega: Float[Array, ""], quality: Float[Array, ""], scale: Float[Array, ""]) -> Block:
    """The damped oscillator driven by white noise, two states ``(f, f'/omega)``.

    Args:
        omega: undamped angular frequency, in radians per unit of the inputs.
        quality: Q; below 1/2 overdamped.
        scale: standard deviation of the process.
    """
    b = 0.5 / jnp.asarray(quality)
    nodes, weights = np.polynomial.legendre.leggauss(10)

    def step(gaps: Array) -> tuple[Entries, Entries]:
        t = omega * gaps
        C, S = damped_waves(t, b)
        A = ((C + b * S, S), (-S, C - b * S))
        # Short steps by quadrature of the impulse response (S, C - b S), which cancels nothing.
        bound = 0.5 / (1.0 + b)
        short = jnp.minimum(t, bound)
        q11 = q12 = q22 = jnp.zeros_like(t)
        for node, weight in zip(0.5 * (nodes + 1.0), 0.5 * weights, strict=True):
            c, s = damped_waves(node * short, b)
            slope = c - b * s
            w = weight * short * 4.0 * b
            q11, q12, q22 = q11 + w * s * s, q12 + w * s * slope, q22 + w * slope * slope
        near = t < bound
        q11 = jnp.where(near, q11, 1.0 - A[0][0] ** 2 - S * S)
        q12 = jnp.where(near, q12, -A[0][0] * A[1][0] - S * A[1][1])
        q22 = jnp.where(near, q22, 1.0 - S * S - A[1][1] ** 2)
        v = scale**2
        return A, ((v * q11, v * q12), (v * q12, v * q22))

    v = jnp.asarray(scale) ** 2
    return Block(step, ((v, jnp.zeros_like(v)), (jnp.zeros_like(v), v)))


def chain(blocks: Sequence[Block], x: Float[Array, " n"]) -> Chain:
    """The sum of independent processes at sorted inputs.

    Args:
        blocks: the processes; the first state of each is observed.
        x: inputs in increasing order, equal ones allowed, shape (n,).
    """
    gaps = jnp.concatenate([jnp.diff(x), jnp.zeros((1,), x.dtype)])
    steps = [block.step(gaps) for block in blocks]
    stationary = [tuple(tuple(jnp.asarray(v, x.dtype) for v in row) for row in b.stationary) for b in blocks]
    return Chain(_diagonal([A for A, _ in steps]), _diagonal([Q for _, Q in steps]), _diagonal(stationary))


def observed_states(blocks: Sequence[Block]) -> tuple[int, ...]:
    """Which entries of the state add up to the observation: the first of each block."""
    sizes = [len(block.stationary) for block in blocks]
    return tuple(int(i) for i in np.cumsum([0, *sizes[:-1]]))


def _diagonal(parts: Sequence[Entries]) -> Entries:
    m = sum(map(len, parts))
    out: list[tuple] = []
    offset = 0
    for part in parts:
        for row in part:
            out.append((None,) * offset + tuple(row) + (None,) * (m - offset - len(row)))
        offset += len(part)
    return tuple(out)
