"""Functions drawn from the posterior of a Gaussian process, which evaluate anywhere: Matheron's rule."""

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Array, Float

from probkit import border
from probkit.gp.distribution import Process
from probkit.gp.features import random_features
from probkit.gp.large import HSGP, BasisProcess, LowRankProcess, Sparse, SparseProcess
from probkit.gp.model import GP
from probkit.gp.product_covariances import White
from probkit.infer.method import check_whole
from probkit.infer.target import Target
from probkit.math.linalg import matmul, safe_cholesky
from probkit.model import bind, law_of

#: Rows at which random features are held at once.
ROWS = 4096


class Functions(eqx.Module):
    """Draws of the latent function: ``functions(X)`` gives their values, (draws, m), without noise, in the units of y.

    The same functions at every call, so that values at other inputs belong together; differentiable in the inputs and
    free to use inside jit. ``functions[3]`` is one of them, ``functions[3](X)`` its values, (m,).

    Attributes:
        target: the model and the data.
        values: the parameters of each function by site.
        drawn: what was drawn for each function.
        places: inputs at which they were drawn exactly, or None for random features.
        count: how many random features.
    """

    target: Target
    values: dict[str, Array]
    drawn: dict[str, Array]
    places: Array | None
    count: int = eqx.field(static=True)

    def __len__(self) -> int:
        return self.drawn["key"].shape[0]

    def __getitem__(self, which: Any) -> "Functions":
        if not self.drawn["key"].ndim:
            raise TypeError("this is one function already; it has no further ones to choose from.")
        values, drawn = jax.tree_util.tree_map(lambda a: a[which], (self.values, self.drawn))
        return Functions(self.target, values, drawn, self.places, self.count)

    def __call__(self, X: Float[Array, "m *D"]) -> Float[Array, "*draws m"]:
        """Values of the functions at inputs, (m,) or (m, D)."""
        known = self.target.args[1]
        X = X if isinstance(X, jax.Array) else np.asarray(X)
        columns = () if known is None else known.shape[1:]
        if X.ndim != 1 + len(columns) or X.shape[1:] != columns:
            raise ValueError(f"X has shape {X.shape}; {('m', *columns)} is wanted, as the functions were fitted.")
        return _values(self, jnp.asarray(X, self.target.dtype))


def functions(posterior: Any, *, key: Array, draws: int = 100, features: int = 1024, places: Any = None) -> Functions:
    """Functions from the posterior of a Gaussian process, by Matheron's rule.

    Each is a function of the prior moved to the data, ``f(x) + k(x, X) (K + S)^-1 (y - f(X) - e)`` with
    ``e ~ N(0, S)``. The prior's f is a sum of random features, drawn anew for every function: over functions mean and
    covariance are those of the posterior exactly, and each function is Gaussian given its features. Near the data the
    update decides, not the features.

    Args:
        posterior: what ``pk.fit`` gave for a ``pk.GP``, solved exactly, on a line, by inducing points or by a basis.
        key: a new-style key.
        draws: how many functions; they are spread over the draws of the parameters.
        features: how many random features; more bring a single function closer to Gaussian.
        places: inputs, (m,) or (m, D), at which (and at the data) the functions are drawn exactly, by a Cholesky factor
            of ``n + m`` points; between them each is the smoothest function through its values. For any covariance,
            those without random features too. Not for ``gp.Sparse`` and ``gp.HSGP``.

    Returns:
        :class:`Functions`.

    Raises:
        TypeError: no posterior of a ``pk.GP``; a covariance without random features, or with white noise, which is no
            function (``obs_scale`` is the place of noise); a solver that has no functions, or none drawn at places.
        ValueError: places with other columns than the inputs.

    Example:
        One round of Thompson sampling: where a function of the posterior is highest, there look next. ::

            f = pk.gp.functions(posterior, key=key, draws=8)
            grid = jnp.linspace(0, 10, 500)
            next_x = grid[jnp.argmax(f(grid), axis=1)]                # eight proposals
            slope = jax.vmap(jax.grad(lambda x: f[0](x[None])[0]))(grid)    # of the first of them

    References:
        Wilson, Borovitskiy, Terenin, Mostowsky and Deisenroth (2020), Efficiently sampling functions from Gaussian
        process posteriors. Journel and Huijbregts (1978), Mining geostatistics, for Matheron's rule.
    """
    model = getattr(posterior, "model", None)
    if not isinstance(model, GP):
        raise TypeError(f"functions takes the posterior of a pk.GP; this is {type(model or posterior).__name__}.")
    if any(isinstance(part, White) for part in jax.tree_util.tree_leaves(model, is_leaf=_is_white)):
        raise TypeError("the covariance holds White, which is noise and no function; pass noise as obs_scale.")
    check_whole("draws", draws, 1)
    check_whole("features", features, 1)
    border.check_key(key, "functions")
    y, X = posterior.target.args
    axes = (1,) if X is None else (X.ndim,)
    places = border.as_inputs(places, None, y.dtype, "places", axes)
    _check_places(places, X, model.solver)
    flat = posterior._flat()
    total = int(np.prod(posterior._shape()))
    take = np.linspace(0, total - 1, draws).astype(int) if draws <= total else np.arange(draws) % total
    values = {name: jnp.asarray(v[take]) for name, v in flat.items()}
    count = features + features % 2
    target, drawn = _draws(posterior.target, values, jax.random.split(key, draws), places, count)
    return Functions(target, values, drawn, places, count)


def _check_places(places: Any, X: Any, solver: Any) -> None:
    if places is None:
        return
    if isinstance(solver, Sparse | HSGP):
        raise TypeError(
            f"places is for processes solved exactly; gp.{type(solver).__name__} draws its functions by features "
            "alone. For a covariance without random features fit with gp.Exact()."
        )
    columns = () if X is None else X.shape[1:]
    if places.shape[1:] != columns:
        raise ValueError(f"places has shape {places.shape}; {('m', *columns)} is wanted, as the inputs of the fit.")


def _is_white(part: Any) -> bool:
    return isinstance(part, White)


@eqx.filter_jit
def _draws(target: Target, values: dict, keys: Array, places: Any, count: int) -> tuple[Target, dict]:
    target = target.resolved()
    each = lambda v, key: _draw(_law(target, v), target.args[0], key, places, count)
    return target, target.map(each, values, keys)


@eqx.filter_jit
def _values(functions: Functions, X: Array) -> Array:
    one = lambda v, drawn: _at(_law(functions.target, v), drawn, X, functions.places, functions.count)
    if not functions.drawn["key"].ndim:
        return one(functions.values, functions.drawn)
    # A few at a time: each holds its features, or its covariances with the data, at all inputs.
    few = max(1, min(16, ROWS * 16 // max(X.shape[0], 1)))
    return jax.lax.map(lambda held: one(*held), (functions.values, functions.drawn), batch_size=few)


def _law(target: Target, values: dict) -> Process:
    y, X = target.args
    law: Any = law_of(bind(target.model, values), X, y.shape[0])
    return law


def _draw(law: Process, y: Array, key: Array, places: Any, count: int) -> dict[str, Array]:
    """What makes one function: the key of its prior part, and the weights of its update."""
    k_prior, k_noise, k_weights = jax.random.split(key, 3)
    drawn = {"key": k_prior}
    if isinstance(law, LowRankProcess):
        w, _, _ = law._weights(y)
        z = jax.random.normal(k_weights, w.whitened.shape, w.whitened.dtype)
        return drawn | {"weights": solve_triangular(w.factor, w.whitened + z, lower=True, trans=1)}
    e = jnp.sqrt(law.noise) * jax.random.normal(k_noise, law.event_shape, law.X.dtype)
    if places is None:
        return drawn | {"alpha": law.representer(y - _prior(law, k_prior, count, law.X) - e)}
    both = jnp.concatenate([law.X, places])
    L, _ = safe_cholesky(law.kernel(both, both))
    z = jax.random.normal(k_weights, both.shape[:1], both.dtype)
    alpha = law.representer(y - matmul(L, z)[: y.shape[0]] - e)
    # Through the values at all these points, and moved to the data by their own covariances.
    beta = solve_triangular(L, z, lower=True, trans=1)
    return drawn | {"alpha": beta.at[: y.shape[0]].add(alpha)}


def _at(law: Process, drawn: dict[str, Array], X: Array, places: Any, count: int) -> Array:
    """Values of one function at inputs."""
    mean = law.mean_at(X)
    if isinstance(law, BasisProcess):
        return mean + matmul(drawn["weights"], law.features(X))
    if isinstance(law, SparseProcess):
        # What the inducing points do not tell stays as it was in the prior.
        L, _ = safe_cholesky(law.kernel(law.inducing, law.inducing))
        prior = solve_triangular(L, _prior(law, drawn["key"], count, law.inducing), lower=True)
        return mean + _prior(law, drawn["key"], count, X) + matmul(drawn["weights"] - prior, law.features(X))
    if places is None:
        return mean + _prior(law, drawn["key"], count, X) + matmul(law.kernel(X, law.X), drawn["alpha"])
    return mean + matmul(law.kernel(X, jnp.concatenate([law.X, places])), drawn["alpha"])


def _prior(law: Process, key: Array, count: int, X: Array) -> Array:
    """A function of the prior at inputs: random features with normal weights."""
    k_features, k_weights = jax.random.split(key)
    w = jax.random.normal(k_weights, (count,), X.dtype) / math.sqrt(count)
    origin = law.X[0]
    rows = lambda some: matmul(random_features(law.kernel, k_features, count, some, origin), w)
    if X.shape[0] <= ROWS:
        return rows(X)
    return jax.lax.map(lambda x: rows(x[None])[0], X, batch_size=ROWS)
