r"""The Kalman filter and the likelihood of any linear Gaussian state space model.

The observations are taken one scalar at a time (Koopman and Durbin 2000), so no matrix is factorised or inverted; a
non-diagonal H is rotated away before and the results are rotated back (`probkit.ssm.statespace`, which has the model).

**Diffuse starts are exact.** The state is $\alpha = a + x + A \delta$ with $x \sim N(0, P)$ and a flat prior on
$\delta$. An entry with $w = A' z \ne 0$ is spent on $\delta$: with $\tilde w = w / w'w$ the gain is $K = A \tilde w$
(Durbin and Koopman's $M_\infty / F_\infty$, $F_\infty = w'w$), $A$ loses the direction w, and $P$ moves by the same
formula as under any other gain,

$$P \leftarrow (I - K z') P (I - K z')' + h K K',$$

Joseph's form, written as two updates of rank one: it holds its digits in float32 where $z'Pz \gg h$. w counts as zero
below $\epsilon^{2/3}$ of its length before the earlier entries were taken out of it, $\epsilon$ the precision. Where
the first observations tell the flat states apart so ill that no digit would be left, as with many harmonics of a long
season, delta has a large variance instead (`probkit.ssm.diffuse`): where y determines delta well after all, the value
differs by some 1e-5 (1e-2 in float32, and take an offset out of y first there); where not, that variance counts.

**The constant.** $-\frac12 \log 2\pi$ is counted for every observed entry, diffuse ones included, and a diffuse entry
adds $-\frac12 \log F_\infty$: Durbin and Koopman's exact diffuse likelihood, as in statsmodels with
`use_exact_diffuse=True` and in `probkit.ssm.level`. See `burned_log_likelihood`, `differenced_log_likelihood` and
`vague_log_likelihood` for other programs' constants.

**The smoother is the adjoint, and the LOO.** One pass backwards gives scores of every disturbance with their
covariances; the gradient (`log_likelihood`), the smoother and leave-one-out (`probkit.ssm.smoother`) are read off it.

References:
    Durbin, J. and Koopman, S. J. (2012). Time Series Analysis by State Space Methods, 2nd ed., ch. 4, 5, 6.4, 7.2.
    de Jong, P. (1988). A cross-validation filter for time series models. Biometrika 75, 594-600.
    Koopman, S. J. and Shephard, N. (1992). Exact score for time series models in state space form. Biometrika 79, 823.
"""

import math
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike
from jaxtyping import Array, Float

from probkit.ssm.diffuse import settle, spend
from probkit.ssm.recursions import Cumulants, Filtered, backward, flat_forms, forward, log_density, smoothed_mean
from probkit.ssm.statespace import Start, StateSpace, System, as_entries, as_system


@jax.jit
def run_filter(y: ArrayLike, model: StateSpace, start: Start) -> Filtered:
    r"""Runs the filter: for every observed entry in turn, with $L = I - K z'$,

    $$v = y - z'a, \quad F = z'Pz + h, \quad K = P z / F \ \text{or}\ A \tilde w, \quad
      a \leftarrow a + K v, \quad P \leftarrow L P L' + h K K',$$

    and after the last one of a time $a \leftarrow T a + c$, $P \leftarrow T P T' + R Q R'$, $A \leftarrow T A$.

    Args:
        y: observations, `(time, p)` or `(time,)`, NaN where missing.
        model: the matrices.
        start: law of the first state.

    Returns:
        Predicted states, errors and gains, and the law of the state after the last time.
    """  # noqa: D415
    return forward(as_system(y, model, start))[0]


@jax.jit
def log_likelihood(y: ArrayLike, model: StateSpace, start: Start) -> Float[Array, ""]:
    r"""Joint log density of the observed entries, flat states integrated out.

    $$\ell = -\tfrac12 \sum_{\mathrm{proper}} (\log F + v^2 / F) - \tfrac12 \sum_{\mathrm{diffuse}} \log F_\infty
      - \tfrac12 n_{\mathrm{obs}} \log 2\pi.$$

    Its derivatives are read off the smoothing pass and may be differentiated once more: with the state's smoothed mean
    $\hat\alpha$ and the names of `Cumulants`, and V = R Q R',

    $$\ell_H = \tfrac12 (u u' - D), \quad \ell_V = \tfrac12 (r r' - N), \quad \ell_y = -u, \quad
      \ell_{P_1} = \tfrac12 (r_0 r_0' - N_0), \quad \ell_{a_1} = r_0,$$
    $$\ell_Z = u \hat\alpha' - G' P + B_\varepsilon A', \qquad \ell_T = r \hat\alpha' - J P + B_\eta A'.$$

    Args:
        y: observations, `(time, p)` or `(time,)`, NaN where missing.
        model: the matrices.
        start: law of the first state.

    Returns:
        The log-likelihood; -inf with a zero gradient where some F is not positive or a number overflows.
    """
    return _log_likelihood(as_system(y, model, start))


@jax.jit
def burned_log_likelihood(y: ArrayLike, model: StateSpace, start: Start) -> Float[Array, ""]:
    """The log-likelihood without the terms of diffuse entries, as statsmodels' `loglikelihood_burn` has it.

    R's `arima` leaves the same terms out. Arguments as in `log_likelihood`.
    """
    s = as_system(y, model, start)
    e = as_entries(s)
    spent = spend(e.seen, e.z, s.T, s.A)
    f, _ = forward(s, settle(spent, e.y, e.z, s.A))
    size = jnp.sum(jnp.square(spent.w), axis=-1)
    terms = jnp.where(size > 0, jnp.log(jnp.where(size > 0, size, 1)) + math.log(2 * math.pi), 0)
    return log_density(f, e.seen) + 0.5 * jnp.sum(terms)


class Moments(NamedTuple):
    """Mean, `(time, p)`, and variance, `(time, p, p)`, of observations; in the shape of y where y is `(time,)`."""

    mean: Array
    variance: Array


@partial(jax.jit, static_argnames="horizon")
def forecast(model: StateSpace, start: Start, horizon: int) -> Moments:
    r"""Mean and variance of $y_t$ at each of the next `horizon` times, given none of them.

    Args:
        model: the matrices; those with a time axis have length `horizon`.
        start: law of the first state, as in `run_filter(...).next`.
        horizon: number of times.

    Returns:
        Mean `(horizon, p)` and variance `(horizon, p, p)`; infinite variance where a flat state is seen.
    """
    p = jnp.asarray(model.Z).shape[-2]
    dtype = jnp.result_type(float, *jax.tree.leaves((model, start)))
    s = as_system(jnp.full((horizon, p), jnp.nan, dtype), model, start)
    f, _ = forward(s)
    Z, H, d = (jnp.broadcast_to(x, (horizon, *x.shape[-rank:])) for x, rank in ((s.Z, 2), (s.H, 2), (s.d, 1)))
    flat = flat_forms(Z, f.A, jnp.eye(f.A.shape[2], dtype=f.A.dtype))
    endless = flat[:, :, None] & jnp.eye(p, dtype=bool)[None]
    variance = Z @ f.P @ jnp.swapaxes(Z, 1, 2) + H
    return Moments(jnp.einsum("tij,tj->ti", Z, f.a) + d, jnp.where(endless, jnp.inf, variance))


@jax.custom_jvp
def _log_likelihood(s: System) -> Array:
    f, e = forward(s)
    return log_density(f, e.seen)


@_log_likelihood.defjvp
def _log_likelihood_jvp(primals, tangents):
    (s,), (directions,) = primals, tangents
    f, e = forward(s)
    value = log_density(f, e.seen)

    def slope(g, direction):  # none where the value is -inf, and none rather than NaN where a square overflows
        g = jnp.sum(g, axis=0) if g.ndim > direction.ndim else g
        return jnp.vdot(jnp.where(jnp.isfinite(value) & jnp.isfinite(g), g, 0), direction)

    slopes = map(slope, _gradient(s, f, backward(f, e, s.T)), directions)
    return value, sum(slopes)


def _gradient(s: System, f: Filtered, b: Cumulants) -> System:
    """The derivative to every part at every time, as in the docstring of `log_likelihood`."""

    def outer(x, y):
        return x[..., :, None] * y[..., None, :]

    A_t = jnp.swapaxes(f.A, 1, 2)
    alpha = smoothed_mean(f, b)
    r, N = b.r_before[0], b.N_before[0]
    return System(
        y=-b.u,
        Z=outer(b.u, alpha) - jnp.swapaxes(b.G, 1, 2) @ f.P + b.B_noise @ A_t,
        H=0.5 * (outer(b.u, b.u) - b.D),
        d=b.u,
        T=outer(b.r, alpha) - b.J @ f.P + b.B_shock @ A_t,
        c=b.r,
        V=0.5 * (outer(b.r, b.r) - b.N),
        a=r,
        P=0.5 * (outer(r, r) - N),
        A=outer(r, b.delta[0]) + b.B[0] + (outer(r, r) - N) @ s.A @ f.vague,
    )
