"""Hidden Markov models: brute force over all paths, a textbook's figures, and what users do with a fit."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose

import probkit as pk
from probkit.hmm import chain
from probkit.hmm.distribution import HiddenMarkov, Increasing
from probkit.hmm.model import LogitBeta

KEY = jax.random.key(0)
RNG = np.random.default_rng(0)
INITIAL = RNG.dirichlet(np.ones(3))
TRANSITION = RNG.dirichlet(np.ones(3), size=3)
TERMS = RNG.normal(size=(5, 3)) - 2
TERMS[2] = 0.0  # missing
# Large earthquakes (magnitude 7 and more) a year, 1900 to 2006: Zucchini, MacDonald and Langrock (2016), table 1.1.
QUAKES = """
13 14 8 10 16 26 32 27 18 32 36 24 22 23 22 18 25 21 21 14 8 11 14 23 18 17 19 20 22 19 13 26 13 14 22 24 21
22 26 21 23 24 27 41 31 27 35 26 28 36 39 21 17 22 17 19 15 34 10 15 22 18 15 20 15 22 19 16 30 27 29 23 20
16 21 21 25 16 18 15 18 14 10 15 8 15 6 11 8 7 18 16 13 12 13 20 15 16 12 18 15 16 13 15 16 11 11
"""
QUAKES = np.array([float(x) for x in QUAKES.split()])


def all_paths(terms=TERMS):
    """Every path and its joint density with the observations."""
    paths = np.array(list(itertools.product(range(3), repeat=len(terms))))
    joint = np.array(
        [
            INITIAL[p[0]]
            * np.prod([TRANSITION[i, j] for i, j in itertools.pairwise(p)])
            * np.exp(sum(terms[t, s] for t, s in enumerate(p)))
            for p in paths
        ]
    )
    return paths, joint


@pytest.fixture(scope="module")
def found():
    @jax.jit
    def run(initial, transition, terms, keys):
        told = chain.infer(initial, transition, terms)
        value, gradient = jax.value_and_grad(chain.log_likelihood, argnums=(0, 1, 2))(initial, transition, terms)
        draws = jax.vmap(lambda key: chain.sample_path(key, transition, told))(keys)
        return told, value, gradient, chain.most_likely_path(initial, transition, terms), draws

    return run(jnp.asarray(INITIAL), jnp.asarray(TRANSITION), jnp.asarray(TERMS), jax.random.split(KEY, 4000))


def test_all_paths_counted(found):
    told, value, gradient, (best, log_best), draws = found
    paths, joint = all_paths()
    rtol = tol(1e-10, 1e-5)
    assert_allclose([value, told.log_likelihood], np.log(joint.sum()), rtol=rtol)
    share = lambda keep, weight: np.array(
        [[weight[keep & (paths[:, t] == s)].sum() for s in range(3)] for t in range(5)]
    )
    whole = np.ones(len(paths), bool)
    smoothed = share(whole, joint) / joint.sum()
    assert_allclose(told.smoothed, smoothed, rtol=rtol)
    for t in range(5):
        without = joint / np.exp(TERMS[t, paths[:, t]])
        left = np.array([without[paths[:, t] == s].sum() for s in range(3)])
        assert_allclose(told.left_out[t], left / left.sum(), rtol=rtol)
        past = np.where(np.arange(5)[:, None] < t, TERMS, 0.0)
        before = all_paths(past)[1]
        assert_allclose(told.predicted[t], [before[paths[:, t] == s].sum() for s in range(3)] / before.sum(), rtol=rtol)
    assert_allclose(gradient[2], smoothed, rtol=tol(1e-8, 1e-4))  # Fisher's identity
    steps = sum(smoothed[0][i] / INITIAL[i] * np.eye(3)[i] for i in range(3))
    assert_allclose(gradient[0], steps, rtol=tol(1e-8, 1e-4))
    assert list(best) == list(paths[joint.argmax()])
    assert_allclose(log_best, np.log(joint.max()), rtol=rtol)
    for t in range(5):
        frequency = np.bincount(np.asarray(draws)[:, t], minlength=3) / 4000
        assert_allclose(frequency, smoothed[t], atol=5 * np.sqrt(0.25 / 4000))


def test_tiny_densities_and_impossible_paths():
    A, start = jnp.eye(2), jnp.array([0.5, 0.5])
    tiny = jnp.full((4, 2), -1e4).at[:, 1].add(-3.0)
    assert_allclose(chain.log_likelihood(start, A, tiny), -4e4 + np.log(0.5), rtol=1e-6)
    never = jnp.array([[0.0, -jnp.inf], [-jnp.inf, 0.0]])
    value, gradient = jax.value_and_grad(lambda a: chain.log_likelihood(start, a, never))(A)
    assert value == -np.inf and np.isfinite(gradient).all()


@pytest.mark.once
def test_law_of_a_chain():
    law = HiddenMarkov(jnp.asarray(INITIAL), jnp.asarray(TRANSITION), dist.Normal(jnp.array([-3.0, 0.0, 5.0]), 1.0), 6)
    draws = jax.jit(lambda key: law.sample(key, (4000,)))(KEY)
    assert_allclose(draws.mean(0), law.mean, atol=0.3)
    assert_allclose(draws.var(0), law.variance, rtol=0.1)
    y, new = draws[0].at[2].set(jnp.nan), jnp.array([0.3, 5.1, -2.0])

    @jax.jit
    def run(y, other):
        both = HiddenMarkov(law.initial, law.transition, law.emission, 9).log_prob(jnp.concatenate([y, new]))
        left = law.leave_one_out(y).log_prob(jnp.where(jnp.isnan(y), 0.0, y))
        three = law.log_prob(jnp.stack([y, other, y.at[4].set(jnp.nan)]))
        return law.forecast(y, 3).log_prob(new), both, left[4], three

    later, both, left, (whole, _, without) = run(y, draws[1])
    assert_allclose(later, both - whole, rtol=tol(1e-8, 1e-3))
    assert_allclose(left, whole - without, rtol=tol(1e-8, 1e-3))


@pytest.mark.once
def test_ordered_vectors_and_uniform_classes():
    law = Increasing(dist.Normal(1.0, 2.0), 3)
    x = jnp.linspace(-9.0, 11.0, 41)
    a, b, c = jnp.meshgrid(x, x, x, indexing="ij")
    inside = (a < b) & (b < c)
    total = jnp.sum(jnp.where(inside, jnp.exp(law.log_prob(jnp.stack([a, b, c], -1))), 0.0)) * 0.5**3
    assert_allclose(total, 1.0, atol=0.35)  # the planes a = b and b = c count half
    draws = law.sample(KEY, (5,))
    assert (np.diff(draws) >= 0).all()
    z = jnp.linspace(-15.0, 15.0, 4001)
    assert_allclose(jnp.sum(jnp.exp(LogitBeta(3.0).log_prob(z))) * (z[1] - z[0]), 1.0, rtol=1e-3)


def concrete(rates, A, initial):
    return pk.HMM(pk.hmm.Poisson(len(rates), np.array(rates)), np.array(A), np.array(initial))


def test_earthquakes_of_the_book():
    """Zucchini, MacDonald and Langrock (2016), section 4.3: one state, and two by EM that begin in the first."""
    y = jnp.asarray(QUAKES)
    one = concrete([QUAKES.mean()], [[1.0]], [1.0])
    assert_allclose(one.log_likelihood(y), -391.9189, atol=tol(1e-4, 1e-2))
    two = concrete([15.419, 26.018], [[0.9284, 0.0716], [0.1190, 0.8810]], [1.0, 0.0])
    assert_allclose(two.log_likelihood(y), -341.8787, atol=tol(2e-3, 1e-2))


@pytest.fixture(scope="module")
def fitted():
    y = QUAKES.copy()
    y[[5, 50]] = np.nan
    return pk.fit(pk.HMM(pk.hmm.Poisson(2)), y, key=KEY, method=pk.Laplace(draws=200, starts=2))


@pytest.mark.slow
def test_what_users_do(fitted):
    rates = fitted.sites["emission.rate"][0]
    assert (rates[:, 0] < rates[:, 1]).all() and abs(rates.mean(0) - [15.4, 26.0]).max() < 1.5
    parts = fitted.components(draws=50)
    assert_allclose(parts["state_1"].mean + parts["state_2"].mean, 1.0, rtol=1e-5)
    assert parts["state_2"].mean[43] > 0.95 and parts["state_1"].mean[-1] > 0.95
    ahead = fitted.forecast(3)
    assert ahead.mean.shape == (3,) and 12 < ahead.mean[0] < 20
    assert np.isnan(fitted.loo_terms[..., 5]).all() and np.isfinite(fitted.loo_terms[..., 6]).all()
    filled = fitted.impute(draws=50)
    assert (filled.draws[0][:, 50] >= 0).all()
    path = pk.bind(fitted.target.resolved().model, {n: v[0, 0] for n, v in fitted.sites.items()})
    assert set(np.unique(path.most_likely_path(jnp.asarray(QUAKES)))) == {1, 2}


@pytest.mark.slow
def test_the_best_fit_of_the_book_is_found_and_beats_one_state():
    y = QUAKES
    best = pk.fit(pk.HMM(pk.hmm.Poisson(2), initial=np.array([1.0, 0.0])), y, key=KEY, method=pk.MLE())
    assert_allclose(best.outcome.stats["log_likelihood"].item(), -341.8787, atol=1e-3)
    fits = {f"{k} states": pk.fit(pk.HMM(pk.hmm.Poisson(k)), y, key=KEY) for k in (1, 2)}
    assert pk.compare(fits).index[0] == "2 states"
    nuts = pk.fit(pk.HMM(pk.hmm.Poisson(2)), y, key=KEY, method=pk.NUTS(draws=1000), progress=False)
    for name, draws in nuts.sites.items():
        gap = np.abs(fits["2 states"].sites[name].mean((0, 1)) - draws.mean((0, 1)))
        assert (gap < 0.15 * draws.std((0, 1))).all()


@pytest.mark.slow
def test_calibrated():
    model = pk.HMM(
        pk.hmm.Gaussian(2, Increasing(dist.Normal(0.0, 3.0), 2), 1.0),
        dist.Dirichlet(jnp.ones((2, 2)) + 2 * jnp.eye(2)).to_event(1),
        np.array([0.5, 0.5]),
    )
    found = pk.calibrate(model, 40, key=KEY, method=pk.Auto(draws=400, starts=2), replications=300, progress=False)
    assert found.uniform(), found.table()


@pytest.mark.slow
def test_classes_of_a_sequence():
    rng = np.random.default_rng(2)
    state = np.cumsum(rng.uniform(size=200) < 0.05) % 2
    y = np.where(rng.uniform(size=200) < 0.8, np.where(state == 1, 0, 2), rng.integers(0, 3, 200)).astype(float)
    fit = pk.fit(pk.HMM(pk.hmm.Categorical(2, 3)), y, key=KEY, method=pk.Laplace(draws=200))
    told = fit.components(draws=50)["state_2"].mean > 0.5
    assert np.mean(told == (state == 1)) > 0.9
    assert set(np.unique(fit.forecast(4).draws)) <= {0.0, 1.0, 2.0}


@pytest.mark.parametrize(
    ("emission", "y", "message"),
    [
        (pk.hmm.Poisson(2), [1.0, 2.5], "whole numbers"),
        (pk.hmm.Categorical(2, 3), [1.0, 3.0], "3 classes"),
    ],
)
def test_wrong_data(emission, y, message):
    with pytest.raises(ValueError, match=message):
        pk.fit(pk.HMM(emission), y, key=KEY)


def test_wrong_arguments():
    with pytest.raises(TypeError, match="emission is int"):
        pk.HMM(2)
    with pytest.raises(ValueError, match="states is 0"):
        pk.HMM(pk.hmm.Gaussian(0))
    with pytest.raises(ValueError, match="classes is 1"):
        pk.hmm.Categorical(2, 1)
    with pytest.raises(TypeError, match="takes no X"):
        pk.fit(pk.HMM(pk.hmm.Gaussian(2)), [1.0, 2.0], [1.0, 2.0], key=KEY)


def test_states_that_cannot_be_say_nothing():
    """The chain begins in the first state, though the second explains the first value far better."""
    initial, terms = jnp.array([1.0, 0.0]), jnp.array([[-800.0, 0.0], [-1.0, -900.0]])
    transition = jnp.array([[0.5, 0.5], [0.0, 1.0]])
    value, slope = jax.value_and_grad(lambda t: chain.log_likelihood(initial, transition, t))(terms)
    assert_allclose(value, -801 + np.log(0.5), rtol=tol(1e-12, 1e-6))
    assert_allclose(slope, [[1.0, 0.0], [1.0, 0.0]], atol=1e-6)
    assert_allclose(chain.infer(initial, transition, terms).smoothed, [[1.0, 0.0], [1.0, 0.0]], atol=1e-6)
