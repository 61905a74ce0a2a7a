"""What an event did to a series: the series against what it would have been, by a model of the time before."""

import dataclasses
from typing import Any

import jax
import numpy as np

from probkit import border
from probkit.fit import fit
from probkit.infer.method import Method
from probkit.model import Model
from probkit.posterior import Posterior
from probkit.prediction import Prediction
from probkit.timeseries import DRAWS, impute


@dataclasses.dataclass(frozen=True)
class CausalImpact:
    """The answer of :func:`causal_impact`.

    Attributes:
        posterior: the fit, to the data before the event.
        y: the whole series.
        start: position at which the event begins.
        counterfactual: what the series would have been from then on, joint draws.
        history: labels and values of the whole series.
    """

    posterior: Posterior
    y: np.ndarray
    start: int
    counterfactual: Prediction
    history: tuple

    def _effects(self) -> np.ndarray:
        """Draws of y less the counterfactual, (draw, time from start on); 0 where y is missing."""
        paths = self.counterfactual.draws[0].astype(float)
        return np.nan_to_num(self.y[self.start :] - paths)

    def table(self, level: float = 95) -> Any:
        """A pandas frame: the average and the total of y, of the counterfactual and of the effect, with intervals.

        The rows ``relative`` are the effect over the counterfactual, in percent; ``p`` is the posterior probability
        of an effect of the other sign.

        Args:
            level: percentage of the central intervals.
        """
        import pandas as pd

        seen = ~np.isnan(self.y[self.start :])
        total_y = self.y[self.start :][seen].sum()
        total = self._effects().sum(axis=1)
        without = total_y - total
        count, tail = seen.sum(), (100 - level) / 2
        rows = {}
        for name, by in (("average", count), ("total", 1)):
            relative = 100 * total / without
            low, high = np.percentile(total / by, [tail, 100 - tail])
            r_low, r_high = np.percentile(relative, [tail, 100 - tail])
            rows[name] = {
                "actual": total_y / by,
                "counterfactual": without.mean() / by,
                "effect": total.mean() / by,
                f"lo-{level:g}": low,
                f"hi-{level:g}": high,
                "relative": relative.mean(),
                f"relative lo-{level:g}": r_low,
                f"relative hi-{level:g}": r_high,
                "p": min(np.mean(total >= 0), np.mean(total <= 0)),
            }
        return pd.DataFrame(rows)

    def to_frame(self, level: float = 95) -> Any:
        """A pandas frame by label from the start on: y, the counterfactual, the effect and its running sum."""
        import pandas as pd

        effects = self._effects()
        columns: dict[str, Any] = {"y": self.y[self.start :], "counterfactual": self.counterfactual.mean}
        tail = (100 - level) / 2
        for name, draws in (("effect", effects), ("cumulative", np.cumsum(effects, axis=1))):
            low, high = np.percentile(draws, [tail, 100 - tail], axis=0)
            columns |= {name: draws.mean(0), f"{name} lo-{level:g}": low, f"{name} hi-{level:g}": high}
        index = pd.Index(self.counterfactual.labels, name=self.counterfactual.label_name)
        return pd.DataFrame(columns, index=index)

    def plot(self, axes: Any = None, level: float = 95) -> Any:
        """Series and counterfactual, the effect, and its running sum, in three panels; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        if axes is None:
            axes = plt.subplots(3, 1, figsize=(8, 6.5), sharex=True, layout="constrained")[1]
        if len(axes) != 3:
            raise ValueError(f"axes holds {len(axes)}; three are wanted.")
        table, x = self.to_frame(level), np.asarray(self.counterfactual.labels)
        low, high = self.counterfactual.interval(level)
        axes[0].plot(*self.history, color="0.25", lw=1.1, label="data")
        axes[0].fill_between(x, low, high, color="C0", alpha=0.25, lw=0)
        axes[0].plot(x, self.counterfactual.mean, color="C0", lw=1.8, label="without the event")
        axes[0].legend(frameon=False, loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        axes[0].set_ylabel("series")
        for ax, name in ((axes[1], "effect"), (axes[2], "cumulative")):
            ax.fill_between(
                x, table[f"{name} lo-{level:g}"], table[f"{name} hi-{level:g}"], color="C1", alpha=0.25, lw=0
            )
            ax.plot(x, table[name], color="C1", lw=1.8)
            ax.axhline(0, color="0.6", lw=0.8)
            ax.set_ylabel(name if name == "effect" else "cumulative effect")
        for ax in axes:
            ax.axvline(x[0], color="0.4", lw=0.9, ls="--")
            ax.spines[["top", "right"]].set_visible(False)
        axes[2].set_xlabel(self.counterfactual.label_name)
        return axes


def causal_impact(
    model: Model,
    y: Any,
    X: Any = None,
    *,
    start: Any,
    key: Any = None,
    method: Method | None = None,
    draws: int = DRAWS,
) -> CausalImpact:
    """What an event did: a model of y before it, and of its inputs X, says what y would have been without it.

    The inputs must be untouched by the event. The values from `start` on are left out of the fit; their joint posterior
    predictive distribution is the counterfactual.

    Args:
        model: a structural model.
        y: the series, (time,); labelled where `start` is a label.
        X: inputs for the whole time, where the model takes them.
        start: where the event begins: a position in y, or a label of its index.
        key: a new-style key.
        method: how to fit; ``Auto()`` by default.
        draws: how many draws of the counterfactual.

    Raises:
        TypeError: the model cannot fill gaps.
        ValueError: `start` is not inside the series, or nothing was seen before or after it.

    References:
        Brodersen, Gallusser, Koehler, Remy and Scott (2015), Inferring causal impact using Bayesian structural
        time-series models, Annals of Applied Statistics 9.
    """
    border.check_key(key, "causal_impact")
    series = border.as_series(y, type(model).__name__)
    values, n = np.array(series.y, float), len(series.y)
    at = _position(start, series.labels, n)
    if not np.any(~np.isnan(values[:at])) or not np.any(~np.isnan(values[at:])):
        raise ValueError(f"start is {start!r}, position {at} of {n}: y needs values before it and from it on.")
    before = np.where(np.arange(n) < at, values, np.nan).astype(series.y.dtype)
    if series.labels is not None:
        import pandas as pd

        before = pd.Series(before, index=series.labels, name=series.name)
    k_fit, k_draw = jax.random.split(key)
    posterior = fit(model, before, X, key=k_fit, method=method, progress=False)
    if not isinstance(posterior, Posterior):
        raise TypeError("causal_impact takes one series.")
    filled = impute(posterior, draws=draws, key=k_draw)
    paths = filled.draws[..., at:]
    labels = np.asarray(filled.labels)
    counterfactual = Prediction(paths, paths, None, labels[at:], filled.label_name)
    return CausalImpact(posterior, values, at, counterfactual, (labels, values))


def _position(start: Any, labels: Any, n: int) -> int:
    """The position of a label, or a position as it is."""
    import pandas as pd

    if isinstance(labels, pd.DatetimeIndex | pd.PeriodIndex) and not isinstance(start, int | np.integer):
        at = int(labels.searchsorted(pd.Timestamp(start) if isinstance(labels, pd.DatetimeIndex) else pd.Period(start)))
    elif labels is not None and start in labels:
        at = int(labels.get_loc(start))
    elif isinstance(start, int | np.integer) and not isinstance(start, bool):
        at = int(start)
    else:
        raise ValueError(f"start is {start!r}; a position from 1 to {n - 1}, or a label of y, is wanted.")
    if not 0 < at < n:
        raise ValueError(f"start is {start!r}, position {at}; a position from 1 to {n - 1} is wanted.")
    return at
