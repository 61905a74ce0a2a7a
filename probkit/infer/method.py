"""What a method is: a frozen value with options, and one call that turns a target into draws and a report."""

import abc
import dataclasses
from typing import Any

import numpy as np

from probkit.infer.target import Target
from probkit.report import Report


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What a method gives back.

    Attributes:
        values: draws by site, axes (chain, draw, *shape), on the host.
        stats: per-draw figures for ArviZ's ``sample_stats`` and priors, axes (chain, draw).
        report: what the method says of them.
        standard_errors: for point estimates, by site.
    """

    values: dict[str, np.ndarray]
    stats: dict[str, np.ndarray]
    report: Report
    standard_errors: dict[str, np.ndarray] | None = None


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


def check_whole(name: str, value: Any, least: int) -> None:
    """Check an integer option of a method at the border."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; a whole number of at least {least} is wanted.")


def nothing_unknown(target: Target, method: str) -> Outcome:
    """The outcome for a model that holds no prior: one draw of nothing."""
    report = Report(method=method, rung="fixed", converged=True, reason="The model holds no prior: nothing to infer.")
    return Outcome({}, {"lp": np.zeros((1, 1))}, report)
