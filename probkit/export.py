"""Export to ArviZ: one DataTree with everything its tables and plots read."""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np

from probkit.model import Model
from probkit.supports import declared

if TYPE_CHECKING:
    from probkit.posterior import Posterior

TERMS = "log p(y_i | y_-i, parameters): the density of one entry, in its original units, given all others"
JOINT = "log p(y | parameters): the joint density of all entries"


def to_arviz(posterior: "Posterior", predictive: str = "smoothed", log_likelihood: str = "loo") -> Any:
    """Build the DataTree; see :meth:`probkit.Posterior.to_arviz`."""
    if predictive not in ("smoothed", "loo"):
        raise ValueError(f"predictive is {predictive!r}; 'smoothed' or 'loo' is wanted.")
    if log_likelihood not in ("loo", "joint"):
        raise ValueError(f"log_likelihood is {log_likelihood!r}; 'loo' or 'joint' is wanted.")
    import arviz_base

    stats = dict(posterior.outcome.stats)
    prior, joint = stats.pop("log_prior", None), stats.pop("log_likelihood", None)
    if joint is not None:
        stats["log_likelihood"] = joint
    groups: dict[str, dict[str, np.ndarray]] = {"posterior": dict(posterior.sites), "sample_stats": stats}
    if prior is not None:
        groups["log_prior"] = {"log_prior": prior}
    dims, coords = _parameter_dims(posterior)
    if isinstance(posterior.model, Model):
        more, dims_y, coords_y = _data_groups(posterior, predictive)
        groups |= more
        dims, coords = dims | dims_y, coords | coords_y
    else:
        groups["log_likelihood"] = {"y": posterior.loo_terms}
    if log_likelihood == "joint" and joint is not None:
        groups["log_likelihood"] = {"joint": joint}
    attrs = {
        "inference_library": "probkit",
        "inference_library_version": version("probkit"),
        "method": repr(posterior.method),
        "rung": posterior.report.rung,
        "converged": int(posterior.report.converged),
        "log_likelihood_terms": TERMS if log_likelihood == "loo" else JOINT,
        "posterior_predictive": predictive,
        "jax_version": version("jax"),
        "numpyro_version": version("numpyro"),
    }
    if "log_likelihood" not in groups:
        attrs["log_likelihood_terms"] = "none: the law of y has no leave-one-out terms in closed form"
    host = {g: {n: _host(v, g) for n, v in group.items()} for g, group in groups.items() if group}
    return arviz_base.from_dict(host, dims=dims, coords=coords, attrs={"/": attrs}, check_conventions=False)


def parameters(posterior: "Posterior") -> Any:
    """A DataTree of the draws of the parameters alone: what a summary reads."""
    import arviz_base

    dims, coords = _parameter_dims(posterior)
    host = {name: np.array(value, float) for name, value in posterior.sites.items()}  # float32 does not add up
    return arviz_base.from_dict({"posterior": host}, dims=dims, coords=coords)


def _data_groups(posterior: "Posterior", predictive: str) -> tuple[dict, dict, dict]:
    """The groups over observations, restricted to entries that have a LOO term, with readable coordinates."""
    y, X = posterior.target.args
    labels, name = posterior.term_labels()
    terms = has_terms(posterior)
    keep = posterior.scored if terms else ~np.isnan(np.ravel(y))
    smoothed = _by_entry(posterior, posterior.predict().draws)[..., keep]
    groups = {"posterior_predictive": {"y": smoothed}, "observed_data": {"y": np.ravel(y)[keep]}}
    if terms:
        left_out = _leave_one_out_draws(posterior)[..., keep]
        groups["log_likelihood"] = {"y": posterior.loo_terms[..., keep]}
        groups["loo_predictive"] = {"y": left_out}
        if predictive == "loo":
            groups["posterior_predictive"] = {"y": left_out}
    dims: dict[str, list[str]] = {"y": [name]}
    coords: dict[str, Any] = {name: np.asarray(labels)[keep]}
    if X is not None:
        along = name
        if posterior.model.multivariate:  # inputs stand at times, and entries at pairs of time and series
            times, along = posterior._labels()
            coords[along] = np.asarray(times)
        groups["constant_data"] = {"X": np.asarray(X) if posterior.model.multivariate else np.asarray(X)[keep]}
        dims["X"] = [along] if X.ndim == 1 else [along, "feature"]
        if X.ndim == 2:
            coords["feature"] = np.arange(1, X.shape[1] + 1)
    if posterior._shape() == (1, 1):
        # A point estimate has one draw of parameters and many of the observable: only its own terms fit its draw axis.
        groups = {g: v for g, v in groups.items() if g not in ("posterior_predictive", "loo_predictive")}
    return groups, dims, coords


def has_terms(posterior: "Posterior") -> bool:
    """Whether the law of y has leave-one-out terms in closed form."""
    try:
        posterior.loo_terms  # noqa: B018
    except TypeError:
        return False
    return True


def _leave_one_out_draws(posterior: "Posterior") -> np.ndarray:
    labels, name = posterior._labels()
    return _by_entry(posterior, posterior._prediction("loo", 0, None, labels, name, None, None).draws)


def _by_entry(posterior: "Posterior", draws: np.ndarray) -> np.ndarray:
    """Draws of all entries of y in one row; those of several series (..., series, time) in the order of y."""
    if not posterior.model.multivariate:
        return draws
    return np.swapaxes(draws, -1, -2).reshape(*draws.shape[:-2], -1)


def _parameter_dims(posterior: "Posterior") -> tuple[dict[str, list[str]], dict[str, Any]]:
    """Dimensions that the fields declare, with labels 1, 2, ... along them; names along that of the series."""
    dims: dict[str, list[str]] = {}
    coords: dict[str, Any] = {}
    if isinstance(posterior.model, Model):
        names = posterior.series_names()
        by_series: tuple[str, ...] = () if names is None else getattr(posterior.model, "series_sites", tuple)()
        for name, (metadata, _) in declared(posterior.model).items():
            shape = posterior.sites[name].shape[2:] if name in posterior.sites else ()
            axes = ("series",) if name in by_series and len(shape) == 1 else metadata["dims"]
            if axes and len(axes) == len(shape):
                dims[name] = list(axes)
                coords |= {d: np.arange(1, size + 1) for d, size in zip(axes, shape, strict=True)}
        if names is not None and len(coords.get("series", ())) == len(names):
            coords["series"] = names
    return dims, coords


def _host(value: Any, group: str) -> np.ndarray:
    """A writable copy on the host; log-likelihoods in float64."""
    return np.array(value, dtype=float if group == "log_likelihood" else None, copy=True)
