r"""Laplace's approximation for a sum of structural parts seen through any likelihood: the iterated smoother.

Signals $f = d + z'\alpha$ of a linear Gaussian model with covariance K, and $y_t \sim p(y_t | f_t)$. At the mode
$K^{-1}(f - d) = g$, g the gradient of the log-likelihood, with curvature W

$$\log Z = \sum_t \log p(y_t | f_t) - \tfrac12 g'(f - d) - \tfrac12 \log \det(I + W K).$$

Newton's step is a pass of filter and smoother over pseudo-observations $f + g / W$ of variance $1 / W$ (Durbin and
Koopman 2012, section 10.6). It is written with $x = W (f - d) + g$ in their place, so that W may be 0 and nothing is
divided by it:

$$p = z'Pz, \quad \iota = 1 / (1 + W p), \quad e = \iota (x - W z'a), \quad K_t = \iota W P z, \quad
  a \leftarrow T (a + e P z), \quad \log\det(I + W K) = \sum_t \log(1 + W p),$$

and backwards $r \leftarrow T' r$, $r \leftarrow r + z (e - K_t' r)$, $\hat f - d = z'a + (P z)' r$. Every state starts
from a proper law (:func:`proper_start`). Derivatives of the mode solve the same system once more.

References:
    Durbin, J. and Koopman, S. J. (2012). Time Series Analysis by State Space Methods, 2nd ed., ch. 10 and 11.
    Shephard, N. and Pitt, M. K. (1997). Likelihood analysis of non-Gaussian measurement time series. Biometrika 84.
    Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section 3.4.
"""

import dataclasses
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from probkit.math.latent import Terms, gradient, masked, observed_curvature, positive_curvature
from probkit.ssm.components import Structure
from probkit.ssm.statespace import Start
from probkit.ssm.structured_passes import joseph, moved, moving, times
from probkit.ssm.structured_smoother import simulate

#: Newton steps at most; eight or so are usual.
STEPS = 60


class Pass(NamedTuple):
    """What the filter leaves.

    Attributes:
        p: variance of each signal given the times before.
        M: P z.
        signal: mean of the signal given the times before, less d.
        e: one-step error over its variance.
        inverse: 1 / (1 + W p).
        next: mean and variance of the state after the last time.
    """

    p: Float[Array, " time"]
    M: Float[Array, "time m"]
    signal: Float[Array, " time"]
    e: Float[Array, " time"]
    inverse: Float[Array, " time"]
    next: tuple[Float[Array, " m"], Float[Array, "m m"]]


class Approximation(NamedTuple):
    """The normal approximation of the signals.

    Attributes:
        f: the mode; at times without observation the mean.
        g: gradient of the log-likelihood there, 0 where y is missing.
        W: curvature there, 0 where y is missing.
        log_evidence: the approximate log marginal likelihood; -inf where it failed.
        next: the law of the state after the last time.
    """

    f: Float[Array, " time"]
    g: Float[Array, " time"]
    W: Float[Array, " time"]
    log_evidence: Float[Array, ""]
    next: Start


def proper_start(s: Structure, scale: Float[Array, ""], length: int) -> Structure:
    """The model with its flat states normal: each moves the signal by about `scale` over the times at hand.

    A form that depends on time counts by its range, and the level makes up for its mean: inputs need no centre.
    """
    if not s.flat:
        return s
    flat = jnp.asarray(s.flat)
    z = jnp.broadcast_to(s.z, (jnp.shape(s.z)[0], s.q.shape[0]) if s.z.ndim == 2 else (1, s.q.shape[0]))[:, flat]
    middle = jnp.mean(z, axis=0)
    reach, size = jnp.max(jnp.abs(z - middle), axis=0), jnp.max(jnp.abs(z), axis=0)
    # A slope is not seen at once: what it has moved by the last time counts.
    size = jnp.maximum(size, jnp.abs(z[-1] @ jnp.linalg.matrix_power(s.flat_T, length - 1)))
    moves = reach > 1e-3 * size
    sd = scale / jnp.where(moves, reach, jnp.where(size > 0, size, 1.0))
    variance = sd * sd
    if s.level is not None:
        made_up = jnp.sum(jnp.where(moves, sd * middle, 0.0) ** 2)
        variance = variance + jnp.where(flat == s.level, made_up, 0.0)
    P = s.P.at[flat, flat].add(variance.astype(s.P.dtype))
    return dataclasses.replace(s, P=P, flat_T=s.flat_T[:0, :0], log_volume=jnp.zeros_like(s.log_volume), flat=())


def run(s: Structure, W: Float[Array, " time"], x: Float[Array, " time"]) -> Pass:
    """The filter of the module docstring; d is not counted."""

    def step(state, now):
        a, P = state
        z, W = now.get("z", s.z), now["W"]
        M = times(P, z)
        p = z @ M
        inverse = 1 / (1 + W * p)
        signal = z @ a
        e = inverse * (now["x"] - W * signal)
        # Joseph's form with variance 1 / W, whose product with the gain W M / (1 + W p) is M / (1 + W p).
        X = P - M[:, None] * (W * inverse * M)[None, :]
        X = X + (W * inverse * M)[:, None] * (inverse * M - times(X, z))[None, :]
        return (s.T.apply(a + e * M), moved(s, 0.5 * (X + X.T), now)), (p, M, signal, e, inverse)

    known = {k: v for k, v in moving(s).items() if k != "h"}
    last, out = lax.scan(step, (jnp.zeros_like(s.q), s.P), {"W": W, "x": x, **known})
    p, M, signal, e, inverse = out
    return Pass(p, M, signal, e, inverse, last)


def solve(s: Structure, W: Float[Array, " time"], x: Float[Array, " time"]) -> tuple[Array, Array]:
    """``(K^-1 + W)^-1 x`` and K^-1 times that, where W or x is not 0."""
    f = run(s, W, x)

    def step(r, now):
        before = s.T.adjoint(r)
        u = now["e"] - now["K"] @ before
        r = before + now.get("z", s.z) * u
        return r, (now["signal"] + now["M"] @ r, u)

    known = {k: v for k, v in moving(s).items() if k == "z"}
    known |= {"e": f.e, "K": (W * f.inverse)[:, None] * f.M, "M": f.M, "signal": f.signal}
    return lax.scan(step, jnp.zeros_like(s.q), known, reverse=True)[1]


def marginals(s: Structure, W: Float[Array, " time"]) -> tuple[Array, Array]:
    """Variance v of each signal under the approximation, and 1 - v W, which is not a difference."""
    f = run(s, W, jnp.zeros_like(W))

    def step(N, now):
        z, W, M, inverse = now.get("z", s.z), now["W"], now["M"], now["inverse"]
        N = s.T.moved_back(N)
        NM = times(N, M)
        along = M @ NM
        share = inverse * (1 + W * inverse * along)
        variance = inverse * (now["p"] - inverse * along)
        weight = W * inverse
        return joseph(N, z, weight * NM, weight * M, weight), (variance, share)

    known = {k: v for k, v in moving(s).items() if k == "z"}
    known |= {"W": W, "M": f.M, "inverse": f.inverse, "p": f.p}
    return lax.scan(step, jnp.zeros_like(s.P), known, reverse=True)[1]


def _weights(terms: Terms, curvature: Terms | None, phi: Any, f: Array, y: Array) -> Array:
    held = partial(observed_curvature, terms) if curvature is None else curvature
    return positive_curvature(held, phi, f, y)


def _further(
    terms: Terms, curvature: Terms | None, phi: Any, s: Structure, W: Array, y: Array, f: Array, by: Array
) -> Array:
    """From ``(K^-1 + W)^-1 x`` to ``(K^-1 + W_observed)^-1 x``: by conjugate gradients, where the two differ.

    W is to majorise, W_observed <= W; then with S² = W - W_observed it is ``by + P S (I - S P S)^-1 S by``.
    """
    if curvature is None:
        return by
    more = jnp.where(jnp.isnan(y), 0.0, W - observed_curvature(terms, phi, f, y))
    S = jnp.sqrt(jnp.where(more > 0, more, 1.0)) * (more > 0)
    spread = lambda x: solve(s, W, x)[0]
    tolerance = 10 * float(jnp.finfo(f.dtype).eps)
    solved = lambda product, b: cg(product, b, tol=tolerance, maxiter=100)[0]
    return by + spread(S * lax.custom_linear_solve(lambda v: v - S * spread(S * v), S * by, solved, symmetric=True))


@partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def mode(terms: Terms, curvature: Terms | None, phi: Any, s: Structure, start: Array | None, y: Array) -> Array:
    """The mode of f given y by Newton's method with a line search, NaN where it fails; see :func:`approximate`."""
    shares = 0.5 ** jnp.arange(12, dtype=s.q.dtype)
    tolerance = 100.0 * float(jnp.finfo(s.q.dtype).eps)
    d = jnp.broadcast_to(s.d, y.shape)

    def objective(f: Array, u: Array) -> Array:
        return jnp.sum(masked(terms, phi, f, y)) - 0.5 * jnp.sum(u * (f - d))

    def towards(f: Array) -> tuple[Array, Array]:
        W = _weights(terms, curvature, phi, f, y)
        new, u = solve(s, W, W * (f - d) + gradient(terms, phi, f, y))
        return d + new, u

    def newton(state: tuple) -> tuple:
        f, u, value, _, count = state
        new, u_new = towards(f)
        values = jax.vmap(lambda t: objective(f + t * (new - f), u + t * (u_new - u)))(shares)
        # The first step from a start that is no mean of anything is taken whole: before it u does not belong to f.
        values = jnp.where((value == -jnp.inf) & (shares < 1), -jnp.inf, values)
        best = jnp.argmax(jnp.where(jnp.isnan(values), -jnp.inf, values))
        gain = values[best] - value
        t = jnp.where(gain > 0, shares[best], 0.0)
        return f + t * (new - f), u + t * (u_new - u), jnp.where(gain > 0, values[best], value), gain, count + 1

    def goes_on(state: tuple) -> Array:
        _, _, value, gain, count = state
        return (count == 0) | ((count < STEPS) & (gain > tolerance * (1.0 + jnp.abs(value))))

    inf, zero = jnp.full((), jnp.inf, s.q.dtype), jnp.zeros_like(d)
    first = (d, zero, objective(d, zero)) if start is None else (start, zero, -inf)
    f, u, value, _, _ = lax.while_loop(goes_on, newton, (*first, inf, jnp.zeros((), int)))
    f = _refined(terms, curvature, phi, s, y, f, u)
    return jnp.where(jnp.isfinite(value), f, jnp.nan)


def _refined(terms: Terms, curvature: Terms | None, phi: Any, s: Structure, y: Array, f: Array, u: Array) -> Array:
    """The other half of the digits: the loop stops at a gain that is rounding. Steps by the observed curvature."""
    miss = lambda f, u: jnp.sum((gradient(terms, phi, f, y) - u) ** 2)

    def step(_: int, state: tuple[Array, Array]) -> tuple[Array, Array]:
        f, u = state
        W = _weights(terms, curvature, phi, f, y)
        x = gradient(terms, phi, f, y) - u
        move = _further(terms, curvature, phi, s, W, y, f, solve(s, W, x)[0])
        # K^-1 of the move, by the equation that it solves.
        turn = x - move * jnp.where(jnp.isnan(y), 0.0, observed_curvature(terms, phi, f, y))
        nearer = miss(f + move, u + turn) < miss(f, u)
        return jnp.where(nearer, f + move, f), jnp.where(nearer, u + turn, u)

    return lax.fori_loop(0, 3, step, (f, u))[0]


@mode.defjvp
def _mode_jvp(terms: Terms, curvature: Terms | None, primals: tuple, tangents: tuple) -> tuple[Array, Array]:
    (phi, s, start, y), (dphi, ds, _, _) = primals, tangents
    f = mode(terms, curvature, phi, s, start, y)
    sound = jnp.all(jnp.isfinite(f))
    at = jnp.where(sound, f, 0.0)
    W = _weights(terms, curvature, phi, at, y)

    def towards(phi: Any, s: Structure) -> Array:
        return s.d + solve(s, W, W * (at - s.d) + gradient(terms, phi, at, y))[0]

    df = jax.jvp(towards, (phi, s), (dphi, ds))[1]
    df = _further(terms, curvature, phi, s, W, y, at, df)
    return f, jnp.where(sound, df, 0.0)


def approximate(
    terms: Terms,
    curvature: Terms | None,
    phi: Any,
    s: Structure,
    start: Float[Array, " time"] | None,
    y: Float[Array, " time"],
    information: Terms | None = None,
) -> Approximation:
    """Mode, curvature and evidence.

    Args:
        terms: ``terms(phi, f, y)``, the log density of each entry; static.
        curvature: None where the log density is concave in f; else ``curvature(phi, f, y)``, not less than minus its
            second derivative and not negative; static.
        phi: parameters of the likelihood, a pytree of floats.
        s: the model without flat states; its h is not used.
        start: where the search for the mode begins; None for the prior mean.
        y: observations; NaN is missing.
        information: the curvature of the approximation, where it is not that of the search; static.
    """
    f = mode(terms, curvature, phi, s, start, y)
    g, W = gradient(terms, phi, f, y), _weights(terms, information or curvature, phi, f, y)
    found = run(s, W, W * (f - s.d) + g)
    value = jnp.sum(masked(terms, phi, f, y)) - 0.5 * jnp.sum(g * (f - s.d)) - 0.5 * jnp.sum(jnp.log1p(W * found.p))
    a, P = found.next
    return Approximation(f, g, W, jnp.where(jnp.isfinite(value), value, -jnp.inf), Start(a, P, P[:, :0]))


def paths(key: Array, s: Structure, found: Approximation, count: int) -> Float[Array, "count time"]:
    """Draws of the signals from the approximation: from the prior, moved to the data (Durbin and Koopman 2002)."""
    n = found.f.shape[0]

    def one(key: Array) -> Array:
        prior, noise = jax.random.split(key)
        states, _ = simulate(prior, s, n)
        signal = jnp.sum(jnp.broadcast_to(s.z, states.shape) * states, axis=-1)
        seen = found.W * signal + jnp.sqrt(found.W) * jax.random.normal(noise, (n,), s.q.dtype)
        return found.f + signal - solve(s, found.W, seen)[0]

    return jax.vmap(one)(jax.random.split(key, count))


def log_weights(
    terms: Terms, phi: Any, found: Approximation, f: Float[Array, "count time"], y: Float[Array, " time"]
) -> Float[Array, " count"]:
    """Log of the posterior density of paths over that of the approximation, 0 at the mode.

    The log of their mean is what the evidence misses (Shephard and Pitt 1997).
    """

    def one(f: Array) -> Array:
        move = f - found.f
        exact = masked(terms, phi, f, y) - masked(terms, phi, found.f, y)
        return jnp.sum(exact - found.g * move + 0.5 * found.W * move * move)

    return jax.vmap(one)(f)
