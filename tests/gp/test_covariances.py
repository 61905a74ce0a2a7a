"""Covariances against scikit-learn and against their formulas, their algebra and their gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process import kernels as sk

import probkit as pk
from probkit.gp.covariance import Covariance
from probkit.model import Default

RTOL = tol(1e-8, 3e-3)
RNG = np.random.default_rng(0)
X = RNG.uniform(-2, 2, (14, 3))
X[3] = X[2]
X_NEW = RNG.uniform(-2, 2, (5, 3))
Y = np.sin(X.sum(1)) + 0.1 * RNG.normal(size=14)
ARD = [0.7, 1.5, 2.5]

# name: (ours from a vector of parameters, theirs, the parameters, column of X for one-dimensional ones).
# Theirs takes the logs of its own parameters, `theta`, in its own order: `order` maps ours to them, with powers.
SHARED = {
    "rbf": (lambda p: pk.RBF(p[1:4], p[0]), lambda p: p[0] ** 2 * sk.RBF(p[1:4]), [1.3, *ARD]),
    "matern12": (lambda p: pk.Matern12(p[1:4], p[0]), lambda p: p[0] ** 2 * sk.Matern(p[1:4], nu=0.5), [1.3, *ARD]),
    "matern32": (lambda p: pk.Matern32(p[1:4], p[0]), lambda p: p[0] ** 2 * sk.Matern(p[1:4], nu=1.5), [1.3, *ARD]),
    "matern52": (lambda p: pk.Matern52(p[1:4], p[0]), lambda p: p[0] ** 2 * sk.Matern(p[1:4], nu=2.5), [1.3, *ARD]),
    "rational": (
        lambda p: pk.RationalQuadratic(p[1], p[0], p[2]),
        lambda p: p[0] ** 2 * sk.RationalQuadratic(p[1], p[2]),
        [1.3, 0.8, 1.7],
    ),
    "periodic": (
        lambda p: pk.Periodic(p[1], p[2], p[0], columns=(0,)),
        lambda p: p[0] ** 2 * sk.ExpSineSquared(p[2], p[1]),
        [1.3, 1.9, 0.8],
    ),
    "linear": (
        lambda p: p[0] ** 2 * (pk.Linear(1.0, centre=0.0) + pk.Constant(p[1] ** 2)),
        lambda p: p[0] ** 2 * sk.DotProduct(p[1]),
        [0.9, 0.6],
    ),
    "polynomial": (
        lambda p: pk.Polynomial(3, p[0], p[1], lengthscale=1.0, centre=0.0),
        lambda p: p[0] ** 2 * sk.Exponentiation(sk.DotProduct(p[1]), 3),
        [0.4, 0.6],
    ),
    "sum and power": (
        lambda p: pk.RBF(p[1], p[0]) ** 2 + pk.White(p[2]) + pk.Constant(0.5),
        lambda p: (p[0] ** 2 * sk.RBF(p[1])) ** 2 + sk.WhiteKernel(p[2] ** 2) + sk.ConstantKernel(0.5),
        [1.3, 0.8, 0.3],
    ),
    "product": (
        lambda p: pk.RBF(p[1], p[0]) * pk.RationalQuadratic(p[2], 1.0, 1.5),
        lambda p: p[0] ** 2 * sk.RBF(p[1]) * sk.RationalQuadratic(p[2], 1.5),
        [1.3, 0.8, 2.0],
    ),
}


def inputs(name):
    return (X[:, :1], X_NEW[:, :1]) if name == "periodic" else (X, X_NEW)


@pytest.mark.once
@pytest.mark.parametrize("name", SHARED)
def test_against_scikit_learn(name):
    ours, theirs, parameters = SHARED[name]
    A, B = inputs(name)
    alpha = 0.05
    at = np.asarray(parameters)

    @jax.jit
    def everything(p, A, B, y):
        gp = pk.gp.GaussianProcess(ours(p), A, alpha**0.5)
        law = gp.predict(y, B)
        value, gradient = jax.value_and_grad(lambda p: pk.gp.GaussianProcess(ours(p), A, alpha**0.5).log_prob(y))(p)
        kernel = ours(p)
        return kernel(A, A), kernel(A, B), kernel.diagonal(A), value, gradient, law.mean, law.variance

    K, cross, diagonal, value, gradient, mean, variance = everything(*map(jnp.asarray, (at, A, B, Y)))
    kernel = theirs(at)
    assert_allclose(K, kernel(A), rtol=RTOL, atol=RTOL)
    assert_allclose(cross, kernel(A, B), rtol=RTOL, atol=RTOL)
    assert_allclose(diagonal, kernel.diag(A), rtol=RTOL)
    model = GaussianProcessRegressor(kernel, alpha=alpha, optimizer=None).fit(A, Y)
    assert_allclose(value, model.log_marginal_likelihood_value_, rtol=RTOL)
    their_mean, their_std = model.predict(B, return_std=True)
    assert_allclose(mean, their_mean, rtol=RTOL, atol=RTOL)
    # Theirs is the function where the kernel holds no noise of its own; ours is an observation.
    assert_allclose(variance, their_std**2 + alpha, rtol=RTOL, atol=RTOL) if name != "sum and power" else None

    def likelihood(p):
        fixed = GaussianProcessRegressor(theirs(p), alpha=alpha, optimizer=None).fit(A, Y)
        return fixed.log_marginal_likelihood_value_

    step = 1e-5 * np.eye(len(at))
    numeric = [(likelihood(at + e) - likelihood(at - e)) / 2e-5 for e in step]
    assert_allclose(gradient, numeric, rtol=tol(1e-5, 2e-2), atol=tol(1e-5, 2e-2))


@pytest.mark.parametrize("name", ["rbf", "matern12", "matern32", "matern52"])
def test_gradient_of_stationary_kernels_against_scikit_learn(name):
    ours, theirs, parameters = SHARED[name]
    at = np.asarray(parameters)
    model = GaussianProcessRegressor(theirs(at), alpha=0.05, optimizer=None).fit(X, Y)
    _, want = model.log_marginal_likelihood(model.kernel_.theta, eval_gradient=True)
    got = jax.jit(
        jax.grad(
            lambda log: pk.gp.GaussianProcess(ours(jnp.exp(log)), jnp.asarray(X), 0.05**0.5).log_prob(jnp.asarray(Y))
        )
    )(jnp.log(jnp.asarray(at)))
    assert_allclose(got, want * np.array([2.0, 1, 1, 1]), rtol=RTOL, atol=RTOL)


OTHERS = {
    "cosine": pk.Cosine(1.7, 0.8, columns=(1,)),
    "spectral": pk.SpectralMixture(2, [0.8, 0.5], [[0.3, 0.1, 0.2], [1.0, 0.5, 0.0]], [[0.1] * 3, [0.2] * 3]),
    "sho": pk.SHO(1.5, 2.0, 0.7, columns=(2,)),
    "overdamped": pk.SHO(1.5, 0.2, 0.7, columns=(2,)),
    "critical": pk.SHO(1.5, 0.5, 0.7, columns=(2,)),
    "steps": pk.ArcCosine(0, 0.9, 0.8, centre=0.0),
    "ramps": pk.ArcCosine(1, 0.9, [0.8, 0.5, 1.0], centre=0.0),
    "bends": pk.ArcCosine(2, 0.9, 0.8, centre=0.0),
    "warped": pk.gp.Warped(pk.RBF(0.7, 1.0), jnp.tanh),
    "change": pk.gp.ChangePoint(pk.RBF(0.7, 1.0, columns=(0,)), pk.Matern12(0.3, 2.0), 0.2, 0.4, column=1),
    "active": pk.RBF([0.7, 0.5], 1.0, columns=(0, 2)) * pk.Periodic(2.0, 1.0, 1.0, columns=(1,)),
}


@pytest.mark.once
@pytest.mark.parametrize("name", OTHERS)
def test_each_is_a_covariance(name):
    kernel = OTHERS[name]
    A, B = jnp.asarray(X), jnp.asarray(X_NEW)
    K, cross, diagonal = jax.jit(lambda A, B: (kernel(A, A), kernel(A, B), kernel.diagonal(A)))(A, B)
    assert_allclose(K, K.T, atol=tol(1e-12, 1e-5))
    assert_allclose(jnp.diagonal(K), diagonal, rtol=tol(1e-12, 1e-5))
    # Equal inputs are equal up to the root of the rounding of their squared distance.
    both = [2, 3]
    assert_allclose(np.delete(K[:, 2], both), np.delete(K[:, 3], both), rtol=tol(1e-7, 1e-3))
    assert_allclose(K[2, 3], K[2, 2], rtol=tol(1e-6, 5e-3))
    whole = kernel(jnp.concatenate([A, B]), jnp.concatenate([A, B]))
    assert_allclose(whole[:14, 14:], cross, rtol=RTOL, atol=RTOL)
    assert np.linalg.eigvalsh(np.asarray(whole, float)).min() > -tol(1e-10, 1e-4) * float(diagonal.max())


def test_formulas():
    tau = np.abs(X[:, 2][:, None] - X[:, 2][None])
    A = jnp.asarray(X)
    w, quality = 2 * np.pi / 1.5, 2.0
    b = w / (2 * quality)
    v = np.sqrt(w**2 - b**2)
    want = 0.49 * np.exp(-b * tau) * (np.cos(v * tau) + b * np.sin(v * tau) / v)
    assert_allclose(OTHERS["sho"](A, A), want, rtol=RTOL, atol=RTOL)
    b = w / (2 * 0.2)
    v = np.sqrt(b**2 - w**2)
    want = 0.49 * np.exp(-b * tau) * (np.cosh(v * tau) + b * np.sinh(v * tau) / v)
    assert_allclose(OTHERS["overdamped"](A, A), want, rtol=RTOL, atol=RTOL)
    assert_allclose(OTHERS["critical"](A, A), 0.49 * np.exp(-w * tau) * (1 + w * tau), rtol=RTOL, atol=RTOL)
    u = np.c_[0.8 * X, np.ones(14)]
    size = np.linalg.norm(u, axis=1)
    cosine = np.clip(u @ u.T / np.outer(size, size), -1, 1)
    np.fill_diagonal(cosine, 1)
    theta = np.arccos(cosine)
    rough = tol(1e-7, 3e-3)  # an angle near 0 is known to the root of the precision
    assert_allclose(OTHERS["steps"](A, A), 0.81 * (1 - theta / np.pi), atol=rough)
    want = 0.81 / (3 * np.pi) * np.outer(size, size) ** 2
    want = want * (3 * np.sin(theta) * cosine + (np.pi - theta) * (1 + 2 * cosine**2))
    assert_allclose(OTHERS["bends"](A, A), want, rtol=rough)


@pytest.mark.parametrize("name", [*OTHERS, "rational", "sum and power"])
def test_gradients_are_finite_at_coinciding_inputs(name):
    kernel = OTHERS.get(name) or SHARED[name][0](jnp.asarray(SHARED[name][2]))
    kernel = jax.tree_util.tree_map(lambda v: jnp.asarray(v, float) if isinstance(v, float | np.ndarray) else v, kernel)
    arrays, rest = pk.gp.covariance.eqx.partition(kernel, pk.gp.covariance.eqx.is_inexact_array)

    def likelihood(arrays, A):
        one = pk.gp.covariance.eqx.combine(arrays, rest)
        return pk.gp.GaussianProcess(one, A, 0.3).log_prob(jnp.asarray(Y))

    found = jax.jit(jax.grad(likelihood, (0, 1)))(arrays, jnp.asarray(X))
    assert all(jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree_util.tree_leaves(found))


def test_many_outputs_are_a_kronecker_product():
    x = np.linspace(0, 1, 4)
    rows = jnp.asarray([(t, k) for k in range(3) for t in x])
    W, v = np.array([[1.0], [0.5], [-1.0]]), np.array([0.1, 0.2, 0.3])
    kernel = pk.RBF(0.4, 1.0, columns=(0,)) * pk.gp.Coregion(3, column=1, weights=W, variances=v)
    B = W @ W.T + np.diag(v)
    base = pk.RBF(0.4, 1.0)(jnp.asarray(x), jnp.asarray(x))
    assert_allclose(kernel(rows, rows), np.kron(B, base), rtol=RTOL, atol=RTOL)
    assert_allclose(kernel.diagonal(rows), np.kron(np.diag(B), np.ones(4)), rtol=RTOL)
    category = pk.gp.Categorical(3, column=1, correlation=0.3, scale=2.0)
    assert_allclose(category(rows, rows), np.kron(4 * (0.7 * np.eye(3) + 0.3), np.ones((4, 4))), rtol=RTOL)


def test_operators_name_their_parts():
    kernel = pk.RBF() + 2.0 * pk.Periodic(1.0) * pk.RBF() + pk.RBF()
    assert list(kernel.parts) == ["rbf", "product", "rbf_2"]
    inner = kernel.parts["product"].parts
    assert list(inner) == ["periodic", "constant", "rbf"]
    assert isinstance(inner["periodic"].scale, Default) and inner["rbf"].scale == 1.0
    assert isinstance((pk.RBF() * (pk.RBF() + pk.Linear())), Covariance)
    named = pk.gp.Sum(trend=pk.RBF(), season=pk.Periodic(1.0))
    sites = pk.model.plain_priors(pk.model.with_defaults(pk.GP(named), jnp.arange(8.0), None))
    assert "kernel.parts.trend.lengthscale" in sites and "kernel.parts.season.scale" in sites


def test_numbers_and_priors_beside_a_covariance():
    A = jnp.asarray(X)
    base = pk.RBF(1.0, 1.0)
    assert_allclose((3.0 * base)(A, A), 3 * base(A, A), rtol=1e-6)
    assert_allclose((base + 3.0)(A, A), 3 + base(A, A), rtol=1e-6)
    assert_allclose((base**2)(A, A), base(A, A) ** 2, rtol=1e-6)
    prior = pk.gp.covariance.dist.HalfNormal(2.0)
    assert (prior * base if hasattr(prior, "__mul__") else base * prior).parts["constant"].variance is prior
    for wrong in (lambda: base**0.5, lambda: base + "x", lambda: pk.gp.Sum(a=base), lambda: pk.ArcCosine(3)):
        with pytest.raises((TypeError, ValueError), match="wanted"):
            wrong()


def test_default_lengthscales_grow_with_the_root_of_the_columns():
    rng = np.random.default_rng(0)
    y = jnp.asarray(rng.normal(size=50))
    A = jnp.asarray(rng.uniform(size=(50, 4)))
    whole = pk.model.with_defaults(pk.GP(pk.RBF()), y, A).kernel.lengthscale
    part = pk.model.with_defaults(pk.GP(pk.RBF(columns=(1,))), y, A).kernel.lengthscale
    assert whole.event_shape == (4,) and part.event_shape == (1,)
    assert_allclose(np.exp(whole.base_dist.loc[1] - part.base_dist.loc[0]), 2.0, rtol=1e-5)
