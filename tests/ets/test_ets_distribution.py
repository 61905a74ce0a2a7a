"""The law of a series: exact with gaps and leave-one-out by dense algebra, moments by draws, its twin ARIMA."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from scipy.stats import multivariate_normal
from scipy.stats import t as student_t

import probkit as pk
from probkit.ets.distribution import ETSDistribution, SESDistribution
from probkit.ets.linear import inverse_weights, psi_weights
from probkit.ets.recursions import Form, Weights, run
from probkit.ets.seasonal_distribution import SeasonalFactors, mean_one

N, M = 14, 4
WEIGHTS = {"alpha": 0.4, "beta": 0.15, "gamma": 0.3, "phi": 0.9}
Y = 20 + 0.5 * np.arange(N) + np.tile([1.0, -2.0, 3.0, -1.0], 4)[:N] + np.random.default_rng(0).normal(size=N)
GAPS = Y.copy()
GAPS[[4, 5, 9, 13]] = np.nan


def law_of(name, length=N, **changed):
    form = Form.parse(name)
    given = {"level": 20.0, "slope": 1.02 if form.trend == "M" else 0.4, "scale": 0.05 if form.error == "M" else 1.2}
    if form.season != "N":
        given["seasonal"] = [1.05, 0.9, 1.1, 0.95] if form.season == "M" else [1.0, -2.0, 3.0, -2.0]
    return ETSDistribution(form, **WEIGHTS, **given | changed, length=length)


def dense(law, n):
    """Mean and covariance of y of a Gaussian form, from the responses to single errors by a plain loop."""
    w, form = law.weights, law.form
    phi = float(w.phi) if form.damped else 1.0

    def path(errors):
        l, b, s, out = (
            float(law.level),
            float(law.slope) * (form.trend == "A"),
            np.array(law.seasonal, float).ravel(),
            [],
        )
        s = s.copy() if form.season == "A" else np.zeros(1)
        for t, e in enumerate(errors):
            mean = l + phi * b + s[t % len(s)]
            out.append(mean + e)
            l, b = l + phi * b + float(w.alpha) * e, phi * b + float(w.beta) * e * (form.trend == "A")
            s[t % len(s)] += float(w.gamma) * e * (form.season == "A")
        return np.array(out)

    mean = path(np.zeros(n))
    psi = np.stack([path(np.eye(n)[i]) - mean for i in range(n)], 1)
    return mean, float(law.scale) ** 2 * psi @ psi.T


@pytest.mark.once
@pytest.mark.parametrize("name", ["ANN", "AAdN", "AAA"])
def test_gaussian_forms_are_multivariate_normal(name):
    """Density, leave-one-out and forecasts, with and without missing values, against dense algebra."""
    law = law_of(name)
    mean, cov = dense(law, N + 5)

    @jax.jit
    def ours(y):
        left, ahead, again = law.leave_one_out(y), law.forecast(y, 5), law.predict(y)
        return law.log_prob(y), left.mean, left.variance, ahead.mean, ahead.variance, again.mean, again.variance

    for y in (Y, GAPS):
        value, m, V, ahead, spread, fresh, fresh_V = ours(jnp.asarray(y, float))
        seen = np.flatnonzero(~np.isnan(y))
        theirs = multivariate_normal(mean[seen], cov[np.ix_(seen, seen)]).logpdf(y[seen])
        assert_allclose(value, theirs, rtol=tol(1e-9, 1e-4))
        for i in range(N):
            rest = np.setdiff1d(seen, [i])
            gain = cov[i, rest] @ np.linalg.inv(cov[np.ix_(rest, rest)])
            assert_allclose(m[i], mean[i] + gain @ (y[rest] - mean[rest]), rtol=tol(1e-8, 1e-3))
            assert_allclose(V[i], cov[i, i] - gain @ cov[rest, i], rtol=tol(1e-8, 1e-3))
        gain = cov[N:][:, seen] @ np.linalg.inv(cov[np.ix_(seen, seen)])
        assert_allclose(ahead, mean[N:] + gain @ (y[seen] - mean[seen]), rtol=tol(1e-8, 1e-3))
        assert_allclose(spread, np.diagonal(cov[N:, N:] - gain @ cov[seen][:, N:]), rtol=tol(1e-7, 2e-3))
        if len(seen) == N:
            assert_allclose(fresh_V, float(law.scale) ** 2, rtol=tol(1e-12, 1e-6))
        else:  # what was not seen has the law given all others; a fresh one has at least its error
            gone = np.isnan(y)
            assert_allclose(fresh[gone], m[gone], rtol=tol(1e-7, 1e-3))
            assert_allclose(fresh_V[gone], V[gone], rtol=tol(1e-6, 1e-2))
            assert (fresh_V[~gone] >= float(law.scale) ** 2 * (1 - tol(1e-9, 1e-3))).all()


@pytest.mark.once
def test_a_forecast_after_gaps_is_a_joint_law():
    law = law_of("AAA").forecast(jnp.asarray(GAPS, float), 5)
    draws = law.sample(jax.random.key(0), (20_000,))
    assert_allclose(draws.mean(0), law.mean, atol=4 * float(law.variance.max()) ** 0.5 / 20_000**0.5)
    assert_allclose(draws.var(0), law.variance, rtol=0.06)
    far = law.log_prob(jnp.stack([law.mean, law.mean + 3.0]))
    joint = multivariate_normal(np.asarray(law.mean, float), np.cov(np.asarray(draws, float).T))
    assert_allclose(far, [joint.logpdf(law.mean), joint.logpdf(law.mean + 3.0)], atol=0.1)


@pytest.mark.parametrize("name", ["MNN", "MAdA"])
def test_variance_of_multiplicative_errors(name):
    law = law_of(name, 9)
    draws = np.asarray(law.sample(jax.random.key(1), (40_000,)), float)
    assert_allclose(draws.mean(0), law.mean, rtol=5e-3)
    assert_allclose(draws.var(0), law.variance, rtol=0.06)


def test_draws_stay_positive_and_finite():
    for name in ("MMdM", "AAM", "MAM"):
        law = law_of(name, 60, scale=3.0 if name == "AAM" else 0.6)
        draws = np.asarray(law.sample(jax.random.key(2), (200,)))
        assert np.isfinite(draws).all()
    assert (law_of("MMdM", 60, scale=0.6).sample(jax.random.key(3), (200,)) > 0).all()


def test_impulse_responses_are_inverse():
    form, w = Form.parse("AAdA"), Weights(0.4, 0.15, 0.3, 0.9)
    psi, a = (np.asarray(f(form, w, M, 12), float) for f in (psi_weights, inverse_weights))
    j = np.arange(1, 12)
    c = 0.4 + 0.15 * np.cumsum(0.9**j) + 0.3 * (j % M == 0)
    assert_allclose(psi, np.append(1.0, c), rtol=tol(1e-12, 1e-5))
    assert_allclose(np.convolve(psi, a)[:12], np.eye(12)[0], atol=tol(1e-12, 1e-5))


@pytest.mark.parametrize("y", [Y, GAPS], ids=["complete", "gaps"])
def test_ses_is_arima(y):
    """A starting level under a flat prior: SES(alpha, s) = ARIMA(0,1,1) with ma = alpha - 1."""
    models = pk.SES(alpha=0.3, scale=1.5), pk.ARIMA(0, 1, 1, ma=[-0.7], scale=1.5)
    assert isinstance(models[0].distribution(None, 4), SESDistribution)

    @jax.jit
    def both(y):
        ask = lambda m: (m.log_likelihood(y), m.loo(y), m.forecast(y, 3).variance)
        return [ask(pk.model.strong(model, y.dtype)) for model in models]

    for ours, theirs in zip(*both(jnp.asarray(y, float)), strict=True):
        assert_allclose(ours, theirs, rtol=tol(1e-10, 1e-4))


def test_ses_is_ets_with_its_level_integrated_out():
    y, levels = jnp.asarray(Y, float), jnp.linspace(5.0, 35.0, 2001)
    each = jax.vmap(lambda l: ETSDistribution("ANN", alpha=0.3, level=l, scale=1.5, length=N).log_prob(y))(levels)
    # The flat start counts -log(2 pi)/2 for its first observation, as `probkit.ssm.level` says.
    whole = jax.scipy.special.logsumexp(each) + jnp.log(levels[1] - levels[0]) - 0.5 * jnp.log(2 * jnp.pi)
    assert_allclose(SESDistribution(0.3, 1.5, N).log_prob(y), whole, rtol=tol(1e-7, 1e-4))


def test_seasonal_factors():
    law = SeasonalFactors(jnp.asarray(0.2, float), 5)
    draws = law.sample(jax.random.key(0), (20_000,))
    assert_allclose(draws.mean(-1), 1.0, rtol=tol(1e-12, 1e-5))
    assert_allclose(draws.var(0), law.variance, rtol=0.06)
    from numpyro.distributions import biject_to

    to = biject_to(mean_one)
    x = jnp.asarray([0.1, -0.2, 0.3, 0.05], float)
    factors = to(x)
    assert mean_one(factors) and not mean_one(factors + 1)
    assert_allclose(to.inv(factors), x, rtol=tol(1e-10, 1e-4))
    assert_allclose(
        law.log_prob(factors),
        np.sum(-0.5 * (x / 0.2) ** 2 - np.log(0.2) - 0.5 * np.log(2 * np.pi)),
        rtol=tol(1e-10, 1e-4),
    )


def test_what_is_refused():
    with pytest.raises(ValueError, match="level has shape"):
        law_of("ANN", level=[1.0, 2.0])
    with pytest.raises(ValueError, match="no exponential smoothing model"):
        ETSDistribution("AXN", alpha=0.1, level=1.0, scale=1.0, length=3)
    with pytest.raises(TypeError, match="kfold"):
        law_of("MNN").leave_one_out(jnp.asarray(Y))
    with pytest.raises(NotImplementedError, match="closed form"):
        law_of("MAM").variance  # noqa: B018
    with pytest.raises(ValueError, match="no inputs"):
        law_of("ANN").forecast(jnp.asarray(Y), 3, jnp.ones((3, 1)))


@pytest.mark.once
@pytest.mark.parametrize("name", ["AAdN", "MAM"])
def test_student_t_errors(name):
    """Density by a plain sum over the one-step errors, spread by draws, a large df near the normal law, no shortcut."""
    law, normal = law_of(name, df=5.0), law_of(name)
    y = np.where(np.isnan(GAPS), np.nan, np.abs(GAPS))
    found = run(law.form, jnp.asarray(y, float), law.weights, law.start)
    mean, seen = np.asarray(found.mean, float), ~np.isnan(y)
    scale = 1.2 * np.ones(N) if name == "AAdN" else 0.05 * mean
    theirs = student_t.logpdf(y[seen], 5.0, mean[seen], scale[seen]).sum()
    assert_allclose(law.log_prob(jnp.asarray(y)), theirs, rtol=tol(1e-10, 1e-4))
    assert_allclose(law.predict(jnp.asarray(y)).variance, scale**2 * 5 / 3, rtol=tol(1e-10, 1e-4))
    assert not law.normal_marginals
    assert law.forecast(jnp.asarray(y), 3).df == 5.0
    with pytest.raises(TypeError, match="Student-t errors has no leave-one-out terms"):
        law.leave_one_out(jnp.asarray(y))
    complete = jnp.asarray(np.abs(Y))
    assert_allclose(law_of(name, df=1e6).log_prob(complete), normal.log_prob(complete), rtol=1e-3)
    draws = np.asarray(law.sample(jax.random.key(0), (20_000,)), float)[:, 0]
    first = float(scale[0] if name == "AAdN" else 0.05 * mean[0])
    assert_allclose(draws.std(), first * np.sqrt(5 / 3), rtol=0.06)  # kurtosis 9: sd of the ratio 0.01
    if name == "AAdN":
        assert_allclose(law.variance, normal.variance * 5 / 3, rtol=tol(1e-10, 1e-5))
        assert np.isinf(law_of(name, df=1.5).variance).all()


@pytest.mark.slow
def test_an_outlier_says_less_under_student_t_errors():
    y = np.array(pk.datasets.nile())
    y[40] += 3000
    scale = {}
    for name, df in (("normal", None), ("student", 3.0)):
        model = pk.ETS("ANN", alpha=0.2, level=1100.0, df=df)
        scale[name] = float(pk.fit(model, y, method=pk.MAP(), key=jax.random.key(0)).sites["scale"].squeeze())
    assert scale["student"] < 0.6 * scale["normal"]
