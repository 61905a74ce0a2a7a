"""Random features against their covariances, functions of the posterior against its exact law."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.gp import lowrank
from probkit.gp.features import random_features

RNG = np.random.default_rng(0)
X = jnp.asarray(RNG.uniform(-1, 1, (7, 2)) + np.array([3.0, 0.0]))
CODED = jnp.concatenate([X, jnp.asarray([[0.0], [1], [2], [0], [1], [2], [2]])], axis=1)
LINE = dict(columns=(0,))

KERNELS = {
    "rbf": pk.RBF([0.8, 1.5], 1.2),
    "matern12": pk.Matern12([0.8, 1.5], 1.2),
    "matern52": pk.Matern52(1.1, 0.7),
    "rational": pk.RationalQuadratic(0.9, 1.1, 0.7),
    "periodic": pk.Periodic([1.3, 2.0], [0.8, 1.4], 1.3),
    "cosine": pk.Cosine([1.3, 2.0], 0.8),
    "mixture": pk.SpectralMixture(2, [1.0, 0.5], [[0.3, 0.2], [0.9, 0.5]], [[0.1, 0.2], [0.3, 0.1]]),
    "linear": pk.Linear([0.5, 1.0], [3.0, 0.0]),
    "polynomial": pk.Polynomial(2, 0.6, 0.9, 1.3, [3.0, 0.2]),
    "arc0": pk.ArcCosine(0, 0.8, 1.2, 1.0, [3.0, 0.0]),
    "arc1": pk.ArcCosine(1, 0.8, 1.2, 1.0, [3.0, 0.0]),
    "arc2": pk.ArcCosine(2, 0.5, 1.2, 1.0, [3.0, 0.0]),
    "sum": pk.RBF(0.7, 1.0, **LINE) + pk.Matern32(1.0, 0.6, columns=(1,)) + 0.3,
    "product": pk.RBF(0.7, 1.0, **LINE) * pk.Periodic(1.5, 1.0, 1.0, columns=(1,)),
    "power": pk.Linear([0.5, 0.4], [3.0, 0.0]) ** 2,
    "warped": pk.gp.Warped(pk.RBF(0.7, 1.0), jnp.tanh),
    "change": pk.gp.ChangePoint(pk.RBF(1.0, 0.5), pk.Matern52(0.5, 1.0), at=3.0, width=0.3),
    "levels": pk.gp.Coregion(3, 2, 1, [[0.8], [0.5], [-0.6]], [0.2, 0.1, 0.3]) * pk.RBF(0.9, 1.0, columns=(0, 1)),
}


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(("matern52", "periodic", "product", "levels"), marks=pytest.mark.once, id="few"),
        pytest.param(tuple(KERNELS), marks=pytest.mark.slow, id="all"),
    ],
)
def test_products_of_features_have_the_covariance_as_their_mean(names):
    """Within five standard errors of the mean of 10,000 of them, entry by entry."""

    @jax.jit
    def errors(X, coded):
        found = {}
        for name in names:
            kernel = KERNELS[name]
            Z = coded if name == "levels" else X
            F = random_features(kernel, jax.random.key(3), 10_000, Z, Z[0])
            P = F[:, None, :] * F[None, :, :]
            found[name] = (P.mean(-1) - kernel(Z, Z)) / (P.std(-1) / 70.0 + 1e-6)  # twins: half as many are free
        return found

    for name, z in errors(X, CODED).items():
        assert np.max(np.abs(z)) < 5, name


@pytest.fixture(scope="module")
def data():
    x = np.linspace(0, 6, 12) + 100.0
    y = 5 + 2 * np.sin(x) + 0.3 * RNG.normal(size=12)
    y[4] = np.nan
    return x, y


GRID = jnp.asarray([100.3, 102.9, 105.1, 106.5])
SOLVERS = {
    "exact": (pk.Matern52(1.5, 2.0), None, {}),
    "line": (pk.Matern52(1.5, 2.0), pk.gp.Markov(), {}),
    "places": (pk.SHO(5.0, 0.8, 2.0), None, {"places": GRID}),
    "sparse": (pk.RBF(1.5, 2.0), pk.gp.Sparse(4), {}),
    "basis": (pk.RBF(1.5, 2.0), pk.gp.HSGP(20, 2.0), {}),
}


def exact_law(name, law, y):
    """Mean and covariance of the function at GRID given y."""
    if name == "sparse":  # inducing points tell of the weights; what they leave out is as in the prior
        F = law.features(GRID)
        w, _, _ = law._weights(y)
        mean, S = lowrank.project(w, F)
        return law.mean_at(GRID) + mean, S.T @ S + law.kernel(GRID, GRID) - F.T @ F
    if name == "line":
        law = pk.gp.GaussianProcess(law.kernel, law.X, law.noise_scale, law.loc)
    found = law.predict(y, GRID)
    return found.mean, found.covariance_matrix - 0.09 * jnp.eye(4)


@pytest.mark.once
@pytest.mark.parametrize(
    "name", ["exact", *(pytest.param(name, marks=pytest.mark.slow) for name in SOLVERS if name != "exact")]
)
def test_functions_have_the_mean_and_covariance_of_the_posterior(name, data):
    x, y = data
    kernel, solver, options = SOLVERS[name]
    posterior = pk.fit(pk.GP(kernel, 0.3, 5.0, solver), y, x, key=jax.random.key(0), method=pk.MAP())
    f = pk.gp.functions(posterior, key=jax.random.key(1), draws=4000, features=64, **options)
    values = np.asarray(f(GRID), float)
    y, X = posterior.target.args
    law = posterior.target.resolved().model.distribution(X, len(y))
    mean, want = (np.asarray(v, float) for v in jax.jit(exact_law, static_argnums=0)(name, law, y))
    assert values.shape == (4000, 4)
    assert_allclose(values.mean(0), mean, atol=5 * np.sqrt(want.diagonal().max() / 4000))
    assert_allclose(np.cov(values.T), want, atol=0.15 * want.diagonal().max())
    # The same function wherever else it is asked, and alone.
    assert_allclose(f(GRID[1:3])[7], values[7, 1:3], rtol=tol(1e-6, 2e-3))
    assert_allclose(f[7](GRID), values[7], rtol=tol(1e-6, 2e-3))


@pytest.fixture(scope="module")
def fitted(data):
    x, y = data
    return lambda kernel: pk.fit(pk.GP(kernel, 0.3, 5.0), y, x, key=jax.random.key(0), method=pk.MAP())


@pytest.mark.once
def test_a_function_has_derivatives(fitted):
    f = pk.gp.functions(fitted(pk.Matern52(1.5, 2.0)), key=jax.random.key(1), draws=3, features=64)[1]
    h = 1e-5
    slope = jax.jit(jax.grad(lambda x: f(x[None])[0]))(GRID[1])
    assert_allclose(slope, (f(GRID[1:2] + h) - f(GRID[1:2] - h))[0] / (2 * h), rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_parameters_vary_over_functions(data):
    """Functions are spread over the draws of the parameters, more of them than draws too."""
    x, y = data
    posterior = pk.fit(pk.GP(pk.RBF(1.5), 0.3, 5.0), y, x, key=jax.random.key(0), method=pk.MAP(starts=1))
    f = pk.gp.functions(posterior, key=jax.random.key(1), draws=2)
    assert len(f) == 2
    assert f.values["kernel.scale"].shape == (2,)
    assert not np.allclose(*f(GRID))


@pytest.mark.once
def test_border(fitted):
    with pytest.raises(TypeError, match=r"SHO has no random features; pass places="):
        pk.gp.functions(fitted(pk.SHO(5.0, 0.8, 2.0)), key=jax.random.key(1))
    with pytest.raises(TypeError, match="White, which is noise"):
        pk.gp.functions(fitted(pk.RBF(1.0, 1.0) + pk.White(0.1)), key=jax.random.key(1))
    with pytest.raises(TypeError, match=r"posterior of a pk\.GP"):
        pk.gp.functions(pk.GP(), key=jax.random.key(1))
    with pytest.raises(ValueError, match="draws is 0"):
        pk.gp.functions(fitted(pk.RBF(1.0, 1.0)), key=jax.random.key(1), draws=0)
    with pytest.raises(ValueError, match=r"places has shape \(3, 2\)"):
        pk.gp.functions(fitted(pk.RBF(1.0, 1.0)), key=jax.random.key(1), places=jnp.ones((3, 2)))
    sparse = dataclasses.replace(fitted(pk.RBF(1.0, 1.0)).model, solver=pk.gp.Sparse(3))
    posterior = pk.fit(sparse, np.arange(5.0), np.arange(5.0), key=jax.random.key(0), method=pk.MAP())
    with pytest.raises(TypeError, match=r"gp\.Sparse draws its functions by features alone"):
        pk.gp.functions(posterior, key=jax.random.key(1), places=jnp.ones(3))
    f = pk.gp.functions(fitted(pk.RBF(1.0, 1.0)), key=jax.random.key(1), draws=2)
    with pytest.raises(ValueError, match=r"X has shape \(3, 2\)"):
        f(jnp.ones((3, 2)))
    with pytest.raises(TypeError, match="one function already"):
        f[0][0]
