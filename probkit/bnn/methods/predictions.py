"""Convergence judged on predictions: weights of nets may swap, scale and change sign without anyone noticing."""

from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from probkit.posterior import Posterior


def convergence(posterior: "Posterior", X_new: Any = None) -> dict[str, np.ndarray]:
    """R-hat and bulk effective draws of the predicted means of a posterior by MCMC.

    The R-hat of weights means nothing (1.78 was seen where that of predictions was 1.007): hidden units may swap.

    Args:
        posterior: of two chains or more.
        X_new: where to predict; the data's own places by default.

    Returns:
        ``{"r_hat": (n,), "ess": (n,)}``.

    Raises:
        ValueError: there is one chain.

    References:
        Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), Rank-normalization, folding, and localization.
    """
    import arviz_base
    import arviz_stats  # noqa: F401  (its accessor computes the figures)

    means = np.asarray(posterior.predict(X_new).means, float)
    if means.shape[0] < 2:
        raise ValueError(f"The posterior has {means.shape[0]} chain; R-hat needs two or more.")
    tree = arviz_base.from_dict({"posterior": {"f": means}})
    data = tree.posterior.dataset["f"]
    return {"r_hat": np.asarray(data.azstats.rhat()), "ess": np.asarray(data.azstats.ess())}
