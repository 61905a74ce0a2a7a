"""Structural time series: what parts and sums have in common. The parts are in `probkit.ssm.parts`."""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.model import Default, Model, Param, param
from probkit.ssm import components
from probkit.ssm.distribution import LinearGaussian
from probkit.ssm.statespace import Start, known_start
from probkit.ssm.structural_distribution import StructuralDistribution


class Additive(Model):
    """Abstract: a sum of parts observed with noise. Parts and sums add up by `+`."""

    integrates_states: ClassVar[bool] = True

    @abc.abstractmethod
    def parts(self) -> dict[str, "Component"]:
        """The parts by name."""

    def __add__(self, other: "Additive") -> "Structural":
        """The sum, with one `obs_scale`: that which either was given, else the default."""
        if not isinstance(other, Additive):
            return NotImplemented
        given = [held for one in (self, other) if not isinstance(held := _obs_scale(one), Default)]
        if len(given) > 1:
            raise ValueError("Both terms were given an obs_scale; a sum has one. Leave it out of one of them.")
        held = dict(self.parts())
        for name, part in other.parts().items():
            held[_unused(name, held)] = part
        levels = [name for name, part in held.items() if part.has_level]
        if len(levels) > 1:
            raise ValueError(f"The parts {levels} each hold a level; a sum has at most one.")
        return Structural({name: _silent(part) for name, part in held.items()}, *given)

    def starts(self, y: Any, X: Any) -> tuple[dict[str, Any], ...]:
        """Where a search for the mode should begin too: places that parts know of, the first of each together."""
        found = places(self.parts(), y)
        if not isinstance(self, Component):
            return found
        return tuple({site.removeprefix(f"{self.name}."): value for site, value in one.items()} for one in found)

    def distribution(self, X: Any, length: int) -> dist.Distribution:
        """The distribution of y given the parameters of all parts."""
        return StructuralDistribution(self.structure(X, length), length)

    def structure(self, X: Any, length: int, fitted: int | None = None) -> components.Structure:
        """The parts put together for the times 0 .. length - 1, of which the first `fitted` are data."""
        return components.assemble(
            list(self.blocks(X, length, fitted).values()), jnp.square(_obs_scale(self)), _float_dtype(self, X)
        )

    def blocks(self, X: Any, length: int, fitted: int | None = None) -> dict[str, components.Block]:
        """The block of states of every part."""
        takers = [name for name, part in self.parts().items() if part.takes_X]
        if X is not None and not takers:
            raise TypeError(f"{type(self).__name__} takes no X; add pk.Regression() for inputs.")
        if X is None and takers:
            raise TypeError(f"{takers[0]} needs inputs: pass X, (time,) or (time, features).")
        X = X[:, None] if X is not None and X.ndim == 1 else X
        times, seen = np.arange(length), length if fitted is None else fitted
        return {name: part.block(X, times, seen) for name, part in self.parts().items()}

    def forecast(self, y: Float[Array, " n"], horizon: int, X: Any = None, X_new: Any = None) -> dist.Distribution:
        """The joint distribution of the next ``horizon`` observations, given ``y`` and the parameters."""
        n = y.shape[0]
        law = StructuralDistribution(self.structure(X, n), n)
        return law.forecast(y, horizon, future=future_of(self, n, horizon, X, X_new))

    def decompose(
        self, y: Float[Array, " n"], X: Any, key: Array, law: Any = None
    ) -> dict[str, tuple[Array, Array, Array]]:
        """What every part adds to y, and its inner states, given y: mean, standard deviation and one joint draw.

        ``law`` is the law of y where it is not that of the sum with normal noise.
        """
        n, blocks = y.shape[0], self.blocks(X, y.shape[0])
        law = StructuralDistribution(self.structure(X, n), n) if law is None else law
        m, at = law.structure.q.shape[0], 0
        z = jnp.broadcast_to(law.structure.z, (n, m))
        rows: dict[str, Array] = {"signal": z}
        offsets: dict[str, Any] = {"signal": law.structure.d}
        for name, part in self.parts().items():
            block = blocks[name]
            size = len(block.flat)
            forms = {name: block.z} | {f"{name}.{inner}": z for inner, z in part.inner(block).items()}
            for label, z in forms.items():
                z = jnp.broadcast_to(jnp.asarray(z, law.structure.q.dtype), (n, size))
                rows[label] = jnp.pad(z, ((0, 0), (at, m - at - size)))
                offsets[label] = block.d if label == name else 0.0
            at += size
        stacked = jnp.stack(list(rows.values()), axis=1)
        mean, variance, draw = law.signals(key, y, stacked)
        return {
            label: (mean[:, i] + offsets[label], jnp.sqrt(variance[:, i]), draw[:, i] + offsets[label])
            for i, label in enumerate(rows)
        }

    def replicate(self, y: Float[Array, " n"], X: Any, X_new: Any, key: Array) -> Float[Array, " n"]:
        """A new series over the same times: the first state drawn given y, all that follows anew, inputs `X_new`."""
        n, (k_start, k_path) = y.shape[0], jax.random.split(key)
        start = self.first_state(y, X, X_new, k_start, StructuralDistribution(self.structure(X, n), n))
        return LinearGaussian(self.structure(X_new, n).matrices(), start, n).sample(k_path)

    def first_state(self, y: Float[Array, " n"], X: Any, X_new: Any, key: Array, law: Any) -> Start:
        """A draw of the first state given y under `law`, as a known start for a series with inputs `X_new`."""
        n, m = y.shape[0], law.structure.q.shape[0]
        rows = jnp.zeros((n, m, m), law.structure.q.dtype).at[0].set(jnp.eye(m, dtype=law.structure.q.dtype))
        state = law.signals(key, y, rows).draw[0]

        def sizes(X: Any) -> Array:
            held = self.blocks(X, n).values()
            return jnp.concatenate([jnp.broadcast_to(jnp.asarray(b.size), (len(b.flat),)) for b in held])

        return known_start(state * sizes(X_new) / sizes(X), jnp.zeros((m, m), state.dtype))

    def impute(self, y: Float[Array, " n"], X: Any, key: Array) -> Float[Array, " n"]:
        """y with one joint draw of what is missing."""
        law = StructuralDistribution(self.structure(X, y.shape[0]), y.shape[0])
        s = law.structure
        k_signal, k_noise = jax.random.split(key)
        z = jnp.broadcast_to(s.z, (y.shape[0], s.q.shape[0]))[:, None, :]
        signal = law.signals(k_signal, y, z).draw[:, 0] + s.d
        noise = jnp.sqrt(s.h) * jax.random.normal(k_noise, y.shape, y.dtype)
        return jnp.where(jnp.isnan(y), signal + noise, y)


def future_of(model: Additive, n: int, horizon: int, X: Any, X_new: Any) -> components.Structure:
    """The parts put together for the `horizon` times that follow the n of the data."""
    both = None if X is None else jnp.concatenate([X, X_new])
    whole = model.structure(both, n + horizon, n)
    later = lambda x: x if x is None or x.ndim < 1 else x[n:]
    return eqx.tree_at(
        lambda s: (s.z, s.g, s.d),
        whole,
        (whole.z[n:] if whole.z.ndim == 2 else whole.z, later(whole.g), later(whole.d)),
        is_leaf=lambda x: x is None,
    )


def places(parts: Mapping[str, "Component"], y: Any) -> tuple[dict[str, Any], ...]:
    """Where a search for the mode should begin too: places that parts know of, the first of each together."""
    known = {name: part.starts_of(y) for name, part in parts.items()}
    count = max(map(len, known.values()), default=0)
    return tuple(
        {
            f"{name}.{field}": value
            for name, found in known.items()
            for field, value in (found[i] if i < len(found) else {}).items()
        }
        for i in range(count)
    )


def quiet(model: Additive) -> dict[str, "Component"]:
    """The parts by name, each without noise of its own."""
    return {name: _silent(part) for name, part in model.parts().items()}


def _silent(part: "Component") -> "Component":
    return eqx.tree_at(_obs_scale, part, 0.0, is_leaf=_is_leaf)


def _obs_scale(part: Any) -> Any:
    return part.obs_scale


def _is_leaf(x: Any) -> bool:
    return isinstance(x, Default | dist.Distribution)


def _unused(name: str, held: Mapping) -> str:
    """The name, or with a number behind it where it is taken."""
    return name if name not in held else next(n for i in range(2, 10**6) if (n := f"{name}_{i}") not in held)


def _float_dtype(model: Any, X: Any) -> Any:
    leaves = [x for x in jax.tree_util.tree_leaves((model, X)) if isinstance(x, jax.Array)]
    return jnp.result_type(float) if not leaves else jnp.result_type(*leaves)


class Component(Additive):
    """Abstract: one part, which is a model by itself too.

    Attributes:
        has_level: whether its first state is a flat level.
        takes_X: whether it needs inputs.
        scales: its fields that hold standard deviations of disturbances; variances are linear in their squares.
    """

    has_level: ClassVar[bool] = False
    takes_X: ClassVar[bool] = False
    scales: ClassVar[tuple[str, ...]] = ()

    @property
    @abc.abstractmethod
    def name(self) -> str:
        """The name it has in a sum."""

    @abc.abstractmethod
    def block(self, X: Any, times: np.ndarray, fitted: int) -> components.Block:
        """Its states; `fitted` of the times are data, the others to come."""

    def parts(self) -> dict[str, "Component"]:
        return {self.name: self}

    def starts_of(self, y: Any) -> list[dict[str, Any]]:
        """Values of its fields at which a search for the mode should begin too; of y (time, series) for all series.

        Those of `scales` then have one value for each series.
        """
        return []

    def inner(self, block: components.Block) -> dict[str, Any]:
        """Linear forms of its states that a user may want beside what it adds to y, each (m,) or (time, m)."""
        return {}


class Structural(Additive):
    """A sum of parts, made by `+`: ``pk.LocalLinearTrend() + pk.Seasonal(12)``.

    Sites are named after the parts, ``trend.slope_scale`` or ``seasonal_12.scale``; ``model.trend`` is the part.

    Args:
        _parts: the parts by name; their own `obs_scale` is not used.
        obs_scale: standard deviation of the observation noise, in the units of y. Default: half-normal with the spread
            of y as its scale, cut off below at the rounding error of y.
    """

    _parts: dict[str, Component]
    obs_scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: priors.noise(y))

    def parts(self) -> dict[str, Component]:
        return self._parts

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._parts:
            return self._parts[name]
        raise AttributeError(f"{type(self).__name__} has no part or field {name!r}.")
