"""What choosing among many candidates gives back: the whole table, the best, weights, and forecasts by them."""

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float

from probkit import border
from probkit.prediction import Prediction


def one_or_many(y: Any, taker: str) -> tuple[border.Panel, bool]:
    """The data as lanes, one series as one lane; and whether there were many."""
    if border.is_many(y):
        return border.as_lanes(y), True
    one = border.as_series(y, taker)
    return border.Panel(one.y[:, None], one.labels, one.label_name, np.arange(1), {}), False


def information_criterion(name: str, log_likelihood: np.ndarray, k: np.ndarray, n: np.ndarray) -> np.ndarray:
    """``"aic"``, ``"aicc"`` or ``"bic"`` of k parameters and n values; inf where it has no value, for want of data."""
    if name == "bic":
        return -2 * log_likelihood + k * np.log(n)
    aic = -2 * log_likelihood + 2 * k
    if name == "aic":
        return aic
    left = n - k - 1
    return np.where(left > 0, aic + 2 * k * (k + 1) / np.where(left > 0, left, 1), np.inf)


@dataclasses.dataclass(frozen=True)
class Selection:
    """Candidates fitted to one series or to many, and how they are weighed.

    Attributes:
        candidates: their names.
        figures: by name, arrays (candidate, lane): ``log_likelihood, parameters, aicc, converged``.
        weights: (candidate, lane), 1 for the best alone unless they are averaged; they sum to 1 in every lane.
        status: of each lane, ``"ok"`` or what stood in the way.
        paths: ``paths(key, horizon, draws) -> (draws, horizon, lane)``, drawn by the weights.
        build: ``build(candidate, lane)``: that candidate as a model with numbers in its fields.
        panel: the data with their labels.
        many: whether y had lanes.
        key: the key that forecasts use unless they are given one.
    """

    candidates: tuple[str, ...]
    figures: dict[str, Float[np.ndarray, "candidate lane"]]
    weights: Float[np.ndarray, "candidate lane"]
    status: tuple[str, ...]
    paths: Callable[[Any, int, int], np.ndarray]
    build: Callable[[str, int], Any]
    panel: border.Panel
    many: bool
    key: Any

    @property
    def table(self) -> Any:
        """A pandas frame, one row a candidate (and lane), best first: its figures and its weight."""
        import pandas as pd

        lanes = range(len(self.status))
        rows = [
            {"lane": self.panel.names[i], "candidate": name}
            | {figure: values[c, i] for figure, values in self.figures.items()}
            | {"weight": self.weights[c, i], "status": self.status[i]}
            for i in lanes
            for c, name in enumerate(self.candidates)
        ]
        frame = pd.DataFrame(rows)
        frame["order"] = np.repeat(np.arange(len(lanes)), len(self.candidates))
        frame = frame.sort_values(["order", "aicc"], kind="stable").drop(columns="order").reset_index(drop=True)
        return frame if self.many else frame.drop(columns="lane")

    @property
    def chosen(self) -> Any:
        """The name of the candidate with the largest weight; an array of names, one a lane, where y had lanes."""
        names = np.asarray(self.candidates)[np.argmax(self.weights, axis=0)]
        return names if self.many else str(names[0])

    @property
    def best(self) -> Any:
        """The chosen candidate as a model with numbers in its fields; a list of them where y had lanes."""
        names = np.atleast_1d(self.chosen)
        models = [self.build(str(name), i) for i, name in enumerate(names)]
        return models if self.many else models[0]

    def forecast(self, horizon: int, *, draws: int = 1000, key: Any = None) -> Prediction:
        """The next values by the weights, with the uncertainty of parameters and, if averaged, of the form.

        Args:
            horizon: number of steps, at least 1.
            draws: number of paths.
            key: a new-style key; the selection's own by default.

        Raises:
            ValueError: a horizon that is not a positive whole number.
        """
        horizon = border.check_horizon(horizon)
        key = self.key if key is None else border.check_key(key, "forecast")
        sample = np.moveaxis(np.asarray(self.paths(key, horizon, draws)), 1, 2)[None]  # (1, draws, lane, horizon)
        return _prediction(self, sample, horizon)

    def __repr__(self) -> str:
        told = self.chosen if not self.many else f"{len(self.status)} lanes"
        return f"Selection({told} of {len(self.candidates)} candidates)"


def _prediction(one: Selection, sample: np.ndarray, horizon: int) -> Prediction:
    """Paths (1, draws, lane, horizon) as a prediction with labels."""
    panel = one.panel
    labels = border.extend_labels(panel.labels, panel.y.shape[0], horizon)
    sample = sample if one.many else sample[:, :, 0]
    means = np.broadcast_to(sample.mean((0, 1), keepdims=True), sample.shape)
    return Prediction(sample, means, None, labels, panel.label_name or "time", None, panel.names if one.many else None)


@dataclasses.dataclass(frozen=True)
class Average:
    """Several selections on the same data, weighed together; made by :func:`average`."""

    parts: tuple[Selection, ...]
    weights: tuple[float, ...]

    def forecast(self, horizon: int, *, draws: int = 1000, key: Any = None) -> Prediction:
        """A mixture of the forecasts of all parts: each gives its share of the paths.

        Args:
            horizon: number of steps, at least 1.
            draws: number of paths in all.
            key: a new-style key; the first selection's own by default.
        """
        import jax

        key = self.parts[0].key if key is None else border.check_key(key, "forecast")
        ends = np.round(np.cumsum(self.weights) * draws).astype(int)
        counts = np.diff(ends, prepend=0)
        samples = [
            np.asarray(part.paths(jax.random.fold_in(key, i), border.check_horizon(horizon), int(count)))
            for i, (part, count) in enumerate(zip(self.parts, counts, strict=True))
            if count > 0
        ]
        sample = np.moveaxis(np.concatenate(samples), 1, 2)[None]
        return _prediction(self.parts[0], sample, horizon)


def average(*selections: Selection, weights: Any = None) -> Average:
    """Mix the forecasts of several selections on the same data, such as ``auto_ets`` and ``auto_arima``.

    Args:
        selections: results of ``auto_ets``, ``auto_arima`` ...
        weights: one for each, positive; equal by default.

    Returns:
        An :class:`Average`, which forecasts.

    Raises:
        TypeError: something else than a selection.
        ValueError: fewer than two; different data; weights that do not fit.
    """
    for one in selections:
        if not isinstance(one, Selection):
            raise TypeError(f"average takes selections, what auto_ets returns; one is {type(one).__name__}.")
    if len(selections) < 2:
        raise ValueError(f"average was given {len(selections)} selections; two at least are wanted.")
    first = np.asarray(selections[0].panel.y)
    for one in selections[1:]:
        other = np.asarray(one.panel.y)
        if other.shape != first.shape or not np.allclose(other, first, rtol=1e-6, atol=0, equal_nan=True):
            raise ValueError("average was given selections on different data; the same y is wanted.")
    shares = np.ones(len(selections)) if weights is None else np.asarray(weights, float)
    if shares.shape != (len(selections),) or not np.all(shares >= 0) or not shares.sum() > 0:
        raise ValueError(f"weights is {weights!r}; {len(selections)} numbers that are not negative are wanted.")
    return Average(selections, tuple(float(share) for share in shares / shares.sum()))
