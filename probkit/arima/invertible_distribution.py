"""A prior over the coefficients of invertible moving averages: those of a stationary autoregression, sign turned."""

import jax.numpy as jnp
from jaxtyping import Array, Float
from numpyro.distributions import constraints, transforms

from probkit.ssm.stationary_distribution import StationaryAR, StationaryTransform, stationary_ar


class Invertible(constraints.ParameterFreeConstraint):
    """Coefficient vectors of invertible moving averages; ``invertible_ma`` is the one instance."""

    event_dim = 1

    def __call__(self, x: Array) -> Array:
        return stationary_ar(-jnp.asarray(x))

    def feasible_like(self, prototype: Array) -> Array:
        """The white noise, all coefficients 0."""
        return jnp.zeros_like(prototype)


invertible_ma = Invertible()


class InvertibleTransform(transforms.ParameterFreeTransform):
    """Real vectors to invertible coefficients, ``theta = -phi``."""

    domain = constraints.real_vector
    codomain = invertible_ma

    def __call__(self, x: Array) -> Array:
        return -StationaryTransform()(x)

    def _inverse(self, y: Array) -> Array:
        return StationaryTransform()._inverse(-y)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: None = None) -> Array:
        return StationaryTransform().log_abs_det_jacobian(x, -y)


@transforms.biject_to.register(Invertible)
def _biject_to_invertible(constraint: Invertible) -> InvertibleTransform:
    return InvertibleTransform()


class InvertibleMA(StationaryAR):
    r"""Coefficients of an invertible MA(q), $\theta(B) = 1 + \theta_1 B + \dots$: ``-theta`` follows `StationaryAR`.

    Args:
        order: q, the number of coefficients, at least 1.
        a: Beta parameters of the partial autocorrelations of ``-theta``, a number or (q,).
        b: Beta parameters, a number or (q,). By default uniform over the region of invertibility.
    """

    support = invertible_ma

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape q"]:
        """Draws of the coefficients, shape `sample_shape + (q,)`."""
        return -super().sample(key, sample_shape)

    def log_prob(self, value: Float[Array, "*shape q"], intermediates: None = None) -> Float[Array, "*shape"]:
        """Log density of coefficients; -inf outside the region of invertibility."""
        return super().log_prob(-jnp.asarray(value))

    @property
    def mean(self) -> Float[Array, " q"]:
        """Minus the mean of `StationaryAR`."""
        return -super().mean
