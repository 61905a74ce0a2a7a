"""ARIMA as a NumPyro distribution over whole series."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike
from numpyro.distributions import constraints

from probkit.ssm.distribution import LevelDistribution, Start, as_float


class ARIMADistribution(LevelDistribution):
    r"""ARIMA(0,1,1) in level form: $y_t - y_{t-1} = e_t + \theta e_{t-1}$, as a law of the series y.

    The level is $l_{t-1} = y_t - e_t$, which moves by $\alpha e_t$, $\alpha = 1 + \theta$ (`probkit.arima.likelihood`).

    Args:
        ma: moving-average coefficients (theta,), shape (1,).
        scale: standard deviation of the innovations e.
        length: number of times.
        start: mean and variance of the first level; None for exact diffuse, a flat prior.

    Raises:
        ValueError: `ma` has another number of coefficients than one.
    """

    arg_constraints = {"ma": constraints.real_vector, "scale": constraints.nonnegative}
    pytree_data_fields = ("ma", "scale")

    def __init__(
        self,
        ma: ArrayLike,
        scale: ArrayLike,
        length: int,
        start: Start = None,
        *,
        validate_args: bool | None = None,
    ):
        self.ma, self.scale = as_float(ma), as_float(scale)
        if self.ma.shape[-1:] != (1,):
            raise ValueError(f"ma has shape {self.ma.shape}; ARIMADistribution is (0, 1, 1) and takes (1,).")
        super().__init__(length, start, validate_args)

    def replaced_noise(self) -> Array:
        """``-theta scale²`` for theta < 0, the observation noise of the local level that this ARIMA is; else 0."""
        return jnp.maximum(-self.ma[..., 0], 0.0) * self.scale**2

    def loadings(self) -> tuple[Array, Array, Array]:
        """(h, c, q) of the base: the level takes the share ``1 + theta`` of each innovation."""
        return self.scale, (1 + self.ma[..., 0]) * self.scale, jnp.zeros_like(self.scale)
