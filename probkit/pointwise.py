"""Scoring of single entries under any NumPyro distribution, with NaN as missing.

A distribution of a vector may offer ``leave_one_out(y)`` itself (Gaussian families do, in closed form). For the rest:
entries that are independent given the parameters have the plain term, and a multivariate normal has its precision.
"""

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float


def _entries(law: dist.Distribution, y: Array) -> dist.Distribution | None:
    """The law of each entry, batch shape of ``y``, where entries are independent given the parameters."""
    if isinstance(law, dist.Independent) and law.event_dim == y.ndim and law.base_dist.event_dim == 0:
        return law.base_dist
    if law.event_dim == 0 and law.batch_shape in ((), y.shape):
        return law.expand(y.shape)
    return None


def observed(law: dist.Distribution, y: Array) -> tuple[dist.Distribution, Array]:
    """A law and data in which missing entries count nothing: NaN is masked, unless the law itself takes NaN."""
    entries, missing = _entries(law, y), jnp.isnan(y)
    if entries is None and isinstance(law, dist.MultivariateNormal):
        return _without(law, missing), jnp.where(missing, law.loc, y)
    if entries is None:
        return law, y
    # Any value of the support serves: a masked entry adds nothing, in value or gradient.
    return entries.mask(~missing).to_event(y.ndim), jnp.where(missing, jnp.nanmax(y), y)


def _without(law: dist.MultivariateNormal, missing: Array) -> dist.MultivariateNormal:
    """The law with each missing entry independent of the rest, of density 1 at its mean: it adds nothing there."""
    seen = ~missing
    alone = jnp.diag(jnp.where(missing, 1 / (2 * jnp.pi), 0.0))
    covariance = jnp.where(seen[:, None] & seen, law.covariance_matrix, alone)
    return dist.MultivariateNormal(law.loc, covariance)


def log_prob(law: dist.Distribution, y: Float[Array, " n"]) -> Float[Array, ""]:
    """Log density of ``y`` under ``law``; NaN entries are missing."""
    law, y = observed(law, y)
    return law.log_prob(y)


def pointwise(law: dist.Distribution, y: Float[Array, " n"]) -> dist.Distribution:
    """The law of each entry given all others, batch shape (n,).

    For a multivariate normal with mean m and precision Λ (of the entries that are seen):
    ``y_i | y_-i ~ N(y_i - [Λ(y - m)]_i / Λ_ii, 1 / Λ_ii)``; a missing entry has its law given those seen.

    Raises:
        TypeError: the distribution has no leave-one-out terms in closed form.

    References:
        Sundararajan and Keerthi (2001), Predictive approaches for choosing hyperparameters in Gaussian processes.
    """
    if hasattr(law, "leave_one_out"):
        return law.leave_one_out(y)
    entries = _entries(law, y)
    if entries is not None:
        return entries
    if isinstance(law, dist.MultivariateNormal):
        missing, covariance = jnp.isnan(y), law.covariance_matrix
        precision = _without(law, missing).precision_matrix
        residual = jnp.where(missing, 0.0, y - law.loc)
        across = jnp.where(missing, 0.0, covariance)  # from every entry to those that are seen
        variance = jnp.where(
            missing,
            jnp.diagonal(covariance) - jnp.sum((across @ precision) * across, -1),
            1.0 / jnp.diagonal(precision),
        )
        weighted = precision @ residual
        mean = jnp.where(missing, law.loc + across @ weighted, y - variance * weighted)
        return dist.Normal(mean, jnp.sqrt(variance))
    raise TypeError(
        f"{type(law).__name__} has no leave-one-out terms: make its entries independent with .to_event(1), "
        "use MultivariateNormal, or give the distribution a method leave_one_out(y)."
    )
