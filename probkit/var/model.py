"""Vector autoregressions: several series that move one another."""

import dataclasses
import functools
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from probkit import border
from probkit.prediction import Prediction
from probkit.report import Report, Seconds
from probkit.var import conjugate, gaps

#: Values of the tightness that are weighed where none is given.
GRID = np.geomspace(0.01, 5.0, 41)
#: Chains of the sampler where values are missing, and what each leaves out at its beginning.
CHAINS, BURN = 4, 200


@dataclasses.dataclass(frozen=True)
class VAR:
    r"""Vector autoregression with a Minnesota prior, its posterior in closed form.

    ``y_t = c + A_1 y_(t-1) + ... + A_p y_(t-p) + e_t``, ``e_t ~ N(0, Sigma)``. The prior draws every series to a random
    walk of its own, the more so the longer the lag:
    ``A_l[i, j] ~ N(own_lag if i = j and l = 1 else 0, tightness² / l^(2 decay) * Sigma_ii / s_j²)``, with ``s_j²`` the
    error variance of an autoregression of series j by itself; ``Sigma`` is inverse Wishart around them with n + 2
    degrees of freedom. The first p times are conditioned on.

    ``pk.fit(pk.VAR(2), y, key=key)`` with y (time, series), an array or a data frame. Where values are missing (NaN)
    the posterior is sampled by Gibbs steps between parameters and missing values, both in closed form given the other:
    four chains, whose R-hat and effective draws the report tells; `posterior.impute()` holds the filled series. Of the
    first p times what is missing is normal with the mean and spread of its series.

    Args:
        lags: p.
        tightness: how far coefficients may move from the prior's mean. None, the default, is unknown: gamma with mode
            0.2 and standard deviation 0.4, on a grid from 0.01 to 5, weighed by the evidence. Infinity is flat: least
            squares.
        decay: how fast the prior tightens with the lag.
        own_lag: what each series is expected to keep of its last value: 1 for random walks, 0 for differences, rates.
        draws: how many draws of the posterior.

    References:
        Litterman (1986), Forecasting with Bayesian vector autoregressions. Giannone, Lenza and Primiceri (2015), Prior
        selection for vector autoregressions.
    """

    lags: int = 1
    tightness: float | None = None
    decay: float = 1.0
    own_lag: float = 1.0
    draws: int = 4000

    def __post_init__(self) -> None:
        for name in ("lags", "draws"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} is {value!r}; a whole number of at least 1 is wanted.")
        if self.tightness is not None and not self.tightness > 0:
            raise ValueError(f"tightness is {self.tightness!r}; a positive number, or None, is wanted.")

    def fit(self, y: Any, *, key: Any) -> "VARPosterior":
        """The posterior; what :func:`probkit.fit` calls.

        Args:
            y: (time, series), NaN where missing.
            key: a new-style key.

        Raises:
            ValueError: y is infinite, has a series without values, or fewer times than p + 2.
        """
        border.check_key(key, "fit")
        began = time.perf_counter()
        values, names, labels = _table(y, self.lags)
        rows, unknown = values.shape[0] - self.lags, values.shape[1] * self.lags + 1
        k_draw, k_predict = jax.random.split(key)
        grid = GRID if self.tightness is None else np.array([self.tightness])
        options = (self.lags, self.decay, self.own_lag, self.draws)
        y, filled = np.asarray(values), None
        if np.isnan(y).any():
            begin = jnp.asarray(gaps.interpolate(y))
            scale = jnp.asarray(gaps.residual_variances(y, self.lags), values.dtype)
            drawn = _sampled(values, begin, scale, jnp.asarray(grid, values.dtype), k_draw, options)
            B, root, tightness, filled = (np.reshape(x, (-1, *x.shape[2:]))[: self.draws] for x in drawn)
            evidence = np.nan
        else:
            B, root, tightness, evidence = jax.device_get(
                _posterior(values, jnp.asarray(grid, values.dtype), k_draw, options)
            )
        if not (np.isfinite(B).all() and np.isfinite(root).all()) or (np.isinf(grid).any() and rows <= unknown):
            raise ValueError(
                f"{self!r} has no proper posterior: {rows} equations and {unknown} coefficients a series, or series "
                "that are constant or sums of one another. Give a finite tightness."
            )
        seconds = Seconds(0.0, time.perf_counter() - began)
        report = _report(self, seconds) if filled is None else _sampled_report(self, drawn, y, seconds)
        return VARPosterior(self, y, names, labels, B, root, tightness, float(evidence), report, k_predict, filled)


def _sampled_report(model: VAR, drawn: tuple, y: np.ndarray, seconds: Seconds) -> Report:
    """R-hat and effective draws of the coefficients and of the covariance's factor."""
    from numpyro.diagnostics import effective_sample_size, split_gelman_rubin

    B, L = (np.asarray(x, float) for x in drawn[:2])
    n = L.shape[-1]
    held = np.concatenate([B.reshape(*B.shape[:2], -1), L[..., *np.tril_indices(n)]], axis=2)
    moved = np.ptp(held, axis=(0, 1)) > 0
    r_hat = float(np.max(split_gelman_rubin(held[..., moved]), initial=1.0))
    ess = float(np.min(effective_sample_size(held[..., moved]), initial=held.shape[0] * held.shape[1]))
    sound = r_hat <= 1.01 and ess >= 100 * CHAINS
    told = f"Gibbs sampling of {CHAINS} chains: R-hat {r_hat:.3f}, {ess:.0f} effective draws of the slowest parameter."
    return Report(
        method=repr(model), rung="gibbs", converged=sound, reason=told, seconds=seconds, ess=ess,
        advice="" if sound else "Take more draws: pk.VAR(..., draws=20000); or fewer lags.",
        notes=(f"{int(np.isnan(y).sum())} of {y.size} values are missing.",),
    )  # fmt: skip


def _report(model: VAR, seconds: Seconds) -> Report:
    told = "Drawn from the posterior in closed form"
    told += ", the tightness from a grid." if model.tightness is None else "."
    return Report(method=repr(model), rung="exact", converged=True, reason=told, seconds=seconds)


def _table(y: Any, lags: int) -> tuple[Array, list[str], Any]:
    """The values, the names of the columns and the labels of the rows."""
    labels = getattr(y, "index", None)
    names = [str(c) for c in y.columns] if hasattr(y, "columns") else None
    values = np.asarray(y.to_numpy() if hasattr(y, "to_numpy") else y)
    if values.ndim != 2 or values.dtype.kind not in border.NUMBERS:
        raise ValueError(f"y has shape {values.shape} and dtype {values.dtype}; numbers of (time, series) are wanted.")
    bad = np.isinf(values.astype(float))
    if bad.any():
        row, column = np.argwhere(bad)[0]
        raise ValueError(f"y is infinite at row {row}, column {column} ({bad.sum()} in all); NaN means missing.")
    empty = np.isnan(values.astype(float)).all(axis=0)
    if empty.any():
        raise ValueError(f"y has no value in column {int(np.argmax(empty))}; leave that series out.")
    if len(values) < lags + 2:
        raise ValueError(f"y has {len(values)} rows; VAR({lags}) takes at least {lags + 2}.")
    names = [f"y{i + 1}" for i in range(values.shape[1])] if names is None else names
    return jnp.asarray(values.astype(border.float_dtype(values))), names, labels


@functools.partial(jax.jit, static_argnums=3)
def _posterior(y: Array, grid: Array, key: Array, options: tuple) -> tuple:
    """Draws of B, of the factor of Sigma and of the tightness, on y as it came; and the log evidence."""
    lags, decay, own, draws = options
    centre, unit = _units(y)
    x = (y - centre) / unit
    laws = _laws(x, conjugate.residual_variances(x, lags), grid, (lags, decay, own))
    evidence = laws.log_evidence - (y.shape[0] - lags) * jnp.sum(jnp.log(unit))
    log_prior = _log_prior(grid)
    log_w = evidence + log_prior if grid.shape[0] > 1 else jnp.zeros_like(evidence)
    k_grid, k_draw = jax.random.split(key)
    places = jax.random.categorical(k_grid, log_w, shape=(draws,))

    def draw(one: tuple) -> tuple:
        key, place = one
        return _in_units(*conjugate.sample(key, jax.tree.map(lambda a: a[place], laws)), centre, unit)

    B, L = jax.lax.map(draw, (jax.random.split(k_draw, draws), places))
    mixed = jax.nn.logsumexp(evidence + jax.nn.log_softmax(log_prior)) if grid.shape[0] > 1 else evidence[0]
    return B, L, grid[places], mixed


def _units(y: Array) -> tuple[Array, Array]:
    """Mean and standard deviation of every series, the latter 1 where it is 0."""
    spread = jnp.nanstd(y, axis=0)
    return jnp.nanmean(y, axis=0), jnp.where(spread > 0, spread, 1.0)


def _log_prior(grid: Array) -> Array:
    """Gamma with mode 0.2 and sd 0.4: shape a, rate b, (a - 1) / b = 0.2, a / b² = 0.16; times the grid's spacing."""
    b = (0.2 + jnp.sqrt(0.04 + 4 * 0.16)) / (2 * 0.16)
    return 0.2 * b * jnp.log(grid) - b * grid + jnp.log(grid)


def _laws(x: Array, scale: Array, grid: Array, options: tuple) -> conjugate.NormalInverseWishart:
    """The posterior given complete standardised series, at every tightness of the grid."""
    lags, decay, own = options
    Y, Z = conjugate.lagged(x, lags)
    df0 = jnp.asarray(x.shape[1] + 2.0, x.dtype)

    def law(tightness: Array) -> conjugate.NormalInverseWishart:
        B0, precision = conjugate.minnesota(scale, lags, tightness, decay, own, 100.0)
        precision = jnp.where(jnp.isinf(tightness), 0.0, precision)
        return conjugate.posterior(Y, Z, B0, precision, jnp.diag(scale), df0)

    return jax.lax.map(law, grid)


def _in_units(B: Array, L: Array, centre: Array, unit: Array) -> tuple[Array, Array]:
    """Back to the units of y: slopes by the ratio of units, the intercept makes up for the centres."""
    lags = (B.shape[0] - 1) // B.shape[1]
    slopes = B[:-1] * unit[None, :] / jnp.tile(unit, lags)[:, None]
    c = centre + unit * B[-1] - jnp.tile(centre, lags) @ slopes
    return jnp.concatenate([slopes, c[None]]), unit[:, None] * L


@functools.partial(jax.jit, static_argnums=5)
def _sampled(y: Array, begin: Array, scale: Array, grid: Array, key: Array, options: tuple) -> tuple:
    """Draws of B, of the factor of Sigma, of the tightness and of y filled, (chain, draw, ...), where y has gaps."""
    lags, decay, own, draws = options
    centre, unit = _units(y)
    x, start = (y - centre) / unit, (begin - centre) / unit
    scale = scale / unit**2
    laws = lambda x: _laws(x, scale, grid, (lags, decay, own))
    counts = (CHAINS, BURN, max(4, -(-draws // CHAINS)))  # R-hat takes four
    found = gaps.sample(key, x, start, laws, _log_prior(grid), counts)
    flat = lambda a: a.reshape(-1, *a.shape[2:])
    B, L = jax.vmap(lambda B, L: _in_units(B, L, centre, unit))(flat(found.B), flat(found.L))
    shaped = lambda a: a.reshape(*found.place.shape, *a.shape[1:])
    return shaped(B), shaped(L), grid[found.place], jnp.where(jnp.isnan(y), found.y * unit + centre, y)


@dataclasses.dataclass(frozen=True)
class VARPosterior:
    """What a :class:`VAR` knows after y.

    Attributes:
        model: the model.
        y: the data, (time, series).
        names: of the series.
        labels: of the times, or None.
        B: draws of the coefficients, (draw, n p + 1, n): rows are lag 1 of every series, lag 2 ..., the intercept.
        root: draws of the lower Cholesky factor of Sigma, (draw, n, n).
        tightness: draws of it, (draw,).
        log_evidence: log density of y after its first p times; NaN where the tightness is infinite or values are
            missing.
        report: what answered.
        key: the key that forecasts use unless they are given one.
        filled: where values are missing, draws of the whole series, (draw, time, n); else None.
    """

    model: VAR
    y: np.ndarray
    names: list[str]
    labels: Any
    B: np.ndarray
    root: np.ndarray
    tightness: np.ndarray
    log_evidence: float
    report: Report
    key: Any
    filled: np.ndarray | None = None

    @property
    def coefficients(self) -> Float[np.ndarray, "draw lag n n"]:
        """Draws of A_1 ... A_p, rows are the series that is moved."""
        n = self.y.shape[1]
        return np.swapaxes(self.B[:, :-1].reshape(len(self.B), -1, n, n), 2, 3)

    @property
    def intercept(self) -> Float[np.ndarray, "draw n"]:
        """Draws of c."""
        return self.B[:, -1]

    @property
    def covariance(self) -> Float[np.ndarray, "draw n n"]:
        """Draws of Sigma."""
        return self.root @ np.swapaxes(self.root, 1, 2)

    def __repr__(self) -> str:
        return f"VARPosterior({self.model}, {len(self.B)} draws, {self.names})\n{self.report}"

    def forecast(self, horizon: int, *, key: Any = None) -> Prediction:
        """The next ``horizon`` values of every series, as joint paths; ``lanes`` are the series.

        Args:
            horizon: number of steps, at least 1.
            key: a new-style key; the posterior's own by default.
        """
        horizon = border.check_horizon(horizon)
        key = self.key if key is None else border.check_key(key, "forecast")
        whole = self.y[None] if self.filled is None else self.filled
        past = np.broadcast_to(whole[:, -self.model.lags :], (len(self.B), self.model.lags, self.y.shape[1]))
        found = jax.device_get(_forecast(self.B, self.root, past, key, horizon))
        draws, means, stds = (np.swapaxes(a, 1, 2)[None] for a in found)
        labels = border.extend_labels(self.labels, len(self.y), horizon)
        return Prediction(draws, means, stds, labels, lanes=np.asarray(self.names))

    def impute(self) -> Prediction:
        """The series, gaps filled: rows of ``draws`` are joint draws of all that is missing, the rest is y."""
        whole = np.broadcast_to(self.y, (len(self.B), *self.y.shape)) if self.filled is None else self.filled
        draws = np.swapaxes(whole, 1, 2)[None]
        labels = np.arange(len(self.y)) if self.labels is None else np.asarray(self.labels)
        return Prediction(draws, draws, None, labels, lanes=np.asarray(self.names))

    def impulse_responses(self, horizon: int, *, orthogonal: bool = True) -> "Responses":
        """How each series answers to a shock, 0 to ``horizon`` times later.

        Args:
            horizon: number of steps.
            orthogonal: whether shocks are of one standard deviation and independent, by the Cholesky factor of Sigma:
                a series earlier in y may move a later one at once, not the other way. Else each is an error of 1.
        """
        horizon = border.check_horizon(horizon)
        return Responses(np.asarray(_responses(self.B, self.root, horizon + 1, orthogonal)), self.names)

    def variance_decomposition(self, horizon: int) -> Float[np.ndarray, "draw horizon n n"]:
        """Share of each orthogonal shock (last axis) in the forecast error variance 1 to ``horizon`` steps ahead."""
        horizon = border.check_horizon(horizon)
        parts = np.cumsum(np.asarray(_responses(self.B, self.root, horizon, True)) ** 2, axis=1)
        return parts / parts.sum(axis=-1, keepdims=True)

    def moduli(self) -> Float[np.ndarray, " draw"]:
        """The largest modulus of the roots of each draw: below 1 the series are stationary."""
        A = self.coefficients
        count, lags, n, _ = A.shape
        companion = np.zeros((count, n * lags, n * lags))
        companion[:, :n] = np.moveaxis(A, 1, 2).reshape(count, n, n * lags)
        companion[:, n:, : n * (lags - 1)] = np.eye(n * (lags - 1))
        return np.abs(np.linalg.eigvals(companion)).max(axis=1)

    def summary(self) -> Any:
        """A pandas frame, one row a coefficient: ``mean, sd`` and the 5th, 50th and 95th percentile."""
        import pandas as pd

        rows = [f"{name}.L{lag + 1}" for lag in range(self.model.lags) for name in self.names] + ["intercept"]
        index = pd.MultiIndex.from_product([self.names, rows], names=["equation", "term"])
        flat = np.swapaxes(self.B, 1, 2).reshape(len(self.B), -1).astype(float)
        table = [flat.mean(0), flat.std(0), *np.quantile(flat, [0.05, 0.5, 0.95], axis=0)]
        return pd.DataFrame(np.stack(table, 1), index=index, columns=["mean", "sd", "q5", "q50", "q95"])


@functools.partial(jax.jit, static_argnums=4)
def _forecast(B: Array, root: Array, past: Array, key: Array, horizon: int) -> tuple[Array, Array, Array]:
    """Paths, and means and standard deviations given the parameters and the last times, (draw, horizon, n)."""

    def one(now: tuple) -> tuple[Array, Array, Array]:
        B, L, past, key = now
        errors = jax.random.normal(key, (horizon, L.shape[0]), L.dtype) @ L.T
        moved = conjugate.moving_average(B, horizon) @ L
        std = jnp.sqrt(jnp.cumsum(jnp.sum(moved**2, axis=2), axis=0))
        return conjugate.path(B, past, errors), conjugate.path(B, past, jnp.zeros_like(errors)), std

    return jax.lax.map(one, (B, root, past, jax.random.split(key, B.shape[0])), batch_size=256)


@functools.partial(jax.jit, static_argnums=(2, 3))
def _responses(B: Array, root: Array, horizon: int, orthogonal: bool) -> Array:
    moved = jax.vmap(lambda B: conjugate.moving_average(B, horizon))(B)
    return moved @ root[:, None] if orthogonal else moved


@dataclasses.dataclass(frozen=True)
class Responses:
    """Answers of series to shocks.

    Attributes:
        draws: (draw, time, response, shock), from the time of the shock on.
        names: of the series.
    """

    draws: Float[np.ndarray, "draw time response shock"]
    names: list[str]

    @property
    def mean(self) -> Float[np.ndarray, "time response shock"]:
        """Posterior mean."""
        return self.draws.mean(0)

    def interval(self, level: float) -> tuple[np.ndarray, np.ndarray]:
        """Central interval of so many percent, each (time, response, shock)."""
        low, high = np.quantile(self.draws, [0.5 - level / 200, 0.5 + level / 200], axis=0)
        return low, high

    def to_frame(self, level: Sequence[float] = (80, 95)) -> Any:
        """A long pandas frame: ``shock, response, step, mean, lo-80, hi-80, ...``."""
        import pandas as pd

        columns = {"mean": self.mean}
        for one in level:
            columns[f"lo-{one:g}"], columns[f"hi-{one:g}"] = self.interval(one)
        place = np.indices(self.mean.shape).reshape(3, -1)
        names = np.asarray(self.names)
        held = {"shock": names[place[2]], "response": names[place[1]], "step": place[0]}
        return pd.DataFrame(held | {name: x.ravel() for name, x in columns.items()})

    def plot(self, axes: Any = None, level: Sequence[float] = (50, 90)) -> Any:
        """A panel for each response (row) to each shock (column); returns the matplotlib axes.

        Args:
            axes: (n, n) matplotlib axes; made by default.
            level: percentages of central intervals.
        """
        import matplotlib.pyplot as plt

        n = len(self.names)
        if axes is None:
            axes = plt.subplots(n, n, figsize=(2.6 * n, 2 * n), sharex=True, layout="constrained", squeeze=False)[1]
        steps = np.arange(self.draws.shape[1])
        for i, j in np.ndindex(n, n):
            ax = axes[i, j]
            for one in sorted(level, reverse=True):
                low, high = self.interval(one)
                ax.fill_between(steps, low[:, i, j], high[:, i, j], color="C0", alpha=0.25, lw=0)
            ax.plot(steps, self.mean[:, i, j], color="C0", lw=1.6)
            ax.axhline(0, color="0.4", lw=0.7)
            ax.set_title(f"{self.names[j]} to {self.names[i]}", fontsize=9)
            ax.spines[["top", "right"]].set_visible(False)
        return axes
