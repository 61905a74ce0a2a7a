"""The level model, held against a textbook loop, dense Gaussian algebra, autodiff and statsmodels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose

from probkit.ssm.level import leave_one_out, log_likelihood, run_filter, smooth

RTOL = tol(1e-8, 2e-3)
NAN = np.nan
Y = np.array([1.2, 0.3, -0.4, 2.1, 1.7, 0.2, 3.3, 2.9, 4.0, 2.2, 3.1, 5.0])
GAPS = {
    "none": [],
    "inside": [4, 5, 8],
    "leading": [0, 1, 2],
    "trailing": [10, 11],
    "all kinds": [0, 1, 4, 6, 7, 11],
    "after the first": [0, 2, 3],
}
VARIANCES = {
    "local level": (1.3, 0.4, 0.0),
    "correlated": (0.7, 0.5, 0.3),
    "negative": (0.9, 0.6, -0.5),
    "theta 0.5": (1.2, 1.5**2 * 1.2, 1.5 * 1.2),
    "theta -0.6": (1.2, 0.4**2 * 1.2, 0.4 * 1.2),
    "no noise": (0.0, 0.7, 0.0),
}
STARTS = {"diffuse": None, "known": (0.5, 2.0)}

every_gap = pytest.mark.parametrize("gap", GAPS.values(), ids=GAPS)
every_variance = pytest.mark.parametrize("variances", VARIANCES.values(), ids=VARIANCES)
every_start = pytest.mark.parametrize("start", STARTS.values(), ids=STARTS)


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def series(gap=()):
    y = Y.copy()
    y[list(gap)] = NAN
    return y


def textbook(y, H, Q, C, start):
    """Log-likelihood as the book has it, one observation after the other."""
    total = 0.0
    for t in range(y.shape[0]):
        if bool(jnp.isnan(jax.lax.stop_gradient(y[t]))):
            start = start and (start[0], start[1] + Q)
        elif start is None:
            total, start = total - 0.5 * jnp.log(2 * jnp.pi), (y[t], H + Q - 2 * C)
        else:
            (a, P), F = start, start[1] + H
            total = total - 0.5 * (jnp.log(2 * jnp.pi) + jnp.log(F) + (y[t] - a) ** 2 / F)
            start = (a + (P + C) / F * (y[t] - a), P + Q - (P + C) ** 2 / F)
    return total


class Dense:
    """Levels and observations as one Gaussian vector (a_1 .. a_n, y_1 .. y_n), in float64; a flat start by kriging."""

    def __init__(self, n, H, Q, C, start):
        walk = np.tril(np.ones((n, n)), -1)
        eye, zero = np.eye(n), np.zeros((n, n))
        maps = np.block([[zero, walk], [eye, walk]])
        self.cov = maps @ np.block([[H * eye, C * eye], [C * eye, Q * eye]]) @ maps.T
        self.n, self.flat = n, start is None
        self.mean, variance = start or (0.0, 1.0)  # under a flat start neither makes a difference
        self.cov += variance

    def condition(self, i, y, seen):
        """Mean and variance of entry i given y at the times `seen`."""
        o = self.n + seen
        S, c = self.cov[np.ix_(o, o)], self.cov[i, o]
        weights, mean, variance = np.linalg.solve(S, c), self.mean, self.cov[i, i]
        if self.flat:
            ones = np.linalg.solve(S, np.ones(len(o)))
            mean, variance = ones @ y[seen] / ones.sum(), variance + (1 - ones @ c) ** 2 / ones.sum()
        return mean + weights @ (y[seen] - mean), variance - weights @ c

    def log_likelihood(self, y, seen):
        S = self.cov[np.ix_(self.n + seen, self.n + seen)]
        ones, mean, det = np.linalg.solve(S, np.ones(len(seen))), self.mean, np.linalg.slogdet(S)[1]
        if self.flat:
            mean, det = ones @ y[seen] / ones.sum(), det + np.log(ones.sum())
        r = y[seen] - mean
        return -0.5 * (len(seen) * np.log(2 * np.pi) + det + r @ np.linalg.solve(S, r))


def arrays(y, variances, start):
    return jax.tree.map(jnp.asarray, (y, *map(float, variances), start))


@every_gap
@every_variance
@every_start
def test_log_likelihood_is_the_textbook_s_and_the_dense_one(gap, variances, start):
    y = series(gap)
    value = log_likelihood(y, *variances, start)
    assert value.shape == () and value.dtype == jnp.result_type(float)
    assert_allclose(value, textbook(*arrays(y, variances, start)), rtol=RTOL)
    dense = Dense(len(y), *variances, start).log_likelihood(y, np.flatnonzero(~np.isnan(y)))
    assert_allclose(value, dense, rtol=RTOL)


@every_gap
@every_variance
@every_start
def test_leave_one_out_and_smoother_are_the_dense_ones(gap, variances, start):
    y = series(gap)
    model, seen = Dense(len(y), *variances, start), np.flatnonzero(~np.isnan(y))
    levels = [model.condition(t, y, seen) for t in range(len(y))]
    others = [model.condition(len(y) + t, y, seen[seen != t]) for t in range(len(y))]
    assert_allclose(np.array(smooth(y, *variances, start)).T, levels, rtol=RTOL, atol=RTOL)
    assert_allclose(np.array(leave_one_out(y, *variances, start)).T, others, rtol=RTOL, atol=RTOL)


@pytest.mark.once
@pytest.mark.parametrize("gap", [GAPS["all kinds"], GAPS["none"]], ids=["gaps", "none"])
@pytest.mark.parametrize("name", ["correlated", "theta 0.5"])
@every_start
def test_gradient_and_hessian_are_those_of_autodiff(gap, name, start):
    y, *rest = arrays(series(gap), VARIANCES[name], start)
    seen = ~jnp.isnan(y)

    def both(f):
        gradient = jax.grad(f, argnums=range(5))(y, *rest)
        hessian = jax.jacfwd(jax.grad(lambda p: f(y, *p)))((*rest,))
        return jax.tree.leaves((jnp.where(seen, gradient[0], 0), gradient[1:], hessian))

    ours, theirs = both(log_likelihood), both(textbook)
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert_allclose(a, b, rtol=RTOL, atol=tol(1e-8, 1e-2))


@every_start
def test_the_state_after_the_last_time_starts_the_future(start):
    y, future = series([1, 5]), np.array([4.0, NAN, 6.0])
    variances = VARIANCES["correlated"]
    state = run_filter(y, *variances, start).next
    together = log_likelihood(np.r_[y, future], *variances, start)
    parts = log_likelihood(y, *variances, start) + log_likelihood(future, *variances, state)
    assert_allclose(together, parts, rtol=RTOL)


def test_the_filter_shows_what_a_diffuse_start_knows():
    f = run_filter(series([0, 3]), 1.3, 0.4)
    assert np.isinf(f.P[:2]).all() and np.isfinite(f.P[2:]).all()
    assert_allclose(f.K[:4], [0, 1, (1.7 / 3.0), 0], rtol=RTOL)
    assert_allclose(f.v[:3], [0, 0, Y[2] - Y[1]], rtol=RTOL)
    assert (f.F_inverse == 0).tolist() == [True, True, False, True] + [False] * 8


def test_one_observation_and_none():
    one = np.full(5, NAN)
    one[2] = 3.0
    assert_allclose(log_likelihood(one, 1.3, 0.4), -0.5 * np.log(2 * np.pi), rtol=RTOL)
    mean, variance = leave_one_out(one, 1.3, 0.4)
    assert_allclose(mean, [3, 3, NAN, 3, 3], rtol=RTOL)
    assert_allclose(variance, [3.4, 3.0, NAN, 3.0, 3.4], rtol=RTOL)
    assert_allclose(smooth(one, 1.3, 0.4), [[3.0] * 5, [2.1, 1.7, 1.3, 1.7, 2.1]], rtol=RTOL)

    none = np.full(5, NAN)
    assert log_likelihood(none, 1.3, 0.4) == 0
    assert np.isnan(smooth(none, 1.3, 0.4)[0]).all() and np.isposinf(smooth(none, 1.3, 0.4)[1]).all()
    assert np.isposinf(run_filter(none, 1.3, 0.4).next[1])
    assert_allclose(smooth(none, 1.3, 0.4, start=(1.0, 0.0))[1], 0.4 * np.arange(5), rtol=RTOL)


@pytest.mark.parametrize(
    ("H", "Q", "factor"),
    [(-1.0, 0.1, 1.0), (0.0, 0.0, 1.0), (NAN, 0.4, 1.0), (1.3, np.inf, 1.0), (1.3, 0.4, 1e200), (1.3, 0.4, np.inf)],
)
def test_outside_the_sane_region_minus_infinity_without_slope(H, Q, factor):
    y, H, Q, _ = arrays(series([1]), (H, Q), None)
    value, gradient = jax.value_and_grad(log_likelihood, argnums=(0, 1, 2))(y * factor, H, Q)
    assert value == -np.inf
    assert all((np.asarray(g) == 0).all() for g in gradient)


@pytest.mark.parametrize("axis", [0, 1])
def test_vmap_equals_loop_on_either_axis_and_a_bad_lane_stays_alone(axis):
    lanes = np.stack([series(gap) for gap in GAPS.values()])
    H, Q = jnp.asarray(np.where(np.arange(len(lanes)) == 2, -5.0, 1.3)), jnp.asarray(0.4)
    run = jax.jit(lambda y, H, Q: (jax.value_and_grad(log_likelihood, 1)(y, H, Q), leave_one_out(y, H, Q)))
    batched = jax.vmap(run, in_axes=(axis, 0, None))(jnp.asarray(lanes if axis == 0 else lanes.T), H, Q)
    for i, y in enumerate(lanes):
        for whole, single in zip(jax.tree.leaves(batched), jax.tree.leaves(run(jnp.asarray(y), H[i], Q)), strict=True):
            assert_allclose(whole[i], single, rtol=tol(1e-12, 1e-4), atol=tol(1e-12, 1e-4))
    assert (np.asarray(batched[0][0]) == -np.inf).tolist() == [False, False, True, False, False, False]


@pytest.mark.once
def test_jit_equals_eager_and_integers_are_numbers():
    y = series([4])
    for f in (log_likelihood, smooth, leave_one_out):
        with jax.disable_jit():
            eager = f(y, 1, 2)
        jax.tree.map(lambda a, b: assert_allclose(a, b, rtol=tol(1e-12, 1e-5)), eager, f(y, 1.0, 2.0))
    assert log_likelihood(np.arange(5), 1, 2) == log_likelihood(np.arange(5.0), 1, 2)


def test_units_and_a_vague_start_keep_their_digits():
    y, unit = series([3]), 1e12  # 11 observed; the one that the flat start takes up does not scale
    scaled = log_likelihood(y * unit, 1.3 * unit**2, 0.4 * unit**2)
    assert_allclose(scaled, log_likelihood(y, 1.3, 0.4) - 10 * np.log(unit), rtol=tol(1e-10, 1e-5))
    assert_allclose(smooth(y * unit, 1.3 * unit**2, 0.4 * unit**2)[0] / unit, smooth(y, 1.3, 0.4)[0], RTOL)
    vague = smooth(y, 1.3, 0.4, start=(0.0, 1e7))
    assert_allclose(vague, smooth(y, 1.3, 0.4), rtol=tol(1e-6, 1e-3))
    value = log_likelihood(y, 1.3, 0.4, start=(0.0, 1e7)) + 0.5 * np.log(1e7)
    assert_allclose(value, log_likelihood(y, 1.3, 0.4), rtol=tol(1e-6, 1e-4))


def read(file, log=False, length=None):
    """A series of the shared data, filled up with missing values so that all share one program."""
    y = pd.read_csv(shared(f"data/ts/{file}"))["y"].to_numpy(float)
    return np.r_[np.log(y) if log else y, np.full((length or len(y)) - len(y), NAN)]


def test_nile():
    assert_allclose(log_likelihood(read("Nile.csv"), 15098.5, 1469.2), -633.4646, atol=tol(5e-5, 1e-2))


def test_statsmodels():
    figures = json.loads(shared("reference/statsmodels_uc.json").read_text())
    entries = [entry for entry in figures["uc"] if entry["spec"] == {"level": "llevel"} and entry["trusted"]]
    assert len(entries) >= 8
    for entry in entries:
        meta, fixed = figures["series"][entry["series"]], entry["fixed"]
        y = read(meta["file"], meta["log"], 600)
        for case in (fixed, *entry["fixed_more"], entry["mle"]):
            assert_allclose(log_likelihood(y, *case["params"]), case["loglike"], rtol=tol(1e-9, 1e-4))
        mean, variance = (np.asarray(x)[fixed["smoothed_times"]] for x in smooth(y, *fixed["params"]))
        assert_allclose(mean, np.ravel(fixed["smoothed_mean"]), rtol=tol(1e-9, 1e-4))
        assert_allclose(variance, np.ravel(fixed["smoothed_var"]), rtol=tol(1e-9, 2e-3))
        mean, variance = (np.asarray(x)[meta["n"] :][:8] for x in leave_one_out(y, *fixed["params"]))
        assert_allclose(mean, fixed["forecast_mean"], rtol=tol(1e-9, 1e-4))
        assert_allclose(variance, fixed["forecast_var"], rtol=tol(1e-9, 2e-3))
