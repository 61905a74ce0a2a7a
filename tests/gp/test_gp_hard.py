"""Hard cases in both precisions: finite values, no NaN gradient, jitter told; and the model on ugly data."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk

RNG = np.random.default_rng(0)
N, D = 24, 3
X = RNG.uniform(size=(N, D))
Y = np.sin(3 * X.sum(1)) + 0.1 * RNG.normal(size=N)


def case(X=X, y=Y, lengthscale=0.7, noise=0.1):
    return np.asarray(X, float), np.asarray(y, float), lengthscale, noise


CASES = {
    "no noise, long": case(lengthscale=10.0, noise=1e-10),
    "six times": case(X[np.repeat(np.arange(4), 6)]),
    "six times, no noise": case(X[np.repeat(np.arange(4), 6)], noise=1e-10),
    "offset 1e4": case(X + 1e4),
    "offset 1e6": case(X + 1e6),
    "constant column": case(np.c_[X[:, :2], np.full(N, 5.0)]),
    "constant y": case(y=np.full(N, 3.0)),
}
KERNELS = [pk.RBF, pk.Matern12, pk.Matern32, pk.Matern52, pk.RationalQuadratic]


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda k: k.__name__)
def test_values_and_gradients_are_finite(kernel):
    def value(parameters, X, y):
        length, scale, noise = parameters
        more = {"alpha": 1.0} if kernel is pk.RationalQuadratic else {}
        return pk.gp.GaussianProcess(kernel(jnp.full(D, length), scale, **more), X, noise).log_prob(y)

    A, ys, lengths, noises = (jnp.asarray(np.stack(part)) for part in zip(*CASES.values(), strict=True))
    parameters = jnp.stack([lengths, jnp.ones_like(lengths), noises], axis=1)
    both = jax.jit(lambda p, A, y: jax.lax.map(lambda c: jax.value_and_grad(value, (0, 1))(*c), (p, A, y)))
    values, gradients = both(parameters, A, ys)
    assert jnp.all(jnp.isfinite(values)), dict(zip(CASES, values.tolist(), strict=True))
    for leaf in gradients:
        assert jnp.all(jnp.isfinite(leaf))


def test_offsets_cost_no_digits():
    def value(X):
        return pk.gp.GaussianProcess(pk.RBF(0.7, 1.0), jnp.asarray(X), 0.1).log_prob(jnp.asarray(Y))

    rounded = np.round(X * 2**10) / 2**10  # exact beside an offset in double
    assert_allclose(value(rounded + 1e4), value(rounded), rtol=tol(1e-9, 3e-2))
    if jnp.result_type(float) == jnp.float64:
        assert_allclose(value(rounded + 1e6), value(rounded), rtol=1e-9)


@pytest.mark.skipif(jnp.result_type(float) != jnp.float64, reason="needs digits to lose")
def test_no_jitter_no_error():
    mpmath = pytest.importorskip("mpmath")
    mpmath.mp.dps = 60
    x = np.linspace(0, 1, 8)
    kernel, y = pk.Matern32(2.0, 1.0), np.sin(3 * x)
    process = pk.gp.GaussianProcess(kernel, jnp.asarray(x), 1e-3)
    assert process.jitter() == 0
    root = mpmath.sqrt(3)
    K = mpmath.matrix(8, 8)
    for i in range(8):
        for j in range(8):
            r = root * abs(mpmath.mpf(float(x[i])) - mpmath.mpf(float(x[j]))) / 2
            K[i, j] = (1 + r) * mpmath.exp(-r) + (mpmath.mpf(1e-3) ** 2 if i == j else 0)
    r = mpmath.matrix([mpmath.mpf(float(v)) for v in y])
    quadratic = (r.T * mpmath.lu_solve(K, r))[0]
    want = -(quadratic + mpmath.log(mpmath.det(K)) + 8 * mpmath.log(2 * mpmath.pi)) / 2
    assert_allclose(process.log_prob(jnp.asarray(y)), float(want), rtol=1e-6)


@pytest.mark.parametrize("n", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_one_and_two_points(n):
    posterior = pk.fit(pk.GP(pk.RBF()), [3.0, 4.0][:n], key=jax.random.key(0), method=pk.MAP(starts=1))
    assert np.all(np.isfinite(posterior.predict().mean))


def test_the_report_tells_solver_and_jitter():
    model = pk.GP(pk.RBF(10.0, 1.0), obs_scale=1e-10, mean=0.0)
    told = pk.fit(model, np.sin(X[:, 0]), X[:, 0], key=jax.random.key(0), method=pk.MAP()).report.notes
    assert any("Cholesky" in note for note in told) and any("was added to the diagonal" in note for note in told)


def test_known_noise_and_a_line_as_the_mean():
    noise = np.linspace(0.05, 0.2, N)
    x = np.linspace(0, 5, N)
    y = 3 + 2 * x + noise * RNG.normal(size=N)
    y[3] = np.nan
    model = pk.GP(pk.RBF(1.0, 0.1), obs_scale=noise, mean=pk.gp.LinearMean())
    posterior = pk.fit(model, y, x, key=jax.random.key(0), method=pk.Laplace(draws=200, starts=2))
    assert_allclose(posterior.sites["mean.slope"].mean(), 2, atol=0.15)
    new = posterior.predict(np.array([2.5, 7.0]))
    assert_allclose(new.mean, [8, 17], atol=0.8)
    assert new.std[0] < new.std[1]
    assert np.isnan(posterior.loo_terms[..., 3]).all() and np.isfinite(np.delete(posterior.loo_terms, 3, 2)).all()


@pytest.mark.slow
def test_a_deep_kernel_learns_a_scale():
    import equinox as eqx

    net = eqx.nn.Linear(1, 2, key=jax.random.key(0))
    warp = pk.gp.learned(net)
    kernel = pk.gp.Warped(pk.RBF(scale=1.0), _Rows(warp), width=2)
    x = np.linspace(-1, 1, 20)
    posterior = pk.fit(
        pk.GP(kernel, obs_scale=0.1, mean=0.0), np.sin(3 * x), x, key=jax.random.key(1), method=pk.MAP(starts=1)
    )
    assert {"kernel.warp.net.weight", "kernel.warp.net.bias"} <= set(posterior.sites)
    assert_allclose(posterior.predict(x).mean, np.sin(3 * x), atol=0.2)


class _Rows(pk.gp.covariance.eqx.Module):
    net: object

    def __call__(self, X):
        return jnp.tanh(jax.vmap(self.net)(pk.gp.kernels.columns(X)))
