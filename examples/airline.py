"""Airline passengers, 1949 to 1960: ARIMA, a structural model, exponential smoothing and a Gaussian process compared.

    python examples/airline.py --out results

All model the logarithm; `pk.Transformed` puts the Jacobian into every density, so the leave-one-out terms are
those of passengers. Prints the comparison, with --origins a rolling forecast of the last years, and leaves two figures
in --out. Works in float64: JAX_ENABLE_X64 is set to 1 before JAX is imported, unless the environment sets it already.
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
import pandas as pd

import probkit as pk

MODELS = {
    "ARIMA(0,1,1)(0,1,1)[12]": lambda: pk.ARIMA(0, 1, 1, seasonal=(0, 1, 1, 12)),
    "structural": lambda: pk.BasicStructural(12),
    "ETS(A,A,A)": lambda: pk.ETS("AAA", period=12),
    "Gaussian process": lambda: pk.GP(pk.RBF() + pk.Periodic(period=12.0) * pk.RBF()),
}


def fit_models(y: pd.Series, names: list[str], draws: int, seed: int) -> dict[str, pk.Posterior]:
    """The posteriors, every prior at its default; seconds printed as they come."""
    fits = {}
    for name, key in zip(names, jax.random.split(jax.random.key(seed), len(names)), strict=True):
        begin = time.perf_counter()
        fits[name] = pk.fit(pk.Transformed(MODELS[name](), "log"), y, key=key, method=pk.Auto(draws=draws))
        print(f"{name}: {fits[name].report.rung}, {time.perf_counter() - begin:.1f} s")
    return fits


def rolling(y: pd.Series, names: list[str], horizon: int, origins: int, draws: int, seed: int) -> pd.DataFrame:
    """Forecast errors from several origins, in percent, and how often the 80% intervals hold the truth.

    What lies behind an origin is missing, so that all series have one length, and nothing compiles again.
    """
    rows = []
    for k in range(origins, 0, -1):
        known = len(y) - horizon * k
        truth = y.to_numpy()[known : known + horizon]
        for name, fit in fit_models(y.where(np.arange(len(y)) < known), names, draws, seed + k).items():
            ahead = fit.predict()
            low, middle, high = (ahead.quantile(q)[known : known + horizon] for q in (0.1, 0.5, 0.9))
            error, inside = 100 * np.abs(middle - truth) / truth, (truth >= low) & (truth <= high)
            rows.append({"model": name, "from": y.index[known].year, "MAPE": error.mean(), "in 80%": inside.mean()})
    return pd.DataFrame(rows)


def plot_forecasts(y: pd.Series, fits: dict[str, pk.Posterior], horizon: int, path: Path) -> None:
    """The last years and the forecasts, with 80% and 95% intervals, a panel a model."""
    fig, axes = plt.subplots(len(fits), 1, figsize=(8, 2.6 * len(fits)), sharex=True, sharey=True, squeeze=False)
    for ax, (name, fit) in zip(axes[:, 0], fits.items(), strict=True):
        frame = fit.forecast(horizon).to_frame(level=[80, 95])
        dates = pd.to_datetime(frame.iloc[:, 0])
        ax.plot(y.index[-60:], y.to_numpy()[-60:], color="0.2", lw=1)
        ax.fill_between(dates, frame["lo-95"], frame["hi-95"], color="C0", alpha=0.2, lw=0)
        ax.fill_between(dates, frame["lo-80"], frame["hi-80"], color="C0", alpha=0.35, lw=0)
        ax.plot(dates, frame["mean"], color="C0")
        ax.set_title(name, loc="left", fontsize=10)
        ax.set_ylabel("thousands")
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def plot_terms(y: pd.Series, fits: dict[str, pk.Posterior], path: Path) -> None:
    """How much better each month is foreseen from all others by one model than by the first, cumulated."""
    names = list(fits)
    terms = {name: np.asarray(fit.loo().elpd_i) for name, fit in fits.items()}
    fig, ax = plt.subplots(figsize=(8, 3.2))
    for name in names[1:]:
        ax.plot(y.index, np.nancumsum(terms[name] - terms[names[0]]), label=name)
    ax.axhline(0, color="0.3", lw=0.8)
    ax.set_ylabel("log density, cumulated")
    ax.set_title(f"leave-one-out terms less those of {names[0]}", loc="left", fontsize=10)
    ax.legend(frameon=False)
    fig.tight_layout()
    fig.savefig(path, dpi=120)
    plt.close(fig)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figures")
    parser.add_argument("--horizon", type=int, default=12, help="months ahead")
    parser.add_argument("--origins", type=int, default=0, help="origins of the rolling forecast; 0 leaves it out")
    parser.add_argument("--draws", type=int, default=1000, help="posterior draws")
    parser.add_argument("--models", nargs="+", choices=list(MODELS), default=list(MODELS))
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    y = pk.datasets.air_passengers()
    fits = fit_models(y, options.models, options.draws, options.seed)
    if len(fits) > 1:
        print(pk.compare(fits).to_string())
    plot_forecasts(y, fits, options.horizon, options.out / "airline_forecasts.png")
    plot_terms(y, fits, options.out / "airline_terms.png")
    if options.origins:
        table = rolling(y, options.models, options.horizon, options.origins, options.draws, options.seed)
        print(table.round(2).to_string(index=False))


if __name__ == "__main__":
    main()
