r"""How far one distribution is from another, each number with its error and with how it was found.

Where a closed form exists it is used, through NumPyro's wrappers (`.to_event`, `.expand`, `.mask`); importing this
module fills the registry of `numpyro.distributions.kl_divergence` with those it lacks, for NumPyro's own objectives
too. Where none exists the answer is a Monte Carlo mean, and says so.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float, PRNGKeyArray
from numpyro.distributions import Distribution, kl_divergence

from probkit.vi.closed_forms import BERNOULLI, CATEGORICAL, log_table
from probkit.vi.entropies import closed_entropy
from probkit.vi.wasserstein import wasserstein2

__all__ = ["Divergence", "entropy", "jensen_shannon", "kl", "wasserstein2"]


class Divergence(NamedTuple):
    """A divergence or an entropy, in nats.

    Attributes:
        value: of the joint batch shape.
        error: Monte Carlo standard error of the value; 0 for a closed form.
        exact: whether the value is a closed form.
    """

    value: Float[Array, "*batch"]
    error: Float[Array, "*batch"]
    exact: bool


def kl(p: Distribution, q: Distribution, *, key: PRNGKeyArray | None = None, draws: int = 10_000) -> Divergence:
    r"""Kullback-Leibler divergence $KL(p\,\|\,q) = E_p[\log p - \log q]$.

    In closed form where NumPyro's registry has one (`exact=True`); else the mean over draws of p, with its standard
    error (`exact=False`). That mean can be differentiated in the parameters of p where p's draws can. One draw of p
    outside the support of q makes it inf.

    Args:
        p: the distribution the expectation is under.
        q: the other, with the event shape of p and a batch shape that broadcasts with p's.
        key: a key for Monte Carlo; not used where there is a closed form.
        draws: number of Monte Carlo draws, at least 2.

    Returns:
        A :class:`Divergence` of the joint batch shape. From a point mass (`Delta`) it is NumPyro's convention,
        $-\log q$ at the point.

    Raises:
        ValueError: if there is no closed form and no key; if the event shapes differ; if a Monte Carlo estimate is
            asked for between a discrete and a continuous distribution.

    References:
        Kullback, S. and Leibler, R. A. (1951). On information and sufficiency. Annals of Mathematical Statistics 22.
    """
    shape = _joint_shape(p, q)
    try:
        return _closed(kl_divergence(p, q), shape)
    except NotImplementedError:
        key = _required(key, draws, f"KL({_name(p)} || {_name(q)})")
    _same_measure(p, q)
    p, q = p.expand(shape), q.expand(shape)
    x, log_p = _draw(p, key, draws)
    return _mean(log_p - _log_prob_on(q, p, x))


def entropy(p: Distribution, *, key: PRNGKeyArray | None = None, draws: int = 10_000) -> Divergence:
    r"""Entropy $-E_p[\log p]$: differential for a continuous p, so that it may be negative.

    Args:
        p: the distribution.
        key: a key for Monte Carlo; not used where there is a closed form.
        draws: number of Monte Carlo draws, at least 2.

    Returns:
        A :class:`Divergence` of the batch shape of p.

    Raises:
        ValueError: if there is no closed form and no key.

    References:
        Cover, T. M. and Thomas, J. A. (2006). Elements of Information Theory, chapters 2 and 8.
    """
    try:
        return _closed(closed_entropy(p), p.batch_shape)
    except NotImplementedError:
        key = _required(key, draws, f"the entropy of {_name(p)}")
    return _mean(-_draw(p, key, draws)[1])


def jensen_shannon(
    p: Distribution, q: Distribution, *, key: PRNGKeyArray | None = None, draws: int = 10_000
) -> Divergence:
    r"""Jensen-Shannon divergence $\frac12 KL(p\,\|\,m) + \frac12 KL(q\,\|\,m)$ with $m = \frac12(p + q)$.

    Symmetric, and between 0 and $\log 2$ (distributions that do not overlap). Bernoulli and categorical
    distributions are summed (`exact=True`); others are a Monte Carlo mean, cut to these bounds.

    Args:
        p: a distribution.
        q: another, with the event shape of p and a batch shape that broadcasts with p's.
        key: a key for Monte Carlo; not used for a sum.
        draws: number of Monte Carlo draws of each, at least 2.

    Returns:
        A :class:`Divergence` of the joint batch shape.

    Raises:
        ValueError: as for :func:`kl`.

    References:
        Lin, J. (1991). Divergence measures based on the Shannon entropy. IEEE Transactions on Information Theory 37.
    """
    shape = _joint_shape(p, q)
    inner = [_unexpanded(d) for d in (p, q)]
    if any(all(isinstance(d, family) for d in inner) for family in (BERNOULLI, CATEGORICAL)):
        a, b = (log_table(d)[0] for d in inner)
        if a.shape[-1] != b.shape[-1]:
            raise ValueError(f"p has {a.shape[-1]} categories and q {b.shape[-1]}; a divergence needs one space.")
        return _closed(jnp.sum(_half_divergence(a, b) + _half_divergence(b, a), -1), shape)
    key = _required(key, draws, f"the Jensen-Shannon divergence of {_name(p)} and {_name(q)}")
    _same_measure(p, q)
    p, q = p.expand(shape), q.expand(shape)
    halves = []
    for one, other, k in zip((p, q), (q, p), jax.random.split(key), strict=True):
        x, log_one = _draw(one, k, draws)
        halves.append(_mean(math.log(2) - jax.nn.softplus(_log_prob_on(other, one, x) - log_one)))
    value = jnp.clip((halves[0].value + halves[1].value) / 2, 0, math.log(2))
    return Divergence(value, jnp.hypot(halves[0].error, halves[1].error) / 2, False)


def _half_divergence(a: Array, b: Array) -> Array:
    """Terms of KL(a || m) / 2, 0 where a is 0, as are their derivatives."""
    possible = a > 0
    a, b = jnp.where(possible, a, 1), jnp.where(possible, b, 1)
    return jnp.where(possible, -a * jnp.log1p((b - a) / (2 * a)) / 2, 0)


def _closed(value: Array, shape: tuple[int, ...]) -> Divergence:
    value = jnp.broadcast_to(value, shape)
    return Divergence(value, jnp.zeros_like(value), True)


def _mean(terms: Float[Array, "draws *batch"]) -> Divergence:
    value = jnp.mean(terms, 0)
    certain = jnp.isposinf(value)  # one draw is enough, and its deviation is NaN
    error = jnp.std(jnp.where(certain, 0, terms), 0, ddof=1) / math.sqrt(terms.shape[0])
    return Divergence(value, error, False)


def _draw(p: Distribution, key: PRNGKeyArray, draws: int) -> tuple[Array, Array]:
    """Draws of p and their log densities, by way of the base where p is transformed: no inverse is taken."""
    x, intermediates = p.sample_with_intermediates(key, (draws,))
    return x, p.log_prob(x, intermediates) if intermediates else p.log_prob(x)


def _log_prob_on(q: Distribution, p: Distribution, x: Array) -> Array:
    """Log density of q at draws of p, -inf outside its support, of which NumPyro's densities take no notice.

    A draw that rounding has put outside p's own support is not held against q.
    """
    try:
        outside = p.support(x) & ~q.support(x)
        inner = q.support.feasible_like(x)
    except NotImplementedError:
        return q.log_prob(x)
    apart = jnp.reshape(outside, outside.shape + (1,) * q.event_dim)
    return jnp.where(outside, -jnp.inf, q.log_prob(jnp.where(apart, inner, x)))


def _joint_shape(p: Distribution, q: Distribution) -> tuple[int, ...]:
    if p.event_shape != q.event_shape:
        raise ValueError(
            f"p ({_name(p)}) has event shape {p.event_shape} and q ({_name(q)}) {q.event_shape}; a divergence needs "
            "one space. For independent coordinates, use .to_event(1)."
        )
    return lax.broadcast_shapes(p.batch_shape, q.batch_shape)


def _same_measure(p: Distribution, q: Distribution) -> None:
    if p.is_discrete != q.is_discrete:
        raise ValueError(f"One of {_name(p)} and {_name(q)} is discrete and the other continuous; they never overlap.")


def _required(key: PRNGKeyArray | None, draws: int, what: str) -> PRNGKeyArray:
    if key is None:
        raise ValueError(f"No closed form is known for {what}. Pass key=jax.random.key(...) for a Monte Carlo mean.")
    if draws < 2:
        raise ValueError(f"draws is {draws}; a standard error takes at least 2.")
    return key


def _unexpanded(p: Distribution) -> Distribution:
    while isinstance(p, dist.ExpandedDistribution):
        p = p.base_dist
    return p


def _name(p: Distribution) -> str:
    if isinstance(p, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        return f"{type(p).__name__}({_name(p.base_dist)})"
    return type(p).__name__
