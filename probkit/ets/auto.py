"""Automatic exponential smoothing: every candidate fitted at once, chosen by AICc or averaged."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probkit import border
from probkit.ets import fitting
from probkit.ets.fitting import Fits
from probkit.ets.model import ETS
from probkit.ets.paths import paths
from probkit.ets.recursions import Form
from probkit.ets.search import Fitted, fit_all
from probkit.selection import Selection, information_criterion, one_or_many

#: Akaike weights below this count as none, so that few candidates have to be simulated.
LEAST_WEIGHT = 0.01
#: Lanes of which paths are drawn at once: more do not stay in a cache.
PATHS = 128


def candidates(period: int, trend: str = "A") -> tuple[str, ...]:
    """The forms that R's `ets` tries: no multiplicative trend, nor a multiplicative season under additive errors.

    Args:
        period: length of the season; 1 for none.
        trend: ``"A"``, or ``"AM"`` for multiplicative trends as well.
    """
    trends = ["N", "A", "Ad"] + (["M", "Md"] if "M" in trend else [])
    seasons = "NAM" if period > 1 else "N"
    unstable = lambda f: (f.error == "A" and f.positive) or (f.trend == "M" and f.season == "A")
    forms = (Form.parse(error + t + s) for s in seasons for error in "AM" for t in trends)
    return tuple(form.name for form in forms if not unstable(form))


def auto_ets(
    y: Any,
    period: int = 1,
    *,
    key: Any = None,
    candidates: tuple[str, ...] | None = None,
    criterion: str = "aicc",
    average: bool = False,
    prior: bool = True,
) -> Selection:
    r"""Exponential smoothing chosen among many forms by AICc, for one series or for many.

    $$\mathrm{AICc} = -2 (\ell - P) + 2k + \frac{2k (k + 1)}{n - k - 1},$$

    k counting smoothing parameters, starting states and the error variance. $\ell$ is the log-likelihood and P minus
    the logarithm of a weak prior on the smoothing of trend and season, $\beta/\alpha \sim B(1, 11)$ and
    $\gamma/(1-\alpha) \sim B(1, 3)$, 0 at its mode: the highest likelihood follows noise, and forecasts worse.
    Forecasts carry the uncertainty of all parameters, which those of R's `ets` and statsforecast's `AutoETS` leave out.

    Of many series, candidates that are far behind after a few evaluations go no further: the table holds what was found
    of them, not converged. Of 200 monthly series of M3 four end higher for it, by at most 1.1 of the criterion but for
    one with an outlier. With ``average=True`` more go on; the average of forms forecasts better than the best on 300
    quarterly series, as well on 300 yearly ones, and its intervals cover more.

    Args:
        y: one series (time,), or many: (time, lane) or a list of series; NaN is missing, late series begin with NaN.
        period: observations in a season; 1 for none.
        key: a new-style key, for forecasts.
        candidates: letters of the forms to try, such as ``("ANN", "AAdN")``. Default: those of R's `ets`.
        criterion: ``"aicc"``, ``"aic"`` or ``"bic"``.
        average: weigh all candidates by ``exp(-criterion / 2)`` instead of taking the best: one forecast that carries
            the uncertainty of the form as well.
        prior: False for maximum likelihood, as in R.

    Returns:
        A :class:`probkit.Selection`. A lane that cannot be fitted, or is constant, has a status; it harms no other.

    Raises:
        TypeError: values are not numbers; no key.
        ValueError: data of the wrong shape; an unknown form or criterion; a period that is no whole number.

    References:
        Hyndman, R. J. and Khandakar, Y. (2008). Automatic time series forecasting: the forecast package for R.
            Journal of Statistical Software 27(3).
        Burnham, K. P. and Anderson, D. R. (2002). Model Selection and Multimodel Inference, ch. 2.
    """
    border.check_key(key, "auto_ets")
    if isinstance(period, bool) or not isinstance(period, int | np.integer) or period < 1:
        raise ValueError(f"period is {period!r}; the number of observations in a season is wanted, 1 for none.")
    if criterion not in ("aicc", "aic", "bic"):
        raise ValueError(f"criterion is {criterion!r}; 'aicc', 'aic' or 'bic' is wanted.")
    panel, many = one_or_many(y, "auto_ets")
    forms = _read(candidates, int(period))
    held = np.asarray(panel.y)
    powers = fitting.PRIOR if prior else (0.0, 0.0)
    groups = _grouped(forms)
    order = [form for group in groups.values() for form in group]
    count = np.sum(~np.isnan(held), axis=0)
    k = np.concatenate([_parameters(program, group, int(period)) for program, group in groups.items()])
    impossible = np.array([form.positive for form in order])[:, None] & (np.nanmin(held, axis=0) <= 0)

    def criterion_of(log_likelihood: np.ndarray, name: str = criterion) -> np.ndarray:
        out = np.where(np.isfinite(log_likelihood), information_criterion(name, log_likelihood, k, count), np.inf)
        return np.where(impossible, np.inf, out)

    fitted = fit_all(panel.y, groups, int(period), powers, criterion_of, average)
    join = lambda pick: np.concatenate([np.asarray(pick(one), float) for one in fitted])
    log_likelihood = join(lambda one: one.fits.log_likelihood)
    penalised = log_likelihood - join(lambda one: one.fits.penalty)
    value = criterion_of(penalised)
    status, simplest = _status(held, panel.unusable, value), _simplest(order)
    weights = _weights(value, average, [i for i, s in enumerate(status) if s != "ok"], simplest)
    figures = {
        "log_likelihood": log_likelihood,
        "parameters": np.broadcast_to(k, value.shape) * 1.0,
        criterion: value,
        "converged": join(lambda one: one.fits.converged).astype(bool),
    }
    if criterion != "aicc":
        figures["aicc"] = criterion_of(penalised, "aicc")
    draw = functools.partial(_paths, panel.y, tuple(fitted), powers, weights, tuple(panel.unusable))
    build = functools.partial(_build, tuple(fitted), int(period))
    names = tuple(form.name for form in order)
    return Selection(names, figures, weights, status, draw, build, panel, many, key)


def _read(names: tuple[str, ...] | None, period: int) -> list[Form]:
    names = candidates(period) if names is None else names
    if isinstance(names, str) or not len(names):
        raise ValueError(f"candidates is {names!r}; letters of one form or more are wanted, such as ('ANN', 'AAdN').")
    forms = [Form.parse(name) for name in names]
    if period == 1 and any(form.season != "N" for form in forms):
        raise ValueError("candidates hold forms with a season; pass period=, such as 12 for months.")
    return forms


def _grouped(forms: list[Form]) -> dict[Form, list[Form]]:
    """Forms by the program that fits them."""
    groups: dict[Form, list[Form]] = {}
    for form in forms:
        groups.setdefault(fitting.program("M" if form.trend == "M" else "A", form.season), []).append(form)
    return groups


def _parameters(program: Form, forms: list[Form], period: int) -> np.ndarray:
    """How many each form of a program estimates, (candidate, 1)."""
    m = fitting.masks(forms, jnp.zeros(1, int))
    return np.asarray(fitting.used_parameters(program, m, fitting.size(program, period)))[:, None]


def _status(held: np.ndarray, unusable: dict[int, str], value: np.ndarray) -> tuple[str, ...]:
    """What stands in the way of each lane."""
    eps = 8 * np.finfo(held.dtype).eps
    low, high = np.nanmin(held, axis=0), np.nanmax(held, axis=0)
    out = []
    for i in range(held.shape[1]):
        if i in unusable:
            out.append(unusable[i])
        elif high[i] - low[i] <= eps * max(abs(high[i]), abs(low[i])):
            out.append("constant")
        elif not np.isfinite(value[:, i]).any():
            out.append("too few values for any candidate")
        else:
            out.append("ok")
    return tuple(out)


def _simplest(forms: list[Form]) -> int:
    """The candidate for series that tell nothing: additive errors, the fewest parts."""
    cost = [(form.positive, form.season != "N", form.trend != "N", form.damped) for form in forms]
    return min(range(len(forms)), key=lambda i: cost[i])


def _weights(value: np.ndarray, average: bool, bad: list[int], simplest: int) -> np.ndarray:
    """One for the best, or Akaike's weights; series that tell nothing take the simplest candidate."""
    value = value.copy()
    value[:, bad] = np.inf
    value[simplest, bad] = 0.0
    less = value - value.min(axis=0)
    weights = np.exp(-0.5 * less) if average else (np.arange(len(value))[:, None] == np.argmin(value, axis=0)) * 1.0
    weights = weights / weights.sum(axis=0)
    weights[weights < LEAST_WEIGHT] = 0.0
    return weights / weights.sum(axis=0)


def _paths(
    y: Any,
    fitted: tuple[Fitted, ...],
    prior: tuple[float, float],
    weights: np.ndarray,
    unusable: tuple[int, ...],
    key: Any,
    horizon: int,
    draws: int,
) -> np.ndarray:
    """Paths (draws, horizon, lane): every candidate gives its share of them."""
    ends = np.round(np.cumsum(weights, axis=0) * draws).astype(int)
    counts = np.diff(ends, axis=0, prepend=0)
    out = np.empty((draws, horizon, y.shape[1]), np.asarray(y).dtype)
    first = 0
    for i, one in enumerate(fitted):
        share = counts[first : first + len(one.forms)]
        which, lane = np.nonzero(share)
        size = 1 << max(0, int(len(lane) - 1)).bit_length()  # powers of two: few programs
        size = min(size, PATHS)
        for begin in range(0, len(lane), size):
            index = np.arange(begin, begin + size) % max(len(lane), 1)
            c, l = which[index], lane[index]
            m = fitting.masks([one.forms[j] for j in c], jnp.zeros(1, int))._replace(phase=jnp.asarray(one.phase[l]))
            fits = Fits(*(jnp.asarray(a[..., c, l]) for a in one.fits))
            keys = jax.vmap(lambda j, i=i: jax.random.fold_in(jax.random.fold_in(key, i), j))(jnp.asarray(l))
            some = np.asarray(paths(one.program, y[:, l], m, fits, jnp.asarray(prior, y.dtype), keys, horizon, draws))
            for j in range(min(size, len(lane) - begin)):
                last = ends[first + c[j], l[j]]
                taken = counts[first + c[j], l[j]]
                out[last - taken : last, :, l[j]] = some[last - taken : last, :, j]  # draws of its own
        first += len(one.forms)
    out[:, :, list(unusable)] = np.nan
    return out


def _build(fitted: tuple[Fitted, ...], period: int, name: str, lane: int) -> ETS:
    """A candidate with the numbers of its fit."""
    for one in fitted:
        for i, form in enumerate(one.forms):
            if form.name == name:
                return _model(one, form, i, lane, period)
    raise ValueError(f"{name!r} was no candidate; {[form.name for one in fitted for form in one.forms]} were.")


def _model(one: Fitted, form: Form, i: int, lane: int, period: int) -> ETS:
    f = one.fits
    w, start = fitting.unpack(
        one.program, jnp.asarray(f.x[:, i, [lane]]), fitting.masks([form], jnp.asarray(one.phase[[lane]]))
    )
    unit, (alpha, beta, gamma, phi) = float(f.unit[i, lane]), (float(np.ravel(x)[0]) for x in w)
    slope = float(np.ravel(start.b)[0]) * (1.0 if form.trend == "M" else unit)
    seasons: dict[str, Any] = {}
    if form.season != "N":
        seasons["seasonal"] = np.ravel(start.s) * (1.0 if form.season == "M" else unit)
    return ETS(
        form.name,
        period=period,
        alpha=alpha,
        beta=beta,
        gamma=gamma,
        phi=phi,
        level=float(f.x[4, i, lane]) * unit,
        slope=slope,
        scale=float(f.sigma[i, lane]),
        **seasons,
    )
