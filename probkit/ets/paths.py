"""Paths of the future from fitted lanes: parameters from their asymptotic law, states by a run, errors on top."""

from functools import partial

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probkit.ets.fitting import Fits, Masks, bounds, covariance, scaled, squares, unpack, used_parameters
from probkit.ets.recursions import Form, run, simulate
from probkit.ssm.statespace import factor

#: Paths that one draw of the parameters serves: they differ in their errors, by far the larger part.
EACH = 4


@partial(jax.jit, static_argnames=("form", "horizon", "draws"))
def paths(
    form: Form,
    y: Float[Array, "time lanes"],
    m: Masks,
    found: Fits,
    prior: Array,
    keys: Array,
    horizon: int,
    draws: int,
) -> Float[Array, "draws horizon lanes"]:
    """Draws of the next values of every lane, with the uncertainty of parameters, starting states and error variance.

    Parameters are normal around the estimate, with the inverse curvature for covariance, cut to
    their region; the error variance is drawn from its scaled inverse chi-squared law; both serve four paths.
    A draw of the parameters whose errors are twice as large, where the normal law has failed, gives way to the
    estimate.

    Args:
        form: of :func:`probkit.ets.fitting.program`; static.
        y: the series, as they were fitted.
        m: which form each lane has.
        found: the fits.
        prior: the powers that they were fitted with.
        keys: a new-style key a lane, (lanes,), so that no lane's draws depend on its neighbours.
        horizon: number of steps.
        draws: number of paths.
    """
    y = y / found.unit
    params = found.x.shape[0]
    root = factor(jnp.moveaxis(covariance(form, m, found, prior), -1, 0))
    free = jnp.maximum(found.observed - used_parameters(form, m, params) + 1, 1.0)
    lower, upper = (edge[:, None] for edge in bounds(params, y.dtype))
    weights, start = unpack(form, found.x, m)
    at_best = run(form, y, weights, start)
    best = jnp.sqrt(squares(at_best, m))

    def one(draw: Array) -> Array:
        def noise(key: Array, free: Array) -> tuple[Array, Array, Array]:
            k_x, k_scale, k_error = jax.random.split(jax.random.fold_in(key, draw), 3)
            chi2 = 2 * jax.random.gamma(k_scale, 0.5 * free, dtype=y.dtype)
            e = jax.random.normal(k_error, (horizon, EACH), y.dtype)
            return jax.random.normal(k_x, (params,), y.dtype), chi2, e

        z, chi2, e = jax.vmap(noise, out_axes=(0, 0, -1))(keys, free)
        x = jnp.clip(found.x + jnp.einsum("lpq,lq->pl", root, z), lower, upper)
        w, start = unpack(form, x, m)
        there = run(form, y, w, start)
        r = scaled(there.mean, there.error, there.seen, there.valid, m)[0]
        good = jnp.sum(r * r, 0) < 4 * found.cost  # not for NaN
        w, last = jax.tree_util.tree_map(partial(jnp.where, good), (w, there.last), (weights, at_best.last))
        if form.season != "N":
            last = last._replace(s=jnp.broadcast_to(last.s[:, None], (last.s.shape[0], EACH, *last.l.shape)))
        return jnp.moveaxis(simulate(form, w, last, best / jnp.sqrt(chi2) * e, m.multiplicative)[0], 1, 0)

    drawn = jax.lax.map(one, jnp.arange(-(-draws // EACH)))
    return drawn.reshape(-1, horizon, y.shape[1])[:draws] * found.unit
