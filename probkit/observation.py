"""The law of an observation whose latent value is normal: a likelihood integrated by quadrature."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array
from numpyro.distributions import constraints

from probkit.likelihoods import (
    Bernoulli,
    Categorical,
    Categories,
    Gaussian,
    HeteroscedasticGaussian,
    Likelihood,
    Ordinal,
)
from probkit.math.cubature import normal_nodes

#: Nodes of the Gauss-Hermite rule.
NODES = 32
#: Halvings of the bracket of the largest integrand.
HALVINGS = 40


class Observation(dist.Distribution):
    """The law of each observation whose latent value is normal: the likelihood integrated by Gauss-Hermite quadrature.

    Args:
        likelihood: a :class:`probkit.likelihoods.Likelihood` of one column.
        f: means of the latent values, (n,).
        variance: their variances, (n,).
    """

    support = constraints.real
    pytree_data_fields = ("likelihood", "f", "latent_variance")

    def __init__(self, likelihood: Likelihood, f: Array, variance: Array, *, validate_args: bool | None = None):
        self.likelihood, self.f, self.latent_variance = likelihood, f, variance
        super().__init__(f.shape, (), validate_args=validate_args)

    def _nodes(self) -> tuple[Array, Array]:
        x, w = np.polynomial.hermite_e.hermegauss(NODES)
        f = self.f[None, :] + jnp.sqrt(self.latent_variance)[None, :] * jnp.asarray(x, self.f.dtype)[:, None]
        return f, jnp.asarray(np.log(w / w.sum()), self.f.dtype)[:, None]

    def _over(self, fn: Any) -> Array:
        f, _ = self._nodes()
        return jax.vmap(lambda row: fn(self.likelihood.law(row)))(f)

    def over(self, fn: Any) -> tuple[Array, Array]:
        """``fn`` of the law at every node, (nodes, ...), and the weights of the nodes."""
        return self._over(fn), jnp.exp(self._nodes()[1][:, 0])

    def log_prob(self, value: Array, intermediates: None = None) -> Array:
        """Log probability of each entry; ``value`` is (n,).

        The nodes stand around the largest integrand, as wide as its curvature says: a count of 1,000 knows its rate
        better than nodes of the latent law could tell. Student-t, which may have two such places, keeps the latter.
        """
        if not self.likelihood.log_concave:
            log_weight = self._nodes()[1]
            return jax.nn.logsumexp(self._over(lambda law: law.log_prob(value)) + log_weight, axis=0)
        sd = jnp.sqrt(self.latent_variance)
        term = lambda u: self.likelihood.law(self.f + sd * u).log_prob(value)
        slope = jax.grad(lambda u: jnp.sum(term(u)))
        # Where the log-likelihood is concave the largest lies between the centre and the slope there.
        first = slope(jnp.zeros_like(sd))

        def halve(_: Any, ends: tuple[Array, Array]) -> tuple[Array, Array]:
            low, high = ends
            middle = 0.5 * (low + high)
            up = slope(middle) > middle
            return jnp.where(up, middle, low), jnp.where(up, high, middle)

        low, high = jax.lax.fori_loop(0, HALVINGS, halve, (jnp.minimum(first, 0.0), jnp.maximum(first, 0.0)))
        u = 0.5 * (low + high)
        width = 1 / jnp.sqrt(1 + sd**2 * self.likelihood.fisher(self.f + sd * u)[:, 0, 0])
        x, w = np.polynomial.hermite_e.hermegauss(NODES)
        nodes = u + width * jnp.asarray(x, sd.dtype)[:, None]
        weight = jnp.asarray(0.5 * x**2 + np.log(w / w.sum()), sd.dtype)[:, None]
        return jax.nn.logsumexp(jax.vmap(term)(nodes) - 0.5 * nodes**2 + weight, axis=0) + jnp.log(width)

    @property
    def mean(self) -> Array:
        """Mean of each observation."""
        return jnp.sum(self._over(lambda law: law.mean) * jnp.exp(self._nodes()[1]), axis=0)

    @property
    def variance(self) -> Array:
        """Variance of each observation."""
        weight, means = jnp.exp(self._nodes()[1]), self._over(lambda law: law.mean)
        within = jnp.sum(self._over(lambda law: law.variance) * weight, axis=0)
        return within + jnp.sum((means - self.mean[None, :]) ** 2 * weight, axis=0)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of each observation, independent of one another given the parameters."""
        k_f, k_y = jax.random.split(key)
        e = jax.random.normal(k_f, (*sample_shape, *self.batch_shape), self.f.dtype)
        return observe(self.likelihood, k_y, self.f + jnp.sqrt(self.latent_variance) * e)


class ColumnsObservation(dist.Distribution):
    """The law of each observation whose several latent columns are independent and normal, by quadrature.

    Args:
        likelihood: a :class:`probkit.likelihoods.Likelihood` of several columns.
        f: means of the columns, (columns, n).
        variance: their variances, (columns, n).
    """

    support = constraints.real
    pytree_data_fields = ("likelihood", "f", "latent_variance")

    def __init__(self, likelihood: Likelihood, f: Array, variance: Array, *, validate_args: bool | None = None):
        self.likelihood, self.f, self.latent_variance = likelihood, f, variance
        super().__init__(f.shape[1:], (), validate_args=validate_args)

    def over(self, fn: Any) -> tuple[Array, Array]:
        """``fn`` of the law at every node, (nodes, ...), and the weights of the nodes."""
        x, w = normal_nodes(self.f.shape[0], self.f.dtype)
        sd = jnp.sqrt(self.latent_variance)
        return jax.vmap(lambda x: fn(self.likelihood.law((self.f + sd * x[:, None]).T)))(x), w

    def log_prob(self, value: Array, intermediates: None = None) -> Array:
        """Log density of each entry; ``value`` is (n,)."""
        if isinstance(self.likelihood, HeteroscedasticGaussian):
            return self._normal_given_noise(value)
        each, w = self.over(lambda law: law.log_prob(value))
        return jax.nn.logsumexp(each, axis=0, b=w[:, None])

    def _normal_given_noise(self, value: Array) -> Array:
        """The mean integrated in closed form: where noise is small beside its variance y would fall between nodes."""
        x, w = np.polynomial.hermite_e.hermegauss(NODES)
        nodes = self.f[1] + jnp.sqrt(self.latent_variance[1]) * jnp.asarray(x, self.f.dtype)[:, None]

        def given(node: Array) -> Array:
            noise = self.likelihood.law(jnp.stack([self.f[0], node], axis=1)).variance
            return dist.Normal(self.f[0], jnp.sqrt(self.latent_variance[0] + noise)).log_prob(value)

        log_weight = jnp.asarray(np.log(w / w.sum()), self.f.dtype)[:, None]
        return jax.nn.logsumexp(jax.vmap(given)(nodes) + log_weight, axis=0)

    @property
    def mean(self) -> Array:
        """Mean of each observation."""
        each, w = self.over(lambda law: law.mean)
        return w @ each

    @property
    def variance(self) -> Array:
        """Variance of each observation."""
        within, w = self.over(lambda law: law.variance)
        means, _ = self.over(lambda law: law.mean)
        return w @ within + w @ (means - self.mean) ** 2

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of each observation, independent of one another given the parameters."""
        k_f, k_y = jax.random.split(key)
        e = jax.random.normal(k_f, (*sample_shape, *self.f.shape), self.f.dtype)
        return observe(self.likelihood, k_y, self.f + jnp.sqrt(self.latent_variance) * e)


def entrywise(likelihood: Likelihood, f: Array, variance: Array) -> dist.Distribution:
    """The law of each observation, batch shape (n,), for one latent column, (n,), or several, (columns, n)."""
    return (Observation if f.ndim == 1 else ColumnsObservation)(likelihood, f, variance)


def predictive(likelihood: Likelihood, f: Array, variance: Array) -> dist.Distribution:
    """The law of fresh observations whose latent values are normal, event shape (n,).

    Beside moments it tells the sd of the noise alone for normal ones, and for classes their probabilities with the
    entropy that would remain if the latent values were known.

    Args:
        likelihood: any likelihood.
        f: means of the latent values, (n,), or (columns, n) where there are several.
        variance: their variances.
    """
    if isinstance(likelihood, Gaussian):
        law = dist.Normal(f, jnp.sqrt(likelihood.scale**2 + variance), validate_args=False).to_event(1)
        law.noise_variance = jnp.broadcast_to(jnp.asarray(likelihood.scale) ** 2, f.shape)
        return law
    mixed = entrywise(likelihood, f, variance)
    if isinstance(likelihood, HeteroscedasticGaussian):
        law, (noise, w) = mixed.to_event(1), mixed.over(lambda one: one.variance)
        law.noise_variance = w @ noise
        return law
    if isinstance(likelihood, Categorical | Ordinal):
        each, w = mixed.over(lambda one: one.probs)
        law = Categories(jnp.log(jnp.maximum(jnp.tensordot(w, each, 1), jnp.finfo(f.dtype).tiny))).to_event(1)
        law.expected_entropy = w @ -jnp.sum(jax.scipy.special.xlogy(each, each), axis=-1)
        return law
    if isinstance(likelihood, Bernoulli):
        logit = mixed.log_prob(jnp.ones_like(f)) - mixed.log_prob(jnp.zeros_like(f))
        law = dist.BernoulliLogits(logit, validate_args=False).to_event(1)
        law.expected_entropy = jnp.sum(mixed._over(lambda one: one.entropy()) * jnp.exp(mixed._nodes()[1]), axis=0)
        return law
    return mixed.to_event(1)


def observe(likelihood: Likelihood, key: Array, f: Array) -> Array:
    """A draw of every observation given latent values, (..., n) or (..., columns, n), as floats of shape (..., n)."""
    columns = likelihood.outputs
    flat = f.reshape(-1, f.shape[-1]) if columns == 1 else f.reshape(-1, *f.shape[-2:])
    draw = lambda key, row: likelihood.law(row if columns == 1 else row.T).sample(key)
    drawn = jax.vmap(draw)(jax.random.split(key, flat.shape[0]), flat)
    shape = f.shape if columns == 1 else (*f.shape[:-2], f.shape[-1])
    return drawn.reshape(shape).astype(f.dtype)
