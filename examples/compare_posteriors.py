"""Models of one series, compared: by default a local level, an ARIMA(0,1,1) and a Gaussian process.

    python examples/compare_posteriors.py --out results
    python examples/compare_posteriors.py --data sales.csv --column units --horizon 12 --out results
    python examples/compare_posteriors.py --models level trend holt ar1 gp --out results
    python examples/compare_posteriors.py --dataset nottem --period 12 --models structural ets airline --out results

Prints summaries, reports, the comparison by leave-one-out and the forecasts, and leaves the figures in --out. Works in
float64: JAX_ENABLE_X64 is set to 1 before JAX is imported, unless the environment has set it already.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import argparse
import re
import warnings
from pathlib import Path

import arviz_base as azb
import arviz_plots as azp
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr
from matplotlib.dates import AutoDateLocator, ConciseDateFormatter
from matplotlib.lines import Line2D

import probkit as pk

METHODS = {"auto": pk.Auto(), "laplace": pk.Laplace(), "nuts": pk.NUTS()}
LEVEL, ARIMA = "local level", "ARIMA(0,1,1)"
# What --models takes: a name for tables and pictures, and the model, given the period.
MODELS = {
    "level": (LEVEL, lambda period: pk.LocalLevel()),
    "arima": (ARIMA, lambda period: pk.ARIMA(0, 1, 1)),
    "gp": ("Gaussian process", lambda period: pk.GP(pk.Matern32())),
    "ar1": ("AR(1)", lambda period: pk.ARIMA(1, 0, 0)),
    "trend": ("local linear trend", lambda period: pk.LocalLinearTrend()),
    "holt": ("damped Holt", lambda period: pk.ETS("AAdN")),
    "structural": ("structural", lambda period: pk.BasicStructural(period)),
    "ets": ("ETS(A,A,A)", lambda period: pk.ETS("AAA", period=period)),
    "airline": ("airline ARIMA", lambda period: pk.ARIMA(0, 1, 1, seasonal=(0, 1, 1, period))),
    "periodic-gp": ("periodic GP", lambda period: pk.GP(pk.RBF() + pk.Periodic(period=float(period)) * pk.RBF())),
}
DEFAULT = ["level", "arima", "gp"]
SEASONAL = ("structural", "ets", "airline", "periodic-gp")
DATASETS = ("air_passengers", "co2", "lake_huron", "lynx", "nile", "nottem", "sunspots", "uk_driver_deaths")
COLUMNS = 3  # panels of a figure side by side
TIME_COLUMNS = ("ds", "date", "month", "year")


# -- data -------------------------------------------------------------------------------------------------------------


def read_series(path: str, column: str | None = None) -> pd.Series:
    """One numeric column of a CSV file, blanks as NaN, indexed by its column ds, date, month or year if it has one."""
    frame = pd.read_csv(path)
    time = next((name for name in frame.columns if str(name).lower() in TIME_COLUMNS), None)
    numeric = [name for name in frame.select_dtypes("number").columns if name != time]
    if column is None:
        if len(numeric) != 1:
            raise ValueError(f"{path}: name one column with --column; the numeric columns are {numeric}.")
        column = numeric[0]
    if column not in frame.columns:
        raise ValueError(f"{path} has no column {column!r}; the numeric columns are {numeric}.")
    if column not in numeric:
        raise ValueError(f"{path}: column {column!r} is not numeric; the numeric columns are {numeric}.")
    y = frame[column].astype(float)
    if time is not None:
        try:
            y = evenly(y.set_axis(time_index(frame[time])))
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}: the column {time!r} must hold evenly spaced times: {error}") from error
    y.attrs = {"title": Path(path).stem}
    return y


def time_index(values: pd.Series) -> pd.Index:
    """Dates, or whole numbers such as years as they are."""
    index = pd.Index(values) if pd.api.types.is_integer_dtype(values) else pd.DatetimeIndex(values)
    if index.hasnans or index.has_duplicates:
        raise ValueError("some are missing or repeated")
    return index.rename(values.name)


def evenly(y: pd.Series) -> pd.Series:
    """The series in order, on the first even grid that holds all its times; rows left out become missing values."""
    y = y.sort_index()
    first, last = y.index[0], y.index[-1]
    if isinstance(y.index, pd.DatetimeIndex):
        frequencies = (pd.DatetimeIndex(y.index[i : i + 3], freq="infer").freq for i in range(len(y) - 2))
        grids = (pd.date_range(first, last, freq=frequency) for frequency in frequencies if frequency is not None)
    else:
        grids = [range(first, last + 1, int(np.diff(y.index).min()))] if len(y) > 1 else [y.index]
    for grid in grids:
        if y.index.isin(grid).all():
            return y.reindex(pd.Index(grid, name=y.index.name))
    raise ValueError("no frequency fits them")


# -- models -----------------------------------------------------------------------------------------------------------


def fit_models(y: pd.Series, chosen: list[str], period: int, method: str, seed: int) -> dict[str, pk.Posterior]:
    """The posteriors, every prior left at its default: weakly informative, scaled to the data."""
    models = {name: build(period) for name, build in (MODELS[one] for one in chosen)}
    keys = jax.random.split(jax.random.key(seed), len(models))
    return {
        name: pk.fit(models[name], y, method=METHODS[method], key=key) for name, key in zip(models, keys, strict=True)
    }


def implied_arima(level_scale: np.ndarray, obs_scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(ma, scale) of the ARIMA(0,1,1) that a local level is.

    With q = level_scale² / obs_scale², theta = (√(q² + 4q) - q - 2) / 2, here without its cancellation, and
    obs_scale² = -theta scale².
    """
    q = (level_scale / obs_scale) ** 2
    ma = -2 / (q + 2 + np.sqrt(q**2 + 4 * q))
    return ma, obs_scale / np.sqrt(-ma)


def largest_gap(posterior: pk.Posterior, y: pd.Series) -> float:
    """Largest difference in log-likelihood between the draws of a local level and the ARIMA(0,1,1) they imply."""
    draws = jax.tree_util.tree_map(np.ravel, posterior.draws)
    ma, scale = implied_arima(draws.level_scale, draws.obs_scale)
    values = jnp.asarray(y, ma.dtype)
    level = jax.vmap(lambda model: model.log_likelihood(values))(draws)
    arima = jax.vmap(lambda m, s: pk.ARIMA(0, 1, 1, ma=m, scale=s).log_likelihood(values))(ma, scale)
    return float(jnp.max(jnp.abs(level - arima)))


# -- figures ----------------------------------------------------------------------------------------------------------


def scales(posterior: pk.Posterior, forecast: pk.Prediction) -> xr.DataTree:
    """The standard deviations that models of different make share, (1, draws).

    Their fields are not one quantity: LocalLevel.obs_scale and GP.obs_scale are noise around a smooth signal, while
    ARIMA.scale is the error of a one-step forecast. The latter exists for all three, as the spread of the next value
    given the parameters; the former for two.
    """
    found = {"one step ahead": forecast.stds[..., 0]}
    if "obs_scale" in posterior.sites:
        found["observation noise"] = posterior.sites["obs_scale"]
    return tree(found)


def tree(draws: dict[str, np.ndarray]) -> xr.DataTree:
    """A tree that ArviZ reads, with all chains joined, so that models fitted by different methods align."""
    return azb.from_dict({"posterior": {name: np.reshape(value, (1, -1)) for name, value in draws.items()}})


def axes_of(pc: azp.PlotCollection) -> list[plt.Axes]:
    """The axes of an ArviZ figure, to name their units."""
    return pc.viz["figure"].item().axes


def forest(trees: dict[str, xr.DataTree], unit: str) -> None:
    """The standard deviations as intervals."""
    pc = azp.plot_forest(
        trees,
        combined=True,
        ci_probs=(0.5, 0.95),
        visuals={"ticklabels": False, "twig": {"width": 1.5}, "trunk": {"width": 4}},
        figure_kwargs={"figsize": (10, 1.9 + 0.5 * len(trees)), "width_ratios": [1, 3]},
    )
    pc.add_legend("model", title="")
    names, intervals = axes_of(pc)
    names.set_axis_off()
    intervals.set_xlabel(f"standard deviation{unit}: mean, 50 % and 95 %")


def densities(trees: dict[str, xr.DataTree], label: str, width: float, **visuals: bool) -> None:
    """One panel a quantity, one density a model, its mean and 95 % interval below."""
    pc = azp.plot_dist(
        trees,
        ci_prob=0.95,
        # Importance resampling repeats draws, which an adaptive bandwidth would take for bumps; and means in full.
        stats={"dist": {"bw": "scott"}, "point_estimate": {"round_to": "none"}},
        visuals={"point_estimate_text": False, "dist": {"width": 2}, **visuals},
        figure_kwargs={"figsize": (width, 3.4)},
    )
    pc.add_legend("model", title="")
    for ax in axes_of(pc):
        ax.set_xlabel(label)


def equivalence(posteriors: dict[str, pk.Posterior]) -> None:
    """The moving-average coefficient: ARIMA's own, and the one that the local level implies."""
    level, arima = posteriors[LEVEL].sites, posteriors[ARIMA].sites
    ma = {f"{LEVEL}, implied": implied_arima(level["level_scale"], level["obs_scale"])[0], ARIMA: arima["ma"]}
    trees = {name: tree({"ma": value}) for name, value in ma.items()}
    densities(trees, r"moving-average coefficient $\theta$", 8, title=False)


def comparison(table: pd.DataFrame) -> None:
    """Differences in elpd from the best model with their own standard errors, not those of the elpds."""
    pc = azp.plot_compare(
        table.assign(se=table["dse"]),
        relative_scale=True,
        visuals={"title": False, "error_bar": {"width": 2}, "point_estimate": {"size": 60}},
        figure_kwargs={"figsize": (9, 1.4 + 0.4 * len(table))},
    )
    (ax,) = axes_of(pc)
    ax.set(xlabel="leave-one-out elpd less that of the best, ± 1 standard error", ylim=(0.5, len(table) + 0.5))


def side_by_side(posteriors: dict[str, pk.Posterior]) -> xr.DataTree:
    """One tree with a variable for each model, so that ArviZ draws a panel for each.

    Replicates are drawn given all other observations: LOO-PIT needs that, and in the predictive check it gives models
    that are the same in other words the same picture. The default, a fresh observation of the smoothed signal, would
    not: what is signal and what is noise is told apart in other ways by a local level and by its ARIMA.
    """
    parts: dict[str, list] = {"posterior_predictive": [], "log_likelihood": [], "observed_data": [], "posterior": []}
    for name, posterior in posteriors.items():
        found = posterior.to_arviz(predictive="loo")
        parts["posterior"] += [draws.rename(f"{name} {site}") for site, draws in found["posterior"].data_vars.items()]
        for group in list(parts)[:3]:
            parts[group].append(found[group]["y"].rename(name))
    return xr.DataTree.from_dict({group: xr.merge(arrays, join="inner") for group, arrays in parts.items()})


def calibration(together: xr.DataTree) -> None:
    """LOO-PIT: uniform for a calibrated model, so that its line stays in the 95 % band."""
    pc = azp.plot_loo_pit(
        together,
        ci_prob=0.95,
        aes={"color": ["__variable__"]},
        aes_by_visuals={"ecdf_lines": ["color"]},
        figure_kwargs={"figsize": (12, 3.4), "sharey": True},
    )
    first, *others = axes_of(pc)
    first.set_xticks([0, 0.5, 1])
    for ax in others:
        ax.set_ylabel("")


def check(together: xr.DataTree, label: str, replicates: int = 50) -> None:
    """Densities of data replicated by each model, and of the data."""
    pc = azp.plot_ppc_dist(
        together,
        num_samples=replicates,
        aes={"color": ["__variable__"]},
        visuals={"predictive_dist": {"alpha": 0.25}, "observed_dist": {"width": 2.5, "color": "black"}},
        aes_by_visuals={"predictive_dist": ["color", "overlay_ppc"]},
        figure_kwargs={"figsize": (12, 3.4), "sharex": True, "sharey": True},
    )
    for ax in axes_of(pc):
        ax.set_xlabel(label)
    lines = [Line2D([], [], color="black", lw=2.5), Line2D([], [], color="0.6")]
    axes_of(pc)[-1].legend(lines, ["data", f"{replicates} replicates"], fontsize="x-small", loc="upper right")


def fans(forecasts: dict[str, pk.Prediction], table: pd.DataFrame, label: str, title: str) -> None:
    """Forecasts behind the data on one scale, best model first; shades are 50, 80 and 95 % intervals."""
    wide, high = min(len(forecasts), COLUMNS), -(-len(forecasts) // COLUMNS)
    figure, axes = plt.subplots(
        high, wide, figsize=(1 + 4 * wide, 4.2 * high), sharex=True, sharey=True, squeeze=False, layout="constrained"
    )
    colors = {name: f"C{i}" for i, name in enumerate(forecasts)}
    for ax in axes.flat[len(forecasts) :]:
        ax.set_axis_off()
    for ax, (name, row) in zip(axes.flat, table.iterrows(), strict=False):
        forecasts[name].plot(ax, color=colors[name], label="forecast: mean, 50, 80, 95 %")
        behind = f", {row.elpd_diff:.1f} ± {row.dse:.1f} behind" if row["rank"] else ""
        ax.set_title(f"{name}\n", fontsize="medium")
        elpd = f"elpd {row.elpd:.1f}{behind}".replace("-", "−")
        ax.text(0.5, 1.03, elpd, transform=ax.transAxes, ha="center", fontsize="small")
        if np.issubdtype(np.asarray(forecasts[name].labels).dtype, np.datetime64):
            locator = AutoDateLocator(maxticks=5)
            ax.xaxis.set(major_locator=locator, major_formatter=ConciseDateFormatter(locator))
    axes[0, 0].legend(fontsize="x-small")
    for ax in axes[:, 0]:
        ax.set_ylabel(label)
    figure.suptitle(title, fontsize="large")


def draw(
    posteriors: dict[str, pk.Posterior],
    forecasts: dict[str, pk.Prediction],
    table: pd.DataFrame,
    y: pd.Series,
    out: Path,
) -> list[Path]:
    """Every figure, as a PNG in ``out``."""
    # ArviZ's own; nothing that a user of this script could change.
    warnings.filterwarnings("ignore", category=FutureWarning, module="arviz_plots")
    azp.style.use("arviz-variat")
    units = re.sub(r"\^(\d+)", r"$^{\1}$", y.attrs.get("units", ""))
    unit, label = f" ({units})" if units else "", units or str(y.name).replace("$", r"\$")
    together = side_by_side(posteriors)
    trees = {name: scales(posterior, forecasts[name]) for name, posterior in posteriors.items()}
    both = {LEVEL, ARIMA} <= set(posteriors)
    figures = {
        "forest": lambda: forest(trees, unit),
        "densities": lambda: densities(trees, f"standard deviation{unit}", 12),
        **({"equivalence": lambda: equivalence(posteriors)} if both else {}),
        "compare": lambda: comparison(table),
        "loo_pit": lambda: calibration(together),
        "ppc": lambda: check(together, label),
        "forecasts": lambda: fans(forecasts, table, label, y.attrs.get("title", str(y.name))),
    }
    for name, figure in figures.items():
        figure()
        plt.savefig(out / f"{name}.png", dpi=130, bbox_inches="tight")
        plt.close("all")
    return [out / f"{name}.png" for name in figures]


# -- the command ------------------------------------------------------------------------------------------------------


def say(
    posteriors: dict[str, pk.Posterior], forecasts: dict[str, pk.Prediction], table: pd.DataFrame, y: pd.Series
) -> None:
    """Everything in words and tables."""
    for name, posterior in posteriors.items():
        print(f"\n== {name}\n\n{posterior.report}\n\n{posterior.summary().to_string()}")
        frame = forecasts[name].to_frame(level=[80, 95])
        print(f"\n{frame.to_string(index=False, float_format='{:.2f}'.format)}")
    print(f"\n== comparison by leave-one-out\n\n{table.round(3).to_string()}")
    if not {LEVEL, ARIMA} <= set(posteriors):
        return
    level, ma = posteriors[LEVEL].sites, posteriors[ARIMA].sites["ma"]
    implied = implied_arima(level["level_scale"], level["obs_scale"])[0]
    print("\n== a local level is an ARIMA(0,1,1)\n\ntheta      mean    sd     95 % interval")
    for name, theta in {"implied": implied, "ARIMA": ma}.items():
        low, high = np.quantile(theta, [0.025, 0.975])
        print(f"{name:8} {theta.mean():6.3f} {theta.std():5.3f}  {low:6.3f} to {high:.3f}")
    print(f"Largest difference in log-likelihood over the draws: {largest_gap(posteriors[LEVEL], y):.1e}")


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The arguments, with the series read and the folder made; mistakes end the program with a message."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="a CSV file (default: the Nile); a few hundred rows, as the GP costs rows cubed")
    parser.add_argument("--dataset", choices=DATASETS, help="a series that comes with the package, instead of --data")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=DEFAULT, help="what to fit: %(choices)s")
    parser.add_argument("--period", type=int, default=1, help="length of the season, for " + ", ".join(SEASONAL))
    parser.add_argument("--column", help="its column (default: the only numeric one)")
    parser.add_argument("--horizon", type=int, default=10, help="steps to forecast (default: 10)")
    parser.add_argument("--method", choices=METHODS, default="auto", help="how to fit (default: auto)")
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figures (default: results)")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random draw (default: 1)")
    found = parser.parse_args(argv)
    if found.horizon < 1:
        parser.error(f"argument --horizon: {found.horizon} is not a positive number of steps")
    if found.column and not found.data:
        parser.error("argument --column: it needs --data")
    if found.data and found.dataset:
        parser.error("argument --dataset: not with --data")
    if len(set(found.models)) != len(found.models) or len(found.models) < 2:
        parser.error(f"argument --models: {' '.join(found.models)} are not two models or more, each once")
    if found.period < 2 and set(found.models) & set(SEASONAL):
        parser.error(f"argument --period: {found.period}; {', '.join(SEASONAL)} need a season of two or more")
    try:
        shipped = getattr(pk.datasets, found.dataset or "nile")
        found.y = read_series(found.data, found.column) if found.data else shipped()
        found.out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        parser.error(str(error))
    return found


def main(argv: list[str] | None = None) -> None:
    """Fit, compare, say and draw."""
    a = arguments(argv)
    y = a.y
    print(f"{y.attrs.get('title', y.name)}: {len(y)} values, {y.isna().sum()} missing, in {jnp.result_type(float)}")
    posteriors = fit_models(y, a.models, a.period, a.method, a.seed)
    forecasts = {name: posterior.forecast(a.horizon) for name, posterior in posteriors.items()}
    table = pk.compare(posteriors)
    say(posteriors, forecasts, table, y)
    print("\n== figures\n")
    for path in draw(posteriors, forecasts, table, y, a.out):
        print(path)


if __name__ == "__main__":
    main()
