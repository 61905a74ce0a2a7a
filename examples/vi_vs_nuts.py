"""One posterior six ways: MAP, Laplace, mean-field, with linear response, full-rank, and NUTS to judge them by.

    python examples/vi_vs_nuts.py --out results

A quadratic trend in the logarithm of the monthly airline passengers, time counted in years from 1949, so that its three
coefficients are strongly correlated: mean-field loses most of their spread, and linear response gives it back. Writes a
forest plot and the densities, and prints a table: the worst error of a mean and of an sd against NUTS, and seconds to
compile and to run. Data: Box and Jenkins (1976), series G. Works in float64, unless the environment says otherwise.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import argparse
from pathlib import Path

import arviz_base as azb
import arviz_plots as azp
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro
import numpyro.distributions as dist
import pandas as pd

import probkit as pk

METHODS = {
    "MAP": pk.MAP(),
    "Laplace": pk.Laplace(importance=False),
    "mean-field": pk.VI(linear_response=False),
    "mean-field + LR": pk.VI(),
    "full-rank": pk.VI(guide="full-rank"),
    "NUTS": pk.NUTS(draws=1000),
}


def trend(years, y):
    """A quadratic trend with noise that may have heavy tails."""
    intercept = numpyro.sample("intercept", dist.Normal(5.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 0.5))
    curve = numpyro.sample("curve", dist.Normal(0.0, 0.1))
    scale = numpyro.sample("scale", dist.HalfNormal(0.5))
    numpyro.sample("y", dist.StudentT(5.0, intercept + slope * years + curve * years**2, scale), obs=y)


def table(posteriors: dict[str, pk.Posterior]) -> pd.DataFrame:
    """Worst errors against NUTS over the parameters, in sds and as a ratio of sds, and seconds."""
    held, rows = posteriors["NUTS"].sites, {}
    for name, posterior in posteriors.items():
        off = [(v.mean() - held[n].mean()) / held[n].std() for n, v in posterior.sites.items()]
        ratio = [v.std() / held[n].std() for n, v in posterior.sites.items()]
        seconds = posterior.report.seconds
        rows[name] = {
            "mean off by (sd)": np.max(np.abs(off)),
            "least sd ratio": np.min(ratio),
            "largest sd ratio": np.max(ratio),
            "believed": posterior.report.converged,
            "compile (s)": seconds.compile,
            "run (s)": seconds.run,
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def plots(posteriors: dict[str, pk.Posterior], out: Path) -> list[Path]:
    """A forest plot and the densities of every method that has draws."""
    azp.style.use("arviz-variat")
    flat = lambda p: {n: np.reshape(v, (1, -1)) for n, v in p.sites.items()}
    trees = {n: azb.from_dict({"posterior": flat(p)}) for n, p in posteriors.items() if n != "MAP"}
    files = [out / "forest.png", out / "densities.png"]
    figure, axes = plt.subplots(1, 4, figsize=(12, 3.2), layout="constrained")
    heights = np.arange(len(posteriors))[::-1]
    for axis, name in zip(axes, posteriors["NUTS"].sites, strict=True):
        for height, posterior in zip(heights, posteriors.values(), strict=True):
            draws = np.ravel(posterior.sites[name])
            low, inner, middle, outer, high = np.quantile(draws, [0.025, 0.25, 0.5, 0.75, 0.975])
            axis.plot([low, high], [height] * 2, color="C0", lw=1)
            axis.plot([inner, outer], [height] * 2, color="C0", lw=4)
            axis.plot(middle, height, "o", color="white", mec="C0", ms=5)
        axis.axvline(np.median(posteriors["NUTS"].sites[name]), color="0.7", lw=0.8, zorder=0)
        axis.set_title(name)
        axis.set_yticks(heights, list(posteriors) if axis is axes[0] else [""] * len(heights))
        axis.ticklabel_format(axis="x", style="plain", useOffset=False)
        axis.tick_params(axis="x", labelsize=8, rotation=30)
    figure.suptitle("Median, 50 % and 95 % of each parameter")
    figure.savefig(files[0], dpi=130)
    plt.close(figure)
    plain = dict.fromkeys(("point_estimate", "point_estimate_text", "credible_interval"), False)
    pc = azp.plot_dist(trees, kind="kde", visuals=plain, figure_kwargs={"figsize": (12, 3.6)})
    pc.add_legend("model", title="")
    plt.savefig(files[1], dpi=130, bbox_inches="tight")
    return files


def main() -> None:
    """Fit by every method, print the table and the reports that do not believe themselves, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figures (default: results)")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random draw (default: 1)")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    y = jnp.log(jnp.asarray(np.asarray(pk.datasets.air_passengers(), float)))
    years = jnp.arange(y.size) / 12.0
    key = jax.random.key(a.seed)
    posteriors = {
        name: pk.fit(trend, args=(years, y), key=key, method=method, progress=False) for name, method in METHODS.items()
    }
    print(table(posteriors).to_string(float_format=lambda x: f"{x:.3f}"))
    for name, posterior in posteriors.items():
        if not posterior.report.converged:
            print(f"\n{name}: {posterior.report.reason} {posterior.report.advice}")
    for file in plots(posteriors, a.out):
        print(file)


if __name__ == "__main__":
    main()
