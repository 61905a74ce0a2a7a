"""The exact ARIMA likelihood, held against dense algebra, R's and statsmodels' figures, and finite differences."""

import csv
import json
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pandas as pd
import pytest
from helpers import shared, tol
from numpy.testing import assert_allclose
from scipy.linalg import toeplitz

from probkit.arima import exact
from probkit.arima.exact import Coefficients, Order
from probkit.arima.polynomials import difference_polynomial
from probkit.ssm.statespace import differenced_log_likelihood

RNG = np.random.default_rng(0)
Y = RNG.normal(size=26).cumsum()
AIRLINE = Order(1, 1, 1, 0, 1, 1, 4)
VECTOR = np.array([0.4, -0.5, -0.3, 1.3])


def gaps(*missing):
    y = Y.copy()
    y[list(missing)] = np.nan
    return y


SERIES = [gaps(), gaps(0, 1, 24, 25), gaps(3, 9, 10), gaps(2, 4, 12, 25), gaps(0, 3, 7, 11, 15)]


def split(x):
    return Coefficients(x[:1], x[1:2], x[:0], x[2:3])


def dense(y, order, c, sigma):
    """Log density, LOO moments at what is seen and moments of what is not, from the precision of the whole series."""
    phi, theta = (np.asarray(x, float) for x in exact.whole(Coefficients(*map(jnp.asarray, c)), order.s))
    n, D = len(y), order.diffuse
    impulse = np.zeros(2000)
    for t in range(2000):
        impulse[t] = (t == 0) + (theta[t - 1] if 0 < t <= len(theta) else 0)
        impulse[t] += sum(phi[j] * impulse[t - 1 - j] for j in range(min(len(phi), t)))
    gamma = np.array([impulse[k:] @ impulse[: 2000 - k] for k in range(n - D)])
    delta = np.array([np.r_[np.zeros(i), order.difference()[::-1], np.zeros(n - D - 1 - i)] for i in range(n - D)])
    V = sigma**2 * toeplitz(gamma)
    L = delta.T @ np.linalg.solve(V, delta)
    o = ~np.isnan(y)
    inner = L[np.ix_(~o, ~o)]
    S = L[np.ix_(o, o)] - L[np.ix_(o, ~o)] @ np.linalg.solve(inner, L[np.ix_(~o, o)])
    log_det = np.linalg.slogdet(V)[1] + np.linalg.slogdet(inner)[1]
    mean, variance = np.empty(n), np.empty(n)
    variance[o] = 1 / np.diag(S)
    mean[o] = y[o] - variance[o] * (S @ y[o])
    mean[~o], variance[~o] = -np.linalg.solve(inner, L[np.ix_(~o, o)] @ y[o]), np.diag(np.linalg.inv(inner))
    return -0.5 * (o.sum() * np.log(2 * np.pi) + log_det + y[o] @ S @ y[o]), mean, variance


@jax.jit
def everything(y, x, path):
    """Value, derivatives, leave-one-out and the law of what follows, in one program."""
    run = lambda x, y: exact.log_likelihood(y, split(x), x[3], AIRLINE)
    value, gradient = jax.value_and_grad(run, (0, 1))(x, y)
    hessian = jax.jacfwd(jax.grad(run))(x, y)
    start = exact.last_state(y, split(x), x[3], AIRLINE)
    joint = run(x, jnp.concatenate([y, path]))
    return value, gradient, hessian, exact.leave_one_out(y, split(x), x[3], AIRLINE), start, joint


@pytest.mark.once
@pytest.mark.parametrize("y", SERIES, ids=["complete", "ends", "inside", "start", "both"])
def test_dense_algebra_and_differences(y):
    path = jnp.asarray([1.0, -0.5, 2.0])
    value, (slope, slope_y), hessian, loo, start, joint = everything(jnp.asarray(y), jnp.asarray(VECTOR), path)
    expected, mean, variance = dense(y, AIRLINE, split(VECTOR), VECTOR[3])
    assert_allclose(value, expected, rtol=tol(1e-9, 2e-4))
    assert_allclose(loo[0], mean, rtol=tol(1e-7, 2e-3), atol=tol(1e-7, 5e-3))
    assert_allclose(loo[1], variance, rtol=tol(1e-7, 5e-3))
    h = 1e-5
    for i in range(4):
        up, down = (dense(y, AIRLINE, split(VECTOR + s * h * np.eye(4)[i]), (VECTOR + s * h * np.eye(4)[i])[3])[0]
                    for s in (1, -1))  # fmt: skip
        assert_allclose(slope[i], (up - down) / (2 * h), rtol=tol(1e-5, 1e-2), atol=tol(1e-6, 2e-2))
    seen = ~np.isnan(y)
    u = np.where(seen, (np.where(seen, y, 0) - mean) / variance, 0)
    assert_allclose(np.where(seen, slope_y, 0), -u, rtol=tol(1e-6, 1e-2), atol=tol(1e-7, 2e-2))
    assert_allclose(hessian, hessian.T, rtol=tol(1e-7, 1e-2), atol=tol(1e-7, 5e-2))
    ahead = exact.state_space(split(jnp.asarray(VECTOR)), VECTOR[3], AIRLINE)[0]
    from probkit.ssm import kalman

    future = kalman.log_likelihood(path, ahead, start)
    assert_allclose(future, joint - value, rtol=tol(1e-8, 2e-3), atol=tol(1e-8, 2e-3))


def test_the_hessian_is_that_of_differences():
    x, h = jnp.asarray(VECTOR), tol(1e-6, 1e-2)
    for y in (SERIES[0], SERIES[2]):
        out = [everything(jnp.asarray(y), x.at[1].add(s * h), jnp.zeros(3))[1][0] for s in (1, -1)]
        hessian = everything(jnp.asarray(y), x, jnp.zeros(3))[2]
        assert_allclose(hessian[1], (out[0] - out[1]) / (2 * h), rtol=tol(1e-5, 5e-2), atol=tol(1e-5, 0.1))


def test_outside_the_region_it_is_minus_infinity_with_no_slope():
    for y in (SERIES[0], SERIES[2]):
        value, (slope, slope_y), *_ = everything(jnp.asarray(y), jnp.asarray([1.2, -0.5, -0.3, 1.3]), jnp.zeros(3))
        assert value == -np.inf
        assert (slope == 0).all()
        assert np.isfinite(slope_y).all()


def rows():
    with shared("reference/r_arima.csv").open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


@partial(jax.jit, static_argnames="order")
def many(y, vectors, sigma, order):
    one = lambda row: exact.log_likelihood(row[0], Coefficients(*jnp.split(row[1], (2, 4, 5))), row[2], order)
    return jax.lax.map(one, (y, vectors, sigma))


#: Where R is not at the limit to 0.005. In the differenced ones its kappa shows (`austres` has a level of 15,000):
#: the same start in dense algebra gives R's figures to 2e-4. The two others have roots within 1e-6 of the circle, where
#: R's starting variance has lost its digits: it has -607.49 and -331.81, 60 digits give -632.81 and -346.25.
LOOSE = {("co2", "2 0 1"), ("austres", "2 0 1"), ("co2", "1 0 1")}


@pytest.mark.once
def test_the_figures_of_r():
    """All rows at R's parameters; short series padded with missing values and low orders with zeros."""
    if jnp.result_type(float) != jnp.float64:
        pytest.skip("R computes in double")
    groups = {}
    for row in rows():
        (_, d, _), (P, D, Q) = (map(int, row[name].split()) for name in ("order", "seasonal"))
        loose = (row["series"] == "austres" and d + D > 0) or (row["series"], row["order"]) in LOOSE
        y = pd.read_csv(shared(f"data/ts/{row['series']}.csv"))["y"].to_numpy(float)
        y = np.log(y) if row["log"] == "TRUE" else y
        c = dict(zip(row["names"].split(), map(float, row["coef"].split()), strict=True))
        vector = [c.get(name, 0.0) for name in ("ar1", "ar2", "ma1", "ma2", "sar1", "sma1")]
        padded = np.full(470, np.nan)
        padded[: len(y)] = y - c.get("intercept", 0.0)
        s = int(row["period"]) if P + D + Q else 2
        found = float(row["sigma2"]) ** 0.5, float(row["loglik"]), loose
        groups.setdefault(Order(2, d, 2, 1, D, 1, s), []).append((padded, vector, *found))
    assert sum(map(len, groups.values())) == 86
    for order, members in groups.items():
        y, vectors, sigma, expected, loose = map(np.array, zip(*members, strict=True))
        found = differenced_log_likelihood(many(y, vectors, sigma, order), order.diffuse)
        error = np.abs(found - expected)[~loose]
        assert (error < (0.005 if order.diffuse else 1e-4)).all(), (order, error)
        assert (np.isfinite(found) | loose).all()  # nearer to the circle than a double can tell, -inf


def test_the_figures_of_statsmodels():
    if jnp.result_type(float) != jnp.float64:
        pytest.skip("statsmodels computes in double")
    held = json.loads(shared("reference/statsmodels_uc.json").read_text(encoding="utf-8"))
    entries = [e for e in held["sarimax"] if e["id"] in ("log_AirPassengers/(0,1,1)(0,1,1,12)n",)]
    entries += [e for e in held["sarimax"] if e["series"] == "wineind" and e["order"] == [0, 1, 1]]
    for entry in entries:
        (p, d, q), (P, D, Q, s) = entry["order"], entry["seasonal_order"]
        name = entry["series"].removeprefix("log_")
        y = pd.read_csv(shared(f"data/ts/{name}.csv"))["y"].to_numpy(float)
        y = np.log(y) if entry["series"].startswith("log_") else y
        x = np.array(entry["params"])
        c = Coefficients(*np.split(x[:-1], np.cumsum([p, q, P])))
        for kind in ("full", "missing"):
            z = y.copy()
            z[entry["missing_index"] if kind == "missing" else []] = np.nan
            found = exact.log_likelihood(z, c, x[-1] ** 0.5, Order(p, d, q, P, D, Q, s))
            assert_allclose(found, entry[kind]["exact"]["loglike"], rtol=0, atol=1e-6)


def test_differencing_polynomials():
    assert_allclose(difference_polynomial(2), [1, -2, 1])
    assert_allclose(difference_polynomial(1, 1, 4), [1, -1, 0, 0, -1, 1])
