"""Covariances of values and slopes against closed forms and finite differences; processes that see slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk

RNG = np.random.default_rng(0)
# Two rows at one place, and a marker of every kind.
A = RNG.uniform(-1, 1, (6, 2))
A[3] = A[0]
MARKER = np.array([0.0, 1, 2, 1, 0, 2])
X = jnp.asarray(np.c_[A, MARKER])
LENGTH = np.array([0.8, 1.3])


def test_closed_form_of_the_rbf():
    """``d_a d_b' k = (delta_ab / l_a² - t_a t_b / (l_a l_b)²) k`` with ``t = x - x'``; ``d_a k = -t_a / l_a² k``."""
    T = A[:, None, :] - A[None, :, :]
    K = 1.44 * np.exp(-0.5 * np.sum((T / LENGTH) ** 2, -1))
    want = np.empty((6, 6))
    for i in range(6):
        for j in range(6):
            a, b = int(MARKER[i]) - 1, int(MARKER[j]) - 1
            t = T[i, j] / LENGTH**2
            factor = 1.0
            if a >= 0 and b >= 0:
                factor = (a == b) / LENGTH[a] ** 2 - t[a] * t[b]
            elif a >= 0:
                factor = -t[a]
            elif b >= 0:
                factor = t[b]
            want[i, j] = factor * K[i, j]
    kernel = pk.gp.Derivative(pk.RBF(LENGTH, 1.2), 0.0)
    got, diagonal = jax.jit(lambda X: (kernel(X, X), kernel.diagonal(X)))(X)
    assert_allclose(got, want, rtol=tol(1e-10, 1e-4), atol=tol(1e-12, 1e-5))
    assert_allclose(diagonal, np.diag(want), rtol=tol(1e-10, 1e-4))


SMOOTH = {
    "matern32": (pk.Matern32(0.7, 1.2), 3 * 1.2**2 / 0.49),
    "matern52": (pk.Matern52(0.7, 1.2), 5 / 3 * 1.2**2 / 0.49),
    "rational": (pk.RationalQuadratic(0.7, 1.2, 0.8), 1.2**2 / 0.49),
    "arc": (pk.ArcCosine(1, 0.8, 1.2, 1.0, 0.1), 0.8**2 * 1.2**2),
    "product": (pk.RBF(0.7, 1.2) * pk.Linear([1.0, 0.5], [0.2, 0.0]), None),
}


@pytest.mark.once
def test_every_smooth_covariance_against_differences():
    """And at coinciding points, where the variance of a slope is ``-k''(0)``; three columns take the product form."""
    far = jnp.asarray(RNG.uniform(2, 3, (4, 2)))

    @jax.jit
    def both(X):
        found = {}
        h = 1e-4
        for name, (kernel, _) in SMOOTH.items():
            wrapped = pk.gp.Derivative(kernel, 0.0)
            mark = lambda Z, d: jnp.concatenate([Z, jnp.full((len(Z), 1), d)], axis=1)
            step = jnp.asarray([h, 0.0])
            k = lambda u, v, kernel=kernel, step=step: kernel(X[:, :2] + u * step, far + v * step)
            mixed = (k(1, 1) - k(1, -1) - k(-1, 1) + k(-1, -1)) / (4 * h * h)
            left = (k(1, 0) - k(-1, 0)) / (2 * h)
            got = wrapped(mark(X[:, :2], 1.0), mark(far, 1.0)), wrapped(mark(X[:, :2], 1.0), mark(far, 0.0))
            wide = jnp.concatenate([X[:, :2], X[:, :1] * 2.0, jnp.ones((6, 1))], axis=1)
            at = (
                wrapped.diagonal(mark(X[:, :2], 1.0)),
                pk.gp.Derivative(kernel, 0.0)(wide, wide) if name != "product" else 0,
            )
            found[name] = got, (mixed, left), at
        return found

    for name, (got, want, (own, wide)) in both(X).items():
        assert_allclose(got[0], want[0], rtol=1e-5, atol=1e-6)
        assert_allclose(got[1], want[1], rtol=1e-6, atol=1e-7)
        assert np.all(np.isfinite(wide))
        if SMOOTH[name][1] is not None:
            # An angle near 0 is known to the root of the rounding error.
            assert_allclose(own, SMOOTH[name][1], rtol=1e-7 if name == "arc" else 1e-9)
            assert_allclose(np.diag(wide), SMOOTH[name][1], rtol=1e-6)


def test_gradients_are_finite_where_points_coincide():
    y = jnp.asarray([0.3, 1.0, -0.2, 1.1, 0.1, 0.4])

    def of(u, X):
        kernel = pk.gp.Derivative(pk.Matern52(u[0], u[1]), 0.1)
        return pk.gp.GaussianProcess(kernel, X, 0.2, 0.0).log_prob(y)

    both, u, h = jax.jit(jax.value_and_grad(of)), jnp.asarray([0.8, 1.2]), tol(1e-6, 3e-3)
    value, slope = both(u, X)
    assert np.isfinite(value)
    for i, e in enumerate(jnp.eye(2)):
        assert_allclose(slope[i], (both(u + h * e, X)[0] - both(u - h * e, X)[0]) / (2 * h), rtol=tol(1e-5, 0.02))


def marked(x, marker):
    return np.c_[x, np.full(len(x), float(marker))]


@pytest.mark.once
def test_slopes_from_values():
    """The predicted slope is the slope of the prediction."""
    x, at, h = np.linspace(0, 5, 12), np.array([1.3, 2.9]), 1e-4
    model = pk.GP(pk.gp.Derivative(pk.Matern52(2.0, 3.0), 0.0), 0.05, 20.0)
    fitted = pk.fit(model, 20 + 3 * np.sin(x), marked(x, 0), key=jax.random.key(0), method=pk.MAP())
    mean = fitted.predict(np.r_[marked(at + h, 0), marked(at - h, 0), marked(at, 1)]).mean
    assert_allclose(mean[4:], (mean[:2] - mean[2:4]) / (2 * h), rtol=1e-5)
    assert_allclose(mean[4:], 3 * np.cos(at), atol=0.3)


@pytest.mark.slow
def test_slopes_teach_values(tmp_path):
    """Two values and five slopes place a function that two values do not; the posterior comes back from a file."""
    x = np.linspace(0, 5, 6)
    f, slope = lambda x: 1e4 * (2 + np.sin(x)), lambda x: 1e4 * np.cos(x)
    X = np.r_[marked(x[[0, 5]], 0), marked(x, 1)]
    y = np.r_[f(x[[0, 5]]), slope(x)]
    model = pk.GP(pk.gp.Derivative(pk.RBF(1.5)), mean=pk.gp.LinearMean())
    posterior = pk.fit(model, y, X, key=jax.random.key(0), method=pk.MAP(starts=1))
    new = marked(np.array([1.5, 3.5]), 0)
    assert_allclose(posterior.predict(new).mean, f(new[:, 0]), atol=3e3)
    assert posterior.sites["mean.slope"].shape == (1, 1)  # defaults look at x alone
    again = pk.load(pk.save(posterior, tmp_path / "p.npz"))
    assert_allclose(again.predict(new).mean, posterior.predict(new).mean)


@pytest.mark.once
def test_border():
    for rough in (pk.Matern12(), pk.RBF() + pk.White(), pk.SHO(1.0), pk.ArcCosine(0)):
        with pytest.raises(TypeError, match="has no derivative here"):
            pk.gp.Derivative(rough)
    with pytest.raises(TypeError, match="stands outermost"):
        pk.gp.Derivative(pk.RBF()) + pk.RBF()
    inside = pk.gp.Derivative(pk.RBF())
    for outer in (
        lambda: inside**2,
        lambda: pk.gp.Derivative(inside),
        lambda: pk.gp.Warped(inside, jnp.tanh),
        lambda: pk.gp.ChangePoint(pk.RBF(), inside, 1.0, 1.0),
    ):
        with pytest.raises(TypeError, match="stands outermost"):
            outer()
    with pytest.raises(TypeError, match="kernel is 3"):
        pk.gp.Derivative(3)
    fit = lambda X: pk.fit(pk.GP(pk.gp.Derivative(pk.RBF())), np.ones(3), X, key=jax.random.key(0))
    with pytest.raises(ValueError, match=r"holds 2.0; 0 \(a value\) to 1 \(a slope\)"):
        fit(np.array([[0.0, 0], [1.0, 2], [2.0, 0]]))
    with pytest.raises(ValueError, match=r"X has shape \(3,\)"):
        fit(np.arange(3.0))
    kernel = pk.gp.Derivative(pk.RBF(1.0, 1.0), 0.0)
    assert np.isnan(kernel(jnp.asarray([[0.0, 2.0]]), jnp.asarray([[0.0, 0.0]]))[0, 0])
