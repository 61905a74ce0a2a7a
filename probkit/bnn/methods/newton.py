"""One member of a Laplace mixture: damped Gauss-Newton steps, scales and noise by evidence, and the curvature there."""

from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from probkit.bnn.ggn import (
    Inverse,
    diagonal,
    diagonal_inverse,
    gauss_newton,
    inverse,
    kronecker,
    kronecker_inverse,
    log_evidence,
    update_precisions,
)
from probkit.bnn.layers import by_layer, by_weight, layer_terms, shapes_of
from probkit.bnn.local import jacobian
from probkit.bnn.methods.common import is_weight, start_point
from probkit.bnn.weights import WeightLaw
from probkit.infer.target import Target
from probkit.likelihoods import Gaussian
from probkit.math.optimise import minimise
from probkit.model import Given, bind, is_place

#: A net is done when a step promises less than this, in nats, and its evidence moves by no more.
TOLERANCE = 0.1


class Layout(NamedTuple):
    """Where things are in the unconstrained vector, and the prior of the weights; static but for ``alpha``.

    Attributes:
        weights: positions of the weights in hand, (d,).
        others: positions of everything that is no weight.
        base: precision of each weight at scale 1 (its fan-in).
        centre: mean of each weight under its prior.
        group: which array it is in.
        where: positions of those arrays among the arrays of the net.
    """

    weights: np.ndarray
    others: np.ndarray
    base: np.ndarray
    centre: np.ndarray
    group: np.ndarray
    where: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Number of arrays."""
        return len(self.where)


def layout(target: Target, last: bool) -> Layout:
    """Read the places of the weights off a resolved net; ``last`` takes those of the last layer alone."""
    flat, _ = jax.tree_util.tree_flatten_with_path(target.model.net, is_leaf=is_place)
    arrays = [i for i, (_, leaf) in enumerate(flat) if isinstance(leaf, Given) or eqx.is_inexact_array(leaf)]
    held: list[tuple[int, tuple, WeightLaw]] = []
    for i, (path, leaf) in enumerate(flat):
        if isinstance(leaf, Given) and isinstance(leaf.fn, WeightLaw):
            held.append((i, path, leaf.fn))
    if last:
        held = [one for one in held if one[1][:-1] == held[-1][1][:-1]]
    start, offsets = 0, {}
    for name, (_, shape) in target.sites().items():
        offsets[name] = start
        start += int(np.prod(shape))
    parts: list[tuple] = []
    for g, (_, path, law) in enumerate(held):
        name = "net" + "".join(f".{_key(k)}" for k in path)
        size = int(np.prod(law.shape))
        parts.append(
            (offsets[name] + np.arange(size), np.full(size, law.fan), np.full(size, law.centre), np.full(size, g))
        )
    weights, base, centre, group = (np.concatenate(p) for p in zip(*parts, strict=True))
    others = np.flatnonzero(~is_weight(target))
    where = tuple(arrays.index(i) for i, _, _ in held)
    return Layout(weights, others, base.astype(float), centre, group, where)


def _key(key: Any) -> str:
    return str(getattr(key, "name", getattr(key, "key", getattr(key, "idx", key))))


class Options(NamedTuple):
    """Static options of one member's program."""

    steps: int
    evidence: bool
    move: bool
    structure: str


class State(NamedTuple):
    """One member under way."""

    u: Float[Array, " D"]
    alpha: Float[Array, " groups"]
    damping: Float[Array, ""]
    value: Float[Array, ""]
    determined: Float[Array, ""]
    evidence: Float[Array, ""]
    change: Float[Array, ""]
    step: Int[Array, ""]


class Fitted(NamedTuple):
    """One member: where it ended, and the root of its covariance: as :mod:`probkit.bnn.ggn` gives it."""

    u: Float[Array, " D"]
    factor: Any
    alpha: Float[Array, " groups"]
    determined: Float[Array, ""]
    evidence: Float[Array, ""]
    change: Float[Array, ""]
    step: Int[Array, ""]


class Net:
    """A net and its data in the terms of :mod:`probkit.bnn.ggn`; made anew in every trace."""

    def __init__(self, target: Target, place: Layout) -> None:
        self.target, self.place = target, place
        self.y, self.X = target.args
        dtype = target.dtype
        self.base, self.centre = jnp.asarray(place.base, dtype), jnp.asarray(place.centre, dtype)

    def model(self, u: Array) -> Any:
        """The net at u."""
        return bind(self.target.model, self.target.evaluate(u).values)

    def log_likelihood(self, u: Array) -> Array:
        """Log density of the data at u."""
        return self.target.evaluate(u).log_likelihood

    def derivatives(self, u: Array) -> tuple[Array, Array, Array, Array]:
        """Latent values, their Jacobian, the score of the observations on them and the information."""
        model = self.model(u)
        f, J = jacobian(model, self.X, self.place.where)
        score = jax.grad(lambda f: jnp.sum(model.likelihood.law(f).log_prob(self.y)))(f)
        return f, J, score, model.likelihood.fisher(f)

    def curvature(self, u: Array, structure: str) -> Any:
        """The part of the data in the Gauss-Newton matrix: whole, its diagonal, or two factors of each layer."""
        if structure == "kfac":
            model = self.model(u)
            f, layers = layer_terms(model, self.X, self.place.where)
            return [kronecker(a, g, model.likelihood.fisher(f)) for a, g in layers]
        _, J, _, information = self.derivatives(u)
        return diagonal(J, information) if structure == "diagonal" else gauss_newton(J, information)

    def inverse(self, u: Array, data: Any, P: Array) -> Inverse:
        """Inverse of the matrix of data and prior, in the form of what :meth:`curvature` gave."""
        if isinstance(data, list):
            shapes = shapes_of(self.model(u).net, self.place.where)
            # The precisions of a layer's weights differ by input alone.
            precisions = [p[0] for p in by_layer(P, shapes)]
            found = [kronecker_inverse(A, G, p) for (A, G), p in zip(data, precisions, strict=True)]
            every = by_weight([one.diagonal for one in found], shapes)
            log_det = jnp.sum(jnp.stack([one.log_det for one in found]))
            return Inverse(tuple(one.root for one in found), every, log_det)
        return diagonal_inverse(data + P) if data.ndim == 1 else inverse(data + jnp.diag(P))

    def precision(self, alpha: Array) -> Array:
        """Prior precision of each weight."""
        return self.base * alpha[jnp.asarray(self.place.group)]

    def deviation(self, u: Array) -> Array:
        """Weights less the mean of their prior."""
        return u[jnp.asarray(self.place.weights)] - self.centre

    def objective(self, u: Array, alpha: Array) -> Array:
        """Log posterior of the weights, the scales given."""
        value = self.log_likelihood(u) - 0.5 * jnp.sum(self.precision(alpha) * self.deviation(u) ** 2)
        return jnp.where(jnp.isfinite(value), value, -jnp.inf)

    def with_noise(self, u: Array, determined: Array) -> Array:
        """u with the parameters of the likelihood refreshed: a Gaussian's noise less the weights determined."""
        others = jnp.asarray(self.place.others)
        if others.size == 0:
            return u
        names = [name for name in self.target.sites() if not name.startswith("net.")]
        if isinstance(self.target.model.likelihood, Gaussian) and names == ["likelihood.scale"]:
            f = self.model(u).latent(self.X)[:, 0]
            left = jnp.maximum(self.y.shape[0] - determined, 0.05 * self.y.shape[0])
            scale = jnp.sqrt(jnp.sum((self.y - f) ** 2) / left)
            least = jnp.finfo(u.dtype).eps * 8 * (jnp.max(jnp.abs(self.y)) + jnp.finfo(u.dtype).tiny)
            return self.set("likelihood.scale", u, jnp.maximum(scale, least))

        def negative(h: Array) -> Array:
            e = self.target.evaluate(u.at[others].set(h))
            return -(e.log_likelihood + self.hyperprior(u.at[others].set(h)))

        found = minimise(negative, u[others], 5)
        return u.at[others].set(jnp.where(jnp.all(jnp.isfinite(found.x)), found.x, u[others]))

    def hyperprior(self, u: Array) -> Array:
        """Log prior of everything that is no weight."""
        total = jnp.zeros((), u.dtype)
        values = self.target.evaluate(u).values

        def draw(name: str, law: Any, scale: Any = None) -> Array:
            nonlocal total
            if not name.startswith("net."):
                total = total + jnp.sum(law.log_prob(values[name]))
            return values[name]

        self.target.execute(draw)
        return total

    def set(self, name: str, u: Array, value: Array) -> Array:
        """u with one site at a value."""
        values = dict(self.target.evaluate(u).values) | {name: value}
        return self.target.unconstrain(lambda site, law: values[site])


def _precisions(net: Net, u: Array) -> Array:
    """``alpha`` as the model says: one over its squared scales."""
    scale = jnp.asarray(net.model(u).prior.scale, u.dtype)
    # The arrays in hand are the last ones, be they all of them or those of the last layer.
    return (scale[-net.place.groups :] if scale.ndim else jnp.broadcast_to(scale, net.place.groups)) ** -2.0


@eqx.filter_jit
def fit_member(target: Target, u: Array, place: Any, options: Options) -> Fitted:
    """Damped Gauss-Newton steps and evidence in turn, from u; then the covariance there."""
    net = Net(target, place.value)
    alpha = _precisions(net, u)
    zero = jnp.zeros((), u.dtype)
    still = not options.move and place.value.others.size == 0
    # Nets that stay, with no noise to learn, have one curvature.
    once = net.curvature(u, options.structure) if still else None

    def going(s: State) -> Array:
        return (s.step < options.steps) & (s.change > TOLERANCE) & (s.damping < 1e8)

    def advance(s: State) -> State:
        deviation, P = net.deviation(s.u), net.precision(s.alpha)
        u, damping, gain = s.u, s.damping, zero
        if not options.move:
            data = net.curvature(s.u, options.structure) if once is None else once
        else:
            _, J, score, information = net.derivatives(s.u)
            data = gauss_newton(J, information)
            A = data + jnp.diag(P)
            slope = jnp.einsum("nk,nkd->d", score, J) - P * deviation
            damped = inverse(A + s.damping * jnp.diag(jnp.diagonal(A)))
            step = damped.root @ (damped.root.T @ slope)
            trial = s.u.at[jnp.asarray(net.place.weights)].add(step)
            before, after = net.objective(s.u, s.alpha), net.objective(trial, s.alpha)
            better = after > before
            u = jnp.where(better, trial, s.u)
            damping = jnp.where(better, jnp.maximum(s.damping / 5, 1e-6), s.damping * 4)
            gain = jnp.where(better, after - before, jnp.where(jnp.isfinite(after), 0.5 * slope @ step, jnp.inf))
        # Scales and noise by the curvature of the point left, which costs no second Jacobian.
        found = net.inverse(s.u, data, P)
        evidence = log_evidence(net.log_likelihood(s.u), deviation, P, found.log_det)
        update = update_precisions(
            net.deviation(u), P, found.diagonal, net.base, jnp.asarray(net.place.group), net.place.groups
        )
        ready = (s.step >= 3) & jnp.all(jnp.isfinite(update.alpha))
        new_alpha = jnp.where(ready, update.alpha, s.alpha) if options.evidence else s.alpha
        determined = jnp.where(ready, jnp.sum(update.determined), 0.0)
        u = net.with_noise(u, determined)
        change = jnp.maximum(gain, jnp.where(s.step > 4, jnp.abs(evidence - s.evidence), jnp.inf))
        return State(u, new_alpha, damping, net.objective(u, new_alpha), determined, evidence, change, s.step + 1)

    far = jnp.array(jnp.inf, u.dtype)
    start = State(u, alpha, jnp.array(1e-2, u.dtype), -far, zero, -far, far, jnp.array(0))
    s = jax.lax.while_loop(going, advance, start)
    P = net.precision(s.alpha)
    found = net.inverse(s.u, net.curvature(s.u, options.structure) if once is None else once, P)
    evidence = log_evidence(net.log_likelihood(s.u), net.deviation(s.u), P, found.log_det)
    return Fitted(s.u, found.root, s.alpha, s.determined, evidence, s.change, s.step)


class Held:
    """A static argument compared by content: arrays of a layout."""

    def __init__(self, value: Layout) -> None:
        self.value = value
        self._key = tuple(a.tobytes() if isinstance(a, np.ndarray) else a for a in value)

    def __hash__(self) -> int:
        return hash(self._key)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Held) and self._key == other._key


@eqx.filter_jit
def start_points(target: Target, keys: Array, init: dict | None) -> Array:
    """Where the members start, (member, D)."""
    return jax.vmap(lambda key: start_point(target, key, init))(keys)
