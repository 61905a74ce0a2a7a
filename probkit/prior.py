"""Draws before the data: what a model's priors say of the observable."""

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from probkit import border
from probkit.model import Model, law_of, resolve, strong, with_defaults
from probkit.prediction import Prediction
from probkit.supports import check_supports


@eqx.filter_jit
def _simulate(model: Model, y: Any, X: Any, length: int, keys: jax.Array) -> tuple:
    model = with_defaults(model, y, X)

    def one(key: jax.Array) -> tuple:
        k_parameters, k_y = jax.random.split(key)
        count = iter(range(10**6))
        bound = resolve(model, lambda name, prior: prior.sample(jax.random.fold_in(k_parameters, next(count))))
        law = law_of(bound, X, length)
        return law.sample(k_y), law.mean

    return jax.lax.map(one, keys, batch_size=64)


def prior_predictive(
    model: Model, y: Any = None, X: Any = None, *, length: int | None = None, draws: int = 1000, key: Any = None
) -> Prediction:
    """Draws of data from the model before it has seen any.

    Args:
        model: a probkit model with proper priors.
        y: data, used only to scale default priors and to set the length.
        X: inputs, where the model takes them.
        length: the length of the draws, where neither y nor X tells it.
        draws: number of draws.
        key: a new-style key.

    Returns:
        A :class:`probkit.Prediction` with draws (1, draws, length). Under a diffuse start, paths start at level 0.

    Raises:
        ValueError: no length; a default prior without y; an improper prior.
    """
    border.check_key(key, "prior_predictive")
    if not isinstance(model, Model):
        raise TypeError(
            f"model is {type(model).__name__}; a probkit model is wanted (for functions, numpyro.infer.Predictive)."
        )
    read = border.as_table if model.multivariate else border.as_series
    series = None if y is None else read(y, type(model).__name__)
    dtype = jnp.result_type(float) if series is None else series.y.dtype
    inputs = border.as_inputs(X, None if series is None else len(series.y), dtype)
    sizes = [None if series is None else len(series.y), length, None if inputs is None else len(inputs)]
    size = next((one for one in sizes if one is not None), None)
    if size is None:
        raise ValueError("prior_predictive needs y, X or length to know how many values to draw.")
    check_supports(model)
    model = model.prepared(jnp.ones(size, dtype), inputs)
    try:
        found = _simulate(
            strong(model, dtype), None if series is None else series.y, inputs, size, jax.random.split(key, draws)
        )
    except NotImplementedError as error:
        raise ValueError("a prior is improper, so nothing can be drawn from it; give it a proper prior.") from error
    sample, mean = (np.asarray(a)[None] for a in found)
    if model.multivariate:
        sample, mean = (np.swapaxes(a, 2, 3) for a in (sample, mean))
        lanes = np.asarray(series.name if series else [f"y{i + 1}" for i in range(sample.shape[2])])
    labels = np.arange(size) if series is None or series.labels is None else np.asarray(series.labels)
    name = "time" if series is None or series.label_name is None else str(series.label_name)
    return Prediction(sample, mean, None, labels, name, lanes=lanes if model.multivariate else None)
