"""Variational Gaussian processes: inducing values with a law of their own, for many points and for any likelihood."""

import copy
import dataclasses
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp import laplace
from probkit.gp import svgp_bound as bound
from probkit.gp.covariance import Covariance, Product, Sum, with_default
from probkit.gp.large import inducing_points, inputs
from probkit.gp.latent import check_kernel, default_mean, on_link
from probkit.gp.stationary_covariances import Matern32
from probkit.infer.subsample import shuffled
from probkit.likelihoods import Binomial, Categorical, Gaussian, HeteroscedasticGaussian, Likelihood
from probkit.math.latent import observed_curvature
from probkit.math.linalg import matmul, safe_cholesky
from probkit.model import Default, Model, Param, is_place, param
from probkit.observation import entrywise, observe, predictive

#: The fewest rows among which inducing points are chosen, and how many times as many as inducing points.
CHOICE, TIMES = 4000, 4
#: Rows by which a report tells what inducing points leave out.
TOLD = 2000


def terms(likelihood: Likelihood, f: Float[Array, "columns n"], y: Float[Array, " n"]) -> Float[Array, " n"]:
    """Log density of each entry."""
    return likelihood.law(_rows_first(f)).log_prob(y)


def _rows_first(f: Array) -> Array:
    return f[0] if f.shape[0] == 1 else f.T


def _one(likelihood: Likelihood, f: Array, y: Array) -> Array:
    return observed_curvature(lambda phi, f, y: terms(phi, f[None], y), likelihood, f[0], y)[None]


def _fisher(likelihood: Likelihood, f: Array, y: Array) -> Array:
    return jnp.diagonal(likelihood.fisher(f.T), axis1=1, axis2=2).T


def _each(likelihood: Likelihood, f: Array, y: Array) -> Array:
    def one(c: int) -> Array:
        return observed_curvature(lambda phi, own, y: terms(phi, f.at[c].set(own), y), likelihood, f[c], y)

    return jnp.stack([one(c) for c in range(f.shape[0])])


def curvature(likelihood: Likelihood) -> Any:
    """Minus the second derivative of :func:`terms` in each column: what observations tell of their latent values."""
    if likelihood.outputs == 1:
        return _one
    return _fisher if isinstance(likelihood, Categorical) else _each


def is_quadratic(likelihood: Likelihood) -> bool:
    """Whether the terms are quadratic in f, so that one natural gradient step ends at the optimum."""
    return isinstance(likelihood, Gaussian)


def at_rows(likelihood: Any, index: Array, n: int) -> Any:
    """The likelihood of some of n rows: a number of trials of their own goes with them."""
    if isinstance(likelihood, Binomial) and jnp.shape(likelihood.trials) == (n,):
        return eqx.tree_at(lambda one: one.trials, likelihood, likelihood.trials[index])
    return likelihood


class SVGPProcess(dist.Distribution):
    """Observations of latent Gaussian processes whose inducing values follow a given law, column by column.

    Its ``log_prob`` is the variational bound under that law. NaN in y is missing.

    Args:
        kernel: a covariance that all columns share, or a tuple of one a column.
        X: inputs, (n,) or (n, D).
        likelihood: any likelihood.
        loc: prior mean of the columns, a scalar or (columns,), or a callable pytree from inputs to (n,).
        inducing: inducing points, (m,) or (m, D).
        law: the law of the whitened inducing values.

    References:
        Hensman, Matthews and Ghahramani (2015), Scalable variational Gaussian process classification.
    """

    support = constraints.real_vector
    pytree_data_fields = ("kernel", "X", "likelihood", "loc", "inducing", "law")

    def __init__(
        self,
        kernel: Any,
        X: Any,
        likelihood: Likelihood,
        loc: Any,
        inducing: Any,
        law: bound.InducingLaw,
        *,
        validate_args: bool | None = None,
    ):
        self.kernel, self.X, self.likelihood, self.loc = kernel, X, likelihood, loc
        self.inducing, self.law = inducing, law
        super().__init__((), X.shape[:1], validate_args=validate_args)

    def mean_at(self, X: Array) -> Float[Array, "columns k"]:
        """Prior mean of the columns at inputs."""
        loc = self.loc(X) if callable(self.loc) else jnp.reshape(jnp.asarray(self.loc, X.dtype), (-1, 1))
        if isinstance(self.likelihood, HeteroscedasticGaussian) and (loc.ndim == 1 or loc.shape[0] == 1):
            loc = jnp.stack([jnp.ravel(loc), jnp.zeros_like(jnp.ravel(loc))])  # log noise is around that of its unit
        return jnp.broadcast_to(loc, (self.likelihood.outputs, X.shape[0]))

    def features(self, X: Array) -> tuple[Array, Array]:
        """Features (kernels, m, k) and prior variances (kernels, k) at inputs."""
        Z = self.inducing
        each = self.kernel if isinstance(self.kernel, tuple) else (self.kernel,)
        A = [bound.features(one(Z, Z), one(Z, X)) for one in each]
        return jnp.stack(A), jnp.stack([one.diagonal(X) for one in each])

    def latent(self, X: Array, q: bound.Factors | None = None) -> tuple[Array, Array]:
        """Mean and variance of the columns at inputs, each (columns, k)."""
        mean, variance = bound.marginals(bound.factors(self.law) if q is None else q, *self.features(X))
        return self.mean_at(X) + mean, variance

    def expected(self, f: Array, variance: Array, y: Array) -> bound.Expected:
        """Expectations of the terms of y over the columns."""
        kind = curvature(self.likelihood), is_quadratic(self.likelihood)
        return bound.expected(terms, *kind, self.likelihood, f, variance, y)

    def log_prob(self, value: Float[Array, " n"], intermediates: None = None) -> Float[Array, ""]:
        """The bound on the log marginal likelihood of the observed entries, under the law of the inducing values."""
        q = bound.factors(self.law)
        f, variance = self.latent(self.X, q)
        kind = curvature(self.likelihood), is_quadratic(self.likelihood)
        each = bound.expected_value(terms, *kind, self.likelihood, f, variance, _filled(value))
        total = jnp.sum(jnp.where(jnp.isnan(value), 0.0, each)) - q.divergence
        return jnp.where(jnp.isnan(total), -jnp.inf, total)

    def predict(self, y: Float[Array, " n"], X_new: Any = None) -> dist.Distribution:
        """The law of a fresh observation at the training inputs or at new ones: marginals."""
        f, variance = self.latent(self.X if X_new is None else X_new)
        return predictive(self.likelihood, *(a[0] if len(a) == 1 else a for a in (f, variance)))

    def leave_one_out(self, y: Float[Array, " n"]) -> dist.Distribution:
        """The law of each y_i given all others, by dividing its own normal factor out of the law; batch shape (n,).

        Exact for a normal likelihood, the inducing values standing for the function.
        """
        q = bound.factors(self.law)
        f, variance = self.latent(self.X, q)
        found = self.expected(f, variance, _filled(y))
        seen = ~jnp.isnan(y)
        slope, W = jnp.where(seen, found.slope, 0.0), jnp.where(seen, found.curvature, 0.0)
        A, before = self.features(self.X)
        rest = jnp.broadcast_to(jnp.maximum(before - jnp.sum(A**2, axis=1), 0.0), f.shape)
        # What inducing values do not tell of f_i is not of its neighbours either: it is no part of the cavity.
        known = laplace.Approximation(f, slope, W, jnp.zeros((), f.dtype))
        f, alone = laplace.cavity(known, jnp.maximum(variance - rest, 0.0), jnp.broadcast_to(before, f.shape))
        return entrywise(self.likelihood, *(a[0] if len(a) == 1 else a for a in (f, alone + rest)))

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of y from the law of the inducing values, what they leave out being independent noise."""
        k_v, k_rest, k_y = jax.random.split(key, 3)
        q = bound.factors(self.law)
        A, before = self.features(self.X)
        columns, m = q.mean.shape
        e = jax.random.normal(k_v, (*sample_shape, columns, m), A.dtype)
        v = q.mean + jnp.squeeze(matmul(jnp.swapaxes(q.root, 1, 2), e[..., None]), -1)
        rest = jnp.sqrt(jnp.maximum(before - jnp.sum(A**2, axis=1), 0.0))
        f = self.mean_at(self.X) + jnp.squeeze(matmul(v[..., None, :], A), -2)
        f = f + rest * jax.random.normal(k_rest, f.shape, f.dtype)
        return observe(self.likelihood, k_y, f[..., 0, :] if columns == 1 else f)


def _filled(y: Array) -> Array:
    """Values in the place of gaps: terms of theirs are left out, and must be finite."""
    return jnp.where(jnp.isnan(y), jnp.nanmax(y), y)


def _greedy(self: "SVGP", y: Any, X: Any) -> Array:
    """Inducing points, greedy among rows; of very many, among a random part."""
    X = inputs(y, X)
    n, most = X.shape[0], max(CHOICE, TIMES * self.count)
    return inducing_points(X[shuffled(jnp.arange(most), jax.random.key(0), n)] if n > most else X, self.count)


def _default_mean(self: "SVGP", y: Any, X: Any) -> dist.Distribution:
    """As that of `LatentGP`, one for each column."""
    if isinstance(self.likelihood, HeteroscedasticGaussian):
        zero = jnp.zeros((), y.dtype)
        centres, spreads = (priors.centre(y), zero), (priors.spread(y), zero + 1)
        return dist.Normal(jnp.stack(centres), jnp.stack(spreads)).to_event(1)
    law, columns = default_mean(self, y, X), self.likelihood.outputs
    return law if columns == 1 or self.likelihood.is_location else law.expand((columns,)).to_event(1)


class SVGP(Model):
    """A Gaussian process by inducing points for many observations and any likelihood, trained on minibatches.

    ``y_i ~ likelihood(f(x_i))``, ``f ~ GP(mean, kernel)``. The values of f at ``count`` inducing points get a normal
    law of their own, fitted with the hyperparameters by :class:`probkit.gp.StochasticVI` (the default method of this
    model) to the bound

    ``sum_i E log p(y_i | f(x_i)) - KL(law | prior)``,

    in O(batch count² + count³) a step, whatever the number of observations.

    Args:
        kernel: a covariance. Default: ``Matern32()``. Scales left at their default are half-normal with scale 2 where
            the likelihood has a link (logits, log rates). A likelihood of several columns (``Categorical``, softmax)
            shares it, or takes a tuple of one a column; that of ``HeteroscedasticGaussian`` always has two of them: of
            one that was given, the second, of the log noise, takes all but its scale, which is half-normal around 1.
        likelihood: one of :mod:`probkit.likelihoods`. Default: ``Gaussian()``. Several columns are independent under
            the law of the inducing values.
        mean: mean of f, a number, a prior or a callable pytree; (columns,) where there are several. Default: normal
            around 0 with scale 1.5 on a link; as that of y for a location. One mean for ``HeteroscedasticGaussian`` is
            that of y, the log noise being around 0, its ``unit``.
        count: how many inducing points; static. No more than observations are taken.
        inducing: where they are, (count, D). Default: chosen greedily among the inputs, each where the conditional
            variance is largest. They stay there, unless ``gp.StochasticVI(learn_inducing=True)`` moves them.
        law: the law of the whitened inducing values, which the fit puts here.

    X is (n,) or (n, features); left out, it is the time index. NaN in y is missing.

    Predictions are marginal: of each observation, not of paths. Where one column of inputs or at most a few thousand
    rows are to be fitted, ``pk.GP`` is exact; ``gp.Sparse`` is the same bound for normal noise on all rows at once.

    References:
        Hensman, Fusi and Lawrence (2013), Gaussian processes for big data. Hensman, Matthews and Ghahramani (2015),
        Scalable variational Gaussian process classification.
    """

    integrates_states: ClassVar[bool] = True
    #: Fields that a fit fills beside the sites; files hold them apart.
    learned: ClassVar[tuple[str, ...]] = ("inducing", "law")
    #: Why ``posterior.update`` refuses.
    not_updated: ClassVar[str] = (
        "gp.SVGP cannot be updated: its inducing values were fitted to the data and would not see new ones; fit again."
    )

    kernel: Any
    likelihood: Likelihood
    mean: Param = param(default=_default_mean)
    inducing: Param = param(support=constraints.real, default=_greedy)
    count: int = eqx.field(static=True, default=500)
    law: Any = None

    def __init__(
        self,
        kernel: Any = None,
        likelihood: Likelihood | None = None,
        mean: Any = None,
        *,
        count: int = 500,
        inducing: Any = None,
        law: Any = None,
    ):
        if isinstance(count, bool) or not isinstance(count, int) or count < 1:
            raise ValueError(f"count is {count!r}; a whole number of at least 1 is wanted.")
        self.likelihood = Gaussian() if likelihood is None else likelihood
        self.kernel = _kernel(kernel, self.likelihood)
        self.mean = Default(_default_mean) if mean is None else mean
        self.inducing = Default(_greedy) if inducing is None else inducing
        self.count, self.law = count, law

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse observations that the likelihood cannot take, and inducing points of other columns than X."""
        if not isinstance(self.likelihood, Likelihood):
            raise TypeError(f"likelihood is {type(self.likelihood).__name__}; one of probkit.likelihoods is wanted.")
        self.likelihood.check(y)
        for one in self.kernel if isinstance(self.kernel, tuple) else (self.kernel,):
            check_kernel(one)
        given, wanted = len(self.kernel) if isinstance(self.kernel, tuple) else 1, self.likelihood.outputs
        if given not in (1, wanted):
            raise ValueError(f"kernel holds {given} covariances; one, or one for each of {wanted} columns, is wanted.")
        if isinstance(self.inducing, Default):
            return
        if is_place(self.inducing):
            raise TypeError("inducing is a prior; points are wanted: StochasticVI(learn_inducing=True) moves them.")
        columns, shape = 1 if X is None or X.ndim == 1 else X.shape[1], np.shape(self.inducing)
        if shape not in ((*shape[:1], columns), shape[:1] * (columns == 1)):
            raise ValueError(f"inducing has shape {shape}; (count, {columns}), the columns of X, is wanted.")

    def check_method(self, method: Any) -> None:
        """Refuse methods that do not know of the law of the inducing values."""
        from probkit.gp.svgp_fit import StochasticVI
        from probkit.infer.auto import Auto

        if isinstance(method, Auto):  # also what many series are fitted by if no method was given
            raise TypeError("gp.SVGP takes one series, (n,), and is fitted by gp.StochasticVI, not by Auto.")
        if not isinstance(method, StochasticVI):
            raise TypeError(
                f"method is {type(method).__name__}; gp.SVGP is fitted by gp.StochasticVI. For all rows at once use "
                "pk.GP(solver=gp.Sparse()) or gp.LatentGP, which take any method."
            )

    def default_method(self, y: Any, X: Any) -> Any:
        """Minibatches and natural gradients."""
        from probkit.gp.svgp_fit import StochasticVI

        return StochasticVI()

    def distribution(self, X: Any, length: int) -> SVGPProcess:
        """The distribution of y given the parameters and the law of the inducing values (the prior before a fit)."""
        dtype = jnp.result_type(jnp.asarray(self.inducing))
        X = jnp.arange(length, dtype=dtype) if X is None else X
        Z = jnp.asarray(self.inducing, X.dtype)
        Z = Z[:, 0] if X.ndim == 1 and Z.ndim == 2 else Z[:, None] if X.ndim == 2 and Z.ndim == 1 else Z
        law = bound.prior(self.likelihood.outputs, Z.shape[0], X.dtype) if self.law is None else self.law
        return SVGPProcess(self.kernel, X, self.likelihood, self.mean, Z, law)

    def notes(self, y: Any, X: Any = None) -> tuple[str, ...]:
        """What a report should say: that this is a bound, what the inducing points leave out, and the jitter."""
        process = self.distribution(X, y.shape[0])
        m = process.inducing.shape[0]
        index = (
            jnp.arange(y.shape[0]) if y.shape[0] <= TOLD else shuffled(jnp.arange(TOLD), jax.random.key(0), y.shape[0])
        )
        left, jitter = (float(one) for one in _left_out(process, process.X[index]))
        if not np.isfinite(left):
            return ()  # no parameters were found, as the report says
        told = f"Approximate: a lower bound by {m} inducing points, which leave out {left:.2g} of the prior variance."
        if jitter > 0:
            told += f" Their covariance took a jitter of {jitter:.1g} of its mean variance."
        return (told,)


@eqx.filter_jit
def _left_out(process: SVGPProcess, X: Array) -> tuple[Array, Array]:
    A, variance = process.features(X)
    left = jnp.mean(jnp.maximum(variance - jnp.sum(A**2, axis=1), 0.0)) / jnp.mean(variance)
    each = process.kernel if isinstance(process.kernel, tuple) else (process.kernel,)
    K = [one(process.inducing, process.inducing) for one in each]
    return left, jnp.max(jnp.stack([safe_cholesky(one)[1] / jnp.mean(jnp.diagonal(one)) for one in K]))


def _of_log_noise(kernel: Any) -> Any:
    """A covariance of y for the log of its noise, which knows no units: with a scale of its own."""
    if isinstance(kernel, Sum | Product):
        return type(kernel)(**{name: _of_log_noise(part) for name, part in kernel.parts.items()})
    held = {f.name: getattr(kernel, f.name) for f in dataclasses.fields(kernel)}
    new: dict[str, Any] = {name: _of_log_noise(one) for name, one in held.items() if isinstance(one, Covariance)}
    if not new and "scale" not in held:
        name = type(kernel).__name__
        raise TypeError(f"kernel holds {name}, which has no scale; pass two covariances, of y and of its log noise.")
    made = copy.copy(kernel)
    for name, one in (new or {"scale": dist.HalfNormal(1.0)}).items():
        object.__setattr__(made, name, one)  # before anyone else holds the copy
    return made


def _kernel(kernel: Any, likelihood: Any) -> Any:
    """One covariance for all columns, or a tuple of one a column; on a link a function moves by a few units."""
    free = lambda one, scale: with_default(one, "scale", dist.HalfNormal(scale))
    if isinstance(likelihood, HeteroscedasticGaussian):
        if isinstance(kernel, list | tuple):
            if len(kernel) != 2:
                raise ValueError(f"kernel holds {len(kernel)} covariances; two, of y and of its log noise, are wanted.")
            return kernel[0], free(kernel[1], 1.0)
        kernel = Matern32() if kernel is None else kernel
        return kernel, _of_log_noise(kernel)
    if isinstance(kernel, list | tuple):
        return tuple(free(one, 2.0) for one in kernel)
    return on_link(kernel, likelihood)
