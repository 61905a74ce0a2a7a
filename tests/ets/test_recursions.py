"""The thirty recursions against a textbook twin, R's figures, finite differences, and themselves as lanes."""

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose, assert_array_equal

from probkit.ets.recursions import FORMS, Form, States, Weights, concentrated, log_likelihood, run, simulate

RNG = np.random.default_rng(3)
N, M = 23, 4
Y = 10 + 0.3 * np.arange(N) + 2 * np.sin(np.arange(N) * np.pi / 2) + RNG.normal(size=N)
GAPS = Y.copy()
GAPS[[0, 1, 7, 8, 22]] = np.nan
WEIGHTS = Weights(0.3, 0.1, 0.2, 0.9)
SIGMA = {"A": 1.3, "M": 0.11}
ids = {"ids": lambda form: form.name}


def start_of(form):
    season = {"A": [0.2, 1.9, -0.1, -2.0], "M": [1.02, 1.2, 0.98, 0.8], "N": 1.0}[form.season]
    return States(9.5, {"N": 0.0, "A": 0.25, "M": 1.03}[form.trend], np.array(season))


def textbook(form, y, w, start, sigma):
    """Hyndman et al. (2008), tables 2.2 and 2.3, a plain loop: each cell of the tables as it stands there."""
    l, b, seasons = start.l, start.b, list(np.atleast_1d(start.s))
    phi = w.phi if form.damped else 1.0
    means, total, begun = [], 0.0, False
    for t, value in enumerate(y):
        s = seasons[t % len(seasons)]
        power = b**phi if form.trend == "M" else None
        q = {"N": l, "A": l + phi * b, "M": l * (power or 1)}[form.trend]
        mean = {"N": q, "A": q + s, "M": q * s}[form.season]
        means.append(mean)
        begun = begun or not np.isnan(value)
        if not begun:
            continue
        scale = sigma * (mean if form.error == "M" else 1.0)
        e = 0.0 if np.isnan(value) else value - mean
        if not np.isnan(value):
            total += -0.5 * np.log(2 * np.pi * scale**2) - 0.5 * (e / scale) ** 2
        if form.error == "A":
            u, r = {"N": (e, e), "A": (e, e), "M": (e / s, e / s)}[form.season]
            s_new = {"N": s, "A": s + w.gamma * e, "M": s + w.gamma * e / q}[form.season]
            b_new = {"N": b, "A": phi * b + w.beta * r, "M": (power or 1) + w.beta * r / l}[form.trend]
            l_new = q + w.alpha * u
        else:
            eps = e / mean
            share = mean if form.season == "A" else q  # (q + s) eps, or q eps
            s_new = {"N": s, "A": s + w.gamma * mean * eps, "M": s * (1 + w.gamma * eps)}[form.season]
            b_new = {"N": b, "A": phi * b + w.beta * share * eps, "M": (power or 1) + w.beta * share * eps / l}[
                form.trend
            ]
            l_new = q + w.alpha * share * eps
        l, b, seasons[t % len(seasons)] = l_new, b_new, s_new
    return np.array(means), total, (l, b, np.roll(seasons, -(len(y) % len(seasons))))


@pytest.mark.parametrize("form", FORMS, **ids)
def test_the_textbook(form):
    fixed = (WEIGHTS, start_of(form))
    fn = jax.jit(lambda y: (run(form, y, *fixed), log_likelihood(form, y, *fixed, SIGMA[form.error])))
    for y in (Y, GAPS):
        found, value = fn(jnp.asarray(y, float))
        means, total, last = textbook(form, y, WEIGHTS, start_of(form), SIGMA[form.error])
        assert_allclose(found.mean, means, rtol=tol(1e-10, 1e-4))
        assert_allclose(value, total, rtol=tol(1e-10, 1e-4))
        assert_allclose(found.last.l, last[0], rtol=tol(1e-10, 1e-4))
        if form.trend != "N":
            assert_allclose(found.last.b, last[1], rtol=tol(1e-9, 1e-3))
        if form.season != "N":
            assert_allclose(found.last.s, last[2], rtol=tol(1e-9, 1e-3), atol=tol(1e-9, 1e-4))
        assert found.valid
        assert_array_equal(found.error[np.isnan(y)], 0.0)


@pytest.mark.parametrize("form", [Form.parse("AAdA"), Form.parse("MMdM")], **ids)
def test_lanes_are_series_and_derivatives_those_of_differences(form):
    y = jnp.asarray(np.stack([Y, GAPS, Y[::-1]], 1), float)
    start = start_of(form)

    def value(p, y):
        w, s = Weights(*p[:4]), States(p[4], p[5], p[6:10])
        return log_likelihood(form, y, w, s, p[10])

    p = jnp.asarray([*WEIGHTS, start.l, start.b, *start.s, SIGMA[form.error]], float)
    lanes = jax.jit(lambda p, y: value(p[:, None] * jnp.ones(3, p.dtype), y))(p, y)
    both = jax.jit(jax.vmap(jax.value_and_grad(value), in_axes=(None, 1)))
    each, slope = both(p, y)
    assert_allclose(lanes, each, rtol=tol(1e-12, 1e-5))
    step = tol(1e-6, 3e-3)
    for i in range(p.size):
        h = step * max(1.0, abs(float(p[i])))
        up, down = (both(p.at[i].add(d), y)[0] for d in (h, -h))
        assert_allclose(slope[:, i], (up - down) / (2 * h), rtol=tol(2e-5, 5e-2), atol=tol(1e-5, 0.3))


@pytest.mark.parametrize("name", ["MNN", "AMN", "ANM"])
def test_a_state_that_is_not_positive_has_density_zero(name):
    form = Form.parse(name)
    bad = {"MNN": States(-1.0), "AMN": States(5.0, -0.2), "ANM": States(5.0, 0.0, jnp.array([1.0, -1.0, 1.0, 1.0]))}
    fn = lambda l: log_likelihood(form, jnp.asarray(Y, float), WEIGHTS, bad[name]._replace(l=l), 0.1)
    value, slope = jax.value_and_grad(fn)(jnp.asarray(bad[name].l, float))
    assert value == -np.inf and slope == 0


@pytest.mark.parametrize("form", FORMS, **ids)
def test_simulation_is_the_inverse_of_the_run(form):
    start = start_of(form)
    errors = SIGMA[form.error] / 3 * jnp.asarray(RNG.normal(size=N), float)
    y, last = jax.jit(lambda e: simulate(form, WEIGHTS, start, e))(errors)
    found = jax.jit(lambda y: run(form, y, WEIGHTS, start))(y)
    back = found.error / found.mean if form.error == "M" else found.error
    assert_allclose(back, errors, rtol=tol(1e-7, 1e-2), atol=tol(1e-9, 1e-4))
    assert_allclose(found.last.l, last.l, rtol=tol(1e-9, 1e-3))


def r_states(row):
    """Weights and starting states of a row of R's table; R has the seasons backwards, the first one implied."""
    p = dict(zip(row.names.split(), map(float, row.par.split()), strict=True))
    form = Form.parse(row.model.split("(")[1].rstrip(")").replace(",", "") if "auto" in row.model else row.model)
    form = form._replace(damped="phi" in p)
    w = Weights(p["alpha"], p.get("beta", 0.0), p.get("gamma", 0.0), p.get("phi", 1.0))
    s = np.array([v for name, v in p.items() if name[0] == "s"])
    if s.size:
        s = np.append(s, (row.period if form.season == "M" else 0.0) - s.sum())[::-1]
    return form, w, States(p["l"], p.get("b", 0.0), s)


@pytest.mark.once
def test_r():
    """At R's parameters the concentrated log-likelihood is R's - (n/2)(log(2 pi / n) + 1), and the forecasts agree."""
    table = pd.read_csv(shared("reference/r_ets.csv"))
    programs, worst = {}, 0.0
    for row in table.itertuples():
        y = pd.read_csv(shared(f"data/ts/{row.series}.csv"))["y"].dropna().to_numpy(float)
        n, padded = len(y), np.full(504, np.nan)  # one length for all: what follows the series is missing
        padded[:n] = np.log(y) if row.log else y
        form, w, start = r_states(row)
        key = (form, row.period)
        if key not in programs:

            def program(y, w, start, form=form):
                found = run(form, y, w, start)
                return concentrated(found, form)[0], found.mean

            programs[key] = jax.jit(program)
        value, mean = programs[key](padded.astype(jnp.result_type(float)), w, start)
        theirs = row.loglik - 0.5 * n * (np.log(2 * np.pi / n) + 1)
        worst = max(worst, abs(value - theirs))
        assert_allclose(value, theirs, atol=tol(1e-4, 0.5), rtol=tol(1e-12, 2e-3), err_msg=f"{row.series} {row.model}")
        if form.linear:  # for the others R adds terms of order sigma2, or simulates
            assert_allclose(mean[n : n + 12], np.array(row.forecast.split(), float), rtol=tol(1e-6, 5e-3))
    assert len(table) == 159 and worst < tol(1e-4, 1.0)


def test_letters():
    assert [Form.parse(form.name) for form in FORMS] == list(FORMS)
    assert len(set(FORMS)) == 30
    for text in ("XNN", "AAdd", "", "ANNN", "aan"):
        with pytest.raises(ValueError, match="is no exponential smoothing model"):
            Form.parse(text)
