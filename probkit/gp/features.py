"""Random features: functions whose products have a covariance as their mean, ``E[psi(x) psi(x')] = k(x, x')``.

A weighted sum of them with independent standard normal weights is a function of the prior that can be evaluated
anywhere. Stationary covariances give waves with frequencies from the spectral density; a product of covariances
multiplies features, a sum adds them under random signs.
"""

import math
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from probkit.gp import kernels
from probkit.gp.covariance import ChangePoint, Power, Product, Sum, Warped
from probkit.gp.product_covariances import ArcCosine, Categorical, Constant, Coregion, Linear, Polynomial
from probkit.gp.stationary_covariances import (
    RBF,
    Cosine,
    Matern,
    Periodic,
    RationalQuadratic,
    SpectralMixture,
    selected,
)
from probkit.math.linalg import matmul, safe_cholesky


@singledispatch
def random_features(
    kernel: Any, key: Array, count: int, X: Float[Array, "n *D"], origin: Float[Array, "*D"]
) -> Float[Array, "n count"]:
    """Random features of a covariance at inputs: the same functions for the same key, whatever the inputs.

    Register a covariance of your own with ``random_features.register(Mine)``.

    Args:
        kernel: the covariance.
        key: a new-style key, which stands for the draw of the features.
        count: how many; even.
        X: inputs, (n,) or (n, D).
        origin: an input in the midst of the data, (D,) or a scalar: waves are reckoned from there, so that a large
            offset costs no digits.

    Raises:
        TypeError: the covariance has no random features here.

    References:
        Rahimi and Recht (2007), Random features for large-scale kernel machines.
    """
    raise TypeError(
        f"{type(kernel).__name__} has no random features; pass places=, inputs at which functions are drawn exactly."
    )


def _waves(key: Array, phase: Array) -> Array:
    """``sqrt(2) cos(phase + b)`` with uniform b, each wave with its twin a quarter ahead: their squares sum to 2."""
    b = jax.random.uniform(key, phase.shape[1:], phase.dtype, 0.0, 2.0 * math.pi)
    return math.sqrt(2.0) * jnp.concatenate([jnp.cos(phase + b), jnp.sin(phase + b)], axis=1)


def _from_origin(kernel: Any, X: Array, origin: Array) -> Array:
    return kernels.columns(selected(X, kernel.columns)) - kernels.columns(selected(origin[None], kernel.columns))


def _mixed(kernel: Any, key: Array, half: int, dtype: Any) -> Array:
    """Lengths by which normal frequencies are multiplied: the mixing law of a scale mixture of RBFs."""
    if isinstance(kernel, Matern):  # a Student-t law: normal over the root of chi²(2 nu) / (2 nu)
        return jax.lax.rsqrt(jax.random.gamma(key, kernel.order, (half, 1), dtype) / kernel.order)
    if isinstance(kernel, RationalQuadratic):
        alpha = jnp.asarray(kernel.alpha, dtype)
        return jnp.sqrt(jax.random.gamma(key, alpha, (half, 1), dtype) / alpha)
    return jnp.ones((half, 1), dtype)


@random_features.register(RBF)
@random_features.register(Matern)
@random_features.register(RationalQuadratic)
def _isotropic(kernel: Any, key: Array, count: int, X: Array, origin: Array) -> Array:
    k_wave, k_mix, k_phase = jax.random.split(key, 3)
    Z = _from_origin(kernel, X, origin) / jnp.asarray(kernel.lengthscale, X.dtype)
    omega = jax.random.normal(k_wave, (count // 2, Z.shape[1]), Z.dtype) * _mixed(kernel, k_mix, count // 2, Z.dtype)
    return kernel.scale * _waves(k_phase, matmul(Z, omega.T))


@random_features.register
def _periodic(kernel: Periodic, key: Array, count: int, X: Array, origin: Array) -> Array:
    k_one, k_two, k_phase = jax.random.split(key, 3)
    Z = _from_origin(kernel, X, origin)
    # exp(q (cos t - 1)) with q = 1 / lengthscale² has Fourier weights exp(-q) I_m(q): a difference of two Poissons.
    q = jnp.broadcast_to(jnp.asarray(kernel.lengthscale, Z.dtype) ** -2, Z.shape[1:])
    shape = (count // 2, Z.shape[1])
    m = jax.random.poisson(k_one, 0.5 * q, shape) - jax.random.poisson(k_two, 0.5 * q, shape)
    phase = matmul(2.0 * math.pi * Z / jnp.asarray(kernel.period, Z.dtype), m.astype(Z.dtype).T)
    return kernel.scale * _waves(k_phase, phase)


@random_features.register
def _cosine(kernel: Cosine, key: Array, count: int, X: Array, origin: Array) -> Array:
    Z = _from_origin(kernel, X, origin) / jnp.asarray(kernel.period, X.dtype)
    phase = 2.0 * math.pi * jnp.sum(Z, axis=1)[:, None]
    return kernel.scale * _waves(key, jnp.broadcast_to(phase, (len(Z), count // 2)))


@random_features.register
def _mixture(kernel: SpectralMixture, key: Array, count: int, X: Array, origin: Array) -> Array:
    k_which, k_sign, k_wave, k_phase = jax.random.split(key, 4)
    Z = _from_origin(kernel, X, origin)
    shape, half = (kernel.components, Z.shape[1]), count // 2
    weights = jnp.asarray(kernel.scales, Z.dtype) ** 2
    which = jax.random.categorical(k_which, jnp.log(weights), shape=(half,))
    # Signs of their own for each column: the covariance is a product of cosines.
    sign = jax.random.rademacher(k_sign, (half, Z.shape[1]), Z.dtype)
    middle, width = (jnp.reshape(jnp.asarray(v, Z.dtype), shape)[which] for v in (kernel.frequencies, kernel.widths))
    nu = sign * middle + width * jax.random.normal(k_wave, middle.shape, Z.dtype)
    return jnp.sqrt(jnp.sum(weights)) * _waves(k_phase, 2.0 * math.pi * matmul(Z, nu.T))


@random_features.register
def _constant(kernel: Constant, key: Array, count: int, X: Array, origin: Array) -> Array:
    return jnp.broadcast_to(jnp.sqrt(jnp.asarray(kernel.variance, X.dtype)), (len(X), count))


@random_features.register
def _linear(kernel: Linear, key: Array, count: int, X: Array, origin: Array) -> Array:
    U = kernel._scaled(selected(X, kernel.columns))
    return matmul(U, jax.random.normal(key, (U.shape[1], count), U.dtype))


@random_features.register
def _polynomial(kernel: Polynomial, key: Array, count: int, X: Array, origin: Array) -> Array:
    U = kernel._scaled(selected(X, kernel.columns))
    U = jnp.concatenate([U, jnp.broadcast_to(jnp.asarray(kernel.offset, U.dtype), (len(U), 1))], axis=1)
    Z = jax.random.normal(key, (kernel.degree, U.shape[1], count), U.dtype)
    return kernel.scale * jnp.prod(matmul(U, Z), axis=0)


@random_features.register
def _arc_cosine(kernel: ArcCosine, key: Array, count: int, X: Array, origin: Array) -> Array:
    U = kernel._augmented(selected(X, kernel.columns))[0]
    a = matmul(U, jax.random.normal(key, (U.shape[1], count), U.dtype))
    unit = jnp.where(a > 0, 1.0, 0.0) if kernel.order == 0 else jnp.maximum(a, 0.0) ** kernel.order
    return kernel.scale * math.sqrt((2.0, 2.0, 2.0 / 3.0)[kernel.order]) * unit


@random_features.register(Categorical)
@random_features.register(Coregion)
def _levels(kernel: Any, key: Array, count: int, X: Array, origin: Array) -> Array:
    every = jnp.broadcast_to(jnp.arange(kernel.levels, dtype=X.dtype)[:, None], (kernel.levels, kernel.column + 1))
    L, _ = safe_cholesky(kernel(every, every))
    drawn = matmul(L, jax.random.normal(key, (kernel.levels, count), X.dtype))
    return drawn[jnp.clip(jnp.round(kernels.columns(X)[:, kernel.column]).astype(int), 0, kernel.levels - 1)]


@random_features.register
def _sum(kernel: Sum, key: Array, count: int, X: Array, origin: Array) -> Array:
    total = jnp.zeros((len(X), count), X.dtype)
    for k, part in zip(jax.random.split(key, len(kernel.parts)), kernel.parts.values(), strict=True):
        k_sign, k_part = jax.random.split(k)
        sign = jax.random.rademacher(k_sign, (count,), X.dtype)  # so that the parts' cross terms have mean 0
        total = total + sign * random_features(part, k_part, count, X, origin)
    return total


@random_features.register
def _product(kernel: Product, key: Array, count: int, X: Array, origin: Array) -> Array:
    value = jnp.ones((len(X), count), X.dtype)
    for k, part in zip(jax.random.split(key, len(kernel.parts)), kernel.parts.values(), strict=True):
        value = value * random_features(part, k, count, X, origin)
    return value


@random_features.register
def _power(kernel: Power, key: Array, count: int, X: Array, origin: Array) -> Array:
    keys = jax.random.split(key, kernel.exponent)
    return jnp.prod(jnp.stack([random_features(kernel.kernel, k, count, X, origin) for k in keys]), axis=0)


@random_features.register
def _warped(kernel: Warped, key: Array, count: int, X: Array, origin: Array) -> Array:
    return random_features(kernel.kernel, key, count, kernel.warp(X), kernel.warp(origin[None])[0])


@random_features.register
def _change_point(kernel: ChangePoint, key: Array, count: int, X: Array, origin: Array) -> Array:
    k_sign, k_before, k_after = jax.random.split(key, 3)
    w = kernel._weight(X)[:, None]
    sign = jax.random.rademacher(k_sign, (count,), X.dtype)
    before = random_features(kernel.before, k_before, count, X, origin)
    return (1.0 - w) * before + sign * w * random_features(kernel.after, k_after, count, X, origin)
