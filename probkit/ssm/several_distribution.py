r"""Several series that move together as a NumPyro distribution, and laws of correlations and of factor loadings."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax import lax
from jax.scipy.special import betaln
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import constraints, transforms

from probkit.ssm import kalman, smoother, structured, structured_passes
from probkit.ssm.components import Structure
from probkit.ssm.distribution import LinearGaussian, as_float
from probkit.ssm.statespace import Start, StateSpace, depends_on_time


class MultivariateSeries(dist.Distribution):
    """Several series as one linear Gaussian state space model, each worked out in its own units.

    Args:
        model: the matrices.
        start: law of the first state; each flat state belongs to one series.
        base: the flat states of one series, the same for all, from `components.assemble`.
        owners: the series whose units each state has; -1 for a state that has none, such as a factor.
        levels: the flat level of each series, which an origin may be taken out of; None where there is none.
        length: number of times.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_matrix
    normal_marginals = True
    pytree_data_fields = ("model", "start", "base")
    pytree_aux_fields = ("owners", "levels", "length")

    def __init__(
        self, model: StateSpace, start: Start, base: Structure, owners: tuple[int, ...],
        levels: tuple[int, ...] | None, length: int, *, validate_args: bool | None = None,
    ):  # fmt: skip
        if length < 1:
            raise ValueError(f"length is {length}; a series has at least one time.")
        self.model, self.start, self.base = model, start, base
        self.owners, self.levels, self.length = tuple(owners), levels, length
        super().__init__((), (length, jnp.shape(model.Z)[-2]), validate_args=validate_args)

    @property
    def diffuse_states(self) -> int:
        """How many states start diffuse: each takes one observation and a constant out of information criteria."""
        return jnp.shape(self.start.A)[-1]

    def dense(self) -> LinearGaussian:
        """The same law in the units of y."""
        return LinearGaussian(self.model, self.start, self.length)

    @property
    def mean(self) -> Float[Array, "time p"]:
        """Mean of y before any is seen, flat states taken at 0."""
        return self.dense().mean

    @property
    def variance(self) -> Float[Array, "time p"]:
        """Variance of y before any is seen; infinite where it sees a flat state."""
        return self.dense().variance

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of y, shape `sample_shape + (time, p)`. Flat states begin at 0."""
        return self.dense().sample(key, sample_shape)

    def log_prob(self, value: Float[Array, "*batch time p"], intermediates: None = None) -> Float[Array, "*batch"]:
        """Joint log density of the entries that are not NaN; constants as in `kalman.log_likelihood`.

        Args:
            value: y, shape (..., time, p).
            intermediates: not used; part of NumPyro's signature.
        """
        return self._each(self._log_prob, value)

    def _log_prob(self, y: Array) -> Array:
        units = self._units(y)
        seen = ~jnp.isnan(y)
        spent = jax.vmap(lambda seen: structured_passes.spend_flat(seen, self.base).size > 0, in_axes=1, out_axes=1)(
            seen
        )
        scored = jnp.sum(seen & ~spent, axis=0)
        value = kalman.log_likelihood(self._plain(y, units), *self._scaled(units))
        return value - jnp.sum(scored * jnp.log(units[1])) + y.shape[1] * self.base.log_volume

    def leave_one_out(self, y: Float[Array, "*batch time p"]) -> dist.Normal:
        """The law of each entry given all other entries, of its own time too, in the shape of y.

        Where y is missing, the law of what was not seen; NaN where nothing else determines it.
        """
        return dist.Normal(*self._moments(smoother.leave_one_out, y), validate_args=False)

    def predict(self, y: Float[Array, "*batch time p"], X_new: None = None) -> dist.Distribution:
        """Marginals of a fresh observation of the smoothed states at each time of y.

        Raises:
            ValueError: `X_new` is given.
        """
        if X_new is not None:
            raise ValueError("X_new was given: series have no second observation at the same time. Use forecast.")
        return dist.Normal(*self._moments(smoother.predict, y), validate_args=False).to_event(2)

    def forecast(
        self, y: Float[Array, "time p"], horizon: int, X_new: None = None, *, future: StateSpace | None = None
    ) -> LinearGaussian:
        """The joint law of the next `horizon` observations given one y.

        Args:
            y: the observations; batches are `jax.vmap`.
            horizon: number of times.
            X_new: not used; inputs are part of `future`.
            future: the matrices of the times to come.

        Raises:
            ValueError: a matrix depends on time and no `future` is given, or `X_new` is.
        """
        if X_new is not None:
            raise ValueError("X_new was given; inputs of the times to come are part of `future`.")
        if future is None and depends_on_time(self.model):
            raise ValueError(
                "A matrix of this model depends on time: pass forecast(..., future=) with its next values."
            )
        y = jnp.asarray(y, self._dtype)
        units = self._units(y)
        a, P, A = kalman.run_filter(self._plain(y, units), *self._scaled(units)).next
        size, shift = self._state_units(units)
        start = Start(size * jnp.asarray(a) + shift, jnp.outer(size, size) * P, size[:, None] * A)
        return LinearGaussian(self.model if future is None else future, start, horizon)

    def signals(self, key: Array, y: Float[Array, "time p"], rows: Float[Array, "time c m"]) -> smoother.Forms:
        """Moments of linear forms of the states given y, and one joint draw (`smoother.smooth_forms`)."""
        y = jnp.asarray(y, self._dtype)
        units = self._units(y)
        size, shift = self._state_units(units)
        found = smoother.smooth_forms(key, self._plain(y, units), *self._scaled(units), rows * size)
        moved = rows @ shift
        return smoother.Forms(found.mean + moved, found.variance, found.draw + moved)

    @property
    def _dtype(self) -> Any:
        return jnp.asarray(self.model.H).dtype

    def _units(self, y: Array) -> tuple[Array, Array]:
        """Origin and unit of every series."""
        found = jax.vmap(lambda y: structured.origin_and_unit(y, self.levels is not None), in_axes=1)(y)
        return lax.stop_gradient(found)

    def _state_units(self, units: tuple[Array, Array]) -> tuple[Array, Array]:
        """Unit and origin of every state."""
        owners = np.array(self.owners)
        size = jnp.where(owners < 0, 1, units[1][np.maximum(owners, 0)])
        shift = jnp.zeros_like(size)
        return size, shift if self.levels is None else shift.at[np.array(self.levels)].set(units[0])

    def _plain(self, y: Array, units: tuple[Array, Array]) -> Array:
        return (y - units[0]) / units[1]

    def _scaled(self, units: tuple[Array, Array]) -> tuple[StateSpace, Start]:
        """The model for y less its origin, over its unit."""
        Z, H, T, _, V, d, _ = self.model
        unit, (size, _) = units[1], self._state_units(units)
        both = size[:, None] * size
        Z = Z * size / unit[:, None]
        model = StateSpace(Z, H / (unit[:, None] * unit), T * size / size[:, None], None, V / both, d / unit)
        return model, Start(self.start.a / size, self.start.P / both, self.start.A)

    def _moments(self, function: Any, y: ArrayLike) -> tuple[Array, Array]:
        """Mean and standard deviation of what a function of the smoother tells of every entry."""

        def one(y: Array) -> tuple[Array, Array]:
            units = self._units(y)
            mean, variance = function(self._plain(y, units), *self._scaled(units))
            return mean * units[1] + units[0], jnp.sqrt(variance) * units[1]

        return self._each(one, y)

    def _each(self, function: Any, y: ArrayLike) -> Any:
        """Applies a function of y to every draw of the batch."""
        y = jnp.asarray(y, self._dtype)
        if y.shape[-2:] != self.event_shape:
            raise ValueError(f"y has shape {y.shape}; its last axes must be (time, series), {self.event_shape}.")
        if y.ndim == 2:
            return function(y)
        result = jax.vmap(function)(y.reshape(-1, *self.event_shape))
        return jax.tree.map(lambda x: x.reshape(*y.shape[:-2], *x.shape[1:]), result)


class Correlations(dist.Distribution):
    r"""The LKJ law of a correlation matrix, $p(R) \propto |R|^{\eta - 1}$, over its partial correlations.

    Of two series it is the law of their correlation. $z_{ij} = 2 b - 1$ with
    $b \sim \mathrm{Beta}(\eta + \tfrac{p - 1 - j}{2}, \cdot)$, $i > j$; in the order of `several.correlation_factor`.

    Args:
        size: p, the number of series.
        concentration: eta; 1 is uniform over matrices, more draws them towards independence.

    References:
        Lewandowski, Kurowicka and Joe (2009), Journal of Multivariate Analysis 100.
    """

    arg_constraints = {"concentration": constraints.positive}
    support = constraints.independent(constraints.interval(-1.0, 1.0), 1)
    pytree_data_fields = ("concentration",)
    pytree_aux_fields = ("size",)

    def __init__(self, size: int, concentration: ArrayLike = 2.0, *, validate_args: bool | None = None):
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise ValueError(f"size is {size!r}; a number of series, at least 2, is wanted.")
        self.size, self.concentration = size, as_float(concentration)
        super().__init__((), (size * (size - 1) // 2,), validate_args=validate_args)

    def _shape(self) -> Array:
        column = np.concatenate([np.arange(i) for i in range(self.size)])
        return self.concentration + jnp.asarray((self.size - 2 - column) / 2, self.concentration.dtype)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape pairs"]:
        """Draws of partial correlations."""
        b = self._shape()
        half = jax.random.beta(key, b, b, (*sample_shape, *self.event_shape))
        edge = 1 - jnp.finfo(half.dtype).eps
        return jnp.clip(2 * half - 1, -edge, edge)

    def log_prob(self, value: Float[Array, "*shape pairs"], intermediates: None = None) -> Float[Array, "*shape"]:
        """Log density of partial correlations."""
        b = self._shape()
        terms = (b - 1) * (jnp.log1p(value) + jnp.log1p(-value))
        constant = betaln(b, b) + (2 * b - 1) * jnp.log(jnp.asarray(2, b.dtype))
        return jnp.sum(terms - constant, axis=-1)


class _Leading(constraints.Constraint):
    """Free entries of loadings: the first of every column is positive."""

    event_dim = 1

    def __init__(self, first: tuple[int, ...] = (0,)):
        self.first = first
        super().__init__()

    def __call__(self, x: Array) -> Array:
        return jnp.all(x[..., np.array(self.first)] > 0, axis=-1)

    def feasible_like(self, prototype: Array) -> Array:
        """Ones."""
        return jnp.ones_like(prototype)

    def tree_flatten(self) -> tuple:
        return (), ((), {"first": self.first})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Leading) and other.first == self.first

    def __hash__(self) -> int:
        return hash(self.first)


class _LeadingTransform(transforms.Transform):
    """Exponentials of the entries that are to be positive."""

    domain = constraints.real_vector

    def __init__(self, first: tuple[int, ...]):
        self.first = first

    @property
    def codomain(self) -> Any:
        return _Leading(self.first)

    def _mask(self, x: Array) -> np.ndarray:
        return np.isin(np.arange(x.shape[-1]), self.first)

    def __call__(self, x: Array) -> Array:
        mask = self._mask(x)
        return jnp.where(mask, jnp.exp(jnp.where(mask, x, 0)), x)

    def _inverse(self, y: Array) -> Array:
        mask = self._mask(y)
        return jnp.where(mask, jnp.log(jnp.where(mask, y, 1)), y)

    def log_abs_det_jacobian(self, x: Array, y: Array, intermediates: None = None) -> Array:
        """The sum of the logarithms of the positive entries."""
        return jnp.sum(jnp.where(self._mask(x), x, 0), axis=-1)

    def tree_flatten(self) -> tuple:
        return (), ((), {"first": self.first})

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _LeadingTransform) and other.first == self.first

    def __hash__(self) -> int:
        return hash(self.first)


@transforms.biject_to.register(_Leading)
def _biject_to_leading(constraint: _Leading) -> _LeadingTransform:
    return _LeadingTransform(constraint.first)


class Loadings(dist.Distribution):
    """Factor loadings: independent normals, zero above the diagonal and positive on it, which fixes rotation and sign.

    Values are the free entries, column by column (`several.loading_matrix`); of one factor the loadings themselves.

    Args:
        scale: standard deviation of the loadings of each series, (series,).
        factors: how many columns, at most the number of series.

    References:
        Geweke and Zhou (1996), Measuring the pricing error of the arbitrage pricing theory.
    """

    arg_constraints = {"scale": constraints.independent(constraints.positive, 1)}
    pytree_data_fields = ("scale",)
    pytree_aux_fields = ("factors",)

    def __init__(self, scale: ArrayLike, factors: int = 1, *, validate_args: bool | None = None):
        self.scale, self.factors = as_float(scale), factors
        series = self.scale.shape[0]
        if not 1 <= factors <= series:
            raise ValueError(f"factors is {factors}; a whole number from 1 to {series}, the series, is wanted.")
        super().__init__((), (series * factors - factors * (factors - 1) // 2,), validate_args=validate_args)

    def _first(self) -> tuple[int, ...]:
        return leading(self.scale.shape[0], self.factors)

    @constraints.dependent_property(is_discrete=False, event_dim=1)
    def support(self) -> Any:
        """The first entry of every column is positive."""
        return _Leading(self._first())

    def _scales(self) -> Array:
        return jnp.concatenate([self.scale[j:] for j in range(self.factors)])

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*shape free"]:
        """Draws of the free entries."""
        x = self._scales() * jax.random.normal(key, (*sample_shape, *self.event_shape), self.scale.dtype)
        mask = np.isin(np.arange(x.shape[-1]), self._first())
        return jnp.where(mask, jnp.abs(x), x)

    def log_prob(self, value: Float[Array, "*shape free"], intermediates: None = None) -> Float[Array, "*shape"]:
        """Log density of the free entries."""
        terms = dist.Normal(0.0, self._scales()).log_prob(value)
        return jnp.sum(terms, axis=-1) + self.factors * jnp.log(jnp.asarray(2, self.scale.dtype))


def leading(series: int, factors: int) -> tuple[int, ...]:
    """The places of the first entries of every column among the free ones."""
    return tuple(sum(series - i for i in range(j)) for j in range(factors))
