r"""KL divergences between Gaussians, whatever the form of their covariances.

A Gaussian comes as a diagonal (`Normal(...).to_event(1)`), a Cholesky factor (`MultivariateNormal`), a diagonal plus a
matrix of low rank (`LowRankMultivariateNormal`), or a random walk from zero (`GaussianRandomWalk`). Importing this
module teaches `numpyro.distributions.kl_divergence` every pair of them that NumPyro lacks, and
`probkit.vi.divergences` does so on import.

References:
    Rasmussen, C. E. and Williams, C. K. I. (2006). Gaussian Processes for Machine Learning, appendix A.5.
"""

from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import jax.numpy as jnp
import numpyro.distributions as dist
from jax import lax
from jaxtyping import Array, Float
from numpyro.distributions import Distribution, kl_divergence

from probkit.math.linalg import matmul


class Diagonal(NamedTuple):
    """Independent coordinates: `loc` and `scale` (..., n)."""

    loc: Array
    scale: Array

    def parts(self) -> tuple[Array | None, Array | None]:
        """C (..., n, k) and v (..., n) with covariance C C' + diag(v); None is zero."""
        return None, self.scale**2

    def trace(self, C: Array) -> Array:
        """tr(C' S^-1 C) for the covariance S and a matrix (..., n, k)."""
        return sum_of_squares(C / self.scale[..., None])

    def trace_diagonal(self, v: Array) -> Array:
        """tr(S^-1 diag(v))."""
        return jnp.sum(v / self.scale**2, -1)

    def log_det(self) -> Array:
        """log det S."""
        return 2 * jnp.sum(jnp.log(self.scale), -1)

    def root(self) -> Array:
        """A with A A' = S, lower triangular with a positive diagonal."""
        return self.scale[..., None] * jnp.eye(self.scale.shape[-1], dtype=self.scale.dtype)


class Dense(NamedTuple):
    """Covariance L L': `loc` (..., n), `L` (..., n, n) lower triangular. The methods are those of `Diagonal`."""

    loc: Array
    L: Array

    def parts(self) -> tuple[Array | None, Array | None]:
        return self.L, None

    def trace(self, C: Array) -> Array:
        return sum_of_squares(solve_lower(self.L, C))

    def trace_diagonal(self, v: Array) -> Array:
        inverse = solve_lower(self.L, jnp.eye(self.L.shape[-1], dtype=self.L.dtype))
        return jnp.sum(jnp.sum(inverse**2, -2) * v, -1)

    def log_det(self) -> Array:
        return 2 * jnp.sum(jnp.log(diagonal_of(self.L)), -1)

    def root(self) -> Array:
        return self.L


class LowRank(NamedTuple):
    r"""Covariance $W W' + \mathrm{diag}(s^2)$: `loc` and `s` (..., n), `W` (..., n, k).

    With $B = W/s$ and the capacitance $K = I + B'B = L L'$, $\log\det S = \sum\log s^2 + \log\det K$, and
    $C'S^{-1}C$ is the optimum of a ridge regression: for $A = C/s$ and $\beta = K^{-1}B'A$ (Woodbury), its trace is
    $\lVert A - B\beta\rVert^2 + \lVert\beta\rVert^2$: a sum of squares, where Woodbury's difference would cancel.
    No n x n matrix is made. The methods are those of `Diagonal`.
    """

    loc: Array
    s: Array
    B: Array
    L: Array

    def parts(self) -> tuple[Array | None, Array | None]:
        return self.s[..., None] * self.B, self.s**2

    def trace(self, C: Array) -> Array:
        A = C / self.s[..., None]
        beta = solve_lower(self.L, solve_lower(self.L, matmul(transpose(self.B), A)), transpose=True)
        return sum_of_squares(A - matmul(self.B, beta)) + sum_of_squares(beta)

    def trace_diagonal(self, v: Array) -> Array:
        leverage = jnp.sum(solve_lower(self.L, transpose(self.B)) ** 2, -2)
        return jnp.sum(v / self.s**2 * (1 - leverage), -1)

    def log_det(self) -> Array:
        return 2 * (jnp.sum(jnp.log(self.s), -1) + jnp.sum(jnp.log(diagonal_of(self.L)), -1))

    def root(self) -> Array:
        inner = jnp.eye(self.s.shape[-1], dtype=self.s.dtype) + matmul(self.B, transpose(self.B))
        return self.s[..., None] * jnp.linalg.cholesky(inner)


class Walk(NamedTuple):
    """Sums of n independent steps: `loc` (..., n) zeros, `scale` (...,). The methods are those of `Diagonal`."""

    loc: Array
    scale: Array

    def parts(self) -> tuple[Array | None, Array | None]:
        return self.root(), None

    def trace(self, C: Array) -> Array:
        return sum_of_squares(jnp.concatenate([C[..., :1, :], jnp.diff(C, axis=-2)], -2)) / self.scale**2

    def trace_diagonal(self, v: Array) -> Array:
        return (jnp.sum(v, -1) + jnp.sum(v[..., :-1], -1)) / self.scale**2

    def log_det(self) -> Array:
        return 2 * self.loc.shape[-1] * jnp.log(self.scale)

    def root(self) -> Array:
        n = self.loc.shape[-1]
        return self.scale[..., None, None] * jnp.tri(n, dtype=self.scale.dtype)


Gaussian = Diagonal | Dense | LowRank | Walk


def as_gaussian(p: Distribution) -> Gaussian:
    """The Gaussian that a NumPyro distribution is, its wrappers taken off.

    Raises:
        NotImplementedError: if it is none, or has other than one event dimension.
    """
    shape = p.batch_shape + p.event_shape
    while isinstance(p, dist.ExpandedDistribution):
        p = p.base_dist
    if isinstance(p, dist.MultivariateNormal):
        return Dense(p.loc, p.scale_tril)
    if isinstance(p, dist.LowRankMultivariateNormal):
        s = jnp.sqrt(p.cov_diag)
        B = p.cov_factor / s[..., None]
        capacitance = jnp.eye(B.shape[-1], dtype=B.dtype) + matmul(transpose(B), B)
        return LowRank(p.loc, s, B, jnp.linalg.cholesky(capacitance))
    if isinstance(p, dist.GaussianRandomWalk):
        scale = jnp.asarray(p.scale, jnp.result_type(p.scale, float))
        return Walk(jnp.zeros(p.batch_shape + p.event_shape, scale.dtype), scale)
    if isinstance(p, dist.Independent) and p.reinterpreted_batch_ndims == 1:
        p = p.base_dist
        while isinstance(p, dist.ExpandedDistribution):
            p = p.base_dist
        if isinstance(p, dist.Normal):
            return Diagonal(jnp.broadcast_to(p.loc, shape), jnp.broadcast_to(p.scale, shape))
    raise NotImplementedError(f"{type(p).__name__} is no Gaussian on vectors")


def gaussian_kl(p: Distribution, q: Distribution) -> Float[Array, "*batch"]:
    r"""KL divergence of two Gaussians on vectors, with no n x n matrix unless one of them has one.

    $$\tfrac12\bigl(\mathrm{tr}(S_q^{-1}S_p) + (\mu_q-\mu_p)'S_q^{-1}(\mu_q-\mu_p) - n
    + \log\det S_q - \log\det S_p\bigr)$$

    Args:
        p: diagonal normal with one event dimension, multivariate normal, low-rank normal or Gaussian random walk.
        q: the same.

    Returns:
        The divergence, of the joint batch shape.

    Raises:
        NotImplementedError: if p or q is none of these, which NumPyro's callers take as "no closed form".
        ValueError: if the event shapes differ.

    References:
        Rasmussen and Williams (2006), eq. A.23.
    """
    if p.event_shape != q.event_shape:
        raise ValueError(f"p has event shape {p.event_shape} and q {q.event_shape}; a divergence needs one space.")
    f, g = as_gaussian(p), as_gaussian(q)
    columns, diagonal = f.parts()
    twice = g.trace((g.loc - f.loc)[..., None]) + (g.log_det() - f.log_det()) - f.loc.shape[-1]
    if columns is not None:
        twice = twice + g.trace(columns)
    if diagonal is not None:
        twice = twice + g.trace_diagonal(diagonal)
    return twice / 2


def walk_kl(p: dist.GaussianRandomWalk, q: dist.GaussianRandomWalk) -> Float[Array, "*batch"]:
    """KL divergence of two random walks of n steps: n times that of one step."""
    if p.event_shape != q.event_shape:
        raise ValueError(f"p has {p.num_steps} steps and q {q.num_steps}; a divergence needs equal numbers.")
    ratio = jnp.square(p.scale / q.scale)
    return p.num_steps / 2 * (ratio - 1 - jnp.log(ratio))


def solve_lower(L: Array, C: Array, transpose: bool = False) -> Array:
    """`L^-1 C`, or `L'^-1 C`, for lower triangular L; the batch shapes broadcast."""
    batch = lax.broadcast_shapes(L.shape[:-2], C.shape[:-2])
    L, C = jnp.broadcast_to(L, batch + L.shape[-2:]), jnp.broadcast_to(C, batch + C.shape[-2:])
    return lax.linalg.triangular_solve(L, C, left_side=True, lower=True, transpose_a=transpose)


def transpose(A: Array) -> Array:
    """The transpose of each matrix of a batch."""
    return jnp.swapaxes(A, -1, -2)


def diagonal_of(A: Array) -> Array:
    """The diagonal of each matrix of a batch."""
    return jnp.diagonal(A, axis1=-2, axis2=-1)


def sum_of_squares(A: Array) -> Array:
    """The squared Frobenius norm of each matrix of a batch."""
    return jnp.sum(jnp.square(A), (-2, -1))


def register(*types: type, replace: bool = False) -> Callable[[Callable], Callable]:
    """Adds a KL divergence to NumPyro's registry, unless NumPyro has one for exactly these types.

    Args:
        types: the class of p and the class of q.
        replace: whether to take the place of NumPyro's.
    """

    def add(function: Callable) -> Callable:
        if replace or types not in kl_divergence.funcs:
            kl_divergence.register(*types)(function)
        return function

    return add


_FORMS = (dist.Independent, dist.MultivariateNormal, dist.LowRankMultivariateNormal, dist.GaussianRandomWalk)
register(dist.GaussianRandomWalk, dist.GaussianRandomWalk)(walk_kl)
for _pair in product(_FORMS, _FORMS):
    register(*_pair)(gaussian_kl)  # leaves NumPyro's own pairs, and the walks, as they are
