"""Structural time series of counts, classes and heavy-tailed values: the same parts behind a likelihood."""

from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints

from probkit import priors
from probkit.likelihoods import Bernoulli, Binomial, Likelihood, StudentT
from probkit.math.psis import pareto_smooth
from probkit.model import Default, Model, Param, param
from probkit.observation import Observation, observe
from probkit.ssm import laplace, structured_smoother
from probkit.ssm.components import Structure
from probkit.ssm.distribution import LinearGaussian
from probkit.ssm.structural import Additive, Structural, future_of, quiet
from probkit.ssm.structural_distribution import in_units

#: Paths whose importance weights a report tells of.
PATHS = 1000
#: Curvatures below this share of the largest say nothing of their own time.
FAINT = 1e-10


def _terms(phi: tuple, f: Array, y: Array) -> Array:
    likelihood, origin, unit = phi
    return likelihood.law(likelihood.scaled(f, origin, unit)).log_prob(y)


def _majorant(phi: tuple, f: Array, y: Array) -> Array:
    """``(df + 1) / (df scale² + e²)``: what the EM algorithm puts for the curvature of Student-t, never below it."""
    likelihood, origin, unit = phi
    error = y - (origin + unit * f)
    return (likelihood.df + 1) * unit**2 / (likelihood.df * likelihood.scale**2 + error**2)


def _information(phi: tuple, f: Array, y: Array) -> Array:
    """What an observation is expected to tell of f: the majorant guides the search, but tells too much."""
    likelihood, _, unit = phi
    return likelihood.fisher(f)[:, 0, 0] * unit**2


class LatentSeries(dist.Distribution):
    """A sum of structural parts observed through a likelihood, its states integrated out by Laplace's method.

    ``f_t = z_t' state_t + d_t``, ``y_t ~ likelihood(f_t)``. NaN in y is missing.

    Args:
        structure: the parts put together, from `components.assemble`; its h is not used.
        likelihood: a likelihood of one latent column.
        start_scale: how far the starting states may move the signal, one standard deviation, on the scale of the
            link; for a location, in units of the range of y.
        length: number of times.
        paths: how many importance paths correct the approximate likelihood, an even number; 0 for none.
    """

    support = constraints.real_vector
    pytree_data_fields = ("structure", "likelihood", "start_scale")
    pytree_aux_fields = ("length", "paths")

    def __init__(
        self, structure: Structure, likelihood: Likelihood, start_scale: Any, length: int, paths: int = 0,
        *, validate_args: bool | None = None,
    ):  # fmt: skip
        self.structure, self.likelihood, self.start_scale, self.length = structure, likelihood, start_scale, length
        self.paths = paths
        super().__init__((), (length,), validate_args=validate_args)

    def _scaled(self, y: Array) -> tuple[Structure, Array, Array]:
        """The structure on the scale that the states are worked out on, and that scale's origin and unit."""
        s = self.structure
        if self.likelihood.is_location:
            _, s, origin, unit = in_units(y, s)
        else:
            origin, unit = jnp.zeros_like(s.h), jnp.ones_like(s.h)
        return laplace.proper_start(s, jnp.asarray(self.start_scale, s.q.dtype), self.length), origin, unit

    def _approximate(self, y: Array) -> tuple[laplace.Approximation, Structure, tuple]:
        y = jnp.asarray(y, self.structure.q.dtype)
        s, origin, unit = self._scaled(y)
        phi = (self.likelihood, origin, unit)
        heavy = isinstance(self.likelihood, StudentT)
        start = jnp.where(jnp.isnan(y), s.d, (y - origin) / unit) if heavy else None
        known = (_majorant, _information) if heavy else (None, None)
        found = laplace.approximate(_terms, known[0], phi, s, start, y, known[1])
        return found, s, phi

    def log_prob(self, value: Float[Array, " time"], intermediates: None = None) -> Float[Array, ""]:
        """Laplace's approximation of the log marginal likelihood of the observed entries; corrected by `paths`.

        The paths are made of the same random numbers at every call, so that the value is a smooth function of the
        parameters, and its exponential is unbiased over those numbers (Shephard and Pitt 1997).
        """
        found, s, phi = self._approximate(value)
        if not self.paths:
            return found.log_evidence
        half = laplace.paths(jax.random.key(1), s, found, self.paths // 2)
        both = jnp.concatenate([half, 2 * found.f - half])  # the approximation is symmetric about its mode
        log_w = laplace.log_weights(_terms, phi, found, both, jnp.asarray(value, s.q.dtype))
        corrected = found.log_evidence + jax.nn.logsumexp(log_w) - np.log(self.paths)
        return jnp.where(jnp.isfinite(corrected), corrected, -jnp.inf)

    def importance(self, key: Array, y: Float[Array, " time"], count: int = PATHS) -> Float[Array, " count"]:
        """Log weights of paths drawn from the approximation; the log of their mean is what `log_prob` misses."""
        found, s, phi = self._approximate(y)
        drawn = laplace.paths(key, s, found, count)
        return laplace.log_weights(_terms, phi, found, drawn, y)

    def predict(self, y: Float[Array, " time"], X_new: None = None) -> dist.Distribution:
        """Marginals of a fresh observation at each time of y, given y.

        Raises:
            ValueError: `X_new` is given.
        """
        if X_new is not None:
            raise ValueError("X_new was given: a series has no second observation at the same time. Use forecast.")
        found, s, phi = self._approximate(y)
        variance, _ = laplace.marginals(s, found.W)
        return self._observed(phi, found.f, variance).to_event(1)

    def leave_one_out(self, y: Float[Array, " time"]) -> dist.Distribution:
        """The law of each y_t given all others, its own term taken out of the approximation; batch shape (time,).

        References:
            Vehtari, Mononen, Tolvanen, Sivula and Winther (2016), Bayesian leave-one-out cross-validation
            approximations for Gaussian latent variable models.
        """
        found, s, phi = self._approximate(y)
        variance, share = laplace.marginals(s, found.W)
        alone = variance / share
        return self._observed(phi, found.f - alone * found.g, alone)

    def _observed(self, phi: tuple, f: Array, variance: Array) -> Observation:
        likelihood, origin, unit = phi
        return Observation(likelihood, likelihood.scaled(f, origin, unit), jnp.maximum(variance, 0) * unit * unit)

    def forecast(
        self, y: Float[Array, " time"], horizon: int, X_new: None = None, *, future: Structure | None = None
    ) -> "LatentForecast":
        """The joint law of the next `horizon` observations given y.

        Args:
            y: the observations.
            horizon: number of times.
            X_new: not used; inputs are part of `future`.
            future: the parts at the times to come, where they differ.
        """
        found, _, (likelihood, origin, unit) = self._approximate(y)
        a, P, A = found.next
        model = (self.structure if future is None else future).matrices()
        model = model._replace(d=jnp.asarray(model.d) + origin, H=jnp.zeros((1, 1), self.structure.q.dtype))
        start = found.next._replace(a=unit * a, P=unit * unit * P, A=A)
        return LatentForecast(LinearGaussian(model, start, horizon), likelihood)

    def signals(
        self, key: Array, y: Float[Array, " time"], rows: Float[Array, "time c m"]
    ) -> structured_smoother.Forms:
        """Moments of linear forms of the states given y, and one joint draw, by the approximation."""
        found, s, (_, origin, unit) = self._approximate(y)
        told = jnp.max(found.W) * FAINT < found.W
        W = jnp.where(told, found.W, 1.0)
        pseudo = jnp.where(told, found.f + found.g / W, jnp.nan)
        s = eqx.tree_at(lambda s: s.h, s, 1 / W)
        mean, variance, draw = structured_smoother.smooth_forms(key, pseudo, s, rows)
        moved = origin * (0.0 if s.level is None else rows[..., s.level])
        return structured_smoother.Forms(mean * unit + moved, variance * unit * unit, draw * unit + moved)

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of y, the starting states from their proper law (for a location, with unit 1)."""
        k_signal, k_y = jax.random.split(key)
        scale = jnp.asarray(self.start_scale, self.structure.q.dtype)
        s = laplace.proper_start(self.structure, scale, self.length)
        s = eqx.tree_at(lambda s: s.h, s, jnp.zeros_like(s.h))
        signal = LinearGaussian(s.matrices(), s.start(), self.length).sample(k_signal, sample_shape)
        return observe(self.likelihood, k_y, signal)


class LatentForecast(dist.Distribution):
    """Observations of a normal path through a likelihood, given what came before.

    Args:
        signal: the law of the path.
        likelihood: a likelihood of one latent column.
    """

    support = constraints.real_vector
    pytree_data_fields = ("signal", "likelihood")

    def __init__(self, signal: LinearGaussian, likelihood: Likelihood, *, validate_args: bool | None = None):
        self.signal, self.likelihood = signal, likelihood
        super().__init__((), signal.event_shape, validate_args=validate_args)

    @property
    def marginals(self) -> Observation:
        """The law of each observation by itself."""
        return Observation(self.likelihood, self.signal.mean, jnp.maximum(self.signal.variance, 0))

    @property
    def mean(self) -> Float[Array, " horizon"]:
        """Mean of each observation."""
        return self.marginals.mean

    @property
    def variance(self) -> Float[Array, " horizon"]:
        """Variance of each observation."""
        return self.marginals.variance

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample horizon"]:
        """Joint draws: a path, and what is observed of it."""
        k_path, k_y = jax.random.split(key)
        return observe(self.likelihood, k_y, self.signal.sample(k_path, sample_shape))


def _linked(likelihood: type, y: Array) -> Array:
    """y on the scale of a link, about: log counts; classes 4 apart."""
    if issubclass(likelihood, Bernoulli | Binomial):
        spread = priors.deviation(y)
        return 2.0 * (y - priors.centre(y)) / jnp.where(spread > 0, spread, 1.0) + jnp.where(spread > 0, 0.0, 2.0)
    return jnp.log(y + 0.5)


class LatentStructural(Model):
    """Structural parts behind a likelihood: counts, classes, shares, values with outliers.

    ``pk.LatentStructural(pk.LocalLevel() + pk.Seasonal(12), pk.likelihoods.Poisson())``: the parts add up on the scale
    of the link (log rates, logits), or in the units of y for a location (Student-t). States are integrated out by
    Laplace's method (the iterated smoother), its mode and gradient exact; the report tells how far importance sampling
    moves the log-likelihood, and the k-hat of its weights.

    All verbs of a structural series work but those that need normal one-step laws (`filter`, `residuals`, `anomalies`).

    Args:
        parts: a part or a sum of parts, without an `obs_scale`: the likelihood is the noise.
        likelihood: one of :mod:`probkit.likelihoods` with one latent column: Poisson, NegativeBinomial, Binomial,
            Bernoulli, StudentT, Gaussian.
        start_scale: how far each starting state may move the signal (one standard deviation): on the scale of the link,
            or for a location in units of the range of y. The default 10 is next to flat, and proper, so that a series
            of zeros has a posterior.
        paths: 0, the default, for Laplace's likelihood. An even number, such as 32: the likelihood is corrected by
            importance sampling of so many paths (antithetic pairs, the same random numbers at all parameters), which
            takes about as many times as long. Worth it where the report tells that the correction moves the
            log-likelihood, and k-hat is good. Leave-one-out, smoothing and forecasts stay Laplace's given parameters.

    Default priors of scales are those of the parts, for log counts, or for classes four logits apart.

    References:
        Durbin and Koopman (2012), Time Series Analysis by State Space Methods, chapters 9 to 11.
    """

    integrates_states: ClassVar[bool] = True

    _signal: Structural
    likelihood: Likelihood
    start_scale: Param = param(support=constraints.positive, default=10.0)
    paths: int = eqx.field(static=True, default=0)

    def __init__(self, parts: Additive, likelihood: Likelihood, start_scale: Any = 10.0, paths: int = 0):
        if not isinstance(parts, Additive):
            raise TypeError(f"parts is {type(parts).__name__}; a part or a sum of parts is wanted, as pk.LocalLevel().")
        if not isinstance(likelihood, Likelihood):
            raise TypeError(f"likelihood is {type(likelihood).__name__}; one of probkit.likelihoods is wanted.")
        if not isinstance(getattr(parts, "obs_scale", None), Default):
            raise ValueError("parts has an obs_scale; the noise is the likelihood's. Leave it out.")
        if isinstance(paths, bool) or not isinstance(paths, int) or paths < 0 or paths % 2:
            raise ValueError(f"paths is {paths!r}; an even whole number, or 0, is wanted.")
        self._signal, self.likelihood = Structural(quiet(parts), 0.0), likelihood
        self.start_scale, self.paths = start_scale, paths

    def shown_to(self, field: str, y: Array) -> Array:
        """y as default priors of a field see it: those of the parts on the scale of the link."""
        return y if field != "_signal" or self.likelihood.is_location else _linked(type(self.likelihood), y)

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in self._signal.parts():
            return self._signal.parts()[name]
        raise AttributeError(f"{type(self).__name__} has no part or field {name!r}.")

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse observations that the likelihood cannot take, and likelihoods of several columns."""
        if self.likelihood.outputs != 1:
            raise TypeError(
                f"likelihood is {type(self.likelihood).__name__} of {self.likelihood.outputs} latent columns; a "
                "structural series takes likelihoods of one."
            )
        self.likelihood.check(y)

    def parts(self) -> dict[str, Any]:
        """The parts by name."""
        return self._signal.parts()

    def work(self, y: Any, X: Any) -> int:
        """Each of the importance paths is as long as y."""
        return max(1, self.paths)

    def distribution(self, X: Any, length: int) -> LatentSeries:
        """The distribution of y given the parameters."""
        return LatentSeries(self._signal.structure(X, length), self.likelihood, self.start_scale, length, self.paths)

    def forecast(self, y: Float[Array, " n"], horizon: int, X: Any = None, X_new: Any = None) -> LatentForecast:
        """The joint distribution of the next ``horizon`` observations, given ``y`` and the parameters."""
        return self.distribution(X, y.shape[0]).forecast(
            y, horizon, future=future_of(self._signal, y.shape[0], horizon, X, X_new)
        )

    def decompose(self, y: Float[Array, " n"], X: Any, key: Array) -> dict[str, tuple[Array, Array, Array]]:
        """What every part adds to the signal, and its inner states, given y: mean, standard deviation, one joint draw.

        On the scale of the link.
        """
        return self._signal.decompose(y, X, key, self.distribution(X, y.shape[0]))

    def replicate(self, y: Float[Array, " n"], X: Any, X_new: Any, key: Array) -> Float[Array, " n"]:
        """A new series over the same times: the first state drawn given y, all that follows anew, inputs `X_new`."""
        n, (k_start, k_path, k_y) = y.shape[0], jax.random.split(key, 3)
        start = self._signal.first_state(y, X, X_new, k_start, self.distribution(X, n))
        signal = LinearGaussian(self._signal.structure(X_new, n).matrices(), start, n).sample(k_path)
        return observe(self.likelihood, k_y, signal)

    def impute(self, y: Float[Array, " n"], X: Any, key: Array) -> Float[Array, " n"]:
        """y with one joint draw of what is missing."""
        k_signal, k_y = jax.random.split(key)
        signal = self.decompose(y, X, k_signal)["signal"][2]
        return jnp.where(jnp.isnan(y), observe(self.likelihood, k_y, signal), y)

    def notes(self, y: Any, X: Any = None) -> tuple[str, ...]:
        """What a report should say: how good the approximation is, by importance sampling at one draw."""
        moved, k_hat = (float(x) for x in jax.device_get(_importance(self, y, X)))
        told = "Approximate: states integrated out by Laplace's method."
        if self.paths:
            told += f" The likelihood is corrected by {self.paths} importance paths."
        told += f" At the best draw, importance sampling of {PATHS} paths moves Laplace's log-likelihood by {moved:.2g}"
        return (f"{told}; k-hat of its weights is {k_hat:.2f}.",)


@eqx.filter_jit
def _importance(model: LatentStructural, y: Array, X: Any) -> tuple[Array, Array]:
    log_w = model.distribution(X, y.shape[0]).importance(jax.random.key(0), y)
    moved = jax.nn.logsumexp(log_w) - np.log(PATHS)
    return moved, pareto_smooth(log_w)[1]
