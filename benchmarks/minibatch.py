"""Minibatch VI on a logistic regression with a million rows, beside the Laplace fit of all of them.

python benchmarks/minibatch.py [--rows 1000000] [--features 50] [--batch 10000] [--guide AutoMultivariateNormal]

Float32, as minibatches are mostly run; the reference is in float64 (NumPy). Features are correlated (0.5 between
neighbours).
"""

import argparse
import time

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import autoguide
from timing import load

import probkit as pk
from probkit.infer import svi
from probkit.infer.target import Target


def simulate(rows, features, seed=0):
    """Rows of an AR(1) process across features, and labels; float32."""
    rng = np.random.default_rng(seed)
    X = rng.standard_normal((rows, features), np.float32)
    for j in range(1, features):
        X[:, j] = 0.5 * X[:, j - 1] + np.sqrt(0.75) * X[:, j]
    beta = rng.normal(0.0, 0.3, features)
    return X, (rng.random(rows) < 1 / (1 + np.exp(-X @ beta))).astype(np.float32)


def logistic(X, y, batch):
    """The model, as one writes it in NumPyro."""
    beta = numpyro.sample("beta", dist.Normal(0.0, 1.0).expand([X.shape[1]]).to_event(1))
    with numpyro.plate("rows", X.shape[0], subsample_size=batch) as i:
        numpyro.sample("y", dist.Bernoulli(logits=X[i] @ beta), obs=y[i])


def laplace(X, y, chunk=100_000):
    """Mode and sds of the full posterior: Newton's method in float64, sums by chunks."""
    beta, move, steps = np.zeros(X.shape[1]), np.ones(1), 0
    while np.max(np.abs(move)) > 1e-8:
        gradient, hessian = -beta, np.eye(beta.size)
        for k in range(0, len(y), chunk):
            part = X[k : k + chunk].astype(float)
            p = 1 / (1 + np.exp(-part @ beta))
            gradient = gradient + part.T @ (y[k : k + chunk] - p)
            hessian = hessian + (part * (p * (1 - p))[:, None]).T @ part
        move = np.linalg.solve(hessian, gradient)
        beta, steps = beta + move, steps + 1
    return beta, np.sqrt(np.diag(np.linalg.inv(hessian))), steps


def planned(rows, features, batch, guide):
    """Bytes of the compiled updates: (arguments, temporaries). Its data are zeros."""
    target = Target(logistic, (jnp.zeros((rows, features), jnp.float32), jnp.zeros(rows, jnp.float32), batch))
    options, step_size = (guide, 2, 1), np.float32(0.01)
    state = svi._begin(target, jax.random.key(0), None, options)
    memory = svi._advance.lower(target, state, step_size, options).compile().compiled.memory_analysis()
    return memory.argument_size_in_bytes, memory.temp_size_in_bytes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--features", type=int, default=50)
    parser.add_argument("--batch", type=int, default=10_000)
    parser.add_argument("--guide", default="AutoMultivariateNormal")
    parser.add_argument("--tolerance", type=float, default=0.05)
    parser.add_argument("--max-steps", type=int, default=40_000)
    parser.add_argument("--step-size", type=float, default=0.02)
    options = parser.parse_args()
    print(load(), jnp.result_type(float))
    X, y = simulate(options.rows, options.features)
    begin = time.perf_counter()
    mode, sd, steps = laplace(X, y)
    print(f"Laplace on all rows: {steps} Newton steps, {time.perf_counter() - begin:.1f} s")
    print(f"its sds: {sd.min():.2g} to {sd.max():.2g}")

    guide = getattr(autoguide, options.guide)
    method = svi.SVI(guide=guide, max_steps=options.max_steps, tolerance=options.tolerance, step_size=options.step_size)
    begin = time.perf_counter()
    posterior = pk.fit(
        logistic, args=(jnp.asarray(X), jnp.asarray(y), options.batch), key=jax.random.key(0), method=method
    )
    took = time.perf_counter() - begin
    draws = posterior.sites["beta"][0].astype(float)
    error, ratio = (draws.mean(0) - mode) / sd, draws.std(0) / sd
    print(posterior.report)
    noise, passes = 1 / np.sqrt(len(draws)), posterior.report.steps * options.batch / options.rows
    print(f"means off by {np.abs(error).max():.3f} sd at worst, {np.sqrt(np.mean(error**2)):.3f} rms")
    print(f"(of which {len(draws)} draws make {noise:.3f}); sds {ratio.min():.3f} to {ratio.max():.3f} of Laplace's")
    print(f"{passes:.0f} passes, {took:.0f} s")
    for rows in (options.rows // 10, options.rows):
        data, own = planned(rows, options.features, options.batch, guide)
        print(f"planned memory of the update, {rows:,} rows: data {data / 1e6:.1f} MB, temporaries {own / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
