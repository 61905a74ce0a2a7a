"""Ensembles: members as lanes, early stopping, batches, missing rows, what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import count_compilations, tol

import probkit as pk
from probkit import likelihoods as lk
from probkit.bnn.methods.common import trainable
from probkit.infer.target import Target
from probkit.model import strong

N = 200
RNG = np.random.default_rng(2)
X = RNG.uniform(-2, 2, (N, 2))
Y = 50 + 20 * np.sin(2 * X[:, 0]) + 3 * RNG.normal(size=N)
METHOD = pk.bnn.Ensemble(members=3, steps=1000, batch_size=32)


def fit(y=Y, X=X, method=METHOD, seed=0, likelihood=None):
    return pk.fit(pk.BNN(pk.mlp(8), likelihood), y, X, key=jax.random.key(seed), method=method, progress=False)


@pytest.fixture(scope="module")
def posterior():
    return fit()


@pytest.mark.once
def test_members_are_the_draws_and_differ(posterior):
    assert posterior.report.converged
    weights = posterior.sites["net.layers.0.weight"]
    assert weights.shape == (1, 3, 8, 2)
    assert np.ptp(weights, axis=1).min() > 0
    score = posterior.predict(X).score(Y)
    assert score["rmse"] < 6
    assert score["log_score"] > -3.5


def test_prediction_splits_its_spread(posterior):
    prediction = posterior.predict(np.array([[0.0, 0.0], [30.0, 30.0]]))
    assert prediction.draws.shape[:2] == (1, 999)
    assert np.allclose(prediction.epistemic**2 + prediction.aleatoric**2, prediction.std**2, rtol=tol(1e-8, 1e-3))
    assert prediction.epistemic[1] > 1.2 * prediction.epistemic[0]


@pytest.mark.once
def test_anchored_members_of_a_linear_net_by_hand():
    dtype = jnp.result_type(float)
    model = strong(pk.BNN(pk.mlp([]), lk.Gaussian(scale=10.0)), dtype)
    target = trainable(Target(model, (jnp.asarray(Y, dtype), jnp.asarray(X, dtype))), "Ensemble")
    found, _ = pk.bnn.Ensemble(members=3, steps=2000).train(target, jax.random.key(0), None, False, anchored=True)
    Z = np.c_[(X - X.mean(0)) / X.std(0), np.ones(N)]
    data, P = (Y.std() / 10.0) ** 2, np.diag([2.0, 2.0, 1.0])
    right = P @ np.asarray(found.start).T + (data * Z.T @ ((Y - Y.mean()) / Y.std()))[:, None]
    assert np.allclose(found.best, np.linalg.solve(P + data * Z.T @ Z, right).T, atol=1e-3)


def test_a_second_fit_compiles_nothing(posterior):
    key = jax.random.key(5)
    other = Y + 1.0
    pk.fit(pk.BNN(pk.mlp(8)), Y + 2.0, X, key=jax.random.key(4), method=METHOD, progress=False)
    with count_compilations() as compiled:
        pk.fit(pk.BNN(pk.mlp(8)), other, X, key=key, method=METHOD, progress=False)
    assert compiled.count == 0


def test_the_same_key_gives_the_same_nets(posterior):
    again = fit()
    assert np.array_equal(again.sites["net.layers.1.weight"], posterior.sites["net.layers.1.weight"])


@pytest.mark.slow
def test_missing_rows_are_left_out():
    y = Y.copy()
    y[:8] = np.nan
    found = fit(y)
    assert np.isfinite(found.predict(X).mean).all()
    assert found.predict().mean.shape == (N,)


def test_leave_one_out_is_refused_and_kfold_is_not(posterior):
    with pytest.raises(TypeError, match="Ensemble, whose draws do not target the posterior"):
        pk.compare({"a": posterior, "b": posterior})


@pytest.mark.slow
def test_kfold_meets_a_mixture_of_laplaces(posterior):
    other = fit(method=pk.bnn.LaplaceGGN(members=2))
    key = jax.random.key(0)
    folds = {name: pk.kfold(p, 3, key=key, progress=False) for name, p in {"e": posterior, "l": other}.items()}
    assert len(pk.compare(folds)) == 2


@pytest.mark.once
@pytest.mark.parametrize("classes", [pytest.param(2, marks=pytest.mark.slow), 3])
def test_classes(classes):
    y = np.digitize(X[:, 0], np.linspace(-2, 2, classes + 1)[1:-1]).astype(float)
    likelihood = lk.Bernoulli() if classes == 2 else lk.Categorical(classes)
    prediction = fit(y, likelihood=likelihood).predict(X)
    p = prediction.class_probabilities
    assert p.shape == (N, classes)
    assert np.allclose(p.sum(1), 1, atol=tol(1e-8, 1e-5))
    assert np.mean(p.argmax(1) == y) > 0.9
    assert np.allclose(prediction.epistemic + prediction.aleatoric, prediction.entropy, atol=tol(1e-8, 1e-5))
    assert prediction.score(y)["log_score"] > -0.4
    assert np.allclose(prediction.mean, p @ np.arange(classes), atol=tol(1e-8, 1e-4))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: pk.bnn.Ensemble(members=0), "members is 0"),
        (lambda: pk.bnn.Ensemble(validation=1.0), "validation is 1.0"),
        (lambda: pk.bnn.Ensemble(learning_rate=-1), "learning_rate is -1"),
    ],
)
def test_options(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_models_are_refused():
    with pytest.raises(TypeError, match=r"Ensemble is for pk.BNN; LocalLevel came"):
        pk.fit(pk.LocalLevel(), Y, key=jax.random.key(0), method=METHOD)
