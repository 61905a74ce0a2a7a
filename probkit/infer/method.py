"""What a method is: a frozen value with options, and one call that turns a target into draws and a report."""

import abc
import collections
import dataclasses
from typing import Any

import numpy as np

from probkit.infer.batches import tracked
from probkit.infer.target import Evaluation, Lanes, Target
from probkit.report import Report, Seconds


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a method gives back.

    Attributes:
        values: draws by site, axes (chain, draw, *shape), on the host.
        stats: per-draw figures for ArviZ's ``sample_stats`` and priors, axes (chain, draw).
        report: what the method says of them.
        standard_errors: for point estimates, by site.
        target: what the draws belong to, where the method changed the model (a net linearised around its weights).
    """

    values: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    report: Report
    standard_errors: dict[str, np.ndarray] | None = None
    target: Target | None = None


@dataclasses.dataclass(frozen=True)
class Method(abc.ABC):
    """A way to answer: options are fields, and a method is a value."""

    @property
    def targets_posterior(self) -> bool:
        """Whether the draws are meant to follow the posterior (so LOO and ``compare`` may use them)."""
        return True

    @abc.abstractmethod
    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Answer a target.

        Args:
            target: the log density, with its data.
            key: a new-style key.
            init: sites in constrained space to start from.
            progress: whether to show a progress bar where the method can take more than a few seconds.
        """

    def run_lanes(
        self, lanes: Lanes, keys: Any, init: dict | None = None, progress: bool = False
    ) -> tuple[Outcome, list[Report]]:
        """Answer many targets; here one after the other, by programs compiled once.

        Args:
            lanes: the targets.
            keys: one key a lane.
            init: sites in constrained space to start every lane from.
            progress: whether to show a progress bar.

        Returns:
            The outcome with the axis (lane,) after (chain, draw) in every array, its report one of the whole; and the
            report of each lane.
        """
        found = [
            self.run(lanes.lane(i), keys[i], init) for i in tracked(range(lanes.count), lanes.count, progress, "series")
        ]
        stack = lambda parts, axis: {n: np.stack([p[n] for p in parts], axis) for n in parts[0]}
        reports = [one.report for one in found]
        seconds = sum((r.seconds for r in reports), Seconds())
        errors = None if found[0].standard_errors is None else stack([one.standard_errors for one in found], 0)
        values, stats = stack([one.values for one in found], 2), stack([one.stats for one in found], 2)
        return Outcome(values, stats, together(reports, repr(self), seconds), errors), reports


def together(reports: list[Report], method: str, seconds: Seconds) -> Report:
    """One report of many lanes: how many converged, by which rung, and the first that did not."""
    rungs = collections.Counter(r.rung for r in reports)
    failed = [i for i, r in enumerate(reports) if not r.converged]
    told = ", ".join(f"{count} by {rung}" for rung, count in rungs.most_common())
    reason = f"{len(reports)} lanes: {told}."
    if failed:
        named = ", ".join(map(str, failed[:5])) + (" ..." if len(failed) > 5 else "")
        reason += f" {len(failed)} did not converge: {named}."
    return Report(
        method=method,
        rung=rungs.most_common(1)[0][0],
        converged=not failed,
        reason=reason,
        advice="Read .reports[lane] or .status() for the reasons." if failed else "",
        seconds=seconds,
    )


def one_chain(evaluation: Evaluation, lp: Any, **more: Any) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Values and per-draw figures of an evaluation, axis (draw,), with the axis (chain,) in front."""
    stats = {"lp": lp, "log_prior": evaluation.log_prior, "log_likelihood": evaluation.log_likelihood} | more
    values, figures = ({n: np.asarray(v)[None] for n, v in group.items()} for group in (evaluation.values, stats))
    return values, figures


def check_whole(name: str, value: Any, least: int) -> None:
    """Check an integer option of a method at the border."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is wanted.")


def nothing_unknown(target: Target, method: str) -> Outcome:
    """The outcome for a model that holds no prior: one draw of nothing."""
    report = Report(method=method, rung="fixed", converged=True, reason="The model holds no prior: nothing to infer.")
    return Outcome({}, {"lp": np.zeros((1, 1))}, report)
