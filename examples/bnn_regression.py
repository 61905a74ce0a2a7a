"""In-between uncertainty: what three posteriors of one net say where there are no data.

    python examples/bnn_regression.py --out results

Observations lie left and right of a gap. A net that knows its weights only by the data should be less sure in
between; a single net is not, an ensemble is a little, a mixture of linearised Laplaces is. Foong, Li, Hernández-Lobato
and Turner (2019), In-between uncertainty in Bayesian neural networks. Works in either precision.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import argparse
import time
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np

import probkit as pk

#: A truth that bends this much lies beyond weights of scale 1: their likeliest net is smoother, and takes the bends for
#: noise (noise of 2.4 where 1 is true; with scale 2 it finds 1.03). A mixture of Laplaces learns the scale by itself.
PRIOR = 2.0
METHODS = {
    "one net": pk.bnn.Ensemble(members=1),
    "ensemble of ten": pk.bnn.Ensemble(members=10),
    "mixture of five Laplaces": pk.bnn.LaplaceGGN(members=5),
}
#: Inside the gap, and inside the data.
GAP, DATA = (-0.7, 0.7), 0.9


def truth(x):
    return 40 + 12 * np.cos(4 * x + 0.8)


def observations(seed=0):
    """60 noisy values left of the gap and right of it."""
    rng = np.random.default_rng(seed)
    x = np.concatenate([rng.uniform(-1.6, -0.9, 30), rng.uniform(0.9, 1.6, 30)])
    return x, truth(x) + rng.normal(size=60)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figure")
    parser.add_argument("--width", type=int, default=30, help="hidden units")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    x, y = observations()
    grid = np.linspace(-2.4, 2.4, 200)
    middle, seen = np.abs(grid) < GAP[1], (np.abs(grid) > DATA) & (np.abs(grid) < 1.6)
    fig, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained", sharex=True, sharey=True)
    print("epistemic sd                 in the data   in the gap   covered in the gap   seconds")
    for ax, (name, method) in zip(axes, METHODS.items(), strict=True):
        start = time.perf_counter()
        posterior = pk.fit(
            pk.BNN(pk.mlp(args.width), prior=PRIOR), y, x, key=jax.random.key(1), method=method, progress=False
        )
        prediction = posterior.predict(grid)
        spread = prediction.epistemic
        low, high = prediction.interval(90)
        covered = np.mean(((truth(grid) >= low) & (truth(grid) <= high))[middle])
        print(
            f"{name:28s} {spread[seen].mean():9.2f} {spread[middle].mean():12.2f} {covered:16.0%} "
            f"{time.perf_counter() - start:14.1f}"
        )
        for level, alpha in ((90, 0.2), (50, 0.3)):
            ax.fill_between(grid, *prediction.interval(level), color="C0", alpha=alpha, lw=0)
        ax.plot(grid, prediction.mean, color="C0", lw=1.6, label="mean, 50% and 90%")
        ax.plot(grid, truth(grid), color="0.4", lw=1, ls="--", label="truth")
        ax.plot(x, y, ".", color="0.2", ms=4, label="data")
        ax.set_title(name, fontsize=10)
        ax.set_ylim(0, 85)
        ax.spines[["top", "right"]].set_visible(False)
    axes[0].legend(fontsize=8, frameon=False, loc="upper center", ncols=3)
    fig.savefig(args.out / "bnn_regression.png", dpi=110)


if __name__ == "__main__":
    main()
