"""Several series together: dense algebra, sums of single series, statsmodels' dynamic factors, what users do."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose
from scipy.stats import norm

import probkit as pk
from probkit.infer.target import Target
from probkit.model import strong
from probkit.ssm import several
from probkit.ssm.parts import Component
from probkit.ssm.several_distribution import Correlations, Loadings

KEY = jax.random.key(0)
N = 16
RNG = np.random.default_rng(0)
X = RNG.normal(size=N)
Y = RNG.normal(size=(N, 2)).cumsum(axis=0) * [1.0, 100.0] + [5.0, 1e4]
Y[[0, 1, 7], 0] = np.nan
Y[[3, 7, 8], 1] = np.nan
S = np.array([[0.5, 0.2], [0.2, 0.3]])
H = np.array([[0.4, -0.1], [-0.1, 0.2]])
in_double = pytest.mark.skipif(tol(0, 1) == 1, reason="figures to six digits and more are for float64")


def scales_and_correlation(C):
    s = np.sqrt(np.diag(C))
    return s, C / np.outer(s, s)


def parts(level, slope, season, **noise):
    return pk.LocalLinearTrend(level, slope, **noise) + pk.Seasonal(3, season) + pk.Regression()


@pytest.fixture(scope="module")
def apart():
    """Two series without correlations, together and each by itself, by one program."""
    scales = np.array([[0.3, 0.1, 0.2, 0.5], [30.0, 5.0, 10.0, 40.0]])
    ahead = jnp.asarray([[0.5], [1.0]])

    @jax.jit
    def run(y, x, scales):
        whole = pk.MultivariateStructural(parts(*scales.T[:3]), obs_scale=scales.T[3], correlations=())
        alone = [parts(*one[:3]) for one in scales]
        alone = [pk.Structural(m.parts(), one[3]) for m, one in zip(alone, scales, strict=True)]

        def together(m, y):
            return m.log_likelihood(y, x), m.leave_one_out(y, x), m.predict(y, x), m.forecast(y, 2, x, ahead)

        def told(m, y):
            value, left, again, after = together(m, y)
            return value, left.mean, left.variance, again.mean, again.variance, after.mean, after.variance

        each = [told(m, y[:, i]) for i, m in enumerate(alone)]
        forms = [{k: v[:2] for k, v in m.decompose(y[:, i], x, KEY).items()} for i, m in enumerate(alone)]
        joint = {k: v[:2] for k, v in whole.decompose(y, x, KEY).items()}
        return told(whole, y), each, joint, forms

    return jax.device_get(run(jnp.asarray(Y), jnp.asarray(X)[:, None], jnp.asarray(scales)))


@pytest.mark.slow
@in_double
def test_uncorrelated_series_are_those_of_single_models(apart):
    together, each, joint, forms = apart
    assert_allclose(together[0], each[0][0] + each[1][0], rtol=1e-9)
    for ours, *theirs in zip(together[1:], *(one[1:] for one in each), strict=True):
        assert_allclose(ours, np.stack(theirs, axis=1), rtol=1e-7)
    for name, (mean, sd) in joint.items():
        for i in (0, 1):
            assert_allclose(mean[:, i], forms[i][name][0], rtol=1e-7, atol=1e-9, err_msg=name)
            assert_allclose(sd[:, i], forms[i][name][1], rtol=1e-5, atol=1e-7, err_msg=name)


def dense_log_likelihood(y, S, H):
    """Local levels by their covariance matrix, starting levels integrated out under a flat prior."""
    n, p = y.shape
    walk = np.minimum(np.arange(n)[:, None], np.arange(n))
    C = np.kron(walk, S) + np.kron(np.eye(n), H)
    flat = np.kron(np.ones((n, 1)), np.eye(p))
    seen = ~np.isnan(y.ravel())
    v, C, A = y.ravel()[seen], C[np.ix_(seen, seen)], flat[seen]
    inverse = np.linalg.inv(C)
    middle = A.T @ inverse @ A
    r = v - A @ np.linalg.solve(middle, A.T @ inverse @ v)
    det = np.linalg.slogdet(C)[1] + np.linalg.slogdet(middle)[1]
    # One power of 2 pi for each entry, flat ones included, as `kalman.log_likelihood` counts.
    return -0.5 * (len(v) * np.log(2 * np.pi) + det + r @ inverse @ r)


@pytest.mark.once
def test_correlated_and_common_levels_against_dense_algebra():
    y = Y / [1.0, 100.0] - [0.0, 100.0]
    (s, R), (h, K) = scales_and_correlation(S), scales_and_correlation(H)
    load = np.array([0.7, -0.4])

    def correlated(s):
        return pk.MultivariateStructural(
            pk.LocalLevel(s), obs_scale=h, correlations={"level": R, "noise": K}
        ).log_likelihood(jnp.asarray(y))

    def common(free):
        m = pk.MultivariateStructural(pk.LocalLevel(), obs_scale=h, correlations={"noise": K}, common={"level": 1})
        return pk.bind(m, {}) if free is None else set_loadings(m, free).log_likelihood(jnp.asarray(y))

    def set_loadings(m, free):
        object.__setattr__(m, "loadings", {"level": free})
        return m

    values, slope = jax.jit(lambda s, a: ((correlated(s), common(a)), jax.grad(correlated)(s)))(
        jnp.asarray(s), jnp.asarray(load)
    )
    assert_allclose(values[0], dense_log_likelihood(y, S, H), rtol=tol(1e-9, 1e-4))
    assert_allclose(values[1], dense_log_likelihood(y, np.outer(load, load), H), rtol=tol(1e-9, 1e-4))
    for i, e in enumerate(1e-5 * np.eye(2)):
        S_of = lambda s: np.outer(s, s) * R
        numeric = dense_log_likelihood(y, S_of(s + e), H) - dense_log_likelihood(y, S_of(s - e), H)
        assert_allclose(slope[i], numeric / 2e-5, rtol=tol(1e-5, 1e-2))


@pytest.mark.once
def test_law_of_correlations_is_lkj():
    """Against NumPyro's law of the Cholesky factor, by the Jacobian of the map."""
    ours, theirs = Correlations(3, 1.7), dist.LKJCholesky(3, 1.7)
    entries = lambda z: several.correlation_factor(z, 3)[jnp.tril_indices(3, -1)]

    @jax.jit
    def run(key):
        z = ours.sample(key)
        L = several.correlation_factor(z, 3)
        return z, L, ours.log_prob(z), theirs.log_prob(L), jax.jacobian(entries)(z)

    z, L, value, expected, jacobian = run(KEY)
    assert_allclose(value, expected + np.linalg.slogdet(jacobian)[1], rtol=tol(1e-9, 1e-4))
    assert_allclose(several.partial_correlations(np.asarray(L @ L.T, float)), z, rtol=tol(1e-9, 1e-3), atol=1e-6)
    with pytest.raises(ValueError, match="size is 1"):
        Correlations(1)


@pytest.mark.once
def test_law_of_loadings():
    law = Loadings(jnp.array([1.0, 2.0, 3.0]), 2)
    to = dist.biject_to(law.support)

    @jax.jit
    def run(key):
        draw = law.sample(key, (4,))
        u = to.inv(draw)
        both = to.log_abs_det_jacobian(u, draw), jax.vmap(jax.jacobian(to))(u)
        return draw, several.loading_matrix(draw, 3, 2), to(u), both, law.log_prob(draw), law.support(-draw)

    draw, matrix, again, (volume, jacobian), value, outside = run(KEY)
    assert (matrix[:, 0, 1] == 0).all() and (matrix[:, 0, 0] > 0).all() and (matrix[:, 1, 1] > 0).all()
    assert_allclose(again, draw, rtol=1e-5)
    assert_allclose(volume, np.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-6)
    alone = norm.logpdf(draw, scale=[1.0, 2.0, 3.0, 2.0, 3.0]).sum(-1) + 2 * np.log(2)
    assert_allclose(value, alone, rtol=1e-5)
    assert not outside.any()


def factor_covariance(phi, load, variance, rho, n):
    """Of all entries, time first: an autoregression of order 2 by its moving average, 400 lags of it."""
    psi = [1.0, phi[0]]
    for _ in range(400):
        psi.append(phi[0] * psi[-1] + phi[1] * psi[-2])
    gamma = np.array([np.dot(psi[: len(psi) - k], psi[k:]) for k in range(n)])
    lag = np.abs(np.arange(n)[:, None] - np.arange(n))
    noise = sum(np.kron(r**lag / (1 - r**2), np.diag(v * (np.arange(3) == i)))
                for i, (r, v) in enumerate(zip(rho, variance, strict=True)))  # fmt: skip
    return np.kron(gamma[lag], np.outer(load, load)) + noise


@pytest.mark.once
def test_dynamic_factor_against_dense_algebra():
    load, variance, phi = np.array([1.0, 0.5, -0.7]), np.array([0.5, 0.3, 0.2]), np.array([[0.5, 0.3]])
    rho, c = np.array([0.4, -0.2, 0.0]), np.array([1.0, 2.0, 3.0])
    y = np.random.default_rng(3).normal(size=(8, 3)) + c
    y[0, 0] = y[5, 1] = y[6, 2] = np.nan
    fixed = dict(loadings=load, coefficients=phi, obs_scale=np.sqrt(variance), intercept=c)

    @jax.jit
    def run(y):
        models = [
            pk.DynamicFactor(1, 2, noise_coefficients=rho, noise_order=1, **fixed),
            pk.DynamicFactor(1, 2, **fixed),
        ]
        return [(m.log_likelihood(y), m.leave_one_out(y)) for m in models]

    seen = ~np.isnan(y.ravel())
    v = (y - c).ravel()[seen]
    for (value, left), r in zip(run(jnp.asarray(y)), (rho, 0 * rho), strict=True):
        C = factor_covariance(phi[0], load, variance, r, 8)[np.ix_(seen, seen)]
        Lambda = np.linalg.inv(C)
        expected = -0.5 * (len(v) * np.log(2 * np.pi) + np.linalg.slogdet(C)[1] + v @ Lambda @ v)
        assert_allclose(value, expected, rtol=tol(1e-9, 1e-4))
        assert_allclose(left.variance.ravel()[seen], 1 / np.diag(Lambda), rtol=tol(1e-8, 1e-3))
        assert_allclose((y - left.mean).ravel()[seen], Lambda @ v / np.diag(Lambda), rtol=tol(1e-7, 1e-2), atol=1e-5)


@pytest.fixture(scope="module")
def fitted():
    """Two dependent levels in very different units, one that begins late, as a data frame."""
    steps = np.random.default_rng(1).normal(size=(40, 2)) @ np.array([[1.0, 0.8], [0.0, 0.6]])
    y = (steps.cumsum(axis=0) + 0.3 * np.random.default_rng(2).normal(size=(40, 2))) * [1.0, 1e6] + [0.0, 1e8]
    y[:6, 1] = y[20, 0] = y[30] = np.nan
    index = pd.period_range("2000-01", periods=40, freq="M", name="month")
    frame = pd.DataFrame(y, columns=["small", "large"], index=index)
    model = pk.MultivariateStructural(pk.LocalLevel(), correlations=["level"])
    return pk.fit(model, frame, key=KEY, method=pk.Laplace(draws=60, starts=1))


@pytest.mark.once
def test_fit_of_two_levels(fitted):
    assert set(fitted.sites) == {"level.level_scale", "obs_scale", "correlations.level"}
    assert all(np.isfinite(v).all() for v in fitted.sites.values())
    assert 0.3 < fitted.draws.correlation("level")[..., 0, 1].mean() < 0.95  # 0.8 made them
    size = fitted.sites["level.level_scale"].mean((0, 1))
    assert 0.4 < size[0] < 2 and 4e5 < size[1] < 2e6
    ahead = fitted.forecast(3)
    assert ahead.mean.shape == (2, 3) and list(ahead.lanes) == ["small", "large"]
    assert str(ahead.labels[0]) == "2003-05" and 0.9e8 < ahead.mean[1, 0] < 1.1e8
    assert list(ahead.to_frame().columns[:2]) == ["lane", "month"]


@pytest.mark.once
def test_series_have_their_names(fitted):
    """In tables, and where new values come as a data frame in another order."""
    index = list(fitted.summary().index)
    assert {"level.level_scale[small]", "obs_scale[large]"} <= set(index)
    new = pd.DataFrame({"large": [1e8, np.nan], "small": [1.0, 2.0]})
    assert_allclose(fitted.update(new).target.args[0][-2:], [[1.0, 1e8], [2.0, np.nan]])
    with pytest.raises(ValueError, match=r"y_new has the columns \['large', 'tiny'\]"):
        fitted.update(new.rename(columns={"small": "tiny"}))


class OwnPart(Component):
    """A level that moves by a fixed step and declares no scale."""

    obs_scale: pk.Param = pk.param(default=lambda self, y, X: dist.HalfNormal(1.0))
    name = "own"

    def block(self, X, times, fitted):
        return pk.LocalLevel(level_scale=2.0).block(X, times, fitted)


def test_a_part_that_declares_no_scale_moves():
    noise = {"noise": np.array([[1.0, 0.5], [0.5, 1.0]])}
    law = pk.MultivariateStructural(OwnPart(), obs_scale=np.ones(2), correlations=noise).distribution(None, 4)
    assert_allclose(np.asarray(law.model.Q), 4 * np.eye(2))


def test_searches_begin_at_waves_that_the_series_share():
    """One wave of period 13 in two units, noise that hides it from a single series' highest peak."""
    t, noise = np.arange(80), np.random.default_rng(3).normal(size=(80, 2))
    y = jnp.asarray((np.sin(2 * np.pi * t / 13)[:, None] + 0.3 * noise) * [1.0, 1e4]).at[5, 0].set(jnp.nan)
    parts = pk.LocalLevel() + pk.Cycle()
    own, one = (pk.MultivariateStructural(m).starts(y, None) for m in (parts, pk.Cycle(scale=dist.HalfNormal(1.0))))
    assert len(own) == len(one) == 3
    assert abs(own[0]["cycle.period"] - 13) < 0.5 and own[0]["cycle.scale"].shape == (2,)
    assert own[0]["cycle.scale"][1] > 1e3 * own[0]["cycle.scale"][0] and one[0]["cycle.scale"].shape == ()
    assert pk.MultivariateStructural(pk.LocalLevel()).starts(y, None) == ()


@pytest.mark.once
@in_double
def test_long_seasons_of_two_series_are_those_of_each():
    """Forty-one flat states of each series, which the first times tell apart by gains of 1e9."""
    y = jnp.asarray(np.random.default_rng(8).normal(size=(60, 2)).cumsum(axis=0)).at[3, 1].set(jnp.nan)
    one = pk.LocalLevel(0.5) + pk.TrigonometricSeasonal(168, 20, 0.1)
    whole = pk.MultivariateStructural(one, obs_scale=np.full(2, 0.7), correlations=())
    alone = pk.Structural(one.parts(), 0.7)
    found, each = jax.jit(lambda y: (whole.log_likelihood(y), [alone.log_likelihood(y[:, i]) for i in (0, 1)]))(y)
    assert_allclose(found, sum(each), atol=1e-5)


def test_sums_of_series_are_refused():
    y = np.random.default_rng(0).normal(size=(9, 2)).cumsum(axis=0)
    whole = np.column_stack([y, y.sum(axis=1), np.full(9, 2.0)])
    with pytest.raises(ValueError, match=r"columns \[0, 1, 2\] of y are sums or multiples"):
        pk.fit(pk.MultivariateStructural(pk.LocalLevel()), whole, key=KEY)
    pk.MultivariateStructural(pk.LocalLevel(), correlations=["level"]).check_data(jnp.asarray(whole), None)


@pytest.mark.once
def test_left_out_entries_of_two_levels(fitted):
    terms = fitted.loo_terms.reshape(60, 40, 2)
    y = np.asarray(fitted.series.y)
    assert (np.isnan(terms[0]) == np.isnan(y)).all()
    labels, name = fitted.term_labels()
    assert labels[1] == "2000-01, large" and name == "month, series"


@pytest.mark.slow
def test_what_users_do(fitted, tmp_path):
    y = np.asarray(fitted.series.y)
    parts = fitted.components(draws=30)
    assert list(parts) == ["signal.small", "signal.large", "level.small", "level.large"]
    assert np.isfinite(parts["level.large"].mean).all() and len(parts.plot()) == 4
    assert fitted.smooth(draws=30).mean.shape == (2, 40)
    filled = fitted.impute(draws=30)
    assert np.isfinite(filled.mean).all()
    assert_allclose(filled.mean.T[~np.isnan(y)], y[~np.isnan(y)], rtol=1e-5)
    assert fitted.simulate(draws=20).draws.shape == (1, 20, 2, 40)
    assert len(fitted.anomalies()) == 80
    moved = fitted.update(np.array([[1.0, 1e8], [np.nan, 1.01e8]]))
    assert moved.forecast(2).mean.shape == (2, 2)
    tree = fitted.to_arviz()
    assert tree["log_likelihood"]["y"].shape[-1] == np.sum(~np.isnan(y))
    assert np.isfinite(fitted.loo().elpd)
    loaded = pk.load(pk.save(fitted, tmp_path / "levels.npz"), like=fitted.model)
    assert_allclose(loaded.forecast(2).mean, fitted.forecast(2).mean, rtol=1e-6)
    assert list(loaded.series_names()) == ["small", "large"]
    table = pk.compare({"levels": fitted, "factor": pk.fit(pk.DynamicFactor(), fitted.series.y, key=KEY)})
    assert table.index[0] == "levels"


@pytest.mark.slow
@in_double
@pytest.mark.parametrize(("order", "noise"), [(1, 0), (2, 1)])
def test_optimum_against_statsmodels(order, noise):
    """Growth of the economy of the United States with gaps: no optimum below that of `DynamicFactor`."""
    from statsmodels.tsa.api import DynamicFactor

    table = pd.read_csv(shared("data/ts/statsmodels_macrodata.csv"))
    g = np.column_stack([np.log(table[["realgdp", "realcons", "realinv"]]).diff(), table["unemp"].diff()])[1:]
    y = (g - g.mean(0)) / g.std(0)
    y[10:14, 0], y[:7, 2], y[50] = np.nan, np.nan, np.nan
    theirs = DynamicFactor(y, k_factors=1, factor_order=order, error_order=noise)
    best = theirs.fit(theirs.fit(disp=0, method="powell", maxiter=200).params, disp=0, maxiter=2000)
    model = pk.DynamicFactor(1, order, noise, intercept=np.zeros(4))
    ours = pk.fit(model, y, key=KEY, method=pk.MLE())
    assert ours.outcome.stats["log_likelihood"].item() > best.llf - 1e-3
    at = dict(zip(theirs.param_names, best.params, strict=True))
    sign = np.sign(at["loading.f1.y1"])
    found = ours.sites["loadings"][0, 0]
    assert_allclose(found, [sign * at[f"loading.f1.y{i}"] for i in range(1, 5)], rtol=1e-3)


@pytest.mark.slow
@in_double
@pytest.mark.parametrize(("order", "noise"), [(1, 0), (2, 1)])
def test_two_factors_against_statsmodels(order, noise):
    """At given parameters: their model holds ours, with zeros above the diagonal and between the factors."""
    from statsmodels.tsa.api import DynamicFactor

    rng, p = np.random.default_rng(4), 4
    y = rng.normal(size=(50, p)).cumsum(axis=0) / 5
    y[:6, 1] = y[10:13, 0] = y[30] = np.nan
    L = np.tril(rng.normal(size=(p, 2)) + np.eye(p, 2))
    phi, rho = np.array([[0.7, -0.3], [0.4, 0.2]])[:, :order], np.array([0.5, -0.2, 0.3, 0.8])
    scale = np.array([0.5, 0.7, 0.4, 0.9])
    theirs = DynamicFactor(y, k_factors=2, factor_order=order, error_order=noise)
    at = {f"loading.f{j + 1}.y{i + 1}": L[i, j] for i in range(p) for j in (0, 1)}
    at |= {f"sigma2.y{i + 1}": scale[i] ** 2 for i in range(p)}
    at |= {f"L{k + 1}.f{j + 1}.f{j + 1}": phi[j, k] for j in (0, 1) for k in range(order)}
    at |= {f"L1.e(y{i + 1}).e(y{i + 1})": rho[i] for i in range(p)}
    params = np.array([at.get(name, 0.0) for name in theirs.param_names])
    assert np.sum(params != 0) == 7 + p + 2 * order + p * noise
    expected = theirs.smooth(params)
    model = pk.DynamicFactor(
        2, order, noise, L, phi, scale, **({"noise_coefficients": rho} if noise else {}), intercept=np.zeros(p)
    )
    assert_allclose(model.log_likelihood(jnp.asarray(y)), expected.llf, rtol=1e-9)
    parts = model.decompose(jnp.asarray(y), None, KEY)
    for j in (0, 1):
        mean, sd, _ = parts[f"factor_{j + 1}"]
        assert_allclose(mean, expected.factors.smoothed[j], rtol=1e-6, atol=1e-8)
        assert_allclose(sd**2, expected.factors.smoothed_cov[j, j], rtol=1e-6)
    ahead = model.forecast(jnp.asarray(y), 5)
    assert_allclose(ahead.mean, expected.forecast(5), rtol=1e-6)
    covariance = np.asarray(expected.get_forecast(5).var_pred_mean).reshape(5, p, p)
    assert_allclose(ahead.variance, np.diagonal(covariance, axis1=1, axis2=2), rtol=1e-6)


@pytest.mark.slow
@in_double
@pytest.mark.parametrize("name", ["levels", "factor"])
def test_calibrated(name):
    half = dist.HalfNormal(jnp.ones(2)).to_event(1)
    model = {
        "levels": pk.MultivariateStructural(
            pk.LocalLevel(half), obs_scale=half, correlations={"level": Correlations(2, 1.0)}
        ),
        "factor": pk.DynamicFactor(
            loadings=Loadings(jnp.ones(3)), coefficients=np.array([[0.6]]), intercept=np.zeros(3),
            obs_scale=dist.LogNormal(-0.7 * jnp.ones(3), 0.5).to_event(1),
        ),
    }[name]  # fmt: skip
    method = pk.Auto(draws=400, starts=2)
    found = pk.calibrate(model, 40, key=KEY, method=method, replications=200, progress=False)
    assert found.uniform(), found.table()


@pytest.mark.once
def test_ugly_series_have_finite_slopes():
    """At the middle of the default priors; a constant column, huge numbers, two values at the end."""
    t = np.arange(12.0)
    columns = [np.full(12, 3.0), 1e9 * t**2, np.r_[np.full(10, np.nan), 1.0, 2.0]]
    y = jnp.asarray([np.column_stack([column, np.sin(t)]) for column in columns])

    def slope(model):
        target = Target(strong(model, y.dtype), (y[0], None))
        size = sum(int(np.prod(shape)) for _, shape in target.sites().values())
        here = lambda y: Target(target.model, (y, None)).resolved().log_density
        return jax.vmap(lambda y: jax.value_and_grad(here(y))(jnp.zeros(size, y.dtype)))(y)

    found = jax.jit(lambda: [slope(m) for m in (pk.MultivariateStructural(pk.LocalLevel()), pk.DynamicFactor())])()
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_wrong_arguments():
    level, y = pk.LocalLevel(), np.zeros((5, 2))
    make = pk.MultivariateStructural
    with pytest.raises(TypeError, match="parts is str"):
        make("level")
    with pytest.raises(ValueError, match="obs_scale"):
        make(pk.LocalLevel(obs_scale=1.0))
    with pytest.raises(ValueError, match="correlations names 'slope'"):
        make(level, correlations=["slope"])
    with pytest.raises(ValueError, match="no correlation matrix"):
        make(level, correlations={"level": np.ones((2, 2))})
    with pytest.raises(TypeError, match="partial correlations"):
        make(level, correlations={"level": dist.LKJCholesky(2)})
    with pytest.raises(ValueError, match="loadings take the place"):
        make(pk.LocalLevel(1.0), common={"level": 1})
    with pytest.raises(ValueError, match="two series or more"):
        pk.fit(make(level), y[:, :1], key=KEY)
    with pytest.raises(ValueError, match=r"takes \(time, series\)"):
        pk.fit(make(level), y[:, 0], key=KEY)
    with pytest.raises(ValueError, match="series 1 cannot be fitted"):
        pk.fit(make(level), np.column_stack([y[:, 0], np.full(5, np.nan)]), key=KEY)
    with pytest.raises(ValueError, match=r"obs_scale has shape \(3,\)"):
        pk.fit(make(level, obs_scale=np.ones(3)), y, key=KEY)
    with pytest.raises(TypeError, match="takes no X"):
        pk.fit(make(level), y, np.zeros(5), key=KEY)
    with pytest.raises(TypeError, match="takes no X"):
        pk.fit(pk.DynamicFactor(), y, np.zeros(5), key=KEY)
    with pytest.raises(ValueError, match="factors is 3"):
        pk.fit(pk.DynamicFactor(3), y, key=KEY)
    with pytest.raises(ValueError, match="zeros above the diagonal"):
        pk.DynamicFactor(2, loadings=np.ones((3, 2)))
    with pytest.raises(ValueError, match="order is 0"):
        pk.DynamicFactor(1, 0)
    with pytest.raises(ValueError, match="noise_order=1"):
        pk.DynamicFactor(noise_coefficients=0.5)
