"""What a fit says of itself: a report is data, and a failure is a report that says what happened and what to do."""

import dataclasses
import time
from collections.abc import Callable
from typing import Any

import jax

_last_compile = 0.0
_listening = False


def _note_compile(event: str, duration_secs: float, **_: Any) -> None:
    global _last_compile
    if event.startswith("/jax/core/compile/"):
        _last_compile = time.perf_counter()


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Wall time of compiled programs, split in tracing and compiling, and running."""

    compile: float = 0.0
    run: float = 0.0

    def __add__(self, other: "Seconds") -> "Seconds":
        return Seconds(self.compile + other.compile, self.run + other.run)


def timed(program: Callable, *args: Any) -> tuple[Any, Seconds]:
    """Call one compiled program, wait for it, and split the wall time at its last compilation event."""
    global _listening
    if not _listening:
        jax.monitoring.register_event_duration_secs_listener(_note_compile)
        _listening = True
    begin = time.perf_counter()
    out = jax.block_until_ready(program(*args))
    end = time.perf_counter()
    compiled = max(_last_compile - begin, 0.0)
    return out, Seconds(compiled, end - begin - compiled)


@dataclasses.dataclass(frozen=True)
class Report:
    """What a method says of its answer.

    Attributes:
        method: the method asked for, as written.
        rung: what answered: ``"mle"``, ``"map"``, ``"laplace"``, ``"importance"``, ``"vi"``, ``"svi"``,
            ``"nuts"`` or ``"fixed"``.
        converged: whether the answer may be used as what it claims to be.
        reason: why, in words.
        advice: what to do next where it is not.
        seconds: compile and run time of the compiled programs.
        log_density: log density at the mode (in unconstrained space for Laplace).
        decrement: half the squared Newton decrement at the mode, in nats: what was still to be gained.
        steps: evaluations the winning start took.
        starts_agreeing: share of starts that reached the mode within 0.01 nats.
        k_hat: Pareto shape of the importance weights; small is good.
        k_threshold: ``min(0.7, 1 - 1/log10(S))``, the largest k-hat accepted.
        ess: effective draws: of the weights (importance), or the least bulk ESS over parameters (NUTS).
        mcse: Monte Carlo standard error of each mean, by site.
        worst_mcse: the largest Monte Carlo error of a mean, in posterior sds, before resampling.
        log_evidence: importance estimate of the log marginal likelihood, under the model's own constants.
        r_hat: rank-normalised R-hat by site (NUTS).
        divergences: divergent transitions after warm-up (NUTS).
        bfmi: the least estimated Bayesian fraction of missing information over chains (NUTS).
        gradient_norm: the largest gradient of the ELBO at the guide, in nats a unit of the guide (VI).
        guide_error: the largest Monte Carlo error of the guide's means, in posterior sds (VI, SVI).
        elbo: the ELBO on fresh draws, under the model's own constants (VI, SVI).
        elbo_error: its Monte Carlo error.
        spread_ratio: the largest ratio of an sd as returned to the mean-field guide's own (VI).
        guide_shift: the largest move of a mean when the guide's draws are weighed against the posterior, in sds (VI).
        guide_ratio: the sd of the guide over the weighted one, where it is furthest from 1 (VI).
        notes: statuses of the data and earlier rungs.
    """

    method: str
    rung: str
    converged: bool
    reason: str
    advice: str = ""
    seconds: Seconds = Seconds()
    log_density: float | None = None
    decrement: float | None = None
    steps: int | None = None
    starts_agreeing: float | None = None
    k_hat: float | None = None
    k_threshold: float | None = None
    ess: float | None = None
    mcse: dict[str, Any] | None = None
    worst_mcse: float | None = None
    log_evidence: float | None = None
    r_hat: dict[str, Any] | None = None
    divergences: int | None = None
    bfmi: float | None = None
    gradient_norm: float | None = None
    guide_error: float | None = None
    elbo: float | None = None
    elbo_error: float | None = None
    spread_ratio: float | None = None
    guide_shift: float | None = None
    guide_ratio: float | None = None
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        head = f"{self.method}: {'converged' if self.converged else 'NOT converged'} ({self.rung}). {self.reason}"
        lines = [head]
        if self.advice:
            lines.append(f"  next: {self.advice}")
        figures = {
            "k-hat": self.k_hat,
            "k-hat threshold": self.k_threshold,
            "ESS": self.ess,
            "worst Monte Carlo error / sd": self.worst_mcse,
            "divergences": self.divergences,
            "E-BFMI": self.bfmi,
            "log density at the mode": self.log_density,
            "log evidence": self.log_evidence,
            "ELBO": self.elbo,
            "its error": self.elbo_error,
            "gradient norm": self.gradient_norm,
            "guide's Monte Carlo error / sd": self.guide_error,
            "sd / mean-field sd": self.spread_ratio,
            "guide's mean off by (sd)": self.guide_shift,
            "guide's sd off by (factor)": self.guide_ratio,
            "starts that agree": self.starts_agreeing,
        }
        shown = [f"{name} {value:.4g}" for name, value in figures.items() if value is not None]
        if shown:
            lines.append("  " + ", ".join(shown))
        lines.append(f"  seconds: compile {self.seconds.compile:.2f}, run {self.seconds.run:.4f}")
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)
