"""Seasonal factors as a NumPyro distribution, and their support as a constraint."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array
from numpyro.distributions import constraints, transforms

from probkit.ssm.distribution import as_float


class MeanOne(constraints.ParameterFreeConstraint):
    """Vectors of mean 1; ``mean_one`` is the one instance."""

    event_dim = 1

    def __call__(self, x: Any) -> Any:
        return abs(jnp.mean(jnp.asarray(x), -1) - 1) < 1e-3

    def feasible_like(self, prototype: Any) -> Any:
        """No season at all."""
        return jnp.ones_like(prototype)


mean_one = MeanOne()


class MeanOneTransform(transforms.ParameterFreeTransform):
    """Real vectors, one entry shorter, to vectors of mean 1: an orthogonal map to zero sum, and 1 added."""

    domain = constraints.real_vector
    codomain = mean_one

    def __call__(self, x: Array) -> Array:
        return 1 + transforms.ZeroSumTransform(1)(x)

    def _inverse(self, y: Array) -> Array:
        return transforms.ZeroSumTransform(1)._inverse(y - 1)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: None = None) -> Array:
        return jnp.zeros(x.shape[:-1], x.dtype)

    def forward_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] + 1)

    def inverse_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-1], shape[-1] - 1)


@transforms.biject_to.register(MeanOne)
def _biject_to_mean_one(constraint: MeanOne) -> MeanOneTransform:
    return MeanOneTransform()


class SeasonalFactors(dist.Distribution):
    """Seasonal factors: one plus a zero-sum normal vector, so their mean is 1.

    Args:
        scale: standard deviation of a factor, before the sum is taken out.
        period: their number.
    """

    arg_constraints = {"scale": constraints.positive}
    support = mean_one
    pytree_data_fields = ("scale",)
    pytree_aux_fields = ("period",)

    def __init__(self, scale: ArrayLike, period: int, *, validate_args: bool | None = None):
        self.scale, self.period = as_float(scale), period
        super().__init__(jnp.shape(self.scale), (period,), validate_args=validate_args)

    def _deviations(self) -> dist.Distribution:
        return dist.ZeroSumNormal(self.scale, (self.period,))

    @property
    def mean(self) -> Array:
        return jnp.ones(self.shape(), self.scale.dtype)

    @property
    def variance(self) -> Array:
        return jnp.broadcast_to(self.scale[..., None] ** 2 * (1 - 1 / self.period), self.shape())

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        return 1 + self._deviations().sample(key, sample_shape)

    def log_prob(self, value: Array, intermediates: None = None) -> Array:
        return self._deviations().log_prob(value - 1)
