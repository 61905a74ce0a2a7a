"""Deep ensembles: many nets trained together, as lanes of one compiled loop."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from probkit.bnn.methods.checkpoint import Checkpoint
from probkit.bnn.methods.common import draws_at, trainable
from probkit.bnn.methods.training import Member, Training, advance, begin
from probkit.infer.batches import bar
from probkit.infer.method import Method, Outcome, check_whole
from probkit.infer.target import Target
from probkit.report import Report, Seconds, timed

#: Looks at the rows held out in a training; between them the progress bar moves and a checkpoint is written.
LOOKS = 50
#: With fewer rows to hold out than this nothing is held out: chance would choose when to stop.
LEAST_HELD_OUT = 20


@dataclasses.dataclass(frozen=True)
class Ensemble(Method):
    """A deep ensemble: nets started from different draws of the prior, each trained to a mode.

    All members are lanes of one compiled loop: Adam on minibatches, the step size falling along half a cosine. Rows of
    y that are missing are left out. The draws are the members, axis (draw,). They do not follow the posterior: compare
    by ``pk.kfold``.

    Each member is pulled to the point that it started from, not to 0 (``anchored``): a draw of the prior, or of one of
    unit scale where the prior is wider. Where data are few, the mode around 0 is a net that says nothing, and all
    members would be that one; pulled apart they differ as much as those draws where there are no data. Under ``init``
    all start there, and are pulled there.

    The scale of the weights stays that of the prior: where the truth bends more, the likeliest net is a smoother one
    with more noise. Give ``pk.BNN(net, prior=2.0)`` then, or take :class:`probkit.bnn.LaplaceGGN`, which learns it.

    Args:
        members: number of nets.
        steps: updates of a member, at most.
        batch_size: rows in an update; data of fewer rows are taken whole, which costs less than it saves.
        learning_rate: Adam's, at the start.
        validation: share of rows that each member holds out, its own, for early stopping: it gives back the weights
            that predicted them best. 0, or a share of fewer than 20 rows, trains on all rows to the end.
        patience: looks at the rows held out, fifty in a training, without progress before a member stops.
        anchored: False pulls all to the mean of the prior: each ends at a posterior mode. A single member always is.
        checkpoint: a folder in which the training keeps its state, fifty times: a run that was cut off goes on from
            there, and ends equal to the bit. Every run (key, data, options) has a file of its own, which stays.

    References:
        Lakshminarayanan, Pritzel and Blundell (2017), Simple and scalable predictive uncertainty estimation using deep
        ensembles. Pearce, Leibfried and Brintrup (2020), Uncertainty in neural networks: approximately Bayesian
        ensembling.
    """

    members: int = 10
    steps: int = 5000
    batch_size: int = 1000
    learning_rate: float = 0.02
    validation: float = 0.0
    patience: int = 15
    anchored: bool = True
    checkpoint: str | None = None

    def __post_init__(self) -> None:
        for name in ("members", "steps", "batch_size", "patience"):
            check_whole(name, getattr(self, name), 1)
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation!r}; a share in [0, 1) is wanted.")
        if not (isinstance(self.learning_rate, int | float) and 0 < self.learning_rate < np.inf):
            raise ValueError(f"learning_rate is {self.learning_rate!r}; a positive number is wanted.")

    @property
    def targets_posterior(self) -> bool:
        """Modes do not follow the posterior."""
        return False

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Train the members."""
        args = target.args
        target = trainable(target, type(self).__name__)
        members, seconds = self.train(target, key, init, progress, anchored=self.anchored and self.members > 1)
        values, stats = draws_at(target, members.best)
        return Outcome(values, stats, self.report(members, seconds), target=Target(target.model, args))

    def train(
        self,
        target: Target,
        key: Any,
        init: dict | None,
        progress: bool,
        dropout: float = 0.0,
        anchored: bool = False,
    ) -> tuple[Member, Seconds]:
        """Train the members on a target that :func:`trainable` gave: to their modes, unless anchored."""
        options = self.options(target.args[0].shape[0])._replace(dropout=dropout, anchored=anchored)
        kept = Checkpoint(self, target, key, init, dropout, anchored)
        members, seconds = timed(begin, target, jax.random.split(key, self.members), init, options)
        members = kept.resume(members)
        with bar(self.steps, progress, type(self).__name__) as shown:
            while (step := int(members.step.max())) < self.steps and not np.all(members.stopped):
                shown.update(step - shown.n)
                members, more = timed(advance, target, members, options)
                seconds = seconds + more
                kept.save(members)
        return members, seconds

    def options(self, n: int) -> Training:
        """Static options for n rows."""
        held_out = round(self.validation * n)
        held_out = held_out if held_out >= LEAST_HELD_OUT else 0
        every = max(1, self.steps // LOOKS)
        return Training(self.steps, self.batch_size, float(self.learning_rate), held_out, every, self.patience)

    def report(self, members: Member, seconds: Seconds) -> Report:
        """What the training is worth."""
        finite = np.asarray(jnp.all(jnp.isfinite(members.best), axis=1))
        steps = np.asarray(members.best_step)
        reason = f"{self.members} nets; weights of steps {steps.min():,} to {steps.max():,}."
        if not finite.all():
            reason = f"{int((~finite).sum())} of {self.members} nets are not finite."
        return Report(
            method=repr(self),
            rung="ensemble",
            converged=bool(finite.all()),
            reason=reason,
            advice="" if finite.all() else "Lower learning_rate.",
            seconds=seconds,
            steps=int(np.asarray(members.step).max()),
        )
