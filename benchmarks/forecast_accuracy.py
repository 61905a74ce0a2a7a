"""Accuracy and intervals on M1, M3 and Tourism series beside statsforecast, by frequency.

python benchmarks/forecast_accuracy.py --data SHARED/data/forecast --peer VENV/bin/python [--sample 300]

The peer's environment is that of ``benchmarks/ets.py``. Every frequency: sMAPE, MASE, coverage and MSIS of 95% limits.

Measured with ``--sample 150 --draws 400 --arima`` (the prior of auto_ets was chosen on 80 series each of M1 and of
Tourism by frequency, of which some are in these samples; M3 had no part in it):

                               quarterly                               yearly
                                sMAPE   MASE  coverage-95   MSIS       sMAPE   MASE  coverage-95   MSIS
    auto_ets                    10.78  1.321        0.929  12.06       19.52  3.059        0.835  43.83
    auto_ets, averaged          10.86  1.313        0.940  11.75       19.08  2.998        0.851  41.76
    auto_arima                  11.18  1.352        0.868  15.36       20.27  3.372        0.795  55.95
    auto_ets + auto_arima       10.46  1.271        0.938  11.77       19.29  3.105        0.858  43.70
    statsforecast AutoETS       10.63  1.312        0.918  13.07       20.34  3.179        0.802  46.04
    statsforecast AutoARIMA     11.43  1.371        0.834  15.69       19.24  3.291        0.761  58.94
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
from peers import accuracy, load_series, run_peer
from timing import load

import probkit as pk

PERIODS = {"yearly": 1, "quarterly": 4, "monthly": 12}


def ours(y, period, horizon, draws):
    """Every selection that probkit has, and their average."""
    key = jax.random.key(0)
    found = {"auto_ets": pk.auto_ets(y, period, key=key)}
    found["auto_ets, averaged"] = pk.auto_ets(y, period, key=key, average=True)
    if hasattr(pk, "auto_arima"):
        found["auto_arima"] = pk.auto_arima(y, period, key=key)
        found["auto_ets + auto_arima"] = pk.average(found["auto_ets"], found["auto_arima"])
    for name, one in found.items():
        begin = time.perf_counter()
        ahead = one.forecast(horizon, draws=draws)
        yield name, ahead.mean.T, ahead.interval(95), time.perf_counter() - begin


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--peer", required=True)
    parser.add_argument("--sample", type=int, default=300)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--frequencies", nargs="*", default=list(PERIODS))
    parser.add_argument("--arima", action="store_true", help="the peer's AutoARIMA as well; slow")
    options = parser.parse_args()
    print(load())
    for frequency in options.frequencies:
        period = PERIODS[frequency]
        y, future, train = load_series(options.peer, options.data, frequency, "", options.sample, seed=1)
        horizon = future.shape[0]
        rows = list(ours(y, period, horizon, options.draws))
        for name, kind in [("statsforecast AutoETS", "ZZZ"), ("statsforecast AutoARIMA", "arima")][: 1 + options.arima]:
            mean, low, high, seconds = run_peer(options.peer, train, period, horizon, kind)
            rows.append((name, mean, (low.T, high.T), seconds))
        print(f"\n{frequency}, {len(train)} series\n{'':26s}   sMAPE    MASE  coverage-95    MSIS")
        for name, mean, limits, _ in rows:
            smape, mase, cover, msis = accuracy(train, future, mean, limits, period)
            print(f"{name:26s}{smape:8.2f}{mase:8.3f}{cover:13.3f}{msis:8.2f}")


if __name__ == "__main__":
    main()
