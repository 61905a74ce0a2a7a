"""Fits of many series and forms at once: R's optima, lanes that harm no other, selection, averages and forecasts."""

import jax
import numpy as np
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose, assert_array_equal

import probkit as pk
from probkit.ets import search
from probkit.ets.auto import candidates

KEY = jax.random.key(0)
GOOD = 100 + np.cumsum(np.random.default_rng(0).normal(size=(60, 8)), 0)
BAD = GOOD.copy()
BAD[:, 0], BAD[:, 1], BAD[2:, 2], BAD[:, 3] = 5.0, 0.0, np.nan, np.nan
BAD[:, 4] *= 1e12
BAD[30, 5] = 1e9


@pytest.fixture(scope="module")
def panels():
    return [pk.auto_ets(y, key=KEY) for y in (GOOD, BAD)]


@pytest.mark.once
def test_a_bad_lane_harms_no_other(panels):
    good, bad = panels
    for name, values in good.figures.items():
        assert_array_equal(values[:, 6:], bad.figures[name][:, 6:])
    assert bad.status[:4] == (
        "constant",
        "constant",
        "too few values for any candidate",
        "y has 60 entries and all are NaN; at least one observation is wanted.",
    )
    assert set(bad.status[4:]) == {"ok"}
    ahead = [one.forecast(3, draws=50) for one in panels]
    assert_allclose(ahead[0].draws[:, :, 6:], ahead[1].draws[:, :, 6:], rtol=tol(1e-9, 1e-2))
    assert_allclose(ahead[1].draws[:, :, 0], 5.0, rtol=tol(1e-6, 1e-2))
    assert np.isnan(ahead[1].draws[:, :, 3]).all() and np.isfinite(ahead[1].draws[:, :, [0, 1, 2, 4, 5]]).all()
    if tol(1, 0):  # in float32 the roundings of 1e12 move the descent
        assert_allclose(ahead[1].mean[4], 1e12 * ahead[0].mean[4], rtol=1e-6)


@pytest.mark.once
def test_the_table_and_the_best_are_of_one_series(panels):
    one = pk.auto_ets(pd.Series(GOOD[:, 6], index=pd.period_range("2000", periods=60, freq="Y")), key=KEY)
    assert list(one.table["aicc"]) == sorted(one.table["aicc"])
    assert one.chosen == one.table["candidate"][0] == panels[0].chosen[6]
    assert one.table["weight"].sum() == 1 and set(one.candidates) == set(candidates(1))
    best = pk.model.strong(one.best, np.result_type(GOOD) if tol(1, 0) else np.float32)
    y = jax.numpy.asarray(GOOD[:, 6], float)
    assert_allclose(best.log_likelihood(y), one.table["log_likelihood"][0], rtol=tol(1e-8, 1e-3))
    assert_allclose(one.forecast(4, draws=400).mean, best.forecast(y, 4).mean, atol=0.6)
    assert str(one.forecast(2, draws=10).labels[0]) == "2060"
    assert "Selection" in repr(one)


@pytest.mark.once
def test_averages(panels):
    mixed = pk.auto_ets(GOOD, key=KEY, average=True)
    assert_allclose(mixed.weights.sum(0), 1.0, rtol=1e-6)
    assert (mixed.weights.max(0) < 1).any() and ((mixed.weights > 0) == (mixed.weights >= 0.01)).all()
    assert mixed.forecast(2, draws=40).draws.shape == (1, 40, 8, 2)
    both = pk.average(panels[0], mixed, weights=[1, 3]).forecast(2, draws=40)
    assert both.draws.shape == (1, 40, 8, 2) and np.isfinite(both.draws).all()
    with pytest.raises(ValueError, match="different data"):
        pk.average(*panels)
    with pytest.raises(TypeError, match="takes selections"):
        pk.average(panels[0], 3)


def test_candidates():
    assert candidates(1) == ("ANN", "AAN", "AAdN", "MNN", "MAN", "MAdN")
    assert len(candidates(12)) == 15 and "AAM" not in candidates(12) and "MAdM" in candidates(12)
    assert "MMdM" in candidates(12, "AM") and "MMA" not in candidates(12, "AM")


@pytest.mark.parametrize(
    ("changed", "match"),
    [
        ({"period": 0}, "period is 0"),
        ({"criterion": "elpd"}, "criterion is 'elpd'"),
        ({"candidates": ("ANA",)}, "pass period="),
        ({"candidates": "ANN"}, "letters of one form"),
    ],
)
def test_what_is_refused(changed, match):
    with pytest.raises(ValueError, match=match):
        pk.auto_ets(GOOD, key=KEY, **changed)


def test_a_key_is_wanted():
    with pytest.raises(TypeError, match="auto_ets needs key="):
        pk.auto_ets(GOOD)


@pytest.mark.slow
def test_optima_are_those_of_r():
    """All forms that R fitted to twelve series: our likelihood is not below R's by more than 0.01, by its constant."""
    table = pd.read_csv(shared("reference/r_ets.csv"))
    table = table[~table.model.str.startswith("auto")]
    lost = {}
    for (name, log, period), rows in table.groupby(["series", "log", "period"]):
        y = pd.read_csv(shared(f"data/ts/{name}.csv"))["y"].dropna().to_numpy(float)
        y = np.log(y) if log else y
        forms = [row.model[:2] + "d" * row.damped + row.model[2] for row in rows.itertuples()]
        found = pk.auto_ets(y, int(period), key=KEY, candidates=tuple(dict.fromkeys(forms)), prior=False)
        constant = 0.5 * len(y) * (np.log(2 * np.pi / len(y)) + 1)
        for form, theirs in zip(forms, rows.loglik, strict=True):
            ours = found.figures["log_likelihood"][found.candidates.index(form), 0]
            lost[name, form] = theirs - constant - ours
    assert len(lost) == 147
    assert max(lost.values()) < tol(1e-2, 0.3), {key: value for key, value in lost.items() if value > 1e-2}


@pytest.mark.once
def test_the_look_misses_nothing_on_smooth_series(monkeypatch):
    """Slopes that move: many series, of which most candidates are only looked at, against the whole search."""
    y = 50 + 0.3 * np.random.default_rng(3).normal(size=(40, 30)).cumsum(0).cumsum(0)
    looked = pk.auto_ets(y, key=jax.random.key(0)).figures["aicc"].min(axis=0)
    monkeypatch.setattr(search, "FEW", 10**9)
    whole = pk.auto_ets(y, key=jax.random.key(0)).figures["aicc"].min(axis=0)
    assert np.mean(looked > whole + 0.1) < 0.1 and np.all(looked < whole + 3)
