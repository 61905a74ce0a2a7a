"""Vector autoregressions: least squares and statsmodels at a flat prior, the evidence, draws, forecasts, responses."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose
from scipy.stats import multivariate_t

import probkit as pk
from probkit.var import conjugate, gaps

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
A = np.array([[0.6, 0.3], [-0.2, 0.5]])


def simulated(length=200):
    y = np.zeros((length, 2))
    for t in range(1, length):
        y[t] = [1.0, -0.5] + A @ y[t - 1] + RNG.normal(size=2) @ np.array([[1.0, 0.5], [0.0, 0.8]])
    return y


Y = simulated()


@pytest.fixture(scope="module")
def flat():
    return pk.fit(pk.VAR(2, tightness=np.inf), Y * [1.0, 1e3] + [0.0, 1e5], key=KEY)


def test_flat_prior_is_least_squares(flat):
    y = np.asarray(Y * [1.0, 1e3] + [0.0, 1e5])
    rows = [np.concatenate([y[t - 1], y[t - 2], [1.0]]) for t in range(2, len(y))]
    expected, *_ = np.linalg.lstsq(np.array(rows), y[2:], rcond=None)
    error = flat.B.std(0) / np.sqrt(4000)
    assert (np.abs(flat.B.mean(0) - expected) < 5 * error).all()
    residual = y[2:] - np.array(rows) @ expected
    assert_allclose(flat.covariance.mean(0), residual.T @ residual / (len(residual) - 5), rtol=0.03)
    assert_allclose(flat.moduli().mean(), np.abs(np.linalg.eigvals(A)).max(), atol=0.1)


@pytest.mark.once
def test_series_that_tell_little():
    """A constant column harms nothing under a proper prior; a flat one needs more equations than coefficients."""
    few = np.stack([Y[:5, 0], np.full(5, 3.0)], axis=1)
    found = pk.fit(pk.VAR(2), few, key=KEY)
    assert np.isfinite(found.B).all() and np.isfinite(found.forecast(2).draws).all()
    spread = np.sqrt(found.covariance.mean(0)[0, 0]) / few[:, 0].std()
    assert 0.1 < spread < 10  # the fit of two lags to three equations is perfect, and means nothing
    with pytest.raises(ValueError, match="no proper posterior: 5 equations and 5 coefficients"):
        pk.fit(pk.VAR(2, tightness=np.inf), Y[:7], key=KEY)


def test_evidence_is_the_matrix_t_density():
    """For one series the data are multivariate t."""
    y = jnp.asarray(Y[:30, :1])
    Yt, Z = conjugate.lagged(y, 1)
    B0, precision = conjugate.minnesota(jnp.ones(1), 1, jnp.asarray(0.3), 1.0, 0.9, 2.0)
    whole = jax.jit(conjugate.posterior)(Yt, Z, B0, precision, jnp.eye(1) * 1.5, jnp.asarray(4.0))
    spread = np.eye(29) + np.asarray(Z) @ np.diag(1 / np.asarray(precision)) @ np.asarray(Z).T
    t = multivariate_t(np.asarray(Z @ B0)[:, 0], spread * 1.5 / 4.0, df=4.0)
    assert_allclose(whole.log_evidence, t.logpdf(np.asarray(Yt)[:, 0]), rtol=tol(1e-9, 1e-3))


@pytest.mark.once
def test_moments_of_draws():
    Yt, Z = conjugate.lagged(jnp.asarray(Y), 1)
    B0, precision = conjugate.minnesota(jnp.ones(2), 1, jnp.asarray(0.2), 1.0, 1.0, 1.0)
    law = jax.jit(conjugate.posterior)(Yt[:40], Z[:40], B0, precision, jnp.eye(2), jnp.asarray(5.0))
    B, L = jax.jit(jax.vmap(lambda key: conjugate.sample(key, law)))(jax.random.split(KEY, 8000))
    Sigma = np.einsum("sij,skj->sik", L, L)
    assert (np.triu(np.asarray(L[0]), 1) == 0).all()
    mean = np.asarray(law.S) / (float(law.df) - 3)
    assert_allclose(Sigma.mean(0), mean, rtol=0.05)
    assert_allclose(B.mean(0), law.B, atol=0.02)
    Omega = np.linalg.inv(np.asarray(law.root) @ np.asarray(law.root).T)
    spread = np.sqrt(np.outer(np.diag(Omega), np.diag(mean)))
    assert_allclose(B.std(0), spread, rtol=0.06)


def test_responses_and_forecasts_of_known_parameters():
    B = jnp.asarray(np.vstack([A.T, 0.1 * np.eye(2), [[1.0, 2.0]]]))
    moved = conjugate.moving_average(B, 5)
    companion = np.block([[A, 0.1 * np.eye(2)], [np.eye(2), np.zeros((2, 2))]])
    for h in range(5):
        assert_allclose(moved[h], np.linalg.matrix_power(companion, h)[:2, :2], rtol=tol(1e-10, 1e-5), atol=1e-7)
    past = np.array([[1.0, 2.0], [3.0, -1.0]])
    first = [1.0, 2.0] + A @ past[1] + 0.1 * past[0]
    second = [1.0, 2.0] + A @ first + 0.1 * past[1]
    assert_allclose(conjugate.path(B, jnp.asarray(past), jnp.zeros((2, 2))), [first, second], rtol=1e-6)


def test_missing_values_given_the_parameters_against_dense_algebra():
    """Moments of the drawn gaps, in the first times and in the middle, by conditioning a big normal."""
    B, L = np.vstack([A.T, [[0.3, 0.0], [0.0, -0.2]], [[0.1, -0.3]]]), np.array([[0.8, 0.0], [0.3, 0.5]])
    n = 6
    y = np.random.default_rng(4).normal(size=(n, 2))
    y[0, 1] = y[3] = y[4, 0] = np.nan
    # y = M (first, errors) + m, row by row; of the first two rows those that are seen are known.
    M, m = np.zeros((2 * n, 4 + 2 * n)), np.zeros(2 * n)
    seen = ~np.isnan(y.ravel())
    for i in range(4):
        M[i, i], m[i] = 1.0 - seen[i], np.where(seen[i], y.ravel()[i], 0.0)
    for t in range(2, n):
        here, back = slice(2 * t, 2 * t + 2), np.r_[2 * t - 2 : 2 * t, 2 * t - 4 : 2 * t - 2]
        M[here] = B[:4].T @ M[back]
        M[here, 4 + 2 * t : 6 + 2 * t] += L
        m[here] = B[:4].T @ m[back] + B[4]
    C = M @ M.T
    known = seen & (np.arange(2 * n) >= 4)
    gain = C[np.ix_(~seen, known)] @ np.linalg.inv(C[np.ix_(known, known)])
    mean = m[~seen] + gain @ (y.ravel() - m)[known]
    spread = np.sqrt(np.diag(C[np.ix_(~seen, ~seen)] - gain @ C[np.ix_(known, ~seen)]))
    given = jnp.asarray(y), jnp.asarray(B), jnp.asarray(L)
    draws = np.asarray(jax.jit(jax.vmap(lambda key: gaps.fill(key, *given)))(jax.random.split(KEY, 20_000)))
    drawn = draws.reshape(20_000, -1)
    assert_allclose(drawn[0, seen], y.ravel()[seen], rtol=1e-6)
    assert_allclose(drawn[:, ~seen].mean(0), mean, atol=6 * spread.max() / 140)
    assert_allclose(drawn[:, ~seen].std(0), spread, rtol=0.04)


def test_units_of_the_prior_where_values_are_missing():
    """A random walk's steps have variance 1 however much of it is missing; straight lines would have less."""
    y = np.random.default_rng(5).normal(size=(3000, 3)).cumsum(axis=0)
    y[::3, 1] = np.nan
    y[np.arange(3000) % 3 > 0, 2] = np.nan
    assert_allclose(gaps.residual_variances(y, 1), 1, rtol=0.15)
    assert_allclose(
        gaps.residual_variances(y, 1)[0], conjugate.residual_variances(jnp.asarray(y[:, :1]), 1)[0], rtol=1e-3
    )


@pytest.fixture(scope="module")
def gappy():
    y = Y[:80] * [1.0, 1e3] + [0.0, 1e5]
    y[[0, 20, 21, 79], 0] = np.nan
    y[40:45, 1] = np.nan
    return y, pk.fit(pk.VAR(1, draws=1200), y, key=KEY)


@pytest.mark.once
def test_series_with_gaps(gappy):
    y, found = gappy
    assert found.report.rung == "gibbs" and found.report.ess > 100
    whole = pk.fit(pk.VAR(1, draws=1200), Y[:80] * [1.0, 1e3] + [0.0, 1e5], key=KEY)
    assert (np.abs(found.B.mean(0) - whole.B.mean(0)) < 0.7 * whole.B.std(0)).all()
    filled = found.impute()
    assert_allclose(filled.draws[0, :, 1, 3], y[3, 1], rtol=1e-6)
    truth = (Y[:80] * [1.0, 1e3] + [0.0, 1e5]).T
    missing = np.isnan(y.T)
    assert (np.abs(filled.mean - truth)[missing] < 5 * filled.std[missing]).all() and (filled.std[missing] > 0).all()
    assert np.isfinite(found.forecast(2).mean).all()


@pytest.mark.slow
@pytest.mark.once
def test_gaps_are_calibrated():
    """Parameters from the prior, series from them, gaps: the truth ranks uniformly among the sampler's draws."""
    T, dtype = 20, jnp.result_type(float)
    B0, precision = conjugate.minnesota(jnp.ones(2, dtype), 1, jnp.asarray(0.3, dtype), 1.0, 0.5, 1.0)
    prior = conjugate.NormalInverseWishart(B0, jnp.diag(jnp.sqrt(precision)), 3 * jnp.eye(2, dtype=dtype),
                                           jnp.asarray(6.0, dtype), jnp.zeros((), dtype))  # fmt: skip

    def laws(x):
        one = conjugate.posterior(*conjugate.lagged(x, 1), B0, precision, prior.S, prior.df)
        return jax.tree.map(lambda a: a[None], one)

    def one(key):
        k_prior, k_first, k_path, k_gaps, k_fit = jax.random.split(key, 5)
        B, L = conjugate.sample(k_prior, prior)
        first = jax.random.normal(k_first, (1, 2), dtype)
        y = jnp.concatenate([first, conjugate.path(B, first, jax.random.normal(k_path, (T - 1, 2), dtype) @ L.T)])
        held = jnp.where(jax.random.uniform(k_gaps, y.shape) < 0.3, jnp.nan, y).at[5, 0].set(jnp.nan)
        found = gaps.sample(k_fit, held, jnp.nan_to_num(held), laws, jnp.zeros(1, dtype), (1, 100, 990))
        told = lambda B, L, y: jnp.stack([B[0, 0], B[1, 0], B[2, 1], L[0, 0], L[1, 0], y[5, 0]])
        drawn = jax.vmap(told)(found.B[0, ::10], found.L[0, ::10], found.y[0, ::10])
        return jnp.sum(drawn < told(B, L, y), axis=0)

    ranks = np.asarray(jax.jit(lambda keys: jax.lax.map(one, keys))(jax.random.split(KEY, 300)))
    result = pk.Calibration({"figures": ranks}, 99, np.ones(300, bool), ("gibbs",) * 300, "VAR")
    assert result.uniform(), result.table()


@pytest.mark.slow
def test_what_users_do(flat):
    ahead = flat.forecast(4)
    assert ahead.mean.shape == (2, 4) and list(ahead.lanes) == ["y1", "y2"]
    assert_allclose(ahead.mean, ahead.draws.mean((0, 1)), atol=6 * (ahead.std / np.sqrt(4000)).max())
    assert (np.diff(ahead.std, axis=1) > 0).all()
    answers = flat.impulse_responses(6)
    assert answers.mean.shape == (7, 2, 2) and (answers.draws[:, 0, 0, 1] == 0).all()
    low, high = answers.interval(90)
    assert (low <= answers.mean).all() and (answers.mean <= high).all()
    assert len(answers.to_frame()) == 28 and answers.plot().shape == (2, 2)
    shares = flat.variance_decomposition(5)
    assert_allclose(shares.sum(-1), 1.0, rtol=1e-5)
    assert flat.summary().shape == (10, 5)
    frame = pd.DataFrame(Y[:60], columns=["a", "b"], index=pd.period_range("2000-01", periods=60, freq="M"))
    mixed = pk.fit(pk.VAR(1, draws=200), frame, key=KEY)
    assert mixed.names == ["a", "b"] and len(np.unique(mixed.tightness)) > 3 and np.isfinite(mixed.log_evidence)
    assert str(mixed.forecast(2).labels[0]) == "2005-01"


@pytest.mark.slow
def test_against_statsmodels_on_the_economy():
    """Growth of output, consumption and investment: coefficients, orthogonal responses, forecasts."""
    from statsmodels.tsa.api import VAR

    table = pd.read_csv(shared("data/ts/statsmodels_macrodata.csv"))[["realgdp", "realcons", "realinv"]]
    y = np.log(table).diff().dropna().to_numpy()
    theirs = VAR(y).fit(2, trend="c")
    ours = pk.fit(pk.VAR(2, tightness=np.inf, draws=20000), y, key=KEY)
    expected = np.vstack([theirs.params[1:], theirs.params[:1]])
    assert (np.abs(ours.B.mean(0) - expected) < 0.05 * ours.B.std(0)).all()
    assert_allclose(ours.B.std(0)[:-1], theirs.bse[1:], rtol=0.1)
    assert_allclose(ours.forecast(1).mean[:, 0], theirs.forecast(y[-2:], 1)[0], atol=0.05 * y.std())
    gap = ours.impulse_responses(5).mean - theirs.irf(5).orth_irfs
    assert np.abs(gap).max() < 0.1 * np.abs(theirs.irf(5).orth_irfs).max()
    fits = {p: pk.fit(pk.VAR(p, draws=100, own_lag=0.0), y, key=KEY).log_evidence for p in (1, 2)}
    assert all(np.isfinite(v) for v in fits.values())


def test_wrong_arguments():
    with pytest.raises(ValueError, match="lags is 0"):
        pk.VAR(0)
    with pytest.raises(ValueError, match="tightness is -1"):
        pk.VAR(1, tightness=-1)
    with pytest.raises(ValueError, match="row 3, column 1"):
        pk.fit(pk.VAR(1), np.where(np.arange(20).reshape(10, 2) == 7, np.inf, 1.0), key=KEY)
    with pytest.raises(ValueError, match="no value in column 1"):
        pk.fit(pk.VAR(1), np.column_stack([np.ones(9), np.full(9, np.nan)]), key=KEY)
    with pytest.raises(ValueError, match="at least 5"):
        pk.fit(pk.VAR(3), Y[:4], key=KEY)
    with pytest.raises(ValueError, match="time, series"):
        pk.fit(pk.VAR(1), Y[:, 0], key=KEY)
