r"""A distribution over the coefficients of stationary autoregressions, and its support as a NumPyro constraint."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.special import betaln
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import constraints, transforms

from probkit.ssm import stationary


class Stationary(constraints.ParameterFreeConstraint):
    """Coefficient vectors of stationary autoregressions; ``stationary_ar`` is the one instance."""

    event_dim = 1

    def __call__(self, x: Array) -> Array:
        inside = jnp.abs(stationary.ar_to_pacf(x)) < 1
        return jnp.all(inside, axis=-1)

    def feasible_like(self, prototype: Array) -> Array:
        """The white noise, all coefficients 0."""
        return jnp.zeros_like(prototype)


stationary_ar = Stationary()


class StationaryTransform(transforms.ParameterFreeTransform):
    r"""Real vectors to stationary coefficients: $r_k = \tanh u_k$, then Durbin and Levinson."""

    domain = constraints.real_vector
    codomain = stationary_ar

    def __call__(self, x: Array) -> Array:
        edge = 1 - jnp.finfo(x.dtype).eps
        return stationary.pacf_to_ar(jnp.clip(jnp.tanh(x), -edge, edge))

    def _inverse(self, y: Array) -> Array:
        return jnp.arctanh(stationary.ar_to_pacf(y))

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: None = None) -> Array:
        """Of the two steps, from x, where the digits are: 1 + tanh x = 2 / (1 + exp(-2 x))."""
        up, down = (power.astype(x.dtype) for power in stationary.jacobian_powers(x.shape[-1]))
        log2 = jnp.log(jnp.asarray(2, x.dtype))
        plus, minus = log2 - jax.nn.softplus(-2 * x), log2 - jax.nn.softplus(2 * x)
        return jnp.sum((1 + up) * plus + (1 + down) * minus, axis=-1)


@transforms.biject_to.register(Stationary)
def _biject_to_stationary(constraint: Stationary) -> StationaryTransform:
    return StationaryTransform()


class StationaryAR(dist.Distribution):
    r"""Coefficients of a stationary autoregression, by independent priors on its partial autocorrelations.

    $$\tfrac12 (r_k + 1) \sim \mathrm{Beta}(a_k, b_k), \qquad \phi = \mathrm{DurbinLevinson}(r).$$

    By default $a_k = \lfloor \frac{k+1}{2} \rfloor$, $b_k = \lfloor \frac k2 \rfloor + 1$: uniform over the region of
    stationarity. A symmetric $a_k = b_k$ that grows with k shrinks later lags towards 0.

    Args:
        order: p, the number of coefficients, at least 1.
        a: Beta parameters, a number or (p,).
        b: Beta parameters, a number or (p,).

    References:
        Jones (1987), Randomly choosing parameters from the stationarity and invertibility region of
        autoregressive-moving average models, Applied Statistics 36.
    """

    arg_constraints = {
        "a": constraints.independent(constraints.positive, 1),
        "b": constraints.independent(constraints.positive, 1),
    }
    support = stationary_ar
    pytree_data_fields = ("a", "b")
    pytree_aux_fields = ("order",)

    def __init__(
        self, order: int, a: ArrayLike | None = None, b: ArrayLike | None = None, *, validate_args: bool | None = None
    ):
        if isinstance(order, bool) or not isinstance(order, int) or order < 1:
            raise ValueError(f"order is {order!r}; a whole number of coefficients, at least 1, is wanted.")
        up, down = stationary.jacobian_powers(order)
        self.order = order
        self.a, self.b = (
            jnp.broadcast_to(jnp.asarray(flat + 1.0 if held is None else held, float), (order,))
            for held, flat in ((a, up), (b, down))
        )
        super().__init__((), (order,), validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape p"]:
        """Draws of the coefficients, shape `sample_shape + (p,)`."""
        half = jax.random.beta(key, self.a, self.b, (*sample_shape, self.order))
        edge = 1 - jnp.finfo(half.dtype).eps
        return stationary.pacf_to_ar(jnp.clip(2 * half - 1, -edge, edge))

    def log_prob(self, value: Float[Array, "*shape p"], intermediates: None = None) -> Float[Array, "*shape"]:
        """Log density of coefficients; -inf outside the region of stationarity."""
        r = stationary.ar_to_pacf(value)
        inside = jnp.all(jnp.abs(r) < 1, axis=-1, keepdims=True)
        r = jnp.where(inside, r, 0)
        up, down = (power.astype(r.dtype) for power in stationary.jacobian_powers(self.order))
        terms = (self.a - 1 - up) * jnp.log1p(r) + (self.b - 1 - down) * jnp.log1p(-r)
        constant = (self.a + self.b - 1) * jnp.log(jnp.asarray(2, r.dtype)) + betaln(self.a, self.b)
        return jnp.where(inside[..., 0], jnp.sum(terms - constant, axis=-1), -jnp.inf)

    @property
    def mean(self) -> Float[Array, " p"]:
        """Coefficients of the mean partial autocorrelations, which is their mean: the recursion is linear in each."""
        return stationary.pacf_to_ar((self.a - self.b) / (self.a + self.b))
