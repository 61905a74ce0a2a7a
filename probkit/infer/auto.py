"""Auto: the cheapest method that can certify its answer, climbing only where it cannot."""

import dataclasses
from typing import Any

import jax

from probkit.infer.laplace import WORST_MCSE, Approximation, Laplace, least_ess
from probkit.infer.method import Method, Outcome, check_whole, nothing_unknown
from probkit.infer.nuts import NUTS
from probkit.infer.target import Target
from probkit.math.psis import khat_threshold

#: Rounds of adaptive importance sampling before NUTS.
ROUNDS = 5
#: How many times as many draws are weighed where weights are sound and only too few draws count.
LARGER = 8


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
        first = Laplace(draws=self.draws, starts=self.starts, rounds=ROUNDS)
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
            chains = 4 if self.draws >= 4 else 1
            sampler = NUTS(draws=-(-self.draws // chains), chains=chains)
            outcome = sampler.run_from(target, k_nuts, init, found, seconds, progress)
            notes = (f"climbed from importance resampling: {refused.reason}",)
            outcome = dataclasses.replace(
                outcome, report=dataclasses.replace(outcome.report, k_hat=refused.k_hat, notes=notes)
            )
        return dataclasses.replace(outcome, report=dataclasses.replace(outcome.report, method=repr(self)))


def sound(found: Approximation, asked: Laplace) -> bool:
    """Whether only the number of draws fell short: the k-hat is good, and more draws would give the certificate."""
    enough = found.ess * LARGER >= 2 * least_ess(asked.draws) and found.worst_mcse <= WORST_MCSE * (LARGER / 2) ** 0.5
    return bool(found.mode.converged and found.usable and found.k_hat <= khat_threshold(asked.weighed) and enough)
