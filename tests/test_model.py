"""The rules of the pytree (DESIGN, section 1), one by one, and models inside NumPyro."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import count_compilations, label, tol
from numpy.testing import assert_allclose, assert_array_equal
from numpyro.distributions import constraints, transforms
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import potential_energy
from toys import Holder, Line, posterior_of

import probkit as pk
from probkit.infer.target import Target
from probkit.model import Param, mask, strong, with_defaults
from probkit.supports import check_supports

KEY = jax.random.key(0)
Y = np.random.default_rng(0).normal(2.0, 1.0, 12)


class Pair(eqx.Module):
    a: Param = pk.param()
    b: Param = pk.param(default=1.0)


class Schools(pk.Model):
    """Eight schools: the effects have a prior made from two sites; ``sigma`` is known."""

    sigma: jax.Array
    mu: Param = pk.param(default=dist.Normal(0.0, 5.0))
    tau: Param = pk.param(support=constraints.positive, default=dist.HalfCauchy(5.0))
    theta: Param = pk.param(
        dims=("school",), default=pk.given(lambda m: dist.Normal(m.mu, m.tau).expand([8]).to_event(1))
    )

    def distribution(self, X, length):
        return dist.Normal(self.theta, self.sigma).to_event(1)


SCHOOLS = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
SIGMA = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])


def target_of(model, y=Y, X=None):
    dtype = jnp.result_type(float)
    return Target(strong(model, dtype), (jnp.asarray(y, dtype), X))


# -- rule 1: numbers are strong arrays, and nothing compiles twice -----------------------------------------------------


def leaf_types(tree):
    return [(x.shape, x.dtype, getattr(x, "weak_type", False)) for x in jax.tree_util.tree_leaves(tree)]


@pytest.mark.parametrize(
    "prior",
    [
        lambda a: a,
        lambda a: dist.Normal(0, a),
        lambda a: dist.StudentT(a, 0, 1).expand([3]).to_event(1),
        lambda a: dist.Gamma(jnp.ones(2), a).to_event(1),
        lambda a: dist.TruncatedNormal(0, a, low=-a, high=3),
        lambda a: dist.LKJCholesky(3, a),
        lambda a: dist.MultivariateNormal(jnp.zeros(2), a * jnp.eye(2)),
        lambda a: dist.Delta(a),
        lambda a: dist.ImproperUniform(constraints.greater_than(a), (), ()),
        lambda a: dist.Dirichlet(a * jnp.ones(3)),
        lambda a: dist.Pareto(a, 1),
        lambda a: dist.TransformedDistribution(dist.Normal(0, a), transforms.AffineTransform(1, a)),
        lambda a: {"inner": [dist.HalfNormal(a), a]},
    ],
)
def test_1_every_number_becomes_a_strong_array(prior):
    one, two = (strong(Holder(prior(a)), jnp.float32) for a in (1.5, 2))
    assert jax.tree_util.tree_structure(one) == jax.tree_util.tree_structure(two)
    assert leaf_types(one) == leaf_types(two)
    assert all(dtype == jnp.float32 and not weak for _, dtype, weak in leaf_types(one))


def test_1_indices_and_flags_stay_what_they_are():
    class Indexed(eqx.Module):
        group: jax.Array
        flag: bool
        shuffled: Param

    prior = dist.TransformedDistribution(
        dist.Normal(0, 1).expand([2]).to_event(1), transforms.PermuteTransform(jnp.array([1, 0]))
    )
    model = strong(Indexed(jnp.array([0, 1, 1]), True, prior), jnp.float32)
    assert model.group.dtype.kind == "i" and model.flag is True
    assert model.shuffled.transforms[0].permutation.dtype.kind == "i"


def test_1_a_list_of_numbers_is_an_array():
    assert_array_equal(Pair([1, 2]).a, np.array([1.0, 2.0]))
    assert Pair(np.array([1, 2])).a.dtype.kind == "f"
    assert isinstance(Pair([dist.Normal(0, 1)]).a, list)


@pytest.mark.parametrize(
    "method",
    [pk.MLE(), pk.MAP(), pk.Laplace(), pk.Auto(), pk.NUTS(chains=2, warmup=50, draws=50)],
    ids=lambda m: type(m).__name__,
)
@pytest.mark.once
def test_1_a_second_fit_compiles_nothing(method):
    def fit(intercept, slope_sd, obs_sd, y):
        model = Line(intercept=intercept, slope=dist.Normal(0, slope_sd), obs_scale=dist.HalfNormal(obs_sd))
        return pk.fit(model, y, key=KEY, method=method, progress=False)

    first = fit(2.0, 1.0, 2.0, Y)
    with count_compilations() as compiled:
        second = fit(1, 2, 3.5, list(Y[::-1] + 1.0))
    assert compiled.count == 0
    assert np.all(first.sites["slope"] != second.sites["slope"])


@pytest.mark.once
def test_1_the_default_fit_of_a_family_compiles_once(nile_level):
    y = 100 * np.asarray(nile_level.series.y)[::-1]
    with count_compilations() as compiled:
        pk.fit(pk.LocalLevel(), y, key=jax.random.key(5))
    assert compiled.count == 0


# -- rule 2: sharing by ``given`` --------------------------------------------------------------------------------------


def test_2_a_tie_is_one_site_in_two_places():
    model = Pair(Pair(dist.Normal(0, 1)), Pair(pk.given(lambda m: 2 * m.a.a)))
    seen = []

    def draw(name, prior):
        seen.append(name)
        return jnp.array(3.0)

    bound = pk.resolve(model, draw)
    assert seen == ["a.a"]
    assert (bound.a.a, bound.b.a) == (3.0, 6.0)


def test_2_plain_priors_first_then_given_in_field_order():
    class Chain(eqx.Module):
        first: Param
        second: Param
        third: Param
        last: Param

    model = Chain(
        first=pk.given(lambda m: dist.Normal(m.last, 1.0)),
        second=pk.given(lambda m: dist.Normal(m.first, m.third)),
        third=dist.HalfNormal(1.0),
        last=dist.Normal(0.0, 1.0),
    )
    seen = {}

    def draw(name, prior):
        seen[name] = prior
        return jnp.array(float(len(seen)))

    bound = pk.resolve(model, draw)
    assert list(seen) == ["third", "last", "first", "second"]
    assert (bound.third, bound.last, bound.first, bound.second) == (1.0, 2.0, 3.0, 4.0)
    assert (seen["first"].loc, seen["second"].loc, seen["second"].scale) == (2.0, 3.0, 1.0)


def test_2_a_hierarchy_keeps_the_draws_of_its_hyperparameters():
    target = target_of(Schools(SIGMA), SCHOOLS)
    assert list(target.sites()) == ["mu", "tau", "theta"] and target.hierarchical() == ["theta"]
    draws = {"mu": np.zeros((1, 8)), "tau": np.ones((1, 8)), "theta": np.arange(64.0).reshape(1, 8, 8)}
    found = posterior_of(Schools(SIGMA), SCHOOLS, draws).draws
    assert found.mu.shape == found.tau.shape == (1, 8) and found.sigma.shape == (8,)
    assert_array_equal(found.theta, draws["theta"])


def test_2_a_given_prior_sees_new_numbers_without_compiling():
    def widen(m):
        return dist.HalfNormal(m.a)

    run = eqx.filter_jit(lambda m: pk.resolve(m, lambda n, p: p.mean))
    run(strong(Pair(1.0, pk.given(widen)), jnp.float32))
    model = strong(Pair(2.0, pk.given(widen)), jnp.float32)
    with count_compilations() as compiled:
        found = run(model)
    assert compiled.count == 0
    assert_allclose(found.b, 2 * np.sqrt(2 / np.pi), rtol=1e-6)


def test_2_given_takes_a_function():
    with pytest.raises(TypeError, match="given: fn is float"):
        pk.given(1.0)


# -- names -------------------------------------------------------------------------------------------------------------


def test_names_are_dotted_paths():
    model = Pair({"x": dist.Normal(0, 1), "deep": (Pair(dist.Normal(0, 1)),)}, [1.0, dist.Normal(0, 1)])
    seen = []
    pk.resolve(model, lambda name, prior: seen.append(name) or 0.0)
    assert seen == ["a.deep.0.a", "a.x", "b.1"]
    bound = pk.bind(model, {name: jnp.array(float(i)) for i, name in enumerate(seen)})
    assert (bound.a["deep"][0].a, bound.a["x"], bound.b[1]) == (0.0, 1.0, 2.0)


# -- rule 3: fields declare supports -----------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [-1.0, np.nan, np.array([1.0, -2.0]), dist.Delta(-1.0)], ids=label)
def test_3_a_fixed_number_outside_its_support(number):
    with pytest.raises(ValueError, match=r"^level_scale is .*-?[12n].*; values in Nonnegative.* are wanted"):
        pk.fit(pk.LocalLevel(level_scale=number), Y, key=KEY)


def test_3_the_path_of_a_nested_field_is_named():
    with pytest.raises(ValueError, match=r"^kernel\.lengthscale is -2"):
        pk.fit(pk.GP(kernel=pk.Matern32(lengthscale=-2.0)), Y, key=KEY)
    with pytest.raises(ValueError, match=r"^part\.0\.obs_scale"):
        check_supports(Pair(1.0, {"part": [Line(obs_scale=-1.0)]}).b)


@pytest.mark.parametrize(
    "prior",
    [
        dist.Normal(0, 1),
        dist.Uniform(-0.001, 10),
        dist.TruncatedNormal(0, 1, low=-1e-3),
        dist.TruncatedNormal(0, 1, high=1.0),
        dist.ImproperUniform(constraints.real, (), ()),
        dist.Normal(0, 1).expand([2]).to_event(1),
    ],
    ids=lambda p: type(p).__name__,
)
def test_3_a_prior_with_the_wrong_support(prior):
    with pytest.raises(ValueError, match=r"^obs_scale takes values in Nonnegative.*; its prior"):
        pk.fit(pk.LocalLevel(obs_scale=prior), Y, key=KEY)


@pytest.mark.parametrize(
    "prior",
    [
        dist.HalfNormal(1.0),
        dist.LogNormal(0, 3),
        dist.Uniform(0, 1e-6),
        dist.InverseGamma(2, 1),
        dist.TruncatedNormal(0, 1, low=0.0),
        dist.Delta(0.5),
        dist.ImproperUniform(constraints.positive, (), ()),
        dist.TransformedDistribution(dist.Normal(0, 1), transforms.ExpTransform()),
        pk.given(lambda m: m.level_scale),
    ],
    ids=lambda p: type(p).__name__,
)
def test_3_a_prior_with_the_right_support(prior):
    check_supports(pk.LocalLevel(level_scale=1.0, obs_scale=prior))


@pytest.mark.parametrize("held", ["0.5", None, pk.Matern32(), dist.HalfNormal, len], ids=lambda h: type(h).__name__)
def test_3_what_is_neither_number_nor_prior(held):
    with pytest.raises(
        TypeError, match=r"(?s)^obs_scale is .*; a number, an array or a NumPyro distribution is wanted"
    ):
        pk.fit(pk.LocalLevel(obs_scale=held), Y, key=KEY)


def test_3_a_discrete_prior_is_refused_by_name():
    with pytest.raises(TypeError, match="obs_scale is discrete"):
        pk.fit(pk.LocalLevel(obs_scale=dist.Poisson(3.0)), Y, key=KEY)


def test_3_a_field_with_too_many_numbers():
    with pytest.raises(ValueError, match=r"LocalLevel gives y a distribution of shape \(3, 12\); \(12,\) is wanted"):
        pk.fit(pk.LocalLevel(level_scale=np.ones(3)), Y, key=KEY)


# -- rule 4: the mask --------------------------------------------------------------------------------------------------


def test_4_a_fixed_vector_as_long_as_the_draws_is_not_mapped():
    class Weighted(pk.Model):
        weights: Param
        scale: Param
        tied: Param

        def distribution(self, X, length):
            return dist.Normal(jnp.full(length, jnp.sum(self.weights * self.tied)), self.scale).to_event(1)

    weights = np.arange(4.0)
    model = Weighted(weights, dist.HalfNormal(1.0).expand([4]).to_event(1), pk.given(lambda m: 2 * m.scale[0]))
    draws = np.arange(1.0, 17.0).reshape(1, 4, 4)
    found = posterior_of(model, Y[:4], {"scale": draws}).draws
    assert_array_equal(found.weights, weights)
    assert_array_equal(found.scale, draws)
    assert_array_equal(found.tied, 2 * draws[..., 0])


def test_4_mask_marks_what_is_drawn():
    found = mask(Pair(Pair(dist.Normal(0, 1), dist.Delta(2.0)), pk.given(lambda m: m.a.a)))
    assert (found.a.a, found.a.b, found.b) == (True, False, True)
    assert mask(Pair(np.zeros(3), 1.0)).a is False


def test_4_a_model_of_numbers_alone():
    posterior = pk.fit(pk.LocalLevel(1.0, 2.0), Y, key=KEY)
    assert posterior.report.rung == "fixed" and posterior.sites == {}
    assert posterior.draws.level_scale == 1.0 and posterior.draws.obs_scale == 2.0


# -- rule 5: default priors --------------------------------------------------------------------------------------------


def test_5_default_priors_come_from_the_data():
    found = with_defaults(pk.LocalLevel(obs_scale=3.0), jnp.array([1.0, np.nan, 3.0, 5.0]))
    assert_allclose(found.level_scale.scale, np.std([1, 3, 5]), rtol=1e-6)
    assert found.obs_scale == 3.0


def test_5_default_priors_inside_lanes():
    y = jnp.stack([jnp.asarray(Y), 10 * jnp.asarray(Y), jnp.full(12, 5.0)])

    def scale(y):
        return with_defaults(pk.LocalLevel(), y).level_scale.scale

    assert_allclose(jax.vmap(scale)(y), [np.std(Y), 10 * np.std(Y), 5.0], rtol=1e-5)
    assert_allclose(jax.vmap(scale)(y), [scale(row) for row in y], rtol=1e-6)


def test_5_an_unresolved_default_says_so():
    match = "level_scale was left at its default, a prior scaled to the data, and no data were given. Pass y"
    with pytest.raises(ValueError, match=match):
        pk.bind(pk.LocalLevel(), {})
    with pytest.raises(ValueError, match=match):
        pk.prior_predictive(pk.LocalLevel(), length=5, key=KEY)
    with pytest.raises(ValueError, match=match), numpyro.handlers.seed(rng_seed=0):
        pk.LocalLevel()(length=5)


def test_5_defaults_that_are_numbers_or_priors_need_no_data():
    assert Pair(1.0).b == 1.0
    assert isinstance(Schools(SIGMA).mu, dist.Normal)
    assert pk.prior_predictive(Schools(SIGMA), length=8, draws=3, key=KEY).draws.shape == (1, 3, 8)


# -- rule 6: plain functions -------------------------------------------------------------------------------------------


def linear(x, y, size, prior_sd=1.0, *, flip=False):
    slope = numpyro.sample("slope", dist.Normal(0.0, prior_sd))
    numpyro.deterministic("twice", 2 * slope)
    assert isinstance(size, int) and isinstance(flip, bool)
    with numpyro.plate("rows", size):
        numpyro.sample("y", dist.Normal(-slope * x if flip else slope * x, 1.0), obs=y)


def test_6_plain_functions():
    import pandas as pd

    x = np.linspace(-1, 1, 12)
    y = 0.7 * x + 0.1 * Y
    options = {"key": KEY, "method": pk.MAP()}
    posterior = pk.fit(linear, args=(x, y, 12), kwargs={"prior_sd": 2.0, "flip": True}, **options)
    assert set(posterior.draws) == {"slope", "twice"} and posterior.draws["slope"].shape == (1, 1)
    assert_allclose(posterior.draws["twice"], 2 * posterior.draws["slope"], rtol=1e-6)
    precision = 1 / 4 + x @ x
    assert_allclose(posterior.sites["slope"].mean(), -(x @ y) / precision, rtol=tol(1e-6, 1e-3))
    with count_compilations() as compiled:
        # a pandas column is an array, a NumPy integer an int
        pk.fit(
            linear, args=(pd.Series(x[::-1]), y + 1.0, np.int64(12)), kwargs={"prior_sd": 3.0, "flip": True}, **options
        )
    assert compiled.count == 0
    with pytest.raises(TypeError, match="forecast is for probkit models"):
        posterior.forecast(3)
    with pytest.raises(TypeError, match="predict is for probkit models"):
        posterior.predict()


def test_6_what_belongs_to_functions_and_what_to_models():
    with pytest.raises(TypeError, match="args and kwargs are for plain NumPyro functions"):
        pk.fit(pk.LocalLevel(), Y, key=KEY, args=(1,))
    with pytest.raises(TypeError, match="y and X are for probkit models"):
        pk.fit(linear, Y, key=KEY)
    with pytest.raises(TypeError, match=r"model is the class LocalLevel; an instance is wanted: LocalLevel\(\)"):
        pk.fit(pk.LocalLevel, Y, key=KEY)
    with pytest.raises(TypeError, match="model is int"):
        pk.fit(3, Y, key=KEY)


# -- rule 7: names are unique ------------------------------------------------------------------------------------------


def test_7_colliding_names_are_an_error():
    model = Pair({"x.y": dist.Normal(0, 1), "x": {"y": dist.Normal(0, 1)}})
    with pytest.raises(ValueError, match=r"a\.x\.y: two places of the model have this site name"):
        pk.bind(model, {})


def test_7_two_models_in_one_program_stand_under_scopes():
    model = Line(intercept=dist.Normal(0, 1), obs_scale=dist.HalfNormal(1.0))

    def program(one, two):
        with numpyro.handlers.scope(prefix="first"):
            model(one)
        with numpyro.handlers.scope(prefix="second"):
            model(two)

    trace = numpyro.handlers.trace(numpyro.handlers.seed(program, KEY)).get_trace(jnp.asarray(Y), jnp.asarray(2 * Y))
    latent = {n for n, site in trace.items() if site["type"] == "sample" and not site["is_observed"]}
    assert latent == {"first/intercept", "first/obs_scale", "second/intercept", "second/obs_scale"}
    assert_allclose(trace["second/y"]["value"], 2 * Y, rtol=1e-6)


# -- rule 8: one obs_scale, parts by name ------------------------------------------------------------------------------


def test_8_parts_stand_by_name_and_the_noise_stands_once():
    class Drift(eqx.Module):
        slope: Param = pk.param(default=dist.Normal(0, 1))

        def __call__(self, t):
            return self.slope * t

    class Sum(pk.Model):
        parts: dict
        obs_scale: Param = pk.param(support=constraints.positive, default=dist.HalfNormal(1.0))

        def distribution(self, X, length):
            t = jnp.arange(length)
            return dist.Normal(sum(part(t) for part in self.parts.values()), self.obs_scale).to_event(1)

    model = Sum({"trend": Drift(), "seasonal_12": Drift(slope=0.5)})
    assert list(target_of(model).sites()) == ["parts.trend.slope", "obs_scale"]


# -- every kind of prior -----------------------------------------------------------------------------------------------

PRIORS = {
    "vector": dist.Normal(0, 1).expand([3]).to_event(1),
    "matrix": dist.Normal(jnp.zeros((2, 3)), 1.0).to_event(2),
    "batch": dist.Normal(jnp.zeros(3), 2.0),
    "cholesky": dist.LKJCholesky(3, 2.0),
    "correlated": dist.MultivariateNormal(jnp.zeros(2), jnp.array([[1.0, 0.5], [0.5, 2.0]])),
    "improper": dist.ImproperUniform(constraints.positive, (), (2,)),
    "simplex": dist.Dirichlet(jnp.array([1.0, 2.0, 3.0])),
    "ordered": dist.TransformedDistribution(dist.Normal(0, 1).expand([3]).to_event(1), transforms.OrderedTransform()),
    "truncated": dist.TruncatedNormal(0.0, 2.0, low=-1.0, high=3.0),
    "independent": dist.Independent(dist.Gamma(jnp.ones(2), 2.0), 1),
    "transformed": dist.TransformedDistribution(dist.Normal(0.0, 1.0), transforms.ExpTransform()),
    "expanded": dist.HalfNormal(1.0).expand([2]),
}


def split(sites, u):
    """The flat vector as NumPyro's dictionary of unconstrained values."""
    out, offset = {}, 0
    for name, (_, shape) in sites.items():
        size = int(np.prod(shape))
        out[name] = u[offset : offset + size].reshape(shape)
        offset += size
    return out


def hierarchy():
    return Schools(SIGMA), SCHOOLS, None


def tied():
    kernel = pk.Matern32(lengthscale=dist.LogNormal(1, 1), scale=pk.given(lambda m: 2 * m.obs_scale))
    return pk.GP(kernel=kernel, obs_scale=dist.HalfNormal(1.0)), Y, None


def nested():
    theta = {
        "scale": dist.HalfNormal(1.0),
        "values": [pk.given(lambda m: dist.Normal(0, m.theta["scale"]).expand([2]).to_event(1)), dist.Beta(2, 2)],
    }

    class Nested(Holder):
        def distribution(self, X, length):
            total = self.theta["scale"] + jnp.sum(self.theta["values"][0]) + self.theta["values"][1]
            return dist.Normal(jnp.full(length, total), 1.0).to_event(1)

    return Nested(theta), Y, None


CASES = {name: (lambda prior=prior: (Holder(prior), Y, None)) for name, prior in PRIORS.items()} | {
    "hierarchy": hierarchy,
    "tied": tied,
    "nested": nested,
    "defaults": lambda: (pk.LocalLevel(), np.where(np.arange(12) == 3, np.nan, Y), None),
    "missing": lambda: (Line(slope=dist.Normal(0, 1)), np.where(np.arange(12) == 3, np.nan, Y), None),
}


@pytest.mark.parametrize("case", CASES)
def test_the_density_is_that_of_the_numpyro_model(case):
    model, y, X = CASES[case]()
    target = target_of(model, y, X)
    resolved, sites = target.resolved(), target.sites()
    size = sum(int(np.prod(shape)) for _, shape in sites.values())
    u = jnp.asarray(0.3 * np.arange(1, size + 1) - 0.5)
    e = jax.jit(lambda u: resolved.evaluate(u))(u)
    potential = jax.jit(lambda u: potential_energy(model, target.args[:1], {}, split(sites, u)))(u)
    assert_allclose(
        e.log_prior + e.log_jacobian + e.log_likelihood, -potential, rtol=tol(1e-10, 1e-5), atol=tol(1e-8, 1e-4)
    )
    assert {n: v.shape for n, v in e.values.items()} == {n: shape for n, (shape, _) in sites.items()}
    back = jax.jit(lambda values: resolved.unconstrain(lambda name, law: values[name]))(e.values)
    assert_allclose(back, u, atol=tol(1e-10, 1e-4))


@pytest.mark.once
def test_priors_of_every_kind_in_one_fit():
    kinds = ("vector", "simplex", "ordered", "truncated")

    class Sum(Holder):
        def distribution(self, X, length):
            total = sum(jnp.sum(leaf) for leaf in jax.tree_util.tree_leaves(self.theta))
            return dist.Normal(jnp.full(length, total), 1.0).to_event(1)

    made = pk.given(lambda m: dist.Normal(m.theta["vector"], m.theta["truncated"] + 2).to_event(1))
    fixed = dist.Delta(2.0).expand([3])
    model = Sum({kind: PRIORS[kind] for kind in kinds} | {"fixed": fixed, "hierarchy": made})
    posterior = pk.fit(model, Y, key=KEY, method=pk.MAP())
    draws = posterior.draws.theta
    assert posterior.report.converged
    for kind in kinds:
        assert draws[kind].shape == (1, 1, *PRIORS[kind].shape())
    assert np.all(np.diff(draws["ordered"]) > 0)
    assert_allclose(draws["simplex"].sum(-1), 1.0, rtol=1e-5)
    assert np.all((draws["truncated"] > -1) & (draws["truncated"] < 3))
    assert draws["hierarchy"].shape == (1, 1, 3)
    # Delta is a number: no site, no draws.
    assert_array_equal(draws["fixed"], np.full(3, 2.0))
    assert "theta.fixed" not in posterior.sites


@pytest.mark.parametrize("delta", [dist.Delta(2.0), dist.Delta(2.0).expand([3]), dist.Delta(jnp.ones(3)).to_event(1)])
def test_delta_acts_as_a_number(delta):
    target = target_of(Holder(delta))
    assert target.sites() == {}
    value = pk.bind(Holder(delta), {}).theta
    assert_allclose(value, np.broadcast_to(value, delta.shape()))
    assert_allclose(target.execute(lambda *a: None)[0], dist.Normal(jnp.sum(value), 1.0).log_prob(Y).sum(), rtol=1e-5)


# -- models inside NumPyro ---------------------------------------------------------------------------------------------


@pytest.mark.once
def test_numpyro_samples_a_model():
    rng = np.random.default_rng(3)
    y = jnp.asarray(rng.normal(0, 0.5, 40).cumsum() + rng.normal(0, 1, 40))
    sampler = MCMC(NUTS(pk.LocalLevel()), num_warmup=100, num_samples=100, progress_bar=False)
    sampler.run(KEY, y=y)
    samples = sampler.get_samples()
    assert set(samples) == {"level_scale", "obs_scale"}
    assert 0.5 < samples["obs_scale"].mean() < 1.6
    # The same program draws y: from the posterior's parameters, and from the prior.
    model = pk.LocalLevel(level_scale=dist.HalfNormal(1.0), obs_scale=dist.HalfNormal(1.0))
    ahead = jax.jit(lambda samples: Predictive(model, samples)(KEY, length=7))(samples)
    assert ahead["y"].shape == (100, 7)
    prior = jax.jit(lambda key: Predictive(model, num_samples=5)(key, length=7))(KEY)
    assert prior["y"].shape == (5, 7) and prior["obs_scale"].shape == (5,)


def test_numpyro_sees_missing_values_as_masked():
    y = np.where(np.arange(12) % 5 == 2, np.nan, Y)
    model = Line(intercept=dist.Normal(0, 1), obs_scale=dist.HalfNormal(1.0))
    values = {"intercept": jnp.array(0.4), "obs_scale": jnp.array(0.9)}
    density, _ = numpyro.infer.util.log_density(model, (jnp.asarray(y),), {}, values)
    seen = y[~np.isnan(y)]
    wanted = dist.Normal(0.4, 0.9).log_prob(seen).sum() + dist.Normal(0, 1).log_prob(0.4)
    assert_allclose(density, wanted + dist.HalfNormal(1.0).log_prob(0.9), rtol=1e-5)
    gradient = jax.grad(lambda v: numpyro.infer.util.log_density(model, (jnp.asarray(y),), {}, v)[0])(values)
    assert np.isfinite(gradient["intercept"])


def test_a_call_takes_lists_integers_and_inputs():
    model = Line(intercept=0.0, slope=dist.Normal(0, 1), obs_scale=1.0)
    with numpyro.handlers.seed(rng_seed=0):
        assert model([1, 2, 3]).dtype == jnp.result_type(float)
        assert model(X=np.linspace(0, 1, 4)).shape == (4,)
        assert model(length=5).shape == (5,)
    with pytest.raises(ValueError, match="Line: y and X are None; pass length to draw y"):
        model()


def test_a_scalar_law_is_repeated():
    class Constant(pk.Model):
        mean: Param

        def distribution(self, X, length):
            return dist.Normal(self.mean, 1.0)

    y = jnp.asarray(Y)
    assert_allclose(Constant(2.0).log_likelihood(y), dist.Normal(2.0, 1.0).log_prob(y).sum(), rtol=1e-6)
    posterior = posterior_of(Constant(dist.Normal(0, 1)), Y, {"mean": np.linspace(1, 3, 5)[None]})
    found = posterior.predict()
    assert found.draws.shape == (1, 5, 12)
    assert_allclose(found.mean, np.full(12, 2.0), rtol=1e-6)
