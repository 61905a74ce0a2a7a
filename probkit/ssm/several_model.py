"""What multivariate models of several series have in common: default scales, gaps, new series."""

from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from probkit import priors
from probkit.model import Model, resolve, with_defaults
from probkit.ssm import several
from probkit.ssm.distribution import LinearGaussian
from probkit.ssm.statespace import factor, known_start


def spreads(y: Float[Array, "time p"]) -> Float[Array, " p"]:
    """The spread of every series."""
    return jax.vmap(priors.spread, in_axes=1)(y)


def noises(self: Any, y: Any, X: Any) -> dist.Distribution:
    """Half-normal with the spread of each series as scale, cut off below at its rounding error."""
    scale, low = spreads(y), jax.vmap(priors.rounding, in_axes=1)(y)
    return dist.TruncatedNormal(jnp.zeros_like(scale), scale, low=low).to_event(1)


class SeveralSeries(Model):
    """Abstract: a multivariate linear Gaussian model; a subclass gives its law."""

    integrates_states: ClassVar[bool] = True
    multivariate: ClassVar[bool] = True

    def check_data(self, y: Any, X: Any) -> None:
        """Refuse one series alone."""
        if y.shape[1] < 2:
            raise ValueError(f"y has shape {y.shape}; {type(self).__name__} takes two series or more.")

    def work(self, y: Any, X: Any) -> int:
        """The variances of the states, and what the smoother makes of them."""

        def zeros() -> Array:
            draw = lambda name, prior: jnp.zeros(prior.shape(), y.dtype)
            return resolve(with_defaults(self, y, X), draw).distribution(X, y.shape[0]).model.T

        return max(1, 10 * jax.eval_shape(zeros).shape[-1] ** 2 // y.shape[1])

    def state_sizes(self, X: Any, length: int) -> Any:
        """What the states are multiples of, where that depends on X."""
        return 1.0

    def replicate(self, y: Float[Array, "n p"], X: Any, X_new: Any, key: Array) -> Float[Array, "n p"]:
        """New series over the same times: the first state drawn given y, all that follows anew, inputs `X_new`."""
        n, (k_start, k_path) = y.shape[0], jax.random.split(key)
        law, new = self.distribution(X, n), self.distribution(X_new, n)
        m = jnp.shape(law.model.T)[-1]
        rows = jnp.zeros((n, m, m), y.dtype).at[0].set(jnp.eye(m, dtype=y.dtype))
        state = law.signals(k_start, y, rows).draw[0] * self.state_sizes(X_new, n) / self.state_sizes(X, n)
        return LinearGaussian(new.model, known_start(state, jnp.zeros((m, m), state.dtype)), n).sample(k_path)

    def impute(self, y: Float[Array, "n p"], X: Any, key: Array) -> Float[Array, "n p"]:
        """y with one joint draw of what is missing."""
        law = self.distribution(X, y.shape[0])
        k_signal, k_noise = jax.random.split(key)
        Z = jnp.broadcast_to(law.model.Z, (*y.shape, jnp.shape(law.model.Z)[-1]))
        signal = law.signals(k_signal, y, Z).draw + law.model.d
        noise = jax.random.normal(k_noise, y.shape, y.dtype) @ factor(jnp.asarray(law.model.H)).T
        return jnp.where(jnp.isnan(y), signal + several.fill_noise(y - signal, noise, jnp.asarray(law.model.H)), y)
