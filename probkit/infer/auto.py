"""Auto: the cheapest method that can certify its answer, climbing only where it cannot."""

import dataclasses
from typing import Any

import jax
import numpy as np

from probkit.infer.batches import tracked
from probkit.infer.importance import WORST_MCSE, least_ess
from probkit.infer.laplace import Approximation, Laplace
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown, together
from probkit.infer.nuts import NUTS
from probkit.infer.target import Lanes, Target
from probkit.math.psis import khat_threshold
from probkit.report import Report

#: How many times as many draws are weighed where weights are sound and only too few draws count.
LARGER = 8
#: Chains of NUTS, and the fewest draws of each.
CHAINS, LEAST_NUTS = 4, 1000


@dataclasses.dataclass(frozen=True)
class Auto(Method):
    """The default: Laplace with importance resampling, its proposal adapted if need be; else NUTS started from it.

    Where the weights are sound and only too few draws count, eight times as many are weighed before NUTS is called.

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
        first = Laplace(draws=self.draws, starts=self.starts)
        k_laplace, k_nuts = jax.random.split(key)
        found, seconds = first.approximate(target, k_laplace, init)
        outcome = first.outcome(found, seconds)
        if not outcome.report.converged and sound(found, first):
            first = dataclasses.replace(first, pool=LARGER * first.weighed)
            found, more = first.approximate(target, k_laplace, init)
            seconds = seconds + more
            outcome = first.outcome(found, seconds)
        if not outcome.report.converged:
            refused = outcome.report
            # However few draws are wanted, chains are long enough to be judged; then draws are taken evenly from them.
            wanted = -(-self.draws // CHAINS)
            every = -(-LEAST_NUTS // wanted)
            sampler = NUTS(draws=wanted * every, chains=CHAINS)
            outcome = thinned(sampler.run_from(target, k_nuts, init, found, seconds, progress), every)
            notes = (f"climbed from importance resampling: {refused.reason}",)
            outcome = dataclasses.replace(
                outcome, report=dataclasses.replace(outcome.report, k_hat=refused.k_hat, notes=notes)
            )
        return dataclasses.replace(outcome, report=dataclasses.replace(outcome.report, method=repr(self)))

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


def sound(found: Approximation, asked: Laplace) -> bool:
    """Whether only the number of draws fell short: the k-hat is good, and more draws would give the certificate."""
    enough = found.ess * LARGER >= 2 * least_ess(asked.draws) and found.worst_mcse <= WORST_MCSE * (LARGER / 2) ** 0.5
    return bool(found.mode.converged and found.usable and found.k_hat <= khat_threshold(asked.weighed) and enough)
