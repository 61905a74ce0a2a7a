"""The verbs: what is exact says so, and what is estimated has an honest error."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.vi.divergences import Divergence, entropy, jensen_shannon, kl

KEY = jax.random.key(0)
NORMALS = dist.Normal(np.array([2.0, 3.0]), 1.5), dist.Normal(np.array([[2.5], [1.0]]), 1.0)


def hidden(p):
    """The mixture of p with itself, which no registry knows."""
    shape, axis = p.batch_shape, len(p.batch_shape)
    parameters = (jnp.asarray(getattr(p, name)) for name in p.arg_constraints)
    twice = [jnp.stack([jnp.broadcast_to(x, shape + x.shape[axis:])] * 2, axis) for x in parameters]
    return dist.MixtureSameFamily(dist.CategoricalProbs(jnp.full((*shape, 2), 0.5)), type(p)(*twice))


NORMAL, HALF = dist.Normal(np.zeros(2), 1.0), dist.HalfNormal(1.0)
SQUASHED = dist.TransformedDistribution(dist.Normal(0.0, 8.0), dist.transforms.SigmoidTransform())
PAIR = dist.Normal(np.array([0.0, 1.0, 2.0]), np.array([1.0, 1.0, 0.5])), dist.Normal(2.0, 0.5)
ESTIMATES = {
    "kl": lambda: kl(hidden(NORMALS[0]), NORMALS[1], key=KEY),
    "entropy": lambda: entropy(hidden(NORMALS[0]), key=KEY),
    "outside": lambda: kl(NORMAL, HALF, key=KEY),
    "inside": lambda: kl(HALF, NORMAL, key=KEY),
    "uniform in beta": lambda: kl(dist.Uniform(0.0, 0.5), dist.Beta(1.0, 1.0), key=KEY),
    "squashed": lambda: kl(SQUASHED, dist.Beta(0.5, 0.5), key=KEY),
    "apart": lambda: jensen_shannon(dist.Uniform(0.0, 1.0), dist.Uniform(2.0, 3.0), key=KEY),
    "normals": lambda: jensen_shannon(*PAIR, key=KEY),  # the last from itself
}


@cache
def estimates():
    """Every Monte Carlo estimate of these tests, in one program."""
    kept = {}

    def traced():
        found = {name: make() for name, make in ESTIMATES.items()}
        kept.update({name: result.exact for name, result in found.items()})
        return {name: result[:2] for name, result in found.items()}

    return {name: Divergence(*found, kept[name]) for name, found in jax.jit(traced)().items()}


def test_closed_form_says_so():
    result = kl(*NORMALS)
    assert isinstance(result, Divergence) and result.exact
    assert result.value.shape == result.error.shape == (2, 2) and not np.any(result.error)


@pytest.mark.once
def test_monte_carlo_says_so_and_its_error_is_honest():
    result, expected = estimates()["kl"], kl(*NORMALS).value
    assert not result.exact and result.value.shape == result.error.shape == (2, 2)
    assert result.value.dtype == jnp.result_type(float)
    z = (result.value - expected) / result.error
    assert np.all(np.abs(z) < 5) and np.all(result.error > 0) and np.all(result.error < 0.06)


def test_the_error_covers_over_many_keys():
    p, q = dist.Normal(2.0, 1.5), dist.Normal(2.5, 1.0)
    estimate = lambda k: kl(hidden(p), q, key=k, draws=400)[:2]
    many = jax.jit(lambda key: jax.vmap(estimate)(jax.random.split(key, 400)))(KEY)
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
    p, q, mask = dist.Laplace(np.zeros(3), 1.0), dist.Laplace(1.0, 2.0), np.array([True, False, True])

    @jax.jit
    def found(p, q, mask):
        wide = q.expand((3,))
        pairs = (
            (p, q),
            (p.to_event(1), wide.to_event(1)),
            (p.mask(mask), wide.mask(mask)),
            (p.mask(False), q.mask(False)),
        )
        return [kl(*pair) for pair in pairs], [entropy(p.expand((2, 3)).to_event(1)), entropy(q)]

    (plain, summed, masked, none), (three, one) = found(p, q, mask)
    assert_allclose(summed.value, plain.value.sum(), rtol=1e-6)
    assert masked.exact
    assert_allclose(masked.value, plain.value * mask)
    assert none.value.shape == (3,)
    assert_allclose(three.value, [3 * one.value - 3 * np.log(2)] * 2, rtol=1e-6)


def test_entropy_has_the_batch_shape():
    """NumPyro's multivariate normal leaves (1,) for a batch of locations."""

    @jax.jit
    def found():
        walk = dist.GaussianRandomWalk(jnp.array([0.5, 2.0]), 4)
        normals = dist.MultivariateNormal(jnp.zeros((3, 2)), jnp.eye(2)), walk, dist.Normal(0.0, jnp.array([0.5, 2.0]))
        return [entropy(p).value for p in (*normals, dist.GeometricProbs(1.0))]

    many, walks, steps, certain = found()
    assert_allclose(many, np.full(3, 1 + np.log(2 * np.pi)), rtol=1e-6)
    assert_allclose(walks, 4 * steps, rtol=1e-6)
    assert certain == 0


def test_estimated_entropy():
    result = estimates()["entropy"]
    assert not result.exact and np.all(np.abs(result.value - entropy(NORMALS[0]).value) < 5 * result.error)


def test_mass_outside_the_support_is_infinite():
    """NumPyro's densities take no notice of the support: half of a normal is outside a half-normal's."""
    found = estimates()
    assert np.isposinf(found["outside"].value).all()
    assert not np.any(np.isnan(found["outside"].error))
    assert_allclose(found["inside"].value, np.log(2), rtol=1e-5)
    assert_allclose(found["uniform in beta"].value, np.log(2), rtol=1e-5)


def test_estimate_can_be_differentiated():
    """A normal from its own mixture: the derivative of mu^2 / 2 in mu."""
    slope = jax.grad(lambda mean: kl(dist.Normal(mean, 1.0), hidden(dist.Normal(0.0, 1.0)), key=KEY).value)
    assert_allclose(jax.jit(slope)(0.7), 0.7, atol=0.06)


def test_draws_of_a_transformed_distribution_are_not_inverted():
    assert np.isfinite(estimates()["squashed"].error)


# Jensen-Shannon.


def js(a, b):
    m = (a + b) / 2
    return sum(np.sum(np.where(x > 0, x * np.log(np.where(x > 0, x, 1) / m), 0)) / 2 for x in (a, b))


def test_jensen_shannon_of_categories():
    a, b = np.array([0.2, 0.3, 0.5]), np.array([0.6, 0.3, 0.1])
    p = dist.CategoricalProbs(a)

    @jax.jit
    def found():
        by_probs, by_logits = dist.CategoricalProbs(b), dist.CategoricalLogits(np.log(b) + 1)
        return [jensen_shannon(p.expand((2,)), q) for q in (by_probs, by_logits)], jensen_shannon(p, p).value

    results, none = found()
    for result in results:
        assert result.exact and result.value.shape == (2,)
        assert_allclose(result.value, [js(a, b)] * 2, rtol=tol(1e-12, 1e-5))
    assert none == 0


def test_jensen_shannon_at_the_bounds():
    @jax.jit
    def found(edge):
        value = lambda x: jensen_shannon(dist.BernoulliProbs(x), dist.BernoulliProbs(1.0)).value
        return value(edge), jax.vmap(jax.grad(value))(edge)

    value, gradient = found(np.array([0.0, 1.0]))
    assert_allclose(value, [np.log(2), 0], rtol=1e-6)
    assert np.isfinite(gradient).all()
    apart = estimates()["apart"]
    assert not apart.exact
    assert_allclose(apart.value, np.log(2), rtol=1e-6)
    assert_allclose(estimates()["normals"].value[2], 0, atol=tol(1e-12, 1e-6))
    with pytest.raises(ValueError, match="3 categories and q 2"):
        jensen_shannon(dist.CategoricalProbs(np.full(3, 1 / 3)), dist.CategoricalProbs(np.full(2, 1 / 2)))


def test_jensen_shannon_of_normals():
    x = np.linspace(-12, 12, 40_001)
    density = lambda m, s: np.exp(-0.5 * ((x - m) / s) ** 2) / s / np.sqrt(2 * np.pi) * (x[1] - x[0])
    result = estimates()["normals"]
    for value, error, mean in zip(result.value[:2], result.error, (0.0, 1.0), strict=False):
        assert abs(value - js(density(mean, 1.0) + 1e-300, density(2.0, 0.5) + 1e-300)) < 5 * error
