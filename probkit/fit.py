"""One verb: ``fit(model, y, key=key)`` gives a posterior, whatever the model and whatever the method."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from probkit import border
from probkit.infer.auto import Auto
from probkit.infer.method import Method, Outcome, together
from probkit.infer.target import Lanes, Target
from probkit.lanes import LanePosterior
from probkit.model import Model, bind, strong
from probkit.posterior import Posterior
from probkit.report import Report
from probkit.supports import check_supports


def fit(
    model: Model | Callable,
    y: Any = None,
    X: Any = None,
    *,
    key: Any = None,
    method: Method | None = None,
    init: dict[str, Any] | None = None,
    args: tuple = (),
    kwargs: dict[str, Any] | None = None,
    progress: bool = True,
) -> Posterior | LanePosterior:
    """Fit a model to data: priors become draws.

    Args:
        model: a probkit model with priors (or numbers, or defaults) in its fields, or any NumPyro model function.
        y: one series, (time,): array, list, pandas or polars series; NaN is missing. For models only. Several series of
            one length, an array (time, lane) or a list of series, are fitted as lanes, each by itself: one program, and
            a :class:`probkit.LanePosterior`. A multivariate model takes (time, series) together, or a data frame.
        X: inputs, (time,) or (time, features), where the model takes them. For models only.
        key: a new-style key, ``jax.random.key(seed)``; there is no default seed.
        method: how to answer: ``Auto()`` (the default but for nets), ``MLE()``, ``MAP()``, ``Laplace()``, ``VI()``,
            ``SVI()`` (minibatches, NumPyro's guides and flows), ``NUTS()``.
        init: sites in constrained space to start from, by name; the search then starts there alone.
        args: arguments of a plain NumPyro function: arrays and floats are traced, the rest is static.
        kwargs: keyword arguments of a plain NumPyro function, likewise.
        progress: whether to show a progress bar where the method can take more than a few seconds.

    Returns:
        A :class:`probkit.Posterior`. Trouble in inference is told in its ``report``, not raised.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: data of the wrong shape, empty, infinite or all missing; a fixed number outside its support; an
            ``init`` that does not fit.

    A model with a method `fit` of its own (`pk.VAR`, of several series at once, in closed form) answers by that.

    A second fit of the same structure and shapes compiles nothing. A new function object (a lambda or closure made
    anew, in a plain model or in ``given``) is a new structure and compiles again.
    """
    border.check_key(key, "fit")
    if method is not None and not isinstance(method, Method):
        raise TypeError(f"method is {method!r}; a method value is wanted, such as pk.Auto() or pk.NUTS(draws=500).")
    if isinstance(model, Model):
        if args or kwargs:
            raise TypeError("args and kwargs are for plain NumPyro functions; pass y and X to fit a model.")
        if border.is_many(y) and not model.multivariate:
            return _fit_lanes(model, y, X, key, Auto() if method is None else method, init, progress)
        target, series = _model_target(model, y, X)
        method = target.model.default_method(*target.args) if method is None else method
        notes = border.data_notes(series.y)
    elif hasattr(model, "fit") and not isinstance(model, type):
        if X is not None or method is not None or init is not None or args or kwargs:
            raise TypeError(f"{type(model).__name__} has a posterior in closed form: fit takes y and key alone.")
        return model.fit(y, key=key)
    elif isinstance(model, type) and issubclass(model, Model):
        raise TypeError(f"model is the class {model.__name__}; an instance is wanted: {model.__name__}().")
    elif callable(model):
        if y is not None or X is not None:
            raise TypeError("y and X are for probkit models; pass args=(...) to fit a plain NumPyro function.")
        target, series, notes = _function_target(model, args, kwargs or {}), None, ()
    else:
        raise TypeError(f"model is {type(model).__name__}; a probkit model or a NumPyro model function is wanted.")
    method = Auto() if method is None else method
    if isinstance(model, Model):
        model.check_method(method)
    k_fit, k_predict = jax.random.split(key)
    start = _check_init(init, target)
    outcome = method.run(target, k_fit, start, progress)
    notes += outcome.report.notes + _told(outcome.target or target, outcome)
    outcome = dataclasses.replace(outcome, report=dataclasses.replace(outcome.report, notes=notes))
    return Posterior(outcome.target or target, method, outcome, k_predict, series)


def _told(target: Target, outcome: Outcome) -> tuple[str, ...]:
    """What a model tells of itself at its best draw: which solver answered, what it added."""
    if not isinstance(target.model, Model) or type(target.model).notes is Model.notes:
        return ()
    lp = np.nan_to_num(outcome.stats["lp"], nan=-np.inf)
    best = np.unravel_index(np.argmax(lp), lp.shape)
    known = target.sites()
    values = {name: jnp.asarray(v[best], target.dtype) for name, v in outcome.values.items() if name in known}
    return _bound(target, values).notes(*target.args)


@eqx.filter_jit
def _bound(target: Target, values: dict[str, jax.Array]) -> Model:
    return bind(target.resolved().model, values)


def _fit_lanes(
    model: Model, y: Any, X: Any, key: Any, method: Method, init: dict[str, Any] | None, progress: bool
) -> LanePosterior:
    """Fit every series of a panel by itself; one that cannot be fitted has a report that says so, and NaN."""
    model.check_method(method)
    panel = border.as_lanes(y)
    inputs = border.as_inputs(X, len(panel.y), panel.y.dtype, axes=model.input_axes)
    check_supports(model)
    model.check_data(panel.y[:, 0], inputs)
    usable = [i for i in range(panel.y.shape[1]) if i not in panel.unusable]
    prepared = model.prepared(panel.y[:, np.array(usable)], inputs)
    lanes = Lanes(strong(prepared, panel.y.dtype), panel.y, inputs)
    k_fit, k_predict = jax.random.split(key)
    keys = jax.random.split(k_fit, lanes.count)
    outcome, reports = method.run_lanes(lanes, keys, _check_init(init, lanes.lane(0)), progress)
    for i, why in panel.unusable.items():
        reports[i] = Report(repr(method), "none", False, why, "Leave this series out, or mend it.")
        for group in (outcome.values, outcome.stats):
            for draws in group.values():
                if draws.dtype.kind == "f":
                    draws[:, :, i] = np.nan
    held = np.asarray(panel.y)
    notes = [() if i in panel.unusable else border.data_notes(held[:, i]) for i in range(lanes.count)]
    reports = [dataclasses.replace(r, notes=n + r.notes) for r, n in zip(reports, notes, strict=True)]
    whole = together(reports, repr(method), outcome.report.seconds)
    return LanePosterior(lanes, method, dataclasses.replace(outcome, report=whole), tuple(reports), k_predict, panel)


def _model_target(model: Model, y: Any, X: Any) -> tuple[Target, border.Series]:
    name = type(model).__name__
    if y is None:
        raise TypeError(f"fit needs y to fit {name}: pk.fit({name}(...), y, key=key).")
    series = border.as_table(y, name) if model.multivariate else border.as_series(y, name)
    inputs = border.as_inputs(X, len(series.y), series.y.dtype, axes=model.input_axes)
    check_supports(model)
    model.check_data(series.y, inputs)
    return Target(strong(model.prepared(series.y, inputs), series.y.dtype), (series.y, inputs)), series


def _function_target(fn: Callable, args: tuple, kwargs: dict[str, Any]) -> Target:
    def trace(x: Any) -> Any:
        if isinstance(x, np.integer | np.bool_):
            return x.item()
        if isinstance(x, jax.Array) or not (isinstance(x, float) or hasattr(x, "__array__")):
            return x
        return jnp.asarray(np.asarray(x))

    args, kwargs = jax.tree_util.tree_map(trace, (tuple(args), kwargs), is_leaf=lambda x: x is None)
    return Target(fn, args, kwargs)


def _check_init(init: dict[str, Any] | None, target: Target) -> dict[str, jax.Array] | None:
    if init is None:
        return None
    if not isinstance(init, dict):
        raise TypeError(f"init is {type(init).__name__}; a dictionary of sites is wanted: {{'name': value, ...}}.")
    sites = target.sites()
    for name, value in init.items():
        if name not in sites:
            raise ValueError(f"init has the site {name!r}; the sites of this model are {list(sites)}.")
        if np.asarray(value).dtype.kind not in "biuf":
            raise TypeError(f"init[{name!r}] is {value!r}; numbers are wanted.")
        if np.shape(value) != sites[name][0]:
            raise ValueError(f"init[{name!r}] has shape {np.shape(value)}; {sites[name][0]} is wanted.")
    start = {name: jnp.asarray(value, target.dtype) for name, value in init.items()}
    if not _in_support(target, start):
        raise ValueError(f"init {init} lies outside the support of a prior.")
    return start


@eqx.filter_jit
def _in_support(target: Target, init: dict[str, jax.Array]) -> jax.Array:
    """Whether every given site lies in the support of its prior, and not on its edge."""
    inside = [jnp.array(True)]

    def draw(name: str, law: dist.Distribution, scale: Any = None) -> jax.Array:
        to_support = dist.biject_to(law.support)
        if name not in init:
            return to_support(jnp.zeros(to_support.inverse_shape(law.shape()), target.dtype))
        value = init[name]
        inside.append(jnp.all(law.support(value)) & jnp.all(jnp.isfinite(to_support.inv(value))))
        return value

    target.resolved().execute(draw)
    return jnp.all(jnp.stack(inside))
