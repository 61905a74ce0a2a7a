"""Variational objectives, held against models whose evidence, posterior and gradients are known exactly."""

from itertools import combinations, pairwise
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from numpyro.distributions.flows import InverseAutoregressiveTransform
from scipy.stats import multivariate_normal

from probkit.vi.objectives import elbo, elbo_estimate, elbo_with_kl, iwae, minibatch_joint, renyi

KEY = jax.random.key(20)


class Problem(NamedTuple):
    """y = A z + noise with z ~ N(0, K): its data, in float64, and what follows from them by dense algebra."""

    A: np.ndarray
    K: np.ndarray
    y: np.ndarray
    noise: float

    @property
    def prior(self):
        if np.array_equal(self.K, np.diag(np.diagonal(self.K))):
            return dist.Normal(jnp.zeros(len(self.K)), jnp.asarray(np.sqrt(np.diagonal(self.K)))).to_event(1)
        return dist.MultivariateNormal(jnp.zeros(len(self.K)), scale_tril=jnp.asarray(np.linalg.cholesky(self.K)))

    def log_likelihood(self, z, noise=None):
        noise = self.noise if noise is None else noise
        return dist.Normal(jnp.asarray(self.A) @ z, noise).to_event(1).log_prob(jnp.asarray(self.y))

    def log_joint(self, z, noise=None):
        return self.prior.log_prob(z) + self.log_likelihood(z, noise)

    @property
    def posterior(self):
        gain = np.linalg.solve(self.A @ self.K @ self.A.T + self.noise**2 * np.eye(len(self.y)), self.A @ self.K).T
        return gain @ self.y, np.linalg.cholesky(self.K - gain @ self.A @ self.K)

    @property
    def log_evidence(self):
        return multivariate_normal.logpdf(self.y, cov=self.A @ self.K @ self.A.T + self.noise**2 * np.eye(len(self.y)))


def regression():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(20, 3)) @ np.array([[1.0, 0.6, 0.0], [0.0, 0.8, 0.3], [0.0, 0.0, 1.0]])
    return Problem(X, 2.0 * np.eye(3), X @ np.array([1.0, -0.5, 0.3]) + 0.7 * rng.normal(size=20), 0.7)


def gp():
    x = np.array([0.0, 0.4, 0.9, 1.1, 2.0, 2.7, 3.0, 4.0])
    K = 1.5 * np.exp(-np.abs(x[:, None] - x) / 1.2)
    return Problem(np.eye(8), K, np.sin(2 * x) + 0.3 * np.cos(9 * x), 0.5)


PROBLEMS = {"regression": regression(), "gp": gp()}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    return PROBLEMS[request.param]


def divergence(mean, factor, problem):
    """KL of N(mean, factor factor') from the posterior, in float64."""
    to_mean, to_factor = problem.posterior
    ratio, shift = np.linalg.solve(to_factor, factor), np.linalg.solve(to_factor, to_mean - mean)
    log_det = np.log(np.diagonal(to_factor) / np.diagonal(factor)).sum()
    return 0.5 * ((ratio**2).sum() + (shift**2).sum() - len(mean)) + log_det


def full(params):
    return dist.MultivariateNormal(params[0], scale_tril=jnp.tril(params[1]))


def mean_field(params):
    return dist.Normal(params["loc"], jnp.exp(params["log_scale"])).to_event(1)


def near(problem, away=0.0):
    """A mean-field guide at the best one, the posterior's mean and precisions, or some of its sds away from it."""
    mean, factor = problem.posterior
    sd = np.diagonal(np.linalg.inv(factor @ factor.T)) ** -0.5
    shift = away * np.linspace(-1, 1, len(sd))
    return {"loc": jnp.asarray(mean + sd * shift), "log_scale": jnp.asarray(np.log(sd) + shift[::-1])}


def many(function, size, *args, seed=1):
    """The function of (*args, key) at so many keys: a tree of float64 arrays."""
    keys = lambda key: jax.random.split(key, size)
    found = jax.jit(lambda key: jax.vmap(lambda key: function(*args, key))(keys(key)))(jax.random.key(seed))
    return jax.tree.map(lambda a: np.asarray(a, np.float64), found)


def assert_unbiased(found, expected, rounding=None):
    """Each mean is within five standard errors of what is expected."""
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        error = a.std(axis=0, ddof=1) / np.sqrt(len(a))
        assert np.all(np.abs(a.mean(axis=0) - b) < 5 * error + (rounding or tol(1e-9, 1e-4)))


def noise_of(found):
    """The variances of all entries, added up."""
    return sum(a.var(axis=0).sum() for a in jax.tree.leaves(found))


# -- values -----------------------------------------------------------------------------------------------------------


@pytest.mark.once
def test_at_the_posterior_the_elbo_is_the_evidence(problem):
    """Every weight is the evidence, whatever the draws; the gradients but that of the path are rounding."""
    params = tuple(map(jnp.asarray, problem.posterior))

    @jax.jit
    def found(params):
        each = [
            jax.value_and_grad(lambda p: elbo(problem.log_joint, full(p), KEY, 5, gradient))(params)  # noqa: B023
            for gradient in ("path", "sticking", "score")
        ]
        return each, elbo_estimate(problem.log_joint, full(params), KEY, 100)

    each, estimate = found(params)
    for value, _ in each:
        assert_allclose(value, problem.log_evidence, rtol=tol(1e-11, 1e-5))
    for leaf in jax.tree.leaves([slope for _, slope in each[1:]]):
        assert_allclose(leaf, 0, atol=tol(1e-10, 2e-3))
    assert_allclose(estimate.value, problem.log_evidence, rtol=tol(1e-11, 1e-5))
    assert estimate.error < tol(1e-12, 1e-5)


def test_the_gap_is_the_divergence_from_the_posterior(problem):
    mean, factor = problem.posterior[0] + 0.1, 1.3 * problem.posterior[1]
    expected = problem.log_evidence - divergence(mean, factor, problem)
    found = jax.jit(lambda *p: elbo_estimate(problem.log_joint, full(p), KEY, 20_000))(mean, factor)
    assert found.value + 5 * found.error < problem.log_evidence
    assert abs(found.value - expected) < 5 * found.error


def test_with_the_divergence_in_closed_form():
    problem = PROBLEMS["gp"]
    mean, factor = problem.posterior[0] + 0.1, 1.3 * problem.posterior[1]
    q = full((jnp.asarray(mean), jnp.asarray(factor)))
    found = many(lambda key: elbo_with_kl(problem.log_likelihood, q, problem.prior, key, 10), 1000)
    assert_unbiased(found, problem.log_evidence - divergence(mean, factor, problem))


def test_the_error_of_an_estimate_is_its_spread():
    problem = PROBLEMS["regression"]
    q = mean_field(near(problem, 0.3))
    found = many(lambda key: elbo_estimate(problem.log_joint, q, key, 50), 1000)
    assert_allclose(found.value.std(), np.sqrt(np.mean(found.error**2)), rtol=0.15)  # the sd of 1,000 errs by 2%


@pytest.mark.once
def test_bounds_grow_with_the_particles():
    problem = PROBLEMS["gp"]

    @jax.jit
    def found(params):
        sizes = (1, 10, 200)
        return [elbo_estimate(problem.log_joint, mean_field(params), KEY, 40_000 // k, k) for k in sizes]

    bounds = found(near(problem, 0.5))
    for low, high in pairwise(bounds):
        assert high.value - low.value > 5 * np.hypot(low.error, high.error)
    assert bounds[1].value + 5 * bounds[1].error < problem.log_evidence
    assert bounds[-1].value - 5 * bounds[-1].error < problem.log_evidence


def test_bounds_of_the_same_draws_are_ordered():
    """Rényi's bound falls with alpha, passes the importance-weighted bound at 0 and the ELBO at 1."""
    log_p, orders = PROBLEMS["regression"].log_joint, (-2, 0, 0.5, 1, 1.5, np.float64(4))

    @jax.jit
    def found(params):
        q = mean_field(params)
        bounds = [renyi(log_p, q, KEY, 10, alpha, 20) for alpha in orders]
        z = q.sample(KEY, (20, 10))
        return jnp.stack(bounds), iwae(log_p, q, KEY, 10, 20), jnp.mean(jax.vmap(jax.vmap(log_p))(z) - q.log_prob(z))

    bounds, weighted, mean = found(near(PROBLEMS["regression"], 0.5))
    assert np.all(np.diff(bounds) < 0)
    assert_allclose(bounds[1], weighted, rtol=1e-6)
    assert_allclose(bounds[3], mean, rtol=1e-5)


def test_renyi_near_one_goes_over_into_the_elbo():
    """Its slope there is minus half the variance of the log weights, here that of 3 z for a standard normal z."""
    orders = (1 - 1e-4, 1 + 1e-4)
    q = dist.Normal(0.0, 1.0)
    at = jax.jit(
        lambda: jnp.stack([renyi(lambda z: q.log_prob(z) + 3 * z, q, KEY, 50, alpha, 4) for alpha in orders])
    )()
    z = np.asarray(q.sample(KEY, (4, 50)), np.float64)
    assert_allclose(at.mean(), 3 * z.mean(), rtol=tol(1e-6, 1e-5))
    assert_allclose((at[1] - at[0]) / 2e-4, -4.5 * z.var(axis=1).mean(), rtol=tol(1e-5, 5e-3))


def test_power_means_against_a_twin_in_numpy():
    """Weights that hardly differ, that differ, and that differ by many orders of magnitude."""
    q, orders, spreads = dist.Normal(0.0, 1.0), (-1.0, 0.0, 0.7, 1.3, 3.0), np.array([1e-3, 1.0, 30.0, 200.0])

    @jax.jit
    @jax.vmap
    def found(spread):
        log_p = lambda z: spread * jnp.sin(5 * z) + q.log_prob(z)
        return jnp.stack([renyi(log_p, q, KEY, 40, alpha, 3) for alpha in orders])

    z = np.asarray(q.sample(KEY, (3, 40)), np.float64)
    log_w = spreads[:, None, None] * np.sin(5 * z)
    expected = [
        np.mean((np.logaddexp.reduce(r * log_w, axis=-1) - np.log(40)) / r, axis=-1) for r in 1 - np.array(orders)
    ]
    assert_allclose(found(jnp.asarray(spreads)), np.stack(expected, -1), rtol=tol(1e-10, 1e-5), atol=tol(1e-13, 1e-6))


def test_weights_of_zero():
    """Where the joint vanishes on some draws: a bound that averages weights is finite, a mean of logs is not."""
    q, log_p = dist.Normal(0.0, 1.0), lambda z: jnp.where(z > 0, dist.Normal(0.0, 1.0).log_prob(z), -jnp.inf)

    @jax.jit
    def found():
        none = iwae(lambda z: -jnp.inf, q, KEY, 10)
        bounds = elbo(log_p, q, KEY, 100), elbo(log_p, q, KEY, 100, "score"), renyi(log_p, q, KEY, 100, 2.0), none
        broken = iwae(lambda z: jnp.where(z > 2, jnp.nan, 0.0), q, KEY, 1000)
        return iwae(log_p, q, KEY, 2000), jnp.stack(bounds), broken

    finite, infinite, broken = found()
    assert_allclose(finite, np.log(0.5), atol=0.1)
    assert np.isneginf(infinite).all()
    assert np.isnan(broken)


# -- gradients --------------------------------------------------------------------------------------------------------


def exact_elbo(params, noise):
    """The ELBO of the regression by algebra: E||y - X b||² = ||y - X m||² + sum_j v_j ||X_j||²."""
    p = PROBLEMS["regression"]
    m, v = params["loc"], jnp.exp(2 * params["log_scale"])
    square = jnp.sum((p.y - jnp.asarray(p.A) @ m) ** 2) + jnp.sum(jnp.asarray(p.A) ** 2 @ v)
    fit = -0.5 * square / noise**2 - len(p.y) * (jnp.log(noise) + 0.5 * np.log(2 * np.pi))
    return fit - 0.5 * jnp.sum((v + m**2) / 2.0 - 1 - jnp.log(v / 2.0))


EXACT_GRADIENT = jax.jit(jax.grad(exact_elbo, argnums=(0, 1)))


def regression_elbo(gradient):
    p = PROBLEMS["regression"]
    return lambda params, noise, key: elbo(lambda z: p.log_joint(z, noise), mean_field(params), key, 10, gradient)


def regression_elbo_with_kl(params, noise, key):
    p = PROBLEMS["regression"]
    return elbo_with_kl(lambda z: p.log_likelihood(z, noise), mean_field(params), p.prior, key, 10)


ELBOS = {
    **{name: regression_elbo(name) for name in ("path", "sticking", "score")},
    "with_kl": regression_elbo_with_kl,
}


@pytest.fixture(scope="module")
def elbo_gradients():
    """The gradient by guide and by noise of each estimator, at 2,000 keys: (far from the optimum, at the optimum)."""
    p = PROBLEMS["regression"]
    guides = jax.tree.map(lambda *leaves: jnp.stack(leaves), near(p, 0.7), near(p))
    keys = jax.random.split(jax.random.key(1), 2000)

    def of(function):
        slope = jax.grad(function, argnums=(0, 1))
        found = jax.jit(jax.vmap(lambda g: jax.vmap(lambda key: slope(g, 0.7, key))(keys)))(guides)
        found = jax.tree.map(lambda a: np.asarray(a, np.float64), found)
        return [jax.tree.map(lambda a, i=i: a[i], found) for i in (0, 1)]

    return {name: of(function) for name, function in ELBOS.items()}


@pytest.mark.once
@pytest.mark.parametrize("name", ELBOS)
def test_elbo_gradients_are_unbiased(elbo_gradients, name):
    p = PROBLEMS["regression"]
    for found, guide in zip(elbo_gradients[name], (near(p, 0.7), near(p)), strict=True):
        assert_unbiased(found, EXACT_GRADIENT(guide, 0.7), rounding=tol(1e-9, 2e-3))


def test_noise_of_elbo_gradients(elbo_gradients):
    """Far away the score is far behind; at the best mean-field guide, short of the posterior, sticking leads."""
    far, close = ({name: noise_of(found[i][0]) for name, found in elbo_gradients.items()} for i in (0, 1))
    assert close["sticking"] < 0.6 * close["path"]
    assert close["score"] > close["path"]
    assert far["score"] > 3 * far["path"]


def test_the_baseline_lowers_the_noise(elbo_gradients):
    p, guide = PROBLEMS["regression"], near(PROBLEMS["regression"])

    def bare(params, key):
        z = jax.lax.stop_gradient(mean_field(params).sample(key, (10,)))
        log_q = mean_field(params).log_prob(z)
        return jnp.mean(jax.lax.stop_gradient(jax.vmap(p.log_joint)(z) - log_q) * log_q)

    found = noise_of(many(jax.grad(bare), 2000, guide)), noise_of(elbo_gradients["score"][1][0])
    assert found[0] > 100 * found[1]


def scalar_iwae(gradient, particles=2):
    """z ~ N(0, 1), y | z ~ N(theta z, 1) with y = 1.5; guide N(m, exp(s)²). Parameters (m, s, theta)."""

    def bound(params, key):
        m, s, theta = params
        log_p = lambda z: dist.Normal(0.0, 1.0).log_prob(z) + dist.Normal(theta * z, 1.0).log_prob(1.5)
        return iwae(log_p, dist.Normal(m, jnp.exp(s)), key, particles, 4, gradient)

    return bound


def scalar_iwae_by_quadrature(params):
    """The same with two particles, by Gauss-Hermite quadrature in float64."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(60)
    m, s, theta = params
    z = m + np.exp(s) * nodes
    log_w = -0.5 * z**2 - 0.5 * (1.5 - theta * z) ** 2 - 0.5 * np.log(2 * np.pi) + 0.5 * nodes**2 + s
    share = weights / weights.sum()
    return share @ (np.logaddexp(log_w[:, None], log_w) - np.log(2)) @ share


@pytest.mark.once
@pytest.mark.parametrize("gradient", ["path", "doubly"])
def test_iwae_gradients_are_unbiased_for_guide_and_model(gradient):
    at, h = np.array([0.3, -0.1, 0.8]), 1e-5
    expected = [
        (scalar_iwae_by_quadrature(at + h * e) - scalar_iwae_by_quadrature(at - h * e)) / (2 * h) for e in np.eye(3)
    ]
    value, slope = many(jax.value_and_grad(scalar_iwae(gradient)), 20_000, tuple(map(float, at)))
    assert_unbiased(value, scalar_iwae_by_quadrature(at))
    assert_unbiased(slope, tuple(expected))


def test_doubly_is_the_formula_of_the_paper():
    """Guide: sum w² dlog w/dz dz/dlambda. Model: sum w dlog p/dtheta. A parameter in both: their sum."""
    m, s, theta = 0.3, -0.1, 0.8
    eps = np.asarray(dist.Normal(0.0, 1.0).sample(KEY, (4, 2)), np.float64)
    z = m + np.exp(s) * eps
    log_w = -0.5 * z**2 - 0.5 * (1.5 - theta * z) ** 2 + 0.5 * eps**2
    w = np.exp(log_w - np.logaddexp.reduce(log_w, axis=1)[:, None])
    by_z = -z + theta * (1.5 - theta * z) + eps * np.exp(-s)
    expected = [w**2 * by_z, w**2 * by_z * eps * np.exp(s), w * z * (1.5 - theta * z)]
    expected = np.array([a.sum(axis=1).mean() for a in expected])
    found = jax.jit(jax.grad(scalar_iwae("doubly")))((m, s, theta), KEY)
    assert_allclose(found, expected, rtol=tol(1e-9, 1e-4))
    both = jax.jit(jax.jacfwd(lambda t: scalar_iwae("doubly")((0.3, t, t + 0.9), KEY)))(s)
    assert_allclose(both, expected[1] + expected[2], rtol=tol(1e-9, 1e-4))


@pytest.mark.once
def test_noise_of_iwae_gradients():
    """Signal over noise of the guide's gradient: with more particles it falls for path and rises for doubly.

    That is of a guide wider than the posterior, whose weights are bounded.
    """

    def ratios(particles):
        both = lambda at, key: [jax.grad(scalar_iwae(name, particles))(at, key)[:2] for name in ("path", "doubly")]
        found = many(both, 2000, (0.8, 0.2, 0.8))
        return [np.sqrt(sum(a.mean() ** 2 for a in one) / noise_of(one)) for one in found]

    (path, doubly), (path_of_more, doubly_of_more) = ratios(4), ratios(64)
    assert doubly > 4 * path
    assert 0.7 < 4 * path_of_more / path < 1.5  # the square root of 16, down and up
    assert 0.7 < doubly_of_more / doubly / 4 < 1.5


TABLE = np.random.default_rng(4).normal(size=8)


def bits(z):
    return jnp.asarray(TABLE)[z @ jnp.array([4, 2, 1])]


DISCRETE = {
    "Bernoulli": (lambda logits: dist.Bernoulli(logits=logits).to_event(1), 3, bits),
    "Categorical": (lambda logits: dist.Categorical(logits=logits), 8, lambda z: jnp.asarray(TABLE)[z]),
}


@pytest.mark.once
@pytest.mark.parametrize("kind", DISCRETE)
def test_score_gradients_of_discrete_latents(kind):
    """Against the sum over every state, by the guide and by a parameter of the model."""
    guide, size, log_table = DISCRETE[kind]
    logits = np.linspace(-1.0, 0.8, size).astype(jnp.result_type(float))
    states = np.array([[i >> 2 & 1, i >> 1 & 1, i & 1] for i in range(8)]) if kind == "Bernoulli" else np.arange(8)

    def exact(logits, theta):
        log_q = guide(logits).log_prob(jnp.asarray(states))
        return jnp.sum(jnp.exp(log_q) * (theta * jax.vmap(log_table)(jnp.asarray(states)) - log_q))

    def bound(logits, theta, key):
        return elbo(lambda z: theta * log_table(z), guide(logits), key, 5, "score")

    value, slope = many(jax.value_and_grad(bound, argnums=(0, 1)), 20_000, logits, 1.3)
    expected = jax.jit(jax.value_and_grad(exact, argnums=(0, 1)))(logits, 1.3)
    assert_unbiased((value, slope), expected)


def test_score_with_a_closed_form_divergence():
    prior = dist.Categorical(probs=jnp.full(8, 1 / 8))

    def exact(logits):
        p = jax.nn.softmax(logits)
        return jnp.sum(p * (jnp.asarray(TABLE) - jnp.log(p) - np.log(8)))

    def bound(logits, key):
        guide = dist.Categorical(probs=jax.nn.softmax(logits))
        return elbo_with_kl(lambda z: jnp.asarray(TABLE)[z], guide, prior, key, 5, "score")

    logits = np.linspace(-1.0, 0.8, 8).astype(jnp.result_type(float))
    value, slope = many(jax.value_and_grad(bound), 20_000, logits)
    assert_unbiased((value, slope), jax.jit(jax.value_and_grad(exact))(logits))


def test_parameters_in_the_closure_of_a_transform_are_held_too():
    """A flow may keep its parameters where no tree finds them; sticking still has only the gradient of the path."""

    def guide(params):
        first = lambda z: jnp.concatenate([jnp.zeros_like(z[..., :1]), z[..., :1]], axis=-1)
        shift = lambda z: (params[0] * first(z), params[1] * jnp.sin(first(z)))
        base = dist.Normal(jnp.zeros(2), 1.0).to_event(1)
        return dist.TransformedDistribution(base, InverseAutoregressiveTransform(shift))

    log_p = lambda z: dist.Normal(jnp.array([0.0, 1.0]), 1.2).to_event(1).log_prob(z)
    at = (0.4, -0.3)

    def by_hand(params):
        z = guide(params).sample(KEY, (3,))
        return jnp.mean(jax.vmap(log_p)(z) - guide(at).log_prob(z))

    @jax.jit
    def found(params):
        each = [jax.value_and_grad(lambda p: elbo(log_p, guide(p), KEY, 3, g))(params) for g in ("path", "sticking")]  # noqa: B023
        return *each, jax.grad(by_hand)(params)

    path, sticking, expected = found(at)
    assert_allclose(sticking[0], path[0], rtol=tol(1e-9, 1e-5))
    assert_allclose(sticking[1], expected, rtol=tol(1e-9, 1e-4))
    assert not np.allclose(sticking[1], path[1], rtol=1e-3)


# -- part of the data -------------------------------------------------------------------------------------------------


def test_minibatches_average_to_the_joint():
    """Over all 15 batches of 4 out of 6, exactly; and so does the ELBO, which is linear in the joint."""
    p = PROBLEMS["regression"]
    X, y, q = jnp.asarray(p.A[:6]), jnp.asarray(p.y[:6]), mean_field(near(p))
    z = jnp.array([0.3, -0.2, 1.0])

    @jax.jit
    @jax.vmap
    def found(rows):
        log_likelihood = lambda z, one: dist.Normal(one["x"] @ z, 0.7).log_prob(one["y"])
        joint = minibatch_joint(p.prior.log_prob, log_likelihood, 6, {"x": X[rows], "y": y[rows]})
        return joint(z), elbo(joint, q, KEY, 3)

    @jax.jit
    def whole():
        joint = lambda z: p.prior.log_prob(z) + jnp.sum(dist.Normal(X @ z, 0.7).log_prob(y))
        return joint(z), elbo(joint, q, KEY, 3)

    for batches, expected in zip(found(jnp.array(list(combinations(range(6), 4)))), whole(), strict=True):
        assert_allclose(np.mean(batches), expected, rtol=tol(1e-12, 1e-5))
        assert np.std(batches) > 0.1


# -- transformations, precision, messages ------------------------------------------------------------------------------


class Plain(dist.Distribution):
    """A standard normal about a vector as a user may write it: strict in ranks and precision, and no pytree."""

    support = dist.constraints.real_vector
    has_rsample = True

    def __init__(self, loc):
        self.loc = loc
        super().__init__((), loc.shape)

    def sample(self, key, sample_shape=()):
        noise = jax.random.normal(key, sample_shape + self.event_shape, self.loc.dtype)
        return noise + jnp.broadcast_to(self.loc, noise.shape)

    rsample = sample

    def log_prob(self, value):
        return -0.5 * jnp.sum((value - jnp.broadcast_to(self.loc, value.shape)) ** 2, axis=-1)


TARGET = lambda z: -jnp.sum((z - 0.3) ** 4)
OBJECTIVES = {
    "path": lambda q, key: elbo(TARGET, q, key, 4),
    "sticking": lambda q, key: elbo(TARGET, q, key, 4, "sticking"),
    "score": lambda q, key: elbo(TARGET, q, key, 4, "score"),
    "iwae": lambda q, key: iwae(TARGET, q, key, 3, 2),
    "doubly": lambda q, key: iwae(TARGET, q, key, 3, 2, "doubly"),
    "renyi": lambda q, key: renyi(TARGET, q, key, 3, 0.4, 2),
}


@pytest.mark.once
def test_jit_is_eager_and_vmap_is_a_loop():
    """Of value and gradient, over guides and keys at once; the guide is built inside."""
    function = lambda loc, key: {
        name: jax.value_and_grad(lambda at: objective(Plain(at), key))(loc)  # noqa: B023
        for name, objective in OBJECTIVES.items()
    }
    loc, keys = jnp.array([[0.2, 0.5], [0.0, -0.4]]), jax.random.split(KEY, 2)
    stacked, single = jax.jit(jax.vmap(function))(loc, keys), jax.jit(function)
    close = lambda a, b: assert_allclose(a, b, rtol=tol(1e-10, 1e-4), atol=tol(1e-10, 1e-4))
    for i in range(2):
        jax.tree.map(lambda a, b, i=i: close(a, b[i]), single(loc[i], keys[i]), stacked)
    close(OBJECTIVES["path"](Plain(loc[0]), keys[0]), stacked["path"][0][0])
    for name, twin in (("sticking", "path"), ("score", "path"), ("doubly", "iwae")):
        close(stacked[name][0], stacked[twin][0])


def test_a_guide_passes_through_jit_and_vmap():
    guide = lambda params: dist.Normal(params, 0.8).to_event(1)
    params = jnp.array([[0.2, 0.5], [0.2, 0.5]])
    function = jax.jit(lambda q, key: elbo(TARGET, q, key, 4))
    single = function(guide(params[0]), KEY)
    found = jax.vmap(function, (0, None))(jax.vmap(guide)(params), KEY)
    assert_allclose(found, [single] * 2, rtol=tol(1e-12, 1e-5))


def test_precision_and_ranks_are_kept():
    """float32 stays float32 where float64 is on, and nothing is broadcast over unequal ranks."""
    dtype = jnp.float32

    def bounds(loc):
        joint = minibatch_joint(TARGET, lambda z, y: -y * jnp.sum(z), 9, jnp.ones(3, dtype))
        q, values = Plain(loc), [objective(Plain(loc), KEY) for objective in OBJECTIVES.values()]
        with_kl = elbo_with_kl(TARGET, q, Plain(jnp.zeros(2, dtype)), KEY, 4, closed_form=False)
        return [*values, joint(loc), with_kl, *elbo_estimate(TARGET, q, KEY, 4, 3)]

    found = jax.jit(lambda loc: (bounds(loc), jax.jacfwd(bounds)(loc)))
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        values, slopes = found(jnp.full(2, 0.5, dtype))
    assert {a.dtype for a in values + slopes} == {jnp.dtype(dtype)}
    assert {a.shape for a in values} == {()}
    assert np.isfinite(values).all() and np.isfinite(slopes).all()
    assert not np.any(slopes[-2:])  # an estimate with its error carries no gradient


def test_a_divergence_without_closed_form():
    q, prior = dist.Weibull(2.0, 3.0), dist.LogNormal(0.0, 1.0)
    with pytest.raises(ValueError, match="closed_form=False"):
        elbo_with_kl(lambda z: -z, q, prior, KEY)
    fit, joint = lambda z: -z, lambda z: prior.log_prob(z) - z
    found = jax.jit(lambda: (elbo_with_kl(fit, q, prior, KEY, 5, closed_form=False), elbo(joint, q, KEY, 5)))()
    assert_allclose(*found, rtol=1e-6)


Q = dist.Normal(jnp.zeros(3), 1.0).to_event(1)
NEVER = lambda z: jnp.sum(z)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: elbo(NEVER, Q, KEY, 0), "draws is 0; a whole number of at least 1"),
        (lambda: elbo(NEVER, Q, KEY, 2.0), "draws is 2.0; a whole number"),
        (lambda: elbo(NEVER, Q, KEY, True), "draws is True; a whole number"),
        (lambda: elbo(NEVER, Q, KEY, 3, "stl"), "gradient is 'stl'; one of 'path', 'sticking', 'score' is wanted"),
        (lambda: elbo(NEVER, Q, KEY, 1, "score"), "draws is 1; gradient='score' wants at least 2"),
        (lambda: elbo(lambda z: z, Q, KEY), r"log_density returned shape \(3,\); a scalar is wanted"),
        (lambda: elbo(NEVER, Q.base_dist, KEY), r"q has batch shape \(3,\).*to_event\(1\)"),
        (lambda: elbo(NEVER, dist.Bernoulli(0.5), KEY), "q is .*Bernoulli.*gradient='score'"),
        (lambda: elbo_with_kl(NEVER, Q, Q, KEY, 3, "sticking"), "one of 'path', 'score'"),
        (lambda: elbo_with_kl(NEVER, Q, Q.base_dist, KEY), "prior has batch shape"),
        (lambda: elbo_with_kl(NEVER, Q, dist.Normal(), KEY), r"prior has event shape \(\) and q \(3,\)"),
        (lambda: elbo_estimate(NEVER, Q, KEY, 1), "draws is 1; a whole number of at least 2"),
        (lambda: iwae(NEVER, Q, KEY, 0), "particles is 0; a whole number"),
        (lambda: iwae(NEVER, Q, KEY, 3, gradient="sticking"), "one of 'path', 'doubly'"),
        (lambda: renyi(NEVER, Q, KEY, 3, "1"), "alpha is '1'; a finite number"),
        (lambda: renyi(NEVER, Q, KEY, 3, np.inf), "alpha is inf; a finite number"),
        (lambda: minibatch_joint(NEVER, NEVER, 0, jnp.ones(3)), "size is 0; a whole number"),
        (lambda: minibatch_joint(NEVER, NEVER, 9, (jnp.ones(3), jnp.ones(2))), r"shapes \[\(3,\), \(2,\)\]"),
        (lambda: minibatch_joint(NEVER, NEVER, 9, jnp.ones((0, 2))), r"shapes \[\(0, 2\)\]"),
        (
            lambda: minibatch_joint(NEVER, lambda z, y: z, 9, jnp.ones(4))(jnp.ones(3)),
            r"log_likelihood returned shape \(3,\)",
        ),
    ],
)
def test_mistakes(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("key", [None, 3])
def test_a_key_is_wanted(key):
    with pytest.raises(TypeError, match="key"):
        elbo(NEVER, Q, key)
