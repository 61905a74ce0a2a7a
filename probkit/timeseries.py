"""What one asks of a fitted time series: its parts, its one-step errors, odd values, gaps, news and impacts.

Every verb takes a :class:`probkit.Posterior`, which has it as a method too. A family profits by what it offers: a
model with ``decompose`` has components, one with ``impute`` fills gaps, and a distribution with ``one_step`` is checked
by its one-step errors.
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from probkit import border
from probkit.infer.target import Target
from probkit.math.psis import pareto_smooth
from probkit.model import Model, bind, law_of, with_defaults
from probkit.prediction import Prediction

if TYPE_CHECKING:
    from probkit.posterior import Posterior

#: Posterior draws that the smoother runs for: intervals need no more.
DRAWS = 1000


class Components(Mapping):
    """The parts of a series by name, each a :class:`probkit.Prediction` of what was, without noise.

    ``signal`` is their sum; a part's inner states stand under ``part.state``, as in ``trend.slope``. Rows of a part's
    `draws` are joint paths, joint with the same rows of the others.

    Attributes:
        predictions: the parts.
    """

    def __init__(self, predictions: dict[str, Prediction]):
        self.predictions = predictions

    def __getitem__(self, name: str) -> Prediction:
        return self.predictions[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.predictions)

    def __len__(self) -> int:
        return len(self.predictions)

    def __repr__(self) -> str:
        return f"Components({list(self)})"

    def to_frame(self, level: Any = (80, 95)) -> Any:
        """A long pandas frame: ``component``, the labels, ``mean, lo-80, hi-80, ...``."""
        import pandas as pd

        frames = [one.to_frame(level).assign(component=name) for name, one in self.items()]
        table = pd.concat(frames, ignore_index=True)
        return table[["component", *(c for c in table.columns if c != "component")]]

    def plot(self, axes: Any = None, level: Any = (50, 95)) -> Any:
        """One panel a part, the data behind the signal; returns the matplotlib axes.

        Args:
            axes: as many matplotlib axes as there are parts; made by default.
            level: percentages of central intervals.
        """
        import matplotlib.pyplot as plt

        if axes is None:
            size = (8, 1.6 * len(self) + 0.6)
            axes = plt.subplots(len(self), 1, figsize=size, sharex=True, layout="constrained", squeeze=False)[1][:, 0]
        if len(axes) != len(self):
            raise ValueError(f"axes holds {len(axes)}; one for each of {list(self)} is wanted.")
        for i, (ax, (name, one)) in enumerate(zip(axes, self.items(), strict=True)):
            one.plot(ax=ax, level=level, color=f"C{i % 10}")
            ax.set_ylabel(name)
            if ax is not axes[-1]:
                ax.set_xlabel("")
        return axes


@eqx.filter_jit
def _each(target: Target, values: dict[str, Any], keys: Any, what: Callable) -> Any:
    """``what(model, y, X, key)`` for every draw."""
    target = target.resolved()
    return target.map(lambda v, key: what(bind(target.model, v), *target.args, key), values, keys)


def _run(posterior: "Posterior", what: Callable, key: Any, draws: int | None, again: bool = False) -> Any:
    """Runs over all draws, or over some that are spread evenly; returns NumPy arrays, draw first.

    ``again``: a draw serves several times, with other keys, where there are fewer than wanted (a point estimate).
    """
    values = posterior._flat()
    total = int(np.prod(posterior._shape()))
    take = np.arange(total)
    if draws is not None and (draws < total or again):
        take = np.linspace(0, total - 1, draws).astype(int)
    keys = jax.random.split(
        posterior.key if key is None else border.check_key(key, getattr(what, "__name__", "key")), len(take)
    )
    return jax.device_get(_each(posterior.target, {n: v[take] for n, v in values.items()}, keys, what))


def _need(posterior: "Posterior", verb: str, method: str) -> None:
    if not isinstance(posterior.model, Model):
        raise TypeError(f"{verb} is for probkit models, and {posterior.model!r} is a function.")
    if not hasattr(posterior.model, method):
        raise TypeError(f"{type(posterior.model).__name__} cannot {verb}: it has no method {method}.")


def _decompose(model: Any, y: Any, X: Any, key: Any) -> Any:
    return model.decompose(y, X, key)


def _impute(model: Any, y: Any, X: Any, key: Any) -> Any:
    return model.impute(y, X, key)


def _one_step(model: Any, y: Any, X: Any, key: Any) -> Any:
    law = law_of(model, X, y.shape[0]).one_step(y)
    return law.mean, jnp.sqrt(law.variance)


def _left_out(model: Any, y: Any, X: Any, key: Any) -> Any:
    law = model.leave_one_out(y, X)
    if not isinstance(law, dist.Normal):
        raise TypeError(
            f"anomalies needs normal laws of each value given the others; here they are {type(law).__name__}."
        )
    return law.mean, jnp.sqrt(law.variance)


def components(posterior: "Posterior", *, draws: int = DRAWS, key: Any = None) -> Components:
    """The parts that a series is the sum of, given all of it: level, trend, seasons ...

    Args:
        posterior: of a model whose parts add up.
        draws: how many posterior draws to smooth for.
        key: a new-style key; the posterior's own by default.

    Raises:
        TypeError: the model has no parts.
    """
    _need(posterior, "be decomposed", "decompose")
    found = _run(posterior, _decompose, key, draws)
    labels, name = posterior._labels()
    history = labels, np.asarray(posterior.target.args[0])
    shown = {}
    order = ["signal", *posterior.model.parts()] if hasattr(posterior.model, "parts") else list(found)
    names = posterior.series_names()
    for part in sorted(found, key=lambda name: (order.index(name.split(".")[0]), name)):
        mean, std, draw = found[part]
        if names is not None and mean.ndim == 3:  # of every series of a multivariate model
            std = np.maximum(std, 1e-30)
            for i, one in enumerate(names):
                past = (labels, history[1][:, i]) if part == "signal" else None
                held = draw[None, ..., i], mean[None, ..., i], std[None, ..., i]
                shown[f"{part}.{one}"] = Prediction(*held, labels, name, past)
            continue
        std = np.maximum(std, 1e-30)  # an intervention to come is 0 for certain, and quantiles divide by its spread
        shown[part] = Prediction(draw[None], mean[None], std[None], labels, name, history if part == "signal" else None)
    return Components(shown)


def smooth(posterior: "Posterior", *, draws: int = DRAWS, key: Any = None) -> Prediction:
    """The signal at every time given all data: what y would be without observation noise; see :func:`components`."""
    found, names = components(posterior, draws=draws, key=key), posterior.series_names()
    if names is None:
        return found["signal"]
    each = [found[f"signal.{name}"] for name in names]
    paths, means, stds = (np.stack([getattr(one, part) for one in each], axis=2) for part in ("draws", "means", "stds"))
    return Prediction(paths, means, stds, each[0].labels, each[0].label_name, lanes=names)


def filtered(posterior: "Posterior", *, draws: int = DRAWS) -> Prediction:
    """Each y given those before it, at the parameters fitted to all; NaN before the flat states are known.

    Raises:
        TypeError: the model has no one-step law.
    """
    _need_one_step(posterior)
    mean, std = _run(posterior, _one_step, None, draws)
    labels, name = posterior._labels()
    noise = np.asarray(jax.random.normal(posterior.key, mean.shape, mean.dtype))
    return Prediction((mean + std * noise)[None], mean[None], std[None], labels, name)


def _need_one_step(posterior: "Posterior") -> None:
    _need(posterior, "give one-step laws", "distribution")
    y, X = posterior.target.args
    model = with_defaults(posterior.model, y, X)
    one = {name: v[0, 0] for name, v in posterior.sites.items()}
    law = law_of(bind(model, one), X, y.shape[0])
    if not hasattr(law, "one_step"):
        raise TypeError(f"{type(law).__name__} has no one-step law; structural models have.")


def scores(y: np.ndarray, mean: np.ndarray, std: np.ndarray, weights: np.ndarray | None = None) -> np.ndarray:
    """Normal scores of y under a mixture of normals over draws: Phi^-1 of the mixture's distribution function at y.

    Far in a tail the nearer of the two tail probabilities counts, so nothing overflows before 37 deviations.
    """
    from scipy.special import log_ndtr, logsumexp, ndtri_exp

    y, mean, std = np.asarray(y, float), np.asarray(mean, float), np.asarray(std, float)
    with np.errstate(invalid="ignore", divide="ignore"):
        scaled = (y - mean) / std
    log_w = np.full(scaled.shape, -np.log(len(scaled))) if weights is None else weights
    below, above = (logsumexp(log_w + log_ndtr(sign * scaled), axis=0) for sign in (1, -1))
    clip = lambda x: np.minimum(x, -1e-300)
    return np.where(below < above, ndtri_exp(clip(below)), -ndtri_exp(clip(above)))


def anomalies(posterior: "Posterior", *, threshold: float = 3.0) -> Any:
    """How odd each value is given all the others: leave-one-out z-scores, parameters integrated out.

    z is the normal score of y in its leave-one-out predictive distribution (a mixture over the draws, by their
    Pareto-smoothed leave-one-out weights), so that |z| > 3 has probability 0.0027 where the model is right.

    Args:
        posterior: of a model whose leave-one-out laws are normal.
        threshold: absolute z above which a value is called an anomaly.

    Returns:
        A pandas frame by label: ``y``, ``mean`` (of y left out), ``z``, ``anomaly``; NaN where y is missing or nothing
        else determines it.

    Raises:
        TypeError: the draws do not follow the posterior, or the laws are not normal.
    """
    import pandas as pd

    _need(posterior, "find anomalies", "leave_one_out")
    mean, std = (np.asarray(a, float) for a in _run(posterior, _left_out, None, None))
    mean, std = (a.reshape(len(a), -1) for a in (mean, std))
    y = np.ravel(np.asarray(posterior.target.args[0], float))
    log_w = np.zeros(mean.shape)
    if posterior.sites and mean.shape[0] > 1:
        if not posterior.targets_posterior:
            raise TypeError("anomalies needs draws of the posterior, or a point: fit with Auto(), NUTS() or MLE().")
        terms = posterior.loo_terms.reshape(mean.shape)
        ratios = -jnp.asarray(np.where(np.isnan(terms), 0.0, terms))
        log_w = np.asarray(jax.vmap(lambda r: pareto_smooth(r)[0], in_axes=1, out_axes=1)(ratios), float)
    z = scores(y, mean, std, log_w)
    centre = np.sum(np.exp(log_w) * mean, axis=0)
    labels, name = posterior.term_labels()
    table = {"y": y, "mean": centre, "z": z, "anomaly": np.abs(np.nan_to_num(z)) > threshold}
    return pd.DataFrame(table, index=pd.Index(labels, name=name))


def impute(posterior: "Posterior", *, draws: int = DRAWS, key: Any = None) -> Prediction:
    """The series with its gaps filled: rows of ``draws`` are joint draws of all that is missing; the rest is y.

    Raises:
        TypeError: the model cannot fill gaps.
    """
    _need(posterior, "fill gaps", "impute")
    return _whole(posterior, _run(posterior, _impute, key, draws, again=True), None)


def _whole(posterior: "Posterior", paths: np.ndarray, history: Any) -> Prediction:
    """Draws of whole series, (draw, time) or (draw, time, series), as a prediction."""
    labels, name = posterior._labels()
    names = posterior.series_names()
    paths = paths[None] if names is None else np.swapaxes(paths, 1, 2)[None]
    return Prediction(paths, paths, None, labels, name, history, names)


def simulate(posterior: "Posterior", X: Any = None, *, draws: int = DRAWS, key: Any = None) -> Prediction:
    """New series over the times of the data: what the fitted model would have given instead, for checks of the model.

    Each is drawn with its own draw of the parameters. Starting states that are flat before any data (a level, a season)
    are drawn given y; all disturbances and noise are drawn anew. A model does that by ``replicate(y, X, X_new, key)``;
    of one without it the law of y is sampled, if no state is flat.

    Args:
        posterior: of a model of one series.
        X: other inputs over the same times; those of the fit by default.
        draws: how many series.
        key: a new-style key; the posterior's own by default.

    Raises:
        TypeError: the model cannot be simulated.
        ValueError: X does not have the shape of the inputs of the fit.
    """
    _need(posterior, "be simulated", "distribution")
    y, X_old = posterior.target.args
    new = border.as_inputs(X, y.shape[0], y.dtype, "X", posterior.model.input_axes)
    if new is not None and (X_old is None or new.shape != X_old.shape):
        wanted = "none" if X_old is None else f"shape {X_old.shape}"
        raise ValueError(f"X has shape {new.shape}; inputs as in the fit, {wanted}, are wanted.")
    paths = _run(posterior, jax.tree_util.Partial(_replicate, new), key, draws, again=True)
    return _whole(posterior, paths, (posterior._labels()[0], np.asarray(y)))


def _replicate(X_new: Any, model: Any, y: Any, X: Any, key: Any) -> Any:
    X_new = X if X_new is None else X_new
    if hasattr(model, "replicate"):
        return model.replicate(y, X, X_new, key)
    law = law_of(model, X_new, y.shape[0])
    if getattr(law, "diffuse_states", 0):
        raise TypeError(
            f"{type(model).__name__} cannot be simulated from the start: {law.diffuse_states} of its states are flat "
            "before any data. Use forecast."
        )
    return law.sample(key)


def _in_order(posterior: "Posterior", y_new: Any) -> Any:
    """The columns of a data frame in the order of the series that were fitted, where those had names."""
    held = None if posterior.series is None else posterior.series.name
    if not hasattr(y_new, "columns") or not posterior.model.multivariate or held is None:
        return y_new
    columns = {str(name): name for name in y_new.columns}
    if set(columns) != set(held):
        raise ValueError(f"y_new has the columns {list(columns)}; those of the fit, {list(held)}, are wanted.")
    return y_new[[columns[name] for name in held]]


def update(posterior: "Posterior", y_new: Any, X_new: Any = None) -> "Posterior":
    """The same draws of the parameters with more data behind them: states and forecasts move on, parameters do not.

    Equal to filtering the whole series with those parameters. The draws then follow the posterior of the data they were
    fitted to, not that of all data, so `loo` and `compare` refuse them; fit again from time to time.

    Args:
        posterior: of a model of one series.
        y_new: the values that came after, (k,), of several series (k, series) or a data frame; NaN is missing.
        X_new: their inputs, where the model was fitted with inputs.
    """
    _need(posterior, "be updated", "forecast")
    if reason := getattr(posterior.model, "not_updated", ""):
        raise TypeError(reason)
    y, X = posterior.target.args
    values = np.asarray(_in_order(posterior, y_new), float)
    if values.ndim != y.ndim or values.shape[1:] != y.shape[1:] or values.size == 0 or np.any(np.isinf(values)):
        wanted = "k," if y.ndim == 1 else f"k, {y.shape[1]}"
        raise ValueError(
            f"y_new has shape {values.shape}; finite numbers or NaN of shape ({wanted}), k >= 1, are wanted."
        )
    if (X is None) != (X_new is None):
        raise ValueError("Update with X_new if, and only if, the model was fitted with X.")
    new = border.as_inputs(X_new, len(values), y.dtype, "X_new")
    inputs = None if new is None else jnp.concatenate([X, new.reshape(len(values), *X.shape[1:])])
    both = jnp.concatenate([y, jnp.asarray(values, y.dtype)])
    target = Target(with_defaults(posterior.model, y, X).prepared(both, inputs), (both, inputs))
    held = posterior.series
    labels = None
    if held is not None and held.labels is not None:
        import pandas as pd

        labelled = hasattr(y_new, "iloc")  # a list has an `index` too
        later = y_new.index if labelled else pd.Index(border.extend_labels(held.labels, len(y), len(values)))
        labels = held.labels.append(later) if hasattr(held.labels, "append") else np.concatenate([held.labels, later])
    series = border.Series(target.args[0], labels, held.label_name if held else None, held.name if held else None)
    note = f"Updated with {len(values)} values; the parameters are those fitted to the first {len(y)}."
    report = dataclasses.replace(posterior.report, notes=(*posterior.report.notes, note))
    outcome = dataclasses.replace(posterior.outcome, report=report)
    return dataclasses.replace(posterior, target=target, series=series, outcome=outcome, updated=True)
