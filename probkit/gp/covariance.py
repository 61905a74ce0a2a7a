"""What a covariance is, and the algebra of covariances: sums, products, powers, warped inputs."""

import abc
import copy
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit.gp import markov
from probkit.gp.kernels import columns
from probkit.model import Default, Param, param


class Covariance(eqx.Module):
    """A covariance function: a pytree with priors in its fields.

    ``+`` adds, ``*`` multiplies, ``**`` raises to a whole power; a number, an array or a prior beside a covariance
    stands for a constant one of that variance. In a product the first factor carries the scale: the scales of the
    others, where left at their default, become 1.
    """

    @abc.abstractmethod
    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs, each (n,) or (n, D)."""

    @abc.abstractmethod
    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""

    def blocks(self) -> tuple[markov.Block, ...] | None:
        """This covariance on a line as independent Markov processes; None where it is not one, or not known to be."""
        return None

    def __add__(self, other: Any) -> "Covariance":
        return _joined(Sum, "+", self, other)

    def __radd__(self, other: Any) -> "Covariance":
        return _joined(Sum, "+", other, self)

    def __mul__(self, other: Any) -> "Covariance":
        if isinstance(other, Covariance):
            return _joined(Product, "*", *_one_scale(self, other))
        return _joined(Product, "*", self, other)

    def __rmul__(self, other: Any) -> "Covariance":
        return _joined(Product, "*", self, other)

    def __pow__(self, exponent: int) -> "Covariance":
        return Power(self, exponent)


class Sum(Covariance):
    """The sum of covariances, which is the covariance of a sum of independent functions.

    ``Sum(trend=RBF(), season=Periodic(1.0))`` names its parts; ``RBF() + Periodic(1.0)`` names them after their
    classes. Site names are ``kernel.parts.trend.lengthscale`` and so on.

    Args:
        **parts: two or more covariances by name.
    """

    parts: dict[str, Covariance]

    def __init__(self, **parts: Covariance):
        self.parts = _checked_parts("Sum", parts)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        found = [part(X1, X2) for part in self.parts.values()]
        return sum(found[1:], found[0])

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        found = [part.diagonal(X) for part in self.parts.values()]
        return sum(found[1:], found[0])

    def spectral_density(self, omega: Float[Array, "m D"]) -> Float[Array, " m"]:
        """The sum of the spectral densities of the parts."""
        found = []
        for name, part in self.parts.items():
            if not hasattr(part, "spectral_density"):
                raise TypeError(f"{name} is {type(part).__name__}, which has no spectral density.")
            found.append(part.spectral_density(omega))
        return sum(found[1:], found[0])

    def blocks(self) -> tuple[markov.Block, ...] | None:
        """Those of all parts."""
        found = [blocks_of(part) for part in self.parts.values()]
        return None if any(one is None for one in found) else tuple(block for one in found for block in one or ())


class Product(Covariance):
    """The entrywise product of covariances.

    Args:
        **parts: two or more covariances by name.
    """

    parts: dict[str, Covariance]

    def __init__(self, **parts: Covariance):
        self.parts = _checked_parts("Product", parts)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        first, *rest = (part(X1, X2) for part in self.parts.values())
        for one in rest:
            first = first * one
        return first

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        first, *rest = (part.diagonal(X) for part in self.parts.values())
        for one in rest:
            first = first * one
        return first


class Power(Covariance):
    """A covariance raised entrywise to a whole power.

    Args:
        kernel: the covariance.
        exponent: a whole number, at least 1.
    """

    kernel: Covariance
    exponent: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        if isinstance(self.exponent, bool) or not isinstance(self.exponent, int) or self.exponent < 1:
            raise ValueError(f"exponent is {self.exponent!r}; a whole number of at least 1 is wanted.")
        check_inside("Power", "kernel", self.kernel)

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        return self.kernel(X1, X2) ** self.exponent

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return self.kernel.diagonal(X) ** self.exponent


class Warped(Covariance):
    """A covariance of warped inputs, ``k(warp(x), warp(x'))``: a transform of the axes, or a network (a deep kernel).

    Lengthscales left at their default get a log-normal prior around the root of the number of ``columns``: the warp is
    taken to give outputs of the order of 1.

    Args:
        kernel: a covariance of the warped inputs.
        warp: any callable pytree, from X, (n,) or (n, D), to (n,) or (n, columns). Its numbers are fixed; priors in
            its fields (see :func:`learned`) are fitted.
        width: how many columns the warp gives; only for the default prior of the lengthscale.

    References:
        Snoek et al. (2014), Input warping for Bayesian optimization. Wilson et al. (2016), Deep kernel learning.
    """

    kernel: Covariance
    warp: Any

    def __init__(self, kernel: Covariance, warp: Any, width: int = 1):
        if not callable(warp):
            raise TypeError(f"warp is {type(warp).__name__}; a function or a callable pytree is wanted.")
        check_inside("Warped", "kernel", kernel)
        free = dist.LogNormal(0.5 * jnp.log(float(width)), 1.0)
        self.kernel = with_default(kernel, "lengthscale", free if width == 1 else free.expand([width]).to_event(1))
        self.warp = warp

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        Z = self.warp(X1)
        return self.kernel(Z, Z if X1 is X2 else self.warp(X2))

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        return self.kernel.diagonal(self.warp(X))


class ChangePoint(Covariance):
    """One covariance before a point of the input and another after it, with a smooth passage.

    ``k = (1 - w(x)) (1 - w(x')) before + w(x) w(x') after`` with ``w(x) = 1 / (1 + exp(-(x - at) / width))``.

    Args:
        before: covariance of the function that fades out.
        after: covariance of the function that fades in.
        at: the change point, in the units of X.
        width: how long the passage takes, in the units of X.
        column: the column of X that changes; 0 for a vector.

    References:
        Saatci, Turner and Rasmussen (2010), Gaussian process change point models.
    """

    before: Covariance
    after: Covariance
    at: Param = param()
    width: Param = param(support=constraints.positive)
    column: int = eqx.field(static=True, default=0)

    def __check_init__(self) -> None:
        check_inside("ChangePoint", "before", self.before)
        check_inside("ChangePoint", "after", self.after)

    def _weight(self, X: Array) -> Array:
        x = (columns(X)[:, self.column] - self.at) / self.width
        return 0.5 * (1.0 + jnp.tanh(0.5 * x))

    def __call__(self, X1: Float[Array, "n *D"], X2: Float[Array, "m *D"]) -> Float[Array, "n m"]:
        """Covariance between two sets of inputs."""
        a, b = self._weight(X1)[:, None], self._weight(X2)[None, :]
        return (1.0 - a) * (1.0 - b) * self.before(X1, X2) + a * b * self.after(X1, X2)

    def diagonal(self, X: Float[Array, "n *D"]) -> Float[Array, " n"]:
        """Variance at each input."""
        w = self._weight(X)
        return (1.0 - w) ** 2 * self.before.diagonal(X) + w**2 * self.after.diagonal(X)


def learned(network: Any, scale: float = 1.0) -> Any:
    """A network with normal priors where its weights were: sd ``scale / sqrt(inputs)`` on matrices, else ``scale``.

    Args:
        network: any pytree of arrays, such as an ``equinox.nn`` module.
        scale: standard deviation of the outputs of a layer for inputs of size 1.

    Returns:
        The same pytree with a NumPyro prior for every array of floats.
    """

    def prior(leaf: Any) -> Any:
        if not eqx.is_inexact_array(leaf):
            return leaf
        wide = scale / (leaf.shape[-1] ** 0.5 if leaf.ndim > 1 else 1.0)
        return dist.Normal(0.0, wide).expand(leaf.shape).to_event(leaf.ndim)

    return jax.tree_util.tree_map(prior, network)


def blocks_of(kernel: Any) -> tuple[markov.Block, ...] | None:
    """The Markov processes of a covariance; None for one that has none, or that is not of this library."""
    return kernel.blocks() if isinstance(kernel, Covariance) else None


def _checked_parts(kind: str, parts: dict[str, Any]) -> dict[str, Covariance]:
    if list(parts) == ["parts"] and isinstance(parts["parts"], dict):
        parts = parts["parts"]  # as files of models hold them: by field
    if len(parts) < 2:
        raise ValueError(f"{kind} has {len(parts)} parts; two or more are wanted, as in {kind}(trend=..., season=...).")
    for name, part in parts.items():
        if not callable(part) or not hasattr(part, "diagonal"):
            raise TypeError(f"{kind}: {name} is {type(part).__name__}; a covariance is wanted.")
        check_inside(kind, name, part)
    return parts


def check_inside(kind: str, name: str, part: Any) -> None:
    """Refuse, as a part of another covariance, one that can only stand outermost.

    Raises:
        TypeError: naming both.
    """
    if getattr(part, "outermost", False):
        raise TypeError(f"{kind}: {name} is {type(part).__name__}, which stands outermost: put the others inside it.")


def refused_part(kind: str, kernel: Any, refuse: Callable[[Any], bool]) -> Covariance | None:
    """The first part of a covariance that stands inside another and that ``refuse`` names, or None.

    Raises:
        TypeError: it is no covariance, or one that stands outermost.
    """
    if isinstance(kernel, type) or not callable(kernel) or not hasattr(kernel, "diagonal"):
        raise TypeError(f"kernel is {kernel!r}; a covariance is wanted.")
    check_inside(kind, "kernel", kernel)
    return next((part for part in jax.tree_util.tree_leaves(kernel, is_leaf=refuse) if refuse(part)), None)


def _joined(kind: Any, sign: str, *operands: Any) -> Any:
    """A sum or product in one level: parts of parts of the same kind are taken over, names made unique."""
    from probkit.gp.product_covariances import Constant

    parts: dict[str, Covariance] = {}
    for one in operands:
        if not isinstance(one, Covariance):
            if isinstance(one, str | bytes) or one is None or isinstance(one, type):
                raise TypeError(f"a covariance {sign} {one!r}: a covariance, a number or a prior is wanted.")
            one = Constant(variance=one)
        for name, part in one.parts.items() if isinstance(one, kind) else [(type(one).__name__.lower(), one)]:
            unique, count = name, 2
            while unique in parts:
                unique, count = f"{name}_{count}", count + 1
            parts[unique] = part
    return kind(**parts)


def _one_scale(left: Covariance, right: Covariance) -> tuple[Covariance, Covariance]:
    """Of two factors, one keeps its default scale."""
    if isinstance(right, Product) or (_scaled(right) and (hasattr(left, "scale") or isinstance(left, Product | Sum))):
        return left, with_default(right, "scale", 1.0)
    if _scaled(left) and isinstance(right, Sum):
        return with_default(left, "scale", 1.0), right
    return left, right


def _scaled(kernel: Any) -> bool:
    return isinstance(getattr(kernel, "scale", None), Default)


def with_default(kernel: Any, field: str, value: Any) -> Any:
    """A copy of a covariance in which a field left at its default, here or in its parts, holds ``value``."""
    if isinstance(kernel, Sum | Product):
        return type(kernel)(**{name: with_default(part, field, value) for name, part in kernel.parts.items()})
    if not isinstance(getattr(kernel, field, None), Default):
        return kernel
    new = copy.copy(kernel)
    object.__setattr__(new, field, value)  # before anyone else holds the copy
    return new
