"""The verbs: what is exact says so, and what is estimated has an honest error."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.vi.divergences import Divergence, entropy, jensen_shannon, kl

KEY = jax.random.key(0)
NORMALS = dist.Normal(jnp.array([2.0, 3.0]), 1.5), dist.Normal(jnp.array([[2.5], [1.0]]), 1.0)


def run(verb, *given):
    """The verb inside jit: one program in place of a hundred."""
    kept = []

    def traced(*given):
        value, error, exact = verb(*given, key=KEY)
        kept.append(exact)
        return value, error

    return Divergence(*jax.jit(traced)(*given), kept[0])


def hidden(p):
    """The mixture of p with itself, which no registry knows."""
    shape, axis = p.batch_shape, len(p.batch_shape)
    parameters = (jnp.asarray(getattr(p, name)) for name in p.arg_constraints)
    twice = [jnp.stack([jnp.broadcast_to(x, shape + x.shape[axis:])] * 2, axis) for x in parameters]
    return dist.MixtureSameFamily(dist.CategoricalProbs(jnp.full((*shape, 2), 0.5)), type(p)(*twice))


def test_closed_form_says_so():
    result = kl(*NORMALS)
    assert isinstance(result, Divergence) and result.exact
    assert result.value.shape == result.error.shape == (2, 2) and not np.any(result.error)


def test_monte_carlo_says_so_and_its_error_is_honest():
    p, q = NORMALS
    result, expected = run(kl, hidden(p), q), kl(p, q).value
    assert not result.exact and result.value.shape == result.error.shape == (2, 2)
    assert result.value.dtype == jnp.result_type(float)
    z = (result.value - expected) / result.error
    assert np.all(np.abs(z) < 5) and np.all(result.error > 0) and np.all(result.error < 0.06)


def test_the_error_covers_over_many_keys():
    p, q = dist.Normal(2.0, 1.5), dist.Normal(2.5, 1.0)
    mixture = hidden(p)
    many = jax.jit(jax.vmap(lambda k: kl(mixture, q, key=k, draws=400)[:2]))(jax.random.split(KEY, 400))
    z = (many[0] - kl(p, q).value) / many[1]
    assert 0.85 < np.std(z) < 1.15 and abs(np.mean(z)) < 5 / np.sqrt(400)


def test_a_missing_key_names_both():
    p, q = dist.Gamma(2.0, 1.0), dist.Normal(jnp.zeros(3), 1.0).to_event(1)
    with pytest.raises(ValueError, match=r"KL\(Gamma \|\| LogNormal\).*key="):
        kl(p, dist.LogNormal(0.0, 1.0))
    with pytest.raises(ValueError, match=r"Independent\(Normal\) and Independent\(ExpandedDistribution\(Laplace\)\)"):
        jensen_shannon(q, dist.Laplace(0.0, 1.0).expand((3,)).to_event(1))
    with pytest.raises(ValueError, match="entropy of MixtureSameFamily"):
        entropy(hidden(p))
    with pytest.raises(ValueError, match="draws is 1"):
        kl(p, dist.LogNormal(0.0, 1.0), key=KEY, draws=1)


def test_shapes_and_measures_must_agree():
    with pytest.raises(ValueError, match=r"event shape \(\) and q .*\(3,\)"):
        kl(dist.Normal(0.0, 1.0), dist.Normal(jnp.zeros(3), 1.0).to_event(1))
    with pytest.raises(ValueError, match="discrete"):
        kl(dist.Poisson(2.0), dist.Normal(0.0, 1.0), key=KEY)


def test_wrappers():
    p, q = dist.Laplace(jnp.zeros(3), 1.0), dist.Laplace(1.0, 2.0)
    value = kl(p, q).value
    assert_allclose(kl(p.to_event(1), q.expand((3,)).to_event(1)).value, value.sum(), rtol=1e-6)
    mask = jnp.array([True, False, True])
    masked = kl(p.mask(mask), q.expand((3,)).mask(mask))
    assert masked.exact
    assert_allclose(masked.value, value * mask)
    assert kl(p.mask(False), q.mask(False)).value.shape == (3,)
    assert_allclose(entropy(p.expand((2, 3)).to_event(1)).value, [3 * entropy(q).value - 3 * np.log(2)] * 2, rtol=1e-6)


def test_entropy_has_the_batch_shape():
    """NumPyro's multivariate normal leaves (1,) for a batch of locations."""
    p = dist.MultivariateNormal(jnp.zeros((3, 2)), jnp.eye(2))
    assert_allclose(entropy(p).value, np.full(3, 1 + np.log(2 * np.pi)), rtol=1e-6)
    walk = dist.GaussianRandomWalk(jnp.array([0.5, 2.0]), 4)
    expected = [4 * entropy(dist.Normal(0.0, s)).value for s in (0.5, 2.0)]
    assert_allclose(entropy(walk).value, expected, rtol=1e-6)
    assert entropy(dist.GeometricProbs(1.0)).value == 0


def test_estimated_entropy():
    p = NORMALS[0]
    result = run(entropy, hidden(p))
    assert not result.exact and np.all(np.abs(result.value - entropy(p).value) < 5 * result.error)


def test_mass_outside_the_support_is_infinite():
    """NumPyro's densities take no notice of the support: half of a normal is outside a half-normal's."""
    normal, half = dist.Normal(jnp.zeros(2), 1.0), dist.HalfNormal(1.0)
    assert np.isposinf(run(kl, normal, half).value).all()
    assert not np.any(np.isnan(run(kl, normal, half).error))
    assert_allclose(run(kl, half, normal).value, np.log(2), rtol=1e-5)
    assert_allclose(run(kl, dist.Uniform(0.0, 0.5), dist.Beta(1.0, 1.0)).value, np.log(2), rtol=1e-5)


def test_estimate_can_be_differentiated():
    """A normal from its own mixture: the derivative of mu^2 / 2 in mu."""
    q = hidden(dist.Normal(0.0, 1.0))
    gradient = jax.jit(jax.grad(lambda mean: kl(dist.Normal(mean, 1.0), q, key=KEY).value))(0.7)
    assert_allclose(gradient, 0.7, atol=0.06)


def test_draws_of_a_transformed_distribution_are_not_inverted():
    p = dist.TransformedDistribution(dist.Normal(0.0, 8.0), dist.transforms.SigmoidTransform())
    q = dist.Beta(0.5, 0.5)
    assert np.isfinite(run(kl, p, q).error)


# Jensen-Shannon.


def js(a, b):
    m = (a + b) / 2
    return sum(np.sum(np.where(x > 0, x * np.log(np.where(x > 0, x, 1) / m), 0)) / 2 for x in (a, b))


@pytest.mark.parametrize("logits", [False, True])
def test_jensen_shannon_of_categories(logits):
    a, b = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    q = dist.CategoricalLogits(jnp.log(jnp.asarray(b)) + 1) if logits else dist.CategoricalProbs(jnp.asarray(b))
    p = dist.CategoricalProbs(jnp.asarray(a))
    result = jensen_shannon(p.expand((2,)), q)
    assert result.exact and result.value.shape == (2,)
    assert_allclose(result.value, [js(a, b)] * 2, rtol=tol(1e-12, 1e-5))
    assert jensen_shannon(p, p).value == 0


def test_jensen_shannon_at_the_bounds():
    edge = dist.BernoulliProbs(jnp.array([0.0, 1.0]))
    assert_allclose(jensen_shannon(edge, dist.BernoulliProbs(1.0)).value, [np.log(2), 0], rtol=1e-6)
    gradient = jax.grad(lambda x: jensen_shannon(dist.BernoulliProbs(x), dist.BernoulliProbs(0.0)).value)(0.0)
    assert np.isfinite(gradient)
    apart = run(jensen_shannon, dist.Uniform(0.0, 1.0), dist.Uniform(2.0, 3.0))
    assert not apart.exact
    assert_allclose(apart.value, np.log(2), rtol=1e-6)
    p = dist.Normal(0.0, 1.0)
    assert run(jensen_shannon, p, p).value == 0
    with pytest.raises(ValueError, match="3 categories and q 2"):
        jensen_shannon(dist.CategoricalProbs(jnp.full(3, 1 / 3)), dist.CategoricalProbs(jnp.full(2, 1 / 2)))


def test_jensen_shannon_of_normals():
    p, q = dist.Normal(jnp.array([0.0, 1.0]), 1.0), dist.Normal(2.0, 0.5)
    x = np.linspace(-12, 12, 40_001)
    density = lambda m, s: np.exp(-0.5 * ((x - m) / s) ** 2) / s / np.sqrt(2 * np.pi) * (x[1] - x[0])
    result = run(jensen_shannon, p, q)
    for value, error, mean in zip(result.value, result.error, (0.0, 1.0), strict=True):
        assert abs(value - js(density(mean, 1.0) + 1e-300, density(2.0, 0.5) + 1e-300)) < 5 * error
    other = run(jensen_shannon, q, p)
    assert np.all(np.abs(other.value - result.value) < 5 * np.hypot(other.error, result.error))
