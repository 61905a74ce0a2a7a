"""Posteriors on disk: equal to the bit, and refused when damaged, foreign or newer."""

import io
import json

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpyro.infer.autoguide import AutoMultivariateNormal
from toys import Line, posterior_of

import probkit as pk
from probkit import store
from probkit.infer.target import Target
from probkit.model import strong

#: What stands here does not depend on the precision.
pytestmark = pytest.mark.once

FAST = pk.Laplace(draws=200, starts=2)
POINT = pk.MAP(starts=2)  # compiles in half the time, where the draws do not matter


@pytest.fixture(scope="module")
def nile():
    return pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=jax.random.key(1), method=FAST)


@pytest.fixture(scope="module")
def saved(nile, tmp_path_factory):
    return store.save(nile, tmp_path_factory.mktemp("saved") / "nile")


def same(a, b):
    assert set(a.sites) == set(b.sites)
    for name in a.sites:
        np.testing.assert_array_equal(a.sites[name], b.sites[name])
    for name in a.outcome.stats:
        np.testing.assert_array_equal(a.outcome.stats[name], b.outcome.stats[name])
    assert str(a.report) == str(b.report)
    assert repr(a.method) == repr(b.method)


def test_round_trip_is_equal_to_the_bit(nile, saved):
    back = store.load(saved)
    assert saved.suffix == ".npz"
    same(nile, back)
    np.testing.assert_array_equal(nile.loo_terms, back.loo_terms)
    np.testing.assert_array_equal(nile.forecast(3).draws, back.forecast(3).draws)
    assert back.forecast(2).to_frame()["year"].tolist() == [1971, 1972]


def test_numpy_opens_the_file(saved):
    with np.load(saved, allow_pickle=False) as archive:
        assert json.loads(archive["manifest"].tobytes())["format"] == store.FORMAT


@pytest.mark.once
@pytest.mark.parametrize(
    "model",
    [
        pk.ARIMA(0, 1, 1, ma=dist.Uniform(-np.ones(1), np.ones(1)).to_event(1)),
        pk.LocalLevel(level_scale=dist.TruncatedNormal(0.0, 50.0, low=1.0), obs_scale=120.0),
        pk.LocalLevel(level_scale=dist.HalfNormal(100.0), obs_scale=dist.LogNormal(5.0, 1.0)),
    ],
)
def test_priors_come_back(model, tmp_path):
    posterior = pk.fit(model, pk.datasets.nile(), key=jax.random.key(2), method=POINT)
    back = store.load(store.save(posterior, tmp_path / "p.npz"))
    same(posterior, back)
    again = pk.fit(back.model, pk.datasets.nile(), key=jax.random.key(2), method=POINT)
    for name in posterior.sites:
        np.testing.assert_allclose(again.sites[name], posterior.sites[name], rtol=tol(1e-8, 1e-3))


def test_point_fits_keep_their_standard_errors(tmp_path):
    posterior = pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=jax.random.key(1), method=pk.MLE(starts=2))
    back = store.load(store.save(posterior, tmp_path / "mle.npz"))
    assert posterior.summary().equals(back.summary())


def test_given_needs_like(tmp_path):
    tied = pk.LocalLevel(level_scale=pk.given(lambda m: 0.3 * m.obs_scale), obs_scale=dist.HalfNormal(300.0))
    posterior = pk.fit(tied, pk.datasets.nile(), key=jax.random.key(1), method=POINT)
    path = store.save(posterior, tmp_path / "tied.npz")
    with pytest.raises(ValueError, match="like="):
        store.load(path)
    same(posterior, store.load(path, like=tied))
    with pytest.raises(ValueError, match="sites"):
        store.load(path, like=pk.LocalLevel())


def test_plain_functions_need_like(tmp_path):
    def model(y):
        import numpyro

        mu = numpyro.sample("mu", dist.Normal(0.0, 10.0))
        numpyro.sample("y", dist.Normal(mu, 1.0), obs=y)

    posterior = pk.fit(model, args=(np.array([0.3, 1.2, 0.7]),), key=jax.random.key(1), method=POINT)
    path = store.save(posterior, tmp_path / "fn.npz")
    with pytest.raises(ValueError, match="like="):
        store.load(path)
    same(posterior, store.load(path, like=model))


def test_fifty_damaged_files_are_refused(saved, tmp_path):
    content = saved.read_bytes()
    rng = np.random.default_rng(0)
    for i in range(50):
        broken = bytearray(content)
        if i % 5 == 0:
            broken = broken[: rng.integers(0, len(broken))]
        else:
            at = rng.integers(0, len(broken))
            broken[at] ^= 1 << rng.integers(0, 8)
        path = tmp_path / f"{i}.npz"
        path.write_bytes(bytes(broken))
        with pytest.raises(ValueError, match=r"damaged|not a posterior"):
            store.load(path)


def test_foreign_files_are_refused(tmp_path):
    path = tmp_path / "foreign.npz"
    np.savez(path, a=np.ones(3))
    with pytest.raises(ValueError, match="not a posterior"):
        store.load(path)


def test_newer_files_are_refused(nile, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "FORMAT", 2)
    path = store.save(nile, tmp_path / "newer.npz")
    monkeypatch.setattr(store, "FORMAT", 1)
    with pytest.raises(ValueError, match="Update probkit"):
        store.load(path)


def test_a_file_cannot_name_a_foreign_class(nile, tmp_path):
    path = store.save(nile, tmp_path / "evil.npz")
    with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    manifest = json.loads(arrays.pop("manifest").tobytes())
    manifest["model"] = {"class": ["os", "system"], "fields": {}}
    with pytest.raises(ValueError, match="not probkit's"):
        store._rebuild(path, manifest, arrays, None)


def held_by(method):
    values = {"intercept": np.zeros((1, 5)), "obs_scale": np.ones((1, 5))}
    return posterior_of(Line(), np.arange(9.0), values, method=method)


@pytest.mark.parametrize(
    "method",
    [pk.VI(guide="full-rank"), pk.SVI(guide=AutoMultivariateNormal, max_steps=100)],
    ids=["VI", "SVI"],
)
def test_variational_methods_come_back(method, tmp_path):
    assert pk.load(pk.save(held_by(method), tmp_path / "v"), like=Line()).method == method


def test_a_guide_made_by_a_function_is_refused(tmp_path):
    made = pk.SVI(guide=lambda model: AutoMultivariateNormal(model))
    with pytest.raises(TypeError, match="which a file cannot hold"):
        pk.save(held_by(made), tmp_path / "v")


@pytest.mark.once
@pytest.mark.parametrize(
    "model",
    [
        pk.ARIMA(2, 0, 1, seasonal=(1, 0, 1, 4)),
        pk.ARIMA(0, 1, 1, drift=True),
        pk.ETS("MAdM", period=4),
        pk.LocalLinearTrend(damped=True) + pk.Seasonal(4) + pk.Cycle(),
        pk.GP(pk.RBF() + pk.Periodic(1.0) * pk.Matern52(scale=dist.HalfNormal(2.0)), solver=pk.gp.Sparse(5)),
        pk.GP(pk.gp.ChangePoint(pk.RBF(), pk.Matern12(), at=dist.Normal(4.0, 1.0), width=0.5), mean=pk.gp.LinearMean()),
        pk.Transformed(pk.LocalLevel(dist.HalfNormal(1.0), 0.5), "log"),
    ],
    ids=lambda model: type(model).__name__,
)
def test_the_models_of_every_family_come_back_with_their_defaults(model):
    model = strong(model, jnp.result_type(float))
    arrays = {}
    text = json.dumps(store._encode(model, arrays))
    back = store._decode(json.loads(text), arrays, device=True)
    assert type(back) is type(model)
    y = jnp.asarray([3.0, 5.0, 4.0, 6.0, 5.0, 7.0, 6.0, 9.0, 8.0, 10.0, 9.0, 12.0])
    here, there = Target(model, (y, None)).resolved(), Target(back, (y, None)).resolved()
    assert here.sites() == there.sites()
    u = jax.jit(lambda key: here.prior_draw(key))(jax.random.key(0))
    densities = [jax.jit(lambda u, target=target: target.log_density(u))(u) for target in (there, here)]
    np.testing.assert_allclose(*densities, rtol=tol(1e-12, 1e-5))
