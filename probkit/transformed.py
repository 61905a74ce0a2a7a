r"""Any model of one series on a transformed scale: z = log y, or Box and Cox's power of y.

$$z = \log y \qquad \text{or} \qquad z = (y^\lambda - 1) / \lambda, \qquad \log \frac{dz}{dy} = (\lambda - 1) \log y$$

(lambda = 0 is the logarithm). The log-Jacobian is in every density and in every leave-one-out term, so a model on the
log scale compares with one on the original scale.

References:
    Box, G. E. P. and Cox, D. R. (1964). An analysis of transformations. J. Royal Statistical Society B 26, 211-252.
"""

import dataclasses
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit.infer.auto import Auto
from probkit.model import Default, Given, Model, Param, is_place, param

#: Nodes and weights of the Gauss-Hermite rule for the mean of a transformed normal.
NODES, WEIGHTS = np.polynomial.hermite_e.hermegauss(32)


def forward(y: Array, power: Array) -> Array:
    """z of a positive y; where the power is 0, or as good as 0, the logarithm. NaN stays NaN, its derivative is 0."""
    missing = jnp.isnan(y)
    log = jnp.log(jnp.where(missing, 1, y))
    small = jnp.abs(power * log) < 1e-4
    x = jnp.where(small, 0, power)
    safe = jnp.where(small, 1, power)
    # Two terms of the series where the power is small: expm1(x) / x would lose its derivative at 0.
    found = jnp.where(small, log * (1 + 0.5 * power * log), jnp.expm1(x * log) / safe)
    return jnp.where(missing, jnp.nan, found)


def backward(z: Array, power: Array) -> Array:
    """y of a z; 0 below the least z of a positive power, infinite above the largest of a negative one."""
    near = jnp.abs(power * z) < 1e-4
    safe = jnp.where(near, 1, power)
    inside = jnp.where(near, 1, power * z) > -1
    log = jnp.log1p(jnp.where(inside & ~near, power * z, 0)) / safe
    y = jnp.exp(jnp.where(near, z * (1 - 0.5 * power * z), log))
    return jnp.where(inside, y, jnp.where(power > 0, 0.0, jnp.inf))


@dataclasses.dataclass(frozen=True)
class _OnScale:
    """A default of the inner model, made from transformed data; equal where its parts are, so nothing recompiles."""

    fn: Any
    power: float

    def __call__(self, module: Any, y: Any, X: Any) -> Any:
        return _inside(self.fn(module, forward(y, jnp.asarray(self.power, y.dtype)), X))


@dataclasses.dataclass(frozen=True)
class _OfInner:
    """A function of the inner model as one of the whole: what `given` places of the inner model lean on."""

    fn: Any

    def __call__(self, whole: Any) -> Any:
        return self.fn(whole.model)


def _inside(held: Any) -> Any:
    """A `given` place of the inner model, given the whole one; anything else as it is."""
    return dataclasses.replace(held, fn=_OfInner(held.fn)) if isinstance(held, Given) else held


class TransformedLaw(dist.Distribution):
    """The law of y where z has a given law; ``mean`` is exact where z is normal, ``median`` everywhere.

    Args:
        law: the law of z, of event or batch shape (n,).
        power: lambda.
    """

    support = constraints.positive
    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("law", "power")

    def __init__(self, law: dist.Distribution, power: Any, *, validate_args: bool | None = None):
        self.law, self.power = law, jnp.asarray(power)
        super().__init__(law.batch_shape, law.event_shape, validate_args=validate_args)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of y: draws of z, taken back."""
        return backward(self.law.sample(key, sample_shape), self.power)

    def log_prob(self, value: Array, intermediates: None = None) -> Array:
        """Log density of y: that of z and the log-Jacobian; NaN entries are missing and count nothing.

        Args:
            value: y, positive.
            intermediates: not used; part of NumPyro's signature.
        """
        jacobian = log_jacobian(value, self.power)
        if self.event_dim:
            jacobian = jnp.sum(jnp.where(jnp.isnan(value), 0, jacobian), axis=-1)
        return self.law.log_prob(forward(value, self.power)) + jacobian

    @property
    def mean(self) -> Array:
        """E[y] of each entry, by a Gauss-Hermite rule of 32 nodes over its normal z: the bias-adjusted mean.

        For a negative power, under which z has an end, the mean is infinite: read the median.
        """
        z = self.law.mean[..., None] + jnp.sqrt(self.law.variance)[..., None] * NODES.astype(self.law.mean.dtype)
        weights = (WEIGHTS / WEIGHTS.sum()).astype(z.dtype)
        return backward(z, self.power) @ weights

    @property
    def median(self) -> Array:
        """The median of each entry: that of z, taken back."""
        return backward(self.law.mean, self.power)


def log_jacobian(y: Array, power: Array) -> Array:
    """log dz/dy = (lambda - 1) log y; NaN stays NaN, its derivative is 0."""
    missing = jnp.isnan(y)
    return jnp.where(missing, jnp.nan, (power - 1) * jnp.log(jnp.where(missing, 1, y)))


class Transformed(Model):
    """A model of ``log y`` or of Box and Cox's power of y, scored and forecast in the units of y.

    Draws of forecasts are exact; their ``mean`` is that of the draws of y, so adjusted for the bias of taking a mean
    back, and ``quantile(0.5)`` is the median. Defaults of the inner model are scaled to the transformed data.

    Args:
        model: any model of one series.
        kind: ``"log"`` or ``"boxcox"``.
        power: lambda, for ``"boxcox"``: a number, or a prior; then the inner model's fields need priors of their own,
            since their defaults are scaled to the transformed data.

    Raises:
        TypeError: no model; a multivariate one; one with a method of its own (``gp.SVGP``).
        ValueError: another kind; a power for the log; a prior of the power beside defaults.

    Example:
        ``pk.fit(pk.Transformed(pk.ARIMA(0, 1, 1, seasonal=(0, 1, 1, 12)), "log"), air_passengers, key=key)``
    """

    model: Model
    kind: str = eqx.field(static=True)
    power: Param = param()

    def __init__(self, model: Model, kind: str = "log", power: Any = None):
        if not isinstance(model, Model):
            raise TypeError(f"model is {type(model).__name__}; a probkit model is wanted.")
        if model.multivariate:
            raise TypeError(
                f"model is {type(model).__name__}, of several series together; one of one series is wanted. Take the "
                "logarithm of y itself."
            )
        try:
            model.check_method(Auto())
        except TypeError as error:
            raise TypeError(
                f"model is {type(model).__name__}, which is fitted by a method of its own that knows of no other "
                "scale; fit it to the logarithm of y itself."
            ) from error
        if kind not in ("log", "boxcox"):
            raise ValueError(f"kind is {kind!r}; 'log' or 'boxcox' is wanted.")
        if kind == "log" and power not in (None, 0, 0.0):
            raise ValueError("power was given to the log, whose power is 0; use kind='boxcox'.")
        if kind == "boxcox" and power is None:
            raise ValueError("kind='boxcox' needs power=, a number such as 0.5 or a prior.")
        self.kind, self.power = kind, 0.0 if kind == "log" else power
        self.model = _on_scale(model, self.power)

    @property
    def integrates_states(self) -> bool:  # type: ignore[override]
        """As the inner model."""
        return self.model.integrates_states

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse data that have no logarithm.

        Raises:
            ValueError: a value that is not positive.
        """
        values = np.asarray(y)
        bad = np.flatnonzero(values <= 0)
        if bad.size:
            raise ValueError(
                f"y has {bad.size} values that are not positive (the first, {values.flat[bad[0]]}, at position "
                f"{bad[0]}); Transformed(..., {self.kind!r}) takes positive data: add a constant, or make them NaN."
            )
        self.model.check_data(self._shown(y), X)

    def prepared(self, y: Any, X: Any) -> "Transformed":
        """The same with the inner model prepared for z."""
        inner = self.model.prepared(self._shown(y), X)
        return self if inner is self.model else eqx.tree_at(lambda one: one.model, self, inner)

    def check_method(self, method: Any) -> None:
        """As the inner model."""
        self.model.check_method(method)

    def work(self, y: Any, X: Any) -> int:
        """As the inner model."""
        return self.model.work(self._shown(y), X)

    def notes(self, y: Any, X: Any) -> tuple[str, ...]:
        """Those of the inner model for z."""
        return self.model.notes(self.to_scale(y), X)

    def starts(self, y: Any, X: Any) -> tuple[dict[str, Any], ...]:
        """Those of the inner model for z; none where the power, and so z, is unknown."""
        if is_place(self.power):
            return ()
        return tuple(
            {f"model.{name}": value for name, value in one.items()} for one in self.model.starts(self.to_scale(y), X)
        )

    def normal_sites(self) -> tuple[str, ...]:
        """Those of the inner model."""
        return tuple(f"model.{name}" for name in self.model.normal_sites())

    def conditional(self, y: Any, X: Any, laws: dict[str, dist.Distribution]) -> tuple[Any, Any]:
        """That of the inner model, given z."""
        inner = {name.removeprefix("model."): law for name, law in laws.items()}
        return self.model.conditional(self.to_scale(y), X, inner)

    def to_scale(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """z of y; NaN where y is missing or not positive."""
        return forward(jnp.where(y > 0, y, jnp.nan), jnp.asarray(self.power, jnp.result_type(y)))

    def _shown(self, y: Float[Array, " n"]) -> Float[Array, " n"]:
        """z of y before the power is known: then log y."""
        known = self if not is_place(self.power) else eqx.tree_at(lambda one: one.power, self, 0.0, is_leaf=is_place)
        return known.to_scale(y)

    def distribution(self, X: Any, length: int) -> TransformedLaw:
        """The distribution of y: the inner model's, taken back."""
        return TransformedLaw(self.model.distribution(X, length), self.power)

    def log_likelihood(self, y: Float[Array, " n"], X: Any = None) -> Float[Array, ""]:
        """The inner model's log density of z and the log-Jacobian of what is observed."""
        seen = ~jnp.isnan(y)
        jacobian = jnp.where(seen, log_jacobian(jnp.where(seen, y, 1), self.power), 0)
        return self.model.log_likelihood(self.to_scale(y), X) + jnp.sum(jacobian)

    def leave_one_out(self, y: Float[Array, " n"], X: Any = None) -> TransformedLaw:
        """The law of each entry given all others, in the units of y."""
        return TransformedLaw(self.model.leave_one_out(self.to_scale(y), X), self.power)

    def predict(self, y: Float[Array, " n"], X: Any = None, X_new: Any = None) -> TransformedLaw:
        """A fresh observation at each place, in the units of y."""
        return TransformedLaw(self.model.predict(self.to_scale(y), X, X_new), self.power)

    def forecast(self, y: Float[Array, " n"], horizon: int, X: Any = None, X_new: Any = None) -> TransformedLaw:
        """The joint law of the next observations, in the units of y."""
        return TransformedLaw(self.model.forecast(self.to_scale(y), horizon, X, X_new), self.power)


def _on_scale(model: Model, power: Any) -> Model:
    """The inner model with its defaults made from transformed data."""

    def held(leaf: Any) -> Any:
        if not isinstance(leaf, Default):
            return _inside(leaf)
        if isinstance(power, dist.Distribution | Given):
            raise ValueError(
                "power is a prior, and a field of the inner model was left at its default, which is scaled to the "
                "transformed data; give the fields of the inner model priors, or power a number."
            )
        return Default(_OnScale(leaf.fn, float(power)))

    return jax.tree_util.tree_map(held, model, is_leaf=is_place)
