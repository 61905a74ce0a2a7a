"""Guides: Gaussians over the unconstrained vector, as pytrees whose leaves an optimiser may move freely."""

import abc
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float


class Guide(eqx.Module):
    """A distribution q(u) that is the image of standard normal noise; any value of its leaves is a valid guide.

    ``distribution()`` is the same as a NumPyro distribution: hand that to :func:`probkit.vi.elbo` and its kin.
    """

    loc: eqx.AbstractVar[Float[Array, " D"]]

    @property
    @abc.abstractmethod
    def noise_dim(self) -> int:
        """Length of the noise vector."""

    @abc.abstractmethod
    def transform(self, z: Float[Array, " noise"]) -> Float[Array, " D"]:
        """The point u that noise z becomes."""

    @abc.abstractmethod
    def entropy(self) -> Float[Array, ""]:
        """``-E_q[log q]``, in nats."""

    @abc.abstractmethod
    def scale(self) -> Float[Array, " D"]:
        """Marginal standard deviations."""

    @abc.abstractmethod
    def distribution(self) -> dist.Distribution:
        """The guide as a NumPyro distribution over vectors."""


def _entropy(log_det: Array, dim: int) -> Array:
    return log_det + 0.5 * dim * (1 + math.log(2 * math.pi))


class MeanField(Guide):
    """Independent normals: ``u = loc + exp(log_scale) z``.

    Args:
        loc: means, (D,).
        log_scale: log standard deviations, (D,).
    """

    loc: Float[Array, " D"]
    log_scale: Float[Array, " D"]

    @property
    def noise_dim(self) -> int:
        """D."""
        return self.loc.size

    def transform(self, z: Float[Array, " D"]) -> Float[Array, " D"]:
        """``loc + exp(log_scale) z``."""
        return self.loc + jnp.exp(self.log_scale) * z

    def entropy(self) -> Float[Array, ""]:
        """``sum(log_scale) + D (1 + log 2 pi) / 2``."""
        return _entropy(jnp.sum(self.log_scale), self.loc.size)

    def scale(self) -> Float[Array, " D"]:
        """``exp(log_scale)``."""
        return jnp.exp(self.log_scale)

    def distribution(self) -> dist.Distribution:
        """A diagonal normal."""
        return dist.Normal(self.loc, self.scale()).to_event(1)


class FullRank(Guide):
    """Any Gaussian: ``u = loc + L z`` with L lower triangular, its diagonal ``exp(log_diagonal)``.

    Args:
        loc: means, (D,).
        log_diagonal: logs of the diagonal of L, (D,).
        lower: a matrix whose strictly lower triangle is that of L, (D, D); the rest is not read.
    """

    loc: Float[Array, " D"]
    log_diagonal: Float[Array, " D"]
    lower: Float[Array, "D D"]

    @property
    def noise_dim(self) -> int:
        """D."""
        return self.loc.size

    def factor(self) -> Float[Array, "D D"]:
        """L."""
        return jnp.tril(self.lower, -1) + jnp.diag(jnp.exp(self.log_diagonal))

    def transform(self, z: Float[Array, " D"]) -> Float[Array, " D"]:
        """``loc + L z``."""
        return self.loc + jnp.exp(self.log_diagonal) * z + jnp.tril(self.lower, -1) @ z

    def entropy(self) -> Float[Array, ""]:
        """``log det L + D (1 + log 2 pi) / 2``."""
        return _entropy(jnp.sum(self.log_diagonal), self.loc.size)

    def scale(self) -> Float[Array, " D"]:
        """Roots of the diagonal of ``L L'``."""
        return jnp.linalg.norm(self.factor(), axis=1)

    def distribution(self) -> dist.Distribution:
        """A multivariate normal."""
        return dist.MultivariateNormal(self.loc, scale_tril=self.factor())


class LowRank(Guide):
    """Few shared directions beside independent noise: covariance ``diag(exp(2 log_scale)) + W W'``.

    Args:
        loc: means, (D,).
        log_scale: logs of the independent standard deviations, (D,).
        directions: W, (D, rank).
    """

    loc: Float[Array, " D"]
    log_scale: Float[Array, " D"]
    directions: Float[Array, "D rank"]

    @property
    def noise_dim(self) -> int:
        """D + rank."""
        return sum(self.directions.shape)

    def transform(self, z: Float[Array, " noise"]) -> Float[Array, " D"]:
        """``loc + exp(log_scale) z[:D] + W z[D:]``."""
        dim = self.loc.size
        return self.loc + jnp.exp(self.log_scale) * z[:dim] + self.directions @ z[dim:]

    def entropy(self) -> Float[Array, ""]:
        """By the determinant lemma: ``log det(I + W' S^-2 W) / 2 + sum(log_scale)`` and the constant."""
        within = self.directions * jnp.exp(-self.log_scale)[:, None]
        small = jnp.eye(within.shape[1], dtype=within.dtype) + within.T @ within
        log_det = jnp.sum(self.log_scale) + jnp.sum(jnp.log(jnp.diagonal(jnp.linalg.cholesky(small))))
        return _entropy(log_det, self.loc.size)

    def scale(self) -> Float[Array, " D"]:
        """Roots of the diagonal of the covariance."""
        return jnp.sqrt(jnp.exp(2 * self.log_scale) + jnp.sum(self.directions**2, axis=1))

    def distribution(self) -> dist.Distribution:
        """A low-rank multivariate normal."""
        return dist.LowRankMultivariateNormal(self.loc, self.directions, jnp.exp(2 * self.log_scale))


def affine(guide: Any, centre: Float[Array, " D"], factor: Float[Array, "..."]) -> Any:
    """The guide of ``centre + factor u`` for u of a guide: factor a vector (diagonal), or lower triangular.

    Raises:
        TypeError: a matrix, for a guide other than full-rank.
    """
    if factor.ndim == 1:
        shift = jnp.log(jnp.abs(factor))
        loc = centre + factor * guide.loc
        if isinstance(guide, MeanField):
            return MeanField(loc, guide.log_scale + shift)
        if isinstance(guide, LowRank):
            return LowRank(loc, guide.log_scale + shift, factor[:, None] * guide.directions)
        return FullRank(loc, guide.log_diagonal + shift, factor[:, None] * guide.lower)
    if not isinstance(guide, FullRank):
        raise TypeError(f"A {type(guide).__name__} guide is not closed under a full matrix; FullRank is.")
    whole = factor @ guide.factor()
    return FullRank(centre + factor @ guide.loc, jnp.log(jnp.diagonal(whole)), jnp.tril(whole, -1))


def start_guide(kind: str, dim: int, rank: int, key: Array, dtype: Any) -> Guide:
    """A guide at mean 0 and covariance about I: ``"mean-field"``, ``"full-rank"`` or ``"low-rank"``."""
    zero = jnp.zeros(dim, dtype)
    if kind == "mean-field":
        return MeanField(zero, zero)
    if kind == "full-rank":
        return FullRank(zero, zero, jnp.zeros((dim, dim), dtype))
    # Directions of zero would stay there: the ELBO is even in W.
    return LowRank(zero, zero, 0.1 * jax.random.normal(key, (dim, rank), dtype))
