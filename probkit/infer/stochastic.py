"""One step of stochastic variational inference: NumPyro's SVI on a minibatch, with pairs of mirrored draws."""

import functools
import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import optax
from jaxtyping import Array, Int, PRNGKeyArray
from numpyro import handlers
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.initialization import init_to_value
from numpyro.infer.util import compute_log_probs
from numpyro.primitives import Messenger

from probkit.infer.subsample import Epochs
from probkit.infer.target import Target

#: Fixed draws by which a guide's means and sds are followed.
FOLLOWED = 32
#: A gradient this many times as long as usual is cut to that.
CLIP = 10.0


class _Mirror(dist.Distribution):
    """A symmetric distribution whose draws are ``centre + sign (x - centre)``: the density is the same."""

    def __init__(self, law: Any, sign: Any) -> None:
        self.law, self.sign = law, sign
        super().__init__(law.batch_shape, law.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.law.support

    def sample(self, key: Any, sample_shape: tuple = ()) -> Array:
        return self.law.loc + self.sign * (self.law.sample(key, sample_shape) - self.law.loc)

    def log_prob(self, value: Any) -> Array:
        return self.law.log_prob(value)


def mirrored(law: Any, sign: Any) -> Any:
    """A law with the normal noise at its root multiplied by ``sign``; a law without any as it is."""
    if isinstance(law, dist.Normal | dist.MultivariateNormal | dist.LowRankMultivariateNormal):
        return _Mirror(law, sign)
    if isinstance(law, dist.Independent):
        return dist.Independent(mirrored(law.base_dist, sign), law.reinterpreted_batch_ndims)
    if isinstance(law, dist.ExpandedDistribution):
        return mirrored(law.base_dist, sign).expand(law.batch_shape)
    if type(law) is dist.TransformedDistribution:
        return dist.TransformedDistribution(mirrored(law.base_dist, sign), law.transforms)
    return law


class Mirrored(Messenger):
    """A guide with its noise multiplied by ``sign``."""

    def __init__(self, fn: Any, sign: Any) -> None:
        self.sign = sign
        super().__init__(fn)

    def process_message(self, msg: Any) -> None:
        """Mirror the law of a site."""
        if msg["type"] == "sample" and not msg["is_observed"]:
            msg["fn"] = mirrored(msg["fn"], self.sign)


class PairedELBO(Trace_ELBO):
    """NumPyro's ELBO on pairs of draws, z and -z.

    The gradient in a scale is ``z`` times that in ``u``. On a minibatch the latter does not vanish at the optimum, and
    drowns the curvature that scales are learnt from; within a pair it cancels.
    """

    def loss_with_mutable_state(
        self, rng_key: Any, param_map: Any, model: Any, guide: Any, *args: Any, **kwargs: Any
    ) -> Any:
        """Minus the mean over pairs."""
        one = Trace_ELBO()

        def lane(key: Array, sign: Array) -> Array:
            return one.loss(key, param_map, model, Mirrored(guide, sign), *args, **kwargs)

        keys = jnp.repeat(jax.random.split(rng_key, self.num_particles // 2), 2, axis=0)
        signs = jnp.tile(jnp.array([1.0, -1.0]), self.num_particles // 2)
        return {"loss": jnp.mean(jax.vmap(lane)(keys, signs)), "mutable_state": None}


class State(NamedTuple):
    """One restart: NumPyro's state, the key of its epochs and the number of updates made."""

    svi: Any
    key: PRNGKeyArray
    step: Int[Array, ""]


def clip_to_usual(times: float) -> optax.GradientTransformation:
    """Cut gradients longer than ``times`` their usual length: the root of a running mean of squares.

    A fixed limit would know of units, and where every gradient is cut the optimum moves.
    """

    def update(gradients: Any, usual: Array, params: Any = None) -> tuple[Any, Array]:
        square = optax.tree.norm(gradients, squared=True)
        most = jnp.where(usual > 0, times**2 * usual, square)
        kept = jnp.minimum(square, most)
        factor = jnp.sqrt(kept / jnp.where(square > 0, square, 1.0))
        usual = jnp.where(usual > 0, 0.99 * usual + 0.01 * kept, kept)
        return jax.tree_util.tree_map(lambda g: (g * factor).astype(g.dtype), gradients), usual

    return optax.GradientTransformation(
        lambda params: jnp.zeros((), jnp.result_type(*jax.tree_util.tree_leaves(params))), update
    )


class Engine:
    """NumPyro's SVI of one target, made anew in every trace: a guide keeps what it saw of its model."""

    def __init__(self, target: Target, options: tuple, step_size: Any = 1.0, values: dict | None = None) -> None:
        guide, particles, _ = options
        self.target, self.args, self.kwargs = target, target.args, target.kwargs
        self.elbo = Trace_ELBO() if particles == 1 else PairedELBO(num_particles=particles)
        self.optimiser = optax.chain(clip_to_usual(CLIP), optax.scale_by_adam(), optax.scale(-step_size))
        self.guide = made(guide, self.batch(jax.random.key(0), 0), values or {})
        self.constrain: Any = None

    def batch(self, key: PRNGKeyArray, step: Any) -> Callable:
        """The model on one minibatch."""
        model = self.target.model
        return Epochs(lambda *args, **kwargs: model(*args, **kwargs), key, jnp.asarray(step))

    def svi(self, key: PRNGKeyArray, step: Any) -> SVI:
        """NumPyro's SVI on one minibatch."""
        return SVI(self.batch(key, step), self.guide, self.optimiser, self.elbo)

    def start(self, key: PRNGKeyArray) -> State:
        """The state before the first update; also shows the guide its model, which every trace has to do."""
        k_svi, k_epochs = jax.random.split(key)
        drawn = handlers.trace(handlers.seed(self.guide, k_svi)).get_trace(*self.args, **self.kwargs)
        missing = [name for name in self.target.sites() if name not in drawn]
        if missing:
            raise ValueError(f"guide draws {list(drawn)}; the model's sites {missing} are missing.")
        svi = self.svi(k_epochs, 0)
        state = svi.init(k_svi, *self.args, **self.kwargs)
        self.constrain = svi.constrain_fn
        return State(state, k_epochs, jnp.array(0))

    def update(self, state: State) -> tuple[State, Array]:
        """One step; one that is not finite is not taken."""
        svi = self.svi(state.key, state.step)
        svi.constrain_fn = self.constrain
        new, loss = svi.stable_update(state.svi, *self.args, **self.kwargs)
        return State(new, state.key, state.step + 1), loss

    def params(self, state: State) -> Any:
        """The guide's parameters, unconstrained."""
        return self.svi(state.key, 0).optim.get_params(state.svi.optim_state)

    def draw(self, params: Any, key: PRNGKeyArray) -> tuple[dict[str, Array], Array]:
        """One draw of the guide: sites in constrained space, and the log density there."""
        guide = handlers.seed(self.guide, key)
        terms, sites = compute_log_probs(guide, self.args, self.kwargs, self.constrain(params))
        return {name: sites[name]["value"] for name in self.target.sites()}, sum(terms.values(), jnp.array(0.0))

    def point(self, params: Any, key: PRNGKeyArray) -> tuple[Array, Array]:
        """One draw in u, and the log density of its constrained values."""
        values, log_q = self.draw(params, key)
        return self.target.unconstrain(lambda name, law: values[name]), log_q

    def moments(self, params: Any) -> tuple[Array, Array]:
        """Means and log sds of the guide in u, on fixed draws."""
        keys = jax.random.split(jax.random.key(0), FOLLOWED)
        points = jax.vmap(lambda key: self.point(params, key)[0])(keys)
        sd = jnp.std(points, axis=0)
        return jnp.mean(points, axis=0), jnp.log(jnp.where(sd > 0, sd, 1.0))

    def weight(self, params: Any, key: PRNGKeyArray, epochs: PRNGKeyArray, step: Any) -> Array:
        """``log p - log q`` of one draw, on one minibatch where the model has them."""
        model = self.batch(epochs, step)
        loss = Trace_ELBO().loss
        return -loss(key, self.constrain(params), model, self.guide, *self.args, **self.kwargs)


def made(guide: Any, model: Callable, values: dict) -> Any:
    """A guide of a model: an autoguide starts at ``values``."""
    core = guide.func if isinstance(guide, functools.partial) else guide
    takes = isinstance(core, type) and "init_loc_fn" in inspect.signature(core).parameters
    if takes and "init_loc_fn" not in getattr(guide, "keywords", {}):
        return guide(model, init_loc_fn=init_to_value(values=values))
    return guide(model)
