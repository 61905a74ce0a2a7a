"""Deterministic variational inference as a method: options, the verdict and its report."""

import dataclasses
from typing import Any

import jax
import numpy as np

from probkit.infer.importance import LEAST_POOL, WORST_MCSE, least_ess
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown, one_chain
from probkit.infer.target import Target
from probkit.infer.variational import Variational, approximate
from probkit.math.optimise import Minimum
from probkit.math.psis import khat_threshold
from probkit.report import Report, Seconds, timed
from probkit.vi.meanfield import RESPONSE_MAX_DIM

GUIDES = ("mean-field", "full-rank", "low-rank")
#: A guide is believed where weighing its draws moves no mean by more than this many sds ...
SHIFT = 0.1
#: ... and no sd by more than this factor.
RATIO = 1.1
#: Nats beyond the dimension by which a density may exceed that of all draws before they count as missing a part of it.
SLACK = 2.0
#: Rounds of adaptive importance sampling where draws are corrected.
ROUNDS = 5


@dataclasses.dataclass(frozen=True)
class VI(Method):
    """Variational inference that stops by itself and says whether to believe it.

    A Gaussian guide in unconstrained space maximises the ELBO on fixed antithetic, moment-matched draws, from the
    posterior's mode, by Newton's method; the draws are doubled until their Monte Carlo error is below ``tolerance``.
    The spread that a mean-field guide loses is given back by linear response. The same key gives the same answer.

    The report says how far to believe it: the guide's draws are weighed against the posterior, and where the weights
    (k-hat) or the moments they move (a mean by 0.1 sd, an sd by a tenth) say that the guide is off, it is not
    ``converged``. With ``importance=True`` the draws are resampled by those weights and target the posterior.

    Args:
        guide: ``"mean-field"``, ``"full-rank"`` (started at the linear response) or ``"low-rank"``.
        draws: number of draws returned.
        tolerance: largest Monte Carlo error of the guide's means, in posterior sds.
        linear_response: give a mean-field guide the linear-response covariance (up to 1,000 dimensions).
        importance: correct the draws by importance resampling, the proposal adapted if need be.
        pool: number of draws weighed where they are corrected; by default ``draws``, and 2,000 at least.
        rank: directions of a low-rank guide.
        starts: number of starts for the mode.
        max_draws: the most fixed draws.
        max_steps: the most evaluations of one descent.

    References:
        Giordano, Ingram and Broderick (2024), JMLR 25. Giordano, Broderick and Jordan (2018), JMLR 19. Yao, Vehtari,
        Simpson and Gelman (2018), Yes, but did it work? ICML.
    """

    guide: str = "mean-field"
    draws: int = 2000
    tolerance: float = 0.05
    linear_response: bool = True
    importance: bool = False
    pool: int | None = None
    rank: int = 5
    starts: int = 4
    max_draws: int = 2048
    max_steps: int = 100

    def __post_init__(self) -> None:
        if self.guide not in GUIDES:
            raise ValueError(
                f"guide is {self.guide!r}; one of {', '.join(map(repr, GUIDES))} is wanted. NumPyro's own guides and "
                "flows go to pk.SVI(guide=...)."
            )
        for name in ("draws", "rank", "starts", "max_draws", "max_steps"):
            check_whole(name, getattr(self, name), 1)
        if self.pool is not None:
            check_whole("pool", self.pool, self.draws)
        if not (isinstance(self.tolerance, int | float) and self.tolerance > 0):
            raise ValueError(f"tolerance is {self.tolerance!r}; a positive number of posterior sds is wanted.")

    @property
    def targets_posterior(self) -> bool:
        """Whether the draws are corrected: those of a guide alone are not the posterior's."""
        return self.importance

    @property
    def weighed(self) -> int:
        """How many draws are weighed."""
        if not self.importance:
            return self.draws
        return max(self.draws, LEAST_POOL) if self.pool is None else self.pool

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Fit the guide and draw from it."""
        if not target.sites():
            return nothing_unknown(target, repr(self))
        return self.run_from(target, key, init, None)

    def run_from(self, target: Target, key: Any, init: dict | None, mode: Minimum | None) -> Outcome:
        """The same from a mode already at hand (or None)."""
        sites = target.sites()
        dim = sum(int(np.prod(shape)) for _, shape in sites.values())
        if self.importance and dim > RESPONSE_MAX_DIM:
            raise ValueError(
                f"importance=True in {dim} dimensions: a proposal of at most {RESPONSE_MAX_DIM} is wanted, and weights "
                "in so many dimensions would rest on one draw."
            )
        options = (
            self.guide, self.rank, self.draws, self.weighed, self.starts, self.max_draws, self.linear_response,
            self.importance,
        )  # fmt: skip
        limits = (np.asarray(self.tolerance, target.dtype), np.asarray(ROUNDS), np.asarray(self.max_steps))
        found, seconds = timed(approximate, target, key, init, mode, limits, options)
        found = jax.device_get(found)
        drawn = found.found
        weights = {} if self.importance else {"log_weight": drawn.raw}
        return Outcome(*one_chain(drawn.evaluation, drawn.lp, **weights), self._report(found, seconds))

    def _report(self, v: Variational, seconds: Seconds) -> Report:
        converged, reason, advice = self._judge(v)
        checked = not self.importance and v.k_check <= khat_threshold(self.weighed)
        return Report(
            method=repr(self),
            rung="vi",
            converged=converged,
            reason=reason,
            advice=advice,
            seconds=seconds,
            decrement=float(v.fit.decrement),
            steps=int(v.fit.steps),
            k_hat=float(v.found.k_hat),
            k_threshold=float(khat_threshold(self.weighed)),
            ess=float(v.found.ess) if self.importance else float(self.draws),
            mcse={n: np.asarray(x) for n, x in v.found.mcse.items()},
            worst_mcse=float(v.found.worst_mcse),
            log_evidence=float(v.found.log_evidence) if self.importance else None,
            gradient_norm=float(v.fit.gradient_norm),
            guide_error=float(np.max(v.fit.error)),
            elbo=None if self.importance else float(v.elbo),
            elbo_error=None if self.importance else float(v.elbo_error),
            spread_ratio=float(v.spread),
            guide_shift=float(np.max(np.abs(v.shift))) if checked else None,
            guide_ratio=worst_ratio(v.ratio) if checked else None,
        )

    def _judge(self, v: Variational) -> tuple[bool, str, str]:
        """Believe the answer or not, in words."""
        limit = float(khat_threshold(self.weighed))
        k, error = float(v.found.k_hat), float(np.max(v.fit.error))
        if not v.usable:
            gradient, steps = float(v.fit.gradient_norm), int(v.fit.steps)
            told = f"the guide's ascent did not end: gradient {gradient:.1e} after {steps} steps"
            return False, f"Not converged: {told}.", "Give tighter priors, init= or more max_steps; or use NUTS."
        missed = []
        # Draws of a Gaussian in D dimensions stay about D/2 nats below its peak, the best of them less. Twice as far,
        # and there is a place they do not reach: a funnel's neck, which weights cannot see.
        if not v.gap <= np.size(v.fit.guide.loc) + SLACK:
            missed = [f"the density is {float(v.gap):.1f} nats higher elsewhere (a funnel, or another mode)"]
        if self.importance:
            failed = missed + [f"k-hat {k:.2f} above {limit:.2f}"] * (not k <= limit)
            failed += [f"{v.found.ess:.0f} effective draws"] * (not v.found.ess >= least_ess(self.draws))
            failed += [f"Monte Carlo error {v.found.worst_mcse:.2f} sd"] * (not v.found.worst_mcse <= WORST_MCSE)
            if failed:
                return False, "The guide does not cover the posterior: " + ", ".join(failed) + ".", "Use NUTS."
            return True, f"{v.found.ess:.0f} effective draws of {self.weighed} weighed.", ""
        if not error <= self.tolerance:
            told = f"{int(v.fit.draws)} fixed draws leave a Monte Carlo error of {error:.2f} sd"
            return False, f"Not converged: {told}.", "Raise max_draws or tolerance."
        check = float(v.k_check)
        failed = missed
        if check <= limit:
            failed += how_far_off(v.shift, v.ratio)
        else:
            failed.append(f"k-hat {check:.2f} above {limit:.2f}, so weights cannot tell how far it is off")
        if failed:
            told = "The guide is not the posterior: " + ", ".join(failed) + "."
            return False, told, "Use importance=True, guide='full-rank', Auto() or NUTS()."
        return True, f"Means to {error:.2g} sd from {int(v.fit.draws)} fixed draws; k-hat {check:.2f}.", ""


def how_far_off(shifts: Any, ratios: Any) -> list[str]:
    """What of a guide's means and sds is too far from the weighted ones, in words."""
    shift, ratio = float(np.max(np.abs(shifts))), worst_ratio(ratios)
    failed = [f"a mean is off by {shift:.2f} sd"] * (not shift <= SHIFT)
    return failed + [f"an sd is off by a factor of {ratio:.2f}"] * (not 1 / RATIO <= ratio <= RATIO)


def worst_ratio(ratio: Any) -> float:
    """Of ratios of sds, the one furthest from 1."""
    held = np.ravel(np.asarray(ratio, float))
    return float(held[np.argmax(np.abs(np.log(np.maximum(held, 1e-300))))])
