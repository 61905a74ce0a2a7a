"""The net as a model: places for weights, standardisation, any kind of net, the generic methods, predictions."""

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol

import probkit as pk
from probkit import likelihoods as lk
from probkit.bnn.nets import forward
from probkit.infer.target import Target
from probkit.model import bind, strong

N = 30
RNG = np.random.default_rng(1)
X1 = RNG.uniform(-2, 2, N)
Y1 = 50 + 20 * np.sin(2 * X1) + 3 * RNG.normal(size=N)


def target(model, y=Y1, X=X1):
    dtype = jnp.result_type(float)
    return Target(strong(model, dtype), (jnp.asarray(y, dtype), None if X is None else jnp.asarray(X, dtype)))


def shapes(model, y=Y1, X=X1):
    return {name: shape for name, (shape, _) in target(model, y, X).sites().items()}


def test_sites_take_their_width_from_the_data():
    found = shapes(pk.BNN(pk.mlp([4, 3])), X=RNG.normal(size=(N, 2)))
    assert found == {
        "likelihood.scale": (),
        "net.layers.0.weight": (4, 2),
        "net.layers.0.bias": (4,),
        "net.layers.1.weight": (3, 4),
        "net.layers.1.bias": (3,),
        "net.layers.2.weight": (1, 3),
        "net.layers.2.bias": (1,),
    }
    assert shapes(pk.BNN(pk.mlp(4), lk.Categorical(3)), np.arange(N) % 3)["net.layers.1.weight"] == (3, 4)
    assert shapes(pk.BNN(pk.mlp([])))["net.layers.0.weight"] == (1, 1)


@pytest.mark.once
def test_any_equinox_module_and_any_function():
    key = jax.random.key(0)
    conv = eqx.nn.Sequential(
        [
            eqx.nn.Lambda(lambda x: x.transpose(2, 0, 1)),
            eqx.nn.Conv2d(1, 2, 3, key=key),
            eqx.nn.Lambda(jnp.ravel),
            eqx.nn.Linear(2 * 4, 3, key=key),
        ]
    )
    images, classes = RNG.normal(size=(N, 4, 4, 1)), np.arange(N) % 3
    found = shapes(pk.BNN(conv, lk.Categorical(3)), classes, images)
    assert found["net.layers.1.weight"] == (2, 1, 3, 3)
    params = {"a": jnp.ones((1, 2)), "b": jnp.zeros(2)}
    line = pk.BNN(lambda p, x: (jnp.tanh(x @ p["a"] + p["b"])).sum(1), params=params)
    assert shapes(line)["net.params.a"] == (1, 2)
    prediction = pk.fit(line, Y1, X1, key=key, method=pk.MAP(starts=1), progress=False).predict(X1[:3])
    assert np.all(np.isfinite(prediction.mean))


class Flaxlike:
    """What a Flax module looks like from outside."""

    def init(self, key, x):
        return {"params": {"Dense_0": {"kernel": jnp.ones((4, 1)), "bias": jnp.zeros(1)}}}

    def apply(self, variables, x):
        p = variables["params"]["Dense_0"]
        return x @ p["kernel"] + p["bias"]


def test_a_flax_module_comes_with_its_params():
    module = Flaxlike()
    X = RNG.normal(size=(N, 4))
    model = pk.BNN(module, params=module.init(jax.random.key(0), X)["params"])
    assert shapes(model, X=X)["net.params.Dense_0.kernel"] == (4, 1)
    law = target(model, X=X).resolved().model.net.params["Dense_0"]["kernel"].fn
    assert law.fan == 4


def test_prior_scales(latent_scale=2.0):
    X = RNG.normal(size=(N, 3))
    found = target(pk.BNN(pk.mlp(5), prior=latent_scale), X=X)
    resolved = found.resolved()
    law = resolved.model.net.layers[0].weight.fn(resolved.model)
    assert np.allclose(law.variance, latent_scale**2 / 3)
    assert np.allclose(resolved.model.net.layers[0].bias.fn(resolved.model).variance, latent_scale**2)
    each = pk.BNN(pk.mlp(5), prior=pk.bnn.Weights(scale=dist.HalfNormal(1.0).expand([4]).to_event(1)))
    assert shapes(each, X=X)["prior.scale"] == (4,)
    assert "net.layers.1.bias" in target(each, X=X).hierarchical()


def test_last_layer_alone():
    net = eqx.nn.MLP(1, 1, 4, 1, key=jax.random.key(0))
    assert set(shapes(pk.BNN(net, prior=pk.bnn.Weights(unknown="last")))) == {
        "likelihood.scale",
        "net.layers.1.weight",
        "net.layers.1.bias",
    }


def test_density_is_in_the_units_of_y_and_free_of_those_of_x():
    u = jax.random.normal(jax.random.key(3), (14,)) * 0.5
    one = target(pk.BNN(pk.mlp(4))).resolved()
    other = target(pk.BNN(pk.mlp(4)), Y1 * 1000, X1 * 1e-3 + 0.5).resolved()
    here, there = (t.model.likelihood.scale for t in (one, other))
    scale = float(here.sample(jax.random.key(1)))

    @eqx.filter_jit
    def terms(t, scale):
        values = t.evaluate(u).values | {"likelihood.scale": jnp.asarray(scale)}
        return bind(t.model, values).loo(*t.args)

    assert np.allclose(terms(one, scale), terms(other, scale * 1000) + np.log(1000), atol=tol(1e-6, 2e-2))
    assert np.isfinite(there.log_prob(scale * 1000))


def test_missing_y_and_constant_columns():
    y = Y1.copy()
    y[[0, 4]] = np.nan
    X = np.stack([X1, np.ones(N), 1e9 + 0 * X1], axis=1)
    t = target(pk.BNN(pk.mlp(3)), y, X).resolved()
    u = t.prior_draw(jax.random.key(0))
    value, slope = jax.jit(jax.value_and_grad(t.log_density))(u)
    assert np.isfinite(value)
    assert np.all(np.isfinite(slope))


@pytest.mark.parametrize("kind", ["constant", "one", "huge"])
def test_ugly_data_have_finite_gradients(kind):
    y = {"constant": np.full(N, 3.0), "one": np.r_[2.0, np.full(N - 1, np.nan)], "huge": Y1 * 1e12}[kind]
    t = target(pk.BNN(pk.mlp(2)), y).resolved()
    assert np.all(np.isfinite(jax.jit(lambda t, k: jax.grad(t.log_density)(t.prior_draw(k)))(t, jax.random.key(0))))


@pytest.fixture(scope="module")
def mode():
    return pk.fit(pk.BNN(pk.mlp(3)), Y1, X1, key=jax.random.key(0), method=pk.MAP(starts=4), progress=False)


@pytest.mark.once
def test_map_learns_and_predicts_in_units(mode):
    assert mode.report.converged
    prediction = mode.predict(X1)
    assert np.sqrt(np.mean((prediction.mean - Y1) ** 2)) < 6
    assert np.allclose(prediction.aleatoric, prediction.std)
    assert np.allclose(prediction.epistemic, 0, atol=1e-3)
    net = jax.tree_util.tree_map(lambda a: a[0, 0], eqx.filter(mode.draws.net, eqx.is_array))
    x = (X1 - X1.mean()) / X1.std()
    by_hand = forward(net, jnp.asarray(x)[:, None])[:, 0] * Y1.std() + Y1.mean()
    assert np.allclose(by_hand, prediction.mean, rtol=tol(1e-8, 1e-3))


@pytest.mark.slow
def test_nuts_vi_loo_and_compare():
    key = jax.random.key(1)
    model = pk.BNN(pk.mlp(3))
    nuts = pk.fit(model, Y1, X1, key=key, method=pk.NUTS(draws=300, warmup=500), progress=False)
    line = pk.fit(pk.BNN(pk.mlp([])), Y1, X1, key=key, method=pk.NUTS(draws=300, warmup=300), progress=False)
    table = pk.compare({"net": nuts, "line": line})
    assert table.index[0] == "net"
    found = pk.bnn.convergence(nuts)
    assert np.median(found["r_hat"]) < 1.05
    guide = pk.fit(pk.BNN(pk.mlp([])), Y1, X1, key=key, method=pk.VI(), progress=False)
    assert np.allclose(guide.predict(X1[:4]).mean, line.predict(X1[:4]).mean, atol=2.0)


@pytest.mark.parametrize(
    ("make", "kind", "message"),
    [
        (lambda: pk.fit(pk.BNN(pk.mlp(2)), Y1, key=jax.random.key(0)), TypeError, "BNN needs X"),
        (lambda: pk.fit(pk.BNN(pk.mlp(2), lk.Bernoulli()), Y1, X1, key=jax.random.key(0)), ValueError, "classes"),
        (lambda: pk.BNN(3.0), TypeError, "net is float"),
        (lambda: pk.BNN(pk.mlp(2), "normal"), TypeError, "likelihood is 'normal'"),
        (lambda: pk.mlp([0]), ValueError, r"sizes is \[0\]"),
        (lambda: pk.mlp(3, "step"), ValueError, "activation is 'step'"),
        (lambda: pk.BNN(pk.mlp(2), prior=pk.bnn.Weights(unknown="last")), ValueError, "pk.mlp"),
        (lambda: pk.bnn.Weights(unknown="first"), ValueError, "unknown is 'first'"),
        (
            lambda: pk.fit(
                pk.BNN(eqx.nn.MLP(1, 2, 3, 1, key=jax.random.key(0))), Y1, X1, key=jax.random.key(0), method=pk.MAP()
            ),
            ValueError,
            r"net gives outputs of shape \(30, 2\)",
        ),
    ],
)
def test_refusals(make, kind, message):
    with pytest.raises(kind, match=message):
        make()
