"""Calibration of Gaussian processes with unknown hyperparameters, and Laplace against NUTS on coal mining."""

import jax
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import shared

import probkit as pk
from probkit.likelihoods import Poisson

PRIORS = {"lengthscale": dist.LogNormal(0.0, 0.5), "scale": dist.LogNormal(0.0, 0.5)}


@pytest.mark.slow
@pytest.mark.parametrize("kernel", [pk.RBF, pk.Matern32])
def test_the_default_method_is_calibrated(kernel):
    """Not rejected at 1% after Bonferroni."""
    model = pk.GP(kernel(**PRIORS), dist.LogNormal(-1.0, 0.5), dist.Normal(0.0, 1.0), solver=pk.gp.Exact())
    X = np.random.default_rng(0).uniform(0, 5, 25)
    method = pk.Auto(draws=400, starts=2)
    found = pk.calibrate(model, X=X, key=jax.random.key(1), method=method, replications=200, progress=False)
    assert found.uniform(), found.table()


@pytest.mark.slow
def test_disasters_in_coal_mines_against_nuts():
    """Rates by decade of 191 disasters, their latent values by Laplace's method and by NUTS."""
    dates = np.loadtxt(shared("data/misc/coal_mining_disasters.csv"), delimiter=",", skiprows=1, usecols=0)
    counts, edges = np.histogram(dates, np.arange(1851.0, 1963.1, 4.0))
    x, y = 0.5 * (edges[1:] + edges[:-1]), counts.astype(float)
    fields = {"kernel": pk.Matern52(30.0, 1.0), "likelihood": Poisson(float(y.mean())), "mean": dist.Normal(0.0, 1.0)}
    key = jax.random.key(0)
    found = pk.fit(pk.gp.LatentGP(**fields), y, x, key=key, method=pk.Laplace(draws=1000), progress=False)
    sampler = pk.NUTS(draws=500, warmup=500, chains=2)
    exact = pk.fit(pk.gp.SampledGP(**fields), y, x, key=key, method=sampler, progress=False)
    one, other = found.sites["mean"], exact.sites["mean"]
    assert abs(one.mean() - other.mean()) < 0.2 * other.std()
    assert 0.8 < one.std() / other.std() < 1.25
    new = np.array([1860.0, 1890.5, 1920.0, 1950.0])
    assert np.allclose(found.predict(new).mean, exact.predict(new).mean, rtol=0.08, atol=0.05)
