"""Which ARIMA: a fast look at many orders, exact maximum likelihood of the best few, chosen or weighed by AICc."""

from typing import Any, NamedTuple

import jax
import numpy as np

from probkit import border
from probkit.arima.gaps import fit_gappy
from probkit.arima.lanes import Fitted, Orders
from probkit.arima.many import exact_fits, largest_root
from probkit.arima.model import ARIMA
from probkit.arima.paths import draw_paths
from probkit.arima.polynomials import difference_polynomial
from probkit.arima.search import LARGEST_ROOT, Candidate, candidates_up_to, look
from probkit.arima.unit_roots import differences_wanted, filled
from probkit.selection import Selection, information_criterion, one_or_many

#: How many of the best at the fast look are fitted exactly: of many series, for an average of them, and of one series.
FEW, SEVERAL, MOST = 3, 8, 64
#: Akaike weights below this count as none.
LEAST_WEIGHT = 0.01


class Lane(NamedTuple):
    """One series: its differences, its orders d and D, where it begins and ends, and why it cannot be fitted."""

    w: np.ndarray
    d: int
    D: int
    begin: int
    end: int
    gaps: bool = False
    trouble: str = ""


def auto_arima(
    y: Any,
    period: int = 1,
    *,
    key: Any,
    max_p: int = 3,
    max_q: int = 3,
    max_P: int = 2,
    max_Q: int = 2,
    max_order: int = 5,
    max_d: int = 1,
    d: int | None = None,
    D: int | None = None,
    stepwise: bool | None = None,
    average: bool = False,
) -> Selection:
    """Choose the orders of an ARIMA, or average over them, much as R's `auto.arima` goes about it.

    D is 1 where the season is strong, d by the KPSS test, at most ``max_d``: R goes up to 2, but where its rule takes
    two differences one forecasts better (57 of 300 yearly series of M1, M3 and Tourism: sMAPE 16.9 and not 28.6; 52 of
    a second sample, 12 of them among the first: 15.8 and not 23.5). Among all (p, q)(P, Q) with p + q + P + Q at most
    ``max_order``, with and without a constant (a mean, or a drift where d + D is 1), conditional least squares find the
    promising ones, among all or from neighbour to neighbour as Hyndman and Khandakar go; the best three (eight for
    an average, 64 of a single series without gaps) are fitted by exact maximum likelihood and AICc decides. Candidates
    with roots next to the unit circle (modulus below 1.01) are left out. All series go through the same programs.

    Args:
        y: one series, or many of one length, (time, lane) or a list; NaN is missing, late series begin with NaN.
        period: s, the length of the season; 1 for none.
        key: a new-style key, for the forecasts.
        max_p: the largest p.
        max_q: the largest q.
        max_P: the largest P.
        max_Q: the largest Q.
        max_order: the largest p + q + P + Q.
        max_d: the most ordinary differences that the test may ask for; 2 as in R. Nothing where ``d`` is given.
        d: the ordinary differences, if known.
        D: the seasonal differences, if known.
        stepwise: whether to go from neighbour to neighbour, or to look at all candidates, which takes several times as
            long. By default many series go stepwise, one does not.
        average: whether forecasts mix the best candidates by their AICc weights; else the best alone is used.

    Returns:
        A :class:`probkit.selection.Selection`, whose table holds the candidates fitted exactly. Its forecasts draw the
        parameters from the curvature of the likelihood and the variance from its chi-square law, so intervals carry
        their uncertainty. Series with gaps are fitted one by one, by the filter in level form.

    Raises:
        TypeError: values are not numbers; no key.
        ValueError: a period that is no whole number; one series that is too short, or constant once differenced; in a
            panel such lanes have a status.

    References:
        Hyndman, R. J. and Khandakar, Y. (2008). Automatic time series forecasting. J. Statistical Software 27(3).
    """
    border.check_key(key, "auto_arima")
    if isinstance(period, bool) or not isinstance(period, int | np.integer) or period < 1:
        raise ValueError(f"period is {period!r}; the number of observations in a season is wanted, 1 for none.")
    panel, many = one_or_many(y, "auto_arima")
    seasonal = period > 1
    orders = Orders(max_p, max_q, max_P if seasonal else 0, max_Q if seasonal else 0, int(period))
    eps = float(np.finfo(panel.y.dtype).eps)
    if isinstance(max_d, bool) or not isinstance(max_d, int) or not 0 <= max_d <= 2:
        raise ValueError(f"max_d is {max_d!r}; 0, 1 or 2 is wanted.")
    lanes = [_prepared(column, int(period), max_d, d, D, eps) for column in np.asarray(panel.y, float).T]
    lanes = [lane._replace(trouble=panel.unusable.get(i, lane.trouble)) for i, lane in enumerate(lanes)]
    if not many and lanes[0].trouble:
        raise ValueError(lanes[0].trouble)
    candidates = candidates_up_to(orders, max_order)
    few = FEW if many and not average else SEVERAL if many or lanes[0].gaps else MOST
    stepwise = many if stepwise is None else stepwise
    choice = _choose(lanes, candidates, orders, panel, stepwise, few)
    return _selection(choice, lanes, orders, panel, many, key, average)


def _prepared(y: np.ndarray, period: int, max_d: int, d: int | None, D: int | None, eps: float) -> Lane:
    """One series between its ends, gaps filled, and its differences; ``eps`` is the rounding of its numbers."""
    seen = np.flatnonzero(~np.isnan(y))
    begin, end = int(seen[0]), int(seen[-1]) + 1
    gaps = bool(end - begin > seen.size)
    z = filled(y[begin:end], period)
    wanted_d, wanted_D = differences_wanted(z, period, max_d)
    if D is not None and wanted_D != D:
        wanted_d = differences_wanted(z[period:] - z[:-period] if D else z, 1, max_d)[0]
    d, D = wanted_d if d is None else d, wanted_D if D is None else D
    c = difference_polynomial(d, D, period)
    if seen.size < c.size + 4:
        return Lane(np.zeros(2), d, D, begin, end, gaps, f"y has {seen.size} values; too few once differenced.")
    w = np.convolve(z, c, mode="valid")
    flat = np.ptp(w) <= 8 * eps * np.abs(c).sum() * max(np.abs(z).max(), 1e-300)
    return Lane(w, d, D, begin, end, gaps, f"y is constant once differenced (d={d}, D={D})." if flat else "")


class Choice(NamedTuple):
    """All that was fitted exactly: pairs of a candidate and a lane, and their fits on the last axis."""

    candidates: list[Candidate]
    column: np.ndarray  # (candidate, lane): where in `fits`; -1 where not fitted
    fits: Fitted
    scored: np.ndarray  # values of the differenced series, (lane,)
    sound: np.ndarray  # of each fit: finite, and no root next to the circle


def _choose(
    lanes: list[Lane], candidates: list[Candidate], orders: Orders, panel: border.Panel, stepwise: bool, few: int
) -> Choice:
    dtype, length = panel.y.dtype, panel.y.shape[0]  # not that of the longest differences: one lane would change others
    w, seen = np.zeros((length, len(lanes))), np.zeros((length, len(lanes)), bool)
    for i, lane in enumerate(lanes):
        w[: lane.w.size, i], seen[: lane.w.size, i] = lane.w, True
    allowed = np.array([[not lane.trouble and (not c.constant or lane.d + lane.D < 2) for lane in lanes]
                        for c in candidates])  # fmt: skip
    looked = look(w, seen, candidates, allowed, orders, stepwise)
    masks = np.stack([c.mask(orders) for c in candidates], axis=1)
    most = max(c.parameters for c in candidates) - 1
    column, fitted = np.full(allowed.shape, -1), 0
    parts: list[Fitted] = []
    sounds: list[np.ndarray] = []
    rank = np.argsort(np.argsort(looked.aicc, axis=0, kind="stable"), axis=0)
    gappy = np.array([lane.gaps for lane in lanes])
    last, waiting = few, np.ones(len(lanes), bool)

    while waiting.any():
        pairs = np.argwhere((rank < last) & (column < 0) & np.isfinite(looked.aicc) & waiting)
        if not len(pairs):
            break
        whole, torn = pairs[~gappy[pairs[:, 1]]], pairs[gappy[pairs[:, 1]]]
        c, at = whole.T
        new = (
            [exact_fits(w, seen, at, masks[:, c], looked.x[:, c, at], orders, most, dtype, LARGEST_ROOT)]
            if len(whole)
            else []
        )
        for i in np.unique(torn[:, 1]):
            own = torn[torn[:, 1] == i, 0]
            new.append(fit_gappy(np.asarray(panel.y[:, i]), lanes[i], masks[:, own], looked.x[:, own, i], orders, few))
        order = np.concatenate([whole, torn[np.argsort(torn[:, 1], kind="stable")]]).T
        column[order[0], order[1]] = fitted + np.arange(len(pairs))
        fits = jax.tree.map(lambda *each: np.concatenate(each, axis=-1), *new)
        sound = np.isfinite(fits.log_likelihood) & (largest_root(fits.coefficients, orders.s) < LARGEST_ROOT)
        parts, sounds, fitted = [*parts, fits], [*sounds, sound], fitted + len(pairs)
        waiting = ~np.array([np.any(np.concatenate(sounds)[column[column[:, i] >= 0, i]]) for i in range(len(lanes))])
        last += few
    count = np.array([np.sum(~np.isnan(y)) for y in np.asarray(panel.y).T])
    count = count - np.array([lane.d + lane.D * orders.s for lane in lanes])
    if not parts:
        nothing = exact_fits(np.zeros((2, 1)), np.ones((2, 1), bool), np.zeros(1, int), masks[:, :1],
                             looked.x[:, :1, 0], orders, most, dtype)  # fmt: skip
        parts, sounds = [nothing], [np.zeros(1, bool)]
    joined = jax.tree.map(lambda *each: np.concatenate(each, axis=-1), *parts)
    kept = np.flatnonzero((column >= 0).any(axis=1)) if fitted else np.arange(1)
    return Choice([candidates[c] for c in kept], column[kept], joined, count, np.concatenate(sounds))


def _selection(
    choice: Choice, lanes: list[Lane], orders: Orders, panel: border.Panel, many: bool, key: Any, average: bool
) -> Selection:
    column, fits = choice.column, choice.fits
    value = np.where(column >= 0, np.asarray(fits.log_likelihood, float)[column], np.nan)
    parameters = np.array([c.parameters for c in choice.candidates])[:, None]
    aicc = information_criterion("aicc", value, parameters, choice.scored[None, :])
    aicc = np.where((column >= 0) & choice.sound[column] & np.isfinite(aicc), aicc, np.inf)
    best = np.min(aicc, axis=0)
    alone = (np.arange(len(aicc))[:, None] == np.argmin(aicc, axis=0)) * 1.0
    weights = alone
    if average:
        relative = np.exp(-0.5 * (aicc - np.where(np.isfinite(best), best, 0)))
        relative = np.where(relative >= LEAST_WEIGHT * relative.sum(0), relative, 0)
        total = relative.sum(0)
        weights = np.where(total > 0, relative / np.where(total > 0, total, 1), alone)
    names = [_name(c, None if many else lanes[0], orders.s) for c in choice.candidates]
    figures = {
        "log_likelihood": value,
        "parameters": np.broadcast_to(parameters, value.shape) * 1.0,
        "aicc": aicc,
        "converged": np.where(column >= 0, np.asarray(fits.found.converged)[column], False) * 1.0,
    }
    status = tuple(
        lane.trouble or ("ok" if np.isfinite(b) else "no candidate could be fitted")
        for lane, b in zip(lanes, best, strict=True)
    )

    def build(name: str, lane: int) -> ARIMA:
        c = names.index(name)
        if status[lane] != "ok":
            d, D = lanes[lane].d, lanes[lane].D
            return ARIMA(0, d, 0, seasonal=(0, D, 0, orders.s), scale=np.nan, mean=0.0)
        if column[c, lane] < 0:
            raise ValueError(f"{name} was not fitted exactly to lane {lane}; the table holds those that were.")
        return _model(fits, lanes[lane], choice.candidates[c], orders, column[c, lane])

    def paths(key: Any, horizon: int, draws: int) -> np.ndarray:
        return draw_paths(np.asarray(panel.y), lanes, choice, weights, status, orders, key, horizon, draws)

    return Selection(tuple(names), figures, weights, status, paths, build, panel, many, key)


def _name(c: Candidate, lane: Lane | None, s: int) -> str:
    d, D = ("d", "D") if lane is None else (lane.d, lane.D)
    name = f"ARIMA({c.p},{d},{c.q})" + (f"({c.P},{D},{c.Q})[{s}]" if s > 1 else "")
    what = "constant" if lane is None or lane.d + lane.D > 1 else "drift" if lane.d + lane.D else "mean"
    return f"{name} with {what}" if c.constant else name


def _slope(lane: Lane, s: int) -> float:
    """What a constant in the differences is divided by to be a slope of the level."""
    return float(s if lane.D else 1)


def _model(fits: Fitted, lane: Lane, c: Candidate, orders: Orders, at: int) -> ARIMA:
    ar, ma, sar, sma = (np.asarray(x[:n, at], float) for x, n in zip(fits.coefficients, c[:4], strict=True))
    constant = float(fits.constant[at]) if c.constant else 0.0
    level = lane.d + lane.D == 0
    return ARIMA(
        c.p,
        lane.d,
        c.q,
        seasonal=(c.P, lane.D, c.Q, orders.s),
        ar=ar,
        ma=ma,
        sar=sar,
        sma=sma,
        scale=float(np.sqrt(fits.sigma2[at])),
        mean=constant if level else 0.0,
        drift=0.0 if level else constant / _slope(lane, orders.s),
    )
