"""Did the seat-belt law of February 1983 save drivers? A structural model of the monthly toll on British roads.

    python examples/road_deaths.py --out results
    python examples/road_deaths.py --data Seatbelts.csv --out results

Drivers killed or seriously injured in Great Britain, 1969 to 1984, in logarithms: a level that wanders, a season, and a
step at the law. Prints the posterior of the law's effect, tests of the one-step errors, and what the toll would have
been by a model of the time before; leaves three figures in --out. With --data, a CSV file with a column PetrolPrice (as
R's Seatbelts has it), the logarithm of the price of petrol joins as a regression.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import argparse
from pathlib import Path

import jax
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

import probkit as pk

LAW = "1983-02-01"


def petrol_price(path, length):
    """log PetrolPrice of a CSV file, (time, 1)."""
    frame = pd.read_csv(path)
    if "PetrolPrice" not in frame.columns or len(frame) != length:
        raise SystemExit(f"{path}: a column PetrolPrice and {length} rows are wanted; it has {list(frame.columns)}.")
    return np.log(frame[["PetrolPrice"]].to_numpy(float))


def law_effect(parts, name):
    """Draws of the change in percent that the law made, from the smoothed effect on the log scale."""
    return 100 * np.expm1(parts[f"{name}.effect"].draws[0, :, -1])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figures")
    parser.add_argument("--data", help="CSV file with a column PetrolPrice")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)

    toll = pk.datasets.uk_driver_deaths()
    y = np.log(toll).rename("log drivers")
    at = y.index.get_loc(pd.Timestamp(LAW))
    X = petrol_price(options.data, len(y)) if options.data else None
    base = pk.LocalLevel() + pk.Seasonal(12, scale=0.0)
    if X is not None:
        base = base + pk.Regression()
    k_fit, k_impact = jax.random.split(jax.random.key(1))

    posterior = pk.fit(base + pk.Intervention(at), y, X, key=k_fit, progress=False)
    parts, checks = posterior.components(), posterior.residuals()
    print(posterior.report, posterior.summary(), checks.table().round(3), sep="\n")
    change = law_effect(parts, f"step_{at}")
    low, high = np.percentile(change, [2.5, 97.5])
    print(f"\nThe law changed the toll by {change.mean():.1f}% (95% interval {low:.1f}% to {high:.1f}%).")
    if X is not None:
        price = parts["regression.coefficient_1"]
        print(f"Elasticity of the toll to the price of petrol: {price.mean[-1]:.2f} +- {price.std[-1]:.2f}.")

    impact = pk.causal_impact(base, y, X, start=LAW, key=k_impact)
    print(
        "\nAgainst the counterfactual of a model of the time before (log scale):",
        impact.table().drop(["relative", "relative lo-95", "relative hi-95"]).round(3),
        sep="\n",
    )

    for name, axes in (
        ("decomposition", parts.plot()),
        ("residuals", checks.plot()),
        ("impact", impact.plot()),
    ):
        figure = axes[0].figure
        path = options.out / f"road_deaths_{name}.png"
        figure.savefig(path, dpi=120)
        plt.close(figure)
        print(path)


if __name__ == "__main__":
    main()
