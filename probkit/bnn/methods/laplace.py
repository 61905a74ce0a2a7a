"""Laplace by the generalised Gauss-Newton matrix: several modes, scales and noise by evidence, a linearised net."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist

from probkit.bnn.local import Local
from probkit.bnn.methods.common import draws_at, trainable, with_local
from probkit.bnn.methods.ensemble import Ensemble
from probkit.bnn.methods.newton import Fitted, Held, Layout, Options, fit_member, layout, start_points
from probkit.infer.batches import tracked
from probkit.infer.method import Method, Outcome, check_whole
from probkit.infer.target import Target
from probkit.report import Report, Seconds, timed

#: Up to this many weights the whole matrix is the default.
LARGEST = 5000
#: Up to this much work in one Gauss-Newton matrix (rows x outputs x weights²), nets are trained by damped Newton steps.
NEWTON_WORK = 2e10
#: Members whose log evidence is lower than the best by more than this, in nats an observation, are left out.
FAILED = 0.5
STRUCTURES = ("full", "kfac", "diagonal")


def kept(found: list[Fitted], n: int) -> list[Fitted]:
    """Members but for failed descents, whose evidence is more than ``FAILED`` nats an observation below the best.

    Where a descent is stuck on a plateau its noise swallows the data; an equal share of it would spoil the mixture.
    """
    evidence = np.array([one.evidence for one in found], float)
    finite = np.isfinite(evidence)
    if not finite.any():
        return found
    good = finite & (evidence >= evidence[finite].max() - FAILED * n)
    return [one for one, keep in zip(found, good, strict=True) if keep]


@dataclasses.dataclass(frozen=True)
class LaplaceGGN(Method):
    """A mixture of Laplace approximations, each around a mode of its own, by the generalised Gauss-Newton matrix.

    Each member starts from its own draw of the prior. Where the matrix is small enough a member is trained by damped
    Gauss-Newton steps, scales of the weights and the noise refreshed by the evidence at each (MacKay 1992; Foresee and
    Hagan 1997); larger nets are trained by ``training`` first. Predictions are those of the net linearised in its
    weights, integrated out in closed form (probit for classes), mixed over the members. The draws are the centres of
    the members; ``posterior.predict`` knows their spread. They do not follow the posterior: compare by ``pk.kfold``.

    Args:
        members: number of descents; 1 is the plain approximation. One that fails, its evidence far below the best, is
            left out.
        structure: of each member's matrix. ``"full"``; ``"kfac"``, a Kronecker product for each dense layer;
            ``"diagonal"``.
        layers: ``"all"``; ``"last"``, the weights of the last layer alone unknown once the net is trained.
        prior: ``"evidence"`` chooses a scale for each array of weights by marginal likelihood, starting at those of the
            model; ``"model"`` keeps those of the model. Noise that is unknown is chosen by marginal likelihood too.
        steps: the most Gauss-Newton steps of a member.
        training: how nets are trained before, where Newton steps cost too much; ``Ensemble(members)`` by default.

    References:
        MacKay (1992), A practical Bayesian framework for backpropagation networks. Foresee and Hagan (1997),
        Gauss-Newton approximation to Bayesian learning. Immer, Korzepa and Bauer (2021), Improving predictions of
        Bayesian neural nets via local linearization. Eschenhagen et al. (2021), Mixtures of Laplace approximations.
    """

    members: int = 10
    structure: str = "full"
    layers: str = "all"
    prior: str = "evidence"
    steps: int = 100
    training: Any = None

    def __post_init__(self) -> None:
        check_whole("members", self.members, 1)
        check_whole("steps", self.steps, 1)
        if self.structure not in STRUCTURES:
            raise ValueError(f"structure is {self.structure!r}; one of {', '.join(STRUCTURES)} is wanted.")
        if self.layers not in ("all", "last"):
            raise ValueError(f"layers is {self.layers!r}; 'all' or 'last' is wanted.")
        if self.prior not in ("evidence", "model"):
            raise ValueError(f"prior is {self.prior!r}; 'evidence' or 'model' is wanted.")
        if self.training is not None and not isinstance(self.training, Ensemble):
            raise TypeError(f"training is {self.training!r}; an Ensemble is wanted, as Ensemble(steps=5000).")

    @property
    def targets_posterior(self) -> bool:
        """The members are approximations around single modes."""
        return False

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Find the modes and the curvature at each."""
        args = target.args
        target = trainable(target, type(self).__name__)
        place = layout(target, self.layers == "last")
        newton = self._by_newton(target, place)
        points, seconds = self._points(target, key, init, progress, newton)
        options = Options(self.steps, self.prior == "evidence", newton, self.structure)
        found: list[Fitted] = []
        for u in tracked(points, self.members, progress, "Laplace"):
            one, more = timed(fit_member, target, u, Held(place), options)
            found.append(jax.device_get(one))
            seconds = seconds + more
        found = kept(found, target.args[0].shape[0])
        around = Target(with_local(target.model, self._local(target, place, found)), args)
        return self._outcome(target, around, found, self._report(found, place.weights.size, newton, seconds))

    def _by_newton(self, target: Target, place: Layout) -> bool:
        """Whether members are trained by Newton steps."""
        if self.structure != "full" or self.layers != "all" or self.training is not None:
            return False
        work = target.args[0].shape[0] * target.model.likelihood.outputs * place.weights.size**2
        return work <= NEWTON_WORK

    def _points(
        self, target: Target, key: Any, init: dict | None, progress: bool, newton: bool
    ) -> tuple[list, Seconds]:
        """Where the members start: draws of the prior, or trained nets."""
        if newton:
            points, seconds = timed(start_points, target, jax.random.split(key, self.members), init)
            return list(points), seconds
        training = Ensemble(self.members) if self.training is None else self.training
        members, seconds = dataclasses.replace(training, members=self.members).train(target, key, init, progress)
        return list(members.best), seconds

    def _local(self, target: Target, place: Layout, found: list[Fitted]) -> Local:
        """What the net is linearised around."""
        low = jnp.zeros((), target.dtype)
        factors = jax.tree_util.tree_map(lambda *each: jnp.stack(each), *[one.factor for one in found])
        return Local(factors, dist.Uniform(low, low + len(found)), place.where)

    def _outcome(self, target: Target, around: Target, found: list[Fitted], report: Report) -> Outcome:
        """The centres of the members as draws, and the net linearised around them on all the data."""
        points = jnp.stack([jnp.asarray(one.u) for one in found])
        values, stats = draws_at(target, points)
        for name in ("evidence", "determined"):
            stats[name] = np.array([[getattr(one, name) for one in found]])
        values["local.member"] = np.arange(len(found), dtype=target.dtype)[None]
        return Outcome(values, stats, report, target=around)

    def _report(self, found: list[Fitted], weights: int, newton: bool, seconds: Seconds) -> Report:
        leaves = [jax.tree_util.tree_leaves((one.u, one.factor)) for one in found]
        finite = np.array([all(np.all(np.isfinite(a)) for a in each) for each in leaves])
        settled = np.array([one.change <= 1.0 for one in found])
        good = finite & (settled if newton else True)
        share = f"{np.mean([one.determined for one in found]):.0f} of {weights} weights"
        lost = "" if len(found) == self.members else f" of {self.members}, the rest failed descents that are left out"
        reason = f"{len(found)} modes{lost}; the data determine {share} on average."
        advice = ""
        if not finite.all():
            reason, advice = (
                f"{int((~finite).sum())} of {len(found)} modes are not finite.",
                "Check X and y for huge values.",
            )
        elif not good.all():
            reason += f" {int((~good).sum())} still moved by more than a nat a step after {self.steps} steps."
            advice = "Raise steps."
        return Report(
            method=repr(self),
            rung="laplace",
            # A mode that still creeps along a ridge is a mode for predictions all the same, unless most do.
            converged=bool(finite.all() and np.mean(good) >= 0.5),
            reason=reason,
            advice=advice,
            seconds=seconds,
            steps=int(max(one.step for one in found)),
            log_evidence=float(max(one.evidence for one in found)),
        )
