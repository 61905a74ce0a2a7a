"""One table over families: models compared by cross-validation on the same data, or a refusal that says why."""

import inspect
import warnings
from typing import Any

import numpy as np

from probkit.evaluate.loo import K_LIMIT
from probkit.posterior import Posterior


def compare(posteriors: dict[str, Any], *, refit: bool = False, weights: str = "stacking") -> Any:
    """Compare posteriors by PSIS-LOO, or results of :func:`probkit.kfold`: one row a model, best first.

    A leave-one-out term is the log density of one original entry given all others and the parameters, so models of any
    family meet on the same footing. A K-fold term is that of one entry given all outside its fold; there any method
    may enter, points too.

    Args:
        posteriors: name -> posterior, two or more, fitted to the same data; or name -> result of ``kfold``, on the same
            data and the same folds. Not both: their terms are densities given different data.
        refit: whether to refit exactly the entries whose k-hat is above 0.7 (leave-one-out only).
        weights: ArviZ's model weights: ``"stacking"``, ``"bb-pseudo-bma"`` or ``"pseudo-bma"``.

    Returns:
        A pandas frame: ``rank, elpd, se, elpd_diff, dse, weight, max_k_hat, bad_k, method, converged``.
        ``elpd_diff`` is the difference from the best model and ``dse`` its standard error. ``p_loo`` stands only where
        no latent states are integrated out. By K-fold, ``mcse`` (Monte Carlo error of the elpd) stands for the k-hats,
        and ``converged`` is of all refits.

    Raises:
        TypeError: an entry is no posterior, or its draws do not target the posterior (MLE, MAP, plain Laplace): such
            fits meet the others by K-fold; leave-one-out mixed with K-fold; other results than ``pk.kfold``'s.
        ValueError: fewer than two models; different data; different entries with a finite term; different folds;
            ``refit`` by K-fold.

    References:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation.
        Yao, Vehtari, Simpson and Gelman (2018), Using stacking to average Bayesian predictive distributions.
    """
    if not isinstance(posteriors, dict) or len(posteriors) < 2:
        raise ValueError("compare takes a dictionary of at least two posteriors: {'name': posterior, ...}.")
    if any(_is_kfold(one) for one in posteriors.values()):
        return _compare_kfold(posteriors, refit, weights)
    _check(posteriors)
    found = {name: posterior.loo(refit) for name, posterior in posteriors.items()}
    table = _table(found, weights)
    k = {name: np.asarray(elpd.pareto_k) for name, elpd in found.items()}
    table["max_k_hat"] = [float(np.max(k[name])) for name in table.index]
    table["bad_k"] = [int(np.sum(k[name] > K_LIMIT)) for name in table.index]
    table["method"] = [posteriors[name].report.rung for name in table.index]
    table["converged"] = [posteriors[name].report.converged for name in table.index]
    return table.drop(columns="p") if table["p"].isna().any() else table.rename(columns={"p": "p_loo"})


def _compare_kfold(results: dict[str, Any], refit: bool, weights: str) -> Any:
    """The table for results of ``kfold``, which bring all they need along their terms."""
    _check_kfold(results)
    if refit:
        raise ValueError("refit is for leave-one-out; the terms of K-fold are refits already.")
    table = _table(results, weights).drop(columns="p")
    for column, attribute in {"mcse": "mcse", "method": "rung", "converged": "converged"}.items():
        table[column] = [results[name].elpd_i.attrs[attribute] for name in table.index]
    return table


def _table(found: dict[str, Any], weights: str) -> Any:
    """Rank, elpd, differences and ArviZ's weights; built here, as ArviZ 0.8 and 1 differ in signs and rounding."""
    import arviz_stats
    import pandas as pd

    exact = {"round_to": "none"} if "round_to" in inspect.signature(arviz_stats.compare).parameters else {}
    with warnings.catch_warnings():
        # ArviZ sorts in place, which pandas 3.1 gives notice of.
        warnings.simplefilter("ignore", DeprecationWarning)
        weight = arviz_stats.compare(found, method=weights, **exact)["weight"]
    names = sorted(found, key=lambda name: -found[name].elpd)
    best = found[names[0]]
    rows = {}
    for rank, name in enumerate(names):
        one = found[name]
        less = best.elpd_i.values - one.elpd_i.values
        dse = float(np.sqrt(less.size * np.var(less)))
        rows[name] = (rank, one.elpd, one.p, best.elpd - one.elpd, float(weight[name]), one.se, dse)
    columns = ["rank", "elpd", "p", "elpd_diff", "weight", "se", "dse"]
    return pd.DataFrame.from_dict(rows, orient="index", columns=columns)


def _is_kfold(one: Any) -> bool:
    """Whether this is K-fold's ``ELPDData``, told without an import of ArviZ."""
    return getattr(getattr(one, "elpd_i", None), "name", None) == "elpd_kfold"


def _check(posteriors: dict[str, Any]) -> None:
    """Refuse what cannot be compared by leave-one-out, naming the reason."""
    first_name, first = next(iter(posteriors.items()))
    for name, posterior in posteriors.items():
        if not isinstance(posterior, Posterior):
            raise TypeError(f"{name!r} is {type(posterior).__name__}; a posterior (what pk.fit returns) is wanted.")
        if not posterior.has_loo:
            raise TypeError(
                f"{name!r} was fitted by {type(posterior.method).__name__}, whose draws do not target the posterior: "
                "it has no LOO; fit it with Auto(), Laplace() or NUTS(), or meet the others by K-fold: compare "
                "pk.kfold(posterior, key=key) of each."
            )
    reference = _data(first)
    for name, posterior in posteriors.items():
        if not _same(_data(posterior), reference):
            raise ValueError(f"{name!r} and {first_name!r} were fitted to different data; compare needs the same y.")
        if not np.array_equal(posterior.scored, first.scored):
            only = int(np.sum(posterior.scored != first.scored))
            raise ValueError(
                f"{name!r} and {first_name!r} have finite terms for different entries ({only} differ): leaving "
                "one out makes one model improper. Give its starting state a proper prior, or drop those entries."
            )


def _check_kfold(results: dict[str, Any]) -> None:
    """Refuse what cannot be compared by K-fold, naming the reason."""
    for name, result in results.items():
        if not _is_kfold(result):
            what = "a posterior" if isinstance(result, Posterior) else f"{type(result).__name__}"
            raise TypeError(
                f"{name!r} is {what} among results of kfold: terms of leave-one-out and of K-fold are densities given "
                "different data and do not compare. Pass pk.kfold(posterior, folds, key=key) of each, with one key."
            )
        if result.elpd_i is None or not {"y", "fold"} <= set(result.elpd_i.coords):
            raise TypeError(f"{name!r} does not say what its folds are; results of pk.kfold are wanted.")
    first_name, first = next(iter(results.items()))
    for name, result in results.items():
        one, other = result.elpd_i, first.elpd_i
        if not _same(np.asarray(one["y"]), np.asarray(other["y"])):
            raise ValueError(
                f"{name!r} and {first_name!r} score different data, or other entries of it; compare needs the same y."
            )
        if not _same_partition(np.asarray(one["fold"]), np.asarray(other["fold"])):
            counts = f"{one.attrs['n_folds']} and {other.attrs['n_folds']}"
            raise ValueError(
                f"{name!r} and {first_name!r} have different folds ({counts}); pass the "
                "same key and number of folds to kfold, or the same labels."
            )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two fits had the same data, up to float32; NaN in the same places."""
    return one.shape == other.shape and bool(np.allclose(one, other, rtol=1e-6, atol=0, equal_nan=True))


def _same_partition(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two labellings of the same entries make the same folds, whatever they are called."""
    pairs = set(zip(one.tolist(), other.tolist(), strict=True))
    return len(pairs) == len(np.unique(one)) == len(np.unique(other))


def _data(posterior: Posterior) -> np.ndarray:
    """The data that the terms of a posterior score, flat."""
    if posterior.series is not None:
        return np.asarray(posterior.series.y)
    sites = posterior.observed()
    return np.concatenate([np.ravel(v) for v in sites.values()])
