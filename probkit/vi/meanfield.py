"""Mean-field Gaussian on fixed draws: the ELBO maximised by Newton's method, and the linear-response covariance."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, PRNGKeyArray

from probkit.math.optimise import curvature, descend, value_gradient_hessian
from probkit.math.trust_region import conjugate_gradients, minimise_products
from probkit.vi.guides import Guide, MeanField, affine
from probkit.vi.noise import fixed_noise, over_blocks, pairs_in_block

#: Up to this dimension the exact Hessian is formed; above it only its products are.
DENSE_MAX_DIM = 64
#: The largest dimension that gets a linear-response covariance: a dense matrix is inverted.
RESPONSE_MAX_DIM = 1000
#: The most doublings of the draws at a time.
MOST_DOUBLINGS = 3
#: How far scales are drawn in, in logs, until the start has a finite ELBO.
NARROWER = (0.0, -1.0, -2.0, -4.0, -8.0)


class GuideFit(NamedTuple):
    """A guide that maximises the ELBO on fixed draws.

    Attributes:
        guide: the guide over u.
        response: linear-response covariance of u (Giordano, Broderick and Jordan 2018): the block at the means of the
            inverse Hessian of minus the ELBO in (means, log scales). None where it was not made.
        elbo: the ELBO on the fixed draws, in nats.
        gradient_norm: the largest gradient of the ELBO, in nats a unit of the guide.
        decrement: what Newton's method, or the last quasi-Newton step, still promised, in nats.
        steps: evaluations at the last number of draws.
        error: Monte Carlo error of each mean from the fixed draws, in posterior sds.
        draws: fixed draws used, of both signs.
        converged: the optimum was reached.
        definite: the Hessian there is positive definite.
    """

    guide: Guide
    response: Float[Array, "D D"] | None
    elbo: Float[Array, ""]
    gradient_norm: Float[Array, ""]
    decrement: Float[Array, ""]
    steps: Int[Array, ""]
    error: Float[Array, " D"]
    draws: Int[Array, ""]
    converged: Bool[Array, ""]
    definite: Bool[Array, ""]


def fit_meanfield(
    log_density: Callable,
    key: PRNGKeyArray,
    centre: Float[Array, " D"],
    scale: Float[Array, " D"],
    *,
    tolerance: float = 0.05,
    max_draws: int = 2048,
    max_steps: int = 100,
    response: bool = True,
    each: Callable | None = None,
) -> GuideFit:
    """Maximise the ELBO of a mean-field Gaussian on fixed draws; double the draws until their error is small.

    ``ELBO(a, b) = mean_k log p(centre + scale (a + exp(b) z_k)) + sum(b) + constant``. Up to 64 dimensions each step
    takes the exact Hessian, above that conjugate gradients on its products. The error of the optimum from the draws is
    the sandwich ``H^-1 G H^-1 / n``, G the covariance of the gradients of n antithetic pairs: an upper bound, since
    the draws are quasi-random and moment-matched. As many doublings as it asks for are made at once, three at most.

    Args:
        log_density: u -> log p(u), up to a constant.
        key: fixes the draws.
        centre: start of the means, and the origin of the coordinates.
        scale: start of the standard deviations, and the units of the coordinates.
        tolerance: largest Monte Carlo error of a mean accepted, in posterior sds (of the linear response where it is
            made, else of the guide).
        max_draws: the most fixed draws.
        max_steps: the most evaluations at one number of draws.
        response: whether to make the linear-response covariance (up to 1,000 dimensions).
        each: runs a function over a leading axis; `jax.vmap` by default.

    References:
        Giordano, Broderick and Jordan (2018), Covariances, robustness, and variational Bayes, JMLR 19. Giordano,
        Ingram and Broderick (2024), Black box variational inference with a deterministic objective, JMLR 25.
    """
    dim, dtype = centre.size, centre.dtype
    run = each or (lambda fn, z: jax.vmap(fn)(z))
    pairs = pairs_in_block(dim)
    most = max(1, max_draws // (2 * pairs))
    noise = fixed_noise(key, most, dim, dtype)
    part = _Dense if dim <= DENSE_MAX_DIM else _Products
    objective = part(lambda w: -log_density(centre + scale * w), noise, run, max_steps)

    def level(carry: tuple) -> tuple:
        blocks, phi, _, error = carry
        # The error falls as the root of the draws: as many doublings as that takes.
        doublings = jnp.clip(jnp.nan_to_num(jnp.ceil(2 * jnp.log2(jnp.max(error) / tolerance))), 1, MOST_DOUBLINGS)
        blocks = jnp.maximum(jnp.minimum(blocks << doublings.astype(blocks.dtype), most), 1)
        found = objective.optimum(phi, blocks)
        return blocks, found.x, found, objective.error(found, blocks)

    def unfinished(carry: tuple) -> Array:
        blocks, _, found, error = carry
        return (2 * blocks <= most) & jnp.isfinite(found.value) & ~(jnp.max(error) <= tolerance)

    start, unknown = (jnp.array(0), _finite_start(objective, dim, dtype)), jnp.full(dim, jnp.inf, dtype)
    shapes = jax.eval_shape(level, (*start, None, unknown))[2]
    nothing = jax.tree_util.tree_map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
    blocks, phi, found, error = jax.lax.while_loop(unfinished, level, (*start, nothing, unknown))

    covariance, definite = None, jnp.array(True)
    if dim <= DENSE_MAX_DIM or (response and dim <= RESPONSE_MAX_DIM):
        covariance, definite = objective.response(found, blocks)
        covariance = covariance * scale[:, None] * scale
    guide = MeanField(*jnp.split(phi, 2))
    return GuideFit(
        guide=affine(guide, centre, scale),
        response=covariance if response else None,
        elbo=-found.value + jnp.sum(jnp.log(scale)) + MeanField(centre, jnp.zeros_like(centre)).entropy(),
        gradient_norm=jnp.max(jnp.abs(found.gradient) * jnp.tile(guide.scale(), 2)),
        decrement=found.decrement,
        steps=found.steps,
        error=error,
        draws=2 * blocks * pairs,
        converged=found.converged & jnp.isfinite(found.value),
        definite=definite,
    )


class _Objective:
    """Minus the ELBO in phi = (a, b), without the constant of the entropy, on the first so many blocks of noise."""

    def __init__(self, negative: Callable, noise: Array, run: Callable, max_steps: int) -> None:
        self.negative, self.noise, self.run, self.max_steps = negative, noise, run, max_steps
        self.pairs, self.dim = noise.shape[1:]
        self.slope = jax.grad(self.of_draw)

    def of_draw(self, phi: Array, z: Array) -> Array:
        """``f(a + exp(b) z)``."""
        return self.negative(phi[: self.dim] + jnp.exp(phi[self.dim :]) * z)

    def mean(self, term: Callable, blocks: Any) -> Any:
        return over_blocks(term, self.noise, blocks, self.run)

    @property
    def of_entropy(self) -> Array:
        """Gradient of the entropy."""
        return jnp.repeat(jnp.array([0.0, 1.0], self.noise.dtype), self.dim)

    def of_pair(self, phi: Array, z: Array) -> Array:
        """Gradient of minus the ELBO from one antithetic pair."""
        both = jax.vmap(lambda z: self.slope(phi, z))(jnp.stack([z, -z]))
        return jnp.mean(both, axis=0) - self.of_entropy


class _Dense(_Objective):
    """With the exact Hessian."""

    def derivatives(self, phi: Array, blocks: Any) -> tuple[Array, Array, Array]:
        value, gradient, hessian = self.mean(lambda z: moments(self.negative, phi, z), blocks)
        return value - jnp.sum(phi[self.dim :]), gradient - self.of_entropy, hessian

    def optimum(self, phi: Array, blocks: Any) -> Any:
        return descend(lambda phi: self.derivatives(phi, blocks), phi, self.max_steps)

    def error(self, found: Any, blocks: Any) -> Array:
        """Monte Carlo error of the means by the sandwich, in linear-response sds."""
        inverse, _ = _inverse(found.hessian)
        of_means = inverse[: self.dim]
        squares = self.mean(lambda z: (of_means @ self.of_pair(found.x, z)) ** 2, blocks)
        return jnp.sqrt(squares / (blocks * self.pairs) / jnp.diagonal(of_means))

    def response(self, found: Any, blocks: Any) -> tuple[Array, Array]:
        inverse, definite = _inverse(found.hessian)
        return inverse[: self.dim, : self.dim], definite


class _Products(_Objective):
    """With products of the Hessian alone."""

    def evaluate(self, phi: Array, blocks: Any) -> tuple[Array, Array]:
        value, gradient = self.mean(lambda z: jax.value_and_grad(self.of_draw)(phi, z), blocks)
        return value - jnp.sum(phi[self.dim :]), gradient - self.of_entropy

    def product(self, phi: Array, v: Array, blocks: Any) -> Array:
        return self.mean(lambda z: jax.jvp(lambda p: self.slope(p, z), (phi,), (v,))[1], blocks)

    def optimum(self, phi: Array, blocks: Any) -> Any:
        return minimise_products(
            lambda phi: self.evaluate(phi, blocks),
            lambda phi, v: self.product(phi, v, blocks),
            phi,
            self.max_steps,
        )

    def error(self, found: Any, blocks: Any) -> Array:
        """The sandwich from the first block's pairs, each solved for by conjugate gradients; in the guide's sds."""
        far = jnp.array(jnp.inf, found.x.dtype)

        def solved(z: Array) -> Array:
            product = lambda v: self.product(found.x, v, blocks)
            return conjugate_gradients(product, self.of_pair(found.x, z), far, 1e-2, 200)[0][: self.dim]

        moved = jax.lax.map(solved, self.noise[0])
        return jnp.sqrt(jnp.mean(moved**2, axis=0) / (blocks * self.pairs)) / jnp.exp(found.x[self.dim :])

    def response(self, found: Any, blocks: Any) -> tuple[Array, Array]:
        """From the Hessian's blocks, a direction of u at a time: ``(H_aa - H_ab H_bb^-1 H_ba)^-1``."""
        a, b = jnp.split(found.x, 2)
        gradient = jax.grad(self.negative)

        def column(j: Array) -> tuple[Array, Array, Array]:
            unit = jnp.zeros_like(a).at[j].set(1.0)

            def term(z: Array) -> tuple[Array, Array, Array]:
                sz = jnp.exp(b) * z
                g, h = jax.jvp(gradient, (a + sz,), (unit,))
                return h, h * sz[j], sz * h * sz[j] + unit * g * sz

            return self.mean(term, blocks)

        aa, ab, bb = (m.T for m in jax.lax.map(column, jnp.arange(self.dim)))
        inverse_bb, first = _inverse(0.5 * (bb + bb.T))
        schur = 0.5 * (aa + aa.T) - ab @ inverse_bb @ ab.T
        covariance, second = _inverse(schur)
        return covariance, first & second


def moments(fun: Callable, phi: Float[Array, " 2D"], z: Float[Array, " D"]) -> tuple[Array, Array, Array]:
    """One draw's ``f(a + exp(b) z)`` with gradient and Hessian in ``phi = (a, b)``, from D Hessian-vector products."""
    a, b = jnp.split(phi, 2)
    sz = jnp.exp(b) * z
    f, g, H = value_gradient_hessian(fun, a + sz)
    mixed = H * sz
    both = sz[:, None] * mixed + jnp.diag(g * sz)
    return f, jnp.concatenate([g, g * sz]), jnp.block([[H, mixed], [mixed.T, both]])


def _finite_start(objective: _Objective, dim: int, dtype: Any) -> Float[Array, " 2D"]:
    """Means 0 and the widest scale at which the ELBO is finite."""
    starts = jnp.stack([jnp.concatenate([jnp.zeros(dim, dtype), jnp.full(dim, b, dtype)]) for b in NARROWER])
    value = lambda phi: objective.mean(lambda z: objective.of_draw(phi, z), 1)
    return starts[jnp.argmax(jnp.isfinite(jax.lax.map(value, starts)))]


def _inverse(H: Float[Array, "N N"]) -> tuple[Float[Array, "N N"], Bool[Array, ""]]:
    """Inverse by the scaled eigendecomposition, small and negative curvature lifted; and whether none had to be."""
    c = curvature(H)
    least = 100 * jnp.finfo(H.dtype).eps
    root = c.vectors / jnp.sqrt(jnp.maximum(jnp.abs(c.values), least)) / c.scale[:, None]
    return root @ root.T, jnp.all(c.values > least)
