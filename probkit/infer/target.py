"""The target of every method: a log density over one flat unconstrained vector, for models and plain functions."""

import functools
import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float
from numpyro import handlers

from probkit.infer.subsample import WholePlates
from probkit.math.linalg import matmul
from probkit.model import Model, fixed_value, plain_priors, resolve, with_defaults

#: From so many multiplications in one factor on (100 rows), modes are sought by gradients.
DEAR = 100**3


class Evaluation(NamedTuple):
    """One evaluation of a target: values in constrained space and the three terms of the log density."""

    values: dict[str, Array]
    log_prior: Array
    log_jacobian: Array
    log_likelihood: Array


class Target(eqx.Module):
    """A model and its data, seen as ``log p(u)`` over an unconstrained vector u.

    Args:
        model: a :class:`probkit.Model` (its data are ``args = (y, X)``), or any NumPyro model function.
        args: positional arguments: arrays are traced, anything else is static.
        kwargs: keyword arguments, likewise.
    """

    model: Any
    args: tuple = ()
    kwargs: dict = eqx.field(default_factory=dict)

    @property
    def dtype(self) -> Any:
        """The float dtype of the data (the default float where no argument is a float array)."""
        leaves = [a for a in jax.tree_util.tree_leaves((self.args, self.kwargs)) if eqx.is_inexact_array(a)]
        return jnp.result_type(*leaves) if leaves else jnp.result_type(float)

    def resolved(self) -> "Target":
        """The same target with default priors made from the data, once, before any loop."""
        if not isinstance(self.model, Model):
            return self
        return Target(with_defaults(self.model, *self.args), self.args, self.kwargs)

    def execute(self, draw: Callable) -> tuple[Array, dict[str, Array]]:
        """Run the model with ``draw(name, prior, scale)`` at every latent site.

        Returns:
            The log-likelihood, and the deterministic sites (plain functions only).
        """
        if isinstance(self.model, Model):
            bound = resolve(self.model, draw)
            return bound.log_likelihood(*self.args), {}
        sites = self.trace(draw)
        terms = [jnp.sum(lp) for _, lp in observed_terms(sites)]
        extra = {name: site["value"] for name, site in sites.items() if site["type"] == "deterministic"}
        return sum(terms, jnp.zeros((), self.dtype)), extra

    def trace(self, draw: Callable) -> dict[str, dict]:
        """The NumPyro trace of a plain function with ``draw`` at every latent site; plates that subsample are whole."""

        def fill(site: dict) -> Any:
            if site["type"] != "sample" or site["is_observed"]:
                return None
            fixed = fixed_value(site["fn"])
            return draw(site["name"], site["fn"], site["scale"]) if fixed is None else fixed

        fn = handlers.substitute(WholePlates(self.model), substitute_fn=fill)
        return handlers.trace(fn).get_trace(*self.args, **self.kwargs)

    def evaluate(self, u: Float[Array, " D"]) -> Evaluation:
        """Values and the terms of the log density at u: prior, log-Jacobian of the transforms, likelihood."""
        values: dict[str, Array] = {}
        prior = jnp.zeros((), u.dtype)
        u, jacobian = self._placed(u)
        offset = 0

        def draw(name: str, law: dist.Distribution, scale: Any = None) -> Array:
            nonlocal prior, jacobian, offset
            to_support, shape = _transform(name, law)
            size = int(np.prod(shape))
            z = u[offset : offset + size].reshape(shape)
            offset += size
            x = to_support(z)
            prior = prior + jnp.sum(law.log_prob(x)) * (1.0 if scale is None else scale)
            jacobian = jacobian + jnp.sum(to_support.log_abs_det_jacobian(z, x))
            values[name] = x
            return x

        likelihood, extra = self.execute(draw)
        return Evaluation(values | extra, prior, jacobian, likelihood)

    def _placed(self, u: Float[Array, " D"]) -> tuple[Float[Array, " D"], Float[Array, ""]]:
        """u with its standard normal sites where they are given the others, and the log-Jacobian of that.

        With the precision ``L L'``: ``x = mean + L^-T z``. The mean and L depend on the other sites alone, so whatever
        a model says of them this is one to one, and the density right.
        """
        found = self._conditional(u)
        if found is None:
            return u, jnp.zeros((), u.dtype)
        index, shift, L = found
        x = solve_triangular(L, shift + u[index], lower=True, trans=1)
        return u.at[index].set(x), -jnp.sum(jnp.log(jnp.diagonal(L)))

    def _lifted(self, u: Float[Array, " D"]) -> Float[Array, " D"]:
        """The inverse of :meth:`_placed`."""
        found = self._conditional(u)
        if found is None:
            return u
        index, shift, L = found
        return u.at[index].set(matmul(L.T, u[index]) - shift)

    def _conditional(self, u: Float[Array, " D"]) -> tuple[np.ndarray, Array, Array] | None:
        """Where the sites stand that are normal given the others, L^-1 of their shift, and L; None without such."""
        if not isinstance(self.model, Model) or not (names := self.model.normal_sites()):
            return None
        laws: dict[str, dist.Distribution] = {}
        index: list[np.ndarray] = []
        offset = 0

        def draw(name: str, law: dist.Distribution) -> Array:
            nonlocal offset
            to_support, shape = _transform(name, law)
            place = np.arange(offset, offset + int(np.prod(shape)))
            offset += place.size
            if name not in names:
                return to_support(u[place].reshape(shape))
            laws[name] = law
            index.append(place)
            return to_support(jnp.zeros(shape, u.dtype))

        shift, precision = resolve(self.model, draw).conditional(*self.args, laws)
        L = jnp.linalg.cholesky(precision)
        return np.concatenate(index), solve_triangular(L, shift, lower=True), L

    def log_density(self, u: Float[Array, " D"], prior: bool = True, jacobian: bool = True) -> Float[Array, ""]:
        """``log p(y | u)``, with the prior and the log-Jacobian of the transforms on request."""
        e = self.evaluate(u)
        return e.log_likelihood + (e.log_prior if prior else 0.0) + (e.log_jacobian if jacobian else 0.0)

    def unconstrain(self, values: Callable[[str, dist.Distribution], Array]) -> Float[Array, " D"]:
        """The flat vector u at which each site has the value ``values(name, prior)``."""
        parts: list[Array] = []

        def draw(name: str, law: dist.Distribution, scale: Any = None) -> Array:
            to_support, _ = _transform(name, law)
            x = jnp.broadcast_to(values(name, law), law.shape())
            parts.append(jnp.reshape(to_support.inv(x), (-1,)).astype(self.dtype))
            return x

        self.execute(draw)
        return self._lifted(jnp.concatenate(parts)) if parts else jnp.zeros((0,), self.dtype)

    def prior_draw(self, key: Array, init: dict[str, Array] | None = None) -> Float[Array, " D"]:
        """u at a draw from the prior; ``init`` fixes sites, priors without a sampler draw uniform on (-2, 2) in u."""
        keys = iter(jax.random.split(key, max(1, len(self.sites()))))

        def value(name: str, law: dist.Distribution) -> Array:
            here = next(keys)
            if init is not None and name in init:
                return init[name]
            try:
                return law.sample(here)
            except (NotImplementedError, ImportError):
                # No sampler, or one that needs a package that is not here (truncated Student-t wants TFP).
                to_support, shape = _transform(name, law)
                return to_support(jax.random.uniform(here, shape, self.dtype, -2.0, 2.0))

        return self.unconstrain(value)

    def sites(self) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
        """Latent sites in order: name -> (constrained shape, unconstrained shape). Runs nothing; cached by shapes.

        Raises:
            TypeError: a latent site is discrete.
        """
        return dict(_abstract(self).sites)

    def factorises(self) -> bool:
        """Whether the density factorises matrices: then draws are better taken one at a time on a CPU.

        XLA:CPU runs batched factorisations and solves 4 to 10 times slower than the same ones in turn (100 x 100), and
        its thread pool has been seen to hang on them.
        """
        return _abstract(self).factorises

    def dear(self) -> bool:
        """Whether the density factorises large matrices: then a Hessian costs many times the gradient of each site.

        A product of two large matrices for every direction is what second derivatives of a factor take, where a
        gradient written by hand takes one inverse.
        """
        return _abstract(self).factor_work >= DEAR

    def each(self, fn: Callable, lanes: Any) -> Any:
        """``fn`` over a few lanes: together, or one after the other where batching does not pay."""
        if self.factorises() and jax.default_backend() == "cpu":
            return jax.lax.map(fn, lanes)
        return jax.vmap(fn)(lanes)

    def map(self, fn: Callable, *arrays: Any) -> Any:
        """``fn`` over the leading axis of arrays, in batches that fill the vector units and fit in memory."""
        sizes = [a.size for a in jax.tree_util.tree_leaves((self.args, self.kwargs)) if eqx.is_array(a)]
        largest = max([1, *sizes])
        if isinstance(self.model, Model):
            largest *= self.model.work(*self.args)
        cpu = jax.default_backend() == "cpu"
        if not self.factorises():
            # 2 MB of an array at a time stay in a CPU's caches; four times as much took a quarter longer.
            batch = max(16, (250_000 if cpu else 2_000_000) // largest)
        elif cpu:
            return jax.lax.map(lambda one: fn(*one), arrays)
        else:
            batch = max(4, 50_000_000 // largest**2)
        count = jax.tree_util.tree_leaves(arrays)[0].shape[0]
        if count <= batch:
            return jax.vmap(fn)(*arrays)
        return jax.lax.map(lambda one: fn(*one), arrays, batch_size=batch)

    def hierarchical(self) -> list[str]:
        """Names of the sites whose prior depends on other sites."""
        if isinstance(self.model, Model):
            known = _abstract(self)
            return [name for name, _ in known.sites if name not in known.plain]
        seen: list[dict[str, list]] = []
        for fill in (0.3, -0.7):
            laws: dict[str, list] = {}

            def draw(name: str, law: dist.Distribution, scale: Any = None, laws: dict = laws, x: float = fill) -> Array:
                to_support, shape = _transform(name, law)
                laws[name] = [np.asarray(leaf) for leaf in jax.tree_util.tree_leaves(law)]
                return to_support(jnp.full(shape, x, self.dtype))

            self.execute(draw)
            seen.append(laws)
        one, two = seen
        return [n for n in one if any(not np.array_equal(a, b) for a, b in zip(one[n], two[n], strict=True))]


class Lanes(eqx.Module):
    """One model and many series of one length: as many targets, none of which knows of another.

    Args:
        model: a :class:`probkit.Model`; places left at their default are filled lane by lane.
        y: the series, time first; of a multivariate model (time, lane, series).
        X: inputs that all lanes share, or None.
    """

    model: Any
    y: Float[Array, "time lane"]
    X: Any = None

    @property
    def count(self) -> int:
        """Number of lanes."""
        return self.y.shape[1]

    def lane(self, i: int) -> Target:
        """One lane as a target of its own."""
        return Target(self.model, (self.y[:, i], self.X))

    def take(self, index: Any) -> "Lanes":
        """Some of the lanes."""
        return Lanes(self.model, self.y[:, index], self.X)

    def targets(self) -> Target:
        """All lanes as one resolved target, an axis (lane,) in front of every array."""
        models = eqx.filter_vmap(lambda y: with_defaults(self.model, y, self.X), in_axes=1)(self.y)
        X = None if self.X is None else jnp.broadcast_to(self.X, (self.count, *self.X.shape))
        return Target(models, (jnp.moveaxis(self.y, 1, 0), X))

    def each(self, fn: Callable, lanes: Any, work: int = 1) -> Any:
        """``fn`` over lanes: in turn on a CPU, elsewhere in batches that fit ``work`` series a lane in memory."""
        if jax.default_backend() == "cpu":
            return jax.lax.map(fn, lanes)
        batch = max(1, 100_000_000 // (work * self.y.shape[0]))
        return jax.vmap(fn)(lanes) if batch >= self.count else jax.lax.map(fn, lanes, batch_size=batch)


class _Known(NamedTuple):
    """What a run on shapes alone tells: the sites, which priors stand in the model as they are, what it computes."""

    sites: tuple
    plain: frozenset[str]
    factorises: bool
    factor_work: int


def _abstract(target: Target) -> _Known:
    leaves, treedef = jax.tree_util.tree_flatten(target)
    shapes = tuple(jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x)) if eqx.is_array(x) else x for x in leaves)
    return _abstract_run(treedef, shapes)


@functools.lru_cache(maxsize=512)
def _abstract_run(treedef: Any, shapes: tuple) -> _Known:
    found: dict[str, tuple] = {}
    plain: set[str] = set()

    def draw(name: str, law: dist.Distribution, scale: Any = None) -> Array:
        to_support, shape = _transform(name, law)
        found[name] = (tuple(law.shape()), tuple(shape))
        return to_support(jnp.zeros(shape))

    def run(target: Target) -> Any:
        target = target.resolved()
        if isinstance(target.model, Model):
            plain.update(plain_priors(target.model))
        likelihood = target.execute(draw)[0]
        size = sum(int(np.prod(shape)) for _, shape in found.values())
        return likelihood, target._placed(jnp.zeros(size, target.dtype))

    jaxpr = eqx.filter_make_jaxpr(run)(jax.tree_util.tree_unflatten(treedef, shapes))[0]
    text = str(jaxpr)
    dense = any(name in text for name in ("cholesky", "triangular_solve", "lu[", "eigh", "svd", "qr["))
    return _Known(tuple(found.items()), frozenset(plain), dense, _factor_work(text))


def _factor_work(jaxpr: str) -> int:
    """Rows cubed, times the batch, of the largest Cholesky factor in a printed program."""
    shapes = re.findall(r"f(?:32|64)\[([\d,]+)\] = cholesky", jaxpr)
    sizes = [[int(size) for size in shape.split(",")] for shape in shapes]
    return max((math.prod(shape) * shape[-1] for shape in sizes), default=0)


def observed_terms(sites: dict[str, dict]) -> list[tuple[str, Array]]:
    """Log densities of the observed sites of a NumPyro trace, entry by entry, with plate scales applied."""
    out = []
    for name, site in sites.items():
        if site["type"] == "sample" and site["is_observed"]:
            terms = site["fn"].log_prob(site["value"])
            out.append((name, terms if site["scale"] is None else terms * site["scale"]))
    return out


def _transform(name: str, law: dist.Distribution) -> tuple[Any, tuple[int, ...]]:
    if law.is_discrete:
        raise TypeError(
            f"{name} is discrete ({type(law).__name__}); sum it out of the model, as methods here need a density."
        )
    to_support = numpyro.distributions.biject_to(law.support)
    return to_support, tuple(to_support.inverse_shape(law.shape()))
