"""Auto: the cheapest method that can certify its answer, climbing only where it cannot."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probkit.infer.batches import tracked
from probkit.infer.importance import LEAST_POOL, WORST_MCSE, least_ess
from probkit.infer.laplace import Approximation, Laplace
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown, together
from probkit.infer.nuts import NUTS
from probkit.infer.target import Lanes, Target
from probkit.infer.vi import VI
from probkit.math.psis import khat_threshold
from probkit.report import Report, Seconds

#: How many times as many draws are weighed where weights are sound and only too few draws count.
LARGER = 8
#: The largest dimension in which weights from a guide are tried.
GUIDED_MAX_DIM = 200
#: Chains of NUTS, and the fewest draws of each.
CHAINS, LEAST_NUTS = 4, 1000


@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """The default: Laplace with importance resampling; then a variational guide; then NUTS, started from the fit.

    Each proposal is adapted if need be. Where the weights are sound and only too few draws count, eight times as many
    are weighed. A guide looks at the whole of a posterior, and serves where curvature at the mode does not: many skewed
    latent values. A density without a mode (a centred hierarchy) goes to NUTS at once.

    Accepted only if k-hat <= min(0.7, 1 - 1/log10(S)), at least 400 effective draws, and the Monte Carlo error of
    every mean at most 0.05 posterior sds. The report names the rung that answered.

    Args:
        draws: number of draws returned.
        starts: number of starts for the mode.
    """

    draws: int = 4000
    starts: int = 8

    def __post_init__(self) -> None:
        check_whole("draws", self.draws, 1)
        check_whole("starts", self.starts, 1)

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Climb until an answer is certified."""
        if not target.sites():
            return nothing_unknown(target, repr(self))
        k_laplace, k_vi, k_nuts = jax.random.split(key, 3)
        laplace = Laplace(draws=self.draws, starts=self.starts)
        found, seconds = laplace.approximate(target, k_laplace, init)
        outcome = laplace.outcome(found, seconds)
        if not outcome.report.converged and sound(found, laplace):
            laplace = dataclasses.replace(laplace, pool=LARGER * laplace.weighed)
            found, more = laplace.approximate(target, k_laplace, init)
            seconds = seconds + more
            outcome = laplace.outcome(found, seconds)
        k_hat = outcome.report.k_hat
        refused = [f"climbed from importance resampling: {outcome.report.reason}"]
        if not outcome.report.converged and found.mode.converged and found.mode.x.size <= GUIDED_MAX_DIM:
            outcome = self._by_guide(target, k_vi, init, found, seconds)
            seconds = outcome.report.seconds
            refused.append(f"climbed from a variational guide: {outcome.report.reason}")
        if not outcome.report.converged:
            # However few draws are wanted, chains are long enough to be judged; then draws are taken evenly from them.
            wanted = -(-self.draws // CHAINS)
            every = -(-LEAST_NUTS // wanted)
            sampler = NUTS(draws=wanted * every, chains=CHAINS)
            outcome = thinned(sampler.run_from(target, k_nuts, init, found, seconds, progress), every)
            outcome = _told(outcome, k_hat=k_hat, notes=tuple(refused))
        elif outcome.report.rung == "vi":
            outcome = _told(outcome, notes=tuple(refused[:1]))
        return _told(outcome, method=repr(self))

    def _by_guide(self, target: Target, key: Any, init: dict | None, found: Approximation, seconds: Seconds) -> Outcome:
        """Importance resampling from a variational guide, after so many seconds."""
        # Many draws from the start: too few would miss the tails of a skewed posterior and be content.
        guide = VI(draws=self.draws, importance=True, pool=LARGER * max(self.draws, LEAST_POOL))
        outcome = guide.run_from(target, key, init, jax.tree_util.tree_map(jnp.asarray, found.mode))
        return _told(outcome, seconds=seconds + outcome.report.seconds)

    def run_lanes(
        self, lanes: Lanes, keys: Any, init: dict | None = None, progress: bool = False
    ) -> tuple[Outcome, list[Report]]:
        """Answer all lanes by importance resampling in one program; those it refuses climb one by one."""
        first = Laplace(draws=self.draws, starts=self.starts)
        outcome, reports = first.run_lanes(lanes, keys, init, progress)
        reports = [dataclasses.replace(r, method=repr(self)) for r in reports]
        seconds = outcome.report.seconds
        refused = [i for i, r in enumerate(reports) if not r.converged]
        for i in tracked(refused, len(refused), progress, "series that climb"):
            one = self.run(lanes.lane(i), keys[i], init)
            reports[i] = one.report
            seconds = seconds + one.report.seconds
            for held, new in ((outcome.values, one.values), (outcome.stats, one.stats)):
                for name, draws in held.items():
                    flat = np.reshape(new[name], (1, -1, *new[name].shape[2:]))
                    draws[:, :, i] = flat[:, : draws.shape[1]]
        return dataclasses.replace(outcome, report=together(reports, repr(self), seconds)), reports


def thinned(outcome: Outcome, every: int) -> Outcome:
    """Every so-many-th draw of each chain."""
    values, stats = ({n: v[:, ::every] for n, v in group.items()} for group in (outcome.values, outcome.stats))
    return dataclasses.replace(outcome, values=values, stats=stats)


def _told(outcome: Outcome, **changed: Any) -> Outcome:
    """The same outcome with entries of its report changed."""
    return dataclasses.replace(outcome, report=dataclasses.replace(outcome.report, **changed))


def sound(found: Approximation, asked: Laplace) -> bool:
    """Whether only the number of draws fell short: the k-hat is good, and more draws would give the certificate."""
    enough = found.ess * LARGER >= 2 * least_ess(asked.draws) and found.worst_mcse <= WORST_MCSE * (LARGER / 2) ** 0.5
    return bool(found.mode.converged and found.usable and found.k_hat <= khat_threshold(asked.weighed) and enough)
