"""Values and slopes of one function: the covariance of a process with its own derivatives, for any covariance."""

from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp.covariance import Covariance, refused_part
from probkit.gp.product_covariances import ArcCosine, White
from probkit.gp.stationary_covariances import SHO, Matern12
from probkit.model import Param, param


def split(X: Float[Array, "n columns"]) -> tuple[Array, Array]:
    """Inputs, (n,) where they are one column, and the marker of each row, its last column."""
    return (X[:, 0] if X.shape[1] == 2 else X[:, :-1]), X[:, -1]


def of_values(y: Array, X: Float[Array, "n columns"]) -> tuple[Array, Array]:
    """What defaults look at: values in y (slopes times the span if there are none), and inputs without the marker."""
    span = jnp.mean(jnp.max(X[:, :-1], 0) - jnp.min(X[:, :-1], 0))
    value = (X[:, -1] == 0) & ~jnp.isnan(y)
    slopes = y * jnp.where(span > 0, span, 1.0)
    return jnp.where(jnp.any(value), jnp.where(value, y, jnp.nan), slopes), split(X)[0]


def _smooth(kernel: Covariance) -> Covariance:
    rough = lambda part: isinstance(part, Matern12 | SHO | White) or (isinstance(part, ArcCosine) and part.order == 0)
    part = refused_part("Derivative", kernel, rough)
    if part is not None:
        raise TypeError(
            f"{type(part).__name__} has no derivative here; gp.Derivative takes covariances of functions with one, "
            "such as Matern32, Matern52 and RBF."
        )
    return kernel


class Derivative(Covariance):
    """The covariance of a function and its derivatives, so that y may mix values and slopes.

    The last column of X marks what a row of y is: 0 a value ``f(x)``, d = 1, 2, ... the slope ``df / dx_d`` along the
    d-th of the columns before it. Between values and slopes stand the derivatives of the covariance, by ``jax.jvp``::

        X = np.array([[0.0, 0], [1.0, 0], [2.0, 0], [0.0, 1]])    # three values, and the slope at 0
        posterior = pk.fit(pk.GP(pk.gp.Derivative(pk.RBF())), y, X, key=key)
        posterior.predict(np.array([[0.5, 0], [0.5, 1]]))           # value and slope at 0.5

    Values alone tell of slopes too: fit with markers 0, predict with others. ``obs_scale`` of the model is the noise of
    values; at new inputs slopes are those of the function itself. A constant mean has slope 0, any other its own.
    It stands outermost: sums and products go inside. Solved by ``gp.Exact()`` or ``gp.Sparse()``.

    Args:
        kernel: the covariance of the function, differentiable once in mean square: Matérn 3/2, 5/2, RBF, rational
            quadratic, periodic, linear and the like, sums and products of them; ``columns`` count without the marker.
        slope_scale: standard deviation of the noise of observed slopes, in units of y per unit of X. Default:
            half-normal with the spread of the slopes, cut off below at their rounding error; 0 is exact slopes.

    Raises:
        TypeError: a covariance without derivative (Matern12, SHO, White, ArcCosine of order 0); another Derivative.

    References:
        Solak et al. (2003), Derivative observations in Gaussian process models of dynamic systems. Rasmussen and
        Williams (2006), Gaussian Processes for Machine Learning, section 9.4.
    """

    outermost: ClassVar[bool] = True

    kernel: Covariance = eqx.field(converter=_smooth)
    slope_scale: Param = param(
        support=constraints.nonnegative,
        default=lambda self, y, X: priors.noise(jnp.where(X[:, -1] > 0, y, jnp.nan)),
    )

    def shown_inside(self, field: str, y: Any, X: Any) -> tuple[Any, Any]:
        """The values of y and the inputs alone are what the covariance of the function is scaled to."""
        return of_values(y, X)

    def check_inputs(self, X: Any) -> None:
        """Refuse inputs without a marker of 0, 1, ..., D in the last column."""
        shape = np.shape(X)
        if len(shape) != 2 or shape[1] < 2:
            raise ValueError(f"X has shape {shape}; gp.Derivative takes (n, D + 1), the last column marking slopes.")
        marker = np.asarray(X)[:, -1]
        if not np.all(np.isin(marker, np.arange(shape[1]))):
            bad = marker[~np.isin(marker, np.arange(shape[1]))][0]
            raise ValueError(f"the last column of X holds {bad}; 0 (a value) to {shape[1] - 1} (a slope) are wanted.")

    def __call__(self, X1: Float[Array, "n columns"], X2: Float[Array, "m columns"]) -> Float[Array, "n m"]:
        """Covariance between two sets of rows; NaN where a marker is none."""
        (A, a), (B, b) = split(X1), split(X2)
        T, U = _directions(A, a), _directions(B, b)
        zero, one = jnp.zeros((), A.dtype), jnp.ones((), A.dtype)

        def along(v: Array) -> tuple[Array, Array]:
            return jax.jvp(lambda u: self.kernel(A + u * T, B + v * U), (zero,), (one,))

        (K, left), (right, mixed) = jax.jvp(along, (zero,), (one,))
        slope, slopes = (a > 0)[:, None], (b > 0)[None, :]
        found = jnp.where(slope, jnp.where(slopes, mixed, left), jnp.where(slopes, right, K))
        sound = _is_marker(a, X1)[:, None] & _is_marker(b, X2)[None, :]
        return jnp.where(sound, found, jnp.nan)

    def diagonal(self, X: Float[Array, "n columns"]) -> Float[Array, " n"]:
        """Variance of each row."""
        return jax.vmap(lambda x: self(x[None], x[None])[0, 0])(X)

    def observed_noise(self, X: Float[Array, "n columns"], variance: Array) -> Float[Array, " n"]:
        """Variance of the noise of each row, where that of values is given."""
        return jnp.where(X[:, -1] > 0, jnp.asarray(self.slope_scale, X.dtype) ** 2, variance)

    def fresh_noise(self, X: Float[Array, "m columns"], variance: Array) -> Float[Array, " m"]:
        """The same for new rows, where slopes are those of the function."""
        return jnp.where(X[:, -1] > 0, 0.0, variance)

    def observed_mean(self, mean: Callable, X: Float[Array, "n columns"]) -> Float[Array, " n"]:
        """The mean of each row, where that of values is a function of inputs."""
        A, a = split(X)
        value, slope = jax.jvp(
            lambda u: mean(A + u * _directions(A, a)), (jnp.zeros((), A.dtype),), (jnp.ones((), A.dtype),)
        )
        return jnp.where(a > 0, slope, value)


def _directions(A: Array, marker: Array) -> Array:
    """The unit vector along which each row is a slope, 0 for a value; shaped as the inputs."""
    if A.ndim == 1:
        return jnp.where(marker > 0, 1.0, 0.0).astype(A.dtype)
    return jax.nn.one_hot(marker.astype(int) - 1, A.shape[1], dtype=A.dtype)


def _is_marker(marker: Array, X: Array) -> Bool[Array, " n"]:
    return (marker == jnp.round(marker)) & (marker >= 0) & (marker < X.shape[1])
