"""Kronecker algebra on grids against the dense process: value, derivatives, leave-one-out, prediction."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.gp import kronecker

RNG = np.random.default_rng(0)
# Evenly spaced periodic factors have eigenvalues in equal pairs, where eigenvectors have no derivative.
AXES = (np.linspace(0, 3, 4), np.arange(6.0) + 50.0, np.array([-1.0, 0.5, 0.6]))
FULL = np.stack([g.ravel() for g in np.meshgrid(*AXES, indexing="ij")], axis=1)
ORDER = RNG.permutation(72)
X = jnp.asarray(FULL[ORDER])
Y = jnp.asarray(np.sin(X[:, 0]) + np.cos(X[:, 1]) + np.asarray(X[:, 2]) + 0.3 * RNG.normal(size=72))
PART = X[:66]  # six points have no row, four no value
HOLED = Y[:66].at[jnp.asarray([3, 20, 21, 50])].set(jnp.nan)
X_NEW = jnp.asarray([[0.4, 51.3, 0.0], [3.0, 50.0, 0.5], [5.0, 48.0, 2.0]])


def kernel_of(u):
    one = pk.RBF([u[0], 2.0, u[1]], u[2]) * pk.Periodic(6.0, u[3], 1.0, columns=(1,))
    return one * (pk.Matern52(u[4], 1.0, columns=(2,)) + 0.3) ** 2


def laws(u, X, missing):
    kernel, noise = kernel_of(u), u[5]
    axes = tuple(jnp.asarray(a) for a in AXES)
    return (
        pk.gp.GridProcess(kernel, X, noise, u[6], axes, missing),
        pk.gp.GaussianProcess(kernel, X, noise, u[6]),
    )


U = jnp.asarray([1.3, 0.8, 1.1, 0.9, 1.5, 0.4, 0.2])


@pytest.mark.parametrize(
    ("missing", "X", "y"),
    [pytest.param(0, X, Y, marks=pytest.mark.once, id="full"), pytest.param(12, PART, HOLED, id="holes")],
)
def test_everything_as_by_the_dense_process(missing, X, y):
    @jax.jit
    def both(u, y):
        found = []
        for i in range(2):
            of = lambda u, i=i: laws(u, X, missing)[i].log_prob(y)
            law = laws(u, X, missing)[i]
            loo, here, there = law.leave_one_out(y), law.predict(y), law.predict(y, X_NEW)
            value, slope = jax.value_and_grad(of)(u)
            alpha = law.representer(y)
            found.append((value, slope, loo.mean, loo.variance, here.mean, here.variance, there.mean,
                          there.covariance_matrix, alpha))  # fmt: skip
        return found

    for got, want in zip(*both(U, y), strict=True):
        assert_allclose(got, want, rtol=tol(1e-8, 5e-3), atol=tol(1e-8, 5e-3))


@pytest.mark.slow
@pytest.mark.parametrize(("missing", "X", "y"), [(0, X, Y), (10, PART, HOLED)], ids=["full", "holes"])
def test_second_derivatives(missing, X, y):
    """Also where eigenvalues are equal; Laplace's method needs them."""
    hessians = jax.jit(lambda u: [jax.hessian(lambda u, i=i: laws(u, X, missing)[i].log_prob(y))(u) for i in range(2)])
    got, want = hessians(U)
    assert_allclose(got, want, rtol=tol(1e-6, 0.05), atol=tol(1e-6, 0.05))


def test_more_missing_than_allowed_and_rows_off_the_grid():
    of = jax.jit(lambda X, y: laws(U, X, 5)[0].log_prob(y))
    assert np.isfinite(of(X, Y))
    for rows, y in [
        (X, Y.at[:6].set(jnp.nan)),
        (X.at[0, 0].add(0.1), Y),
        (X.at[0].set(X[1]), Y),
    ]:
        assert of(rows, y) == -jnp.inf


@pytest.mark.slow
def test_batches_do_not_batch_eigendecompositions():
    many = jnp.stack([U, 1.1 * U, 0.9 * U])
    of = lambda u: laws(u, PART, 10)[0].log_prob(HOLED)
    assert_allclose(jax.jit(jax.vmap(of))(many), [of(u) for u in many], rtol=tol(1e-9, 1e-3))


@pytest.mark.slow
def test_draws_from_the_prior():
    grid, dense = laws(U, PART, 6)
    draws = np.asarray(jax.jit(lambda key: grid.sample(key, (4000,)))(jax.random.key(0)), float)
    want = np.asarray(dense.covariance(), float)
    assert_allclose(np.cov(draws.T)[:9, :9], want[:9, :9], atol=0.12 * want.max())


@pytest.mark.slow
def test_slopes_of_the_determinant_match_autodiff():
    """The hand-written first and second derivative of log det C beside those of the dense determinant."""
    A = [RNG.normal(size=(n, n)) for n in (3, 2)]
    B = [RNG.normal(size=(n, n)) for n in (3, 2)]

    def of(t, dense):
        factors = tuple(jnp.asarray(a @ a.T + t * (b @ b.T)) for a, b in zip(A, B, strict=True))
        noise = 0.3 + t
        if dense:
            return jnp.linalg.slogdet(jnp.kron(*factors) + noise * jnp.eye(6))[1]
        return kronecker.log_det(factors, noise, kronecker.spectrum_of(factors))

    for order in (lambda f: f, jax.grad, lambda f: jax.grad(jax.grad(f))):
        assert_allclose(order(lambda t: of(t, False))(0.2), order(lambda t: of(t, True))(0.2), rtol=tol(1e-8, 1e-2))


@pytest.mark.slow
def test_as_the_solver_of_a_model():
    model = lambda solver: pk.GP(pk.RBF([1.0, 2.0, 1.0]), 0.4, 0.0, solver)
    found = {}
    for name, solver in {"grid": pk.gp.Grid(), "dense": None}.items():
        posterior = pk.fit(model(solver), HOLED, PART, key=jax.random.key(0), method=pk.MAP(starts=1))
        found[name] = posterior.sites["kernel.scale"]
    assert_allclose(found["grid"], found["dense"], rtol=tol(1e-6, 1e-2))


@pytest.mark.once
def test_a_model_finds_its_grid():
    model = pk.GP(pk.RBF([1.0, 2.0, 1.0], 1.0), 0.4, 0.0, pk.gp.Grid())
    posterior = pk.fit(model, HOLED, PART, key=jax.random.key(0), method=pk.MAP())
    assert any("on a grid of 4 x 6 x 3 points, 10 of them without" in note for note in posterior.report.notes)


@pytest.mark.once
@pytest.mark.parametrize("solver", [pk.gp.Grid(), pk.gp.Vecchia(9)], ids=["grid", "neighbours"])
def test_many_series_and_draws_before_the_data(solver):
    key, y = jax.random.key(0), np.asarray(Y[:20]).reshape(10, 2).copy()
    y[4] = np.nan
    if isinstance(solver, pk.gp.Grid):  # the most points without a value of any series
        y[5:7, 0] = np.nan
    model = lambda solver: pk.GP(pk.Matern52(2.0, 1.0), 0.4, 0.0, solver)
    found, want = (pk.fit(model(s), y, key=key, progress=False) for s in (solver, pk.gp.Exact()))
    assert_allclose(found.predict().mean, want.predict().mean, rtol=1e-6)
    drawn = pk.prior_predictive(model(solver), length=6, draws=5, key=key).draws
    assert drawn.shape == (1, 5, 6) and np.all(np.isfinite(drawn))


@pytest.mark.once
def test_border():
    fit = lambda kernel, X, y=Y, **of: pk.fit(
        pk.GP(kernel, 0.4, 0.0, pk.gp.Grid(**of)), y, X, key=jax.random.key(0), method=pk.MAP()
    )
    with pytest.raises(TypeError, match="is no product along them"):
        fit(pk.Matern32(1.0, 1.0), X)
    with pytest.raises(ValueError, match="1 rows that repeat others"):
        fit(pk.RBF(1.0, 1.0), X.at[0].set(X[1]))
    with pytest.raises(ValueError, match="which is no grid"):
        fit(pk.RBF(1.0, 1.0), jnp.asarray(RNG.normal(size=(300, 3))), jnp.ones(300))
    with pytest.raises(ValueError, match=r"9900 of 10000 points .*gp\.Vecchia\(\) or gp\.Sparse\(\)"):
        fit(pk.RBF(1.0, 1.0), jnp.asarray(RNG.normal(size=(100, 2))), jnp.ones(100))
    with pytest.raises(ValueError, match="axes has 2 parts"):
        fit(pk.RBF(1.0, 1.0), X, axes=AXES[:2])
    with pytest.raises(ValueError, match=r"axes of gp\.Grid are not known"):
        pk.gp.Grid().distribution(pk.RBF(1.0, 1.0), X, 0.1, 0.0)
    with pytest.raises(ValueError, match="the same everywhere"):
        pk.gp.GridProcess(pk.RBF(1.0, 1.0), X, jnp.ones(72), 0.0, AXES)
