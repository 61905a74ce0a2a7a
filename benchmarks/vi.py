"""Deterministic VI beside NumPyro's SVI on posteriordb, and on a hierarchy of 90 and a regression of 5,000 parameters.

    python benchmarks/vi.py [--only NAME ...] [--skip-svi] [--skip-large]

Prints, for each posterior, the worst error of a mean in reference sds and the extreme ratios of sds: of `pk.VI()`
(mean-field with linear response), and of NumPyro's AutoNormal and AutoMultivariateNormal after 20,000 steps of
Adam (0.01), compiled as one loop.
Seconds are the median of three runs, everything compiled: of VI the whole call of `pk.fit`, of the guides the loop
alone.
The last lines give the ratios of errors and of seconds.
"""

import argparse
import os
import time
from statistics import geometric_mean

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from posteriordb import errors, posteriors

import probkit as pk

STEPS = 20_000


def seconds_of(run, repeats=3):
    """A later call's answer and the median of its seconds, everything compiled."""
    run(0)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        out = run(1)
        times.append(time.perf_counter() - begin)
    return out, float(np.median(times))


def numpyro_svi(guide_class, model, args):
    """Draws of a NumPyro guide after 20,000 steps of Adam, compiled once: sites, seconds of the second run."""
    guide = guide_class(model)
    svi = SVI(model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
    svi.init(jax.random.key(0), *args)  # sets up the guide's prototype, outside of any trace

    @jax.jit
    def train(key):
        state = svi.init(key, *args)
        state, _ = jax.lax.scan(lambda s, _: (svi.stable_update(s, *args)[0], None), state, None, length=STEPS)
        return svi.get_params(state)

    params, seconds = seconds_of(lambda seed: jax.block_until_ready(train(jax.random.key(seed))))
    draws = guide.sample_posterior(jax.random.key(2), params, sample_shape=(4000,))
    latent = numpyro.infer.Predictive(model, draws, return_sites=None)(jax.random.key(3), *args)
    return {n: np.asarray(v)[None] for n, v in (latent | draws).items()}, seconds


def on_posteriordb(only, skip_svi):
    """The table of the 15 posteriors, and its geometric means."""
    worst = {"VI": [], "AutoNormal": [], "AutoMultivariateNormal": []}
    seconds_by = {name: [] for name in worst}
    for name, (model, args) in posteriors().items():
        if only and not any(part in name for part in only):
            continue
        fit = lambda seed, model=model, args=args: pk.fit(
            model, args=args, key=jax.random.key(seed), method=pk.VI(), progress=False
        )
        posterior, seconds = seconds_of(fit)
        error, low, high = errors(posterior.sites, name)
        worst["VI"].append(error)
        seconds_by["VI"].append(seconds)
        r = posterior.report
        line = f"{name.partition('-')[2][:30]:30s} VI {seconds:6.3f} s {error:6.3f} {low:4.2f}-{high:4.2f}"
        line += (
            f" {'believed' if r.converged else 'flagged '} k-hat {r.k_hat:5.2f} sd/mean-field sd {r.spread_ratio:6.2f}"
        )
        if not skip_svi:
            for guide in (AutoNormal, AutoMultivariateNormal):
                sites, seconds = numpyro_svi(guide, model, args)
                error, low, high = errors(sites, name)
                worst[guide.__name__].append(error)
                seconds_by[guide.__name__].append(seconds)
                line += f" | {guide.__name__[4:]} {seconds:6.2f} s {error:7.3f} {low:4.2f}-{high:4.2f}"
        print(line, flush=True)
    for name, found in worst.items():
        if found:
            mean, seconds = geometric_mean(found), seconds_by[name]
            line = f"{name}: geometric mean of worst errors {mean:.3f} sd, {sum(seconds):.2f} s together"
            if name != "VI":
                faster = np.divide(seconds, seconds_by["VI"])
                line += f"; VI is {mean / geometric_mean(worst['VI']):.1f} times as accurate (geometric mean) and "
                line += f"{geometric_mean(faster):.1f} times as fast (geometric mean; "
                line += f"together {sum(seconds) / sum(seconds_by['VI']):.1f}, least {min(faster):.1f})"
            print(line)


def radon(y, county, floor):
    """A varying-intercept hierarchy, non-centred: 85 counties, 90 parameters."""
    mu = numpyro.sample("mu", dist.Normal(0, 5).expand([2]).to_event(1))
    tau = numpyro.sample("tau", dist.HalfNormal(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    slope = numpyro.sample("uranium", dist.Normal(0, 1))
    eta = numpyro.sample("eta", dist.Normal(0, 1).expand([85]).to_event(1))
    u = jnp.linspace(-1, 1, 85)
    mean = (mu[0] + slope * u + tau * eta)[county] + mu[1] * floor
    numpyro.sample("y", dist.Normal(mean, sigma), obs=y)


def ridge(X, y):
    """A regression whose posterior is Gaussian."""
    beta = numpyro.sample("beta", dist.Normal(0, 1).expand([X.shape[1]]).to_event(1))
    numpyro.sample("y", dist.Normal(X @ beta, 1.0), obs=y)


def large():
    """The hierarchy against NUTS, the regression against its exact posterior."""
    rng = np.random.default_rng(0)
    county, floor = np.sort(rng.integers(0, 85, 919)), rng.integers(0, 2, 919).astype(float)
    y = 1.5 + 0.7 * np.linspace(-1, 1, 85)[county] + 0.3 * rng.normal(size=85)[county] - 0.7 * floor
    y = y + 0.75 * rng.normal(size=919)
    args = (y, jnp.asarray(county), floor)
    posterior, seconds = seconds_of(
        lambda seed: pk.fit(radon, args=args, key=jax.random.key(seed), method=pk.VI(), progress=False)
    )
    nuts = pk.fit(radon, args=args, key=jax.random.key(5), method=pk.NUTS(draws=2000), progress=False)
    error, ratios = 0.0, []
    for name, held in nuts.sites.items():
        draws, sd = posterior.sites[name], held.std((0, 1))
        error = max(error, np.max(np.abs(draws.mean((0, 1)) - held.mean((0, 1))) / sd))
        ratios.append(np.ravel(draws.std((0, 1)) / sd))
    ratios = np.concatenate(ratios)
    print(
        f"radon, 90 parameters: {seconds:.2f} s, worst mean error {error:.3f} sd, sd ratios {ratios.min():.2f}-", end=""
    )
    print(f"{ratios.max():.2f}; NUTS {nuts.report.seconds.run:.1f} s, {nuts.report.reason}")
    print(posterior.report)

    X = rng.normal(size=(10_000, 5_000)) / 10.0
    y = X @ (rng.normal(size=5_000) * (rng.random(5_000) < 0.1)) + rng.normal(size=10_000)
    precision = X.T @ X + np.eye(5_000)
    inverse = np.linalg.inv(precision)
    mean, sd = inverse @ (X.T @ y), np.sqrt(np.diag(inverse))
    method = pk.VI(draws=400)
    begin = time.perf_counter()
    posterior = pk.fit(ridge, args=(X, y), key=jax.random.key(0), method=method, progress=False)
    first = time.perf_counter() - begin
    draws = posterior.sites["beta"][0]
    error = np.abs(draws.mean(0) - mean) / sd
    ratio = draws.std(0) / sd
    rms = np.sqrt(np.mean(error**2))
    print(
        f"regression, 5,000 parameters: {first:.1f} s with compilation, mean error at most {error.max():.3f} sd, ",
        end="",
    )
    print(f"rms {rms:.3f}; sd ratios {ratio.min():.2f}-{ratio.max():.2f}")
    print(posterior.report)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of names")
    parser.add_argument("--skip-svi", action="store_true")
    parser.add_argument("--skip-large", action="store_true")
    options = parser.parse_args()
    on_posteriordb(options.only, options.skip_svi)
    if not options.skip_large:
        large()
