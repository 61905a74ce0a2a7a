"""NUTS: NumPyro's kernel, traced inside one compiled program that serves every fit of the same shapes."""

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array
from numpyro.infer.hmc import hmc

from probkit.infer.batches import bar
from probkit.infer.laplace import Laplace
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown
from probkit.infer.point import start_points
from probkit.infer.target import Target
from probkit.report import Report, Seconds, timed

#: Iterations in one call of the compiled program; between calls the progress bar moves.
CHUNK = 100
#: Prior draws a chain that starts without a Laplace fit chooses from.
TRIED = 10


def guarded(potential: Callable) -> Callable:
    """+inf with a zero gradient wherever a potential or its gradient leaves the sane region.

    NumPyro's NUTS accepts steps into a region where gradients overflow (the kinetic energy becomes -inf there); R-hat
    and divergences may look fine. Outside the region this function is a wall.
    """

    @jax.custom_jvp
    def guarded_potential(z: Array) -> Array:
        value = potential(z)
        return jnp.where(jnp.isfinite(value), value, jnp.inf)

    @guarded_potential.defjvp
    def _(primals: tuple, tangents: tuple) -> tuple:
        (z,), (dz,) = primals, tangents
        value, gradient = jax.value_and_grad(potential)(z)
        limit = jnp.sqrt(jnp.finfo(z.dtype).max) * 1e-6
        sane = jnp.isfinite(value) & jnp.all(jnp.abs(gradient) < limit)
        return jnp.where(sane, value, jnp.inf), jnp.where(sane, gradient, 0.0) @ dz

    return guarded_potential


def _kernel(target: Target, centre: Array, factor: Array, options: tuple) -> tuple[Callable, Callable]:
    """NumPyro's kernel for z, with ``u = centre + factor @ z``: (start a chain, one iteration)."""
    warmup, accept, depth = options
    potential = guarded(lambda z: -target.log_density(centre + factor @ z))
    init_kernel, sample_kernel = hmc(potential, algo="NUTS")

    def start(z: Array, key: Array) -> Any:
        return init_kernel(z, warmup, target_accept_prob=accept, max_tree_depth=depth, rng_key=key)

    return start, sample_kernel


@eqx.filter_jit
def _prior_starts(target: Target, key: Array, init: dict | None, chains: int) -> tuple[Array, Array, Array]:
    """Starts without a Laplace fit: of ten prior draws a chain (or points around ``init``), the one of most density.

    Any prior draw would do for a tame density. Where most of them stand on a cliff (an explosive ARMA), a chain never
    comes down: its gradient overflows before the density does.
    """
    target = target.resolved()
    k_points, k_around = jax.random.split(key)
    points = start_points(target, k_points, TRIED * chains, init)
    if init is not None:
        points = points + 0.1 * jax.random.normal(k_around, (TRIED * chains, points.shape[1]), points.dtype)
    value, gradient = jax.lax.map(jax.value_and_grad(target.log_density), points)
    value = jnp.where(jnp.isfinite(value) & jnp.all(jnp.isfinite(gradient), axis=-1), value, -jnp.inf)
    best = jnp.argmax(value.reshape(TRIED, chains), axis=0)
    points = points.reshape(TRIED, chains, -1)[best, jnp.arange(chains)]
    return points, jnp.zeros_like(points[0]), jnp.eye(points.shape[1], dtype=points.dtype)


@eqx.filter_jit
def _begin(target: Target, centre: Array, factor: Array, z: Array, keys: Array, options: tuple) -> Any:
    """The state of every chain before its first iteration; z is (chain, D)."""
    target = target.resolved()
    start, _ = _kernel(target, centre, factor, options)
    return target.each(lambda lane: start(*lane), (z, keys))


@eqx.filter_jit
def _advance(target: Target, centre: Array, factor: Array, state: Any, options: tuple) -> tuple[Any, dict[str, Array]]:
    """Run ``CHUNK`` iterations of every chain; figures have axes (chain, iteration)."""
    target = target.resolved()
    start, sample_kernel = _kernel(target, centre, factor, options)

    def step(state: Any, _: None) -> tuple:
        state = sample_kernel(state)
        figures = {
            "z": state.z,
            "energy": state.energy,
            "diverging": state.diverging,
            "n_steps": state.num_steps,
            "acceptance_rate": state.accept_prob,
            "step_size": state.adapt_state.step_size,
        }
        return state, figures

    def chain(state: Any) -> tuple:
        start(state.z, state.rng_key)  # sets up the kernel's closures; its value is not used and not computed
        return jax.lax.scan(step, state, None, length=CHUNK)

    return target.each(chain, state)


@eqx.filter_jit
def _constrain(target: Target, centre: Array, factor: Array, z: Array) -> tuple:
    """Draws of z, (chain, draw, D), as values and terms of the density with the same axes."""
    target = target.resolved()
    flat = z.reshape(-1, z.shape[-1])
    e = target.map(lambda one: target.evaluate(centre + factor @ one), flat)
    return jax.tree_util.tree_map(lambda a: a.reshape(*z.shape[:2], *a.shape[1:]), e)


@dataclasses.dataclass(frozen=True)
class NUTS(Method):
    """The No-U-Turn sampler of NumPyro, chains vectorised, compiled once for all data of the same shapes.

    Chains start from, and are scaled by, a Laplace fit where it is usable: its covariance is the initial mass matrix,
    and a diagonal one is adapted on top of it.

    Args:
        draws: draws kept, per chain.
        warmup: iterations of adaptation, per chain.
        chains: number of chains, run as lanes of one program.
        target_accept: target acceptance probability of the step-size adaptation.
        max_tree_depth: most doublings of a trajectory.
        start_at_laplace: False starts from prior draws, with a unit mass matrix.

    References:
        Hoffman and Gelman (2014), The No-U-Turn sampler. Phan, Pradhan and Jankowiak (2019), NumPyro.
    """

    draws: int = 1000
    warmup: int = 1000
    chains: int = 4
    target_accept: float = 0.8
    max_tree_depth: int = 10
    start_at_laplace: bool = True

    def __post_init__(self) -> None:
        for name in ("draws", "warmup", "chains", "max_tree_depth"):
            check_whole(name, getattr(self, name), 1)
        if not 0 < self.target_accept < 1:
            raise ValueError(f"target_accept is {self.target_accept}; a number between 0 and 1 is wanted.")

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Sample, from a Laplace fit of the same target."""
        if not target.sites():
            return nothing_unknown(target, repr(self))
        k_fit, k_run = jax.random.split(key)
        if not self.start_at_laplace:
            return self.run_from(target, k_run, init, None, Seconds(), progress)
        found, seconds = Laplace(rounds=1).approximate(target, k_fit, init)
        return self.run_from(target, k_run, init, found, seconds, progress)

    def run_from(
        self, target: Target, key: Any, init: dict | None, found: Any, seconds: Seconds, progress: bool
    ) -> Outcome:
        """Sample, from an approximation already at hand (or None)."""
        k_start, k_run = jax.random.split(key)
        if found is not None and found.usable and found.mode.converged:
            # In the space whitened by the Laplace fit, at draws of that fit: dispersed as widely as the posterior.
            points = np.resize(
                found.draws[:: max(1, len(found.draws) // self.chains)], (self.chains, len(found.centre))
            )
            centre, factor = jnp.asarray(found.centre), jnp.asarray(found.factor)
            z0 = jnp.asarray(np.linalg.solve(found.factor, (points - found.centre).T).T)
        else:
            (z0, centre, factor), more = timed(_prior_starts, target, k_start, init, self.chains)
            seconds = seconds + more
        keys = jax.random.split(k_run, self.chains)
        options = (self.warmup, self.target_accept, self.max_tree_depth)
        state, more = timed(_begin, target, centre, factor, z0, keys, options)
        seconds = seconds + more
        kept: list[dict[str, np.ndarray]] = []
        total = self.warmup + self.draws
        with bar(total, progress, "NUTS") as shown:
            for begin in range(0, total, CHUNK):
                (state, figures), more = timed(_advance, target, centre, factor, state, options)
                seconds = seconds + more
                shown.update(min(CHUNK, total - begin))
                if begin + CHUNK > self.warmup:
                    kept.append(jax.device_get(figures))
        first = self.warmup % CHUNK
        stats = {n: np.concatenate([k[n] for k in kept], axis=1)[:, first : first + self.draws] for n in kept[0]}
        evaluation, more = timed(_constrain, target, centre, factor, stats.pop("z"))
        evaluation = jax.device_get(evaluation)
        stats["log_prior"], stats["log_likelihood"] = evaluation.log_prior, evaluation.log_likelihood
        stats["lp"] = evaluation.log_prior + evaluation.log_jacobian + evaluation.log_likelihood
        return Outcome(evaluation.values, stats, self._report(evaluation.values, stats, seconds + more))

    def _report(self, values: dict, stats: dict, seconds: Seconds) -> Report:
        """R-hat, ESS and Monte Carlo errors by ArviZ; divergences and energy from the kernel."""
        from arviz_stats.base import array_stats

        r_hat = {n: _each(array_stats.rhat, v) for n, v in values.items()}
        bulk = {n: _each(array_stats.ess, v) for n, v in values.items()}
        mcse = {n: _each(array_stats.mcse, v) for n, v in values.items()}
        sd = {n: np.std(v, axis=(0, 1), dtype=float) for n, v in values.items()}
        worst_r = max(float(np.max(v)) for v in r_hat.values()) if self.chains > 1 else float("nan")
        ess = min(float(np.min(v)) for v in bulk.values())
        energy = stats["energy"].astype(float)
        with np.errstate(invalid="ignore"):  # a chain that never left an infinite energy is told below
            spread = np.maximum(np.var(energy, axis=1), np.finfo(float).tiny)
            moves = np.sum(np.diff(energy, axis=1) ** 2, axis=1) / max(self.draws - 1, 1)
        bfmi = float(np.min(moves / spread))
        diverging = int(np.sum(stats["diverging"]))
        failed = []
        if self.chains > 1 and not worst_r <= 1.01:
            failed.append(f"R-hat {worst_r:.3f}")
        if not ess >= 100 * self.chains:
            failed.append(f"{ess:.0f} effective draws")
        if diverging:
            failed.append(f"{diverging} divergent transitions")
        if not np.all(np.isfinite(energy)) or not bfmi >= 0.3:
            failed.append(f"E-BFMI {bfmi:.2f}")
        advice = "Raise target_accept, run longer, or reparametrise (non-centred for hierarchies)." if failed else ""
        return Report(
            method=repr(self),
            rung="nuts",
            converged=not failed,
            reason=("Trouble: " + ", ".join(failed) + ".")
            if failed
            else f"R-hat {worst_r:.3f}, {ess:.0f} effective draws.",
            advice=advice,
            seconds=seconds,
            ess=ess,
            mcse=mcse,
            worst_mcse=max(float(np.max(mcse[n] / np.where(sd[n] > 0, sd[n], np.inf))) for n in mcse),
            r_hat=r_hat,
            divergences=diverging,
            bfmi=bfmi,
        )


def _each(figure: Callable, draws: np.ndarray) -> np.ndarray:
    """A diagnostic of every component of a site, (chain, draw, *shape) -> shape."""
    flat = draws.reshape(*draws.shape[:2], -1).astype(float)
    return np.array([figure(flat[..., i], chain_axis=0, draw_axis=1) for i in range(flat.shape[-1])]).reshape(
        draws.shape[2:]
    )
