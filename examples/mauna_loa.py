"""CO2 on Mauna Loa by a Gaussian process: a long trend, a yearly wave that slowly changes, and short irregularities.

python examples/mauna_loa.py [--out DIR] [--every 3] [--nuts]

The kernel is a sum of parts by name, with a prior for every unknown. The posterior is Laplace's with importance
weights, or with --nuts also that of NUTS; the forecast of the years after the data is drawn with its 95% intervals.
"""

import argparse
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import numpy as np
import numpyro.distributions as dist

import probkit as pk


def build():
    """Lengthscales in years, scales in parts per million."""
    return pk.GP(
        pk.gp.Sum(
            trend=pk.RBF(lengthscale=dist.LogNormal(np.log(50.0), 0.5), scale=dist.LogNormal(np.log(50.0), 0.7)),
            season=pk.Periodic(period=1.0, lengthscale=dist.LogNormal(0.0, 0.5), scale=dist.LogNormal(np.log(3.0), 0.5))
            * pk.RBF(lengthscale=dist.LogNormal(np.log(50.0), 0.7)),
            short=pk.Matern32(lengthscale=dist.LogNormal(0.0, 0.7), scale=dist.LogNormal(np.log(0.5), 0.7)),
        ),
        obs_scale=dist.LogNormal(np.log(0.2), 0.7),
        mean=pk.gp.LinearMean(),
    )


def load(every):
    """Monthly means with their decimal years, thinned: every n-th month."""
    series = pk.datasets.co2()
    months = series.index.to_timestamp() if hasattr(series.index, "to_timestamp") else series.index
    year = np.array([month.year + (month.month - 0.5) / 12 for month in months])
    return year[::every], np.asarray(series, float)[::every]


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder of the figure")
    parser.add_argument("--every", type=int, default=3, help="take every n-th month")
    parser.add_argument("--nuts", action="store_true", help="NUTS beside Laplace (minutes)")
    options = parser.parse_args(arguments)

    year, y = load(options.every)
    ahead = year[-1] + np.arange(1, 12 * 15 + 1) / 12
    model, key = build(), jax.random.key(1)
    methods = {"Laplace": pk.Laplace(draws=400, starts=4)}
    if options.nuts:
        methods["NUTS"] = pk.NUTS(chains=2, draws=300, warmup=300)
    found = {}
    for name, method in methods.items():
        begin = time.perf_counter()
        found[name] = pk.fit(model, y, year, key=key, method=method)
        print(f"{name}: {time.perf_counter() - begin:.1f} s\n{found[name].report}\n{found[name].summary()}\n")
    draw(options.out, year, y, ahead, {name: p.predict(ahead) for name, p in found.items()})


def draw(out, year, y, ahead, forecasts):
    """The data and the forecasts with their intervals."""
    import matplotlib.pyplot as plt

    out.mkdir(parents=True, exist_ok=True)
    figure, ax = plt.subplots(figsize=(9, 4.5), layout="constrained")
    ax.plot(year, y, color="0.25", lw=0.9, label="data")
    for color, (name, forecast) in zip(("tab:blue", "tab:orange"), forecasts.items(), strict=False):
        low, high = forecast.interval(95)
        ax.fill_between(ahead, low, high, color=color, alpha=0.25, lw=0)
        ax.plot(ahead, forecast.mean, color=color, lw=1.1, label=f"forecast ({name}), 95%")
    ax.set(xlabel="year", ylabel="CO2 [ppm]", title="Mauna Loa: trend, changing season and short irregularities")
    ax.spines[["top", "right"]].set_visible(False)
    ax.legend(frameon=False, loc="upper left")
    figure.savefig(out / "mauna_loa.png", dpi=130)
    print(f"figure in {out / 'mauna_loa.png'}")


if __name__ == "__main__":
    main()
