"""Small models and posteriors that several test files share."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

import probkit as pk
from probkit import border
from probkit.infer.method import Outcome
from probkit.infer.target import Target
from probkit.posterior import Posterior
from probkit.report import Report


class Line(pk.Model):
    """Independent normal observations around a line in the time index: the cheapest model that has everything."""

    intercept: pk.model.Param = pk.param(default=lambda self, y, X: dist.Normal(jnp.nanmean(y), jnp.nanstd(y)))
    slope: pk.model.Param = pk.param(default=0.0)
    obs_scale: pk.model.Param = pk.param(
        support=constraints.positive, default=lambda self, y, X: dist.HalfNormal(jnp.nanstd(y))
    )

    def distribution(self, X, length):
        x = jnp.arange(length) if X is None else X
        return dist.Normal(self.intercept + self.slope * x, self.obs_scale).to_event(1)


class Holder(pk.Model):
    """Anything in one field, ``theta``, and normal observations around its sum: a place to put a prior in."""

    theta: pk.model.Param

    def distribution(self, X, length):
        return dist.Normal(jnp.full(length, jnp.sum(self.theta)), 1.0).to_event(1)


def posterior_of(model, y, values, X=None, method=None, ess=None):
    """A posterior with given draws, without a fit: ``values`` maps sites to arrays (chain, draw, *shape).

    A plain function is called with y alone.
    """
    series = border.as_series(y)
    dtype = series.y.dtype
    if isinstance(model, pk.Model):
        target = Target(pk.model.strong(model, dtype), (series.y, border.as_inputs(X, len(series.y), dtype)))
    else:
        target, series = Target(model, (series.y,)), None
    values = {name: np.asarray(v, dtype) for name, v in values.items()}
    shape = next(iter(values.values())).shape[:2]
    zeros = {name: np.zeros(shape) for name in ("lp", "log_prior", "log_likelihood")}
    report = Report(method="by hand", rung="importance", converged=True, reason="Given.", ess=ess)
    return Posterior(target, method or pk.Laplace(), Outcome(values, zeros, report), jax.random.key(7), series)
