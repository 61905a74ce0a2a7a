"""Exponential smoothing as a pytree with words for names."""

from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

from probkit import priors as data_priors
from probkit.ets import priors
from probkit.ets.conditional import STATES, is_normal, starting_states
from probkit.ets.distribution import ETSDistribution, SESDistribution
from probkit.ets.recursions import Form
from probkit.model import Default, Model, Param, param


class ETS(Model):
    """Exponential smoothing with a trend and a season, any of the thirty forms, as an innovations state space model.

    ``pk.ETS("A", "Ad", "M", period=12)`` or ``pk.ETS("AAdM", period=12)``: error A or M; trend N, A, Ad, M or Md;
    season N, A or M. A field left out gets a weakly informative prior, scaled to the data; fields that a form lacks are
    not read. NaN in y is missing: exactly so where the form is additive throughout and errors are normal; elsewhere the
    states go through the gap as expected. Leave-one-out is known for forms that are additive throughout, with normal
    errors; the others meet by ``pk.kfold``.

    Args:
        error: the error, or all letters in one string.
        trend: the trend, with d where it is damped.
        season: the season.
        period: observations in a season, where there is one.
        admissible: whether the parameters may take the whole region in which forecasts forget the past, instead of the
            usual one; for forms without a season.
        alpha: share of an error that the level takes. Default: uniform on (0, 1).
        beta: share that the slope takes, not divided by alpha. Default: uniform on (0, alpha).
        gamma: share that the season takes, not divided by 1 - alpha. Default: uniform on (0, 1 - alpha).
        phi: damping. Default: uniform on (0.8, 0.98).
        level: starting level, in the units of y. Default: around the mean of the first two periods.
        slope: starting slope, in units of y a step, or a ratio. Default: around 0 (or 1).
        seasonal: seasons of the first ``period`` times, in order of time, (period,): deviations of sum 0, or factors of
            mean 1. Default: as large as the spread of y.
        scale: standard deviation of the errors, in the units of y, or relative where they are multiplicative. Default:
            half-normal with the spread of y as its scale.
        df: degrees of freedom of Student-t errors, such as ``dist.Gamma(2, 0.1)``, with ``scale`` their scale: single
            outliers then say less about the parameters. Default: None, normal errors.

    Raises:
        ValueError: unknown letters; a season without a period; data that a form cannot take.

    References:
        Hyndman, R. J., Koehler, A. B., Ord, J. K. and Snyder, R. D. (2008). Forecasting with Exponential Smoothing.
    """

    error: str = eqx.field(static=True)
    trend: str | None = eqx.field(static=True, default=None)
    season: str | None = eqx.field(static=True, default=None)
    period: int = eqx.field(static=True, default=1, kw_only=True)
    admissible: bool = eqx.field(static=True, default=False, kw_only=True)
    alpha: Param = param(support=constraints.real, default=priors.alpha)
    beta: Param = param(support=constraints.real, default=priors.beta)
    gamma: Param = param(support=constraints.real, default=priors.gamma)
    phi: Param = param(support=constraints.nonnegative, default=priors.phi)
    level: Param = param(support=constraints.real, default=priors.level)
    slope: Param = param(support=constraints.real, default=priors.slope)
    seasonal: Param = param(dims=("season",), default=priors.seasonal)
    scale: Param = param(support=constraints.nonnegative, default=priors.scale)
    df: Param = param(support=constraints.positive, default=None)

    def __check_init__(self) -> None:
        if (self.trend is None) != (self.season is None):
            raise ValueError('ETS takes all letters in one string, as in ETS("AAdM"), or three: ETS("A", "Ad", "M").')
        form, period = self.form, self.period
        if isinstance(period, bool) or not isinstance(period, int | np.integer) or period < 1:
            raise ValueError(f"period is {period!r}; the number of observations in a season is wanted.")
        if form.season != "N" and period < 2:
            raise ValueError(f"ETS({form.name}) has a season: pass period=, such as 12 for months or 4 for quarters.")
        if self.admissible and form.season != "N":
            raise ValueError(
                f"admissible=True is for forms without a season; with one (ETS({form.name})) give alpha, beta and "
                "gamma priors of your own."
            )

    @property
    def form(self) -> Form:
        """Which of the thirty forms it is."""
        return Form.parse(f"{self.error}{self.trend or ''}{self.season or ''}")

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse data that the form cannot take.

        Raises:
            TypeError: inputs were given.
            ValueError: values that are not positive under a multiplicative form; fewer values than a season.
        """
        if X is not None:
            raise TypeError("ETS takes no X.")
        seen, form = np.asarray(y), self.form
        seen = seen[~np.isnan(seen)]
        if form.positive and np.any(seen <= 0):
            raise ValueError(
                f"y has {int(np.sum(seen <= 0))} values that are not positive; ETS({form.name}) has a multiplicative "
                "part and needs y > 0. Take an additive form."
            )
        if form.season != "N" and seen.size < self.period:
            raise ValueError(
                f"y has {seen.size} observed values; ETS({form.name}) with period {self.period} needs a whole season."
            )

    def normal_sites(self) -> tuple[str, ...]:
        """With a season, starting states with normal priors, where the errors are normal and linear in them.

        One or two states alone are not worth the compilation.
        """
        if not self.form.gaussian or self.form.season == "N" or self.df is not None:
            return ()
        return tuple(name for name in STATES if is_normal(getattr(self, name)))

    def conditional(self, y: Any, X: Any, laws: dict[str, dist.Distribution]) -> tuple[Any, Any]:
        """The starting states given the smoothing parameters and the scale."""
        law = self.distribution(X, y.shape[0])
        return starting_states(self.form, y, law.weights, law.start, self.scale, laws)

    def distribution(self, X: Any, length: int) -> ETSDistribution:
        """The distribution of y given the parameters and starting states."""
        if X is not None:
            raise TypeError("ETS takes no X.")
        form, states = self.form, {}
        if form.season != "N":
            if jnp.shape(self.seasonal) != (self.period,):
                raise ValueError(
                    f"seasonal has shape {jnp.shape(self.seasonal)}; ETS with period {self.period} takes "
                    f"({self.period},)."
                )
            states["seasonal"] = self.seasonal
        return ETSDistribution(
            form,
            alpha=self.alpha,
            beta=self.beta,
            gamma=self.gamma,
            phi=self.phi,
            level=self.level,
            slope=self.slope,
            scale=self.scale,
            length=length,
            df=self.df,
            **states,
        )


def Holt(*, damped: bool = False, **fields: Any) -> ETS:
    """Holt's linear trend, additive errors: ``ETS("AAN")``, or ``ETS("AAdN")`` damped.

    Args:
        damped: whether the trend dies out.
        fields: fields of :class:`ETS`.
    """
    return ETS("AAdN" if damped else "AAN", **fields)


def HoltWinters(seasonal: str = "additive", *, period: int, damped: bool = False, **fields: Any) -> ETS:
    """Holt and Winters' trend and season: ``ETS("AAA")``, or ``ETS("MAM")`` where the season is multiplicative.

    Args:
        seasonal: ``"additive"`` or ``"multiplicative"``; the errors are of the same kind, as in R's `hw`.
        period: observations in a season.
        damped: whether the trend dies out.
        fields: fields of :class:`ETS`, but for ``seasonal``: starting seasons are set by ``ETS(..., seasonal=)``.

    Raises:
        ValueError: another kind of season.
    """
    kinds = {"additive": "A", "multiplicative": "M"}
    if seasonal not in kinds:
        raise ValueError(f"seasonal is {seasonal!r}; 'additive' or 'multiplicative' is wanted.")
    kind = kinds[seasonal]
    return ETS(f"{kind}A{'d' * damped}{kind}", period=period, **fields)


def Theta(*, period: int = 1, **fields: Any) -> ETS:
    """The theta method: exponential smoothing of the level with a fixed drift, half the slope of a line through y.

    ``ETS("AAN")`` with beta 0, or with a period ``ETS("AAA")`` with beta and gamma 0: a season that does not change.
    For a season in ratios take ``pk.Transformed(pk.Theta(period=12), "log")``.

    Args:
        period: observations in a season.
        fields: fields of :class:`ETS`; ``slope`` is the drift.

    References:
        Assimakopoulos, V. and Nikolopoulos, K. (2000). The theta model: a decomposition approach to forecasting.
            International Journal of Forecasting 16, 521-530.
        Hyndman, R. J. and Billah, B. (2003). Unmasking the Theta method. International Journal of Forecasting 19,
            287-290.
    """
    fixed = {"beta": 0.0, "slope": Default(priors.half_trend)} | ({"gamma": 0.0} if period != 1 else {})
    return ETS("AAN" if period == 1 else "AAA", period=period, **(fixed | fields))


class SES(Model):
    """Simple exponential smoothing, its starting level integrated out under a flat prior.

    ``y_t = level_(t-1) + e_t``, ``level_t = level_(t-1) + alpha e_t``, ``e_t ~ N(0, scale²)``: ARIMA(0, 1, 1) with
    ``ma = alpha - 1``, and for alpha up to 1 the local level with ``obs_scale² = (1 - alpha) scale²`` and
    ``level_scale = alpha scale``. ``ETS("ANN")`` is the same with its starting level a parameter, as in R.

    Args:
        alpha: share of an error that the level takes. Default: uniform on (0, 1).
        scale: standard deviation of the errors, in the units of y. Default: half-normal with the spread of y as its
            scale, cut off below at the rounding error of y.

    References:
        Muth, J. F. (1960). Optimal properties of exponentially weighted forecasts. JASA 55, 299-306.
    """

    integrates_states: ClassVar[bool] = True

    alpha: Param = param(
        support=constraints.real, default=lambda self, y, X: dist.Uniform(jnp.zeros((), y.dtype), jnp.ones((), y.dtype))
    )
    scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: data_priors.noise(y))

    def distribution(self, X: Any, length: int) -> SESDistribution:
        """The distribution of y given the share and the scale."""
        if X is not None:
            raise TypeError("SES takes no X.")
        return SESDistribution(self.alpha, self.scale, length)
