"""Leave-one-out by Pareto-smoothed importance sampling, with exact refits where the weights do not serve."""

import dataclasses
import warnings
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import logsumexp

from probkit.infer.target import Target
from probkit.model import Model, with_defaults

if TYPE_CHECKING:
    from probkit.posterior import Posterior

#: Above this Pareto shape a LOO term by importance sampling is not to be trusted (Vehtari et al. 2024).
K_LIMIT = 0.7
#: Effective draws under which a mean of terms over a refit gives way to the ratio of evidences.
LEAST_CARRYING = 1000


def psis_loo(posterior: "Posterior", refit: bool = False) -> Any:
    """``elpd_loo`` of a posterior as ArviZ's ``ELPDData``; see :meth:`probkit.Posterior.loo`."""
    if not posterior.has_loo:
        raise TypeError(
            f"loo needs draws of the posterior, and {type(posterior.method).__name__} does not give them; fit with "
            "Auto(), Laplace() or NUTS()."
        )
    guided = None if posterior.targets_posterior else posterior.outcome.stats["log_weight"]
    if refit and guided is not None:
        raise TypeError("refit=True needs draws of the posterior; fit with VI(importance=True), Auto() or NUTS().")
    import arviz_base
    import arviz_stats

    labels, name = posterior.term_labels()
    values = posterior.loo_terms[..., posterior.scored]
    if values.shape[-1] == 0:
        raise ValueError("No entry has a LOO term: each is missing, or nothing is left to predict it from.")
    known = not posterior.sites
    if known:  # one draw of nothing: its terms are exact, and stand for as many draws as ArviZ wants
        values = np.broadcast_to(values, (1, 100, values.shape[-1]))
    reff = relative_efficiency(posterior)
    terms = arviz_base.from_dict(
        {"log_likelihood": {"y": values}},
        dims={"y": [name]},
        coords={name: labels[posterior.scored]},
    )
    with warnings.catch_warnings():
        # The result carries the same warning, and compare() counts the entries.
        warnings.filterwarnings("ignore", message="Estimated shape parameter of Pareto")
        held = terms.log_likelihood["y"]
        if guided is not None:
            # Draws of a guide: the weights that leave an entry out also bring the draws to the posterior.
            held = held - np.asarray(guided - guided.max(), float)[..., None]
        weights, k = smoothed(held, reff, 16 * float(jnp.finfo(posterior.target.dtype).eps))
        found = arviz_stats.loo(terms, pointwise=True, reff=reff, log_weights=weights, pareto_k=k)
    if integrates_states(posterior) or guided is not None:
        # The terms are marginal over the latent states, so p_loo counts parameters alone: a misleading number. Under a
        # guide's draws its other half is not of the posterior.
        found = dataclasses.replace(found, p=np.nan)
    if known:
        return _replace_terms(found, np.arange(values.shape[-1]), values[0, 0])
    if not refit:
        return found
    bad = np.flatnonzero(np.asarray(found.pareto_k) > K_LIMIT)
    if bad.size == 0:
        return found
    return _replace_terms(found, bad, exact_terms(posterior, np.flatnonzero(posterior.scored)[bad]))


def smoothed(terms: Any, reff: float, eps: float) -> tuple[Any, Any]:
    """Smoothed log weights of leave-one-out and their Pareto shapes, as xarrays, by ArviZ.

    An entry whose term is the same in every draw, to ``eps``, has no tail to smooth: equal weights and shape 0.
    """
    import xarray as xr

    weights, k = xr.full_like(terms, -np.log(terms[..., 0].size)), xr.zeros_like(terms[0, 0])
    values = np.asarray(terms)
    with np.errstate(invalid="ignore"):  # a term of -inf in every draw does not vary
        varying = np.ptp(values, (0, 1)) > eps * np.maximum(1.0, np.abs(values[0, 0]))
    if varying.any():
        found = terms[..., varying].azstats.psislw(r_eff=reff, dim=["chain", "draw"])
        weights[..., varying], k[varying] = found[0].transpose(*terms.dims), found[1]
    return weights, k


def relative_efficiency(posterior: "Posterior") -> float:
    """Effective draws over draws, at most 1: what ArviZ's Monte Carlo errors need to know of the draws."""
    chains, draws = posterior._shape()
    ess = posterior.report.ess
    return 1.0 if ess is None else float(np.clip(ess / (chains * draws), 1e-3, 1.0))


def integrates_states(posterior: "Posterior") -> bool:
    """Whether latent states are integrated out of the LOO terms."""
    return isinstance(posterior.model, Model) and posterior.model.integrates_states


def exact_terms(posterior: "Posterior", entries: np.ndarray) -> np.ndarray:
    """``log p(y_i | y_-i)`` by fitting again without entry i, for each of ``entries``.

    Default priors stay those of the whole data, so that only the likelihood changes. The refits compile once. The
    term is the mean of ``p(y_i | y_-i, parameters)`` over the draws of the refit; where few draws carry that mean (an
    entry far out) it is the ratio of evidences, ``log p(y) - log p(y_-i)``, if both fits know theirs.
    """
    if not isinstance(posterior.model, Model):
        raise TypeError("refit=True is for probkit models: in a plain function no entry can be left out.")
    y, X = posterior.target.args
    model = with_defaults(posterior.model, y, X)
    full = Target(model, (y, X))
    out = []
    for i in entries:
        masked = jnp.where(jnp.arange(y.size).reshape(y.shape) == i, jnp.nan, y)
        # A solver that looks at the data first (neighbours, points without a value) must not know the entry.
        left = Target(model.prepared(masked, X), (masked, X))
        outcome = posterior.method.run(left, jax.random.fold_in(posterior.key, int(i)))
        without = dataclasses.replace(posterior, target=full, outcome=outcome)
        terms = without.loo_terms[..., i]
        mean = logsumexp(terms) - np.log(terms.size)
        carrying = np.exp(2 * logsumexp(terms) - logsumexp(2 * terms))
        whole, rest = posterior.report, outcome.report
        if carrying < LEAST_CARRYING and whole.log_evidence is not None and rest.log_evidence is not None:
            mean = whole.log_evidence - rest.log_evidence
        out.append(mean)
    return np.array(out)


def _replace_terms(found: Any, where: np.ndarray, terms: np.ndarray) -> Any:
    """The same result with some pointwise terms computed exactly."""
    elpd_i, k = found.elpd_i.copy(), found.pareto_k.copy()
    elpd_i.values[where] = terms
    k.values[where] = 0.0
    n = elpd_i.size
    return dataclasses.replace(
        found,
        elpd=float(elpd_i.sum()),
        se=float(np.sqrt(n * np.var(elpd_i.values))),
        elpd_i=elpd_i,
        pareto_k=k,
        warning=bool(np.any(k.values > K_LIMIT)),
    )
