"""Laplace by Gauss-Newton: exact for a linear net, sound for others, every structure, classes, predictions."""

import equinox as eqx
import jax
import numpy as np
import pytest
from helpers import tol

import probkit as pk
from probkit import likelihoods as lk
from probkit.bnn.layers import chosen, is_dense

N = 60
RNG = np.random.default_rng(3)
X = RNG.normal(size=(N, 2)) @ np.array([[1.0, 0.4], [0.0, 2.0]]) + 5
Y = 50 + 20 * np.sin(X[:, 0]) + 3 * RNG.normal(size=N)
NEW = np.array([[5.0, 5.0], [6.0, 3.0], [40.0, 5.0]])


def fit(net, y=Y, likelihood=None, X=X, **options):
    method = pk.bnn.LaplaceGGN(**{"members": 2} | options)
    return pk.fit(pk.BNN(net, likelihood), y, X, key=jax.random.key(0), method=method, progress=False)


def by_hand(X_new, noise):
    """Mean and sd of the function of Bayesian linear regression under the priors of a linear net."""
    Z = np.c_[np.ones(N), (X - X.mean(0)) / X.std(0)]
    Z_new = np.c_[np.ones(len(X_new)), (X_new - X.mean(0)) / X.std(0)]
    unit = Y.std()
    precision = np.diag([1.0, 2.0, 2.0]) + Z.T @ Z * (unit / noise) ** 2
    mean = np.linalg.solve(precision, Z.T @ ((Y - Y.mean()) / unit)) * (unit / noise) ** 2
    spread = np.sqrt(np.einsum("nd,de,ne->n", Z_new, np.linalg.inv(precision), Z_new))
    return Y.mean() + unit * Z_new @ mean, unit * spread


@pytest.mark.once
@pytest.mark.parametrize(
    ("structure", "layers"),
    [("full", "all"), pytest.param("full", "last", marks=pytest.mark.slow), ("kfac", "all")],
)
def test_a_linear_net_is_exact(structure, layers):
    whole = structure == "full" and layers == "all"
    options = {} if whole else {"training": pk.bnn.Ensemble(steps=1500)}
    found = fit(
        pk.mlp([]), likelihood=lk.Gaussian(scale=15.0), prior="model", structure=structure, layers=layers, **options
    )
    prediction = found.predict(NEW)
    mean, spread = by_hand(NEW, 15.0)
    # The spread of a linear net is that of any weights; its mean is where the training ended.
    assert np.allclose(prediction.epistemic, spread, rtol=tol(1e-6, 5e-3))
    assert np.allclose(prediction.mean, mean, rtol=tol(1e-6, 2e-3) if whole else 1e-2)
    assert np.allclose(prediction.aleatoric, 15.0, rtol=1e-5)


@pytest.mark.slow
def test_kfac_chooses_scales_and_learns():
    found = fit(pk.mlp(8), structure="kfac", training=pk.bnn.Ensemble(steps=1500))
    prediction = found.predict(NEW)
    assert found.predict(X).score(Y)["rmse"] < 6
    assert prediction.epistemic[2] > 2 * prediction.epistemic[0]


def test_kfac_is_for_dense_layers():
    keys = jax.random.split(jax.random.key(0))
    net = [eqx.nn.Conv1d(1, 1, 2, key=keys[0]), eqx.nn.Linear(3, 2, key=keys[1])]
    (at,) = chosen(net, (2, 3))
    assert jax.tree_util.tree_leaves(net, is_leaf=is_dense)[at] is net[1]
    for where in ((0, 1, 2, 3), (2,)):  # a convolution too; a layer in part
        with pytest.raises(ValueError, match="structure='kfac' is for unknown weights in dense layers"):
            chosen(net, where)


@pytest.fixture(scope="module")
def mixture():
    return fit(pk.mlp(8))


@pytest.mark.once
def test_a_net_learns_noise_and_spread(mixture):
    assert mixture.report.rung == "laplace"
    assert np.all((mixture.sites["likelihood.scale"] > 1.5) & (mixture.sites["likelihood.scale"] < 8))
    prediction = mixture.predict(NEW)
    assert prediction.epistemic[2] > 3 * prediction.epistemic[0]
    assert np.allclose(prediction.epistemic**2 + prediction.aleatoric**2, prediction.std**2, rtol=tol(1e-8, 1e-3))
    score = mixture.predict(X).score(Y, level=(90,))
    assert score["coverage-90"] > 0.8
    assert score["rmse"] < 6


@pytest.mark.once
def test_missing_rows_are_predicted_and_folds_are_scored():
    y = Y.copy()
    y[:10] = np.nan
    found = fit(pk.mlp([]), y, prior="model", members=1)
    assert found.predict().mean.shape == (N,)
    scored = pk.kfold(found, 2, key=jax.random.key(1), progress=False)
    assert scored.n_data_points == N - 10
    with pytest.raises(TypeError, match="LaplaceGGN, whose draws do not target the posterior"):
        pk.compare({"a": found, "b": found})


def test_it_is_the_default_for_a_small_net():
    assert isinstance(pk.BNN(pk.mlp(8)).default_method(Y, X), pk.bnn.LaplaceGGN)
    assert isinstance(pk.BNN(pk.mlp([100, 100])).default_method(Y, X), pk.bnn.Ensemble)


def test_units_do_not_matter(mixture):
    other = pk.fit(
        pk.BNN(pk.mlp(8)),
        Y * 1e6 + 1e8,
        X * 1e-4,
        key=jax.random.key(0),
        method=pk.bnn.LaplaceGGN(members=2),
        progress=False,
    )
    near = other.predict(NEW[:2] * 1e-4)
    assert np.allclose((near.mean - 1e8) / 1e6, mixture.predict(NEW[:2]).mean, atol=4.0)


@pytest.mark.slow
def test_diagonal_of_a_linear_net_by_hand():
    found = fit(pk.mlp([]), likelihood=lk.Gaussian(scale=15.0), prior="model", structure="diagonal", members=1)
    Z = np.c_[np.ones(3), (NEW - X.mean(0)) / X.std(0)]
    # Standardised columns: each weight has precision 1 (or its fan-in, 2) and n (unit / noise)² from the data.
    data = N * (Y.std() / 15.0) ** 2
    spread = Y.std() * np.sqrt(Z**2 @ (1 / (np.array([1.0, 2.0, 2.0]) + data)))
    assert np.allclose(found.predict(NEW).epistemic, spread, rtol=tol(1e-6, 1e-3))


@pytest.mark.once
@pytest.mark.parametrize("classes", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_classes_by_probit(classes):
    y = np.digitize(X[:, 0], np.quantile(X[:, 0], np.linspace(0, 1, classes + 1)[1:-1])).astype(float)
    likelihood = lk.Bernoulli() if classes == 2 else lk.Categorical(classes)
    found = fit(pk.mlp(4), y, likelihood)
    prediction = found.predict(np.r_[X, [[-60.0, 5.0]]])
    p = prediction.class_probabilities
    assert np.mean(p[:N].argmax(1) == y) > 0.85
    assert prediction.score(np.r_[y, np.nan])["log_score"] > -0.6
    assert np.all(prediction.epistemic >= 0)


@pytest.mark.slow
def test_counts_with_a_noise_of_their_own():
    y = np.random.default_rng(0).poisson(np.exp(0.5 * (X[:, 0] - 5) + 1)).astype(float)
    found = fit(pk.mlp(3), y, lk.NegativeBinomial())
    assert np.all(np.isfinite(found.predict(X).mean))
    assert np.corrcoef(found.predict(X).means.mean((0, 1)), np.exp(0.5 * (X[:, 0] - 5) + 1))[0, 1] > 0.8


@pytest.mark.slow
def test_against_nuts_on_a_small_net():
    """13 weights: the mixture's mean within 0.5 noise sds of the posterior's, its spread within a factor of 2."""
    x = np.linspace(-2, 2, 60)
    y = 3 * np.tanh(1.5 * x) + 0.3 * np.random.default_rng(5).normal(size=60)
    model = pk.BNN(pk.mlp(4))
    key = jax.random.key(1)
    nuts = pk.fit(model, y, x, key=key, method=pk.NUTS(draws=1000), progress=False).predict(x)
    laplace = pk.fit(model, y, x, key=key, method=pk.bnn.LaplaceGGN(members=4), progress=False).predict(x)
    assert np.max(np.abs(nuts.mean - laplace.mean)) < 0.15
    ratio = laplace.epistemic / nuts.epistemic
    assert np.all((ratio > 0.5) & (ratio < 2))


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"structure": "half"}, ValueError, "structure is 'half'"),
        ({"layers": "first"}, ValueError, "layers is 'first'"),
        ({"prior": "flat"}, ValueError, "prior is 'flat'"),
        ({"members": 0}, ValueError, "members is 0"),
        ({"training": 3}, TypeError, "training is 3"),
    ],
)
def test_options(options, kind, message):
    with pytest.raises(kind, match=message):
        pk.bnn.LaplaceGGN(**options)
