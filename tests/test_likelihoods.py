"""Likelihoods: their laws, information and marginals against definitions, and what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from scipy.stats import logistic, norm

from probkit import likelihoods as lk
from probkit.model import with_defaults
from probkit.observation import ColumnsObservation

CONCRETE = {
    "Gaussian": lk.Gaussian(scale=0.7),
    "HeteroscedasticGaussian": lk.HeteroscedasticGaussian(unit=0.5),
    "StudentT": lk.StudentT(df=5.0, scale=0.7),
    "Bernoulli": lk.Bernoulli(),
    "Categorical": lk.Categorical(3),
    "Ordinal, logit": lk.Ordinal(4, cutpoints=jnp.array([-1.0, 0.2, 0.9])),
    "Ordinal, probit": lk.Ordinal(3, cutpoints=jnp.array([-0.5, 1.0]), link="probit"),
    "Poisson": lk.Poisson(unit=4.0),
    "NegativeBinomial": lk.NegativeBinomial(concentration=3.0, unit=4.0),
}


@pytest.fixture(scope="module")
def latent():
    return jax.random.normal(jax.random.key(1), (5, 3)) * 0.7


@pytest.mark.once
@pytest.mark.parametrize("name", CONCRETE)
def test_information_is_the_variance_of_the_score(name, latent):
    likelihood = CONCRETE[name]
    f = latent[:, : likelihood.outputs]

    @jax.jit
    def outer(key):
        y = likelihood.law(f).sample(key)
        score = jax.grad(lambda f: likelihood.law(f).log_prob(y).sum())(f)
        return score[:, :, None] * score[:, None, :]

    count = 10_000
    found = np.asarray(jax.lax.map(outer, jax.random.split(jax.random.key(2), count), batch_size=2000))
    error = 5 * found.std(0) / np.sqrt(count) + 1e-6
    information = jax.jit(lambda f: likelihood.fisher(f))(f)
    assert information.shape == (5, likelihood.outputs, likelihood.outputs)
    assert np.all(np.abs(found.mean(0) - information) < error)


@pytest.mark.once
@pytest.mark.parametrize("name", CONCRETE)
def test_marginal_is_the_mean_over_a_normal_latent(name, latent):
    likelihood = CONCRETE[name]
    k = likelihood.outputs
    f = latent[:, :k]
    covariance = jnp.broadcast_to(0.3 * (jnp.eye(k) * 0.8 + 0.2), (5, k, k))
    classes = likelihood.discrete == "classes" and name != "Bernoulli"
    parts = lambda law: law.probs if classes else (law.mean, law.variance)

    @jax.jit
    def both(key):
        e = jax.random.normal(key, (20_000, 5, k)) @ jnp.linalg.cholesky(covariance[0]).T
        return parts(likelihood.marginal(f, covariance)), jax.vmap(lambda e: parts(likelihood.law(f + e)))(e)

    found, over = jax.tree_util.tree_map(np.asarray, both(jax.random.key(3)))
    if classes:
        assert np.allclose(found, over.mean(0), atol=0.02)
        return
    mean, variance = over
    assert np.allclose(found[0], mean.mean(0), atol=0.02, rtol=0.03)
    assert np.allclose(found[1], variance.mean(0) + mean.var(0), rtol=0.1, atol=0.02)


@pytest.mark.once
def test_a_point_without_spread_has_the_plain_law(latent):
    for likelihood in CONCRETE.values():
        f = latent[:, : likelihood.outputs]
        none = jnp.zeros((5, likelihood.outputs, likelihood.outputs))

        @jax.jit
        def gap_of(f, likelihood=likelihood, none=none):
            y = likelihood.law(f).sample(jax.random.key(4))
            return likelihood.marginal(f, none).log_prob(y) - likelihood.law(f).log_prob(y)

        gap = gap_of(f)
        assert np.all(np.abs(gap) < tol(1e-5, 3e-2 if likelihood.discrete == "counts" else 1e-5))


def test_trials_may_be_floats_when_successes_are_drawn():
    law = lk.Binomial(jnp.array([5.0, 1000.0])).law(jnp.array([0.3, -1.0]))
    drawn = jax.jit(lambda key: law.sample(key, (400,)))(jax.random.key(0))
    error = 5 * np.sqrt(law.variance / 400)
    assert np.all(drawn == jnp.round(drawn)) and np.all(np.abs(drawn.mean(0) - law.mean) < error)


def test_noise_of_its_own_law_against_dense_quadrature():
    """Also where the mean is known far worse than the noise is small."""
    likelihood, y = lk.HeteroscedasticGaussian(0.01), jnp.array([0.6, 0.6, -0.02])
    f, v = jnp.array([[0.0, 0.1, 0.0], [0.0, 1.0, -0.5]]), jnp.array([[1.0, 0.3, 1e-4], [0.01, 1.0, 0.3]])
    x = np.linspace(-9, 9, 4001)
    node = np.asarray(f[1]) + np.sqrt(np.asarray(v[1])) * x[:, None]
    variance = np.asarray(v[0]) + (0.01 * np.exp(node)) ** 2
    density = np.exp(-0.5 * (np.asarray(y - f[0]) ** 2 / variance + x[:, None] ** 2)) / (2 * np.pi * variance**0.5)
    want = np.log(density.sum(0) * (x[1] - x[0]))
    found = jax.jit(lambda y: ColumnsObservation(likelihood, f, v).log_prob(y))(y)
    assert np.allclose(found, want, rtol=tol(1e-6, 1e-4), atol=tol(1e-6, 1e-4))


@pytest.mark.parametrize("unit", [1e-15, 1.0, 1e15])
def test_the_noise_prior_is_free_of_scale(unit):
    y = unit * jnp.array([1.0, 2.0, jnp.nan, 4.0])
    prior = with_defaults(lk.Gaussian(), y).scale
    one = with_defaults(lk.Gaussian(), y / unit).scale
    scale = jnp.array([1e-3, 0.1, 1.0])
    gap = prior.log_prob(scale * unit) + jnp.log(unit) - one.log_prob(scale)
    assert np.all(np.abs(gap) < tol(1e-8, 1e-3))
    assert jnp.isfinite(prior.log_prob(prior.sample(jax.random.key(0), (50,)))).all()


def test_the_noise_of_a_constant_series_is_bounded():
    prior = with_defaults(lk.Gaussian(), jnp.full(5, 3.0)).scale
    assert float(dist.biject_to(prior.support)(-100.0)) >= 3.0 * jnp.finfo(jnp.result_type(float)).eps ** 0.5 * 0.999


def test_standardised_columns_move_to_the_units_of_y():
    f = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    assert np.allclose(lk.Gaussian(scale=1.0).scaled(f[:, :1], 10.0, 2.0), [[12.0], [10.0]])
    assert np.allclose(lk.HeteroscedasticGaussian(unit=1.0).scaled(f, 10.0, 2.0), [[12.0, 2.0], [10.0, -1.0]])
    assert np.allclose(lk.Categorical(2).scaled(f, 10.0, 2.0), f)


def test_gradients_stay_finite_far_out():
    @jax.jit
    def slopes(f):
        each, y = CONCRETE.values(), jnp.ones(2)
        return [jax.grad(lambda f, one=one: one.law(f[:, : one.outputs]).log_prob(y).sum())(f) for one in each]

    assert np.all(np.isfinite(np.stack(slopes(jnp.full((2, 3), 500.0)))))
    assert np.all(np.isfinite(np.stack(slopes(jnp.full((2, 3), -500.0)))))


@pytest.mark.parametrize(
    ("likelihood", "y", "message"),
    [
        (lk.Bernoulli(), [0, 2, 1], "y holds 2; Bernoulli takes classes 0 and 1"),
        (lk.Categorical(3), [0, 1, 3], r"y holds 3; Categorical\(3\) takes 0 to 2"),
        (lk.Categorical(3), [0, 0.5, np.nan], "y holds 0.5; Categorical takes classes"),
        (lk.Poisson(), [0, -1, 3], "y holds -1; Poisson takes counts"),
    ],
)
def test_refusals(likelihood, y, message):
    with pytest.raises(ValueError, match=message):
        likelihood.check(y)


def test_one_class_is_refused():
    with pytest.raises(ValueError, match="classes is 1"):
        lk.Categorical(1)


@pytest.mark.once
@pytest.mark.parametrize(("link", "cdf"), [("logit", logistic.cdf), ("probit", norm.cdf)])
def test_ordered_classes_against_differences_of_the_law(link, cdf):
    cutpoints, f = np.array([-1.5, -0.2, 0.1, 2.0]), np.linspace(-4, 4, 9)
    law = lk.Ordinal(5, cutpoints=jnp.asarray(cutpoints), link=link).law
    found = jax.jit(lambda f: law(f).probs)(jnp.asarray(f))
    below = np.concatenate([np.zeros((9, 1)), cdf(cutpoints - f[:, None]), np.ones((9, 1))], axis=1)
    assert np.allclose(found, np.diff(below), rtol=tol(1e-9, 1e-4), atol=1e-7)


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_ordered_classes_far_out_are_finite_with_finite_slopes(link):
    likelihood = lk.Ordinal(3, cutpoints=jnp.array([-1.0, -1.0 + 1e-4]), link=link)
    f = jnp.array([-30.0, -1.0, 30.0])
    along = lambda fn: lambda f: jax.jvp(fn, (f,), (jnp.ones(3),))[1]

    @jax.jit
    def derivatives(f):
        terms = [lambda f, c=c: likelihood.law(f).log_prob(jnp.full(3, c)) for c in range(3)]
        return [(term(f), along(term)(f), along(along(term))(f)) for term in terms]

    found = np.array(derivatives(f))
    assert np.all(np.isfinite(found)) and np.all(found[:, 2] < 1e-3)


@pytest.mark.parametrize("link", ["logit", "probit"])
def test_a_narrow_class_far_out_keeps_its_digits(link):
    """Its probability is that of the density there times its width, whatever f."""
    likelihood = lk.Ordinal(3, cutpoints=jnp.array([-1.0, -1.0 + 2.0**-13]), link=link)
    f = jnp.array([-300.0, -30.0, 0.0, 5.0, 30.0, 300.0])
    middle = -1 + 2.0**-14 - np.array(f, float)
    law = logistic if link == "logit" else norm
    want = law.logpdf(middle) - 13 * np.log(2)
    value, slope = jax.jit(jax.vmap(jax.value_and_grad(lambda g: likelihood.law(g[None]).log_prob(jnp.ones(1))[0])))(f)
    assert np.allclose(value, want, rtol=tol(1e-7, 1e-5))
    assert np.all(np.isfinite(slope))


@pytest.mark.once
def test_ordered_classes_by_default_have_the_shares_of_the_data():
    y = jnp.array([0.0] * 50 + [1.0] * 30 + [3.0] * 20 + [jnp.nan])
    for link in ("logit", "probit"):

        @jax.jit
        def probabilities_of(y, link=link):
            prior = with_defaults(lk.Ordinal(4, link=link), y, None).cutpoints
            middle = dist.biject_to(prior.support)(prior.base_dist.base_dist.loc)
            return lk.Ordinal(4, cutpoints=middle, link=link).law(jnp.zeros(1)).probs[0]

        probabilities = probabilities_of(y)
        assert np.allclose(probabilities, np.array([50.5, 30.5, 0.5, 20.5]) / 102, atol=1e-5)
    with pytest.raises(ValueError, match="Ordinal\\(3\\) takes 0 to 2"):
        lk.Ordinal(3).check(y)
    with pytest.raises(ValueError, match="cutpoints has shape"):
        lk.Ordinal(4, cutpoints=[0.0, 1.0]).check(y)
    with pytest.raises(ValueError, match="link is 'cloglog'"):
        lk.Ordinal(4, link="cloglog")
