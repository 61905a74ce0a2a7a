"""Monte Carlo dropout: nets trained and asked with random hidden units left out."""

import dataclasses
from typing import Any

import jax
import numpy as np
import numpyro.distributions as dist

from probkit.bnn.local import SEEDS, Dropout
from probkit.bnn.methods.common import draws_at, trainable, with_local
from probkit.bnn.methods.ensemble import Ensemble
from probkit.infer.method import Method, Outcome, check_whole
from probkit.infer.target import Target

#: How a single net is trained.
ONE = Ensemble(members=1)


@dataclasses.dataclass(frozen=True)
class MCDropout(Method):
    """Monte Carlo dropout: a net trained with random hidden units left out, and asked many times the same way.

    Inputs of every layer but the first are left out with probability ``rate``, by one mask an update, and one a draw,
    that holds for all points: each draw is a function. Outputs stand first in an array of weights, as in Equinox, or
    last in one named ``kernel``. The masks are no posterior: their spread is that of ``rate``,
    however many data there are. Compare by ``pk.kfold``.

    Args:
        rate: share of hidden units left out, in (0, 1).
        draws: masks of each net.
        training: how nets are trained; several ``members`` are as many nets, each with its masks.

    References:
        Gal and Ghahramani (2016), Dropout as a Bayesian approximation. Osband (2016), Risk versus uncertainty in deep
        learning, on what it does not approximate.
    """

    rate: float = 0.1
    draws: int = 100
    training: Ensemble = ONE

    def __post_init__(self) -> None:
        check_whole("draws", self.draws, 1)
        if not (isinstance(self.rate, float) and 0 < self.rate < 1):
            raise ValueError(f"rate is {self.rate!r}; a share in (0, 1) is wanted.")
        check_training(self.training)

    @property
    def targets_posterior(self) -> bool:
        """Masks do not follow the posterior."""
        return False

    def run(self, target: Target, key: Any, init: dict | None = None, progress: bool = False) -> Outcome:
        """Train with masks, and draw masks."""
        args = target.args
        target = trainable(target, type(self).__name__)
        k_train, k_masks = jax.random.split(key)
        members, seconds = self.training.train(target, k_train, init, progress, self.rate)
        values, stats = draws_at(target, members.best)
        # Figures of a net, such as its density, are those of the whole net.
        values, stats = ({n: np.repeat(v, self.draws, axis=1) for n, v in group.items()} for group in (values, stats))
        seeds = jax.random.randint(k_masks, stats["lp"].shape, 0, SEEDS)
        values["local.seed"] = np.asarray(seeds).astype(target.dtype)
        seed = dist.Uniform(np.zeros((), target.dtype), np.full((), SEEDS, target.dtype))
        model = with_local(target.model, Dropout(self.rate, seed))
        report = dataclasses.replace(self.training.report(members, seconds), method=repr(self), rung="dropout")
        return Outcome(values, stats, report, target=Target(model, args))


def check_training(training: Any) -> None:
    """Check the option that says how nets are trained.

    Raises:
        TypeError: it is no Ensemble.
    """
    if not isinstance(training, Ensemble):
        raise TypeError(f"training is {training!r}; an Ensemble is wanted, as Ensemble(members=1, steps=5000).")
