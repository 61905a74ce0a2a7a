"""Scoring of single entries: the law of each given all others, and NaN as missing."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose, assert_array_equal
from scipy import stats

from probkit.pointwise import log_prob, observed, pointwise
from probkit.ssm.distribution import LocalLevelDistribution

Y = np.array([1.2, 0.3, -0.4, 2.1])
GAPS = np.array([1.2, np.nan, -0.4, np.nan])
RTOL = tol(1e-10, 1e-5)
LOC = np.array([0.1, 0.2, 0.3, 0.4])

SPELLINGS = {
    "independent": dist.Normal(LOC, 0.7).to_event(1),
    "batch": dist.Normal(LOC, 0.7),
    "expanded": dist.Normal(0.3, 0.7).expand([4]).to_event(1),
    "scalar": dist.Normal(0.3, 0.7),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_entries_that_are_independent_given_the_parameters(spelling):
    law = SPELLINGS[spelling]
    wanted = stats.norm(LOC if spelling in ("independent", "batch") else 0.3, 0.7).logpdf(Y)
    one = pointwise(law, jnp.asarray(Y))
    assert one.batch_shape == (4,) and one.event_shape == ()
    assert_allclose(one.log_prob(Y), wanted, rtol=RTOL)
    assert_allclose(jnp.sum(log_prob(law, jnp.asarray(Y))), wanted.sum(), rtol=RTOL)
    assert_allclose(jnp.sum(log_prob(law, jnp.asarray(GAPS))), wanted[[0, 2]].sum(), rtol=RTOL)


@pytest.mark.parametrize(
    "law", [dist.Gamma(2.0, 1.5), dist.Poisson(3.0), dist.Beta(2.0, 2.0)], ids=lambda p: type(p).__name__
)
def test_a_missing_entry_counts_nothing_in_value_or_gradient(law):
    y = jnp.array([0.5, np.nan]) if isinstance(law, dist.Beta) else jnp.array([2.0, np.nan])
    assert_allclose(jnp.sum(log_prob(law, y)), law.log_prob(y[0]), rtol=RTOL)

    def value(scale):
        return jnp.sum(log_prob(dist.Normal(jnp.zeros(2), scale).to_event(1), y))

    assert np.isfinite(jax.grad(value)(1.5))
    masked, filled = observed(law, y)
    assert np.isfinite(filled).all() and masked.event_shape == (2,)


def covariance():
    root = np.array([[1.0, 0, 0, 0], [0.4, 0.9, 0, 0], [-0.2, 0.3, 1.1, 0], [0.5, 0.1, 0.2, 0.6]])
    return root @ root.T


def test_a_multivariate_normal_has_its_precision():
    K = covariance()
    one = pointwise(dist.MultivariateNormal(LOC, K), jnp.asarray(Y))
    for i in range(4):
        rest = np.arange(4) != i
        gain = np.linalg.solve(K[np.ix_(rest, rest)], K[rest, i])
        mean, variance = LOC[i] + gain @ (Y - LOC)[rest], K[i, i] - gain @ K[rest, i]
        assert_allclose((one.mean[i], one.variance[i]), (mean, variance), rtol=tol(1e-9, 1e-4))


def conditional(i, y):
    """Mean and variance of entry i given all other entries that are seen."""
    K = covariance()
    rest = ~np.isnan(y) & (np.arange(4) != i)
    gain = np.linalg.solve(K[np.ix_(rest, rest)], K[rest, i])
    return LOC[i] + gain @ (y - LOC)[rest], K[i, i] - gain @ K[rest, i]


SPELLED = {
    "covariance": lambda K: dist.MultivariateNormal(LOC, K),
    "scale_tril": lambda K: dist.MultivariateNormal(LOC, scale_tril=jnp.linalg.cholesky(K)),
    "precision": lambda K: dist.MultivariateNormal(LOC, precision_matrix=jnp.linalg.inv(K)),
}


@pytest.mark.parametrize("spelling", SPELLED)
def test_a_multivariate_normal_with_gaps(spelling):
    """Every pattern of gaps: the marginal density of what is seen, each entry given all others that are seen."""

    @jax.jit
    def everything(y):
        def value(K):
            return log_prob(SPELLED[spelling](K), y)

        def given(K):
            one = pointwise(SPELLED[spelling](K), y)
            return jnp.sum(one.mean + one.variance)

        K = jnp.asarray(covariance())
        one = pointwise(SPELLED[spelling](K), y)
        return *jax.value_and_grad(value)(K), jax.grad(given)(K), one.mean, one.variance

    for pattern in np.ndindex(2, 2, 2, 2):
        seen = np.array(pattern, bool)
        y = np.where(seen, Y, np.nan)
        value, slope, slope_of_terms, mean, variance = everything(jnp.asarray(y))
        K, r = covariance()[np.ix_(seen, seen)], (Y - LOC)[seen]
        wanted = stats.multivariate_normal(np.zeros(len(r)), K).logpdf(r) if seen.any() else 0.0
        assert_allclose(value, wanted, rtol=RTOL, atol=RTOL)
        moments = np.array([conditional(i, y) for i in range(4)])
        assert_allclose(mean, moments[:, 0], rtol=tol(1e-9, 1e-4), atol=tol(1e-9, 1e-5))
        assert_allclose(variance, moments[:, 1], rtol=tol(1e-9, 1e-4))
        inverse = np.linalg.inv(K)
        of_value = np.zeros((4, 4))
        of_value[np.ix_(seen, seen)] = 0.5 * (np.outer(inverse @ r, inverse @ r) - inverse)
        assert_allclose(slope + slope.T, 2 * of_value, atol=tol(1e-9, 1e-4))
        assert np.isfinite(slope_of_terms).all()


def test_a_law_with_terms_of_its_own_keeps_them():
    law = LocalLevelDistribution(0.5, 0.8, 4)
    assert_array_equal(pointwise(law, jnp.asarray(Y)).mean, law.leave_one_out(jnp.asarray(Y)).mean)
    same, y = observed(law, jnp.asarray(GAPS))
    assert same is law and np.isnan(y[1])
    assert_allclose(log_prob(law, jnp.asarray(GAPS)), law.log_prob(jnp.asarray(GAPS)), rtol=RTOL)


def test_other_laws_say_what_to_do():
    law = dist.MultivariateStudentT(5.0, jnp.zeros(4), jnp.eye(4))
    with pytest.raises(
        TypeError, match="MultivariateStudentT has no leave-one-out terms: make its entries independent"
    ):
        pointwise(law, jnp.asarray(Y))
