"""Covariances of inner products, constants and noise, and of categories."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp import kernels
from probkit.gp.covariance import Covariance
from probkit.gp.stationary_covariances import both, default_scale, selected
from probkit.math.linalg import matmul
from probkit.model import Param, param


def _active(self: Any, y: Any, X: Any) -> Array:
    X = selected(X, self.columns)
    return jnp.arange(y.shape[0], dtype=y.dtype) if X is None else X


def _deviations(X: Array) -> Array:
    """Standard deviation of each column; 1 where it is 0."""
    spread = jnp.std(kernels.columns(X), axis=0)
    return (jnp.where(spread > 0, spread, 1.0))[0 if X.ndim == 1 else slice(None)]


def _default_slope(self: Any, y: Any, X: Any) -> dist.Distribution:
    scale = 2.0 * priors.spread(y) / _deviations(_active(self, y, X))
    law = dist.HalfNormal(scale)
    return law if scale.ndim == 0 else law.to_event(1)


class Linear(Covariance):
    """Linear covariance: ``sum_d slope_scale_d² (x_d - centre_d) (x'_d - centre_d)``, a line with normal slopes.

    Args:
        slope_scale: standard deviations of the slopes, in units of y per unit of X; scalar or one per column. Default:
            half-normal with twice the spread of y over the standard deviation of the column.
        centre: where the line is 0. Default: the mean of X, fixed.
        columns: the active columns of X, all by default.
    """

    slope_scale: Param = param(support=constraints.nonnegative, default=_default_slope)
    centre: Param = param(default=lambda self, y, X: jnp.mean(_active(self, y, X), 0))
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def _scaled(self, X: Array) -> Array:
        Z = kernels.columns(X)
        return (Z - jnp.asarray(self.centre, Z.dtype)) * jnp.asarray(self.slope_scale, Z.dtype)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        A, B = both(X1, X2, self.columns)
        return matmul(self._scaled(A), self._scaled(B).T)

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.sum(self._scaled(selected(X, self.columns)) ** 2, axis=1)


class Polynomial(Covariance):
    """Polynomial covariance: ``scale² (offset² + u'v)^degree`` with ``u = (x - centre) / lengthscale``, v likewise.

    Args:
        degree: a whole number of at least 1; static.
        scale: standard deviation of the function one lengthscale away (with offset 0). Default: half-normal with twice
            the spread of y.
        offset: weight of the lower powers, without units. Default: 1, fixed.
        lengthscale: in the units of X, scalar or one per column. Default: the standard deviation of each column times
            the root of their number, fixed (the scale moves with it).
        centre: the origin. Default: the mean of X, fixed.
        columns: the active columns of X, all by default.
    """

    degree: int = eqx.field(static=True)
    scale: Param = param(support=constraints.nonnegative, default=default_scale)
    offset: Param = param(support=constraints.nonnegative, default=1.0)
    lengthscale: Param = param(
        support=constraints.positive,
        default=lambda self, y, X: (
            _deviations(_active(self, y, X)) * kernels.columns(_active(self, y, X)).shape[1] ** 0.5
        ),
    )
    centre: Param = param(default=lambda self, y, X: jnp.mean(_active(self, y, X), 0))
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self) -> None:
        if isinstance(self.degree, bool) or not isinstance(self.degree, int) or self.degree < 1:
            raise ValueError(f"degree is {self.degree!r}; a whole number of at least 1 is wanted.")

    def _scaled(self, X: Array) -> Array:
        Z = kernels.columns(X)
        return (Z - jnp.asarray(self.centre, Z.dtype)) / jnp.asarray(self.lengthscale, Z.dtype)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        A, B = both(X1, X2, self.columns)
        return self.scale**2 * (self.offset**2 + matmul(self._scaled(A), self._scaled(B).T)) ** self.degree

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        norm = jnp.sum(self._scaled(selected(X, self.columns)) ** 2, axis=1)
        return self.scale**2 * (self.offset**2 + norm) ** self.degree


class Constant(Covariance):
    """Constant covariance: an unknown level, the same everywhere. Also what a number beside a covariance becomes.

    Args:
        variance: of the level, in the squared units of y. Default: half-normal with the square of twice the spread of
            y.
    """

    variance: Param = param(
        support=constraints.nonnegative, default=lambda self, y, X: dist.HalfNormal((2.0 * priors.spread(y)) ** 2)
    )

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        return jnp.broadcast_to(jnp.asarray(self.variance, X1.dtype), (len(X1), len(X2)))

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(jnp.asarray(self.variance, X.dtype), X.shape[:1])


class White(Covariance):
    """White noise as part of the function: ``scale²`` between a point and itself, 0 between two points.

    Two rows of one set of inputs are two points even where they coincide, and rows of two sets are always two points.
    For noise of the observations use the ``obs_scale`` of the model.

    Args:
        scale: standard deviation. Default: half-normal with the spread of y, cut off below at its rounding error.
    """

    scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: priors.noise(y))

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        variance = jnp.asarray(self.scale, X1.dtype) ** 2
        return variance * jnp.eye(len(X1), dtype=X1.dtype) if X1 is X2 else jnp.zeros((len(X1), len(X2)), X1.dtype)

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(jnp.asarray(self.scale, X.dtype) ** 2, X.shape[:1])


_ARC = (kernels.arc_cosine_0, kernels.arc_cosine_1, kernels.arc_cosine_2)


class ArcCosine(Covariance):
    """Arc-cosine covariance: a wide layer of units ``max(0, w'x + b)^order`` with normal weights.

    ``scale² |u|^order |v|^order J_order(theta) / J_order(0)`` with ``u = (weight_scale x, bias_scale)`` and theta the
    angle of u and v.

    Args:
        order: 0 (steps), 1 (rectified linear) or 2; static.
        scale: standard deviation of the function where ``|u| = 1``. Default: half-normal with twice the spread of y.
        weight_scale: per unit of X, scalar or one per column. Default: the inverse of the standard deviation of each
            column, log-normal.
        bias_scale: without units. Default: 1, fixed.
        centre: the origin. Default: the mean of X, fixed.
        columns: the active columns of X, all by default.

    References:
        Cho and Saul (2009), Kernel methods for deep learning.
    """

    order: int = eqx.field(static=True, default=1)
    scale: Param = param(support=constraints.nonnegative, default=default_scale)
    weight_scale: Param = param(
        support=constraints.positive,
        default=lambda self, y, X: _log_normal(1.0 / _deviations(_active(self, y, X))),
    )
    bias_scale: Param = param(support=constraints.positive, default=1.0)
    centre: Param = param(default=lambda self, y, X: jnp.mean(_active(self, y, X), 0))
    columns: tuple[int, ...] | None = eqx.field(static=True, default=None, kw_only=True)

    def __check_init__(self) -> None:
        if self.order not in (0, 1, 2):
            raise ValueError(f"order is {self.order!r}; 0, 1 or 2 is wanted.")

    def _augmented(self, X: Array) -> tuple[Array, Array]:
        Z = kernels.columns(X)
        Z = (Z - jnp.asarray(self.centre, Z.dtype)) * jnp.asarray(self.weight_scale, Z.dtype)
        U = jnp.concatenate([Z, jnp.broadcast_to(jnp.asarray(self.bias_scale, Z.dtype), (len(Z), 1))], axis=1)
        return U, jnp.sqrt(jnp.sum(U**2, axis=1))

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        A, B = both(X1, X2, self.columns)
        (U, a), (V, b) = self._augmented(A), self._augmented(B)
        norms = a[:, None] * b[None, :]
        c = matmul(U, V.T) / norms
        # The value alone is cut to [-1, 1]: a clip would take the derivative with it where c rounds beyond.
        c = c - jax.lax.stop_gradient(c - jnp.clip(c, -1.0, 1.0))
        if A is B:
            c = jnp.where(jnp.eye(len(A), dtype=bool), 1.0, c)
        return self.scale**2 * norms**self.order * _ARC[self.order](c) / (math.pi, math.pi, 3 * math.pi)[self.order]

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return self.scale**2 * self._augmented(selected(X, self.columns))[1] ** (2 * self.order)


def _log_normal(middle: Array) -> dist.Distribution:
    law = dist.LogNormal(jnp.log(middle), 1.0)
    return law if middle.ndim == 0 else law.to_event(1)


def _codes(X: Array, column: int, levels: int) -> Array:
    """A column of whole numbers as indices; NaN-free inputs outside 0 .. levels - 1 are clipped."""
    return jnp.clip(jnp.round(kernels.columns(X)[:, column]).astype(int), 0, levels - 1)


class Categorical(Covariance):
    """Covariance of categories: ``scale²`` within a category, ``correlation scale²`` between two.

    Args:
        levels: number of categories; static.
        column: the column of X that holds the category as 0, 1, ..., levels - 1; static.
        correlation: between 0 (nothing in common) and 1 (no difference). Default: uniform.
        scale: standard deviation. Default: half-normal with twice the spread of y.
    """

    levels: int = eqx.field(static=True)
    column: int = eqx.field(static=True, default=0)
    correlation: Param = param(support=constraints.unit_interval, default=lambda self, y, X: dist.Uniform(0.0, 1.0))
    scale: Param = param(support=constraints.nonnegative, default=default_scale)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        a, b = _codes(X1, self.column, self.levels), _codes(X2, self.column, self.levels)
        return self.scale**2 * jnp.where(a[:, None] == b[None, :], 1.0, jnp.asarray(self.correlation, X1.dtype))

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.broadcast_to(jnp.asarray(self.scale, X.dtype) ** 2, X.shape[:1])


class Coregion(Covariance):
    """Intrinsic coregionalisation: ``B[i, j]`` with ``B = W W' + diag(v)`` between outputs i and j.

    Multiply it by a covariance of the other columns for many outputs at once, in long form: one row of X per value, one
    of its columns the number of the output. Every output may be seen at other places. A sum of such products is the
    linear model of coregionalisation::

        gp.Coregion(3, column=2) * pk.RBF(columns=(0, 1)) + gp.Coregion(3, column=2) * pk.Matern32(columns=(0, 1))

    Args:
        levels: number of outputs; static.
        column: the column of X that holds the output as 0, 1, ..., levels - 1; static.
        rank: columns of W; static.
        weights: W, (levels, rank). Default: standard normal, its first row positive (the sign of a column is free).
        variances: v, (levels,). Default: half-normal with scale 1.

    References:
        Goovaerts (1997), Geostatistics for natural resources evaluation. Alvarez, Rosasco and Lawrence (2012), Kernels
        for vector-valued functions.
    """

    levels: int = eqx.field(static=True)
    column: int = eqx.field(static=True, default=0)
    rank: int = eqx.field(static=True, default=1)
    weights: Param = param(
        default=lambda self, y, X: dist.Normal(0.0, 1.0).expand([self.levels, self.rank]).to_event(2)
    )
    variances: Param = param(
        support=constraints.nonnegative,
        default=lambda self, y, X: dist.HalfNormal(1.0).expand([self.levels]).to_event(1),
    )

    def covariance(self) -> Float[Array, "levels levels"]:
        """B, the covariance of the outputs."""
        W = jnp.reshape(jnp.asarray(self.weights), (self.levels, self.rank))
        return matmul(W, W.T) + jnp.diag(jnp.broadcast_to(jnp.asarray(self.variances, W.dtype), (self.levels,)))

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        a, b = _codes(X1, self.column, self.levels), _codes(X2, self.column, self.levels)
        return self.covariance()[a][:, b]

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return jnp.diagonal(self.covariance())[_codes(X, self.column, self.levels)]
