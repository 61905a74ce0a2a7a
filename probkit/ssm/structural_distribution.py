r"""A sum of structural parts as a NumPyro distribution over whole series."""

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jax.typing import ArrayLike
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit.ssm import structured, structured_passes, structured_smoother
from probkit.ssm.components import Structure
from probkit.ssm.distribution import LinearGaussian
from probkit.ssm.recursions import flat_forms
from probkit.ssm.statespace import Start


class StructuralDistribution(dist.Distribution):
    r"""A scalar series as a sum of parts and noise, $y_t = z_t'\alpha_t + d_t + \varepsilon_t$ (`ssm.components`).

    y may have batch axes in front; batches of models are `jax.vmap` over this class.

    Args:
        structure: the parts put together, from `components.assemble`.
        length: number of times.
    """

    arg_constraints: dict[str, Any] = {}
    support = constraints.real_vector
    normal_marginals = True
    pytree_data_fields = ("structure",)
    pytree_aux_fields = ("length",)

    def __init__(self, structure: Structure, length: int, *, validate_args: bool | None = None):
        if length < 1:
            raise ValueError(f"length is {length}; a series has at least one time.")
        self.structure, self.length = structure, length
        super().__init__((), (length,), validate_args=validate_args)

    @property
    def diffuse_states(self) -> int:
        """How many states start diffuse: each takes one observation and a constant out of information criteria."""
        return len(self.structure.flat)

    def dense(self) -> LinearGaussian:
        """The same law by its matrices."""
        return LinearGaussian(self.structure.matrices(), self.structure.start(), self.length)

    @property
    def mean(self) -> Float[Array, " time"]:
        """Mean of y before any is seen, flat states taken at 0."""
        return self.dense().mean

    @property
    def variance(self) -> Float[Array, " time"]:
        """Variance of y before any is seen; infinite where it sees a flat state."""
        return self.dense().variance

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of y, shape `sample_shape + (time,)`. Flat states begin at 0."""
        return self.dense().sample(key, sample_shape)

    def log_prob(self, value: Float[Array, "*batch time"], intermediates: None = None) -> Float[Array, "*batch"]:
        """Joint log density of y (`structured.log_likelihood`); NaN in y is missing. In units of the range of y.

        Args:
            value: y, shape (..., time).
            intermediates: not used; part of NumPyro's signature.
        """

        def one(y):
            plain, s, _, unit = in_units(y, self.structure)
            spent = structured_passes.spend_flat(~jnp.isnan(y), s)
            scored = jnp.sum(~jnp.isnan(y) & (spent.size == 0))
            return structured.log_likelihood(plain, s) - scored * jnp.log(unit) + s.log_volume

        return self._each(one, value)

    def leave_one_out(self, y: Float[Array, "*batch time"]) -> dist.Normal:
        """The law of each y_t given all others, batch shape (..., time); its `log_prob(y)` are LOO terms.

        Where y is missing, the law of what was not seen; NaN where nothing else determines it.
        """

        def one(y):
            plain, s, origin, unit = in_units(y, self.structure)
            mean, variance = structured.leave_one_out(plain, s)
            return mean * unit + origin, variance * unit * unit

        mean, variance = self._each(one, y)
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False)

    def predict(self, y: Float[Array, "*batch time"], X_new: None = None) -> dist.Distribution:
        """Marginals of a fresh observation at each time of y, given y: the smoothed signal with its noise drawn anew.

        With m, V the mean and variance of y_t given all others: mean ``y - (H / V)(y - m)``, variance
        ``H (2 - H / V)``. Where y is missing, the law of what was not seen.

        Raises:
            ValueError: `X_new` is given.
        """
        if X_new is not None:
            raise ValueError("X_new was given: a series has no second observation at the same time. Use forecast.")
        law = self.leave_one_out(y)
        m, V, h = law.loc, law.variance, self.structure.h
        share = jnp.where(V > 0, h / V, 0.0)
        mean = jnp.where(jnp.isnan(y), m, y - jnp.where(share > 0, share * (y - m), 0.0))
        variance = jnp.where(jnp.isnan(y), V, h * (2.0 - share))
        return dist.Normal(mean, jnp.sqrt(variance), validate_args=False).to_event(1)

    def one_step(self, y: Float[Array, " time"]) -> dist.Normal:
        """The law of each y_t given those before it, batch shape (time,); NaN where it sees a state still flat."""
        plain, s, origin, unit = in_units(jnp.asarray(y, self.structure.q.dtype), self.structure)
        spent, s, *_ = structured_passes.settle(plain, s, keep=True)
        f, _ = structured_passes.run_forward(plain, s, spent, keep=True)
        z = jnp.broadcast_to(s.z, f.K.shape)
        mean = jnp.einsum("ti,ti->t", z, f.a) + s.d
        variance = jnp.einsum("ti,tij,tj->t", z, f.P, z) + s.h
        A = jnp.asarray(spent.A)
        flat = flat_forms(z[:, None, :], A, jnp.eye(A.shape[2], dtype=z.dtype))[:, 0]
        mean, scale = (jnp.where(flat, jnp.nan, x) for x in (mean * unit + origin, unit * jnp.sqrt(variance)))
        return dist.Normal(mean, scale, validate_args=False)

    def forecast(
        self, y: Float[Array, " time"], horizon: int, X_new: None = None, *, future: Structure | None = None
    ) -> "LinearGaussian":
        """The joint law of the next `horizon` observations given one y.

        Args:
            y: the observations; batches are `jax.vmap`.
            horizon: number of times.
            X_new: not used; inputs are part of `future`.
            future: the parts at the times to come.

        Raises:
            ValueError: a part depends on time and no `future` is given, or `X_new` is.
        """
        s = self.structure
        if X_new is not None:
            raise ValueError("X_new was given; inputs of the times to come are part of `future`.")
        if future is None and (s.z.ndim == 2 or s.g is not None or s.d.ndim):
            raise ValueError("A part of this model depends on time: pass forecast(..., future=) with its next values.")
        plain, scaled, origin, unit = in_units(jnp.asarray(y, s.q.dtype), s)
        spent, scaled, *_ = structured_passes.settle(plain, scaled)
        a, P, A = structured_passes.run_forward(plain, scaled, spent)[1]
        model = (s if future is None else future).matrices()
        model = model._replace(d=jnp.asarray(model.d) + origin)
        return LinearGaussian(model, Start(unit * a, unit * unit * P, A), horizon)

    def signals(
        self, key: Array, y: Float[Array, " time"], rows: Float[Array, "time c m"]
    ) -> structured_smoother.Forms:
        """Moments of linear forms of the states given y, and one joint draw (`structured_smoother.smooth_forms`)."""
        plain, s, origin, unit = in_units(jnp.asarray(y, self.structure.q.dtype), self.structure)
        mean, variance, draw = structured_smoother.smooth_forms(key, plain, s, rows)
        moved = origin * self._sees_level(rows)
        return structured_smoother.Forms(mean * unit + moved, variance * unit * unit, draw * unit + moved)

    def _sees_level(self, rows: Array) -> Array:
        return jnp.zeros(rows.shape[:2]) if self.structure.level is None else rows[..., self.structure.level]

    def _each(self, function: Callable[..., Any], y: ArrayLike) -> Any:
        """Applies a function of y to every series of the batch."""
        y = jnp.asarray(y, self.structure.q.dtype)
        if y.shape[-1:] != self.event_shape:
            raise ValueError(f"y has shape {y.shape}; its last axis must have length {self.length}, the `length`.")
        if y.ndim == 1:
            return function(y)
        result = jax.vmap(function)(y.reshape(-1, self.length))
        return jax.tree.map(lambda x: x.reshape(*y.shape[:-1], *x.shape[1:]), result)


def in_units(y: Float[Array, " time"], s: Structure) -> tuple[Array, Structure, Array, Array]:
    """y and a model in units of the range of y, from its first value where the model has a flat level.

    The squares of variances that derivatives hold then stay in range, and a large offset costs no digits.

    Returns:
        y, the model, the origin and the unit.
    """
    origin, unit = lax.stop_gradient(structured.origin_and_unit(y, s.level is not None))

    def per(x):
        return x / unit / unit

    scaled = eqx.tree_at(lambda s: (s.q, s.v, s.P, s.h, s.d), s, (per(s.q), per(s.v), per(s.P), per(s.h), s.d / unit))
    return (y - origin) / unit, scaled, origin, unit
