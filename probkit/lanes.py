"""Posteriors of many series at once: one model, one fit a lane, the axis (lane,) after (chain, draw)."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp
from jaxtyping import Array

from probkit import border
from probkit.evaluate.loo import K_LIMIT
from probkit.infer.method import Method, Outcome
from probkit.infer.target import Lanes
from probkit.math.psis import pareto_smooth
from probkit.model import bind, mask, with_defaults
from probkit.posterior import POINT_DRAWS, Posterior, loo_terms, predictive
from probkit.prediction import Prediction
from probkit.report import Report


@eqx.filter_jit
def _predictive(lanes: Lanes, values: dict[str, Any], keys: Array, what: str, horizon: int, X_new: Any) -> tuple:
    """Draws, means and stds of the observable of every lane; values and keys have axes (lane, draw, ...)."""

    def one(lane: tuple) -> tuple:
        target, values, keys = lane
        return predictive(target, values, keys, what, horizon, X_new)

    return lanes.each(one, (lanes.targets(), values, keys), keys.shape[1])


@eqx.filter_jit
def _loo(lanes: Lanes, values: dict[str, Any], index: Any) -> tuple[Array, Array]:
    """PSIS-LOO of every entry of every lane, and its k-hat, (lane, n); NaN where an entry has no term."""

    def entry(terms: Array) -> tuple[Array, Array]:
        scored = ~jnp.any(jnp.isnan(terms))
        terms = jnp.where(scored, terms, 0.0)
        weights, k_hat = pareto_smooth(-terms)
        return jnp.where(scored, logsumexp(weights + terms), jnp.nan), jnp.where(scored, k_hat, jnp.nan)

    def one(lane: tuple) -> tuple[Array, Array]:
        target, values = lane
        return jax.vmap(entry, in_axes=1)(loo_terms(target, values, index))

    return lanes.each(one, (lanes.targets(), values), index.size)


@dataclasses.dataclass(frozen=True)
class LanePosterior:
    """The answer to a fit of many series: a posterior each, held together.

    ``posterior[i]`` is the posterior of lane i alone, with all its verbs; the verbs here run for all lanes in one
    program. A lane that could not be fitted has NaN for draws and a report that says why.

    Attributes:
        lanes: the model, the series and their shared inputs.
        method: the method that was asked.
        outcome: draws by site, axes (chain, draw, lane, *shape); its report is one of the whole.
        reports: the report of each lane.
        key: the key that predictions use unless they are given one.
        panel: the data with their labels.
    """

    lanes: Lanes
    method: Method
    outcome: Outcome
    reports: tuple[Report, ...]
    key: Any
    panel: border.Panel

    @property
    def model(self) -> Any:
        """The model that was fitted."""
        return self.lanes.model

    @property
    def sites(self) -> dict[str, np.ndarray]:
        """Draws by site name, axes (chain, draw, lane, *shape)."""
        return self.outcome.values

    @property
    def report(self) -> Report:
        """The lanes together: how many converged, and by which rung."""
        return self.outcome.report

    @functools.cached_property
    def draws(self) -> Any:
        """The fitted model with draws where the priors were, axes (chain, draw, lane) before those leaves alone."""
        model = with_defaults(self.model, self.lanes.y[:, 0], self.lanes.X)
        if not self.sites:
            return bind(model, {})
        axes = jax.tree_util.tree_map(lambda drawn: 0 if drawn else None, mask(model))
        one = functools.partial(bind, model)
        for _ in range(3):
            one = jax.vmap(one, out_axes=axes)
        return one(self.sites)

    def __len__(self) -> int:
        return self.lanes.count

    def __getitem__(self, lane: int) -> Posterior:
        """The posterior of one lane.

        Raises:
            IndexError: there is no such lane.
        """
        if not isinstance(lane, int | np.integer) or not -len(self) <= lane < len(self):
            raise IndexError(f"lane is {lane!r}; a whole number from 0 to {len(self) - 1} is wanted.")
        i = int(lane) % len(self)
        pick = lambda group, axis: {n: np.take(v, i, axis) for n, v in group.items()}
        errors = self.outcome.standard_errors
        outcome = Outcome(
            pick(self.outcome.values, 2),
            pick(self.outcome.stats, 2),
            self.reports[i],
            None if errors is None else pick(errors, 0),
        )
        y, panel = self.lanes.y[:, i], self.panel
        name = str(panel.names[i]) if panel.names.dtype.kind == "U" else None
        series = border.Series(y, panel.labels, panel.label_name, name)
        return Posterior(self.lanes.lane(i), self.method, outcome, jax.random.fold_in(self.key, i), series)

    def __repr__(self) -> str:
        chains, draws = self._shape()
        return (
            f"LanePosterior({type(self.model).__name__}, {chains} x {draws} draws of {list(self.sites)} in "
            f"{len(self)} lanes)\n{self.report}"
        )

    def status(self) -> Any:
        """A pandas frame, one row a lane: ``converged, rung, k_hat, ess, log_density, reason``."""
        import pandas as pd

        columns = ("converged", "rung", "k_hat", "ess", "log_density", "reason")
        rows = [[getattr(r, c) for c in columns] for r in self.reports]
        return pd.DataFrame(rows, columns=list(columns), index=pd.Index(self.panel.names, name="lane"))

    def predict(self, X_new: Any = None, *, key: Any = None) -> Prediction:
        """A fresh observation at every place of the data, or at ``X_new``, of every lane.

        Args:
            X_new: new inputs, (m,) or (m, features), shared by the lanes.
            key: a new-style key; the posterior's own by default.
        """
        new = border.as_inputs(X_new, None, self.lanes.y.dtype, "X_new")
        labels = self._labels() if new is None else np.arange(new.shape[0])
        return self._prediction("predict", 0, new, labels, key)

    def forecast(self, horizon: int, X_new: Any = None, *, key: Any = None) -> Prediction:
        """The next ``horizon`` observations of every lane, as joint paths.

        Args:
            horizon: number of steps, at least 1.
            X_new: inputs of the steps to come, shared by the lanes, where the model was fitted with inputs.
            key: a new-style key; the posterior's own by default.

        Raises:
            ValueError: a horizon that is not a positive whole number; inputs that are missing, or not wanted.
        """
        horizon = border.check_horizon(horizon)
        new = border.as_inputs(X_new, horizon, self.lanes.y.dtype, "X_new")
        if (self.lanes.X is None) != (new is None):
            raise ValueError("Forecast with X_new if, and only if, the model was fitted with X.")
        labels = border.extend_labels(self.panel.labels, self.lanes.y.shape[0], horizon)
        return self._prediction("forecast", horizon, new, labels, key)

    def loo(self) -> Any:
        """A pandas frame of PSIS-LOO, one row a lane: ``elpd, se, max_k_hat, bad_k, entries``.

        Raises:
            TypeError: the draws do not target the posterior.

        References:
            Vehtari, Gelman and Gabry (2017).
        """
        import pandas as pd

        if not self.method.targets_posterior:
            raise TypeError(f"loo needs draws of the posterior, and {type(self.method).__name__} does not give them.")
        values = self._flat()
        index = np.arange(np.prod(self._shape()))
        terms, k_hat = (np.asarray(a, float) for a in jax.device_get(_loo(self.lanes, values, index)))
        entries = np.sum(~np.isnan(terms), axis=1)
        deviation = np.nanstd(np.where(entries[:, None] > 0, terms, 0.0), axis=1)
        table = {
            "elpd": np.where(entries > 0, np.nansum(terms, axis=1), np.nan),
            "se": np.where(entries > 0, np.sqrt(entries) * deviation, np.nan),
            "max_k_hat": np.where(entries > 0, np.max(np.where(np.isnan(k_hat), -np.inf, k_hat), axis=1), np.nan),
            "bad_k": np.sum(k_hat > K_LIMIT, axis=1),
            "entries": entries,
        }
        return pd.DataFrame(table, index=pd.Index(self.panel.names, name="lane"))

    def summary(self) -> Any:
        """A pandas frame, one row a lane and component: ``mean, sd`` and the 5th, 50th and 95th percentile."""
        import pandas as pd

        rows = {}
        for name, draws in self.sites.items():
            flat = draws.reshape(-1, *draws.shape[2:]).astype(float)
            figures = np.stack([flat.mean(0), flat.std(0), *np.quantile(flat, [0.05, 0.5, 0.95], axis=0)])
            for at in np.ndindex(flat.shape[2:]):
                label = f"{name}[{', '.join(str(i + 1) for i in at)}]" if at else name
                for i, lane in enumerate(self.panel.names):
                    rows[lane, label] = figures[(slice(None), i, *at)]
        columns = ["mean", "sd", "q5", "q50", "q95"]
        table = pd.DataFrame.from_dict(rows, orient="index", columns=columns)
        table.index = pd.MultiIndex.from_tuples(rows, names=["lane", "parameter"])
        return table

    def to_arviz(self) -> Any:
        """An ArviZ DataTree with the dimension ``lane``: posterior, sample statistics and data."""
        import arviz_base

        stats = {n: np.array(v) for n, v in self.outcome.stats.items()}
        groups = {"posterior": {n: np.array(v) for n, v in self.sites.items()}, "sample_stats": stats}
        time = self.panel.label_name or "time"
        groups["observed_data"] = {"y": np.array(self.lanes.y)}
        dims = {n: ["lane", *(f"{n}_dim_{i}" for i in range(v.ndim - 3))] for n, v in groups["posterior"].items()}
        dims |= {n: ["lane"] for n in stats} | {"y": [time, "lane"]}
        coords = {"lane": self.panel.names, time: self._labels()}
        return arviz_base.from_dict(groups, dims=dims, coords=coords, check_conventions=False)

    def _prediction(self, what: str, horizon: int, X_new: Any, labels: Any, key: Any) -> Prediction:
        key = self.key if key is None else border.check_key(key, what)
        chains, draws = self._shape()
        repeats = 1 if chains * draws > 1 else POINT_DRAWS
        keys = jax.random.split(key, (len(self), chains * draws, repeats))
        sample, mean, told = jax.device_get(_predictive(self.lanes, self._flat(), keys, what, horizon, X_new))
        lanes, n = len(self), mean.shape[-1]

        def shaped(a: Any, repeats: int = 1) -> Any:
            return None if a is None else np.moveaxis(a.reshape(lanes, chains, draws * repeats, n), 0, 2)

        name = self.panel.label_name or "time" if what == "forecast" or X_new is None else "row"
        return Prediction(
            shaped(sample, repeats), shaped(mean), shaped(told.get("stds")), labels, name, None, self.panel.names
        )

    def _labels(self) -> np.ndarray:
        labels = self.panel.labels
        return np.arange(self.lanes.y.shape[0]) if labels is None else np.asarray(labels)

    def _shape(self) -> tuple[int, int]:
        return next(iter(self.sites.values())).shape[:2] if self.sites else (1, 1)

    def _flat(self) -> dict[str, np.ndarray]:
        """Draws with axes (lane, draw, *shape)."""
        return {n: np.moveaxis(v.reshape(-1, *v.shape[2:]), 1, 0) for n, v in self.sites.items()}
