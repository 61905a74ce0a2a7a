"""Summary tables: ArviZ's for draws; estimates, standard errors and information criteria for point fits."""

from typing import TYPE_CHECKING, Any

import numpy as np

from probkit.export import parameters
from probkit.model import Model, bind

if TYPE_CHECKING:
    from probkit.posterior import Posterior


def summarise(posterior: "Posterior", **kwargs: Any) -> Any:
    """The summary table of a posterior; see :meth:`probkit.Posterior.summary`."""
    if posterior.outcome.standard_errors is not None:
        return _point_table(posterior)
    import arviz_stats

    if not posterior.sites:
        raise TypeError("The model holds no prior, so there is nothing to summarise.")
    table = arviz_stats.summary(parameters(posterior), **kwargs)
    if posterior.report.rung == "importance":
        # Resampled draws repeat, so figures made from them as if independent would flatter: take the weights' own.
        table = table.drop(columns=[c for c in ("r_hat", "ess_tail", "mcse_sd") if c in table.columns])
        if "ess_bulk" in table.columns:
            table["ess_bulk"] = int(posterior.report.ess or 0)
        if "mcse_mean" in table.columns and posterior.report.mcse is not None:
            errors = np.concatenate([np.ravel(posterior.report.mcse[n]) for n in posterior.sites])
            table["mcse_mean"] = errors if len(errors) == len(table) else table["mcse_mean"]
        table = table.rename(columns={"ess_bulk": "ess"})
    return table


def information_criteria(posterior: "Posterior") -> dict[str, float]:
    """AIC, AICc and BIC of a point estimate, by R's convention.

    ``k`` counts free parameters, ``n`` the observations less the ``d`` diffuse states, and the log-likelihood leaves
    out ``-0.5 log(2 pi)`` per diffuse state, so that figures agree with R's ``arima`` and statsmodels' burned value.
    """
    target = posterior.target
    k = sum(int(np.prod(shape)) for _, shape in target.sites().values())
    value = float(np.ravel(posterior.outcome.stats["log_likelihood"])[0])
    n, diffuse = 0, 0
    if isinstance(target.model, Model):
        y, X = target.args
        n = int(np.sum(~np.isnan(np.asarray(y))))
        one = {name: v[0, 0] for name, v in posterior.sites.items()}
        law = bind(target.resolved().model, one).distribution(X, y.shape[0])
        diffuse = getattr(law, "diffuse_states", 0)
    n -= diffuse
    value += 0.5 * np.log(2 * np.pi) * diffuse
    out = {"log_likelihood": value, "AIC": 2 * k - 2 * value}
    if n:
        small = 2 * k * (k + 1) / (n - k - 1) if n > k + 1 else np.inf
        out |= {"AICc": out["AIC"] + small, "BIC": k * np.log(n) - 2 * value}
    return out


def _point_table(posterior: "Posterior") -> Any:
    """Estimates and standard errors by component, with the information criteria below; of a bound, the bound alone."""
    import pandas as pd

    rows: dict[str, tuple[float, float]] = {}
    errors = posterior.outcome.standard_errors or {}
    for name, draws in posterior.sites.items():
        value, error = draws[0, 0], errors.get(name, np.full(draws.shape[2:], np.nan))
        for at in np.ndindex(value.shape):
            label = f"{name}[{', '.join(str(i + 1) for i in at)}]" if at else name
            rows[label] = (float(value[at]), float(np.asarray(error)[at]))
    bound = posterior.report.elbo
    for name, value in (information_criteria(posterior) if bound is None else {"elbo": bound}).items():
        rows[name] = (value, np.nan)
    return pd.DataFrame.from_dict(rows, orient="index", columns=["estimate", "std_error"])
