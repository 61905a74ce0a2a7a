"""Starting states of exponential smoothing given everything else: normal, as errors are linear in them."""

from typing import Any

import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probkit.ets.recursions import Form, States, Weights, run
from probkit.math.linalg import matmul

#: Fields that hold starting states, in the order of `States`.
STATES = ("level", "slope", "seasonal")


def is_normal(law: Any) -> bool:
    """Whether a prior of starting states is normal: then so are its unconstrained values, moved and turned at most."""
    return isinstance(law, dist.Normal | dist.ZeroSumNormal)


def starting_states(
    form: Form,
    y: Float[Array, " time"],
    w: Weights,
    start: States,
    scale: Float[Array, ""],
    laws: dict[str, dist.Distribution],
) -> tuple[Float[Array, " k"], Float[Array, "k k"]]:
    r"""The law of the unconstrained starting states x given y, the smoothing parameters and the scale of the errors.

    The errors are $e_0 + E x$: the columns of E are lanes of one more run of the recursion. With the prior $N(m, D)$ it
    is $N(\Lambda^{-1} b, \Lambda^{-1})$,

    $$\Lambda = D^{-1} + E'E / \sigma^2, \qquad b = D^{-1} m - E' e_0 / \sigma^2,$$

    exactly where no value is missing inside the series, nearly where some are.

    Args:
        form: one that is linear, with additive errors; static.
        y: the series, NaN where missing.
        w: smoothing parameters.
        start: the states where x is 0.
        scale: standard deviation of the errors.
        laws: priors of those states that are unknown, by field; normal.

    Returns:
        b and $\Lambda$.
    """
    known = {name: _prior(law, y.dtype) for name, law in laws.items()}
    count = sum(len(basis) for basis, *_ in known.values())

    def lanes(wanted: str, shape: tuple[int, ...]) -> Array:
        none = lambda basis: jnp.zeros((len(basis), *shape), y.dtype)
        return jnp.concatenate([b if name == wanted else none(b) for name, (b, *_) in known.items()]).T

    shapes = (), (), jnp.shape(start.s)
    units = States(*(lanes(name, shape) for name, shape in zip(STATES, shapes, strict=True)))
    silent = jnp.where(jnp.isnan(y), jnp.nan, 0.0)[:, None] * jnp.ones(count, y.dtype)
    E = run(form, silent, Weights(*(jnp.broadcast_to(x, (count,)) for x in w)), units).error
    e = run(form, y, w, start).error
    D_inverse = jnp.concatenate([precision for *_, precision in known.values()])
    m = jnp.concatenate([mean for _, mean, _ in known.values()])
    noise = _precision(scale)
    return D_inverse * m - noise * matmul(E.T, e), jnp.diag(D_inverse) + noise * matmul(E.T, E)


def _prior(law: dist.Distribution, dtype: Any) -> tuple[Array, Array, Array]:
    """States at unit vectors of the unconstrained values, (k, ...), and the means and precisions of these, (k,)."""
    to_support = dist.biject_to(law.support)
    shape = to_support.inverse_shape(law.shape())
    units = jnp.eye(shape[0] if shape else 1, dtype=dtype)
    basis = jnp.stack([to_support(unit.reshape(shape)) for unit in units])
    wide = lambda a: jnp.broadcast_to(jnp.asarray(a, dtype), len(units))
    # Values of a zero-sum law are turned without stretching, around 0.
    return basis, wide(0.0 if law.event_dim else law.loc), wide(_precision(law.scale))


def _precision(scale: Array) -> Array:
    """1 / scale², finite."""
    return 1 / jnp.maximum(scale, float(jnp.finfo(scale.dtype).tiny) ** 0.25) ** 2
