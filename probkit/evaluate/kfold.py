"""K-fold cross-validation: each fold scored by a refit that has not seen it, whatever the method."""

import dataclasses
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int
from scipy.special import logsumexp

from probkit import border
from probkit.evaluate.loo import relative_efficiency
from probkit.infer.target import Target
from probkit.model import Model, bind, with_defaults
from probkit.posterior import Posterior
from probkit.report import Report

#: Above this Monte Carlo error of a term, in nats, the result carries ArviZ's warning.
LARGE_ERROR = 0.1


def kfold(posterior: Posterior, folds: Any = 10, *, key: Any = None, progress: bool = True) -> Any:
    """Expected log predictive density by K-fold cross-validation, as ArviZ's ``ELPDData``.

    The term of an observed entry i in fold F is the log density of that one value given all values outside its fold,
    the parameters integrated out:

    ``log p(y_i | y_-F) = log E[p(y_i | y_-F, parameters)]``, the mean over draws of the refit to ``y_-F``.

    In the refit the fold is missing (NaN), not cut out, so a time series keeps its times and a process its inputs; the
    density is that of a missing entry given those seen (``Model.leave_one_out``): for states and processes it
    conditions on the neighbours outside the fold, and latent states are integrated out; where entries are independent
    given the parameters it is their plain density. Terms are of single entries, in the units of y, not of the fold
    jointly, so they add up and compare entry by entry, and with K = n they are exact leave-one-out. Default priors
    stay those of the whole data, and the method stays that of the posterior. Draws that do not target the posterior
    (MLE, MAP, plain Laplace) score as the predictions they make: this is how they meet the others.

    Random folds of a time series are filled in from both sides; blocks of labels (``np.arange(n) // 10``) ask more.

    Args:
        posterior: a posterior of a model; its method fits again without each fold.
        folds: the number K of random folds of equal size (within 1) over the observed entries; or labels, (n,) whole
            numbers: entries with one label are one fold. The same ``key`` and K give the same folds to every model of
            the same y.
        key: a new-style key, for the folds and the refits.
        progress: whether to show a progress bar where the refits take more than a few seconds.

    Returns:
        ``ELPDData``, for :func:`probkit.compare` or ArviZ's: ``elpd``, ``se``, and ``elpd_i`` over the entries that
        were scored, with coordinates ``fold``, ``y`` and ``mcse`` (Monte Carlo error of the term), and attributes
        ``n_folds``, ``reports`` (one a fold), ``converged``, ``rung`` and ``mcse`` (of the sum; 0 for point estimates).
        ``warning`` is True if a refit did not converge, an ``mcse`` is above 0.1 nats, or an observed
        entry was not scored: nothing outside its fold predicts it, or its density is not a number. ``p`` is NaN: with
        latent states, or folds of several entries, it would not count parameters.

    Raises:
        TypeError: no posterior; a plain function, in which no entry can be left out; ``folds`` that are no whole
            numbers; a law without leave-one-out terms.
        ValueError: K below 2 or above the number of observed entries; labels of another length than y, or that leave
            no data; no term that is finite.

    Nothing compiles after the first refit, unless ``Auto`` has to climb to another method on a later fold.

    References:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation,
        section 2.3. Bürkner, Gabry and Vehtari (2021), for structured models. Roberts et al. (2017),
        Cross-validation strategies for data with temporal, spatial, hierarchical or phylogenetic structure.
    """
    if not isinstance(posterior, Posterior):
        raise TypeError(
            f"kfold takes one posterior (what pk.fit returns; posterior[i] of many series); "
            f"{type(posterior).__name__} came."
        )
    if not isinstance(posterior.model, Model):
        raise TypeError("kfold is for probkit models: in a plain NumPyro function no entry can be left out.")
    k_folds, k_fits = jax.random.split(border.check_key(key, "kfold"))
    y, X = posterior.target.args
    observed = ~np.isnan(np.asarray(y))
    labels = assign(folds, observed, k_folds)
    full = Target(with_defaults(posterior.model, y, X), (y, X))
    _check_terms(dataclasses.replace(posterior, target=full))
    found = [
        _score_fold(posterior, full, observed & (labels == fold), jax.random.fold_in(k_fits, i))
        for i, fold in enumerate(_bar(np.unique(labels[observed]), progress))
    ]
    return _result(posterior, labels, found)


def assign(folds: Any, observed: Bool[np.ndarray, " n"], key: Array) -> Int[np.ndarray, " n"]:
    """The fold of each entry: random and balanced for a number (-1 where y is missing), else the labels given.

    Raises:
        TypeError, ValueError: see :func:`kfold`.
    """
    count = int(observed.sum())
    if isinstance(folds, int | np.integer) and not isinstance(folds, bool):
        if not 2 <= folds <= count:
            raise ValueError(f"folds is {folds}; a number from 2 to {count}, the observed entries of y, is wanted.")
        labels = np.full(observed.shape, -1)
        labels[observed] = np.asarray(jax.random.permutation(key, np.arange(count))) % folds
        return labels
    labels = np.asarray(folds)
    if labels.dtype.kind not in "iu":
        came = repr(folds) if labels.ndim == 0 else f"an array of dtype {labels.dtype}"
        raise TypeError(
            f"folds is {came}; a whole number of folds, or whole numbers as labels, one for each entry of y, is wanted."
        )
    if labels.shape != observed.shape:
        raise ValueError(f"folds has shape {labels.shape}; one label for each entry of y, {observed.shape}, is wanted.")
    if np.unique(labels[observed]).size < 2:
        raise ValueError("folds puts all observed entries in one fold: its refit has no data. Two folds are wanted.")
    return labels


class _Fold(NamedTuple):
    """One fold, scored: where it is, its terms and their Monte Carlo errors, and the report of its refit."""

    where: Bool[np.ndarray, " n"]
    terms: Float[np.ndarray, " m"]
    mcse: Float[np.ndarray, " m"]
    total_mcse: float
    draws: int
    report: Report


def _score_fold(posterior: Posterior, full: Target, where: np.ndarray, key: Array) -> _Fold:
    """Fit again without one fold, and score it: log of the mean density over draws, with its Monte Carlo error."""
    y, X = full.args
    masked = jnp.asarray(np.where(where, np.nan, np.asarray(y)))
    # A solver that looks at the data first (neighbours, points without a value) must not know the fold.
    left = Target(full.model.prepared(masked, X), (masked, X))
    outcome = posterior.method.run(left, key)
    left = outcome.target or left
    refit = dataclasses.replace(posterior, target=left, outcome=outcome)
    terms = np.asarray(_terms(left, y, *_row(refit)), np.float64)[:, where]
    mean = logsumexp(terms, axis=0) - np.log(len(terms))
    # By the delta method: the error of log(mean) is that of the mean of p / mean; over entries the draws are shared.
    share = np.exp(terms - np.where(np.isfinite(mean), mean, 0.0))
    root = np.sqrt(len(terms) * relative_efficiency(refit))
    return _Fold(where, mean, share.std(0) / root, float(np.nansum(share, 1).std() / root), len(terms), outcome.report)


@eqx.filter_jit
def _terms(left: Target, y: Array, values: dict[str, Any], index: Any) -> Float[Array, "S n"]:
    """``log p(y_i | entries seen, parameters)`` of every draw; meant where ``left`` has NaN and ``y`` has not."""
    masked, X = left.args
    filled = jnp.where(jnp.isnan(y), jnp.nanmax(y), y)

    def one(v: dict[str, Array], _: Array) -> Array:
        return bind(left.model, v).leave_one_out(masked, X).log_prob(filled)

    return left.map(one, values, index)


def _row(posterior: Posterior) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """The draws in one row, and their index, so that a model without priors has its one draw."""
    return posterior._flat(), np.arange(np.prod(posterior._shape()))


def _check_terms(posterior: Posterior) -> None:
    """Raise now, before any refit, what a law without leave-one-out terms would raise after the first."""
    eqx.filter_eval_shape(_terms, posterior.target, posterior.target.args[0], *_row(posterior))


def _bar(folds: np.ndarray, progress: bool) -> Any:
    from tqdm.auto import tqdm

    return tqdm(folds, disable=not progress, desc="K-fold", unit="refit", leave=False, delay=2.0)


def _result(posterior: Posterior, labels: np.ndarray, found: list[_Fold]) -> Any:
    """The folds put together as ArviZ's ``ELPDData``."""
    import xarray
    from arviz_stats.utils import ELPDData

    y = np.asarray(posterior.target.args[0])
    terms, mcse = np.full(y.shape, np.nan), np.full(y.shape, np.nan)
    for fold in found:
        terms[fold.where], mcse[fold.where] = fold.terms, fold.mcse
    scored = ~np.isnan(terms)
    if not scored.any():
        raise ValueError("No entry has a K-fold term: no refit leaves enough to predict its fold from.")
    along, dim = posterior.term_labels()
    along = np.reshape(along, y.shape)
    pieces = {"y": y, "fold": labels, "mcse": mcse}
    reports = [fold.report for fold in found]
    converged = all(report.converged for report in reports)
    whole = np.array_equal(scored, ~np.isnan(y))
    elpd_i = xarray.DataArray(
        terms[scored],
        dims=[dim],
        coords={dim: np.asarray(along)[scored]} | {name: (dim, values[scored]) for name, values in pieces.items()},
        name="elpd_kfold",
        attrs={
            "reports": reports,
            "converged": converged,
            "n_folds": len(found),
            "rung": ", ".join(dict.fromkeys(report.rung for report in reports)),
            "mcse": float(np.sqrt(np.sum(np.square([fold.total_mcse for fold in found])))),
        },
    )
    n = elpd_i.size
    figures: dict[str, Any] = dict(
        kind="loo_kfold",
        elpd=float(elpd_i.sum()),
        se=float(np.sqrt(n * np.var(elpd_i.values))),
        p=np.nan,
        n_samples=found[0].draws,
        n_data_points=n,
        scale="log",
        warning=bool(not (converged and whole) or np.any(mcse[scored] > LARGE_ERROR)),
        good_k=np.nan,
        elpd_i=elpd_i,
        n_folds=len(found),
    )
    # ArviZ 0.8 knows the kind and the number of folds, ArviZ 1 does not; the name of elpd_i tells either way.
    known = {field.name for field in dataclasses.fields(ELPDData)}
    return ELPDData(**{name: value for name, value in figures.items() if name in known})
