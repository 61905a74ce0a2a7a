"""Accuracy and intervals on M1, M3 and Tourism series beside statsforecast, by frequency.

python benchmarks/forecast_accuracy.py --data SHARED/data/forecast --peer VENV/bin/python [--sample 300]

The peer's environment is that of ``benchmarks/ets.py``. Every frequency: sMAPE, MASE, coverage and MSIS of 95% limits.

Measured on 300 series a frequency (``--sample 300 --draws 400 --arima``, by a script that keeps the peer's answers;
the prior of auto_ets was chosen on 80 series each of M1 and Tourism by frequency, some of them in these samples, and
that auto_arima takes one difference at most on another sample, which shares a fifth of the yearly series); a dash was
not run on the last code:

                              yearly                    quarterly                 monthly
                              sMAPE  MASE  cover  MSIS  sMAPE  MASE  cover  MSIS  sMAPE  MASE  cover  MSIS
    auto_ets                  18.69 2.848  0.828  35.1  11.39 1.276  0.893  12.1  14.56 1.028  0.900   8.4
    auto_ets, averaged        18.47 2.812  0.856  33.2  11.34 1.266  0.902  11.9  14.26 1.014  0.916   8.1
    auto_arima                20.40 3.137  0.793  39.9  11.69 1.274  0.862  13.0  15.48 1.014  0.886   9.3
    auto_arima, averaged      20.04 3.106  0.824  38.1  11.69 1.266  0.863  12.5      -     -      -     -
    auto_ets + auto_arima     19.20 2.926  0.850  33.9      -     -      -     -  14.21 0.991  0.916   8.2
    statsforecast AutoETS     19.42 2.924  0.815  37.6  11.42 1.283  0.885  13.4  14.78 1.063  0.865   9.6
    statsforecast AutoARIMA   21.09 3.330  0.726  53.4  12.13 1.335  0.821  14.6  15.79 1.054  0.866  10.2
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
