"""Hidden Markov chains as NumPyro distributions over whole series, and vectors in increasing order."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.distributions import constraints

from probkit.hmm import chain


class HiddenMarkov(dist.Distribution):
    r"""A series whose law depends on a hidden state, $s_{t+1} \sim A_{s_t \cdot}$, $y_t \sim p(y | s_t)$.

    NaN in y is missing.

    Args:
        initial: probabilities of the first state, (states,).
        transition: row i holds the probabilities of what follows state i, (states, states).
        emission: the law of an observation in each state, a distribution of batch shape (states,).
        length: number of times.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("initial", "transition", "emission")
    pytree_aux_fields = ("length",)

    def __init__(
        self, initial: Array, transition: Array, emission: dist.Distribution, length: int,
        *, validate_args: bool | None = None,
    ):  # fmt: skip
        if length < 1:
            raise ValueError(f"length is {length}; a series has at least one time.")
        states = jnp.shape(initial)[0]
        if emission.batch_shape != (states,):
            raise ValueError(f"emission has batch shape {emission.batch_shape}; ({states},), one a state, is wanted.")
        self.initial, self.transition = jnp.asarray(initial), jnp.asarray(transition)
        self.emission, self.length = emission, length
        super().__init__((), (length,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """That of the emissions, at every time."""
        return constraints.independent(self.emission.support, 1)

    def terms(self, y: Float[Array, " time"]) -> Float[Array, "time states"]:
        """Log density of each observation in each state; 0 where it is missing."""
        seen = ~jnp.isnan(y)
        filled = jnp.where(seen, y, jnp.nanmax(jnp.where(jnp.any(seen), y, 0.0)))
        return jnp.where(seen[:, None], self.emission.log_prob(filled[:, None]), 0.0)

    def infer(self, y: Float[Array, " time"]) -> chain.Chain:
        """What y tells of the states."""
        return chain.infer(self.initial, self.transition, self.terms(y))

    def log_prob(self, value: Float[Array, "*batch time"], intermediates: None = None) -> Float[Array, "*batch"]:
        """Joint log density of the observed entries."""
        value = jnp.asarray(value, self.transition.dtype)
        one = lambda y: chain.log_likelihood(self.initial, self.transition, self.terms(y))
        return jnp.vectorize(one, signature="(n)->()")(value)

    def mixture(self, probabilities: Float[Array, "time states"]) -> dist.Distribution:
        """The law of each observation under given probabilities of the states, batch shape (time,)."""
        emission = self.emission.expand(probabilities.shape)
        return dist.MixtureSameFamily(dist.Categorical(probabilities), emission, validate_args=False)

    def leave_one_out(self, y: Float[Array, " time"]) -> dist.Distribution:
        """The law of each y_t given all others: a mixture, batch shape (time,)."""
        return self.mixture(self.infer(y).left_out)

    def predict(self, y: Float[Array, " time"], X_new: None = None) -> dist.Distribution:
        """Marginals of a fresh observation at each time of y, given y.

        Raises:
            ValueError: `X_new` is given.
        """
        if X_new is not None:
            raise ValueError("X_new was given: a hidden Markov chain has no inputs.")
        return self.mixture(self.infer(y).smoothed).to_event(1)

    def forecast(self, y: Float[Array, " time"], horizon: int, X_new: None = None) -> "HiddenMarkov":
        """The joint law of the next `horizon` observations given y: the same chain, from what is known of the next.

        Raises:
            ValueError: `X_new` is given.
        """
        if X_new is not None:
            raise ValueError("X_new was given: a hidden Markov chain has no inputs.")
        return HiddenMarkov(self.infer(y).next, self.transition, self.emission, horizon)

    def most_likely_path(self, y: Float[Array, " time"]) -> tuple[Int[Array, " time"], Float[Array, ""]]:
        """The most probable path of states given y, and the log of its joint density with y (`chain`)."""
        return chain.most_likely_path(self.initial, self.transition, self.terms(y))

    def sample_path(self, key: Array, y: Float[Array, " time"]) -> Int[Array, " time"]:
        """A joint draw of the states given y."""
        return chain.sample_path(key, self.transition, self.infer(y))

    @property
    def probabilities(self) -> Float[Array, "time states"]:
        """Probabilities of each state before any observation."""
        forth = lambda p, _: (p @ self.transition, p)
        return jax.lax.scan(forth, self.initial, None, length=self.length)[1]

    @property
    def mean(self) -> Float[Array, " time"]:
        """Mean of y before any is seen."""
        return self.probabilities @ self.emission.mean

    @property
    def variance(self) -> Float[Array, " time"]:
        """Variance of y before any is seen."""
        apart = self.emission.mean - self.mean[:, None]
        return self.probabilities @ self.emission.variance + jnp.sum(self.probabilities * apart**2, axis=1)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample time"]:
        """Draws of y."""
        count = math.prod(sample_shape)
        drawn = jax.vmap(self._one)(jax.random.split(key, count))
        return drawn.reshape(*sample_shape, self.length)

    def _one(self, key: Array) -> Array:
        k_path, k_y = jax.random.split(key)
        first, *rest = jax.random.split(k_path, 2)
        log_A = jnp.log(self.transition)
        state = jax.random.categorical(first, jnp.log(self.initial))
        forth = lambda state, key: (jax.random.categorical(key, log_A[state]), state)
        _, path = jax.lax.scan(forth, state, jax.random.split(rest[0], self.length))
        return self.observe(k_y, path)

    def observe(self, key: Array, path: Int[Array, " time"]) -> Float[Array, " time"]:
        """A draw of every observation given the states."""
        drawn = self.emission.sample(key, path.shape).astype(self.transition.dtype)
        return jnp.take_along_axis(drawn, path[:, None], axis=1)[:, 0]


class Increasing(dist.Distribution):
    """Independent draws of one law, put in increasing order: its density times k factorial.

    Args:
        base: a scalar continuous law.
        size: k, how many.
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("base",)
    pytree_aux_fields = ("size",)

    def __init__(self, base: dist.Distribution, size: int, *, validate_args: bool | None = None):
        self.base, self.size = base, size
        super().__init__((), (size,), validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """Increasing vectors; of positive numbers where the law has those alone."""
        return constraints.positive_ordered_vector if _is_positive(self.base) else constraints.ordered_vector

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample k"]:
        """Sorted draws."""
        return jnp.sort(self.base.sample(key, (*sample_shape, self.size)), axis=-1)

    def log_prob(self, value: Float[Array, "*batch k"], intermediates: None = None) -> Float[Array, "*batch"]:
        """Log density on increasing vectors."""
        return jnp.sum(self.base.log_prob(value), axis=-1) + math.lgamma(self.size + 1)


def _is_positive(law: dist.Distribution) -> bool:
    return law.support in (constraints.positive, constraints.nonnegative)
