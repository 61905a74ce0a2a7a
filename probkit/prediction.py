"""Predictions: draws of the observable, with the exact mixture they come from where it is known."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from probkit.evaluate.uncertainty import entropy


@dataclasses.dataclass(frozen=True)
class Prediction:
    """What a posterior says of observations: at times to come, at new inputs, or once more at the old ones.

    Where the law of each observation given the parameters is normal, moments and quantiles are those of the mixture
    of normals over the draws, free of the noise of sampling observations; else they come from the draws.

    Attributes:
        draws: draws of the observable, (chain, draw, n); rows are joint paths for forecasts.
        means: mean given the parameters of each draw, (chain, draw, n).
        stds: standard deviation likewise; None where the law given the parameters is not normal.
        labels: what stands along the axis: times or rows.
        label_name: the name of that axis.
        history: the data before a forecast, for :meth:`plot`: (labels, y), or None.
        lanes: names of the lanes, where there are many series: then every array has the axis (lane,) before the last.
        noise: standard deviation of the noise alone, given the parameters and the latent function, (chain, draw, n).
        probabilities: of each class, (chain, draw, n, classes), where y is a class.
        entropies: of the class given the latent function, in nats, (chain, draw, n), likewise.
    """

    draws: Float[np.ndarray, "chain draw n"]
    means: Float[np.ndarray, "chain draw n"]
    stds: Float[np.ndarray, "chain draw n"] | None
    labels: Any
    label_name: str = "time"
    history: tuple | None = None
    lanes: np.ndarray | None = None
    noise: Float[np.ndarray, "chain draw n"] | None = None
    probabilities: Float[np.ndarray, "chain draw n classes"] | None = None
    entropies: Float[np.ndarray, "chain draw n"] | None = None

    @property
    def mean(self) -> np.ndarray:
        """Predictive mean, (n,)."""
        # In double: thousands of float32 numbers far from 0 do not add up.
        exact = self.stds is not None or self.probabilities is not None
        return (self.means if exact else self.draws).mean((0, 1), dtype=float)

    @property
    def aleatoric(self) -> np.ndarray:
        """The spread that no data would take away, (n,): sd of the noise; for classes the expected entropy, in nats.

        Raises:
            TypeError: the law of y does not tell its noise.
        """
        if self.entropies is not None:
            return self.entropies.mean((0, 1), dtype=float)
        if self.noise is None:
            raise TypeError("The law of y given the parameters does not tell its noise apart.")
        return np.sqrt(np.mean(np.square(self.noise, dtype=float), (0, 1)))

    @property
    def epistemic(self) -> np.ndarray:
        """The spread that comes of not knowing the parameters, (n,): an sd; for classes mutual information, in nats.

        ``epistemic² + aleatoric² = std²``; for classes ``epistemic + aleatoric = entropy``.
        """
        if self.entropies is not None:
            return np.maximum(self.entropy - self.aleatoric, 0.0)
        return np.sqrt(np.maximum(self.std**2 - self.aleatoric**2, 0.0))

    @property
    def class_probabilities(self) -> np.ndarray:
        """Predictive probability of each class, (n, classes).

        Raises:
            TypeError: y is no class.
        """
        if self.probabilities is None:
            raise TypeError("class_probabilities is for classes; y is a number here.")
        return self.probabilities.mean((0, 1), dtype=float)

    @property
    def entropy(self) -> np.ndarray:
        """Entropy of the predicted class, in nats, (n,)."""
        return entropy(self.class_probabilities)

    @property
    def std(self) -> np.ndarray:
        """Predictive standard deviation, (n,): spread within draws plus spread between them."""
        if self.stds is None:
            return self.draws.std((0, 1), dtype=float)
        return np.sqrt(np.mean(np.square(self.stds, dtype=float), (0, 1)) + self.means.var((0, 1), dtype=float))

    def quantile(self, q: float | Sequence[float]) -> np.ndarray:
        """Predictive quantiles: (n,) for one probability, (len(q), n) for several.

        Raises:
            ValueError: a probability outside (0, 1).
        """
        probabilities = np.atleast_1d(np.asarray(q, float))
        if not np.all((probabilities > 0) & (probabilities < 1)):
            raise ValueError(f"q is {q}; probabilities between 0 and 1 are wanted.")
        if self.stds is None:
            found = np.quantile(self._flat(self.draws), probabilities, axis=0)
        else:
            found = np.stack(
                [_mixture_quantile(p, self._flat(self.means), self._flat(self.stds)) for p in probabilities]
            )
        return found[0] if np.ndim(q) == 0 else found

    def interval(self, level: float = 95) -> np.ndarray:
        """Central interval at ``level`` percent, (2, n): lower and upper limits."""
        if not 0 < level < 100:
            raise ValueError(f"level is {level}; a percentage between 0 and 100 is wanted, as in level=95.")
        tail = 0.5 - level / 200
        return self.quantile([tail, 1 - tail])

    def to_frame(self, level: Sequence[float] = (80, 95), backend: Any = "pandas") -> Any:
        """A frame with the labels and columns ``mean, lo-80, hi-80, ...``.

        Args:
            level: percentages of central intervals.
            backend: any eager backend of narwhals: ``"pandas"``, ``"polars"``, ``"pyarrow"``.
        """
        import narwhals as nw

        labels = np.asarray(self.labels)
        columns: dict[str, Any] = {}
        if self.lanes is not None:
            columns["lane"] = np.repeat(self.lanes, len(labels))
            labels = np.tile(labels, len(self.lanes))
        columns |= {self.label_name: labels, "mean": self.mean.ravel()}
        for one in np.atleast_1d(np.asarray(level, float)):
            low, high = self.interval(one)
            columns |= {f"lo-{one:g}": low.ravel(), f"hi-{one:g}": high.ravel()}
        return nw.from_dict(columns, backend=backend).to_native()

    def score(self, y: Any, level: Sequence[float] = (80, 95)) -> dict[str, float]:
        """Scores against what happened, averaged over entries that are not NaN.

        Args:
            y: what happened, (n,), or (n, lane) for lanes.
            level: percentages of central intervals.

        Returns:
            ``log_score`` (mean log predictive density, higher is better; NaN where no density is known), ``crps`` and
            ``rmse``, ``mae`` (lower is better), and ``coverage-80`` ... (share of y inside).

        References:
            Gneiting and Raftery (2007), Strictly proper scoring rules, prediction, and estimation.
        """
        from scipy.special import logsumexp

        y = np.asarray(y, float)
        n = self.draws.shape[-1]
        wanted = (n,) if self.lanes is None else (n, len(self.lanes))
        if y.shape != wanted:
            raise ValueError(f"y has shape {y.shape}; {wanted} is wanted, as many as were predicted.")
        y = y.T
        seen = ~np.isnan(y)
        flat = np.sort(self._flat(self.draws), axis=0)
        size = flat.shape[0]
        rank = (2 * np.arange(1, size + 1) - size - 1).reshape(-1, *[1] * y.ndim)
        crps = np.abs(flat - y).mean(0) - (rank * flat).sum(0) / size**2
        log_score = np.full(y.shape, np.nan)
        if self.stds is not None:
            means, stds = self._flat(self.means), self._flat(self.stds)
            terms = -0.5 * ((y - means) / stds) ** 2 - np.log(stds) - 0.5 * np.log(2 * np.pi)
            log_score = logsumexp(terms, axis=0) - np.log(terms.shape[0])
        if self.probabilities is not None:
            at = np.where(seen, y, 0).astype(int)
            with np.errstate(divide="ignore"):
                log_score = np.log(np.take_along_axis(self.class_probabilities, at[:, None], axis=1)[:, 0])
        error = (y - self.mean)[seen]
        out = {
            "log_score": float(log_score[seen].mean()),
            "crps": float(crps[seen].mean()),
            "rmse": float(np.sqrt(np.mean(error**2))),
            "mae": float(np.mean(np.abs(error))),
        }
        for one in level:
            low, high = self.interval(one)
            out[f"coverage-{one:g}"] = float(np.mean(((y >= low) & (y <= high))[seen]))
        return out

    def plot(
        self, ax: Any = None, level: Sequence[float] = (50, 80, 95), color: str = "C0", label: str | None = None
    ) -> Any:
        """A fan of central intervals around the mean, with the history before it; returns the matplotlib axes."""
        import matplotlib.pyplot as plt

        if self.lanes is not None:
            raise TypeError(
                "plot draws one series; take a lane, posterior[i].forecast(horizon).plot(), or where one model holds "
                "several series, the columns of to_frame()."
            )
        ax = plt.subplots(figsize=(8, 3.5), layout="constrained")[1] if ax is None else ax
        x, name = _drawable(self.labels), self.label_name
        if self.history is not None:
            times, y = _drawable(self.history[0]), self.history[1]
            if times.dtype.kind != x.dtype.kind:
                # Labels that do not go on (dates without a frequency, names): the forecast stands at positions.
                times, name = np.arange(len(y)), "time"
            ax.plot(times, y, color="0.25", lw=1.1, label="data")
        for one in sorted(level, reverse=True):
            low, high = self.interval(one)
            ax.fill_between(x, low, high, color=color, alpha=0.22, lw=0)
        ax.plot(x, self.mean, color=color, lw=1.8, label=label or "mean")
        ax.set_xlabel(name)
        ax.spines[["top", "right"]].set_visible(False)
        return ax

    def _flat(self, a: np.ndarray) -> np.ndarray:
        return a.reshape(-1, *a.shape[2:]).astype(float)


def _drawable(labels: Any) -> np.ndarray:
    """Labels that matplotlib can draw: periods as the times at which they begin."""
    return np.asarray([one.start_time for one in labels] if hasattr(next(iter(labels)), "start_time") else labels)


def _mixture_quantile(p: float, means: np.ndarray, stds: np.ndarray) -> np.ndarray:
    """Quantile of an equal mixture of normals, (S, ...) -> (...): Newton kept inside a shrinking bracket."""
    from scipy.special import ndtr, ndtri

    shape = means.shape[1:]
    means, stds = means.reshape(len(means), -1), stds.reshape(len(stds), -1)
    each = means + ndtri(p) * stds
    low, high, found = each.min(0), each.max(0), each.mean(0)
    going = np.flatnonzero(~np.isnan(found))
    means, stds, low, high, x = means[:, going], stds[:, going], low[going], high[going], found[going]
    for _ in range(60):
        if x.size == 0:
            break
        scaled = (x - means) / stds
        excess = ndtr(scaled).mean(0) - p
        low, high = np.where(excess < 0, x, low), np.where(excess < 0, high, x)
        density = (np.exp(-0.5 * scaled**2) / stds).mean(0) / np.sqrt(2 * np.pi)
        with np.errstate(divide="ignore", invalid="ignore"):
            step = x - excess / density
        new = np.where((step > low) & (step < high), step, 0.5 * (low + high))
        found[going] = new
        left = np.abs(new - x) > 1e-12 * np.maximum(np.abs(x), stds.mean(0))
        if not left.all():  # entries that are done leave
            going, means, stds = going[left], means[:, left], stds[:, left]
            low, high, new = low[left], high[left], new[left]
        x = new
    return found.reshape(shape)
