"""Gaussians on four coordinates in each form that NumPyro has, and their moments."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

FORMS = ("diagonal", "dense", "low rank", "walk")


def gaussian(form, seed, batch=(), dtype=float, shift=0.0):
    """One of its form; `shift` moves the location and the scale, for derivatives."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=(*batch, *shape)), dtype)
    loc, scale = draw(4) + shift, jnp.exp(0.5 * draw(4) + shift)
    if form == "diagonal":
        return dist.Normal(loc, scale).to_event(1)
    if form == "dense":
        return dist.MultivariateNormal(
            loc, scale_tril=0.3 * jnp.tril(draw(4, 4), -1) + scale[..., None] * jnp.eye(4, dtype=dtype)
        )
    if form == "low rank":
        return dist.LowRankMultivariateNormal(loc, draw(4, 2), scale)
    return dist.GaussianRandomWalk(scale[..., 0], 4)


def gaussians(seed, batch=()):
    """One of every form, by its name; all that the tests share are built in one program, where eager takes fifty."""
    return _shared()[seed, batch]


@cache
def _shared():
    kinds = [(0, ()), (1, ()), (0, (3, 1)), (1, (2,))]
    return dict(zip(kinds, jax.jit(lambda: [{f: gaussian(f, *kind) for f in FORMS} for kind in kinds])(), strict=True))


def moments(p):
    """Means and covariances (..., 4) and (..., 4, 4), as NumPy arrays in double precision."""
    if isinstance(p, dist.GaussianRandomWalk):
        root = np.asarray(p.scale, float)[..., None, None] * np.tri(p.num_steps)
        return np.zeros(root.shape[:-1]), root @ root.swapaxes(-1, -2)
    if isinstance(p, dist.Independent):
        return np.asarray(p.base_dist.loc, float), np.asarray(p.base_dist.scale, float)[..., None] ** 2 * np.eye(4)
    mean = np.asarray(p.loc, float)
    if isinstance(p, dist.LowRankMultivariateNormal):
        W = np.asarray(p.cov_factor, float)
        return mean, W @ W.swapaxes(-1, -2) + np.asarray(p.cov_diag, float)[..., None] * np.eye(mean.shape[-1])
    L = np.asarray(p.scale_tril, float)
    return mean, L @ L.swapaxes(-1, -2)
