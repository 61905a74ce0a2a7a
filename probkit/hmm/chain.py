r"""Hidden Markov chains: probabilities of paths of states, given terms of an observation density.

States $s_1, s_2, \dots$ with $P(s_1 = i) = \pi_i$, $P(s_{t+1} = j | s_t = i) = A_{ij}$, and
$b_t(i) = p(y_t | s_t = i)$, 1 where y is missing. Forwards and backwards

$$c_t \alpha_t = b_t \odot (A' \alpha_{t-1}), \qquad \beta_t \propto A (b_{t+1} \odot \beta_{t+1}),$$

each scaled to sum to 1; $\log p(y) = \sum \log c_t$. Terms are taken relative to the largest of their time, so
densities may be as small as they like.

References:
    Rabiner (1989), A tutorial on hidden Markov models. Proceedings of the IEEE 77, 257-286.
    Zucchini, MacDonald and Langrock (2016), Hidden Markov Models for Time Series, 2nd ed., ch. 4 and 5.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float, Int


class Chain(NamedTuple):
    """What is known of the states.

    Attributes:
        log_likelihood: log density of all observations.
        predicted: probabilities of each state given the times before, (time, states).
        filtered: given those and its own.
        smoothed: given all.
        left_out: given all but its own.
        next: of the state after the last time, given all, (states,).
    """

    log_likelihood: Float[Array, ""]
    predicted: Float[Array, "time states"]
    filtered: Float[Array, "time states"]
    smoothed: Float[Array, "time states"]
    left_out: Float[Array, "time states"]
    next: Float[Array, " states"]


def _forward(initial: Array, transition: Array, terms: Array) -> tuple[Array, Array, Array, Array]:
    """Predicted and filtered probabilities, log c, and the probabilities of the next state."""

    def step(predicted, term):
        # Densities over the largest of the states that are possible at all.
        largest = jnp.max(jnp.where(predicted > 0, term, -jnp.inf))
        sound = jnp.isfinite(largest)
        used = (predicted > 0) & sound
        b = jnp.where(used, jnp.exp(jnp.where(used, term - jnp.where(sound, largest, 0.0), 0.0)), 0.0)
        joint = predicted * b
        c = jnp.sum(joint)
        # All mass on states that the observation rules out: the path ends, with density 0, and nothing is NaN.
        possible = c > 0
        filtered = jnp.where(possible, joint / jnp.where(possible, c, 1.0), predicted)
        log_c = jnp.where(possible, jnp.log(jnp.where(possible, c, 1.0)) + jnp.where(sound, largest, 0.0), -jnp.inf)
        return filtered @ transition, (predicted, filtered, log_c)

    after, out = lax.scan(step, initial, terms)
    return (*out, after)


def log_likelihood(
    initial: Float[Array, " states"], transition: Float[Array, "states states"], terms: Float[Array, "time states"]
) -> Float[Array, ""]:
    """Log density of all observations.

    Args:
        initial: probabilities of the first state.
        transition: row i holds the probabilities of what follows state i.
        terms: log density of each observation in each state; 0 where it is missing.

    Returns:
        The log-likelihood; -inf where no path is possible.
    """
    return jnp.sum(_forward(initial, transition, terms)[2])


def infer(
    initial: Float[Array, " states"], transition: Float[Array, "states states"], terms: Float[Array, "time states"]
) -> Chain:
    """Forwards and backwards: what is known of each state. Arguments as in :func:`log_likelihood`."""
    predicted, filtered, log_c, after = _forward(initial, transition, terms)
    log_A = jnp.log(transition)

    def back(log_beta, term):
        before = jax.nn.logsumexp(log_A + term + log_beta, axis=1)
        largest = jnp.max(before)
        return before - jnp.where(jnp.isfinite(largest), largest, 0.0), log_beta

    _, log_beta = lax.scan(back, jnp.zeros_like(initial), terms, reverse=True)

    def weighed(p):
        log_p = jnp.log(p) + log_beta
        largest = jnp.max(log_p, axis=1, keepdims=True)
        q = jnp.exp(log_p - jnp.where(jnp.isfinite(largest), largest, 0.0))
        return q / jnp.maximum(jnp.sum(q, axis=1, keepdims=True), jnp.finfo(q.dtype).tiny)

    return Chain(jnp.sum(log_c), predicted, filtered, weighed(filtered), weighed(predicted), after)


def most_likely_path(
    initial: Float[Array, " states"], transition: Float[Array, "states states"], terms: Float[Array, "time states"]
) -> tuple[Int[Array, " time"], Float[Array, ""]]:
    """The path of states of largest probability given the observations, and the log of its joint density with them.

    References:
        Viterbi (1967), Error bounds for convolutional codes. IEEE Transactions on Information Theory 13, 260-269.
    """
    log_A = jnp.log(transition)

    def forth(best, term):
        through = best[:, None] + log_A
        return jnp.max(through, axis=0) + term, jnp.argmax(through, axis=0)

    last, came_from = lax.scan(forth, jnp.log(initial) + terms[0], terms[1:])
    end = jnp.argmax(last)
    _, path = lax.scan(lambda state, before: (before[state], before[state]), end, came_from, reverse=True)
    return jnp.append(path, end), jnp.max(last)


def sample_path(key: Array, transition: Float[Array, "states states"], found: Chain) -> Int[Array, " time"]:
    """A joint draw of all states given the observations: forwards filtered, backwards drawn (Chib 1996)."""
    n = found.filtered.shape[0]
    keys = jax.random.split(key, n)

    def back(state, now):
        key, filtered = now
        log_p = jnp.log(filtered) + jnp.log(transition[:, state])
        drawn = jax.random.categorical(key, log_p)
        return drawn, drawn

    last = jax.random.categorical(keys[-1], jnp.log(found.filtered[-1]))
    _, path = lax.scan(back, last, (keys[:-1], found.filtered[:-1]), reverse=True)
    return jnp.append(path, last)


def stationary(transition: Float[Array, "states states"]) -> Float[Array, " states"]:
    """The law that the chain keeps: ``pi' A = pi'``, ``sum pi = 1``."""
    k = transition.shape[0]
    system = jnp.eye(k, dtype=transition.dtype) - transition.T + 1.0
    return jnp.linalg.solve(system, jnp.ones(k, transition.dtype))
