"""Priors in a pytree: a model is a pytree, and a prior stands where a number would go.

Everything leans on one walk, :func:`resolve`: visit the leaves, replace every prior by ``draw(name, prior)``. With
``draw=numpyro.sample`` the walk is a NumPyro model; with a lookup it binds values; with a collector it lists sites.
"""

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import transforms

from probkit.pointwise import log_prob, observed, pointwise

Draw = Callable[..., Any]
#: What may stand in a field made by :func:`param`: a number or array (fixed), or a prior (unknown).
Param = Any


class Given(eqx.Module):
    """A place filled from the rest of the model; made by :func:`given`."""

    fn: Callable = eqx.field(static=True)
    hierarchy: bool = eqx.field(static=True, default=True)


class Default(eqx.Module):
    """A place left at its default; ``fn(module, y, X)`` makes the prior once the data are known."""

    fn: Callable = eqx.field(static=True)


def given(fn: Callable[[Any], Any], *, hierarchy: bool = True) -> Given:
    """Hold a place that depends on the rest of the model: a tie or a hierarchy.

    Args:
        fn: ``fn(model)`` with all plain priors of ``model`` already replaced by values (and earlier ``given`` places
            too). Returns an array (a tie) or a NumPyro distribution (a hierarchy).
        hierarchy: False says that the distribution depends on the rest through its support alone (a bound), so that
            maximum likelihood, which takes nothing but supports from priors, may use it.

    Returns:
        A marker to put in a field. The function is static: a new function object compiles again.

    Example:
        ``theta=pk.given(lambda m: dist.Normal(m.mu, m.tau).expand([8]).to_event(1))``
    """
    if not callable(fn):
        raise TypeError(f"given: fn is {type(fn).__name__}; a function of the model is wanted.")
    return Given(fn, hierarchy)


def param(*, dims: tuple[str, ...] = (), support: Any = None, default: Any = dataclasses.MISSING) -> Any:
    """Declare a field that holds a number, an array or a prior.

    Args:
        dims: names of the field's axes, used as ArviZ dimensions; coordinates come from the model.
        support: a NumPyro constraint that fixed numbers, and the support of any prior, must satisfy.
        default: a number, a distribution, a :func:`given`, or a function ``(module, y, X) -> prior`` that scales the
            prior to the data when the model is fitted; None where the field may be left out altogether. Without a
            default the field is required.

    Returns:
        A dataclass field for an ``equinox.Module``. A list of numbers put there becomes an array.
    """
    metadata = {"dims": tuple(dims), "support": support, "optional": default is None}
    kind: dict[str, Any] = {"metadata": metadata, "converter": _as_numbers}
    if default is dataclasses.MISSING:
        return eqx.field(**kind)
    scaled = callable(default) and not isinstance(default, dist.Distribution | Given)
    held = Default(default) if scaled else default
    return eqx.field(default_factory=lambda: held, **kind)


def _as_numbers(held: Any) -> Any:
    """A list of numbers (or of such lists), or integers, as a float array; anything else as it is."""

    def numbers(x: Any) -> bool:
        return isinstance(x, int | float | np.number) or sequence(x)

    def sequence(x: Any) -> bool:
        return isinstance(x, list | tuple) and len(x) > 0 and all(map(numbers, x))

    if sequence(held):
        return np.asarray(held, float)
    if isinstance(held, np.ndarray | jax.Array) and jnp.issubdtype(held.dtype, jnp.integer):
        return held.astype(float)
    return held


def is_place(leaf: Any) -> bool:
    """Whether a node of the pytree is something to be replaced: a prior, a ``given`` or a default."""
    return isinstance(leaf, dist.Distribution | Given | Default)


def _name(path: tuple) -> str:
    """The path, dotted; a field whose name begins with an underscore adds nothing (a sum holds its parts so)."""
    part = (str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key)))) for key in path)
    return ".".join(p for p in part if not p.startswith("_"))


def _follow(tree: Any, path: tuple) -> Any:
    for key in path:
        tree = getattr(tree, key.name) if hasattr(key, "name") else tree[getattr(key, "key", getattr(key, "idx", None))]
    return tree


def _places(model: Any) -> tuple[list[str], list[tuple], list[Any], Any]:
    """The leaves of a model with priors kept whole: names, paths, leaves and the treedef."""
    flat, treedef = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_place)
    paths = [path for path, _ in flat]
    names = [_name(path) for path in paths]
    seen: set[str] = set()
    for name, (_, leaf) in zip(names, flat, strict=True):
        if is_place(leaf) and name in seen:
            raise ValueError(
                f"{name}: two places of the model have this site name; rename a field or a dictionary key."
            )
        seen.add(name)
    return names, paths, [leaf for _, leaf in flat], treedef


def fixed_value(prior: dist.Distribution) -> Array | None:
    """The value of a Delta (also expanded, masked or reinterpreted), else None: a Delta is a number, not a site."""
    base = prior
    while isinstance(base, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        base = base.base_dist
    return jnp.broadcast_to(base.v, prior.shape()) if isinstance(base, dist.Delta) else None


def resolve(model: Any, draw: Draw) -> Any:
    """Replace every prior of a model by ``draw(name, prior)``; the mechanism everything leans on.

    Plain priors come first, in field order; places held by :func:`given` after them, in field order. Delta priors
    become their value without a draw.

    Args:
        model: any pytree with NumPyro distributions or ``given`` places among its leaves.
        draw: function of the site name (the path, dotted) and the distribution; returns the value.

    Returns:
        The same pytree with arrays where the priors were.

    Raises:
        ValueError: two places share a name, or a default was not resolved because no data were given.
    """
    names, _, leaves, treedef = _places(model)

    def value(name: str, prior: dist.Distribution) -> Any:
        fixed = fixed_value(prior)
        return draw(name, prior) if fixed is None else fixed

    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Default):
            raise ValueError(
                f"{names[i]} was left at its default, a prior scaled to the data, and no data were given. "
                f"Pass y, or give {names[i]} a prior or a number."
            )
        if isinstance(leaf, dist.Distribution):
            leaves[i] = value(names[i], leaf)
    for i, leaf in enumerate(leaves):
        if isinstance(leaf, Given):
            found = leaf.fn(jax.tree_util.tree_unflatten(treedef, leaves))
            leaves[i] = value(names[i], found) if isinstance(found, dist.Distribution) else found
    return jax.tree_util.tree_unflatten(treedef, leaves)


def bind(model: Any, values: dict[str, Any]) -> Any:
    """Put values in the places of priors: ``values`` maps site names to arrays."""
    return resolve(model, lambda name, prior: values[name])


def plain_priors(model: Any) -> list[str]:
    """Names of the priors that stand in a model as they are, or are made by a ``given`` that is no hierarchy."""
    names, _, leaves, _ = _places(model)
    plain = lambda leaf: isinstance(leaf, dist.Distribution) or (isinstance(leaf, Given) and not leaf.hierarchy)
    return [name for name, leaf in zip(names, leaves, strict=True) if plain(leaf)]


def mask(model: Any) -> Any:
    """The same pytree with True where a value is drawn (a prior or a ``given`` place) and False where it is fixed."""
    return jax.tree_util.tree_map(
        lambda leaf: is_place(leaf) and not (isinstance(leaf, dist.Distribution) and fixed_value(leaf) is not None),
        model,
        is_leaf=is_place,
    )


def strong(tree: Any, dtype: Any) -> Any:
    """Make every number of a pytree, those inside priors too, a strong float array of ``dtype``.

    NumPyro keeps Python floats as leaves; left so, every new prior value would compile again. Integer arrays outside
    priors (indices) and boolean arrays stay as they are.
    """

    def cast(x: Any, kind: Any = jnp.floating) -> Any:
        if isinstance(x, bool | np.bool_) or not isinstance(x, int | float | np.number | np.ndarray | jax.Array):
            return x
        return jnp.asarray(x, dtype) if isinstance(x, int | float) or jnp.issubdtype(x.dtype, kind) else x

    def leaf(x: Any) -> Any:
        if not isinstance(x, dist.Distribution):
            return cast(x)
        # NumPyro holds the 3 of StudentT(3, 0, 1) as an integer array; only a permutation has to stay one.
        inside = lambda x: isinstance(x, transforms.PermuteTransform)
        return jax.tree_util.tree_map(lambda v: cast(v, jnp.number), x, is_leaf=inside)

    return jax.tree_util.tree_map(leaf, tree, is_leaf=lambda x: isinstance(x, dist.Distribution))


def with_defaults(model: Any, y: Any, X: Any = None) -> Any:
    """Replace every place left at its default by the prior that its function makes from the data."""
    _, paths, leaves, treedef = _places(model)
    if y is None:
        return model
    new = [
        strong(leaf.fn(_follow(model, path[:-1]), *_shown(model, path, y, X)), y.dtype)
        if isinstance(leaf, Default)
        else leaf
        for path, leaf in zip(paths, leaves, strict=True)
    ]
    return jax.tree_util.tree_unflatten(treedef, new)


def _shown(model: Any, path: tuple, y: Any, X: Any) -> tuple[Any, Any]:
    """y and X as a model shows them to what stands in its fields.

    A link shows its scale of y (``shown_to(field, y)``, asked of the model); any module on the way may show what stands
    inside its fields other data (``shown_inside(field, y, X)``).
    """
    view = getattr(model, "shown_to", None)
    y = y if view is None else view(getattr(path[0], "name", ""), y)
    for i, step in enumerate(path[:-1]):
        inside = getattr(_follow(model, path[:i]), "shown_inside", None)
        y, X = (y, X) if inside is None else inside(getattr(step, "name", ""), y, X)
    return y, X


def law_of(model: "Model", X: Any, length: int) -> dist.Distribution:
    """The distribution of ``y`` under a concrete model, checked to be of shape (length,); a scalar law is repeated.

    Of a multivariate model (length, series).

    Raises:
        ValueError: the distribution has another shape.
    """
    law = model.distribution(X, length)
    if law.shape() == ():
        law = law.expand((length,))
    shape = law.shape()
    if len(shape) != 1 + model.multivariate or shape[0] != length:
        raise ValueError(
            f"{type(model).__name__} gives y a distribution of shape {shape}; "
            f"{(length, 'series') if model.multivariate else (length,)} is wanted. Does a "
            "field hold more numbers than it takes? Many models at once go through jax.vmap."
        )
    return law


class Model(eqx.Module):
    """A probabilistic model of one series or vector ``y``: an Equinox module with priors in its fields.

    A family gives one method, :meth:`distribution`; scoring, leave-one-out, prediction and the NumPyro model follow
    from it. Calling a model inside NumPyro *is* a NumPyro model.

    Attributes:
        integrates_states: whether latent states are integrated out of the likelihood, so that LOO terms are marginal
            over them and ``p_loo`` would count the parameters alone.
        input_axes: how many axes X may have, the first of them over rows.
        multivariate: whether y is (time, series), one observation of the model and not as many lanes.
    """

    integrates_states: ClassVar[bool] = False
    multivariate: ClassVar[bool] = False
    input_axes: ClassVar[tuple[int, ...]] = (1, 2)

    @abc.abstractmethod
    def distribution(self, X: Any, length: int) -> dist.Distribution:
        """The distribution of ``y``, shape (length,), given concrete parameters and inputs ``X`` (or None)."""

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse data that the model cannot take; called by ``fit`` at the border, on concrete arrays."""

    def notes(self, y: Any, X: Any) -> tuple[str, ...]:
        """What a report should tell of one concrete model and its data; ``fit`` asks at the best draw."""
        return ()

    def starts(self, y: Any, X: Any) -> tuple[dict[str, Any], ...]:
        """Places where a search for the mode should begin too: values of some sites, in constrained space.

        The other sites begin at the median of their prior.
        """
        return ()

    def normal_sites(self) -> tuple[str, ...]:
        """Sites that are normal given all others, exactly or nearly; methods then work on them whitened.

        They need priors whose unconstrained values are normal. See :meth:`conditional`.
        """
        return ()

    def conditional(self, y: Any, X: Any, laws: dict[str, dist.Distribution]) -> tuple[Array, Array]:
        """The law of the ``normal_sites``, unconstrained and joined, given all others: ``N(P^-1 b, P^-1)``.

        Asked of a model with numbers in its fields, the sites themselves at unconstrained 0.

        Args:
            y: the data.
            X: inputs.
            laws: priors of the sites, in order.

        Returns:
            b and P; any that are finite, P positive definite, leave the posterior what it is.
        """
        raise NotImplementedError

    def default_method(self, y: Any, X: Any) -> Any:
        """The method that ``fit`` takes where none is given; None is ``Auto()``."""
        return None

    def prepared(self, y: Any, X: Any) -> "Model":
        """The model with what must be known of the data before it is compiled; ``fit`` asks, on concrete arrays."""
        return self

    def check_method(self, method: Any) -> None:
        """Refuse a method that cannot answer for this model; called by ``fit`` at the border."""

    def work(self, y: Any, X: Any) -> int:
        """About how many numbers one likelihood holds for each of y: draws are batched by it."""
        return 1

    def log_likelihood(self, y: Float[Array, " n"], X: Any = None) -> Float[Array, ""]:
        """Joint log density of ``y`` under one concrete model; NaN entries of ``y`` are missing."""
        return jnp.sum(log_prob(law_of(self, X, y.shape[0]), y))

    def leave_one_out(self, y: Float[Array, " n"], X: Any = None) -> dist.Distribution:
        """The distribution of each entry given all the others, ``p(y_i | y_-i, parameters)``; batch shape (n,)."""
        return pointwise(law_of(self, X, y.shape[0]), y)

    def loo(self, y: Float[Array, " n"], X: Any = None) -> Float[Array, " n"]:
        """Terms ``log p(y_i | y_-i, parameters)``, (n,); NaN where y is missing or the term is improper."""
        terms = self.leave_one_out(y, X).log_prob(jnp.where(jnp.isnan(y), jnp.nanmax(y), y))
        return jnp.where(jnp.isnan(y), jnp.nan, terms)

    def predict(self, y: Float[Array, " n"], X: Any = None, X_new: Any = None) -> dist.Distribution:
        """A fresh observation at each observed place (or at ``X_new``), given ``y`` and the parameters."""
        law = law_of(self, X, y.shape[0])
        if hasattr(law, "predict"):
            return law.predict(y, X_new)
        return law if X_new is None else law_of(self, X_new, len(X_new))

    def forecast(self, y: Float[Array, " n"], horizon: int, X: Any = None, X_new: Any = None) -> dist.Distribution:
        """The joint distribution of the next ``horizon`` observations, given ``y`` and the parameters."""
        law = law_of(self, X, y.shape[0])
        if not hasattr(law, "forecast"):
            raise TypeError(f"{type(self).__name__} has no time axis, so it cannot forecast; use predict(X_new).")
        return law.forecast(y, horizon, X_new)

    def __call__(self, y: Any = None, X: Any = None, *, length: int | None = None) -> Any:
        """The model as a NumPyro model: sample every prior, bind the values, sample (or score) ``y``.

        Args:
            y: the data, or None to draw it (then ``length`` or ``X`` tells its length).
            X: inputs, where the family takes them.
            length: the length of ``y`` when it is drawn.

        Returns:
            The value of the site ``"y"``.
        """
        if y is None and X is None and length is None:
            raise ValueError(f"{type(self).__name__}: y and X are None; pass length to draw y.")
        y = None if y is None else jnp.asarray(y)
        dtype = y.dtype if y is not None and jnp.issubdtype(y.dtype, jnp.floating) else jnp.result_type(float)
        y = None if y is None else y.astype(dtype)
        bound = resolve(with_defaults(strong(self, dtype), y, X), numpyro.sample)
        size = y.shape[0] if y is not None else length if length is not None else len(X)
        law = law_of(bound, X, size)
        if y is None:
            return numpyro.sample("y", law)
        law, y = observed(law, y)
        return numpyro.sample("y", law, obs=y)
