"""Many series at once: every lane equals its single fit, a bad lane stays alone, and nothing is lost."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import count_compilations, tol
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.distributions import constraints
from toys import Line

import probkit as pk
from probkit.math.optimise import minimise, minimise_lanes

KEY = jax.random.key(7)
TIME, LANES = 60, 6
RNG = np.random.default_rng(3)
METHOD = pk.Auto(draws=500, starts=2)


def series():
    """Six random walks with noise, in very different units; one has gaps, one begins late, one is constant."""
    y = np.cumsum(RNG.normal(size=(TIME, LANES)), 0) + RNG.normal(size=(TIME, LANES))
    y *= np.array([1.0, 1e-3, 1e3, 1.0, 50.0, 1.0])
    y[10:13, 1], y[:20, 3], y[:, 5] = np.nan, np.nan, 3.0
    return y


Y = series()


@pytest.fixture(scope="module")
def fitted():
    return pk.fit(pk.LocalLevel(), Y, key=KEY, method=METHOD, progress=False)


def moments(draws):
    flat = np.log(draws).reshape(-1)
    return np.array([flat.mean(), flat.std()])


def test_every_lane_is_its_single_fit(fitted):
    assert len(fitted) == LANES and fitted.report.converged
    assert fitted.sites["level_scale"].shape == (1, 500, LANES)
    assert fitted.draws.level_scale.shape == (1, 500, LANES)
    for i in range(LANES):
        single = pk.fit(pk.LocalLevel(), Y[:, i], key=jax.random.key(100 + i), method=METHOD, progress=False)
        assert single.report.rung == "importance"
        assert_allclose(fitted.reports[i].log_density, single.report.log_density, atol=tol(1e-6, 1e-2))
        assert fitted.reports[i].notes == single.report.notes
        for name, draws in fitted.sites.items():
            lane, alone = moments(draws[:, :, i]), moments(single.sites[name])
            # Two means of 500 draws, of which some 400 count.
            assert_allclose(lane[0], alone[0], atol=5 * alone[1] * np.sqrt(2 / 400))
            assert_allclose(lane[1], alone[1], rtol=0.35)


def test_a_lane_is_a_posterior(fitted):
    lane = fitted[1]
    assert isinstance(lane, pk.Posterior)
    assert_array_equal(lane.sites["obs_scale"], fitted.sites["obs_scale"][:, :, 1])
    assert np.sum(lane.scored) == TIME - 3
    assert_allclose(lane.loo().elpd, fitted.loo()["elpd"][1], rtol=tol(1e-3, 1e-3))
    assert lane.summary().index.tolist() == list(fitted.sites)
    assert_array_equal(fitted[-1].sites["obs_scale"], fitted.sites["obs_scale"][:, :, 5])
    with pytest.raises(IndexError, match="lane is 6"):
        fitted[6]


@pytest.mark.once
def test_prediction_of_all_lanes(fitted):
    ahead = fitted.forecast(4)
    assert ahead.draws.shape == (1, 500, LANES, 4) and ahead.mean.shape == (LANES, 4)
    for i in range(LANES):
        alone = fitted[i].forecast(4)
        assert_allclose(ahead.mean[i], alone.mean, rtol=tol(1e-9, 1e-4))
        assert_allclose(ahead.interval(90)[:, i], alone.interval(90), rtol=tol(1e-9, 1e-4))
    frame = ahead.to_frame(level=[80])
    assert list(frame.columns) == ["lane", "time", "mean", "lo-80", "hi-80"]
    assert frame["lane"].tolist() == np.repeat(np.arange(LANES), 4).tolist()
    assert frame["time"].tolist()[:4] == [60, 61, 62, 63]
    truth = np.arange(24.0).reshape(4, LANES)
    scores = [fitted.forecast(4).score(truth)["mae"], np.mean(np.abs(truth.T - ahead.mean))]
    assert_allclose(*scores, rtol=1e-6)
    with pytest.raises(ValueError, match=r"y has shape \(6, 4\); \(4, 6\)"):
        ahead.score(truth.T)
    with pytest.raises(TypeError, match="posterior\\[i\\]"):
        ahead.plot()
    smooth = fitted.predict()
    assert_allclose(smooth.mean[2], fitted[2].predict().mean, rtol=tol(1e-9, 1e-4))


def test_loo_and_tables(fitted):
    table = fitted.loo()
    assert table["entries"].tolist() == [60, 57, 60, 40, 60, 60]
    assert (table["bad_k"] == 0).all() and (table["se"] >= 0).all()
    status = fitted.status()
    assert status["converged"].all() and (status["rung"] == "importance").all()
    summary = fitted.summary()
    assert_allclose(summary.loc[(2, "level_scale"), "mean"], fitted.sites["level_scale"][:, :, 2].mean())
    tree = fitted.to_arviz()
    assert tree["posterior"]["obs_scale"].dims == ("chain", "draw", "lane")
    assert tree["observed_data"]["y"].dims == ("time", "lane")


def test_new_data_compile_nothing(fitted):
    with count_compilations() as compiled:
        pk.fit(pk.LocalLevel(), Y[:, ::-1] + 1.0, key=jax.random.key(8), method=METHOD, progress=False)
    assert compiled.count == 0


@pytest.mark.once
def test_a_lane_that_cannot_be_fitted_stays_alone(fitted):
    y = Y.copy()
    y[:, 0], y[7, 4] = np.nan, np.inf
    spoilt = pk.fit(pk.LocalLevel(), y, key=KEY, method=METHOD, progress=False)
    assert not spoilt.report.converged and "2 did not converge: 0, 4" in spoilt.report.reason
    assert "all are NaN" in spoilt.reports[0].reason and "infinite at positions [7]" in spoilt.reports[4].reason
    for name, draws in spoilt.sites.items():
        assert np.isnan(draws[:, :, [0, 4]]).all()
        assert_array_equal(draws[:, :, [1, 2, 3, 5]], fitted.sites[name][:, :, [1, 2, 3, 5]])
    ahead = spoilt.forecast(2)
    assert np.isnan(ahead.mean[[0, 4]]).all() and np.isfinite(ahead.mean[[1, 2, 3, 5]]).all()
    assert np.isnan(ahead.quantile(0.1)[[0, 4]]).all()
    assert spoilt.loo()["elpd"].isna().tolist() == [True, False, False, False, True, False]


@pytest.mark.parametrize("method", [pk.MLE(starts=2), pk.NUTS(draws=20, warmup=30, chains=2)])
@pytest.mark.once
def test_other_methods(method):
    y = Y[:, [0, 2]]
    found = pk.fit(pk.LocalLevel(), y, key=KEY, method=method, progress=False)
    points = isinstance(method, pk.MLE | pk.MAP)
    assert found.sites["obs_scale"].shape == ((1, 1, 2) if points else (2, 20, 2))
    if points:
        single = pk.fit(pk.LocalLevel(), y[:, 1], key=KEY, method=method)
        assert_allclose(found.sites["obs_scale"][0, 0, 1], single.sites["obs_scale"][0, 0], rtol=tol(1e-6, 1e-2))
        one, other = found[1].outcome.standard_errors["obs_scale"], single.outcome.standard_errors["obs_scale"]
        assert_allclose(one, other, rtol=tol(1e-5, 1e-2))
        with pytest.raises(TypeError, match="loo needs draws"):
            found.loo()


@pytest.mark.slow
def test_lanes_together_find_what_lanes_in_turn_find(fitted, monkeypatch):
    """Elsewhere than on a CPU all lanes step at once; the same code runs here, told that this is elsewhere."""
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    found = pk.fit(pk.LocalLevel(), Y[:, 1:5], key=KEY, method=pk.Laplace(draws=500, starts=2), progress=False)
    for report, other in zip(found.reports, fitted.reports[1:5], strict=True):
        assert report.converged
        assert_allclose(report.log_density, other.log_density, atol=tol(1e-6, 1e-2))
    # The middle of lanes is the same within Monte Carlo error: some 400 draws count in each.
    one, other = np.log(found.sites["obs_scale"]), np.log(fitted.sites["obs_scale"][:, :, 1:5])
    assert_allclose(one.mean((0, 1)), other.mean((0, 1)), atol=5 * other.std((0, 1)).max() * np.sqrt(2 / 400))


@pytest.mark.once
def test_lists_of_series_and_their_names():
    index = pd.date_range("2020-01-31", periods=TIME, freq="ME", name="month")
    listed = [pd.Series(Y[:, i], index, name=name) for i, name in enumerate("ab")]
    found = pk.fit(pk.LocalLevel(), listed, key=KEY, method=pk.MAP(starts=1))
    frame = found.forecast(2).to_frame(level=[80])
    assert frame["lane"].tolist() == ["a", "a", "b", "b"]
    assert frame["month"].iloc[0] == pd.Timestamp("2025-01-31")
    assert found[1].series.name == "b"


@pytest.mark.once
def test_inputs_are_shared_and_a_model_without_priors_is_served():
    X = np.linspace(0.0, 1.0, 8)
    y = np.stack([1.0 + 2.0 * X, 5.0 - X], 1)
    line = Line(intercept=dist.Normal(0.0, 10.0), obs_scale=0.1)
    found = pk.fit(line, y, X, key=KEY, method=pk.Auto(draws=100, starts=1), progress=False)
    assert found.predict(X_new=[0.5, 0.6, 0.7]).mean.shape == (2, 3)
    fixed = pk.fit(pk.LocalLevel(level_scale=1.0, obs_scale=1.0), Y[:, :2], key=KEY)
    assert fixed.reports[0].rung == "fixed" and fixed.forecast(3).mean.shape == (2, 3)


class Half(pk.Model):
    """A density that importance sampling does not cover, in one lane alone: so that this lane climbs."""

    x: pk.Param = pk.param(
        support=constraints.positive,
        default=lambda self, y, X: dist.Gamma(jnp.where(y[0] > 0, 0.4, 30.0), 1.0).expand([20]).to_event(1),
    )

    def distribution(self, X, length):
        return dist.Normal(0.0, 1.0).expand([length]).to_event(1)


@pytest.mark.slow
def test_a_lane_climbs_alone():
    y = np.array([[-1.0, 1.0], [0.0, 0.0]])
    found = pk.fit(Half(), y, key=KEY, method=pk.Auto(draws=400, starts=1), progress=False)
    assert [r.rung for r in found.reports] == ["importance", "nuts"]
    assert "1 by importance, 1 by nuts" in found.report.reason
    assert_allclose(found.sites["x"].mean((0, 1, 3)), [30.0, 0.4], rtol=0.1)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([np.ones(3), np.ones(4)], "2 lengths"),
        (np.full((4, 2), np.nan), "None of the 2 series"),
        (np.ones((0, 2)), "no values"),
        (np.ones((2, 2, 2)), "shape"),
    ],
)
def test_bad_panels(y, message):
    with pytest.raises(ValueError, match=message):
        pk.fit(pk.LocalLevel(), y, key=KEY)


def test_text_is_refused():
    with pytest.raises(TypeError, match="series 1"):
        pk.fit(pk.LocalLevel(), [np.ones(2), np.array(["a", "b"])], key=KEY)


def test_saved_lanes_come_back(fitted, tmp_path):
    back = pk.load(pk.save(fitted, tmp_path / "lanes"))
    assert isinstance(back, pk.LanePosterior) and str(back.report) == str(fitted.report)
    assert [str(r) for r in back.reports] == [str(r) for r in fitted.reports]
    for name, draws in fitted.sites.items():
        assert_array_equal(back.sites[name], draws)
    assert_array_equal(back.forecast(3).draws, fitted.forecast(3).draws)


def test_lanes_are_compared_one_by_one(fitted):
    with pytest.raises(TypeError, match="LanePosterior"):
        pk.compare({"a": fitted, "b": fitted})


@pytest.mark.slow
def test_a_thousand_lanes_are_their_single_fits():
    """Issue: 1,000 series of length 120, 500 draws each, in one program; every twentieth is fitted alone as well."""
    rng = np.random.default_rng(8)
    walk = np.cumsum(rng.normal(size=(120, 1000)), axis=0)
    y = walk + rng.uniform(0.1, 5.0, 1000) * rng.normal(size=(120, 1000))
    method = pk.Auto(draws=500)
    found = pk.fit(pk.LocalLevel(), y, key=KEY, method=method, progress=False)
    assert found.report.converged and found.sites["obs_scale"].shape == (1, 500, 1000)
    gaps = []
    for i in range(0, 1000, 20):
        alone = pk.fit(pk.LocalLevel(), y[:, i], key=jax.random.key(i), method=method, progress=False)
        ess = min(500.0, found.reports[i].ess, alone.report.ess)
        for name, draws in found.sites.items():
            one, other = np.log(draws[:, :, i]), np.log(alone.sites[name])
            gaps.append((one.mean() - other.mean()) / (other.std() * np.sqrt(2 / ess)))
    # Standard normal, but for the few hundredths that resampling adds.
    assert np.abs(gaps).max() < 5 and 0.7 < np.std(gaps) < 1.4


# -- the batched descent ----------------------------------------------------------------------------------------------


def test_descents_in_a_batch_are_those_in_turn():
    """Seven hundred valleys, some a long way off: unfinished ones are gathered twice; one has no finite value."""
    centres = jnp.asarray(RNG.normal(size=(700, 2)))
    starts = jnp.where(jnp.arange(700)[:, None] % 50 == 0, 30.0, 0.5) * jnp.ones((700, 2))
    centres = centres.at[13].set(jnp.nan)

    def valley(centre, x):
        return jnp.sum(jnp.log1p((x - centre) ** 2)) + 0.1 * jnp.sum((x - centre) ** 2)

    together = jax.jit(lambda c, x: minimise_lanes(valley, c, x))(centres, starts)
    alone = jax.jit(lambda c, x: jax.lax.map(lambda a: minimise(lambda x: valley(a[0], x), a[1]), (c, x)))
    in_turn = alone(centres, starts)
    good = np.arange(700) != 13
    assert together.converged[good].all() and not together.converged[13]
    # A decrement of 1e-5, the tolerance in float32, is 0.003 away.
    assert_allclose(together.x[good], centres[good], atol=tol(1e-6, 5e-3))
    assert_allclose(together.x[good], in_turn.x[good], atol=tol(1e-6, 5e-3))
    assert (together.steps == in_turn.steps).mean() > tol(0.99, 0.8)
