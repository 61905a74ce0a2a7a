"""Gaussian processes on grids as a solver: exact, by the eigenvectors of the covariance along each axis."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Num

from probkit.gp import kernels, kronecker
from probkit.gp.covariance import ChangePoint, Power, Product, Sum
from probkit.gp.distribution import Process
from probkit.gp.product_covariances import Categorical, Constant, Coregion
from probkit.gp.stationary_covariances import RBF, Periodic, SpectralMixture
from probkit.math.linalg import matmul, safe_cholesky

#: The most points of a grid without an observation.
MISSING = 2000


class Grid(eqx.Module):
    """The solver for inputs on a grid, full or with points missing: exact, O(N sum of the axes' lengths).

    For covariances that are products along the columns of X: ``RBF`` (with a lengthscale a column), ``Periodic``, any
    covariance of one column (``Matern52(columns=(0,))``, sums of such), and products of these. Points without a row in
    X, and NaN in y, cost ``missing² N`` and memory for ``2 missing N`` numbers: meant for a few hundred, 2000 at most.

    Args:
        axes: the values along each column of X, in a tuple. Default: those that occur in X when the model is fitted.
        missing: the most points of the grid without an observation; static. Default: counted when the model is fitted.

    References:
        Saatci (2011), Scalable inference for structured Gaussian process models, chapter 5.
    """

    axes: tuple[Array, ...] | None = None
    missing: int | None = eqx.field(static=True, default=None)

    def prepared(self, y: Any, X: Any) -> "Grid":
        """The same with the axes and the number of missing points filled from data, y of shape (n,) or (n, lanes)."""
        values = np.asarray(kernels.columns(X))
        if self.axes is not None and len(self.axes) != values.shape[1]:
            raise ValueError(
                f"axes has {len(self.axes)} parts; X has {values.shape[1]} columns, one for each is wanted."
            )
        given = [()] * values.shape[1] if self.axes is None else self.axes
        axes = tuple(_distinct(np.r_[values[:, d], np.asarray(given[d], values.dtype)]) for d in range(len(given)))
        size = math.prod(map(len, axes))
        if size > max(100 * len(values), 10**6):
            raise ValueError(f"X has {len(values)} rows on a grid of {size} points, which is no grid; use gp.Exact().")
        cells = np.ravel_multi_index([_nearest(np, a, values[:, d])[0] for d, a in enumerate(axes)], [*map(len, axes)])
        if len(np.unique(cells)) < len(cells):
            raise ValueError(
                f"X has {len(cells) - len(np.unique(cells))} rows that repeat others; a grid holds each once."
            )
        count = size - int(np.min(np.sum(~np.isnan(np.asarray(y)), axis=0)))
        if count > MISSING:
            raise ValueError(
                f"{count} of {size} points of the grid have no observation; gp.Grid, whose cost grows with their "
                f"square, takes up to {MISSING}. Use gp.Vecchia() or gp.Sparse()."
            )
        if count * size > 4 * 10**8:
            raise ValueError(
                f"{count} of {size} points of the grid have no observation: too many for gp.Grid, which would hold "
                f"{count} x {size} numbers. Use gp.Exact() or gp.Vecchia()."
            )
        return dataclasses.replace(
            self,
            axes=tuple(map(jnp.asarray, axes)),
            missing=count if self.missing is None else max(self.missing, count),
        )

    def distribution(self, kernel: Any, X: Any, noise_scale: Any, loc: Any) -> "GridProcess":
        """The law of y."""
        if self.axes is None:
            raise ValueError(
                "the axes of gp.Grid are not known: fit the model to data, or pass axes=(first, second, ...)."
            )
        return GridProcess(kernel, X, noise_scale, loc, self.axes, self.missing or 0)

    def told(self, kernel: Any, X: Any) -> str:
        """What a report says of this solver."""
        shape = " x ".join(str(len(a)) for a in self.axes or ())
        gaps = f", {self.missing} of them without an observation" if self.missing else ""
        return f"Solved exactly on a grid of {shape} points{gaps}, gp.Grid."


def _distinct(values: np.ndarray) -> np.ndarray:
    """The values in increasing order; those that differ by a few roundings are one."""
    values = np.unique(values)
    near = 16 * np.finfo(values.dtype).eps * np.max(np.abs(values))
    return values[np.r_[True, np.diff(values) > near]]


def _nearest(xp: Any, axis: Any, x: Any) -> tuple[Any, Any]:
    """Index of the nearest value of a sorted axis, and whether it is the same to rounding."""
    after = xp.clip(xp.searchsorted(axis, x), 1, max(len(axis) - 1, 1)) if len(axis) > 1 else xp.zeros(len(x), int)
    before = xp.maximum(after - 1, 0)
    index = xp.where(xp.abs(axis[before] - x) <= xp.abs(axis[after] - x), before, after)
    return index, xp.abs(axis[index] - x) <= 16 * float(xp.finfo(axis.dtype).eps) * xp.max(xp.abs(axis))


def active_columns(kernel: Any, columns: int) -> set[int]:
    """The columns of X that a covariance looks at."""
    if isinstance(kernel, Sum | Product):
        return set().union(*(active_columns(part, columns) for part in kernel.parts.values()))
    if isinstance(kernel, Power):
        return active_columns(kernel.kernel, columns)
    if isinstance(kernel, ChangePoint):
        return {kernel.column} | active_columns(kernel.before, columns) | active_columns(kernel.after, columns)
    if isinstance(kernel, Constant):
        return set()
    if isinstance(kernel, Categorical | Coregion):
        return {kernel.column}
    chosen = getattr(kernel, "columns", None)
    return set(range(columns)) if chosen is None else set(chosen)


def axis_factors(kernel: Any, axes: tuple[Array, ...]) -> tuple[Array, ...]:
    """The covariance along each axis, whose Kronecker product is that of the grid.

    Raises:
        TypeError: the covariance is no product along the columns.
    """
    active = sorted(active_columns(kernel, len(axes)))
    if len(active) <= 1:
        here = active[0] if active else 0
        return tuple(
            _along(kernel, axes, d) if d == here else jnp.ones((len(a), len(a)), a.dtype) for d, a in enumerate(axes)
        )
    if isinstance(kernel, Product):
        found = [axis_factors(part, axes) for part in kernel.parts.values()]
        return tuple(_product(parts) for parts in zip(*found, strict=True))
    if isinstance(kernel, Power):
        return tuple(K**kernel.exponent for K in axis_factors(kernel.kernel, axes))
    if isinstance(kernel, RBF | Periodic) or (isinstance(kernel, SpectralMixture) and kernel.components == 1):
        field = "scales" if isinstance(kernel, SpectralMixture) else "scale"
        # Along an axis the other columns stand still, and their factors are 1; the scale belongs to the first.
        one = eqx.tree_at(lambda k: getattr(k, field), kernel, replace_fn=jnp.ones_like)
        return tuple(_along(kernel if d == active[0] else one, axes, d) for d in range(len(axes)))
    raise TypeError(
        f"{type(kernel).__name__} of the columns {tuple(active)} is no product along them; gp.Grid takes RBF, "
        "Periodic, covariances of one column each, such as Matern52(columns=(0,)), and products of these."
    )


def _product(parts: tuple[Array, ...]) -> Array:
    first, *rest = parts
    for one in rest:
        first = first * one
    return first


def _along(kernel: Any, axes: tuple[Array, ...], d: int) -> Array:
    """The covariance between the points of a line along one axis."""
    line = jnp.stack([a if e == d else jnp.broadcast_to(a[0], axes[d].shape) for e, a in enumerate(axes)], axis=1)
    return kernel(line, line)


class GridProcess(Process):
    """Noisy values of a process on a grid: the law of :class:`probkit.gp.GaussianProcess`, by Kronecker algebra.

    Args:
        kernel: a covariance that is a product along the columns.
        X: inputs, (n, D), each row a point of the grid, in any order; not all points need a row.
        noise_scale: standard deviation of the noise, a scalar.
        loc: the mean, a scalar or a callable pytree.
        axes: the values along each column, increasing.
        missing: the most points of the grid without an observation, those without a row included.

    Raises:
        TypeError: the covariance is no product along the columns.
        ValueError: an argument has the wrong shape.
    """

    pytree_data_fields: tuple[str, ...] = ("axes",)
    pytree_aux_fields = ("missing",)

    def __init__(
        self, kernel: Any, X: Any, noise_scale: Any, loc: Any, axes: Any, missing: int = 0, *, validate_args: Any = None
    ):
        self.axes, self.missing = tuple(jnp.asarray(a) for a in axes), missing
        super().__init__(kernel, X, noise_scale, loc, validate_args=validate_args)
        if self.noise_scale.ndim:
            raise ValueError(
                f"noise_scale has shape {self.noise_scale.shape}; on a grid the noise is the same everywhere."
            )
        if len(self.axes) != kernels.columns(self.X).shape[1]:
            raise ValueError(
                f"axes has {len(self.axes)} parts; X has shape {self.X.shape}, one for each column is wanted."
            )

    def _cells(self) -> tuple[Array, Array]:
        """Where on the grid each row stands, and whether all stand there, each alone."""
        X, shape = kernels.columns(self.X), tuple(map(len, self.axes))
        found = [_nearest(jnp, a.astype(X.dtype), X[:, d]) for d, a in enumerate(self.axes)]
        cells = jnp.ravel_multi_index([index for index, _ in found], shape, mode="clip")
        alone = jnp.max(jnp.zeros(math.prod(shape), int).at[cells].add(1)) == 1
        return cells, alone & jnp.all(jnp.stack([jnp.all(on) for _, on in found]))

    def _solve(self, r: Array) -> tuple[kronecker.Solution, tuple[Array, ...], Array]:
        factors = axis_factors(self.kernel, tuple(a.astype(self.X.dtype) for a in self.axes))
        shape = tuple(map(len, self.axes))
        cells, sound = self._cells()
        on_grid = jnp.full(math.prod(shape), jnp.nan, r.dtype).at[cells].set(r).reshape(shape)
        s = kronecker.infer(factors, self.noise_scale**2, on_grid, self.missing)
        # A row off the grid would count for another point: it must not pass for an answer.
        s = s._replace(
            log_density=jnp.where(sound, s.log_density, -jnp.inf),
            alpha=jnp.where(sound & jnp.isfinite(s.log_density), s.alpha, jnp.nan),
        )
        return s, factors, cells

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample n"]:
        """Draws of y from the prior, shape ``sample_shape + (n,)``."""
        factors = axis_factors(self.kernel, tuple(a.astype(self.X.dtype) for a in self.axes))
        Q, values = kronecker.spectrum_of(factors)
        cells, _ = self._cells()
        k_path, k_noise = jax.random.split(key)
        z = jax.random.normal(k_path, (*sample_shape, *map(len, self.axes)), self.X.dtype)
        scaled = jnp.sqrt(kronecker.outer(values)) * z
        one = lambda v: kronecker.apply(Q, v).ravel()[cells]
        f = jax.vmap(one)(scaled.reshape(-1, *map(len, self.axes))).reshape(*sample_shape, *self.event_shape)
        return self.mean + f + self.noise_scale * jax.random.normal(k_noise, f.shape, f.dtype)

    def log_prob(self, value: Num[ArrayLike, "*sample n"], intermediates: None = None) -> Float[Array, "*sample"]:
        """Log marginal likelihood of the observed entries of y; -inf where a row stands off the grid.

        Args:
            value: y, shape (..., n); NaN is missing.
            intermediates: not used; part of NumPyro's signature.
        """
        residual = self._observations(value) - self.mean
        each = jnp.vectorize(lambda r: self._solve(r)[0].log_density, signature="(n)->()")(residual)
        return jnp.where(jnp.any(jnp.isnan(self.mean)), -jnp.inf, each)

    def leave_one_out(self, y: Num[ArrayLike, " n"]) -> dist.Normal:
        """The law of each y_i given the parameters and all other observed entries, batch shape (n,)."""
        r = self._observations(y) - self.mean
        s, factors, cells = self._solve(r)
        noise = self.noise_scale**2
        precision = kronecker.inverse_diagonal(s, noise).ravel()[cells]
        signal = kronecker.apply(factors, s.alpha).ravel()[cells]
        rest = kronecker.variance(s, factors, noise).ravel()[cells] + noise
        missing = jnp.isnan(r)
        variance = jnp.where(missing, rest, 1.0 / jnp.where(missing, 1.0, precision))
        mean = jnp.where(missing, signal, r - s.alpha.ravel()[cells] * variance)
        return dist.Normal(self.mean + mean, jnp.sqrt(variance), validate_args=False)

    def representer(self, y: Num[ArrayLike, " n"]) -> Float[Array, " n"]:
        """``alpha = K^-1 (y - mean)``, 0 where y is missing: given y, f has mean ``mean(x) + k(x, X) alpha``."""
        s, _, cells = self._solve(self._observations(y) - self.mean)
        return s.alpha.ravel()[cells]

    def predict(self, y: Num[ArrayLike, " n"], X_new: Num[ArrayLike, "m *D"] | None = None) -> dist.Distribution:
        """The law of a fresh noisy observation at the training inputs (marginals) or at any new ones (joint), given y.

        Args:
            y: observations, shape (n,); NaN is missing.
            X_new: new inputs, (m,) or (m, D), on the grid or off it. None stands for the training inputs.
        """
        s, factors, cells = self._solve(self._observations(y) - self.mean)
        noise = self.noise_scale**2
        if X_new is None:
            mean = kronecker.apply(factors, s.alpha).ravel()[cells]
            variance = kronecker.variance(s, factors, noise).ravel()[cells] + noise
            return dist.Normal(self.mean + mean, jnp.sqrt(variance), validate_args=False).to_event(1)
        X_new = self._new_inputs(X_new)
        points = jnp.stack([g.ravel() for g in jnp.meshgrid(*self.axes, indexing="ij")], axis=1).astype(X_new.dtype)
        cross = self.kernel(X_new, points[:, 0] if X_new.ndim == 1 else points)
        shaped = cross.reshape(len(X_new), *map(len, self.axes))
        K_new = self.kernel(X_new, X_new) + self.fresh_noise * jnp.eye(len(X_new), dtype=X_new.dtype)
        L, _ = safe_cholesky(K_new - kronecker.explained(s, noise, shaped))
        mean = self.mean_at(X_new) + matmul(cross, s.alpha.ravel())
        return dist.MultivariateNormal(mean, scale_tril=L, validate_args=False)
