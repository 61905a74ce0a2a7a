"""Simulation-based calibration: draw parameters from the prior and data from them, fit, and look where they fall."""

import dataclasses
import functools
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from probkit import border
from probkit.infer.auto import Auto
from probkit.infer.method import Method, check_whole
from probkit.infer.target import Lanes
from probkit.model import Default, Model, bind, is_place, law_of, resolve, strong
from probkit.supports import check_supports

#: Sets of uniform ranks that the test is measured against.
SIMULATIONS = 10_000


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Ranks of the true parameters among the draws fitted to their data; uniform where prior, model and method agree.

    Attributes:
        ranks: name -> how many of the draws lie below the true value, (replication, *shape), whole numbers from 0 to
            ``draws``. Beside the parameters stands ``log_likelihood``, which sees the data too (Modrák et al. 2023).
        draws: draws that a rank is among.
        converged: which replications the method vouches for, (replication,). All of them are ranked.
        rungs: what answered each replication.
        method: the method, as written.
    """

    ranks: dict[str, np.ndarray]
    draws: int
    converged: np.ndarray
    rungs: tuple[str, ...]
    method: str

    @property
    def replications(self) -> int:
        """Number of data sets."""
        return len(self.converged)

    def table(self) -> Any:
        """A pandas frame, one row a component: ``p_value`` of uniform ranks, ``mean`` and ``var`` of the ranks.

        The p-value is that of the largest departure of the ranks' distribution function from the uniform one, each
        point measured by its binomial tail, against ``SIMULATIONS`` sets of uniform ranks (Säilynoja et al. 2022).
        Mean and variance are of ranks scaled to (0, 1): 1/2 and 1/12 where uniform; a variance too large tells of
        draws too narrow, a mean off 1/2 of draws to one side.
        """
        import pandas as pd

        rows = {}
        for name, ranks in self._components():
            scaled = (ranks + 0.5) / (self.draws + 1)
            rows[name] = [_p_value(ranks, self.draws), scaled.mean(), scaled.var()]
        return pd.DataFrame.from_dict(rows, orient="index", columns=["p_value", "mean", "var"])

    def uniform(self, level: float = 0.01) -> bool:
        """Whether uniformity stands for every component, at ``level`` after Bonferroni's correction."""
        p_values = self.table()["p_value"]
        return bool((p_values >= level / len(p_values)).all())

    def __repr__(self) -> str:
        worst = self.table()["p_value"]
        return (
            f"Calibration({self.replications} replications by {self.method}, {int(self.converged.sum())} converged): "
            f"ranks {'uniform' if self.uniform() else 'NOT uniform'}; least p-value {worst.min():.4f} "
            f"({worst.idxmin()}), of {len(worst)}"
        )

    def plot(self, axes: Any = None, level: float = 0.95) -> Any:
        """Distribution functions of the ranks less the uniform one, with a band that holds all of a curve at ``level``.

        Args:
            axes: matplotlib axes, one a component; made if not given.
            level: probability that a curve of uniform ranks stays inside its band.

        Returns:
            The axes.
        """
        import matplotlib.pyplot as plt

        parts = self._components()
        if axes is None:
            columns = min(4, len(parts))
            rows = -(-len(parts) // columns)
            size = (3.1 * columns, 2.3 * rows)
            axes = plt.subplots(
                rows, columns, figsize=size, layout="constrained", sharex=True, sharey=True, squeeze=False
            )
            axes = axes[1].ravel()
            for ax in axes[len(parts) :]:
                ax.set_visible(False)
        x, low, high = _envelope(self.replications, self.draws, level)
        for ax, (name, ranks) in zip(axes, parts, strict=False):
            below = _below(ranks, self.draws) / self.replications
            ax.fill_between(x, low - x, high - x, color="0.85", step="mid", lw=0)
            ax.plot(x, below - x, color="C0", drawstyle="steps-mid", lw=1.3)
            ax.axhline(0, color="0.4", lw=0.7)
            ax.set_title(name, fontsize=10)
            ax.spines[["top", "right"]].set_visible(False)
        for ax in axes[max(0, len(parts) - 4) : len(parts)]:
            ax.set_xlabel("rank / draws")
        axes[0].set_ylabel("ECDF - uniform")
        return axes

    def _components(self) -> list[tuple[str, np.ndarray]]:
        parts = []
        for name, ranks in self.ranks.items():
            for at in np.ndindex(ranks.shape[1:]):
                label = f"{name}[{', '.join(str(i + 1) for i in at)}]" if at else name
                parts.append((label, ranks[(slice(None), *at)]))
        return parts


def calibrate(
    model: Model,
    length: int | None = None,
    X: Any = None,
    *,
    key: Any = None,
    method: Method | None = None,
    replications: int = 200,
    draws: int = 99,
    simulator: Model | None = None,
    progress: bool = True,
) -> Calibration:
    """Simulation-based calibration: is the method right, on average over the prior, for this model?

    Parameters are drawn from the priors, data from the model at those parameters, and the model is fitted to the data.
    Over replications the rank of the true value among posterior draws is uniform on 0, ..., draws, if the posterior
    is right. All replications are fitted as lanes.

    Args:
        model: a probkit model with proper priors that do not depend on data.
        length: the length of the series to draw.
        X: inputs, where the model takes them; then they tell the length.
        key: a new-style key.
        method: the method to check; ``Auto(draws=500)`` by default.
        replications: number of data sets.
        draws: draws that ranks are among, taken evenly from those of the method.
        simulator: the model to draw from, where that is another one; it has the same sites.
        progress: whether to show a progress bar.

    Raises:
        TypeError: the model is no probkit model, or the method gives one draw.
        ValueError: a prior is improper or left at its default; no length.

    References:
        Talts, Betancourt, Simpson, Vehtari and Gelman (2018), Validating Bayesian inference algorithms with
        simulation-based calibration. Säilynoja, Bürkner and Vehtari (2022), Graphical test for discrete uniformity.
        Modrák et al. (2023), Simulation-based calibration checking for Bayesian computation.
    """
    border.check_key(key, "calibrate")
    method = Auto(draws=500) if method is None else method
    check_whole("replications", replications, 1)
    check_whole("draws", draws, 1)
    dtype = jnp.result_type(float)
    inputs = border.as_inputs(X, length, dtype)
    length = length if inputs is None else len(inputs)
    for one in (model, model if simulator is None else simulator):
        _check(one)
    if length is None:
        raise ValueError("calibrate needs length, or X, to know how many values to draw.")
    k_simulate, k_fit = jax.random.split(key)
    source = strong(model if simulator is None else simulator, dtype)
    try:
        keys = jax.random.split(k_simulate, replications)
        truth, y, likelihood = jax.device_get(_simulate(source, strong(model, dtype), inputs, length, keys))
    except NotImplementedError as error:
        raise ValueError("a prior is improper, so nothing can be drawn from it; give it a proper prior.") from error
    lanes = Lanes(strong(model, dtype), jnp.moveaxis(jnp.asarray(y), 0, 1), inputs)
    outcome, reports = method.run_lanes(lanes, jax.random.split(k_fit, replications), None, progress)
    found = dict(outcome.values) | {"log_likelihood": outcome.stats["log_likelihood"]}
    ranks = {
        name: _ranks(found[name], value, draws) for name, value in (truth | {"log_likelihood": likelihood}).items()
    }
    converged = np.array([r.converged for r in reports])
    return Calibration(ranks, draws, converged, tuple(r.rung for r in reports), repr(method))


def _check(model: Any) -> None:
    """Refuse what has no fixed proper prior."""
    if not isinstance(model, Model):
        raise TypeError(f"model is {type(model).__name__}; a probkit model is wanted.")
    flat, _ = jax.tree_util.tree_flatten_with_path(model, is_leaf=is_place)
    for path, leaf in flat:
        if isinstance(leaf, Default):
            name = ".".join(str(getattr(k, "name", k)) for k in path)
            raise ValueError(
                f"{name} was left at its default, a prior made from the data; calibrate needs a fixed one."
            )
    check_supports(model)


@eqx.filter_jit
def _simulate(source: Model, model: Model, X: Any, length: int, keys: Array) -> tuple:
    """Parameters, data, and the log-likelihood of the parameters under the model to be fitted."""

    def one(key: Array) -> tuple:
        k_parameters, k_y = jax.random.split(key)
        values: dict[str, Array] = {}

        def draw(name: str, prior: Any) -> Array:
            values[name] = prior.sample(jax.random.fold_in(k_parameters, len(values)))
            return values[name]

        y = law_of(resolve(source, draw), X, length).sample(k_y)
        return values, y, bind(model, values).log_likelihood(y, X)

    return jax.lax.map(one, keys, batch_size=64)


def _ranks(found: np.ndarray, truth: np.ndarray, draws: int) -> np.ndarray:
    """Ranks of the truth, (replication, *shape), among draws taken evenly from (chain, draw, replication, *shape)."""
    flat = found.reshape(-1, *found.shape[2:])
    if len(flat) < draws:
        raise TypeError(f"The method gives {len(flat)} draws; ranks among {draws} need as many.")
    at = np.linspace(0, len(flat) - 1, draws).round().astype(int)
    return np.sum(flat[at] < truth, axis=0)


def _below(ranks: np.ndarray, draws: int) -> np.ndarray:
    """How many ranks are at most 0, ..., draws - 1."""
    return np.cumsum(np.bincount(ranks, minlength=draws + 1))[:-1]


@functools.lru_cache(maxsize=16)
def _tails(count: int, draws: int) -> np.ndarray:
    """Two-sided binomial tail of each count, (draws, count + 1), of uniform ranks at most 0, ..., draws - 1."""
    from scipy.stats import binom

    k, p = np.arange(count + 1), np.arange(1, draws + 1)[:, None] / (draws + 1)
    return np.minimum(1.0, 2 * np.minimum(binom.cdf(k, count, p), binom.sf(k - 1, count, p)))


@functools.lru_cache(maxsize=16)
def _least_tails(count: int, draws: int) -> np.ndarray:
    """The least tail along the distribution function of each of ``SIMULATIONS`` sets of uniform ranks, sorted."""
    rng = np.random.default_rng(0)
    sets = rng.multinomial(count, np.full(draws + 1, 1 / (draws + 1)), size=SIMULATIONS)
    below = np.cumsum(sets, axis=1)[:, :-1]
    return np.sort(_tails(count, draws)[np.arange(draws), below].min(1))


def _p_value(ranks: np.ndarray, draws: int) -> float:
    """Share of sets of uniform ranks that depart as far somewhere as these do."""
    least = _tails(len(ranks), draws)[np.arange(draws), _below(ranks, draws)].min()
    return float((1 + np.searchsorted(_least_tails(len(ranks), draws), least, side="right")) / (1 + SIMULATIONS))


def _envelope(count: int, draws: int, level: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Band that holds the whole distribution function of uniform ranks with probability ``level``."""
    from scipy.stats import binom

    tail = np.quantile(_least_tails(count, draws), 1 - level) / 2
    x = np.arange(1, draws + 1) / (draws + 1)
    return x, binom.ppf(tail, count, x) / count, binom.ppf(1 - tail, count, x) / count
