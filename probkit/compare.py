"""One table over families: models compared by leave-one-out on the same data, or a refusal that says why."""

import warnings
from typing import Any

import numpy as np

from probkit.evaluate.loo import K_LIMIT
from probkit.posterior import Posterior


def compare(posteriors: dict[str, Posterior], *, refit: bool = False, weights: str = "stacking") -> Any:
    """Compare posteriors by PSIS-LOO: one row a model, best first.

    A term is the log density of one original entry given all others and the parameters, so models of any family meet
    on the same footing.

    Args:
        posteriors: name -> posterior, two or more, fitted to the same data.
        refit: whether to refit exactly the entries whose k-hat is above 0.7.
        weights: ArviZ's model weights: ``"stacking"``, ``"bb-pseudo-bma"`` or ``"pseudo-bma"``.

    Returns:
        A pandas frame: ``rank, elpd, se, elpd_diff, dse, weight, max_k_hat, bad_k, method, converged``.
        ``elpd_diff`` is the difference from the best model and ``dse`` its standard error. ``p_loo`` stands only where
        no latent states are integrated out.

    Raises:
        TypeError: an entry is no posterior, or its draws do not target the posterior (MLE, MAP, plain Laplace): such
            fits meet the others by K-fold.
        ValueError: fewer than two models; different data; different entries with a finite term.

    References:
        Vehtari, Gelman and Gabry (2017), Practical Bayesian model evaluation using leave-one-out cross-validation.
        Yao, Vehtari, Simpson and Gelman (2018), Using stacking to average Bayesian predictive distributions.
    """
    _check(posteriors)
    import arviz_stats

    found = {name: posterior.loo(refit) for name, posterior in posteriors.items()}
    with warnings.catch_warnings():
        # ArviZ sorts in place, which pandas 3.1 gives notice of.
        warnings.simplefilter("ignore", DeprecationWarning)
        table = arviz_stats.compare(found, method=weights).drop(columns="warning")
    k = {name: np.asarray(elpd.pareto_k) for name, elpd in found.items()}
    table["max_k_hat"] = [float(np.max(k[name])) for name in table.index]
    table["bad_k"] = [int(np.sum(k[name] > K_LIMIT)) for name in table.index]
    table["method"] = [posteriors[name].report.rung for name in table.index]
    table["converged"] = [posteriors[name].report.converged for name in table.index]
    return table.drop(columns="p") if table["p"].isna().any() else table.rename(columns={"p": "p_loo"})


def _check(posteriors: Any) -> None:
    """Refuse what cannot be compared, naming the reason."""
    if not isinstance(posteriors, dict) or len(posteriors) < 2:
        raise ValueError("compare takes a dictionary of at least two posteriors: {'name': posterior, ...}.")
    first_name, first = next(iter(posteriors.items()))
    for name, posterior in posteriors.items():
        if not isinstance(posterior, Posterior):
            raise TypeError(f"{name!r} is {type(posterior).__name__}; a posterior (what pk.fit returns) is wanted.")
        if not posterior.targets_posterior:
            raise TypeError(
                f"{name!r} was fitted by {type(posterior.method).__name__}, whose draws do not target the posterior: "
                "it has no LOO; fit it with Auto(), Laplace() or NUTS(), or meet the others by K-fold."
            )
    reference = _data(first)
    for name, posterior in posteriors.items():
        data = _data(posterior)
        same = data.shape == reference.shape and np.allclose(data, reference, rtol=1e-6, atol=0, equal_nan=True)
        if not same:
            raise ValueError(f"{name!r} and {first_name!r} were fitted to different data; compare needs the same y.")
        if not np.array_equal(posterior.scored, first.scored):
            only = int(np.sum(posterior.scored != first.scored))
            raise ValueError(
                f"{name!r} and {first_name!r} have finite terms for different entries ({only} differ): leaving "
                "one out makes one model improper. Give its starting state a proper prior, or drop those entries."
            )


def _data(posterior: Posterior) -> np.ndarray:
    """The data that the terms of a posterior score, flat."""
    if posterior.series is not None:
        return np.asarray(posterior.series.y)
    sites = posterior.observed()
    return np.concatenate([np.ravel(v) for v in sites.values()])
