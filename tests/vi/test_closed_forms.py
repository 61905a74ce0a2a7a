"""Every closed form, held against SciPy's densities by quadrature or summation, and to the same invariants."""

import importlib
import itertools
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose
from numpyro.distributions import kl_divergence
from scipy import integrate, special, stats

from probkit.vi import closed_forms
from probkit.vi.divergences import entropy, kl

SCALAR = {  # by name: NumPyro's, SciPy's
    "exponential": (dist.Exponential, lambda rate: stats.expon(scale=1 / rate)),
    "gamma": (dist.Gamma, lambda a, rate: stats.gamma(a, scale=1 / rate)),
    "inverse gamma": (dist.InverseGamma, lambda a, rate: stats.invgamma(a, scale=rate)),
    "beta": (dist.Beta, stats.beta),
    "normal": (dist.Normal, stats.norm),
    "log normal": (dist.LogNormal, lambda m, s: stats.lognorm(s, scale=np.exp(m))),
    "exp of normal": (
        lambda m, s: dist.TransformedDistribution(dist.Normal(m, s), dist.transforms.ExpTransform()),
        lambda m, s: stats.lognorm(s, scale=np.exp(m)),
    ),
    "half normal": (dist.HalfNormal, lambda s: stats.halfnorm(scale=s)),
    "laplace": (dist.Laplace, stats.laplace),
    "uniform": (dist.Uniform, lambda low, high: stats.uniform(low, high - low)),
    "pareto": (dist.Pareto, lambda scale, a: stats.pareto(a, scale=scale)),
    "weibull": (dist.Weibull, lambda scale, k: stats.weibull_min(k, scale=scale)),
    "gumbel": (dist.Gumbel, stats.gumbel_r),
    "cauchy": (dist.Cauchy, stats.cauchy),
    "von mises": (dist.VonMises, lambda m, k: stats.vonmises(k, loc=m)),
    "poisson": (dist.Poisson, stats.poisson),
    "bernoulli probs": (dist.BernoulliProbs, stats.bernoulli),
    "bernoulli logits": (dist.BernoulliLogits, lambda x: stats.bernoulli(special.expit(x))),
    "binomial probs": (lambda p: dist.BinomialProbs(p, 7), lambda p: stats.binom(7, p)),
    "binomial logits": (lambda x: dist.BinomialLogits(x, 7), lambda x: stats.binom(7, special.expit(x))),
    "geometric probs": (dist.GeometricProbs, lambda p: stats.geom(p, loc=-1)),
    "geometric logits": (dist.GeometricLogits, lambda x: stats.geom(special.expit(x), loc=-1)),
}
POSITIVE, PROBS, LOGITS = [(0.4,), (1.0,), (6.0,)], [(0.05,), (0.3,), (0.9,)], [(-3.0,), (0.2,), (2.5,)]
SHAPES, PLACES = [(0.6, 0.5), (2.0, 1.0), (9.0, 3.0)], [(-1.0, 0.3), (0.0, 1.0), (2.0, 2.5)]
VALUES = {
    "exponential": POSITIVE,
    "half normal": POSITIVE,
    "poisson": POSITIVE,
    "beta": [(1.2, 1.5), (2.0, 1.0), (9.0, 3.0)],
    "uniform": [(0.0, 1.0), (-0.5, 1.0), (0.2, 0.7)],
    "pareto": [(0.5, 0.8), (1.0, 2.0), (1.5, 5.0)],
} | dict.fromkeys(["gamma", "inverse gamma", "weibull"], SHAPES)


def values(name):
    by_form = PROBS if name.endswith("probs") else LOGITS if name.endswith("logits") else PLACES
    return np.array(VALUES.get(name, by_form)).T


def couples(*families):
    return [(p, q) for family in families for p, q in itertools.product(family, family)]


FORMS = [[f"{name} {form}" for form in ("probs", "logits")] for name in ("bernoulli", "binomial", "geometric")]
PAIRS = [
    *couples(["exponential", "gamma"], ["log normal", "exp of normal"], *FORMS),
    ("weibull", "gamma"),  # NumPyro's own, like gamma, normal and beta
    *((name, name) for name in ("inverse gamma", "half normal", "laplace", "uniform", "pareto", "weibull", "gumbel")),
    *((name, name) for name in ("cauchy", "von mises", "poisson", "normal", "beta")),
]


def expectation(p, f):
    """E_p[f] for a frozen SciPy distribution: summed, or by the double exponential rule over its quantiles."""
    if isinstance(p.dist, stats.rv_discrete):
        k = np.arange(3000)
        mass = p.pmf(k)
        return np.sum(mass[mass > 0] * f(k[mass > 0]))
    if p.dist.name == "vonmises":
        x = np.linspace(-np.pi, np.pi, 4000, endpoint=False)
        return np.sum(p.pdf(x) * f(x)) * 2 * np.pi / 4000
    if p.dist.name == "laplace":  # between the kinks
        pieces = itertools.pairwise([-100, -10, -1, 0, 2, 10, 100])
        return sum(integrate.quad(lambda x: p.pdf(x) * f(x), *ends, epsabs=1e-10)[0] for ends in pieces)
    t = np.arange(-3.6, 3.6, 1 / 32)
    u = np.pi * np.sinh(t)
    x = np.where(t < 0, p.ppf(special.expit(u)), p.isf(special.expit(-u)))
    x = np.minimum(x, 1 - 1e-16) if p.dist.name == "beta" else x
    return np.sum(f(x) * np.pi * np.cosh(t) / (2 + 2 * np.cosh(u))) / 32


def log_density(p):
    return p.logpmf if isinstance(p.dist, stats.rv_discrete) else p.logpdf


def truth(p, q):
    f, g = log_density(p), log_density(q)
    with np.errstate(invalid="ignore"):
        return expectation(p, lambda x: f(x) - g(x))


@pytest.mark.once
@pytest.mark.parametrize(("p", "q"), PAIRS)
def test_quadrature_over_a_batch(p, q):
    """Three values of p against three of q: the batches (3, 1) and (3,) broadcast."""
    frozen, other_frozen, (a, b), result = SCALAR[p][1], SCALAR[q][1], grids(p, q), table()[f"{p}, {q}"]["value"]
    expected = [[truth(frozen(*i), other_frozen(*j)) for j in b.T] for i in a.T]
    assert result.exact and result.value.shape == result.error.shape == np.shape(expected)
    # NumPyro's beta by way of JAX's betaln, off by 1.3e-6 in float64 where an argument is 8 or more
    assert_allclose(result.value, expected, rtol=tol(1e-7, 2e-4), atol=tol(5e-6 if p == "beta" else 1e-8, 2e-5))
    assert not np.any(result.error)


NO_ENTROPY = ("poisson", "exp of normal", "binomial probs", "binomial logits")
ENTROPIES = [name for name in SCALAR if name not in NO_ENTROPY]


@cache
def entropies():
    return jax.jit(lambda given: {name: entropy(SCALAR[name][0](*given[name])) for name in given})(
        {name: tuple(values(name)) for name in ENTROPIES}
    )


@pytest.mark.parametrize("name", ENTROPIES)
def test_entropy(name):
    result = entropies()[name]
    assert result.exact
    expected = [
        expectation(d, lambda x, d=d: -log_density(d)(x)) for d in (SCALAR[name][1](*i) for i in values(name).T)
    ]
    assert_allclose(result.value, expected, rtol=tol(1e-7, 1e-4), atol=tol(5e-6 if name == "beta" else 1e-7, 1e-5))


# Kumaraswamy is not in SciPy.


KUMARASWAMY = [(2.0, 3.0), (5.0, 0.5), (0.3, 0.1), (40.0, 0.8), (0.7, 30.0), (1.0, 2.0)]


def test_kumaraswamy():
    value = jax.jit(lambda a, b: kl(dist.Kumaraswamy(a, b), dist.Beta(2.0, 3.0)).value)(*np.array(KUMARASWAMY).T)
    for (a, b), found in zip(KUMARASWAMY, value, strict=True):
        tail = lambda log_s: b * np.log(-special.expm1(a * special.log1p(-np.exp(log_s / b))) / np.exp(log_s / b))  # noqa: B023
        integral = (
            integrate.quad(lambda s: np.exp(tail(np.log(s))), 1e-300, 1, limit=400, epsabs=1e-11, epsrel=1e-11)[0] / b  # noqa: B023
        )
        mean_log = -(np.euler_gamma + special.digamma(b) + 1 / b) / a
        expected = np.log(a * b) + (a - 2) * mean_log - (b - 1) / b + special.betaln(2, 3) + 2 * integral
        assert_allclose(found, expected, rtol=tol(1e-8, 2e-5))
    a, b = KUMARASWAMY[0]  # and the whole of it by the densities
    t = np.arange(-3, 3, 1 / 32)
    u = special.expit(np.pi * np.sinh(t))
    x = (1 - (1 - u) ** (1 / b)) ** (1 / a)
    f = np.log(a * b) + (a - 1) * np.log(x) + (b - 1) * np.log(1 - x**a) - stats.beta(2, 3).logpdf(x)
    total = np.sum(f * np.pi * np.cosh(t) / (2 + 2 * np.cosh(np.pi * np.sinh(t)))) / 32
    assert_allclose(value[0], total, rtol=1e-4)


# The same invariants for every pair.


def spd(seed, d=3):
    A = np.random.default_rng(seed).normal(size=(d, d))
    return np.linalg.cholesky(A @ A.T + d * np.eye(d))


VECTOR = {
    "categorical probs": (lambda x: dist.CategoricalProbs(x), [[0.2, 0.3, 0.5]], [[0.6, 0.3, 0.1]]),
    "categorical logits": (lambda x: dist.CategoricalLogits(x), [[0.2, 3.0, -1.0]], [[0.6, 0.3, 0.1]]),
    "multinomial probs": (lambda x: dist.MultinomialProbs(x, 5), [[0.2, 0.3, 0.5]], [[0.6, 0.3, 0.1]]),
    "multinomial logits": (lambda x: dist.MultinomialLogits(x, 5), [[0.2, 3.0, -1.0]], [[0.6, 0.3, 0.1]]),
    "wishart": (lambda n, L: dist.Wishart(n, scale_tril=L), [4.5, spd(0)], [6.0, spd(1)]),
    "wishart factor": (lambda n, L: dist.WishartCholesky(n, scale_tril=L), [4.5, spd(0)], [6.0, spd(1)]),
    "inverse wishart": (lambda n, L: dist.InverseWishart(n, scale_tril=L), [4.5, spd(0)], [6.0, spd(1)]),
    "inverse wishart factor": (
        lambda n, L: dist.InverseWishartCholesky(n, scale_tril=L),
        [4.5, spd(0)],
        [6.0, spd(1)],
    ),
    "kumaraswamy": (dist.Kumaraswamy, [2.0, 0.7], None),
}
LISTS = [[f"{name} {form}" for form in ("probs", "logits")] for name in ("categorical", "multinomial")]
MATRICES = ("wishart", "wishart factor", "inverse wishart", "inverse wishart factor")
ALL = [*PAIRS, *couples(*LISTS), *((m, m) for m in MATRICES), ("kumaraswamy", "beta")]


FEW = [
    *(("exponential", "gamma"), ("geometric logits", "geometric probs"), ("categorical logits", "categorical probs")),
    *((name, name) for name in ("laplace", "pareto", "weibull", "cauchy", "von mises", "poisson", "wishart")),
    ("kumaraswamy", "beta"),
]


def build(name, which, given=None):
    """The distribution of that name, with one set of parameters for p and another for q."""
    make = VECTOR[name][0] if name in VECTOR else SCALAR[name][0]
    return make(*(given or parameters(name, which)))


def parameters(name, which):
    given = VECTOR[name][1 + which] if name in VECTOR else values(name)[:, -1 - which]
    return tuple(np.asarray(x, float) for x in given)


def grids(p, q):
    """Parameters of p and of q, the values last. Cauchy's first is too far out for quadrature."""
    return tuple(values(name)[:, 1:] if name == "cauchy" else values(name) for name in (p, q))


def every_form(given):
    """All divergences: of the grids of p and q, or of two vectors or matrices; and the same in wrappers."""
    found = {}
    for names, (a, b) in given.items():
        one, other = names.split(", ")
        grid = (one, other) in PAIRS
        p = build(one, 0, tuple(x[:, None] for x in a) if grid else a)
        q = build(other, 1, tuple(b))
        pairs = {"value": (p, q)}
        if (one, other) in FEW and grid:
            pairs["wrapped"] = (p.expand((a[0].size, b[0].size)).to_event(1), q.to_event(1))
        elif (one, other) in FEW:
            pairs["wrapped"] = (p.expand((2, 3)).to_event(1), q.expand((3,)).to_event(1))
        if one == other and not grid:
            pairs["self"] = (p, p)
        if one in MATRICES:
            pairs["two"] = (p, type(q)(jnp.stack([b[0]] * 2), scale_tril=jnp.stack([b[1]] * 2)))
        found[names] = {name: kl(*pair) for name, pair in pairs.items()}
    return found


def all_given(dtype=float):
    given = {f"{p}, {q}": grids(p, q) if (p, q) in PAIRS else (parameters(p, 0), parameters(q, 1)) for p, q in ALL}
    return jax.tree.map(lambda x: np.asarray(x, dtype), given)


@cache
def table():
    """Every divergence of these tests in one program, where eager they would take thousands."""
    return jax.jit(every_form)(all_given())


@pytest.mark.parametrize(("p", "q"), ALL)
def test_invariants(p, q):
    results = table()[f"{p}, {q}"]
    value, grid = results["value"].value, (p, q) in PAIRS
    assert (value[-1, -2] if grid else value) > 0.01
    if p == q:
        assert_allclose(np.diagonal(value) if grid else results["self"].value, 0, atol=tol(1e-13, 1e-5))
    if "wrapped" in results:
        assert_allclose(results["wrapped"].value, value.sum(1) if grid else [3 * value] * 2, rtol=1e-5)


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="there is nothing to fall into")
def test_single_precision_stays():
    for results in jax.eval_shape(every_form, all_given(np.float32)).values():
        for result in results.values():
            assert result.value.dtype == result.error.dtype == jnp.float32


def every(pairs):
    return jnp.stack([kl_divergence(p, q) for p, q in pairs])


def test_jit_equals_eager():
    for names in (
        "exponential, gamma",
        "laplace, laplace",
        "poisson, poisson",
        "categorical logits, categorical probs",
    ):
        p, q = names.split(", ")
        value = table()[names]["value"].value
        assert_allclose(
            kl_divergence(build(p, 0), build(q, 1)),
            np.atleast_2d(value)[-1, -1 - (value.ndim > 0)],
            rtol=tol(1e-10, 1e-4),
        )


@pytest.mark.skipif(not jax.config.jax_enable_x64, reason="finite differences take double precision")
def test_derivatives():
    given = [(parameters(p, 0), parameters(q, 1)) for p, q in FEW]
    rng = np.random.default_rng(0)
    ways = jax.tree.map(lambda x: rng.normal(size=x.shape), given)

    def every(given):
        return jnp.stack(
            [kl_divergence(build(p, 0, a), build(q, 1, b)) for (p, q), (a, b) in zip(FEW, given, strict=True)]
        )

    both = jax.jit(lambda given: jax.jvp(every, (given,), (ways,)))
    low, middle, high = (both(jax.tree.map(lambda x, way, t=t: x + t * way, given, ways)) for t in (-1e-5, 0, 1e-5))
    assert_allclose(middle[1], (high[0] - low[0]) / 2e-5, rtol=1e-5, atol=1e-7)


# Vectors and matrices.


@pytest.mark.parametrize(("p", "q"), couples(*LISTS))
def test_categories(p, q):
    P, Q = (parameters(name, i)[0] for i, name in enumerate((p, q)))
    P, Q = (special.softmax(x) if name.endswith("logits") else x for x, name in ((P, p), (Q, q)))
    count = 5 if p.startswith("multinomial") else 1
    assert_allclose(table()[f"{p}, {q}"]["value"].value, count * np.sum(P * np.log(P / Q)), rtol=tol(1e-10, 1e-5))


@pytest.mark.parametrize("name", MATRICES)
def test_wishart(name):
    """Against the other parametrisation, and one of them against draws."""
    results, inverse = table()[f"{name}, {name}"], name.startswith("inverse")
    value = results["value"].value
    (n, L), (m, R) = parameters(name, 0), parameters(name, 1)
    V, U = (A @ A.T for A in (L, R))
    V, U = (np.linalg.inv(V), np.linalg.inv(U)) if inverse else (V, U)
    mean_log = special.digamma((n - np.arange(3)) / 2).sum()
    expected = (n - m) * mean_log + m * np.log(np.linalg.det(U) / np.linalg.det(V))
    expected = (expected + n * (np.trace(np.linalg.solve(U, V)) - 3)) / 2
    expected += special.multigammaln(m / 2, 3) - special.multigammaln(n / 2, 3)
    assert_allclose(value, expected, rtol=tol(1e-10, 1e-4))
    assert_allclose(results["two"].value, [value] * 2, rtol=1e-5)
    if name == "wishart":
        one, other = stats.wishart(float(n), V), stats.wishart(float(m), U)
        x = one.rvs(10_000, np.random.default_rng(0)).transpose(1, 2, 0)
        terms = one.logpdf(x) - other.logpdf(x)
        assert abs(terms.mean() - value) < 6 * terms.std() / 100


def test_one_dimensional_wishart_is_gamma():
    one = lambda n, s: dist.Wishart(n, scale_tril=jnp.full((1, 1), s))
    pairs = (one(3.0, 0.8), one(5.0, 1.4)), (dist.Gamma(1.5, 0.5 / 0.64), dist.Gamma(2.5, 0.5 / 1.96))
    assert_allclose(*kls(*pairs), rtol=tol(1e-12, 1e-5))


# Edges.


@jax.jit
def kls(*pairs):
    """Divergences of the pairs, in one program."""
    return [kl(*pair).value for pair in pairs]


def test_certain_outcomes():
    edge, thirds = np.array([0.0, 1.0]), np.full(3, 1 / 3)
    hidden = dist.CategoricalLogits(np.array([0.0, 0.0, -np.inf]), validate_args=False)
    p, q = dist.BernoulliProbs(edge), dist.BernoulliProbs(0.3)
    pairs = [
        ((p, q), [-np.log(0.7), -np.log(0.3)]),
        ((q, p), [np.inf, np.inf]),
        ((p, p), [0, 0]),
        ((dist.GeometricProbs(1.0), dist.GeometricProbs(0.3)), -np.log(0.3)),
        ((dist.Poisson(0.0), dist.Poisson(2.0)), 2),
        ((dist.Poisson(0.0), dist.Poisson(0.0)), 0),
        ((dist.Poisson(1.0), dist.Poisson(0.0)), np.inf),
        ((hidden, dist.CategoricalProbs(thirds)), np.log(1.5)),
    ]
    for found, (_, expected) in zip(kls(*(pair for pair, _ in pairs)), pairs, strict=True):
        assert_allclose(found, expected, rtol=1e-6)
    certain = dist.BernoulliLogits(np.array([-1000.0, 1000.0]))
    found = jax.jit(lambda *all_: [entropy(p).value for p in all_])(hidden, certain)
    assert_allclose(found[0], np.log(2), rtol=1e-6)
    assert_allclose(found[1], 0, atol=1e-30)


def test_gradients_at_the_edges():
    """NumPyro 0.22's own is NaN for categories."""

    @jax.jit
    def found(p, q, edge, logits):
        categories = jax.grad(lambda a, b: kl_divergence(dist.CategoricalProbs(a), dist.CategoricalProbs(b)), (0, 1))
        counts = jax.grad(lambda a, b: kl_divergence(dist.MultinomialProbs(a, 4), dist.MultinomialProbs(b, 4)), (0, 1))
        certain = jax.grad(lambda a: kl_divergence(dist.BernoulliProbs(a), dist.BernoulliProbs(0.3)))
        masked = jax.grad(
            lambda x: kl_divergence(dist.CategoricalLogits(x, validate_args=False), dist.CategoricalProbs(p + 0.1))
        )
        return (*categories(p, q), *counts(p, q)), (jax.vmap(certain)(edge), masked(logits))

    at = [[0.0, 0.4, 0.6], [0.0, 0.5, 0.5], [0.0, 1.0], [-np.inf, 0.3, 0.0]]
    at_zero, others = found(*(np.array(x, jnp.result_type(float)) for x in at))
    for gradient in at_zero:
        assert np.isfinite(gradient).all() and gradient[0] == 0
    for gradient in others:
        assert np.isfinite(gradient).all()


def test_logits_do_not_underflow():
    value, tiny = kls(
        (dist.BernoulliProbs(0.5), dist.BernoulliLogits(-2000.0)),
        (dist.GeometricProbs(1e-5), dist.GeometricProbs(2e-5)),
    )
    assert_allclose(value, 1000 - np.log(2), rtol=1e-6)
    assert_allclose(tiny, np.log(0.5) + 99999 * np.log1p(1e-5 / (1 - 2e-5)), rtol=tol(1e-9, 1e-4))


def test_supports_that_are_not_nested():
    wide, narrow = dist.Uniform(0.0, 2.0), dist.Uniform(0.5, 1.0)
    out, inside, beyond = kls((wide, narrow), (narrow, wide), (dist.Pareto(1.0, 2.0), dist.Pareto(1.5, 2.0)))
    assert np.isposinf(out) and np.isposinf(beyond)
    assert_allclose(inside, np.log(4.0), rtol=tol(1e-15, 1e-6))


def test_numbers_of_trials():
    p, q = dist.BinomialProbs(np.array([0.0, 0.4]), 5), dist.BinomialProbs(0.3, 3)
    three, four = (dist.MultinomialProbs(np.array([0.4, 0.6]), n) for n in (3, 4))
    found, back, less, more = jax.jit(
        lambda p, q: [kl_divergence(*pair) for pair in ((p, q), (q, p), (three, four), (four, three))]
    )(p, q)
    assert_allclose(found, [-3 * np.log(0.7), np.inf], rtol=1e-6)
    assert np.isnan(back[1])
    assert np.isposinf(less) and np.isposinf(more)
    with pytest.raises(NotImplementedError, match="fewer under p"):
        kl_divergence(q, p)
    with pytest.raises(ValueError, match="No closed form"):
        kl(q, p)


def test_numbers_of_categories():
    with pytest.raises(ValueError, match="3 categories and q 2"):
        kl(dist.CategoricalProbs(jnp.full(3, 1 / 3)), dist.CategoricalProbs(jnp.full(2, 1 / 2)))


def test_transformations_that_differ_have_no_closed_form():
    normal, maps = dist.Normal(0.0, 1.0), dist.transforms
    for one, other in [
        (maps.ExpTransform(), maps.SigmoidTransform()),
        (maps.AffineTransform(0.0, 2.0), maps.AffineTransform(0.0, 2.0)),
    ]:
        p, q = (dist.TransformedDistribution(normal, [t]) for t in (one, other))
        with pytest.raises(NotImplementedError):
            kl_divergence(p, q)


def test_registration_is_idempotent_and_unambiguous():
    before = dict(kl_divergence.funcs)
    importlib.reload(closed_forms)
    kl_divergence.reorder()  # warns about ambiguities, and warnings are errors
    assert before.keys() == kl_divergence.funcs.keys()
    assert kl_divergence.funcs[dist.Normal, dist.Normal].__module__ == "numpyro.distributions.kl"


def test_integers_and_plain_numbers():
    makes, of = (dist.Exponential, dist.Poisson, dist.HalfNormal), ((2, 4), (2, 4), (2, 1))
    found = jax.jit(lambda: [kl(make(a), make(b)).value for make, (a, b) in zip(makes, of, strict=True)])()
    assert_allclose(found, [1 - np.log(2), 2 - 2 * np.log(2), 1.5 - np.log(2)], rtol=1e-6)
