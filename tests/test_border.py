"""The border: what users pass becomes arrays, or a clear error that names the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import label
from numpy.testing import assert_array_equal

from probkit import border

FLOAT = jnp.result_type(float)

# -- series ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("y", "error", "match"),
    [
        (np.ones((3, 1)), ValueError, r"y has shape \(3, 1\); Level takes shape \(time,\)\.$"),
        (np.ones((2, 2, 2)), ValueError, r"y has shape \(2, 2, 2\); Level takes shape \(time,\)\.$"),
        (5.0, ValueError, r"y has shape \(\)"),
        ([], ValueError, "y is empty; at least one observation"),
        ([np.nan] * 4, ValueError, "y has 4 entries and all are NaN"),
        ([None, None], ValueError, "y has 2 entries and all are NaN"),
        (np.ma.masked_all(3), ValueError, "y has 3 entries and all are NaN"),
        ([1.0, np.inf, 2.0, -np.inf], ValueError, r"y is infinite at positions \[1, 3\]; NaN means missing"),
        ([[1.0, 2.0], [3.0]], ValueError, "y is a list of lists of unequal lengths"),
        (["a", "b"], TypeError, "y has dtype <U1; numbers are wanted"),
        (["1", "2"], TypeError, "y has dtype <U1; numbers are wanted"),
        ("abc", TypeError, "y has dtype <U3; numbers are wanted"),
        (np.array([1.0, "a", None], object), TypeError, "y has dtype object; numbers are wanted"),
        ({"y": [1.0]}, TypeError, "y has dtype object"),
        ((x for x in range(3)), TypeError, "y has dtype object"),
        (np.array([1 + 2j]), TypeError, "y has dtype complex128"),
        (np.array([1, 2], "m8[s]"), TypeError, "y has dtype timedelta64"),
        (pd.date_range("2000", periods=3), TypeError, "y has dtype datetime64"),
        (pd.Series(["a", "b"]), TypeError, "y has dtype object; numbers are wanted"),
        (
            pd.DataFrame({"ds": [1, 2], "y": [1.0, 2.0]}),
            TypeError,
            r"columns \['ds', 'y'\]; pass one column, such as y='y'",
        ),
    ],
    ids=label,
)
def test_bad_series(y, error, match):
    with pytest.raises(error, match=match):
        border.as_series(y, "Level")


@pytest.mark.parametrize(
    "y",
    [
        [1, 2, 3],
        (1.0, 2.0, 3.0),
        range(1, 4),
        np.array([1, 2, 3], np.int8),
        np.array([1, 2, 3], np.uint16),
        np.array([1, 2, 3], np.float16),
        jnp.array([1.0, 2.0, 3.0]),
        pd.Series([1, 2, 3]),
        pd.array([1, 2, 3]),
        np.array([3.0, 2.0, 1.0])[::-1],
    ],
    ids=lambda y: f"{type(y).__name__}",
)
def test_series_of_every_kind(y):
    found = border.as_series(y).y
    assert isinstance(found, jax.Array) and found.dtype == FLOAT and not found.weak_type
    assert_array_equal(found, [1.0, 2.0, 3.0])


@pytest.mark.parametrize(
    "y",
    [
        [1.0, None, 3.0],
        [1.0, np.nan, 3.0],
        np.array([1, None, 3], object),
        np.ma.array([1, 2, 3], mask=[False, True, False]),
        pd.Series([1, None, 3], dtype="Int64"),
        pd.Series([1, None, 3], dtype="float64"),
    ],
    ids=lambda y: type(y).__name__,
)
def test_missing_values_are_nan(y):
    assert_array_equal(border.as_series(y).y, [1.0, np.nan, 3.0])


def test_float32_stays_float32():
    y = np.array([1.0, 2.0], np.float32)
    for kept in (y, jnp.asarray(y), pd.Series(y), np.ma.array(y, mask=[False, True])):
        assert border.as_series(kept).y.dtype == jnp.float32
    assert border.as_series(y.astype(np.float64)).y.dtype == FLOAT


def test_labels_travel_with_a_series():
    index = pd.date_range("2001-01-01", periods=3, freq="MS", name="month")
    found = border.as_series(pd.Series([1.0, 2.0, 3.0], index, name="sales"))
    assert (found.label_name, found.name) == ("month", "sales")
    assert found.labels.equals(index)
    assert border.as_series(np.ones(3)).labels is None


def test_a_polars_series():
    pl = pytest.importorskip("polars")
    found = border.as_series(pl.Series("sales", [1.0, None, 3.0]))
    assert found.name == "sales" and found.labels is None
    assert_array_equal(found.y, [1.0, np.nan, 3.0])


# -- inputs ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("X", "error", "match"),
    [
        (np.ones(4), ValueError, r"X has shape \(4,\); \(3,\) or \(3, features\) is wanted"),
        (np.ones((4, 2)), ValueError, r"X has shape \(4, 2\)"),
        (np.ones((3, 1, 1)), ValueError, r"X has shape \(3, 1, 1\)"),
        (1.0, ValueError, r"X has shape \(\)"),
        ([1.0, np.nan, np.inf], ValueError, "X has 2 entries that are not finite; inputs must be complete"),
        (["a", "b", "c"], TypeError, "X has dtype <U1"),
        ([None, 1.0, 2.0], TypeError, "X has dtype object"),
        ([1j, 2.0, 3.0], TypeError, "X has dtype complex128"),
        ([[1.0], [2.0, 3.0]], ValueError, "X is a list of lists of unequal lengths"),
        (pd.DataFrame({"a": ["x", "y", "z"]}), TypeError, "X has dtype object"),
    ],
    ids=label,
)
def test_bad_inputs(X, error, match):
    with pytest.raises(error, match=match):
        border.as_inputs(X, 3, FLOAT)


def test_inputs_of_every_kind():
    wanted = np.array([[1.0, 4.0], [2.0, 5.0], [3.0, 6.0]])
    for X in (
        wanted,
        wanted.tolist(),
        pd.DataFrame(wanted, columns=["a", "b"]),
        wanted.astype(int),
        jnp.asarray(wanted),
    ):
        found = border.as_inputs(X, 3, jnp.float32)
        assert found.dtype == jnp.float32
        assert_array_equal(found, wanted)
    assert border.as_inputs(pd.Series([1, 2, 3]), None, FLOAT).shape == (3,)
    assert border.as_inputs(None, 3, FLOAT) is None
    with pytest.raises(ValueError, match=r"X_new has shape \(\); \(n,\) or \(n, features\)"):
        border.as_inputs(2.0, None, FLOAT, "X_new")


# -- keys, horizons, notes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "match"),
    [
        (None, r"fit needs key=, for example key=jax.random.key\(1\)"),
        (0, "fit: key is int; one new-style key is wanted"),
        (jax.random.PRNGKey(0), "one new-style key is wanted"),
        (jax.random.split(jax.random.key(0), 2), "one new-style key is wanted"),
        ("seed", "fit: key is str"),
    ],
    ids=["none", "int", "old", "batch", "str"],
)
def test_bad_keys(key, match):
    with pytest.raises(TypeError, match=match):
        border.check_key(key, "fit")


@pytest.mark.parametrize("horizon", [0, -1, 2.5, True, "3", None, np.float64(2.0), np.array([1, 2])], ids=label)
def test_bad_horizons(horizon):
    with pytest.raises(ValueError, match=r"horizon is .*; a whole number of steps, at least 1, is wanted"):
        border.check_horizon(horizon)


def test_good_keys_and_horizons():
    assert border.check_horizon(3) == 3 and type(border.check_horizon(np.int64(3))) is int
    border.check_key(jax.random.key(0), "fit")
    border.check_key(jax.random.key(0, impl="rbg"), "fit")


def test_notes_on_the_data():
    assert border.data_notes([1.0, 2.0]) == ()
    assert border.data_notes([1.0, np.nan, 2.0]) == ("1 of 3 values are missing.",)
    assert [n.split(":")[0] for n in border.data_notes([np.nan, 2.0])] == [
        "1 of 2 values are missing.",
        "One observation",
    ]
    assert border.data_notes([3.0, 3.0])[0].startswith("The series is constant")
    told = border.data_notes(np.array([[1.0, 3.0, np.nan], [2.0, 3.0, 1.0]]), ["a", "b", "c"])
    assert [n.split(":")[0] for n in told[1:]] == ["The series in b is constant", "One observation in c"]


def test_a_table_of_series_with_other_labels_is_refused():
    one, other = (
        pd.Series([1.0, 2.0], index=pd.period_range(begin, periods=2, freq="Q")) for begin in ("1990", "1995")
    )
    assert border.as_table([one, one + 1]).y.shape == (2, 2)
    with pytest.raises(ValueError, match="labels differ; join them in a data frame"):
        border.as_table([one, other])


# -- labels after the end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "wanted"),
    [
        (None, [4, 5]),
        (pd.RangeIndex(4), [4, 5]),
        (pd.Index([1871, 1872, 1873, 1874]), [1875, 1876]),
        (pd.Index([0.0, 0.5, 1.0, 1.5]), [2.0, 2.5]),
        (pd.Index(["a", "b", "c", "d"]), [4, 5]),
        (pd.date_range("2001-11-01", periods=4, freq="MS"), ["2002-03-01", "2002-04-01"]),
        (pd.DatetimeIndex(["2001-11-01", "2001-12-01", "2002-01-01", "2002-02-01"]), ["2002-03-01", "2002-04-01"]),
        (pd.date_range("2001-11-30", periods=4, freq="ME"), ["2002-03-31", "2002-04-30"]),
        (pd.date_range("2024-02-25", periods=4), ["2024-02-29", "2024-03-01"]),
        (pd.DatetimeIndex(["2001-01-01", "2001-01-03", "2001-01-04", "2001-01-09"]), [4, 5]),
        (pd.period_range("2001Q2", periods=4, freq="Q"), ["2002Q2", "2002Q3"]),
    ],
    ids=lambda x: type(x).__name__,
)
def test_labels_go_on_after_the_end(labels, wanted):
    found = border.extend_labels(labels, 4, 2)
    if isinstance(labels, pd.DatetimeIndex) and isinstance(wanted[0], str):
        assert list(found.strftime("%Y-%m-%d")) == wanted
    elif isinstance(labels, pd.PeriodIndex):
        assert [str(p) for p in found] == wanted
    else:
        assert_array_equal(found, wanted)


def test_one_label_cannot_go_on():
    assert_array_equal(border.extend_labels(pd.DatetimeIndex(["2001-01-01"]), 1, 2), [1, 2])
    assert_array_equal(border.extend_labels(pd.Index([1871]), 1, 2), [1, 2])
