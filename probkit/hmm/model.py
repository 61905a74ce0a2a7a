"""Regimes: hidden Markov models as pytrees with words for names."""

import abc
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float, Int
from numpyro.distributions import constraints

from probkit import priors
from probkit.hmm.distribution import HiddenMarkov, Increasing
from probkit.model import Model, Param, param


def _each_state(default: Any) -> Any:
    """A positive number for each state."""
    return param(dims=("state",), support=constraints.positive, default=default)


class Emission(eqx.Module):
    """What is observed in each state. Parameters stand in the order of the states.

    Attributes:
        discrete: whether observations are whole numbers from 0.
    """

    discrete: ClassVar[bool] = False
    states: eqx.AbstractVar[int]

    @abc.abstractmethod
    def law(self) -> dist.Distribution:
        """The law of an observation in each state, batch shape (states,)."""

    def check(self, y: Any) -> None:
        """Refuse observations that it cannot take; NaN is missing."""
        seen = np.asarray(y, float)
        seen = seen[~np.isnan(seen)]
        bad = seen[(seen < 0) | (seen != np.floor(seen))] if self.discrete else seen[:0]
        if bad.size:
            raise ValueError(f"y holds {bad[0]:g}; {type(self).__name__} takes whole numbers 0, 1, 2, ...")


class Gaussian(Emission):
    """``y ~ N(loc_s, scale_s²)``, ``loc_1 < loc_2 < ...``.

    Args:
        states: how many there are.
        loc: the means, (states,). Default: as many draws of a normal law with the mean and spread of y, in order.
        scale: the standard deviations, (states,). Default: log-normal around half the spread of y, log-sd 1/2: narrow,
            as the likelihood grows without bound where a state shrinks to values that y takes again and again.
    """

    states: int = eqx.field(static=True)
    loc: Param = param(
        dims=("state",),
        support=constraints.ordered_vector,
        default=lambda self, y, X: Increasing(dist.Normal(priors.centre(y), priors.spread(y)), self.states),
    )
    scale: Param = _each_state(
        lambda self, y, X: dist.LogNormal(jnp.log(priors.spread(y) / 2), 0.5).expand([self.states]).to_event(1)
    )

    def law(self) -> dist.Distribution:
        """Normal."""
        return dist.Normal(jnp.asarray(self.loc), self.scale)


class Poisson(Emission):
    """``y ~ Poisson(rate_s)``, ``rate_1 < rate_2 < ...``.

    Args:
        states: how many there are.
        rate: the means, (states,). Default: as many draws of a gamma law with the mean of y and shape 1.5, in order.
    """

    discrete: ClassVar[bool] = True
    states: int = eqx.field(static=True)
    rate: Param = param(
        dims=("state",),
        support=constraints.positive_ordered_vector,
        default=lambda self, y, X: Increasing(dist.Gamma(1.5, 1.5 / jnp.maximum(priors.centre(y), 0.1)), self.states),
    )

    def law(self) -> dist.Distribution:
        """Poisson."""
        return dist.Poisson(jnp.asarray(self.rate))


class Categorical(Emission):
    """``P(y = c | s)``, classes 0, 1, ...; states stand in the order of their log-odds of class 0.

    ``P(0 | s) = 1 / (1 + exp(-log_odds_s))``; the other classes share the rest by ``others_s``. The default priors make
    every row uniform over the simplex.

    Args:
        states: how many there are.
        classes: how many there are, at least 2.
        log_odds: of class 0, increasing, (states,).
        others: shares of classes 1, 2, ... in what is left, (states, classes - 1).
    """

    discrete: ClassVar[bool] = True
    states: int = eqx.field(static=True)
    classes: int = eqx.field(static=True)
    log_odds: Param = param(
        dims=("state",),
        support=constraints.ordered_vector,
        default=lambda self, y, X: Increasing(LogitBeta(self.classes - 1.0), self.states),
    )
    others: Param = param(
        dims=("state", "class"),
        support=constraints.simplex,
        default=lambda self, y, X: dist.Dirichlet(jnp.ones((self.states, self.classes - 1))).to_event(1),
    )

    def __check_init__(self) -> None:
        if isinstance(self.classes, bool) or not isinstance(self.classes, int) or self.classes < 2:
            raise ValueError(f"classes is {self.classes!r}; a whole number of at least 2 is wanted.")

    def probabilities(self) -> Float[Array, "states classes"]:
        """P(class | state)."""
        odds = jnp.asarray(self.log_odds)
        return jnp.concatenate([jax.nn.sigmoid(odds)[:, None], jax.nn.sigmoid(-odds)[:, None] * self.others], axis=1)

    def law(self) -> dist.Distribution:
        """Categorical."""
        return Classes(self.probabilities())

    def check(self, y: Any) -> None:
        """Observations are classes below ``classes``."""
        super().check(y)
        largest = np.nanmax(np.asarray(y, float), initial=0)
        if largest >= self.classes:
            raise ValueError(f"y holds {largest:g}; {self.classes} classes are 0 to {self.classes - 1}.")


class Classes(dist.CategoricalProbs):
    """Categorical whose values may be floats that hold whole numbers, with mean and variance."""

    def log_prob(self, value: Any) -> Array:
        """Log probability of each class."""
        return super().log_prob(jnp.asarray(value).astype(int))

    @property
    def mean(self) -> Array:
        """Mean of the class's number."""
        return self.probs @ jnp.arange(self.probs.shape[-1], dtype=self.probs.dtype)

    @property
    def variance(self) -> Array:
        """Its variance."""
        return self.probs @ jnp.arange(self.probs.shape[-1], dtype=self.probs.dtype) ** 2 - self.mean**2


class LogitBeta(dist.Distribution):
    """The log-odds of a share that is Beta(1, b).

    Args:
        b: second parameter.
    """

    support = constraints.real
    pytree_data_fields = ("b",)

    def __init__(self, b: Any, *, validate_args: bool | None = None):
        self.b = b
        super().__init__(jnp.shape(b), (), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws."""
        p = dist.Beta(1.0, self.b).sample(key, sample_shape)
        return jnp.log(p) - jnp.log1p(-p)

    def log_prob(self, value: Array, intermediates: None = None) -> Array:
        """``log b + log p + b log(1 - p)`` at ``p = 1 / (1 + exp(-value))``."""
        return jnp.log(self.b) + jax.nn.log_sigmoid(value) + self.b * jax.nn.log_sigmoid(-value)


class HMM(Model):
    """A hidden Markov model: regimes that come and go, and observations that depend on them.

    ``pk.HMM(pk.hmm.Gaussian(2))``, ``pk.HMM(pk.hmm.Poisson(3))``, ``pk.HMM(pk.hmm.Categorical(2, classes=4))``. The
    states are summed out. **Labels do not switch**: states are ordered by their emissions (means, rates, log-odds of
    class 0), so state 1 is the lowest in every draw. NaN in y is missing.

    ``posterior.components()`` holds the probabilities of each state at each time, ``state_1`` ..., and ``signal``, the
    mean of y given the states; ``most_likely_path`` is Viterbi's path of one concrete model.

    Args:
        emission: what is observed in each state.
        transition: probabilities, (states, states), row i of what follows state i. Default: each row Dirichlet, 1 for
            every state and as much as all of them together for staying.
        initial: probabilities of the first state, (states,). Default: equal.

    References:
        Zucchini, MacDonald and Langrock (2016), Hidden Markov Models for Time Series, 2nd ed. Jasra, Holmes and
        Stephens (2005), Markov chain Monte Carlo methods and the label switching problem.
    """

    integrates_states: ClassVar[bool] = True

    emission: Emission
    transition: Param = param(
        dims=("state", "next"), support=constraints.simplex, default=lambda self, y, X: _sticky(self.emission.states)
    )
    initial: Param = param(
        dims=("state",), support=constraints.simplex, default=lambda self, y, X: _equal(self.emission.states)
    )

    def __check_init__(self) -> None:
        if not isinstance(self.emission, Emission):
            raise TypeError(
                f"emission is {type(self.emission).__name__}; one of pk.hmm, such as Gaussian(2), is wanted."
            )
        states = self.emission.states
        if isinstance(states, bool) or not isinstance(states, int) or states < 1:
            raise ValueError(f"states is {states!r}; a whole number of at least 1 is wanted.")

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse inputs, and observations that the emission cannot take."""
        if X is not None:
            raise TypeError("HMM takes no X.")
        self.emission.check(y)

    def distribution(self, X: Any, length: int) -> HiddenMarkov:
        """The distribution of y given the parameters."""
        return HiddenMarkov(self.initial, self.transition, self.emission.law(), length)

    def most_likely_path(self, y: Float[Array, " n"]) -> Int[Array, " n"]:
        """Viterbi's path under one concrete model, states from 1."""
        return self.distribution(None, y.shape[0]).most_likely_path(y)[0] + 1

    def decompose(self, y: Float[Array, " n"], X: Any, key: Array) -> dict[str, tuple[Array, Array, Array]]:
        """The mean of y in the state at each time, and the probability of each state, given y."""
        law = self.distribution(X, y.shape[0])
        smoothed = law.infer(y).smoothed
        each, path = law.emission.mean, law.sample_path(key, y)
        mean = smoothed @ each
        sd = jnp.sqrt(jnp.sum(smoothed * (each - mean[:, None]) ** 2, axis=1))
        known = {f"state_{i + 1}": smoothed[:, i] for i in range(smoothed.shape[1])}
        return {"signal": (mean, sd, each[path])} | {name: (x, jnp.zeros_like(x), x) for name, x in known.items()}

    def impute(self, y: Float[Array, " n"], X: Any, key: Array) -> Float[Array, " n"]:
        """y with one joint draw of what is missing."""
        law = self.distribution(X, y.shape[0])
        k_path, k_y = jax.random.split(key)
        return jnp.where(jnp.isnan(y), law.observe(k_y, law.sample_path(k_path, y)), y)


def _sticky(states: int) -> dist.Distribution:
    return dist.Dirichlet(jnp.ones((states, states)) + states * jnp.eye(states)).to_event(1)


def _equal(states: int) -> Array:
    return jnp.full(states, 1 / states)
