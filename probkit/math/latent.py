"""Terms of a log-likelihood in latent values, one value to an observation: with NaN, and with derivatives.

``terms(phi, f, y)`` is the log density of each entry, ``curvature(phi, f, y)`` what stands for minus its second
derivative, not negative; phi is a pytree of parameters.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array

Terms = Callable[[Any, Array, Array], Array]


def masked(terms: Terms, phi: Any, f: Array, y: Array) -> Array:
    """Terms of the observed entries; a missing one counts 0 and has no gradient."""
    return _where_seen(terms, phi, f, y)


def gradient(terms: Terms, phi: Any, f: Array, y: Array) -> Array:
    """Gradient of the log-likelihood in f, entry by entry."""
    return jax.grad(lambda f: jnp.sum(masked(terms, phi, f, y)))(f)


def observed_curvature(terms: Terms, phi: Any, f: Array, y: Array) -> Array:
    """Minus the second derivative of the log-likelihood in f, entry by entry."""
    return -jax.jvp(lambda f: gradient(terms, phi, f, y), (f,), (jnp.ones_like(f),))[1]


def positive_curvature(curvature: Terms, phi: Any, f: Array, y: Array) -> Array:
    """``curvature``, 0 where it is negative or y is missing."""
    return jnp.maximum(_where_seen(curvature, phi, f, y), 0.0)


def _where_seen(terms: Terms, phi: Any, f: Array, y: Array) -> Array:
    # Values stand in for what is missing: a NaN behind a `where` would be one in the gradient.
    seen = ~jnp.isnan(y)
    stand_in = jnp.nanmax(jnp.where(jnp.any(seen), y, 1.0))
    return jnp.where(seen, terms(phi, jnp.where(seen, f, 0.0), jnp.where(seen, y, stand_in)), 0.0)
