"""A motorcycle crash test: a Gaussian process whose noise is a second function of time.

    python examples/motorcycle.py --data mcycle.csv --out results
    python examples/motorcycle.py --out results

The acceleration of a helmet after an impact (Silverman 1985, R's MASS::mcycle): nothing at first, a plunge, a rebound,
and measurements that scatter far more in the middle than before the impact. With --data, a CSV file with the columns
times and accel; without it, a simulated impact of the same kind. Fits a process with one noise for all times and one
with a noise of its own at every time, compares their bounds on the evidence (and with --folds 5 their scores on the
same folds), and leaves a figure in --out.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import probkit as pk


def crash(path):
    """Times in ms and accelerations in g: of a file, or simulated."""
    if path is None:
        rng = np.random.default_rng(1)
        times = np.sort(rng.uniform(2.4, 57.6, 133))
        bump = lambda at, width: np.exp(-0.5 * ((times - at) / width) ** 2)
        return times, -115 * bump(21, 4) + 45 * bump(32, 4) + (1 + 22 * bump(27, 9)) * rng.normal(size=133)
    frame = pd.read_csv(path)
    if not {"times", "accel"} <= set(frame.columns):
        raise SystemExit(f"{path}: columns times and accel are wanted; it has {list(frame.columns)}.")
    return frame["times"].to_numpy(float), frame["accel"].to_numpy(float)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figure")
    parser.add_argument("--folds", type=int, default=0, help="score by so many folds (some refits each)")
    parser.add_argument("--data", help="CSV file with columns times and accel")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    times, accel = crash(options.data)
    source = options.data or "simulated"

    models = {
        "one noise": pk.gp.SVGP(pk.Matern52(), count=25),
        "noise of its own": pk.gp.SVGP(pk.Matern52(), pk.likelihoods.HeteroscedasticGaussian(), count=25),
    }
    grid = np.linspace(times.min(), times.max(), 200)
    figure, axes = plt.subplots(1, 2, figsize=(11, 3.8), sharey=True, layout="constrained")
    for ax, (name, model) in zip(axes, models.items(), strict=True):
        posterior = pk.fit(model, accel, times, key=jax.random.key(1), progress=False)
        print(name, posterior.report, sep="\n")
        found = posterior.predict(grid)
        early, middle = (found.aleatoric[np.argmin(np.abs(grid - at))] for at in (8.0, 30.0))
        print(f"  sd of the noise: {early:.1f} g at 8 ms, {middle:.1f} g at 30 ms")
        if options.folds:
            elpd = pk.kfold(posterior, options.folds, key=jax.random.key(2), progress=False)
            print(f"  {options.folds} folds: elpd {elpd.elpd:.1f} (standard error {elpd.se:.1f})")
        for level in (50, 95):
            low, high = found.interval(level)
            ax.fill_between(grid, low, high, color="C0", alpha=0.22, lw=0)
        ax.plot(grid, found.means[0, 0], color="C0", lw=1.8)
        ax.plot(times, accel, ".", color="0.25", ms=4)
        ax.set(title=f"{name}: bound on the log evidence {posterior.report.elbo:.0f}", xlabel="ms after the impact")
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"acceleration, g ({'simulated' if options.data is None else Path(source).name})")
    path = options.out / "motorcycle.png"
    figure.savefig(path, dpi=120)
    plt.close(figure)
    print(path)


if __name__ == "__main__":
    main()
