"""Gaussian processes behind other likelihoods: classes, counts, outliers."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.gp import laplace
from probkit.gp.covariance import with_default
from probkit.gp.exact import condition_marginal
from probkit.gp.stationary_covariances import Matern32
from probkit.likelihoods import Bernoulli, Likelihood, Ordinal
from probkit.math.latent import observed_curvature
from probkit.math.linalg import matmul, safe_cholesky
from probkit.model import Default, Model, Param, param
from probkit.observation import Observation, observe, predictive


def _terms(likelihood: Likelihood, f: Array, y: Array) -> Array:
    return likelihood.law(f).log_prob(y)


def _observed(likelihood: Likelihood, f: Array, y: Array) -> Array:
    return observed_curvature(_terms, likelihood, f, y)


def _expected(likelihood: Likelihood, f: Array, y: Array) -> Array:
    return likelihood.fisher(f)[:, 0, 0]


def _curvature(likelihood: Likelihood) -> Any:
    """Expected where the likelihood is not log-concave."""
    return _observed if likelihood.log_concave else _expected


class LatentProcess(dist.Distribution):
    """Observations of a Gaussian process through a likelihood, the latent values integrated out by Laplace's method.

    ``f ~ GP(mean, kernel)``, ``y_i ~ likelihood(f_i)``. NaN in y is missing.

    Args:
        kernel: a covariance.
        X: inputs, (n,) or (n, D).
        likelihood: a likelihood of one latent column.
        loc: the mean of f: a scalar, or a callable pytree from inputs to (n,).

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, section 3.4.
    """

    support = constraints.real_vector
    pytree_data_fields = ("kernel", "X", "likelihood", "loc")

    def __init__(self, kernel: Any, X: Any, likelihood: Likelihood, loc: Any, *, validate_args: bool | None = None):
        self.kernel, self.X, self.likelihood, self.loc = kernel, X, likelihood, loc
        super().__init__((), X.shape[:1], validate_args=validate_args)

    def _mean_at(self, X: Array) -> Array:
        return self.loc(X) if callable(self.loc) else jnp.broadcast_to(self.loc, X.shape[:1])

    def _approximate(self, y: Array) -> tuple[laplace.Approximation, Array]:
        K = self.kernel(self.X, self.X)
        curvature = _curvature(self.likelihood)
        return laplace.approximate(_terms, curvature, self.likelihood, K, self._mean_at(self.X), y), K

    def log_prob(self, value: Float[Array, " n"], intermediates: None = None) -> Float[Array, ""]:
        """Laplace's approximation of the log marginal likelihood of the observed entries."""
        return self._approximate(value)[0].log_evidence

    def predict(self, y: Float[Array, " n"], X_new: Any = None) -> dist.Distribution:
        """The law of a fresh observation at the training inputs or at new ones, given y: marginals."""
        found, K = self._approximate(y)
        X = self.X if X_new is None else X_new
        cross = K if X_new is None else self.kernel(self.X, X)
        mean, variance = laplace.project(found, K, cross, self.kernel.diagonal(X))
        return predictive(self.likelihood, self._mean_at(X) + mean, variance)

    def leave_one_out(self, y: Float[Array, " n"]) -> dist.Distribution:
        """The law of each y_i given all others, by taking its own term out of the approximation; batch shape (n,)."""
        found, K = self._approximate(y)
        prior = jnp.diagonal(K)
        _, variance = laplace.project(found, K, K, prior)
        f, alone = laplace.cavity(found, variance, prior)
        return Observation(self.likelihood, f, alone)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of y from the prior."""
        k_f, k_y = jax.random.split(key)
        L, _ = safe_cholesky(self.kernel(self.X, self.X))
        e = jax.random.normal(k_f, (*sample_shape, *self.event_shape), L.dtype)
        return observe(self.likelihood, k_y, self._mean_at(self.X) + matmul(e, L.T))


def default_mean(self: Any, y: Any, X: Any) -> Any:
    """In the units of y for a location; for a link, around the unit or an even chance; cutpoints have the place."""
    if isinstance(self.likelihood, Ordinal):
        return jnp.zeros((), y.dtype)
    if self.likelihood.is_location:
        return dist.Normal(priors.centre(y), priors.spread(y))
    return dist.Normal(jnp.zeros((), y.dtype), 1.5)


def check_kernel(kernel: Any) -> None:
    """Refuse a covariance that asks for a mean and a noise of its own."""
    if getattr(kernel, "outermost", False):
        raise TypeError(f"kernel is {type(kernel).__name__}, whose observations are normal; only pk.GP takes it.")


def _check(likelihood: Likelihood, y: Any) -> None:
    """Refuse observations that the likelihood cannot take, and likelihoods of several columns."""
    if not isinstance(likelihood, Likelihood):
        raise TypeError(f"likelihood is {type(likelihood).__name__}; one of probkit.likelihoods is wanted.")
    if likelihood.outputs != 1:
        raise TypeError(
            f"likelihood is {type(likelihood).__name__} of {likelihood.outputs} latent columns; a Gaussian process "
            "by Laplace or NUTS takes likelihoods of one; gp.SVGP takes several."
        )
    likelihood.check(y)


def on_link(kernel: Any, likelihood: Any) -> Any:
    """The covariance; on the scale of a link a function moves by a few units, whatever y is."""
    kernel = Matern32() if kernel is None else kernel
    return kernel if getattr(likelihood, "is_location", True) else with_default(kernel, "scale", dist.HalfNormal(2.0))


def _places(X: Any, length: int, like: Any) -> Array:
    dtype = jnp.result_type(float) if callable(like) else jnp.result_type(like)
    return jnp.arange(length, dtype=dtype) if X is None else X


class LatentGP(Model):
    """A Gaussian process behind a likelihood: ``y_i ~ likelihood(f(x_i))``, ``f ~ GP(mean, kernel)``.

    The latent values are integrated out by Laplace's method, mode and gradients exact; leave-one-out takes each
    observation out of that approximation and integrates the likelihood by quadrature. :class:`SampledGP` is the same
    model without approximation, for ``pk.NUTS``.

    Args:
        kernel: a covariance. Default: ``Matern32()``. Scales left at their default are half-normal with scale 2 where
            the likelihood has a link (logits, log rates).
        likelihood: one of :mod:`probkit.likelihoods` with one latent column: Bernoulli (the default), Ordinal, Poisson,
            NegativeBinomial, StudentT.
        mean: mean of f, a number, a prior or a callable pytree. Default: normal around 0 with scale 1.5 on a link; as
            that of y for a location; 0 for Ordinal, whose cutpoints have the place.

    X is (n,) or (n, features); left out, it is the time index. NaN in y is missing.

    References:
        Rasmussen and Williams (2006), Gaussian Processes for Machine Learning, chapter 3. Vehtari et al. (2016),
        Bayesian leave-one-out cross-validation approximations for Gaussian latent variable models.
    """

    integrates_states: ClassVar[bool] = True

    kernel: Any
    likelihood: Likelihood
    mean: Param = param(default=default_mean)

    def __init__(self, kernel: Any = None, likelihood: Likelihood | None = None, mean: Any = None):
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.kernel = on_link(kernel, self.likelihood)
        self.mean = Default(default_mean) if mean is None else mean

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse observations that the likelihood cannot take, and covariances of slopes."""
        check_kernel(self.kernel)
        _check(self.likelihood, y)

    def distribution(self, X: Any, length: int) -> LatentProcess:
        """The distribution of y given the parameters."""
        return LatentProcess(self.kernel, _places(X, length, self.mean), self.likelihood, self.mean)

    def notes(self, y: Any, X: Any = None) -> tuple[str, ...]:
        """What a report should say: that the likelihood is approximate."""
        return ("Approximate: latent values integrated out by Laplace's method.",)


class SampledGP(Model):
    """:class:`LatentGP` with its latent values among the unknowns, whitened: exact, for ``pk.NUTS``.

    ``f = mean + L whitened`` with ``L L' = K``.

    Args:
        kernel: as in :class:`LatentGP`.
        likelihood: as in :class:`LatentGP`.
        mean: as in :class:`LatentGP`.
        whitened: standard normal, (n,), as many as observations.

    References:
        Murray and Adams (2010), Slice sampling covariance hyperparameters of latent Gaussian models.
    """

    kernel: Any
    likelihood: Likelihood
    mean: Param = param(default=default_mean)
    whitened: Param = param(support=constraints.real, default=0.0)

    def __init__(
        self, kernel: Any = None, likelihood: Likelihood | None = None, mean: Any = None, whitened: Any = None
    ):
        self.likelihood = Bernoulli() if likelihood is None else likelihood
        self.kernel = on_link(kernel, self.likelihood)
        self.mean = Default(default_mean) if mean is None else mean
        standard = Default(lambda self, y, X: dist.Normal(0.0, 1.0).expand(y.shape).to_event(1))
        self.whitened = standard if whitened is None else whitened

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse observations that the likelihood cannot take, and covariances of slopes."""
        check_kernel(self.kernel)
        _check(self.likelihood, y)

    def latent(self, X: Any, length: int) -> Float[Array, " n"]:
        """f at the inputs."""
        X = _places(X, length, self.mean)
        L, _ = safe_cholesky(self._covariance(X))
        return self._mean_at(X) + matmul(L, jnp.broadcast_to(self.whitened, (length,)))

    def _covariance(self, X: Array) -> Array:
        # A thousandth of a thousandth of the standard deviation: what rounding needs, and no more than it moves.
        K = self.kernel(X, X)
        return K + float(jnp.finfo(K.dtype).eps) ** 0.75 * jnp.diag(jnp.diagonal(K))

    def _mean_at(self, X: Array) -> Array:
        return self.mean(X) if callable(self.mean) else jnp.broadcast_to(self.mean, X.shape[:1])

    def distribution(self, X: Any, length: int) -> dist.Distribution:
        """The distribution of y given the parameters and the latent values."""
        return self.likelihood.law(self.latent(X, length)).to_event(1)

    def predict(self, y: Float[Array, " n"], X: Any = None, X_new: Any = None) -> dist.Distribution:
        """A fresh observation at the places of the data, or at new inputs with f there integrated out."""
        if X_new is None:
            return self.distribution(X, y.shape[0])
        X = _places(X, y.shape[0], self.mean)
        residual = self.latent(X, y.shape[0]) - self._mean_at(X)
        cross = self.kernel(X, X_new)
        f, variance = condition_marginal(self._covariance(X), residual, cross, self.kernel.diagonal(X_new))
        return predictive(self.likelihood, self._mean_at(X_new) + f, variance)
