"""State-space models as pytrees with words for names."""

from typing import Any, ClassVar

from numpyro.distributions import constraints

from probkit import priors
from probkit.model import Model, Param, param
from probkit.ssm.distribution import LocalLevelDistribution


class LocalLevel(Model):
    """The local level model: a random walk observed with noise (simple exponential smoothing's model).

    ``y_t = level_t + e_t``, ``e_t ~ N(0, obs_scale²)``; ``level_(t+1) = level_t + w_t``, ``w_t ~ N(0, level_scale²)``.
    The starting level is exact diffuse. NaN in y is missing.

    Args:
        level_scale: standard deviation of the level's steps, in the units of y. Default: half-normal with the spread of
            y as its scale.
        obs_scale: standard deviation of the observation noise, in the units of y. Default: the same, cut off below at
            the rounding error of y.

    References:
        Durbin and Koopman (2012), Time Series Analysis by State Space Methods, chapter 2.
    """

    integrates_states: ClassVar[bool] = True

    level_scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: priors.half_normal(y))
    obs_scale: Param = param(support=constraints.nonnegative, default=lambda self, y, X: priors.noise(y))

    def distribution(self, X: Any, length: int) -> LocalLevelDistribution:
        """The distribution of y given the two scales."""
        if X is not None:
            raise TypeError("LocalLevel takes no X.")
        return LocalLevelDistribution(self.level_scale, self.obs_scale, length)
