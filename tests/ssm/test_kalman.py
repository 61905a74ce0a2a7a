"""The general state space model, held against dense Gaussian algebra, autodiff, the level model and statsmodels."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose
from numpyro.infer.util import log_density as log_density_of

from probkit.ssm import kalman, level, smoother
from probkit.ssm.distribution import LinearGaussian
from probkit.ssm.recursions import forward, log_density
from probkit.ssm.statespace import (
    StateSpace,
    as_system,
    differenced_log_likelihood,
    diffuse_start,
    eliminate,
    factor,
    known_start,
    vague_log_likelihood,
)

RTOL = tol(1e-8, 5e-3)
NAN = np.nan
N = 9


@pytest.fixture(autouse=True)
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


def positive(rng, n, *time):
    X = rng.normal(size=(*time, n, n))
    return X @ np.swapaxes(X, -1, -2) / n + 0.3 * np.eye(n)


def case(name):
    """y, matrices and start of a small model, in float64."""
    rng = np.random.default_rng(3)
    if name == "trend":
        T = np.array([[1.0, 1.0], [0.0, 1.0]])
        model = StateSpace([[1.0, 0.0]], [[0.7]], T, np.eye(2), np.diag([0.4, 0.1]))
        y = rng.normal(size=N).cumsum()
        y[[0, 4]] = NAN
        return y, model, diffuse_start([1, 1])
    # Compilation grows with the shapes; those that float32 finds hard in small are the large ones.
    p, m, r = (3, 4, 2) if "moving" in name or name == "diffuse, gaps" else (2, 3, 2)
    time = (N,) if "moving" in name else ()
    T = 0.5 * rng.normal(size=(*time, m, m)) + 0.6 * np.eye(m)
    parts = rng.normal(size=(*time, p, m)), positive(rng, p, *time), T, rng.normal(size=(*time, m, r))
    model = StateSpace(*parts, positive(rng, r, *time), rng.normal(size=(*time, p)), rng.normal(size=(*time, m)))
    y = rng.normal(size=(N, p))
    a, P = rng.normal(size=m), positive(rng, m)
    if "gaps" in name:
        y[0, 1:] = y[1, 0] = y[2] = y[4, 1] = y[7, p - 1] = NAN
    start = diffuse_start([1, 0, 1, 1][:m], a, P) if "diffuse" in name else known_start(a, P)
    return y, model, start


CASES = ["trend", "known", "known, gaps", "moving, gaps", "diffuse", "diffuse, gaps", "moving, diffuse, gaps"]
every_case = pytest.mark.parametrize("name", CASES)


class Dense:
    """States and observations as one Gaussian vector (alpha_1 .. alpha_n, y_1 .. y_n); flat directions by kriging."""

    def __init__(self, y, model, start):
        y = y.reshape(len(y), -1)
        (n, p), m = y.shape, np.shape(model.Z)[-1]
        at = lambda x, t, rank: np.asarray(x)[t] if np.ndim(x) > rank else np.asarray(x)
        mean, A, effects, k = np.asarray(start.a), np.asarray(start.A), [], m + m * n + p * n
        means, maps, flats = [], [], []
        L = np.zeros((m, k))  # what the state is of (x, shocks, noise)
        L[:, :m] = np.eye(m)
        cov = np.zeros((k, k))
        cov[:m, :m] = start.P
        for t in range(n):
            means.append(mean), maps.append(L), flats.append(A)
            shock = slice(m + m * t, m + m * (t + 1))
            R, T = at(model.R, t, 2), at(model.T, t, 2)
            cov[shock, shock] = R @ at(model.Q, t, 2) @ R.T
            L, A, mean = T @ L, T @ A, T @ mean + at(model.c, t, 1)
            L[:, shock] += np.eye(m)
        for t in range(n):
            noise, Z = slice(m + m * n + p * t, m + m * n + p * (t + 1)), at(model.Z, t, 2)
            cov[noise, noise] = at(model.H, t, 2)
            effects.append(np.zeros((p, k)))
            effects[-1][:, noise] = np.eye(p)
            maps.append(Z @ maps[t] + effects[-1]), flats.append(Z @ flats[t])
            means.append(Z @ means[t] + at(model.d, t, 1))
        L = np.concatenate(maps)
        self.mean, self.X, self.cov = np.concatenate(means), np.concatenate(flats), L @ cov @ L.T
        self.states, self.y, self.shape = n * m, y.ravel(), (n, p, m)
        self.seen = np.flatnonzero(~np.isnan(self.y))

    def condition(self, i, seen):
        """Mean and covariance of the entries i given y at `seen`."""
        o = self.states + seen
        S, c, X = self.cov[np.ix_(o, o)], self.cov[np.ix_(i, o)], self.X[o]
        W = np.linalg.solve(S, c.T).T
        information = X.T @ np.linalg.solve(S, X)
        e = self.y[seen] - self.mean[o]
        delta = np.linalg.solve(information, X.T @ np.linalg.solve(S, e))
        left = self.X[i] - W @ X
        return self.mean[i] + W @ e + left @ delta, (
            self.cov[np.ix_(i, i)] - W @ c.T + left @ np.linalg.solve(information, left.T)
        )

    def log_likelihood(self):
        o = self.states + self.seen
        S, X, e = self.cov[np.ix_(o, o)], self.X[o], self.y[self.seen] - self.mean[o]
        information = X.T @ np.linalg.solve(S, X)
        e = e - X @ np.linalg.solve(information, X.T @ np.linalg.solve(S, e))
        det = np.linalg.slogdet(S)[1] + np.linalg.slogdet(information)[1]
        return -0.5 * (len(o) * np.log(2 * np.pi) + det + e @ np.linalg.solve(S, e))


@jax.jit
def undecorated(y, model, start):
    """The filter's value, left to autodiff. (It is the dense value, which another test shows.)"""
    f, e = forward(as_system(y, model, start))
    return log_density(f, e.seen)


def arrays(*tree):
    return jax.tree.map(lambda x: jnp.asarray(x, float), tree, is_leaf=lambda x: isinstance(x, list))


@every_case
def test_log_likelihood_is_the_dense_one(name):
    y, model, start = case(name)
    value = kalman.log_likelihood(y, model, start)
    assert value.shape == () and value.dtype == jnp.result_type(float)
    assert_allclose(value, Dense(y, model, start).log_likelihood(), rtol=RTOL)


@every_case
def test_states_and_left_out_entries_are_the_dense_ones(name):
    y, model, start = case(name)
    dense = Dense(y, model, start)
    n, p, m = dense.shape
    mean, variance = smoother.smooth(y, model, start)
    for t in range(n):
        expected = dense.condition(np.arange(t * m, t * m + m), dense.seen)
        assert_allclose(mean[t], expected[0], rtol=RTOL, atol=RTOL)
        assert_allclose(variance[t], expected[1], rtol=RTOL, atol=RTOL)
    mean, variance = smoother.leave_one_out(y, model, start)
    assert mean.shape == variance.shape == y.shape
    for i in range(n * p):
        expected = dense.condition(np.array([n * m + i]), dense.seen[dense.seen != i])
        assert_allclose(np.ravel(mean)[i], expected[0][0], rtol=RTOL, atol=RTOL)
        assert_allclose(np.ravel(variance)[i], expected[1][0, 0], rtol=RTOL, atol=RTOL)


def symmetric(gradient):
    """Of a variance only the symmetric part is told apart."""
    y, model, start = gradient
    half = lambda G: 0.5 * (G + jnp.swapaxes(G, -1, -2))
    return y, model._replace(H=half(model.H), Q=half(model.Q)), start._replace(P=half(start.P))


@pytest.mark.parametrize(
    "name", [pytest.param(c, marks=[] if c == "diffuse, gaps" else pytest.mark.once) for c in CASES]
)
def test_gradient_of_every_part_is_that_of_autodiff(name):
    y, model, start = arrays(*case(name))
    ours = symmetric(jax.jit(jax.grad(kalman.log_likelihood, argnums=(0, 1, 2)))(y, model, start))
    theirs = symmetric(jax.jit(jax.grad(undecorated, argnums=(0, 1, 2)))(y, model, start))
    theirs = (jnp.where(jnp.isnan(y), 0, theirs[0]), *theirs[1:])
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert_allclose(a, b, rtol=RTOL, atol=tol(1e-8, 2e-2))


@pytest.mark.slow
def test_the_rule_may_be_differentiated_once_more():
    y, model, start = arrays(*case("diffuse, gaps"))

    def of(f, p):
        scaled = model._replace(
            H=jnp.exp(p[0]) * model.H, Q=jnp.exp(p[1]) * model.Q, T=p[2] * model.T, Z=p[3] * model.Z
        )
        return f(y, scaled, start)

    p = jnp.array([0.1, -0.2, 0.9, 1.1])
    ours, theirs = (jax.jit(jax.hessian(lambda p, f=f: of(f, p)))(p) for f in (kalman.log_likelihood, undecorated))
    assert_allclose(ours, theirs, rtol=RTOL, atol=tol(1e-8, 0.2))


WALK = StateSpace([[1.0]], [[1.3]], [[1.0]], [[1.0]], [[0.4]])


@pytest.mark.parametrize("flat", [True, False], ids=["diffuse", "known"])
def test_the_local_level_is_the_level_model(flat):
    y = np.array([NAN, 1.2, 0.3, -0.4, NAN, 2.1, 1.7])
    start, theirs = (diffuse_start([1]), None) if flat else (known_start([0.5], [[2.0]]), (0.5, 2.0))
    assert_allclose(
        kalman.log_likelihood(y, WALK, start), level.log_likelihood(y, 1.3, 0.4, start=theirs), rtol=tol(1e-12, 1e-5)
    )
    a, b = smoother.leave_one_out(y, WALK, start), level.leave_one_out(y, 1.3, 0.4, start=theirs)
    assert_allclose(a, b, rtol=tol(1e-12, 1e-4), atol=tol(1e-12, 1e-5))
    mean, variance = smoother.smooth(y, WALK, start)
    assert_allclose((mean[:, 0], variance[:, 0, 0]), level.smooth(y, 1.3, 0.4, start=theirs), rtol=tol(1e-12, 1e-4))


def test_what_nothing_determines_is_not_a_number():
    one = np.array([NAN, 3.0, NAN])
    mean, variance = smoother.leave_one_out(one, WALK, diffuse_start([1]))
    assert_allclose(mean, [3, NAN, 3], rtol=RTOL)
    assert_allclose(variance, [1.3 + 1.3 + 0.4, NAN, 3.0], rtol=RTOL)
    mean, variance = smoother.smooth(NAN * one, WALK, diffuse_start([1]))
    assert np.isnan(mean).all() and np.isposinf(variance).all()
    assert kalman.log_likelihood(NAN * one, WALK, diffuse_start([1])) == 0
    # two observations of a trend: leaving out either leaves the other alone
    trend = case("trend")[1]
    mean, variance = smoother.leave_one_out(np.array([1.0, 2.0, NAN]), trend, diffuse_start([1, 1]))
    assert np.isnan(mean[:2]).all() and np.isfinite(mean[2])


@pytest.mark.parametrize("factor", [NAN, np.inf, -1.0])
def test_outside_the_sane_region_minus_infinity_without_slope(factor):
    y, model, start = arrays(*case("diffuse, gaps"))
    value, gradient = jax.value_and_grad(kalman.log_likelihood, argnums=(0, 1, 2))(
        y, model._replace(H=model.H * factor), start
    )
    assert value == -np.inf
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradient))


@pytest.mark.once
@pytest.mark.parametrize("axis", [0, 2])
def test_vmap_equals_loop_on_either_axis_and_a_bad_lane_stays_alone(axis):
    y, model, start = arrays(*case("diffuse, gaps"))
    lanes = jnp.stack([y, y.at[3].set(jnp.nan), y + 1, y], axis)
    H = jnp.array([1.0, 0.5, -40.0, 2.0])[:, None, None] * model.H[None]

    @jax.jit
    def run(y, H):
        changed = model._replace(H=H)
        return jax.value_and_grad(lambda m: kalman.log_likelihood(y, m, start))(changed)

    batched = jax.vmap(run, in_axes=(axis, 0))(lanes, H)
    for i in (0, 1, 3):
        single = run(jnp.take(lanes, i, axis), H[i])
        for whole, one in zip(jax.tree.leaves(batched), jax.tree.leaves(single), strict=True):
            assert_allclose(whole[i], one, rtol=tol(1e-10, 1e-2), atol=tol(1e-10, 1e-2))
    assert (np.asarray(batched[0]) == -np.inf).tolist() == [False, False, True, False]


@pytest.mark.once
def test_the_state_after_the_last_time_starts_the_future():
    y, model, start = case("diffuse, gaps")
    after = kalman.run_filter(y[:6], model, start).next
    parts = kalman.log_likelihood(y[:6], model, start) + kalman.log_likelihood(y[6:], model, after)
    assert_allclose(parts, kalman.log_likelihood(y, model, start), rtol=RTOL)
    dense = Dense(np.r_[y[:6], NAN * y[6:]], model, start)
    mean, variance = kalman.forecast(model, after, 3)
    _, p, m = dense.shape
    for t in range(3):
        expected = dense.condition(N * m + np.arange(p * (6 + t), p * (7 + t)), dense.seen)
        assert_allclose(mean[t], expected[0], rtol=RTOL, atol=RTOL)
        assert_allclose(variance[t], expected[1], rtol=RTOL, atol=RTOL)
    assert np.isposinf(np.diagonal(kalman.forecast(model, start, 2).variance, axis1=1, axis2=2)).all()


def long_season(n, rng):
    """A walk seen as a level and eleven harmonics of a season of 168: 23 flat states that few values tell apart."""
    angle = 2 * np.pi * np.outer(np.arange(n), np.arange(1, 12)) / 168
    Z = np.column_stack([np.ones(n), np.cos(angle), np.sin(angle)])[:, None]
    m = Z.shape[-1]
    model = StateSpace(Z, [[0.5]], np.eye(m), np.eye(m), 0.02 * np.eye(m))
    return rng.normal(size=n).cumsum(), model, diffuse_start(np.ones(m))


@pytest.mark.once
@pytest.mark.skipif(tol(0, 1) == 1, reason="float32 has no digits for a start that leaves float64 none")
def test_starts_that_are_ill_determined_against_dense_algebra():
    """Eleven harmonics of a long season, with large gains. States of many units give the value in any of them."""
    n, rng = 180, np.random.default_rng(8)
    y, model, start = long_season(n, rng)
    Z, m = model.Z, model.Z.shape[-1]
    C = 0.5 * np.eye(n) + 0.02 * np.minimum(np.arange(n)[:, None], np.arange(n)) * (Z[:, 0] @ Z[:, 0].T)
    L = np.linalg.cholesky(C)
    X, e = np.linalg.solve(L, Z[:, 0]), np.linalg.solve(L, y)
    r = e - X @ np.linalg.lstsq(X, e, rcond=None)[0]
    det = 2 * np.log(np.diag(L)).sum() + 2 * np.log(np.linalg.svd(X, compute_uv=False)).sum()
    expected = -0.5 * (n * np.log(2 * np.pi) + det + r @ r)
    units = 10.0 ** rng.uniform(-4, 4, m)
    other = model._replace(Z=Z * units, Q=np.diag(0.02 / units**2)), start._replace(A=np.diag(1 / units))
    run = jax.jit(lambda model, start: kalman.log_likelihood(y, model, start))
    assert_allclose([run(model, start), run(*other)], expected, atol=1e-4)
    twice = run(model, start._replace(A=2 * np.eye(m)))
    assert_allclose(expected - twice, m * np.log(2), atol=1e-4)


@pytest.mark.once
@pytest.mark.parametrize("name", ["diffuse, gaps", "trend"])
def test_draws_of_the_states_have_the_smoother_s_moments(name):
    y, model, start = case(name)
    draws = 20_000
    keys = jax.random.split(jax.random.key(0), draws)
    states = np.asarray(jax.jit(jax.vmap(lambda k: smoother.simulate_states(k, y, model, start)))(keys), np.float64)
    mean, variance = (np.asarray(x, np.float64) for x in smoother.smooth(y, model, start))
    sd = np.sqrt(np.diagonal(variance, axis1=1, axis2=2))
    assert (np.abs(states.mean(0) - mean) < 5 * sd / np.sqrt(draws) + 1e-4).all()
    e = states - states.mean(0)
    error = np.sqrt((sd[:, :, None] * sd[:, None, :]) ** 2 + variance**2) / np.sqrt(draws)
    assert (np.abs(np.einsum("sti,stj->tij", e, e) / draws - variance) < 5 * error + 1e-4).all()


@pytest.mark.once
def test_draws_after_an_ill_determined_start_have_the_smoother_s_spread():
    """Forty values of 23 flat states that begin vague: half of the spread is that of the start."""
    y, model, start = long_season(40, np.random.default_rng(8))
    draw = jax.jit(jax.vmap(lambda k: smoother.simulate_states(k, y, model, start)))
    states = np.asarray(draw(jax.random.split(jax.random.key(0), 1000)))
    sd = np.sqrt(np.diagonal(smoother.smooth(y, model, start).variance, axis1=1, axis2=2))
    assert_allclose(np.mean(states.std(0) / sd), 1.0, atol=0.05)


FLOAT64 = (-12970.876652, -17099.456327)  # of the same series, from this filter in float64


def test_float32_survives_a_long_series_and_six_orders_of_magnitude():
    n, m = 10_000, 13
    T = np.zeros((m, m))
    T[:2, :2], T[2, 2:], T[3:, 2:-1] = [[1, 1], [0, 1]], -1, np.eye(10)
    Z = np.zeros((1, m))
    Z[0, [0, 2]] = 1
    rng, t = np.random.default_rng(0), np.arange(n)
    y = 1e-3 * np.cumsum(rng.normal(size=n).cumsum()) + 10 * np.sin(t * np.pi / 6) + rng.normal(size=n)
    y[rng.random(n) < 0.1] = NAN
    y = y.astype(np.float32)

    @jax.jit
    def run(y, v):
        model = StateSpace(Z, v[:1, None], T, np.eye(m)[:, :3], jnp.diag(v[1:]))
        value = lambda v: kalman.log_likelihood(y, model._replace(H=v[:1, None], Q=jnp.diag(v[1:])), start)
        return *jax.value_and_grad(value)(v), smoother.smooth(y, model, start), smoother.leave_one_out(y, model, start)

    start = diffuse_start(np.ones(m))
    for v, expected in zip(([1.0, 1e-6, 1e-6, 1e-4], [1e-6, 1.0, 1e-3, 1e-6]), FLOAT64, strict=True):
        value, *rest = run(jnp.asarray(y, jnp.result_type(float)), jnp.asarray(v))
        assert_allclose(value, expected, rtol=tol(1e-8, 1e-3))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(rest))


def test_factors_without_lapack():
    S = positive(np.random.default_rng(0), 4, 3)
    S[1, 2], S[1, :, 2] = 0, 0
    C = factor(jnp.asarray(S))
    assert_allclose(C @ jnp.swapaxes(C, 1, 2), S, rtol=RTOL, atol=tol(1e-12, 1e-5))
    E, h = eliminate(jnp.asarray(S))
    assert_allclose(E @ S @ np.swapaxes(E, 1, 2), np.asarray(h)[:, :, None] * np.eye(4), atol=tol(1e-12, 1e-5))


def test_conversions_to_the_constants_of_others():
    y, start = np.array([1.2, 0.3, -0.4, 2.1, 1.7]), diffuse_start([1])
    value = kalman.log_likelihood(y, WALK, start)
    vague = kalman.log_likelihood(y, WALK, known_start([0.0], [[1e7]]))
    assert_allclose(vague_log_likelihood(value, 1, 1e7), vague, rtol=tol(1e-6, 1e-3))
    S = 0.4 * np.eye(4) + 1.3 * (2 * np.eye(4) - np.eye(4, k=1) - np.eye(4, k=-1))
    e = np.diff(y)
    differences = -0.5 * (4 * np.log(2 * np.pi) + np.linalg.slogdet(S)[1] + e @ np.linalg.solve(S, e))
    assert_allclose(differenced_log_likelihood(value, 1), differences, rtol=RTOL)
    assert_allclose(kalman.burned_log_likelihood(y, WALK, start), differences, rtol=RTOL)


def structural(entry, params, n, exog=None):
    """The matrices of an `UnobservedComponents` of statsmodels, from its specification."""
    spec, params = entry["spec"], dict(zip(entry["param_names"], params, strict=True))
    variance = lambda name: params.get(f"sigma2.{name}", 0.0)
    trend = spec["level"] in ("lltrend", "strend", "dtrend", "rwdrift")
    blocks = [(np.triu(np.ones((1 + trend,) * 2)), [1.0, 0.0], [variance("level"), variance("trend")], True, None)]
    if s := spec.get("seasonal"):
        T = np.eye(s - 1, k=-1)
        T[0] = -1
        blocks.append((T, [1.0], [variance("seasonal")], True, None))
    for season in spec.get("freq_seasonal", []):
        name = f"freq_seasonal_{season['period']}({season['harmonics']})"
        for j in range(1, season["harmonics"] + 1):
            blocks.append((rotation(2 * np.pi * j / season["period"]), [1.0, 0.0], [variance(name)] * 2, True, None))
    if "cycle" in spec:
        damping, v = params["damping.cycle"], variance("cycle")
        stationary = v / (1 - damping**2) * np.eye(2) if entry["init"] == "stationary_cycle" else None
        turn = damping * rotation(params["frequency.cycle"])
        blocks.append((turn, [1.0, 0.0], [v, v], stationary is None, stationary))
    if k := spec.get("autoregressive"):
        T, Q = np.eye(k, k=-1), np.zeros((k, k))
        T[0], Q[0, 0] = [params[f"ar.L{i + 1}"] for i in range(k)], variance("ar")
        P = np.linalg.solve(np.eye(k * k) - np.kron(T, T), Q.ravel()).reshape(k, k)
        blocks.append((T, [1.0], [variance("ar")], False, P))
    if exog is not None:
        blocks.append((np.eye(1), [0.0], [0.0], True, None))
    m = sum(len(T) for T, *_ in blocks)
    Z, T, Q, P, diffuse, i = np.zeros((1, m)), np.zeros((m, m)), np.zeros(m), np.zeros((m, m)), np.zeros(m), 0
    for block, sees, variances, flat, start in blocks:
        k, here = len(block), slice(i, i + len(block))
        T[here, here], Z[0, i : i + len(sees[:k])], Q[i : i + len(variances[:k])] = block, sees[:k], variances[:k]
        diffuse[here], i = flat, i + k
        if start is not None:
            P[here, here] = start
    if exog is not None:
        Z = np.broadcast_to(Z, (n, 1, m)).copy()
        Z[:, 0, -1] = exog
    return StateSpace(Z, [[variance("irregular")]], T, np.eye(m), np.diag(Q)), diffuse_start(diffuse, P=P)


def rotation(angle):
    return np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])


def read(meta, length):
    """A series of the shared data, filled up with missing values so that all share one program."""
    y = pd.read_csv(shared(f"data/ts/{meta['file']}"))["y"].to_numpy(float)
    return np.r_[np.log(y) if meta["log"] else y, np.full(length - len(y), NAN)]


TAKEN = (
    "Nile/strend", "Nile/rwdrift", "Nile/llevel+cycle/stationary", "Nile/dconstant+ar2", "Nile/llevel+step1899/diffuse",
    "LakeHuron/lltrend", "log_UKgas/lltrend+seasonal", "log_UKgas/lltrend+trig2", "log_UKgas/llevel+seasonal+ar1",
    "log_UKDriverDeaths/lltrend+seasonal", "statsmodels_co2_monthly/lltrend+seasonal",
    "statsmodels_co2_monthly/lltrend+trig6",
)  # fmt: skip


@pytest.mark.once
def test_statsmodels():
    figures = json.loads(shared("reference/statsmodels_uc.json").read_text())
    entries = [entry for entry in figures["uc"] if entry["id"] in TAKEN]
    assert len(entries) == len(TAKEN)
    for entry in entries:
        meta, fixed = figures["series"][entry["series"]], entry["fixed"]
        y = read(meta, 600)
        step = np.where(np.arange(600) >= 28, 1.0, 0.0) if "exog" in entry["spec"] else None
        for at in (fixed, *entry["fixed_more"], entry["mle"]):
            value = kalman.log_likelihood(y, *structural(entry, at["params"], 600, step))
            assert_allclose(value, at["loglike"], rtol=tol(1e-8, 2e-3), atol=tol(1e-8, 1e-2), err_msg=entry["id"])
        if tol(0, 1):  # what is subtracted below has few digits in float32
            continue
        model, start = structural(entry, fixed["params"], 600, step)
        mean, variance = (np.asarray(x)[fixed["smoothed_times"]] for x in smoother.smooth(y, model, start))
        for ours, theirs in ((mean, "smoothed_mean"), (np.diagonal(variance, axis1=1, axis2=2), "smoothed_var")):
            theirs = np.array(fixed[theirs], float)  # None, which is not identified, becomes NaN
            known = ~np.isnan(theirs)
            assert_allclose(ours[known], theirs[known], rtol=1e-6, atol=1e-8 * np.abs(theirs[known]).max())
        ahead = [np.asarray(x)[meta["n"] :][:8] for x in smoother.leave_one_out(y, model, start)]
        assert_allclose(ahead, [fixed["forecast_mean"], fixed["forecast_var"]], rtol=1e-8)


def law(name):
    y, model, start = arrays(*case(name))
    return y, LinearGaussian(model, start, N)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trend", "known, gaps"])
def test_the_distribution_is_a_thin_layer(name):
    y, p = law(name)
    assert (p.batch_shape, p.event_shape) == ((), y.shape)
    assert_allclose(p.log_prob(y), kalman.log_likelihood(y, p.model, p.start), rtol=RTOL)
    assert_allclose(p.log_prob(jnp.stack([y, y + 1]))[1], p.log_prob(y + 1), rtol=RTOL)
    mean, variance = smoother.leave_one_out(y, p.model, p.start)
    loo, fresh = p.leave_one_out(y), p.predict(y)
    assert_allclose((loo.mean, loo.variance), (mean, variance), rtol=tol(1e-12, 1e-4), atol=tol(1e-12, 1e-5))
    assert fresh.event_shape == y.shape and (np.asarray(fresh.variance) > 0).all()
    future = p.forecast(y, 4)
    assert isinstance(future, LinearGaussian) and future.length == 4
    longer = LinearGaussian(p.model, p.start, N + 4)
    more = jnp.ones((4, *y.shape[1:]))
    assert_allclose(future.log_prob(more), longer.log_prob(jnp.concatenate([y, more])) - p.log_prob(y), rtol=10 * RTOL)
    assert p.sample(jax.random.key(0), (2, 3)).shape == (2, 3, *y.shape)
    assert_allclose(jax.jit(lambda p, y: p.log_prob(y))(p, y), p.log_prob(y), rtol=RTOL)


def test_draws_have_the_moments_of_the_law():
    _, p = law("known")
    y = np.asarray(p.sample(jax.random.key(0), (20_000,)), np.float64)
    sd = np.sqrt(p.variance)
    assert (np.abs(y.mean(0) - p.mean) < 5 * sd / np.sqrt(20_000)).all()
    assert (np.abs(y.std(0) / sd - 1) < 5 / np.sqrt(40_000)).all()


def test_inside_a_numpyro_model():
    y, p = law("trend")

    def model(y):
        scale = numpyro.sample("scale", dist.HalfNormal(1.0))
        numpyro.sample("y", LinearGaussian(p.model._replace(H=scale * p.model.H), p.start, N), obs=y)

    value, _ = log_density_of(model, (y,), {}, {"scale": 1.0})
    assert_allclose(value, dist.HalfNormal(1.0).log_prob(1.0) + p.log_prob(y), rtol=RTOL)


def test_messages_name_the_argument():
    y, model, start = case("known")
    with pytest.raises(ValueError, match=r"T has shape \(2, 2\).* takes \(3, 3\)"):
        kalman.log_likelihood(y, model._replace(T=np.eye(2)), start)
    with pytest.raises(ValueError, match=r"start.P has shape"):
        kalman.log_likelihood(y, model, known_start(np.zeros(3), np.eye(2)))
    y, p = law("moving, gaps")
    with pytest.raises(ValueError, match="depends on time"):
        p.forecast(y, 2)
    with pytest.raises(ValueError, match="y has shape"):
        p.log_prob(y[:3])
    with pytest.raises(ValueError, match="X_new"):
        p.predict(y, X_new=y)
