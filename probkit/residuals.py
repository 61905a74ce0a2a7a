"""One-step errors, and the tests and plots that judge a model of a series by them."""

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from probkit.posterior import Posterior


@dataclasses.dataclass(frozen=True)
class Residuals:
    """Standardised one-step errors: independent standard normals if the model is right.

    Attributes:
        errors: normal scores of each y in its predictive distribution given those before it (a mixture over draws of
            the parameters), (time,); NaN where y is missing or the flat states are not known yet.
        labels: what stands along the time axis.
        label_name: its name.
    """

    errors: np.ndarray
    labels: np.ndarray
    label_name: str

    def autocorrelations(self, lags: int) -> np.ndarray:
        """Autocorrelations at lags 1 .. `lags`, over pairs that were both seen."""
        e = self.errors - np.nanmean(self.errors)
        total = np.nansum(e * e)
        return np.array([np.nansum(e[k:] * e[:-k]) / total for k in range(1, lags + 1)])

    def table(self, lags: int | None = None) -> Any:
        """A pandas frame of tests: statistic, degrees of freedom and p-value.

        ``Ljung-Box`` (autocorrelation up to `lags`), ``Jarque-Bera`` (normality) and ``heteroskedasticity`` (the last
        third's mean square over the first third's, two-sided). Parameters are not counted off the degrees of freedom.

        Args:
            lags: how many autocorrelations; by default min(10, n / 5).

        References:
            Ljung and Box (1978), Biometrika 65. Jarque and Bera (1987). Durbin and Koopman (2012), section 2.12.
        """
        import pandas as pd
        from scipy import stats

        e = self.errors[~np.isnan(self.errors)]
        n = len(e)
        if n < 8:
            raise ValueError(f"{n} one-step errors are known; at least 8 are wanted for tests.")
        lags = max(1, min(10, n // 5)) if lags is None else lags
        if not 1 <= lags < n:
            raise ValueError(f"lags is {lags}; 1 to {n - 1} is wanted.")
        r = self.autocorrelations(lags)
        box = n * (n + 2) * np.sum(r**2 / (n - np.arange(1, lags + 1)))
        skew, excess = stats.skew(e), stats.kurtosis(e)
        normal = n / 6 * (skew**2 + excess**2 / 4)
        third = n // 3
        ratio = np.sum(e[-third:] ** 2) / np.sum(e[:third] ** 2)
        lower = stats.f.cdf(ratio, third, third)
        rows = {
            "Ljung-Box": (box, lags, stats.chi2.sf(box, lags)),
            "Jarque-Bera": (normal, 2, stats.chi2.sf(normal, 2)),
            "heteroskedasticity": (ratio, third, 2 * min(lower, 1 - lower)),
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["statistic", "df", "p_value"])

    def plot(self, axes: Any = None, lags: int = 24) -> Any:
        """The errors over time, their histogram, their autocorrelations and a normal Q-Q plot; returns the axes.

        Args:
            axes: four matplotlib axes; made by default.
            lags: how many autocorrelations.
        """
        import matplotlib.pyplot as plt
        from scipy import stats

        if axes is None:
            axes = plt.subplots(2, 2, figsize=(9, 5.5), layout="constrained")[1].ravel()
        if len(axes) != 4:
            raise ValueError(f"axes holds {len(axes)}; four are wanted.")
        e = np.sort(self.errors[~np.isnan(self.errors)])
        axes[0].plot(self.labels, self.errors, color="0.25", lw=0.9)
        axes[0].axhline(0, color="0.6", lw=0.8)
        axes[0].set(xlabel=self.label_name, ylabel="standardised error")
        grid = np.linspace(-4, 4, 200)
        axes[1].hist(e, bins="auto", density=True, color="C0", alpha=0.5)
        axes[1].plot(grid, stats.norm.pdf(grid), color="0.25", lw=1)
        axes[1].set(xlabel="standardised error", ylabel="density")
        lags = min(lags, len(e) - 1)
        axes[2].vlines(np.arange(1, lags + 1), 0, self.autocorrelations(lags), color="C0", lw=2)
        axes[2].axhspan(-1.96 / len(e) ** 0.5, 1.96 / len(e) ** 0.5, color="0.85", zorder=0)
        axes[2].set(xlabel="lag", ylabel="autocorrelation")
        quantiles = stats.norm.ppf((np.arange(len(e)) + 0.5) / len(e))
        axes[3].plot(quantiles, e, "o", ms=3, color="C0")
        axes[3].plot(quantiles[[0, -1]], quantiles[[0, -1]], color="0.4", lw=0.9)
        axes[3].set(xlabel="normal quantile", ylabel="standardised error")
        for ax in axes:
            ax.spines[["top", "right"]].set_visible(False)
        return axes


def residuals(posterior: "Posterior") -> Residuals:
    """The standardised one-step errors of a fitted series, with tests (`table`) and plots (`plot`).

    Raises:
        TypeError: the model has no one-step law.
    """
    from probkit.timeseries import DRAWS, filtered, scores

    ahead = filtered(posterior, draws=DRAWS)
    labels, name = posterior._labels()
    means, stds = np.asarray(ahead.means)[0], np.asarray(ahead.stds)[0]
    return Residuals(scores(np.asarray(posterior.target.args[0]), means, stds), labels, name)
