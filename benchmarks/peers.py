"""What the forecasting benchmarks share: competition series, statsforecast in an environment of its own, accuracy."""

import subprocess
import tempfile
from pathlib import Path

import numpy as np

_READ = """
import sys, numpy as np, pandas as pd
source, target, prefix = sys.argv[1:4]
frame = pd.read_parquet(source)
frame = frame[frame.unique_id.str.startswith(prefix)]
np.savez(target, id=frame.unique_id.to_numpy(str), y=frame.y.to_numpy(float), test=frame.is_test.to_numpy(bool))
"""
_FORECAST = """
import sys, time, warnings, numpy as np, pandas as pd
warnings.simplefilter("ignore")
from statsforecast import StatsForecast
from statsforecast.models import ARIMA, AutoARIMA, AutoETS
source, target, period, horizon, kind = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]
with np.load(source) as held:
    series = [held[f"s{i}"] for i in range(len(held.files))]
one = lambda i, y: pd.DataFrame({"unique_id": f"{i:05d}", "ds": np.arange(len(y)), "y": y})
frame = pd.concat([one(i, y) for i, y in enumerate(series)])
if kind == "airline":
    model = ARIMA(order=(0, 1, 1), season_length=period, seasonal_order=(0, 1, 1))
else:
    model = AutoARIMA(season_length=period) if kind == "arima" else AutoETS(season_length=period, model=kind)
run = lambda frame: StatsForecast(models=[model], freq=1, n_jobs=1).forecast(df=frame, h=horizon, level=[95])
run(frame[frame.unique_id < "00002"])  # its own compilation
begin = time.perf_counter()
out = run(frame)
seconds = time.perf_counter() - begin
name = [c for c in out.columns if c.endswith("-lo-95")][0][: -len("-lo-95")]
shape = lambda column: out[column].to_numpy(float).reshape(len(series), horizon).T
np.savez(target, mean=shape(name), low=shape(name + "-lo-95"), high=shape(name + "-hi-95"), seconds=seconds)
"""


def load_series(peer, folder, frequency, prefix, count, least=0, seed=None):
    """Training parts as (time, series) with NaN in front, test parts (horizon, series), and the training parts alone.

    The first ``count`` series with at least ``least`` training values, or a seeded sample of them.
    """
    with tempfile.TemporaryDirectory() as temporary:
        target = Path(temporary) / "series.npz"
        source = folder / f"m1_m3_tourism_{frequency}.parquet"
        subprocess.run([peer, "-c", _READ, source, target, prefix], check=True)
        with np.load(target) as held:
            names, y, test = held["id"], held["y"], held["test"]
    order, first = np.unique(names, return_index=True)
    order = order[np.argsort(first)]
    parts = {name: (y[names == name], test[names == name]) for name in order}
    chosen = [name for name in order if np.sum(~parts[name][1]) >= least]
    if seed is not None and count < len(chosen):
        chosen = [chosen[i] for i in np.sort(np.random.default_rng(seed).permutation(len(chosen))[:count])]
    train = [parts[name][0][~parts[name][1]] for name in chosen[:count]]
    future = [parts[name][0][parts[name][1]] for name in chosen[:count]]
    padded = np.full((max(map(len, train)), len(train)), np.nan)
    ahead = np.full((max(map(len, future)), len(future)), np.nan)
    for i, (past, later) in enumerate(zip(train, future, strict=True)):
        padded[len(padded) - len(past) :, i] = past
        ahead[: len(later), i] = later
    return padded, ahead, train


def run_peer(peer, train, period, horizon, kind):
    """statsforecast on the same series: mean and 95% limits, (horizon, series), and seconds once it is warm."""
    with tempfile.TemporaryDirectory() as temporary:
        source, target = Path(temporary) / "in.npz", Path(temporary) / "out.npz"
        np.savez(source, **{f"s{i}": y for i, y in enumerate(train)})
        subprocess.run([peer, "-c", _FORECAST, source, target, str(period), str(horizon), kind], check=True)
        with np.load(target) as held:
            return held["mean"], held["low"], held["high"], float(held["seconds"])


def accuracy(train, future, mean, limits, period):
    """Mean sMAPE, MASE, coverage and MSIS of 95% limits over series; limits (2, series, horizon) or None."""
    smape, mase, cover, msis = [], [], [], []
    for i, past in enumerate(train):
        later = future[:, i]
        seen = ~np.isnan(later)
        y, f = later[seen], np.asarray(mean)[seen, i]
        scale = np.mean(np.abs(past[period:] - past[:-period])) if len(past) > period else np.nan
        scale = scale if scale > 0 else np.nan
        smape.append(200 * np.mean(np.abs(y - f) / (np.abs(y) + np.abs(f))))
        mase.append(np.mean(np.abs(y - f)) / scale)
        if limits is not None:
            low, high = (np.asarray(one)[i, seen] for one in limits)
            cover.append(np.mean((y >= low) & (y <= high)))
            outside = np.maximum(low - y, 0) + np.maximum(y - high, 0)
            msis.append(np.mean(high - low + 40 * outside) / scale)
    mid = lambda values: float(np.nanmean(values)) if values else float("nan")
    return mid(smape), mid(mase), mid(cover), mid(msis)
