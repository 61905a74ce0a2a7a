"""Dropout, SWAG and SGHMC: draws, spread, classes, K-fold; runs that are cut off and go on; what is refused."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol

import probkit as pk
from probkit import likelihoods as lk
from probkit.bnn.local import masked
from probkit.bnn.methods import swag
from probkit.bnn.methods.checkpoint import Checkpoint
from probkit.bnn.nets import Dense

N = 120
RNG = np.random.default_rng(2)
X = RNG.uniform(-2, 2, (N, 2))
Y = 50 + 20 * np.sin(2 * X[:, 0]) + 3 * RNG.normal(size=N)
NETS = pk.bnn.Ensemble(members=2, steps=500, learning_rate=0.03)
METHODS = {
    "dropout": pk.bnn.MCDropout(rate=0.05, draws=20, training=NETS),
    "swag": pk.bnn.SWAG(rank=5, snapshots=8, draws=20, training=NETS),
    "sghmc": pk.bnn.SGHMC(cycles=2, draws=10, steps=100, training=NETS),
}


def fit(method, y=Y, likelihood=None):
    return pk.fit(pk.BNN(pk.mlp(6), likelihood), y, X, key=jax.random.key(0), method=method, progress=False)


@pytest.fixture(scope="module", params=list(METHODS))
def posterior(request):
    return fit(METHODS[request.param])


@pytest.mark.once
def test_draws_predict_in_units(posterior):
    assert posterior.report.converged
    prediction = posterior.predict(X)
    assert prediction.means.shape[:2] == ((2, 20) if posterior.report.rung == "sghmc" else (1, 40))
    assert prediction.score(Y)["rmse"] < 0.7 * Y.std()
    assert np.all(prediction.means.std((0, 1)) > 0)
    assert np.allclose(prediction.epistemic**2 + prediction.aleatoric**2, prediction.std**2, rtol=tol(1e-8, 1e-3))
    assert not posterior.has_loo
    assert np.array_equal(prediction.mean, posterior.predict(X).mean)


@pytest.mark.slow
@pytest.mark.parametrize("name", list(METHODS))
def test_classes_and_folds(name):
    y = np.digitize(X[:, 0], [-0.7, 0.7]).astype(float)
    found = fit(METHODS[name], y, lk.Categorical(3))
    assert np.mean(found.predict(X).class_probabilities.argmax(1) == y) > 0.9
    scored = pk.kfold(found, 2, key=jax.random.key(1), progress=False)
    assert scored.n_data_points == N
    assert len(pk.compare({"a": scored, "b": pk.kfold(fit(NETS, y, lk.Categorical(3)), 2, key=jax.random.key(1))})) == 2


@pytest.mark.slow
def test_sghmc_of_a_linear_net_is_its_posterior():
    """All rows, noise known: mean and sd of the function within 5% of the exact ones."""
    model = pk.BNN(pk.mlp([]), lk.Gaussian(scale=15.0))
    exact = pk.fit(
        model, Y, X, key=jax.random.key(0), method=pk.bnn.LaplaceGGN(members=1, prior="model"), progress=False
    ).predict(X[:5])
    method = pk.bnn.SGHMC(cycles=4, draws=500, steps=6000, training=pk.bnn.Ensemble(members=8, steps=1000))
    found = pk.fit(model, Y, X, key=jax.random.key(0), method=method, progress=False)
    means = found.predict(X[:5]).means
    assert np.allclose(means.std((0, 1)), exact.epistemic, rtol=0.05)
    assert np.all(np.abs(means.mean((0, 1)) - exact.mean) < 0.1 * exact.epistemic)
    assert np.max(pk.bnn.convergence(found, X[:5])["r_hat"]) < 1.02


class Cut(Exception):
    """A run that is cut off."""


@pytest.mark.once
@pytest.mark.parametrize("name", ["ensemble", *(pytest.param(m, marks=pytest.mark.slow) for m in ("swag", "sghmc"))])
def test_a_run_cut_off_and_resumed_is_equal_to_the_bit(name, tmp_path, monkeypatch):
    quick = dataclasses.replace(NETS, steps=100, validation=0.2)
    method = quick if name == "ensemble" else dataclasses.replace(METHODS[name], training=quick)
    whole = fit(method)
    kept = dataclasses.replace(quick, checkpoint=str(tmp_path))
    method = kept if name == "ensemble" else dataclasses.replace(method, training=kept)
    save, saves = Checkpoint.save, []

    def cut(self, state):
        save(self, state)
        saves.append(self.path)
        # In the middle of the training; of the snapshots; between the cycles.
        if len(saves) == {"ensemble": 20, "swag": 54, "sghmc": 51}[name]:
            raise Cut

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", cut)
        with pytest.raises(Cut):
            fit(method)
        done = len(saves)
        resumed = fit(method)
    assert len(saves) > done
    assert all(np.array_equal(whole.sites[site], resumed.sites[site]) for site in whole.sites)
    assert len(set(saves)) == len(list(tmp_path.iterdir())) == (1 if name == "ensemble" else 2)
    before = len(saves)
    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", cut)
        assert np.array_equal(fit(method).sites["net.layers.0.bias"], whole.sites["net.layers.0.bias"])
    assert len(saves) == before


def test_a_checkpoint_is_of_one_run_and_refuses_damage(tmp_path):
    state = (jnp.arange(3.0), jax.random.key(3))
    method = pk.bnn.Ensemble(checkpoint=str(tmp_path))
    one, other = (Checkpoint(method, None, jax.random.key(i), jnp.ones(2)) for i in (0, 1))
    one.save(state)
    found = one.resume((jnp.zeros(3), jax.random.key(0)))
    assert np.array_equal(found[0], state[0])
    assert found[1] == state[1]
    assert other.resume("nothing") == "nothing"
    with pytest.raises(ValueError, match="3 are wanted"):
        one.resume((*state, state[0]))
    one.path.write_bytes(one.path.read_bytes()[:-50])
    with pytest.raises(ValueError, match="its end is missing"):
        one.resume(state)


class Two(eqx.Module):
    first: Dense
    last: dict

    def __call__(self, x):
        return self.first(x)


def test_masks_leave_out_inputs_of_all_layers_but_the_first():
    net = Two(Dense(jnp.ones((4, 3)), jnp.ones(4)), {"kernel": jnp.ones((400, 2))})
    found = masked(net, jax.random.key(0), 0.25)
    assert np.array_equal(found.first.weight, net.first.weight)
    rows = np.asarray(found.last["kernel"])
    assert np.array_equal(rows[:, 0], rows[:, 1])
    assert set(np.unique(rows.round(5))) == {0.0, np.float32(4 / 3).round(5)} or np.allclose(
        np.unique(rows), [0.0, 4 / 3], atol=1e-6
    )
    assert 0.17 < np.mean(rows == 0) < 0.33
    with pytest.raises(ValueError, match="no hidden units"):
        masked(net.first, jax.random.key(0), 0.5)


@pytest.mark.once
def test_moments_of_swag_by_hand():
    u = RNG.normal(size=(6, 1, 3)) + 100.0
    m = swag.Moments(jnp.array(0), jnp.zeros((1, 3)), jnp.zeros((1, 3)), jnp.zeros((4, 1, 3)))
    for one in u:
        m = swag.collect(m, jnp.asarray(one))
    assert np.allclose(m.mean, u.mean(0))
    assert np.allclose(m.square, u.var(0))
    running = np.cumsum(u, axis=0) / np.arange(1, 7)[:, None, None]
    deviations = (u - running)[[4, 5, 2, 3]]
    assert np.allclose(m.deviations, deviations)
    draws = np.asarray(swag.sample(m, jax.random.key(0), 100_000))[0]
    D = deviations[:, 0].T
    wanted = 0.5 * (np.diag(u.var(0)[0]) + D @ D.T / 3)
    assert np.allclose(draws.mean(0), u.mean(0)[0], atol=0.02)
    assert np.allclose(np.cov(draws.T), wanted, atol=0.03)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: pk.bnn.MCDropout(rate=1.0), ValueError, "rate is 1.0"),
        (lambda: pk.bnn.MCDropout(training=3), TypeError, "training is 3"),
        (lambda: pk.bnn.SWAG(rank=1), ValueError, "rank is 1"),
        (lambda: pk.bnn.SWAG(snapshots=5), ValueError, "snapshots is 5"),
        (lambda: pk.bnn.SGHMC(momentum=1.0), ValueError, "momentum is 1.0"),
        (lambda: pk.bnn.SGHMC(step_size=2.0), ValueError, "step_size is 2.0"),
        (lambda: pk.bnn.SGHMC(steps=40, draws=25), ValueError, "steps leaves 20"),
        (lambda: pk.bnn.SGHMC(batch_size=0), ValueError, "batch_size is 0"),
    ],
)
def test_options(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
