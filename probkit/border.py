"""The border: what users pass becomes arrays here, or a clear error."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import narwhals as nw
import numpy as np


class Series(NamedTuple):
    """One series as the library holds it.

    Attributes:
        y: values, shape (n,), float32 or float64, NaN where missing.
        labels: what stands along the time axis (dates, years, numbers), or None.
        label_name: the name of that axis, or None.
        name: the name of the series, or None; of several series together the list of their names.
    """

    y: Any
    labels: Any = None
    label_name: str | None = None
    name: Any = None


class Panel(NamedTuple):
    """Many series of one length as the library holds them.

    Attributes:
        y: values, (time, lane); a lane that cannot be fitted holds another's values.
        labels: what stands along the time axis, or None.
        label_name: the name of that axis, or None.
        names: the name, or the position, of each lane.
        unusable: lane -> why it cannot be fitted.
    """

    y: Any
    labels: Any
    label_name: str | None
    names: np.ndarray
    unusable: dict[int, str]


#: Kinds of NumPy dtype that are numbers here: bool, int, unsigned, float.
NUMBERS = "biuf"


def _array(name: str, values: Any) -> np.ndarray:
    try:
        return np.asarray(values)
    except ValueError as error:
        raise ValueError(f"{name} is a list of lists of unequal lengths; one array is wanted.") from error


def float_dtype(values: np.ndarray) -> Any:
    """The precision of a computation: float32 input stays float32; the rest takes JAX's default float."""
    return jnp.float32 if values.dtype == np.float32 else jnp.result_type(float)


def as_series(y: Any, taker: str = "y") -> Series:
    """Read one series: a NumPy or JAX array, a list, or a pandas / polars series (narwhals).

    Args:
        y: the values; NaN (or a masked or null entry) is missing.
        taker: what takes it, for the message.

    Raises:
        TypeError: values are not numbers.
        ValueError: not one-dimensional, empty, infinite, or nothing but missing values.
    """
    labels, label_name, name = None, None, None
    native = nw.from_native(y, pass_through=True, allow_series=True)
    if isinstance(native, nw.DataFrame | nw.LazyFrame):
        raise TypeError(
            f"y is a data frame with columns {list(native.columns)}; pass one column, such as y={native.columns[-1]!r}."
        )
    if isinstance(native, nw.Series):
        if hasattr(y, "index"):
            labels, label_name = y.index, y.index.name
        name = native.name or None
        values = native.to_numpy()
    elif isinstance(y, np.ma.MaskedArray):
        values = np.ma.filled(y if y.dtype.kind == "f" else y.astype(float), np.nan)
    else:
        values = _array("y", y)
    if values.dtype == object:
        filled = _array("y", [np.nan if v is None else v for v in values.ravel()])
        values = filled.reshape(values.shape) if filled.dtype.kind in NUMBERS else values
    if values.dtype.kind not in NUMBERS:
        raise TypeError(f"y has dtype {values.dtype}; numbers are wanted (float or int).")
    if values.ndim != 1:
        raise ValueError(f"y has shape {values.shape}; {taker} takes shape (time,).")
    if values.size == 0:
        raise ValueError("y is empty; at least one observation is wanted.")
    values = values.astype(float_dtype(values))
    if np.any(np.isinf(values)):
        raise ValueError(
            f"y is infinite at positions {np.flatnonzero(np.isinf(values))[:5].tolist()}; NaN means missing."
        )
    if np.all(np.isnan(values)):
        raise ValueError(f"y has {values.size} entries and all are NaN; at least one observation is wanted.")
    return Series(jnp.asarray(values), labels, label_name, name)


def is_many(y: Any) -> bool:
    """Whether y holds several series: an array with two axes, or a list of series."""
    if isinstance(y, list | tuple):
        return len(y) > 0 and all(np.ndim(one) == 1 for one in y)
    return isinstance(y, np.ndarray | jax.Array) and y.ndim == 2


def as_lanes(y: Any) -> Panel:
    """Read many series of one length: an array (time, lane), or a list of series, each as :func:`as_series` takes it.

    A series that is infinite or all missing is told in ``unusable``; the others are not touched by it.

    Raises:
        TypeError: values are not numbers.
        ValueError: no series, unequal lengths, or none that can be fitted.
    """
    listed = [y[:, i] for i in range(y.shape[1])] if hasattr(y, "ndim") and y.ndim == 2 else list(y)
    if not listed or not all(len(one) for one in listed):
        raise ValueError("y holds no values; an array (time, lane) or a list of series is wanted.")
    lengths = {len(one) for one in listed}
    if len(lengths) > 1:
        raise ValueError(
            f"y is a list of series of {len(lengths)} lengths ({min(lengths)} to {max(lengths)}); one length is "
            "wanted. Put NaN in front of those that begin late."
        )
    read: dict[int, Series] = {}
    unusable: dict[int, str] = {}
    for i, one in enumerate(listed):
        try:
            read[i] = as_series(one)
        except ValueError as error:
            unusable[i] = str(error)
        except TypeError as error:
            raise TypeError(f"series {i}: {error}") from error
    if not read:
        raise ValueError(f"None of the {len(listed)} series can be fitted; the first: {unusable[0]}")
    first = next(iter(read.values()))
    columns = [np.asarray(read.get(i, first).y) for i in range(len(listed))]
    names = [getattr(one, "name", None) for one in listed]
    return Panel(
        jnp.asarray(np.stack(columns, axis=1)),
        first.labels,
        first.label_name,
        np.asarray(names) if all(isinstance(n, str) for n in names) else np.arange(len(listed)),
        unusable,
    )


def as_table(y: Any, taker: str = "y") -> Series:
    """Read several series that one model takes together: a data frame, an array (time, series) or a list of series.

    Returns:
        The series: `y` is (time, series), `name` the list of their names.

    Raises:
        TypeError: values are not numbers.
        ValueError: one axis alone, unequal lengths, labels that differ, or a series that is infinite or all missing.
    """
    native = nw.from_native(y, pass_through=True, allow_series=True)
    labels, label_name, names = None, None, None
    if isinstance(native, nw.DataFrame):
        names = [str(c) for c in native.columns]
        if hasattr(y, "index"):
            labels, label_name = y.index, y.index.name
        y = [native[c] for c in native.columns]
    elif not is_many(y):
        raise ValueError(f"y has shape {np.shape(y)}; {taker} takes (time, series): an array or a data frame.")
    elif isinstance(y, list | tuple):
        labelled = [one.index for one in y if hasattr(one, "iloc")]
        if any(not one.equals(labelled[0]) for one in labelled[1:]):
            raise ValueError("y is a list of series whose labels differ; join them in a data frame first.")
    panel = as_lanes(y)
    for i, why in panel.unusable.items():
        raise ValueError(f"series {names[i] if names else i} cannot be fitted, leave it out: {why}")
    if names is None:
        named = panel.names.dtype.kind == "U"
        names = [str(name) if named else f"y{i + 1}" for i, name in enumerate(panel.names)]
        labels, label_name = panel.labels, panel.label_name
    return Series(panel.y, labels, label_name, names)


def as_inputs(
    X: Any, length: int | None, dtype: Any, name: str = "X", axes: tuple[int, ...] = (1, 2)
) -> jax.Array | None:
    """Read inputs: finite numbers, as many rows as ``length``, (n,), (n, features), or with another number of ``axes``.

    Raises:
        TypeError: values are not numbers.
        ValueError: wrong number of rows or axes, or not finite.
    """
    if X is None:
        return None
    native = nw.from_native(X, pass_through=True, allow_series=True)
    values = native.to_numpy() if isinstance(native, nw.DataFrame | nw.Series) else _array(name, X)
    if values.dtype.kind not in NUMBERS:
        raise TypeError(f"{name} has dtype {values.dtype}; numbers are wanted (float or int).")
    if values.ndim not in axes or (length is not None and values.shape[0] != length):
        rows = "n" if length is None else str(length)
        raise ValueError(f"{name} has shape {values.shape}; ({rows},) or ({rows}, features) is wanted.")
    if not np.all(np.isfinite(values)):
        raise ValueError(
            f"{name} has {int(np.sum(~np.isfinite(values)))} entries that are not finite; inputs must be complete."
        )
    return jnp.asarray(values, dtype)


def check_key(key: Any, verb: str) -> Any:
    """Check that ``key`` is a new-style key.

    Raises:
        TypeError: naming the verb and what came.
    """
    if key is None:
        raise TypeError(f"{verb} needs key=, for example key=jax.random.key(1).")
    if not (isinstance(key, jax.Array) and jnp.issubdtype(key.dtype, jax.dtypes.prng_key)) or key.shape != ():
        raise TypeError(f"{verb}: key is {type(key).__name__}; one new-style key is wanted: jax.random.key(seed).")
    return key


def check_horizon(horizon: Any) -> int:
    """Check a forecast horizon: a whole number of steps, at least one.

    Raises:
        ValueError: naming what came.
    """
    if isinstance(horizon, bool) or not isinstance(horizon, int | np.integer) or horizon < 1:
        raise ValueError(f"horizon is {horizon!r}; a whole number of steps, at least 1, is wanted.")
    return int(horizon)


def data_notes(y: Any, names: Any = None) -> tuple[str, ...]:
    """What a reader should know of the data before trusting any fit: statuses, not errors; of a table by series."""
    values = np.asarray(y)
    notes = []
    if np.isnan(values).any():
        notes.append(f"{int(np.isnan(values).sum())} of {values.size} values are missing.")
    for i, one in enumerate(values.T if values.ndim == 2 else [values]):
        seen = one[~np.isnan(one)]
        where = f" in {names[i] if names is not None else i}" if values.ndim == 2 else ""
        if seen.size == 1:
            notes.append(
                f"One observation{where}: scales of default priors fall back to |y|; the data hardly move the prior."
            )
        elif np.all(seen == seen[0]):
            notes.append(
                f"The series{where} is constant: scales of default priors fall back to |mean| (or 1), and the noise "
                "goes to its least, half the digits of y."
            )
    return tuple(notes)


def extend_labels(labels: Any, length: int, horizon: int) -> Any:
    """Labels of the steps after the end: dates go on at their frequency, numbers at their step, else positions."""
    positions = np.arange(length, length + horizon)
    if labels is None:
        return positions
    import pandas as pd

    if isinstance(labels, pd.DatetimeIndex):
        freq = labels.freq or (pd.DatetimeIndex(labels, freq="infer").freq if len(labels) > 2 else None)
        return positions if freq is None else pd.date_range(labels[-1], periods=horizon + 1, freq=freq)[1:]
    if isinstance(labels, pd.PeriodIndex):
        return labels[-1] + np.arange(1, horizon + 1)
    if len(labels) > 1 and pd.api.types.is_numeric_dtype(labels):
        step = labels[-1] - labels[-2]
        return labels[-1] + step * np.arange(1, horizon + 1)
    return positions
