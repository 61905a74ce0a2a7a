"""Which ARIMA: every order fitted by exact maximum likelihood in one program, chosen or weighed by AICc."""

import itertools
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from probkit import border
from probkit.arima import exact
from probkit.arima.lanes import Fitted, Orders, fit_lanes, unpack
from probkit.arima.model import ARIMA
from probkit.arima.polynomials import difference_polynomial
from probkit.arima.unit_roots import differences_wanted
from probkit.selection import Selection, information_criterion, one_or_many
from probkit.ssm.distribution import LinearGaussian

#: Partial autocorrelations above this are roots on the unit circle: such candidates are not taken.
EDGE = 0.995
#: Lanes fitted in one program call: more cost more than their share once they leave the cache.
CHUNK = 512


class _Candidate(NamedTuple):
    p: int
    q: int
    P: int
    Q: int
    constant: bool

    def mask(self, orders: Orders) -> np.ndarray:
        """Which of the parameters it has."""
        sizes = zip(self[:4], (orders.p, orders.q, orders.P, orders.Q), strict=True)
        return np.concatenate([np.arange(most) < size for size, most in sizes] + [np.array([self.constant])])


class _Lane(NamedTuple):
    """One series: its differences, its orders d and D, where it begins and ends, and why it cannot be fitted."""

    w: np.ndarray
    d: int
    D: int
    begin: int
    end: int
    trouble: str


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
    d: int | None = None,
    D: int | None = None,
    average: bool = False,
) -> Selection:
    """Choose the orders of an ARIMA, or average over them, as R's `auto.arima(stepwise=FALSE)` goes about it.

    D is 1 where the season is strong, d by the KPSS test; then every (p, q)(P, Q) with p + q + P + Q at most
    ``max_order`` is fitted by exact maximum likelihood, with and without a constant (a mean, or a drift where d + D is
    1), all at once in one compiled program, and AICc decides. Candidates with roots on the unit circle are left out.

    Args:
        y: one series, or many of one length, (time, lane) or a list; missing values may stand at the ends only.
        period: s, the length of the season; 1 for none.
        key: a new-style key, for the forecasts.
        max_p: the largest p.
        max_q: the largest q.
        max_P: the largest P.
        max_Q: the largest Q.
        max_order: the largest p + q + P + Q.
        d: the ordinary differences, if known.
        D: the seasonal differences, if known.
        average: whether forecasts mix all candidates by their AICc weights; else the best alone is used.

    Returns:
        A :class:`probkit.selection.Selection`. Its forecasts draw the parameters from the curvature of the likelihood
        and the variance from its chi-square law, so intervals carry their uncertainty.

    Raises:
        ValueError: one series with gaps, too short, or constant once differenced; in a panel such lanes have a status.

    References:
        Hyndman, R. J. and Khandakar, Y. (2008). Automatic time series forecasting. J. Statistical Software 27(3).
    """
    border.check_key(key, "auto_arima")
    panel, many = one_or_many(y, "auto_arima")
    seasonal = period > 1
    orders = Orders(max_p, max_q, max_P if seasonal else 0, max_Q if seasonal else 0, max(period, 1))
    lanes = [_prepared(np.asarray(column), period, d, D) for column in np.asarray(panel.y).T]
    lanes = [lane._replace(trouble=panel.unusable.get(i, lane.trouble)) for i, lane in enumerate(lanes)]
    if not many and lanes[0].trouble:
        raise ValueError(lanes[0].trouble)
    sizes = itertools.product(*(range(n + 1) for n in orders[:4]))
    kept = [(p, q, P, Q) for p, q, P, Q in sizes if p + q + P + Q <= max_order]
    candidates = [_Candidate(*four, constant) for four in kept for constant in (False, True)]
    found = _fit_all(lanes, candidates, orders, panel.y.dtype)
    return _selection(found, lanes, candidates, orders, panel, many, key, average)


def _prepared(y: np.ndarray, period: int, d: int | None, D: int | None) -> _Lane:
    seen = np.flatnonzero(~np.isnan(y))
    begin, end = int(seen[0]), int(seen[-1]) + 1
    z = y[begin:end]
    if np.isnan(z).any():
        return _Lane(np.zeros(2), 0, 0, begin, end, f"y has {np.isnan(z).sum()} gaps inside; fit pk.ARIMA to it.")
    wanted_d, wanted_D = differences_wanted(z, period)
    if D is not None and wanted_D != D:
        wanted_d = differences_wanted(z[period:] - z[:-period] if D else z, 1)[0]
    d, D = wanted_d if d is None else d, wanted_D if D is None else D
    c = difference_polynomial(d, D, period)
    if z.size < c.size + 4:
        return _Lane(np.zeros(2), d, D, begin, end, f"y has {z.size} values; too few once differenced.")
    w = np.convolve(z.astype(float), c, mode="valid")
    flat = np.ptp(w) <= 1e-10 * max(np.abs(z).max(), 1e-300)
    return _Lane(w, d, D, begin, end, f"y is constant once differenced (d={d}, D={D})." if flat else "")


def _fit_all(lanes: list[_Lane], candidates: list[_Candidate], orders: Orders, dtype: Any) -> Fitted:
    """Every candidate for every lane, axes (..., lane, candidate) at the end, in chunks of one shape."""
    longest = max(lane.w.size for lane in lanes)
    w = np.zeros((longest, len(lanes)))
    seen = np.zeros((longest, len(lanes)), bool)
    for i, lane in enumerate(lanes):
        kept = np.arange(longest) if lane.trouble else np.arange(lane.w.size)
        w[kept, i] = np.cos(kept) if lane.trouble else lane.w  # a lane that cannot be fitted holds anything
        seen[kept, i] = True
    masks = np.stack([c.mask(orders) for c in candidates], axis=1)
    index = [(i, c) for i in range(len(lanes)) for c in range(len(candidates))]
    size = min(CHUNK, len(index))
    out = []
    for k in range(0, len(index), size):
        part = index[k : k + size]
        part = part + [part[-1]] * (size - len(part))
        at, which = (np.array(x) for x in zip(*part, strict=True))
        each = [
            jax.device_get(fit_lanes(jnp.asarray(w[:, at], dtype), seen[:, at], masks[:, which], orders, start))
            for start in _starts(orders, dtype)
        ]
        out.append(_best_of(each))
    joined = jax.tree.map(lambda *parts: np.concatenate(parts, axis=-1)[..., : len(index)], *out)
    return jax.tree.map(lambda a: a.reshape(*a.shape[:-1], len(lanes), len(candidates)), joined)


def _starts(orders: Orders, dtype: Any) -> list[Any]:
    """Free numbers of three unlike starts: an ARMA likelihood has several tops, some where the two sides cancel."""
    signs = np.repeat([1, -1, 1, -1, 0], [orders.p, orders.q, orders.P, orders.Q, 1])
    first = np.concatenate([np.arange(n) == 0 for n in (orders.p, orders.q, orders.P, orders.Q)] + [np.zeros(1)])
    small = np.append(np.linspace(0.1, -0.1, orders.parameters - 1), 0.0)
    moving, opposed = np.where(signs < 0, 0.8, 0.3) * first, np.where(signs < 0, -0.3, -0.6) * first
    return [jnp.asarray(x, dtype) for x in (small, moving, opposed)]


def _best_of(each: list[Fitted]) -> Fitted:
    """Of several descents the highest, lane by lane."""
    value = np.stack([np.where(np.isfinite(one.log_likelihood), one.log_likelihood, -np.inf) for one in each])
    best = np.argmax(value, axis=0)

    def pick(*parts: np.ndarray) -> np.ndarray:
        return np.take_along_axis(np.stack(parts), np.broadcast_to(best, (1, *parts[0].shape)), axis=0)[0]

    return jax.tree.map(pick, *each)


def _selection(
    found: Fitted,
    lanes: list[_Lane],
    candidates: list[_Candidate],
    orders: Orders,
    panel: border.Panel,
    many: bool,
    key: Any,
    average: bool,
) -> Selection:
    count = np.array([lane.w.size for lane in lanes])[None, :]
    parameters = np.array([sum(c[:4]) + c.constant + 1 for c in candidates])[:, None]
    value = np.asarray(found.log_likelihood, float).T
    aicc = information_criterion("aicc", value, parameters, count)
    allowed = np.array([[not c.constant or lane.d + lane.D < 2 for lane in lanes] for c in candidates])
    sound = allowed & np.isfinite(value) & (np.asarray(found.edge).T < EDGE)
    aicc = np.where(sound, aicc, np.inf)
    best = np.min(aicc, axis=0)
    relative = np.where(np.isfinite(aicc), np.exp(-0.5 * (aicc - np.where(np.isfinite(best), best, 0))), 0)
    alone = (np.arange(len(candidates))[:, None] == np.argmin(aicc, axis=0)) * 1.0
    total = relative.sum(0)
    weights = np.where(total > 0, relative / np.where(total > 0, total, 1), alone) if average else alone
    names = [_name(c, None if many else lanes[0], orders.s) for c in candidates]
    figures = {
        "log_likelihood": value,
        "parameters": np.broadcast_to(parameters, value.shape) * 1.0,
        "aicc": aicc,
        "converged": np.asarray(found.found.converged).T * 1.0,
    }
    status = tuple(
        lane.trouble or ("ok" if np.isfinite(b) else "no candidate could be fitted")
        for lane, b in zip(lanes, best, strict=True)
    )

    def build(name: str, lane: int) -> ARIMA:
        return _model(found, lanes[lane], candidates[names.index(name)], orders, lane, names.index(name))

    def paths(key: Any, horizon: int, draws: int) -> np.ndarray:
        keys = jax.random.split(key, len(lanes))
        each = [
            np.full((draws, horizon), np.nan)
            if status[i] != "ok"
            else _paths(
                keys[i],
                np.asarray(panel.y)[:, i],
                lanes[i],
                found,
                candidates,
                weights[:, i],
                i,
                orders,
                horizon,
                draws,
            )
            for i in range(len(lanes))
        ]
        return np.stack(each, axis=-1)

    return Selection(tuple(names), figures, weights, status, paths, build, panel, many, key)


def _name(c: _Candidate, lane: _Lane | None, s: int) -> str:
    d, D = ("d", "D") if lane is None else (lane.d, lane.D)
    name = f"ARIMA({c.p},{d},{c.q})" + (f"({c.P},{D},{c.Q})[{s}]" if s > 1 else "")
    what = "constant" if lane is None or lane.d + lane.D > 1 else "drift" if lane.d + lane.D else "mean"
    return f"{name} with {what}" if c.constant else name


def _slope(lane: _Lane, s: int) -> float:
    """What a constant in the differences is divided by to be a slope of the level."""
    return float(s if lane.D else 1)


def _model(found: Fitted, lane: _Lane, c: _Candidate, orders: Orders, i: int, k: int) -> ARIMA:
    ar, ma, sar, sma = (np.asarray(x[:n, i, k], float) for x, n in zip(found.coefficients, (c[0], c[1], c[2], c[3]),
                                                                       strict=True))  # fmt: skip
    constant = float(found.constant[i, k]) if c.constant else 0.0
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
        scale=float(np.sqrt(found.sigma2[i, k])),
        mean=constant if level else 0.0,
        drift=0.0 if level else constant / _slope(lane, orders.s),
    )


def _paths(
    key: Any,
    y: np.ndarray,
    lane: _Lane,
    found: Fitted,
    candidates: list[_Candidate],
    weights: np.ndarray,
    i: int,
    orders: Orders,
    horizon: int,
    draws: int,
) -> np.ndarray:
    """Paths of one series: candidates by their weights, parameters by the curvature, then the future given both."""
    k_which, k_free, k_sigma, k_path = jax.random.split(key, 4)
    which = np.asarray(jax.random.choice(k_which, len(candidates), (draws,), p=jnp.asarray(weights)))
    normal = np.asarray(jax.random.normal(k_free, (draws, orders.parameters)), float)
    n = lane.w.size
    free, sigma2, unit = np.empty((draws, orders.parameters)), np.empty(draws), np.empty(draws)
    for k in np.unique(which):
        own = candidates[k].mask(orders)
        rows = which == k
        cost = float(found.found.cost[i, k])
        J = np.asarray(found.found.normal[:, :, i, k], float)[np.ix_(own, own)]
        e, V = np.linalg.eigh(J)
        # A direction that the data leave open is drawn no wider than the whole line of partial autocorrelations.
        spread = V * np.sqrt(cost / n / np.maximum(e, cost / n))
        step = np.zeros((rows.sum(), orders.parameters))
        step[:, own] = normal[rows][:, own] @ spread.T
        free[rows] = (np.asarray(found.found.x[:, i, k], float) * own) + step
        sigma2[rows] = n * float(found.sigma2[i, k]) / max(n - own.sum(), 1)
        unit[rows] = float(found.unit[i, k])
    degrees = np.maximum(n - np.array([candidates[k].mask(orders).sum() for k in which]), 1)
    chi2 = 2 * np.asarray(jax.random.gamma(k_sigma, jnp.asarray(degrees / 2.0)), float)
    sigma = np.sqrt(sigma2 * degrees / chi2)
    # The free constant counts from the mean of the differences, in units of their spread.
    base = np.array([candidates[k].constant for k in which]) * lane.w.mean()
    constant = np.where([candidates[k].constant for k in which], base + free[:, -1] * unit, 0.0)
    level = lane.d + lane.D == 0
    mean, drift = (constant, 0 * constant) if level else (0 * constant, constant / _slope(lane, orders.s))
    order = exact.Order(orders.p, lane.d, orders.q, orders.P, lane.D, orders.Q, orders.s)
    args = (jnp.asarray(x, y.dtype) for x in (y[lane.begin : lane.end], free, sigma, mean, drift))
    late = y.shape[0] - lane.end
    drawn = _futures(*args, jax.random.split(k_path, draws), orders, order, horizon + late)
    return np.asarray(drawn)[:, late:]


@partial(jax.jit, static_argnames=("orders", "order", "horizon"))
def _futures(
    y: Any, free: Any, sigma: Any, mean: Any, drift: Any, keys: Any, orders: Orders, order: exact.Order, horizon: int
) -> Any:
    n = y.shape[0]
    times = jnp.arange(1, n + horizon + 1, dtype=y.dtype)

    def one(free, sigma, mean, drift, key):
        c = jax.tree.map(lambda x: x[:, 0], unpack(free[:, None], orders)[0])
        line = mean + drift * times
        start = exact.last_state(y - line[:n], c, sigma, order)
        model, _ = exact.state_space(c, sigma, order)
        return LinearGaussian(model._replace(d=line[n:, None]), start, horizon).sample(key)

    return jax.vmap(one)(free, sigma, mean, drift, keys)
