"""Likelihoods that regression families share: from a latent value f of each point to the law of its observation.

A location likelihood (Gaussian, Student-t) takes f in the units of y; the others take it on the scale of their link:
logits for classes, the log of a rate for counts. Unknown parameters stand in fields and may hold priors.
"""

import abc
import math
from typing import Any, ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.distributions import constraints, transforms

from probkit import priors
from probkit.model import Default, Given, Param, param


def noise_scale(y: Float[Array, " n"]) -> dist.Distribution:
    """The default prior of a noise scale: log-normal, two orders of magnitude wide, from a third of the spread of y.

    The log has standard deviation 2, so that noise of a thousandth of the spread is as easily believed as noise of
    the whole; below the rounding error of y nothing is.
    """
    log_scale = jnp.log(priors.spread(y)) - 1.0
    law = dist.TruncatedNormal(log_scale, 2.0 * jnp.ones_like(log_scale), low=jnp.log(priors.rounding(y)))
    return dist.TransformedDistribution(law, transforms.ExpTransform(law.support))


class Likelihood(eqx.Module):
    """What is observed of a latent function.

    Attributes:
        is_location: whether the first column of f stands in the units of y.
        discrete: ``"classes"``, ``"counts"``, or empty for real observations.
        log_concave: whether the density of an observation is log-concave in each column of f.
    """

    is_location: ClassVar[bool] = False
    discrete: ClassVar[str] = ""
    log_concave: ClassVar[bool] = True

    @property
    def outputs(self) -> int:
        """Number of latent columns a point has."""
        return 1

    @abc.abstractmethod
    def law(self, f: Float[Array, "n *outputs"]) -> dist.Distribution:
        """The law of each observation given f, batch shape (n,)."""

    @abc.abstractmethod
    def fisher(self, f: Float[Array, "n *outputs"]) -> Float[Array, "n outputs outputs"]:
        """Expected information of an observation on f: the middle of a generalised Gauss-Newton matrix."""

    @abc.abstractmethod
    def marginal(
        self, f: Float[Array, "n *outputs"], covariance: Float[Array, "n outputs outputs"]
    ) -> dist.Distribution:
        """The law of each observation where f is normal around its mean, in closed form (moments or probit)."""

    def scaled(self, f: Float[Array, "n *outputs"], centre: Any, scale: Any) -> Float[Array, "n *outputs"]:
        """f from standardised units: location likelihoods move to the units of y, the others stay."""
        return centre + scale * f if self.is_location else f

    def check(self, y: Any, name: str = "y") -> None:
        """Check observations at the border; NaN is missing.

        Raises:
            ValueError: classes or counts that are none, naming what came.
        """
        seen = np.asarray(y, float)
        seen = seen[~np.isnan(seen)]
        if self.discrete and (np.any(seen < 0) or np.any(seen != np.floor(seen))):
            bad = seen[(seen < 0) | (seen != np.floor(seen))][0]
            kind = "classes 0, 1, 2, ..." if self.discrete == "classes" else "counts 0, 1, 2, ..."
            raise ValueError(f"{name} holds {bad:g}; {type(self).__name__} takes {kind}.")


class Gaussian(Likelihood):
    """``y ~ N(f, scale²)``.

    Args:
        scale: standard deviation of the noise, in the units of y. Default: log-normal from a third of the spread of y.
    """

    is_location: ClassVar[bool] = True
    scale: Param = param(support=constraints.positive, default=lambda self, y, X: noise_scale(y))

    def law(self, f: Float[Array, "n *outputs"]) -> dist.Distribution:
        """Normal around f."""
        return dist.Normal(_column(f), self.scale)

    def fisher(self, f: Float[Array, "n *outputs"]) -> Float[Array, "n 1 1"]:
        """``1 / scale²``."""
        return jnp.broadcast_to(self.scale**-2.0, (f.shape[0], 1, 1))

    def marginal(self, f: Float[Array, "n *outputs"], covariance: Float[Array, "n 1 1"]) -> dist.Distribution:
        """Normal, exact."""
        return dist.Normal(_column(f), jnp.sqrt(self.scale**2 + covariance[:, 0, 0]))


class HeteroscedasticGaussian(Likelihood):
    """``y ~ N(f_1, (unit exp f_2)²)``: the noise is a second function of the inputs.

    Args:
        unit: the noise where the second column is 0, in the units of y. Default: a third of the spread of y.
    """

    is_location: ClassVar[bool] = True
    unit: Param = param(support=constraints.positive, default=lambda self, y, X: priors.spread(y) / 3)

    @property
    def outputs(self) -> int:
        """Mean and log scale."""
        return 2

    def scaled(self, f: Float[Array, "n 2"], centre: Any, scale: Any) -> Float[Array, "n 2"]:
        """The mean moves to the units of y; the log scale is free of units."""
        return jnp.stack([centre + scale * f[:, 0], f[:, 1]], axis=1)

    def law(self, f: Float[Array, "n 2"]) -> dist.Distribution:
        """Normal around the first column."""
        return dist.Normal(f[:, 0], self._scale(f))

    def fisher(self, f: Float[Array, "n 2"]) -> Float[Array, "n 2 2"]:
        """``diag(1 / scale², 2)``."""
        return jax.vmap(jnp.diag)(jnp.stack([self._scale(f) ** -2.0, jnp.full(f.shape[0], 2.0, f.dtype)], axis=1))

    def marginal(self, f: Float[Array, "n 2"], covariance: Float[Array, "n 2 2"]) -> dist.Distribution:
        """Normal with the marginal variance, ``E exp(2 f_2)`` being log-normal."""
        noise = self._scale(f) ** 2 * jnp.exp(2 * covariance[:, 1, 1])
        return dist.Normal(f[:, 0], jnp.sqrt(noise + covariance[:, 0, 0]))

    def _scale(self, f: Array) -> Array:
        # e^12 either way is beyond any data, and keeps the likelihood finite in both precisions.
        return self.unit * jnp.exp(jnp.clip(f[:, 1], -12.0, 12.0))


class StudentT(Likelihood):
    """``y ~ StudentT(df, f, scale)``: noise with outliers.

    Args:
        df: degrees of freedom. Default: 4.
        scale: scale of the noise, in the units of y. Default: log-normal from a third of the spread of y.
    """

    is_location: ClassVar[bool] = True
    log_concave: ClassVar[bool] = False
    df: Param = param(support=constraints.positive, default=4.0)
    scale: Param = param(support=constraints.positive, default=lambda self, y, X: noise_scale(y))

    def law(self, f: Float[Array, "n *outputs"]) -> dist.Distribution:
        """Student-t around f."""
        return dist.StudentT(self.df, _column(f), self.scale)

    def fisher(self, f: Float[Array, "n *outputs"]) -> Float[Array, "n 1 1"]:
        """``(df + 1) / ((df + 3) scale²)`` (Lange, Little and Taylor 1989)."""
        return jnp.broadcast_to((self.df + 1) / (self.df + 3) * self.scale**-2.0, (f.shape[0], 1, 1))

    def marginal(self, f: Float[Array, "n *outputs"], covariance: Float[Array, "n 1 1"]) -> dist.Distribution:
        """Student-t of the same df; above 2 degrees its variance is the marginal one."""
        share = jnp.maximum(1 - 2 / self.df, 0.0)
        more = jnp.where(share > 0, share, 1.0) * covariance[:, 0, 0]
        return dist.StudentT(self.df, _column(f), jnp.sqrt(self.scale**2 + more))


class Bernoulli(Likelihood):
    """``P(y = 1) = 1 / (1 + exp(-f))``: two classes, 0 and 1."""

    discrete: ClassVar[str] = "classes"

    def law(self, f: Float[Array, "n *outputs"]) -> dist.Distribution:
        """Bernoulli with logit f."""
        return dist.BernoulliLogits(_column(f))

    def fisher(self, f: Float[Array, "n *outputs"]) -> Float[Array, "n 1 1"]:
        """``p (1 - p)``."""
        p = jax.nn.sigmoid(_column(f))
        return (p * (1 - p))[:, None, None]

    def marginal(self, f: Float[Array, "n *outputs"], covariance: Float[Array, "n 1 1"]) -> dist.Distribution:
        """Logit ``f / sqrt(1 + π v / 8)`` (MacKay 1992, the evidence framework applied to classification)."""
        return dist.BernoulliLogits(_column(f) / jnp.sqrt(1 + jnp.pi / 8 * covariance[:, 0, 0]))

    def check(self, y: Any, name: str = "y") -> None:
        """Observations are 0 or 1."""
        super().check(y, name)
        if np.nanmax(np.asarray(y, float)) > 1:
            raise ValueError(f"{name} holds {np.nanmax(np.asarray(y, float)):g}; Bernoulli takes classes 0 and 1.")


class Successes(dist.BinomialLogits):
    """Binomial whose number of trials may be floats that hold whole numbers, as fields of models do."""

    def sample(self, key: Any, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws of the number of successes."""
        trials = jnp.round(jnp.asarray(self.total_count)).astype(int)
        return dist.BinomialLogits(self.logits, trials, validate_args=False).sample(key, sample_shape)


class Binomial(Likelihood):
    """``y ~ Binomial(trials, 1 / (1 + exp(-f)))``: how many of a known number.

    Args:
        trials: how many there are at each point, a whole number or (n,). Only one number for all can be forecast.
    """

    discrete: ClassVar[str] = "counts"
    trials: Param = param(support=constraints.positive)

    def law(self, f: Float[Array, "n *outputs"]) -> dist.Distribution:
        """Binomial with logit f."""
        return Successes(_column(f), self._trials(f))

    def fisher(self, f: Float[Array, "n *outputs"]) -> Float[Array, "n 1 1"]:
        """``trials p (1 - p)``."""
        p = jax.nn.sigmoid(_column(f))
        return (self._trials(f) * p * (1 - p))[:, None, None]

    def marginal(self, f: Float[Array, "n *outputs"], covariance: Float[Array, "n 1 1"]) -> dist.Distribution:
        """Logit ``f / sqrt(1 + π v / 8)``, as in :class:`Bernoulli`."""
        return Successes(_column(f) / jnp.sqrt(1 + jnp.pi / 8 * covariance[:, 0, 0]), self._trials(f))

    def check(self, y: Any, name: str = "y") -> None:
        """Observations are whole numbers from 0 to ``trials``."""
        super().check(y, name)
        excess = np.asarray(y, float) - np.asarray(self.trials, float)
        if np.any(excess > 0):
            first = int(np.argmax(excess > 0))
            raise ValueError(f"{name} holds {np.asarray(y)[first]:g} at {first}, more than its trials.")

    def _trials(self, f: Array) -> Array:
        trials = jnp.asarray(self.trials)
        if trials.ndim and trials.shape != f.shape[:1]:
            raise ValueError(f"trials has shape {trials.shape}, and {f.shape[:1]} points are wanted; pass one number.")
        return trials


class Categories(dist.CategoricalLogits):
    """Categorical whose values may be floats that hold whole numbers, as y does."""

    def log_prob(self, value: Any) -> Array:
        """Log probability of each class."""
        return super().log_prob(jnp.asarray(value).astype(int))


def _check_count(classes: Any) -> None:
    if isinstance(classes, bool) or not isinstance(classes, int) or classes < 2:
        raise ValueError(f"classes is {classes!r}; a whole number of at least 2 is wanted.")


def _check_largest(likelihood: Any, y: Any, name: str) -> None:
    """Refuse classes beyond those of a likelihood."""
    largest, classes = np.nanmax(np.asarray(y, float)), likelihood.classes
    if largest >= classes:
        raise ValueError(f"{name} holds {largest:g}; {type(likelihood).__name__}({classes}) takes 0 to {classes - 1}.")


class Categorical(Likelihood):
    """``P(y = c) = softmax(f)_c``: several classes, 0, 1, ..., classes - 1.

    Args:
        classes: how many there are.
    """

    discrete: ClassVar[str] = "classes"
    classes: int = eqx.field(static=True)

    def __check_init__(self) -> None:
        _check_count(self.classes)

    @property
    def outputs(self) -> int:
        """One logit a class."""
        return self.classes

    def law(self, f: Float[Array, "n classes"]) -> dist.Distribution:
        """Categorical with logits f."""
        return Categories(f)

    def fisher(self, f: Float[Array, "n classes"]) -> Float[Array, "n classes classes"]:
        """``diag(p) - p p'``."""
        p = jax.nn.softmax(f, axis=-1)
        return jax.vmap(jnp.diag)(p) - p[:, :, None] * p[:, None, :]

    def marginal(
        self, f: Float[Array, "n classes"], covariance: Float[Array, "n classes classes"]
    ) -> dist.Distribution:
        """Logits ``f_c / sqrt(1 + π v_c / 8)`` (the probit approximation; Gibbs 1998)."""
        variance = jnp.diagonal(covariance, axis1=1, axis2=2)
        return Categories(f / jnp.sqrt(1 + jnp.pi / 8 * variance))

    def check(self, y: Any, name: str = "y") -> None:
        """Observations are classes below ``classes``."""
        super().check(y, name)
        _check_largest(self, y, name)


class Ordinal(Likelihood):
    """``P(y <= c) = F(cutpoint_c - f)``: ordered classes 0, 1, ..., classes - 1, with F the logistic or normal law.

    Args:
        classes: how many there are.
        cutpoints: where one class passes into the next, increasing, (classes - 1,). Default: normal first one and
            log-normal gaps, around those that the shares of the classes have at f = 0.
        link: ``"logit"`` (proportional odds) or ``"probit"``; static.

    References:
        McCullagh (1980), Regression models for ordinal data. Chu and Ghahramani (2005), Gaussian processes for ordinal
        regression, JMLR 6.
    """

    discrete: ClassVar[str] = "classes"
    classes: int = eqx.field(static=True)
    cutpoints: Param = param(support=constraints.ordered_vector, default=lambda self, y, X: self._around(y))
    link: str = eqx.field(static=True, default="logit")

    def __check_init__(self) -> None:
        _check_count(self.classes)
        if self.link not in ("logit", "probit"):
            raise ValueError(f"link is {self.link!r}; 'logit' or 'probit' is wanted.")

    def law(self, f: Float[Array, "n *outputs"]) -> dist.Distribution:
        """Categorical with the probabilities between cutpoints."""
        return Categories(self._log_probabilities(_column(f)))

    def fisher(self, f: Float[Array, "n *outputs"]) -> Float[Array, "n 1 1"]:
        """``sum_c p_c (d log p_c / df)²``."""
        f = _column(f)
        each, slope = jax.jvp(self._log_probabilities, (f,), (jnp.ones_like(f),))
        return jnp.sum(jnp.exp(each) * slope**2, axis=-1)[:, None, None]

    def marginal(self, f: Float[Array, "n *outputs"], covariance: Float[Array, "n 1 1"]) -> dist.Distribution:
        """Cutpoints less f over ``sqrt(1 + v)`` for the probit, exact; over ``sqrt(1 + π v / 8)`` for the logit."""
        share = 1.0 if self.link == "probit" else jnp.pi / 8
        return Categories(self._log_probabilities(_column(f), jnp.sqrt(1 + share * covariance[:, 0, 0])))

    def check(self, y: Any, name: str = "y") -> None:
        """Observations are classes below ``classes``, and given cutpoints are as many as pass between them."""
        super().check(y, name)
        _check_largest(self, y, name)
        held: Any = self.cutpoints
        if isinstance(held, Default | Given):
            return
        shape = held.shape() if isinstance(held, dist.Distribution) else np.shape(held)
        if shape != (self.classes - 1,):
            raise ValueError(
                f"cutpoints has shape {shape}; ({self.classes - 1},) is wanted for {self.classes} classes."
            )

    def _log_probabilities(self, f: Float[Array, " n"], width: Any = 1.0) -> Float[Array, "n classes"]:
        cutpoints, width = jnp.asarray(self.cutpoints), jnp.reshape(jnp.asarray(width, f.dtype), (-1, 1))
        ends, gap = (cutpoints - f[:, None]) / width, jnp.diff(cutpoints) / width
        below = jax.nn.log_sigmoid if self.link == "logit" else jax.scipy.special.log_ndtr
        between = _between_logits if self.link == "logit" else _between_probits
        inside = between(ends[:, :-1], ends[:, 1:], gap)
        return jnp.concatenate([below(ends[:, :1]), inside, below(-ends[:, -1:])], axis=1)

    def _around(self, y: Float[Array, " n"]) -> dist.Distribution:
        counts = jnp.sum(y[:, None] == jnp.arange(self.classes), axis=0) + 0.5  # no class is impossible
        below = (jnp.cumsum(counts)[:-1] / jnp.sum(counts)).astype(y.dtype)
        ends = jax.scipy.special.logit(below) if self.link == "logit" else jax.scipy.special.ndtri(below)
        centre = jnp.concatenate([ends[:1], jnp.log(jnp.diff(ends))])
        return dist.TransformedDistribution(dist.Normal(centre, 1.0).to_event(1), transforms.OrderedTransform())


def _between_logits(low: Array, high: Array, gap: Array) -> Array:
    """``log(sigmoid(high) - sigmoid(low))``, without the difference; ``gap`` is high - low with all its digits."""
    return jax.nn.log_sigmoid(high) + jax.nn.log_sigmoid(-low) + jnp.log(-jnp.expm1(-gap))


def _between_probits(low: Array, high: Array, gap: Array) -> Array:
    """``log(Phi(high) - Phi(low))``, in the tail where both are small; between close ends by the density there."""
    upper = low + high > 0
    low, high = jnp.where(upper, -high, low), jnp.where(upper, -low, high)
    middle = 0.5 * (low + high)
    near = gap * jnp.maximum(jnp.abs(middle), 1) < 0.02
    most = jax.scipy.special.log_ndtr(high)
    wide = most + jnp.log(-jnp.expm1(jnp.where(near, -1.0, jax.scipy.special.log_ndtr(low) - most)))
    # Two terms of the integral's series: the third is below 1e-9 there.
    density = -0.5 * middle**2 - 0.5 * math.log(2 * math.pi)
    return jnp.where(near, density + jnp.log(gap) + jnp.log1p(gap**2 * (middle**2 - 1) / 24), wide)


#: Logs of rates, relative to the unit, stay within this: beyond lies the overflow of float32.
LOG_RATE = 30.0


class Counts(Likelihood):
    """Abstract: counts whose mean is ``unit exp f``.

    Args:
        unit: the mean where f is 0. Default: the mean of y, at least one count in all.
    """

    discrete: ClassVar[str] = "counts"
    unit: eqx.AbstractVar[Param]

    def _rate(self, f: Array) -> Array:
        return self.unit * jnp.exp(jnp.clip(_column(f), -LOG_RATE, LOG_RATE))


class Poisson(Counts):
    """``y ~ Poisson(unit exp f)``.

    Args:
        unit: the rate where f is 0. Default: the mean of y, at least one count in all.
    """

    unit: Param = param(support=constraints.positive, default=lambda self, y, X: _mean_count(y))

    def law(self, f: Float[Array, "n *outputs"]) -> dist.Distribution:
        """Poisson with log rate ``log unit + f``."""
        return dist.Poisson(self._rate(f))

    def fisher(self, f: Float[Array, "n *outputs"]) -> Float[Array, "n 1 1"]:
        """The rate."""
        return self._rate(f)[:, None, None]

    def marginal(self, f: Float[Array, "n *outputs"], covariance: Float[Array, "n 1 1"]) -> dist.Distribution:
        """Negative binomial with the moments of a Poisson whose rate is log-normal."""
        return _log_normal_rate(self._rate(f), covariance[:, 0, 0], 1.0)


class NegativeBinomial(Counts):
    """Counts of mean ``unit exp f`` and variance ``mean + mean² / concentration``.

    Args:
        concentration: large is Poisson. Default: log-normal around 10, a factor of 10 wide.
        unit: the mean where f is 0. Default: the mean of y, at least one count in all.
    """

    concentration: Param = param(support=constraints.positive, default=lambda self, y, X: dist.LogNormal(2.3, 2.3))
    unit: Param = param(support=constraints.positive, default=lambda self, y, X: _mean_count(y))

    def law(self, f: Float[Array, "n *outputs"]) -> dist.Distribution:
        """Negative binomial with log mean ``log unit + f``."""
        return dist.NegativeBinomial2(self._rate(f), self.concentration)

    def fisher(self, f: Float[Array, "n *outputs"]) -> Float[Array, "n 1 1"]:
        """``mean / (1 + mean / concentration)``."""
        rate = self._rate(f)
        return (rate / (1 + rate / self.concentration))[:, None, None]

    def marginal(self, f: Float[Array, "n *outputs"], covariance: Float[Array, "n 1 1"]) -> dist.Distribution:
        """Negative binomial with the moments of one whose mean is log-normal."""
        return _log_normal_rate(self._rate(f), covariance[:, 0, 0], 1 + 1 / self.concentration)


def _column(f: Array) -> Array:
    """f of one output as (n,)."""
    return f if f.ndim == 1 else f[:, 0]


def _mean_count(y: Float[Array, " n"]) -> Float[Array, ""]:
    count = jnp.maximum(jnp.sum(~jnp.isnan(y)), 1)
    return jnp.maximum(priors.centre(y), 1 / count)


def _log_normal_rate(rate: Array, variance: Array, factor: Any) -> dist.Distribution:
    """Counts with mean ``m = rate e^(v/2)`` and variance ``m + m² (factor e^v - 1)``."""
    variance = jnp.clip(variance, 0.0, LOG_RATE)
    mean, excess = rate * jnp.exp(0.5 * variance), factor * jnp.exp(variance) - 1
    # A larger concentration is Poisson to fewer digits than the log-gamma of it loses.
    return dist.NegativeBinomial2(mean, 1 / jnp.maximum(excess, float(jnp.finfo(rate.dtype).eps) ** 0.4))
