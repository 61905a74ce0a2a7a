"""Posteriors: draws where the priors were, and everything one asks of them."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probkit import border, timeseries
from probkit.infer.method import Method, Outcome
from probkit.infer.target import Target, observed_terms
from probkit.model import Model, bind, mask, with_defaults
from probkit.prediction import Prediction
from probkit.report import Report
from probkit.residuals import residuals as standardised

#: Draws of the observable that a point estimate makes from its one draw of the parameters.
POINT_DRAWS = 1000


def parts(law: dist.Distribution) -> dict[str, Array]:
    """What a law tells beside its mean: its sd where it is normal, the sd of its noise, or its classes.

    ``stds``, ``noise`` (the sd that remains if the parameters, and the latent function, were known), and for classes
    ``probabilities`` (n, classes) and ``entropies`` (of the class, the latent function known).
    """
    base = law
    while isinstance(base, dist.Independent | dist.ExpandedDistribution):
        base = base.base_dist
    if base.has_enumerate_support and isinstance(base, dist.CategoricalLogits | dist.CategoricalProbs):
        probabilities = jnp.broadcast_to(base.probs, (*law.shape(), base.probs.shape[-1]))
    elif isinstance(base, dist.BernoulliLogits | dist.BernoulliProbs):
        p = jnp.broadcast_to(base.probs, law.shape())
        probabilities = jnp.stack([1 - p, p], axis=-1)
    elif normal_marginals(law):
        std = jnp.sqrt(law.variance)
        noise = getattr(law, "noise_variance", None)
        return {"stds": std, "noise": std if noise is None else jnp.sqrt(jnp.broadcast_to(noise, std.shape))}
    else:
        noise = getattr(law, "noise_variance", None)
        return {} if noise is None else {"noise": jnp.sqrt(noise)}
    own = -jnp.sum(jax.scipy.special.xlogy(probabilities, probabilities), axis=-1)
    entropies = getattr(law, "expected_entropy", own)
    classes = jnp.arange(probabilities.shape[-1], dtype=probabilities.dtype)
    return {"probabilities": probabilities, "entropies": entropies, "class_mean": probabilities @ classes}


def normal_marginals(law: dist.Distribution) -> bool:
    """Whether each entry of a law is normal, so that mixtures of it have exact quantiles."""
    while isinstance(law, dist.Independent | dist.ExpandedDistribution):
        law = law.base_dist
    return isinstance(law, dist.Normal | dist.MultivariateNormal) or getattr(law, "normal_marginals", False)


@eqx.filter_jit
def _terms(target: Target, values: dict[str, Any], index: Any) -> Array:
    """LOO terms of every draw: (S, n). ``index`` is (S,), so that a model without sites has its one draw."""
    return loo_terms(target.resolved(), values, index)


def loo_terms(target: Target, values: dict[str, Any], index: Any) -> Array:
    """The same inside a program, for a target whose defaults are resolved."""
    if isinstance(target.model, Model):
        return target.map(lambda v, _: bind(target.model, v).loo(*target.args), values, index)

    def plain(v: dict[str, Array], _: Array) -> Array:
        sites = target.trace(lambda name, law, scale: v[name])
        return jnp.concatenate([jnp.ravel(terms) for _, terms in observed_terms(sites)])

    return target.map(plain, values, index)


@eqx.filter_jit
def _predictive(target: Target, values: dict[str, Any], keys: Array, what: str, horizon: int, X_new: Any) -> tuple:
    """Draws, means and parts of the observable for every draw of the parameters; ``keys`` is (S, repeats)."""
    return predictive(target.resolved(), values, keys, what, horizon, X_new)


def predictive(target: Target, values: dict[str, Any], keys: Array, what: str, horizon: int, X_new: Any) -> tuple:
    """The same inside a program, for a target whose defaults are resolved."""
    y, X = target.args

    def one(v: dict[str, Array], key: Array) -> tuple:
        model = bind(target.model, v)
        if what == "forecast":
            law = model.forecast(y, horizon, X, X_new)
        elif what == "loo":
            law = model.leave_one_out(y, X)
        else:
            law = model.predict(y, X, X_new)
        told = parts(law)
        mean = told.pop("class_mean", None)
        return jax.vmap(law.sample)(key), law.mean if mean is None else mean, told

    return target.map(one, values, keys)


@dataclasses.dataclass(frozen=True)
class Posterior:
    """The answer to a fit: the same model with draws where the priors were.

    Attributes:
        target: the model and the data it came from.
        method: the method that was asked.
        outcome: draws, per-draw figures and the report, as the method gave them.
        key: the key that predictions use unless they are given one.
        series: the data with their labels (None for plain functions).
        updated: whether data came in after the fit (:meth:`update`), which the draws do not know of.
    """

    target: Target
    method: Method
    outcome: Outcome
    key: Any
    series: border.Series | None = None
    updated: bool = False

    @property
    def model(self) -> Any:
        """The model, or function, that was fitted."""
        return self.target.model

    @property
    def sites(self) -> dict[str, np.ndarray]:
        """Draws by site name, axes (chain, draw, *shape)."""
        return self.outcome.values

    @property
    def report(self) -> Report:
        """What the method says of its answer."""
        return self.outcome.report

    @property
    def targets_posterior(self) -> bool:
        """Whether the draws follow the posterior (not point estimates and plain approximations)."""
        return self.method.targets_posterior and not self.updated

    @property
    def has_loo(self) -> bool:
        """Whether leave-one-out can be had: from draws of the posterior, or of a guide with its weights."""
        return self.targets_posterior or ("log_weight" in self.outcome.stats and not self.updated)

    @functools.cached_property
    def draws(self) -> Any:
        """The fitted model with draws where the priors were; for plain functions, the dictionary of sites.

        Axes (chain, draw) stand in front of the leaves that were priors, and of those alone: a fixed vector stays as it
        is, whatever its length.
        """
        if not isinstance(self.model, Model):
            return self.sites
        model = with_defaults(self.model, *self.target.args)
        if not self.sites:
            return bind(model, {})
        axes = jax.tree_util.tree_map(lambda drawn: 0 if drawn else None, mask(model))
        one = functools.partial(bind, model)
        return jax.vmap(jax.vmap(one, out_axes=axes), out_axes=axes)(self.sites)

    def __repr__(self) -> str:
        shape = next(iter(self.sites.values())).shape[:2] if self.sites else (1, 1)
        name = (
            type(self.model).__name__ if isinstance(self.model, Model) else getattr(self.model, "__name__", "function")
        )
        return f"Posterior({name}, {shape[0]} x {shape[1]} draws of {list(self.sites)})\n{self.report}"

    # -- prediction ---------------------------------------------------------------------------------------------------

    def predict(self, X_new: Any = None, *, key: Any = None) -> Prediction:
        """A fresh observation at every place of the data (smoothed signal plus new noise), or at ``X_new``.

        Args:
            X_new: new inputs, (m,) or (m, features), for models that take inputs.
            key: a new-style key; the posterior's own by default.
        """
        y, X = self._data("predict")
        new = border.as_inputs(X_new, None, y.dtype, "X_new", self.model.input_axes)
        if new is not None and X is not None and new.shape[1:] != X.shape[1:]:
            raise ValueError(f"X_new has shape {new.shape}; columns as in X, shape {X.shape}, are wanted.")
        labels, name = self._labels() if new is None else (np.arange(new.shape[0]), "row")
        return self._prediction("predict", 0, new, labels, name, key, None)

    def forecast(self, horizon: int, X_new: Any = None, *, key: Any = None) -> Prediction:
        """The next ``horizon`` observations, as joint paths.

        Args:
            horizon: number of steps, at least 1.
            X_new: inputs of the steps to come, where the model was fitted with inputs.
            key: a new-style key; the posterior's own by default.

        Raises:
            ValueError: a horizon that is not a positive whole number.
            TypeError: the model has no time axis.
        """
        y, X = self._data("forecast")
        horizon = border.check_horizon(horizon)
        new = border.as_inputs(X_new, horizon, y.dtype, "X_new")
        if (X is None) != (new is None):
            came, wanted = ("without", "without X_new") if X is None else ("with", f"with X_new of {horizon} rows")
            raise ValueError(f"The model was fitted {came} X; forecast it {wanted}.")
        labels, name = self._labels()
        after = border.extend_labels(self.series.labels if self.series else None, len(y), horizon)
        return self._prediction("forecast", horizon, new, after, name, key, (labels, np.asarray(y)))

    def _prediction(
        self, what: str, horizon: int, X_new: Any, labels: Any, name: str, key: Any, history: Any
    ) -> Prediction:
        key = self.key if key is None else border.check_key(key, what)
        chains, draws = self._shape()
        # The members of an ensemble are few, and each stands for many draws of the observable.
        few = chains * draws == 1 or not self.targets_posterior
        repeats = max(1, POINT_DRAWS // (chains * draws)) if few else 1
        keys = jax.random.split(key, (chains * draws, repeats))
        sample, mean, told = jax.device_get(_predictive(self.target, self._flat(), keys, what, horizon, X_new))
        shaped = lambda a: a.reshape(chains, draws, *a.shape[1:])
        sample = sample.reshape(chains, draws * repeats, *mean.shape[1:])
        told = {part: shaped(a) for part, a in told.items()}
        mean, names = shaped(mean), self.series_names()
        if names is not None:  # as in every prediction of several series, these stand before time
            sample, mean = np.swapaxes(sample, 2, 3), np.swapaxes(mean, 2, 3)
            told = {part: np.swapaxes(a, 2, 3) for part, a in told.items()}
        return Prediction(sample, mean, told.pop("stds", None), labels, name, history, names, **told)

    # -- leave-one-out ------------------------------------------------------------------------------------------------

    @functools.cached_property
    def loo_terms(self) -> Float[np.ndarray, "chain draw n"]:
        """``log p(y_i | y_-i, parameters)`` of every draw, float64; NaN where y is missing or the term improper."""
        index = np.arange(np.prod(self._shape()))
        terms = np.asarray(_terms(self.target, self._flat(), index), np.float64)
        return terms.reshape(*self._shape(), -1)

    @property
    def scored(self) -> np.ndarray:
        """Which entries have a LOO term in every draw, (n,)."""
        return ~np.isnan(self.loo_terms).any((0, 1))

    def loo(self, refit: bool = False) -> Any:
        """Leave-one-out elpd by Pareto-smoothed importance sampling over the terms (ArviZ's ``ELPDData``).

        Args:
            refit: whether to refit exactly, without that entry, every entry whose k-hat is above the limit.

        Raises:
            TypeError: the draws do not target the posterior.

        References:
            Vehtari, Gelman and Gabry (2017). Bürkner, Gabry and Vehtari (2021), for structured models.
        """
        from probkit.evaluate.loo import psis_loo

        return psis_loo(self, refit)

    # -- time series --------------------------------------------------------------------------------------------------

    def components(self, *, draws: int = 1000, key: Any = None) -> Any:
        """The parts that a series is the sum of; see :func:`probkit.timeseries.components`."""
        return timeseries.components(self, draws=draws, key=key)

    def smooth(self, *, draws: int = 1000, key: Any = None) -> Prediction:
        """The signal without noise given all data; see :func:`probkit.timeseries.smooth`."""
        return timeseries.smooth(self, draws=draws, key=key)

    def filter(self, *, draws: int = 1000) -> Prediction:
        """Each y given those before it; see :func:`probkit.timeseries.filtered`."""
        return timeseries.filtered(self, draws=draws)

    def residuals(self) -> Any:
        """Standardised one-step errors, their tests and plots; see :class:`probkit.residuals.Residuals`."""
        return standardised(self)

    def anomalies(self, *, threshold: float = 3.0) -> Any:
        """Leave-one-out z-scores of every value; see :func:`probkit.timeseries.anomalies`."""
        return timeseries.anomalies(self, threshold=threshold)

    def impute(self, *, draws: int = 1000, key: Any = None) -> Prediction:
        """The series with its gaps filled by joint draws; see :func:`probkit.timeseries.impute`."""
        return timeseries.impute(self, draws=draws, key=key)

    def simulate(self, X: Any = None, *, draws: int = 1000, key: Any = None) -> Prediction:
        """New series over the same times from the posterior predictive; see :func:`probkit.timeseries.simulate`."""
        return timeseries.simulate(self, X, draws=draws, key=key)

    def update(self, y_new: Any, X_new: Any = None) -> "Posterior":
        """The same parameters with more data behind them; see :func:`probkit.timeseries.update`."""
        return timeseries.update(self, y_new, X_new)

    # -- summaries and export -----------------------------------------------------------------------------------------

    def summary(self, **kwargs: Any) -> Any:
        """A table: ArviZ's summary of the draws, or estimates, standard errors and information criteria of a point.

        Args:
            **kwargs: passed on to ``arviz_stats.summary`` (not for point estimates).
        """
        from probkit.summary import summarise

        return summarise(self, **kwargs)

    def to_arviz(self, predictive: str = "smoothed", log_likelihood: str = "loo") -> Any:
        """An ArviZ DataTree: everything that ArviZ's tables and plots read.

        Args:
            predictive: what stands in ``posterior_predictive``: ``"smoothed"`` (signal plus fresh noise, for
                predictive checks) or ``"loo"`` (draws given all other entries, for LOO-PIT).
            log_likelihood: what stands in ``log_likelihood``: ``"loo"`` (pointwise LOO terms) or ``"joint"`` (one
                joint term a draw, for prior sensitivity).
        """
        from probkit.export import to_arviz

        return to_arviz(self, predictive, log_likelihood)

    def observed(self) -> dict[str, np.ndarray]:
        """The data by observed site: ``{"y": ...}`` for models."""
        if isinstance(self.model, Model):
            return {"y": np.asarray(self.target.args[0])}
        one = {n: v[0, 0] for n, v in self.sites.items()}
        sites = self.target.trace(lambda name, law, scale: one[name])
        return {n: np.asarray(s["value"]) for n, s in sites.items() if s["type"] == "sample" and s["is_observed"]}

    def sensitivity(self, prior_var_names: Any = None, **kwargs: Any) -> Any:
        """How far each parameter's posterior moves when the prior, or the likelihood, is raised to a power near 1.

        ArviZ's ``psense_summary``: columns ``prior``, ``likelihood`` and ``diagnosis``. Above 0.05 in both is a
        potential conflict of prior and data; above 0.05 in ``prior`` alone, a strong prior or a weak likelihood.

        Args:
            prior_var_names: sites whose priors are scaled, together. By default all but those whose prior depends on
                other sites: the lower levels of a hierarchy are part of the model, not what was believed before it.
            **kwargs: passed on: ``var_names``, ``threshold=0.05``, ``alphas=(0.99, 1.01)``, ``round_to=3``.

        Raises:
            TypeError: the draws do not target the posterior, or the model holds no prior.
            ValueError: ``prior_var_names`` has what is no site.

        References:
            Kallioinen, Paananen, Bürkner and Vehtari (2024), Detecting and diagnosing prior and likelihood
            sensitivity with power-scaling.
        """
        from probkit.sensitivity import sensitivity

        return sensitivity(self, prior_var_names, **kwargs)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _shape(self) -> tuple[int, int]:
        return next(iter(self.sites.values())).shape[:2] if self.sites else (1, 1)

    def _flat(self) -> dict[str, np.ndarray]:
        known = self.target.sites()
        chains, draws = self._shape()
        flat = {n: np.reshape(v, (chains * draws, *v.shape[2:])) for n, v in self.sites.items() if n in known}
        return flat

    def term_labels(self) -> tuple[np.ndarray, str]:
        """What stands along the axis of the LOO terms, and its name."""
        if isinstance(self.model, Model):
            labels, name = self._labels()
            names = self.series_names()
            if names is None:
                return np.asarray(labels), name
            import pandas as pd

            told = pd.Index(labels).astype(str)  # dates without the nanoseconds of an array
            return np.array([f"{label}, {one}" for label in told for one in names]), f"{name}, series"
        return np.arange(self.loo_terms.shape[-1]), "term"

    def series_names(self) -> np.ndarray | None:
        """Names of the series that a multivariate model holds together, else None."""
        if not isinstance(self.model, Model) or not self.model.multivariate:
            return None
        count = self.target.args[0].shape[1]
        held = None if self.series is None else self.series.name
        return np.asarray([f"y{i + 1}" for i in range(count)] if held is None else held)

    def _data(self, verb: str) -> tuple[Any, Any]:
        if not isinstance(self.model, Model):
            raise TypeError(
                f"{verb} is for probkit models; for a plain function use numpyro.infer.Predictive with .sites."
            )
        return self.target.args

    def _labels(self) -> tuple[Any, str]:
        if self.series is None or self.series.labels is None:
            return np.arange(len(self.target.args[0])), "time"
        return np.asarray(self.series.labels), str(self.series.label_name or "time")
