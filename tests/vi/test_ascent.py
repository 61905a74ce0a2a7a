"""Full-rank and low-rank guides on fixed draws, on Gaussians that they hold exactly."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.vi.ascent import fit_guide
from probkit.vi.guides import start_guide

DIM = 4


def target(kind):
    """Mean and covariance; for low-rank, one shared direction beside independent noise."""
    rng = np.random.default_rng(0)
    mean, W = rng.normal(size=DIM), rng.normal(size=(DIM, DIM if kind == "full-rank" else 1))
    return mean, W @ W.T + np.diag(np.linspace(0.5, 1.5, DIM))


@pytest.mark.parametrize(("kind", "matrix"), [("full-rank", True), ("low-rank", False)])
def test_a_gaussian_that_the_guide_holds(kind, matrix):
    """Whatever the coordinates, a vector of scales or a matrix."""
    dtype, (mean, S) = jnp.result_type(float), target(kind)
    factor = 0.8 * np.eye(DIM) + 0.3 * np.tri(DIM, k=-1) if matrix else np.full(DIM, 0.8)

    @jax.jit
    def fit(mean, precision, centre, factor):
        start = start_guide(kind, DIM, 1, jax.random.key(3), dtype)
        log_density = lambda u: -0.5 * (u - mean) @ precision @ (u - mean)
        found = fit_guide(log_density, jax.random.key(0), start, centre, factor)
        return found, found.guide.distribution().covariance_matrix

    given = (np.asarray(a, dtype) for a in (mean, np.linalg.inv(S), 0.5 * np.ones(DIM), factor))
    found, covariance = fit(*given)
    sd = np.sqrt(np.diagonal(S))
    assert found.converged and found.response is None
    assert_allclose((found.guide.loc - mean) / sd, 0, atol=tol(1e-4, 3e-2))
    assert_allclose(covariance / sd[:, None] / sd, S / sd[:, None] / sd, atol=tol(1e-3, 5e-2))
    evidence = 0.5 * np.linalg.slogdet(2 * np.pi * S)[1]
    assert_allclose(found.elbo, evidence, atol=tol(1e-5, 1e-2))
    assert np.max(found.error) <= 0.05 and found.draws >= 64


def test_draws_are_doubled_on_a_skewed_target_up_to_the_limit():
    dtype = jnp.result_type(float)
    log_density = lambda u: jnp.sum(1.5 * u - jnp.exp(u)) + 0.3 * u[0] * u[1]

    @jax.jit
    def fit(tolerance):
        start = start_guide("full-rank", 2, 0, jax.random.key(0), dtype)
        centre, scale = jnp.zeros(2, dtype), jnp.ones(2, dtype)
        return fit_guide(log_density, jax.random.key(0), start, centre, scale, tolerance=tolerance, max_draws=300)

    loose, never = fit(0.3), fit(0.0)
    assert loose.draws == 64 and np.max(loose.error) <= 0.3
    assert never.draws == 256 and np.max(never.error) > 0
    assert np.max(np.abs(loose.guide.loc - never.guide.loc) / never.guide.scale()) < 0.3
