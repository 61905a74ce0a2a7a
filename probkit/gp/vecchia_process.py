"""Gaussian processes by nearest neighbours as a solver: each observation given a few of those before it."""

import dataclasses
import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.typing import ArrayLike
from jaxtyping import Array, Float, Int, Num

from probkit.gp import kernels, vecchia
from probkit.gp.distribution import Process

#: Observations whose small factors are made at once.
LANES = 256


class Vecchia(eqx.Module):
    """The solver by nearest neighbours: each observation given the nearest of those before it, O(n neighbours³).

    Approximate, and exact from ``neighbours = n - 1`` on: the better, the more the neighbours tell. Memory grows with n
    and not with ``n neighbours²``. Observations are ordered from coarse to fine over the inputs; distances count each
    column in units of its spread. Leave-one-out terms and predictions are each given the nearest observations on all
    sides, place by place. Any covariance.

    Args:
        neighbours: how many; static.
        order: the order of the observations, (n,). Default: made when the model is fitted.
        near: the neighbours of each among those before it, (n, neighbours), -1 for none. Default: likewise.
        around: the nearest others of each, (n, neighbours). Default: likewise.

    References:
        Vecchia (1988), Estimation and model identification for continuous spatial processes. Guinness (2018),
        Permutation and grouping methods for sharpening Gaussian process approximations. Katzfuss and Guinness (2021), A
        general framework for Vecchia approximations of Gaussian processes.
    """

    neighbours: int = eqx.field(static=True, default=30)
    order: Int[Array, " n"] | None = None
    near: Int[Array, "n m"] | None = None
    around: Int[Array, "n m"] | None = None

    def __check_init__(self) -> None:
        if isinstance(self.neighbours, bool) or not isinstance(self.neighbours, int) or self.neighbours < 1:
            raise ValueError(f"neighbours is {self.neighbours!r}; a whole number of at least 1 is wanted.")

    def prepared(self, y: Any, X: Any) -> "Vecchia":
        """The same with order and neighbours found for the data; missing values are nobody's neighbours.

        Raises:
            ValueError: y is several series, (n, lanes), with gaps in different places.
        """
        seen = ~np.isnan(np.asarray(y)).reshape(len(X), -1)
        if np.any(seen != seen[:, :1]):
            raise ValueError(
                "the series have missing values in different places, and gp.Vecchia gives them all the same "
                "neighbours; fit them one by one, or use gp.Sparse()."
            )
        order, near, around = nearest(np.asarray(kernels.columns(X), float), seen[:, 0], self.neighbours)
        return dataclasses.replace(self, order=jnp.asarray(order), near=jnp.asarray(near), around=jnp.asarray(around))

    def distribution(self, kernel: Any, X: Any, noise_scale: Any, loc: Any) -> "VecchiaProcess":
        """The law of y."""
        if self.order is None or self.near is None or self.around is None:
            raise ValueError("the neighbours of gp.Vecchia are not known: fit the model, or call prepared(y, X).")
        return VecchiaProcess(kernel, X, noise_scale, loc, self.order, self.near, self.around)

    def told(self, kernel: Any, X: Any) -> str:
        """What a report says of this solver."""
        return f"Approximate: each observation given {self.neighbours} nearest ones before it, gp.Vecchia."


def nearest(X: np.ndarray, seen: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """An order of the rows from coarse to fine, and the neighbours of each, (n, count), -1 where there are fewer.

    Returns:
        The order, the nearest seen rows before each row in it, and the nearest other seen rows.
    """
    from scipy.spatial import cKDTree

    spread = X.std(0)
    Z = (X - X.mean(0)) / np.where(spread > 0, spread, 1.0)
    order = _coarse_to_fine(Z)
    order = np.concatenate([order[seen[order]], order[~seen[order]]])
    held = int(seen.sum())
    place = np.empty(len(X), int)
    place[order] = np.arange(len(X))

    def search(rows: np.ndarray, among: int, before: bool) -> np.ndarray:
        """The nearest of the first ``among`` of the order; more are asked for until enough of them may count."""
        tree, found = cKDTree(Z[order[:among]]), np.full((len(rows), count), -1)
        asked, left = 3 * count + 1, np.arange(len(rows))
        while len(left):
            asked = min(asked, among)
            near = tree.query(Z[rows[left]], asked)[1].reshape(len(left), asked)
            allowed = near < place[rows[left]][:, None] if before else near != place[rows[left]][:, None]
            first = np.argsort(~allowed, axis=1, kind="stable")[:, :count]  # the allowed ones, nearest first
            chosen = np.where(np.take_along_axis(allowed, first, 1), order[np.take_along_axis(near, first, 1)], -1)
            found[left, : chosen.shape[1]] = chosen
            left = left[(allowed.sum(1) < count) & (asked < among)]
            asked *= 2
        return found

    near, begin = np.full((len(X), count), -1), 0
    while begin < held:
        end = min(max(2 * begin, 4 * count), held)
        near[order[begin:end]] = search(order[begin:end], end, True)
        begin = end
    if held < len(X):
        near[order[held:]] = search(order[held:], held, True)
    return order, near, search(np.arange(len(X)), held, False)


def _coarse_to_fine(Z: np.ndarray) -> np.ndarray:
    """Rows along a space-filling curve, visited in bit-reversed order: every beginning is spread over all."""
    n, D = Z.shape
    bits = max(1, min(16, 62 // D))
    span = np.ptp(Z, axis=0)
    steps = ((Z - Z.min(0)) / np.where(span > 0, span, 1.0) * (2**bits - 1)).astype(np.int64)
    code = np.zeros(n, np.int64)
    for bit in reversed(range(bits)):
        for d in range(min(D, 62 // bits)):
            code = 2 * code + (steps[:, d] >> bit & 1)
    along = np.argsort(code, kind="stable")
    levels = max(1, (n - 1).bit_length())
    index, turned = np.arange(2**levels), np.zeros(2**levels, np.int64)
    for bit in range(levels):
        turned |= (index >> bit & 1) << (levels - 1 - bit)
    return along[turned[turned < n]]


class VecchiaProcess(Process):
    """Noisy values of a process by nearest neighbours; arguments as in :class:`probkit.gp.GaussianProcess`.

    Args:
        kernel: any covariance.
        X: inputs, (n,) or (n, D).
        noise_scale: standard deviation of the noise, a scalar or (n,).
        loc: the mean, a scalar or a callable pytree.
        order: the order of the observations, (n,).
        near: indices of the neighbours of each among those before it, (n, m), -1 for none.
        around: indices of the nearest others, (n, m).

    References:
        Vecchia (1988), Estimation and model identification for continuous spatial processes.
    """

    pytree_data_fields: tuple[str, ...] = ("order", "near", "around")

    def __init__(
        self,
        kernel: Any,
        X: Any,
        noise_scale: Any,
        loc: Any,
        order: Any,
        near: Any,
        around: Any,
        *,
        validate_args: Any = None,
    ):
        self.order, self.near, self.around = order, near, around
        super().__init__(kernel, X, noise_scale, loc, validate_args=validate_args)
        if jnp.shape(near)[:1] != self.X.shape[:1]:
            raise ValueError(f"near has shape {jnp.shape(near)}; X has {len(self.X)} rows, one for each is wanted.")

    def _given(self, r: Array, X: Array, own: Array, noise: Array, near: Array, weights: bool = False) -> tuple:
        """Errors and variances of values with residuals ``own`` at X given neighbours among the data, in chunks."""
        count = X.shape[0]
        chunks = -(-count // LANES)
        pad = lambda a, value=0: jnp.concatenate([a, jnp.full((chunks * LANES - count, *a.shape[1:]), value, a.dtype)])
        cut = lambda a: a.reshape(chunks, LANES, *a.shape[1:])
        parts = (cut(pad(X)), cut(pad(own)), cut(pad(noise, 1)), cut(pad(near, -1)))

        @jax.checkpoint  # so that memory stays that of one chunk
        def one(part: tuple) -> tuple:
            X, own, noise, near = part
            seen = (near >= 0) & ~jnp.isnan(r[near])
            K = self._blocks(jnp.concatenate([self.X[near], X[:, None]], axis=1))
            seen = seen.T
            value = jnp.where(seen, jnp.nan_to_num(r[near].T), 0.0)
            among = K[:-1, :-1] + jnp.eye(near.shape[1], dtype=K.dtype)[:, :, None] * self.noise[near].T[None]
            fill = jax.lax.stop_gradient(K[-1, -1] + noise)
            alone = jnp.eye(near.shape[1], dtype=K.dtype)[:, :, None] * jnp.where(fill > 0, fill, 1.0)
            among = jnp.where(seen[:, None] & seen[None, :], among, alone)
            m = vecchia.moments(among, jnp.where(seen, K[:-1, -1], 0.0), K[-1, -1] + noise, value, own)
            return (m.error, m.variance, m.weights.T) if weights else (m.error, m.variance)

        found = jax.lax.map(one, parts)
        return tuple(a.reshape(chunks * LANES, *a.shape[2:])[:count] for a in found)

    def _blocks(self, points: Float[Array, "lanes p *D"]) -> Float[Array, "p p lanes"]:
        """Covariances within each group of points, lanes last."""
        kernel: Any = self.kernel
        if not hasattr(kernel, "embed"):
            return jnp.moveaxis(jax.vmap(lambda P: kernel(P, P))(points), 0, 2)
        lanes, p = points.shape[:2]
        Z = kernel.embed(points.reshape(lanes * p, *points.shape[2:])).reshape(lanes, p, -1)
        columns = [Z[:, :, d].T for d in range(Z.shape[2])]
        squares = [(z[:, None] - z[None, :]) ** 2 for z in columns]
        s = sum(squares[1:], squares[0])
        return jnp.asarray(kernel.scale, s.dtype) ** 2 * type(kernel).correlation(s, *kernel.shape())

    def sample(self, key: Array, sample_shape: tuple[int, ...] = ()) -> Float[Array, "*sample n"]:
        """Draws of y, one observation after the other in the order."""
        zero = jnp.zeros(self.event_shape, self.X.dtype)
        _, variance, b = self._given(zero, self.X, zero, self.noise, self.near, weights=True)
        z = jnp.sqrt(variance) * jax.random.normal(key, (*sample_shape, *self.event_shape), self.X.dtype)

        def one(z: Array) -> Array:
            def step(y: Array, i: Array) -> tuple[Array, None]:
                held = jnp.where(self.near[i] >= 0, y[self.near[i]], 0.0)
                return y.at[i].set(jnp.sum(b[i] * held) + z[i]), None

            return jax.lax.scan(step, zero, self.order)[0]

        return self.mean + jax.vmap(one)(z.reshape(-1, *self.event_shape)).reshape(z.shape)

    def log_prob(self, value: Num[ArrayLike, "*sample n"], intermediates: None = None) -> Float[Array, "*sample"]:
        """Sum of the log densities of the observed entries, each given its neighbours.

        Args:
            value: y, shape (..., n); NaN is missing.
            intermediates: not used; part of NumPyro's signature.
        """
        residual = self._observations(value) - self.mean

        def one(r: Array) -> Array:
            seen = ~jnp.isnan(r)
            e, F = self._given(r, self.X, jnp.where(seen, r, 0.0), self.noise, self.near)
            terms = jnp.where(seen, -0.5 * (e * e / F + jnp.log(2.0 * math.pi * F)), 0.0)
            total = jnp.sum(terms)
            return jnp.where(jnp.isfinite(total), total, -jnp.inf)

        each = jnp.vectorize(one, signature="(n)->()")(residual)
        return jnp.where(jnp.any(jnp.isnan(self.mean)), -jnp.inf, each)

    def leave_one_out(self, y: Num[ArrayLike, " n"]) -> dist.Normal:
        """The law of each y_i given its nearest others, batch shape (n,)."""
        r = self._observations(y) - self.mean
        e, F = self._given(r, self.X, jnp.zeros_like(r), self.noise, self.around)
        return dist.Normal(self.mean - e, jnp.sqrt(F), validate_args=False)

    def representer(self, y: Num[ArrayLike, " n"]) -> Float[Array, " n"]:
        """Not to be had: neighbours make no function.

        Raises:
            TypeError: always.
        """
        raise TypeError("gp.Vecchia predicts one place at a time, so it draws no functions; use gp.Sparse or gp.Exact.")

    def predict(self, y: Num[ArrayLike, " n"], X_new: Num[ArrayLike, "m *D"] | None = None) -> dist.Distribution:
        """The marginal laws of fresh noisy observations at the training inputs or at new ones, given y.

        Args:
            y: observations, shape (n,); NaN is missing.
            X_new: new inputs, (m,) or (m, D). None stands for the training inputs.
        """
        r = self._observations(y) - self.mean
        if X_new is None:
            law = self.leave_one_out(y)
            others, signal = law.mean - self.mean, law.variance - self.noise  # of the function, without y_i
            share = jnp.where(jnp.isnan(r), 0.0, signal / law.variance)
            mean = others + share * (jnp.nan_to_num(r) - others)
            variance = signal * (1.0 - share) + self.noise
            return dist.Normal(self.mean + mean, jnp.sqrt(variance), validate_args=False).to_event(1)
        X_new = self._new_inputs(X_new)
        zero = jnp.zeros(X_new.shape[:1], r.dtype)
        e, F = self._given(r, X_new, zero, self.fresh_noise_at(X_new), self._nearest(r, X_new))
        return dist.Normal(self.mean_at(X_new) - e, jnp.sqrt(F), validate_args=False).to_event(1)

    def forecast(self, y: Num[ArrayLike, " n"], horizon: int, X_new: Any = None) -> dist.Distribution:
        """Not to be had: a forecast is of paths, and new places are predicted one at a time.

        Raises:
            TypeError: always.
        """
        raise TypeError(
            "gp.Vecchia predicts one place at a time, so it draws no paths into the future; use predict(X_new), or "
            "gp.Exact(), gp.Markov() or gp.Sparse(), which forecast."
        )

    def _nearest(self, r: Array, X_new: Array) -> Int[Array, "k m"]:
        """The nearest observed inputs of each new one, distances in units of the spread of each column."""
        A, B = kernels.columns(self.X), kernels.columns(X_new)
        spread = jnp.std(A, axis=0)
        A, B = (kernels.centred(Z, A) / jnp.where(spread > 0, spread, 1.0) for Z in (A, B))
        far = jnp.where(jnp.isnan(r), jnp.inf, 0.0)

        def one(b: Array) -> Array:
            distance, index = jax.lax.top_k(-(jnp.sum((A - b) ** 2, axis=1) + far), min(self.near.shape[1], len(A)))
            return jnp.where(jnp.isfinite(distance), index, -1)

        return jax.lax.map(one, B, batch_size=16)
