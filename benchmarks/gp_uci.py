"""Exact Gaussian processes on UCI regression sets, default settings, beside scikit-learn in the same run.

python benchmarks/gp_uci.py DATA [--sets yacht energy] [--splits 0 1 2 3 4] [--largest 2000]

DATA is a folder of files NAME.npz with X, y and train_0, test_0, ... (row indices of the standard splits). Both sides
get the training part standardised, an ARD Matérn-5/2 and a fitted noise, and no tuning: ours the mode under its default
priors, theirs maximum likelihood from its own start with two restarts. Root mean squared error and mean log density of
the test observations, in the original units.

Measured, means of splits 0 to 4, RMSE and log density, ours | scikit-learn (2 cores under other load, so no times):

    yacht     0.296  -0.011 | 0.340  -0.063
    boston    2.466  -2.343 | 2.469  -2.342
"""

import argparse
import os
import time
import warnings
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import numpy as np
from scipy.stats import norm
from timing import load

import probkit as pk


def ours(X, y, X_new, seed):
    posterior = pk.fit(pk.GP(pk.Matern52()), y, X, key=jax.random.key(seed), method=pk.MAP(starts=3), progress=False)
    found = posterior.predict(X_new)
    return found.mean, found.std


def scikit_learn(X, y, X_new, seed):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel

    columns = X.shape[1]
    kernel = ConstantKernel(1.0) * Matern([columns**0.5] * columns, (1e-2, 1e4), nu=2.5) + WhiteKernel(0.1, (1e-8, 1e2))
    model = GaussianProcessRegressor(kernel, alpha=1e-10, n_restarts_optimizer=2, random_state=seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return model.fit(X, y).predict(X_new, return_std=True)


def standardised(X, X_new):
    centre, scale = X.mean(0), X.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    return (X - centre) / scale, (X_new - centre) / scale


def split_of(data, number):
    names = set(data.files)
    for train, test in ((f"train_{number}", f"test_{number}"), (f"train{number}", f"test{number}")):
        if train in names:
            return data[train], data[test]
    raise KeyError(f"no split {number} among {sorted(names)}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--sets", nargs="*")
    parser.add_argument("--splits", type=int, nargs="*", default=[0, 1, 2, 3, 4])
    parser.add_argument("--largest", type=int, default=2000)
    parser.add_argument("--skip-sklearn", action="store_true")
    options = parser.parse_args()
    print(load())
    print(f"{'set':28s}{'n':>6s}{'D':>4s}   {'':14s}{'RMSE':>9s}{'log density':>13s}{'seconds':>9s}")
    sides = {"probkit": ours} | ({} if options.skip_sklearn else {"scikit-learn": scikit_learn})
    for path in sorted(options.data.glob("*.npz")):
        if options.sets and path.stem not in options.sets:
            continue
        data = np.load(path)
        if len(data["y"]) > options.largest:
            continue
        for name, side in sides.items():
            scores = []
            for number in options.splits:
                train, test = split_of(data, number)
                X, X_new = standardised(data["X"][train], data["X"][test])
                y, y_new = data["y"][train], data["y"][test]
                centre, scale = y.mean(), y.std()
                begin = time.perf_counter()
                mean, std = side(X, (y - centre) / scale, X_new, number)
                seconds = time.perf_counter() - begin
                mean, std = centre + scale * mean, scale * std
                rmse = np.sqrt(np.mean((y_new - mean) ** 2))
                scores.append((rmse, norm(mean, std).logpdf(y_new).mean(), seconds))
            rmse, density, seconds = np.mean(scores, axis=0)
            n, D = data["X"][train].shape
            print(f"{path.stem:28s}{n:6d}{D:4d}   {name:14s}{rmse:9.3f}{density:13.3f}{seconds:9.1f}", flush=True)


if __name__ == "__main__":
    main()
