"""ARIMA of M3 monthly series beside statsforecast, one core each: series a second and accuracy.

taskset -c 0 python benchmarks/arima.py --data SHARED/data/forecast --peer VENV/bin/python [--series 200] [--draws 400]

The peer's environment is that of ``benchmarks/ets.py``. The airline model here is by exact maximum likelihood, the
peer's by its default, conditional least squares and then maximum likelihood. Both forecast 18 months ahead.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
from ets import timed
from peers import accuracy, load_series, run_peer
from timing import load

import probkit as pk
from probkit.arima.futures import futures
from probkit.arima.lanes import Orders
from probkit.arima.many import exact_fits


def airline(train, horizon):
    """(0,1,1)(0,1,1)12 by exact maximum likelihood, all series as lanes of one program, and the mean ahead."""
    orders, size = Orders(0, 1, 0, 1, 12), len(train)
    differences = [np.diff(y[12:] - y[:-12]) for y in train]
    w, seen = np.zeros((max(map(len, differences)), size)), np.zeros((max(map(len, differences)), size), bool)
    for i, own in enumerate(differences):
        w[: len(own), i], seen[: len(own), i] = own, True
    masks = np.tile([[True], [True], [False]], (1, size))
    starts = np.tile([[0.5], [0.5], [0.0]], (1, size))
    found = exact_fits(w, seen, np.arange(size), masks, starts, orders, 2, float)
    ahead = futures(jnp.asarray(w), seen, found.found.x, jnp.zeros(size), jnp.zeros((horizon, 1, size)), orders)
    out = np.array(ahead[:, 0])
    for i, y in enumerate(train):
        level = np.concatenate([y[-13:], out[:, i]])
        for t in range(13, 13 + horizon):
            level[t] += level[t - 1] + level[t - 12] - level[t - 13]
        out[:, i] = level[13:]
    return out


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--series", type=int, default=200)
    parser.add_argument("--draws", type=int, default=400)
    options = parser.parse_args()
    print(load())
    y, future, train = load_series(options.peer, options.data, "monthly", "M3_", options.series, least=110)
    rows = {}
    compile_s, run_s, mean = timed(lambda: airline(train, 18))
    rows["probkit airline"] = (compile_s, run_s, mean, None)
    key = jax.random.key(0)
    compile_s, run_s, ahead = timed(lambda: pk.auto_arima(y, 12, key=key).forecast(18, draws=options.draws))
    rows["probkit auto_arima"] = (compile_s, run_s, ahead.mean.T, ahead.interval(95))
    for name, kind in (("statsforecast airline", "airline"), ("statsforecast AutoARIMA", "arima")):
        mean, low, high, seconds = run_peer(options.peer, train, 12, 18, kind)
        rows[name] = (0.0, seconds, mean, (low.T, high.T))
    print(f"{len(train)} series\n{'':26s}compile s  series/s   sMAPE    MASE  coverage-95")
    for name, (compile_s, run_s, mean, limits) in rows.items():
        smape, mase, cover, _ = accuracy(train, future, mean, limits, 12)
        print(f"{name:26s}{compile_s:9.1f}{len(train) / run_s:10.1f}{smape:8.2f}{mase:8.3f}{cover:10.3f}")
    for mine, peer in (("probkit airline", "statsforecast airline"), ("probkit auto_arima", "statsforecast AutoARIMA")):
        print(f"{mine}: {rows[peer][1] / rows[mine][1]:.0f} times the series a second of {peer}")


if __name__ == "__main__":
    main()
