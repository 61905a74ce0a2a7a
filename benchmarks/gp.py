"""Exact Gaussian process, Matern-3/2: value and gradient, beside autodiff through the Cholesky and scikit-learn.

python benchmarks/gp.py [--sizes 500 1000 2000] [--columns 1 8] [--repeats 5]
"""

import argparse
import math
import os
import time

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
from timing import load, median

import probkit as pk


def ours(theta, X, y):
    """As the model computes it; theta is the log of (lengthscales, scale, obs_scale)."""
    scales = jnp.exp(theta)
    model = pk.GP(pk.Matern32(lengthscale=scales[:-2], scale=scales[-2]), obs_scale=scales[-1], mean=jnp.zeros(()))
    return model.log_likelihood(y, X)


def through_cholesky(theta, X, y):
    """The textbook, for autodiff to go through the factor."""
    scales = jnp.exp(theta)
    Z = X / scales[:-2]
    s = jnp.maximum(jnp.sum(Z**2, 1)[:, None] + jnp.sum(Z**2, 1) - 2 * Z @ Z.T, 0.0)
    r = math.sqrt(3.0) * jnp.sqrt(jnp.where(s > 1e-12, s, 1e-12))
    K = scales[-2] ** 2 * (1 + r) * jnp.exp(-r) + scales[-1] ** 2 * jnp.eye(len(y))
    L = jnp.linalg.cholesky(K, symmetrize_input=False)
    w = jax.scipy.linalg.solve_triangular(L, y, lower=True)
    return -0.5 * w @ w - jnp.sum(jnp.log(jnp.diagonal(L))) - 0.5 * len(y) * math.log(2 * math.pi)


def row(name, function, arguments, repeats):
    program = jax.jit(function)
    begin = time.perf_counter()
    out = jax.block_until_ready(program(*arguments))
    first = time.perf_counter() - begin
    value, gradient = out if isinstance(out, tuple) else (out, None)
    return name, first, median(lambda i: program(*arguments), repeats), float(value), gradient


def sklearn_row(theta, X, y, repeats):
    try:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import ConstantKernel, Matern, WhiteKernel
    except ImportError:
        return None
    scales = np.exp(np.asarray(theta))
    kernel = ConstantKernel(scales[-2] ** 2) * Matern(scales[:-2], nu=1.5) + WhiteKernel(scales[-1] ** 2)
    model = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(np.asarray(X), np.asarray(y))
    at = model.kernel_.theta
    run = median(lambda i: model.log_marginal_likelihood(at, eval_gradient=True)[1], repeats)
    value, gradient = model.log_marginal_likelihood(at, eval_gradient=True)
    # Theirs are the logs of variances, in another order.
    return "scikit-learn", 0.0, run, value, np.concatenate([gradient[1:-1], 2 * gradient[[0, -1]]])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[500, 1000, 2000])
    parser.add_argument("--columns", type=int, nargs="*", default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    print(load())
    for columns in options.columns:
        for size in options.sizes:
            rng = np.random.default_rng(0)
            X = jnp.asarray(rng.uniform(size=(size, columns)))
            y = jnp.asarray(np.sin(4 * X).sum(1) + 0.3 * rng.normal(size=size))
            theta = jnp.log(jnp.asarray([0.5 * columns**0.5] * columns + [1.0, 0.3]))
            arguments = (theta, X, y)
            rows = [
                row("value and gradient", jax.value_and_grad(ours), arguments, options.repeats),
                row("value alone", ours, arguments, options.repeats),
                row("autodiff through the Cholesky", jax.value_and_grad(through_cholesky), arguments, options.repeats),
                sklearn_row(theta, X, y, options.repeats),
            ]
            print(f"\n{f'N = {size:,}, D = {columns}':34s} first, s        ms   ratio   log-likelihood  worst gradient")
            for name, first, run, value, gradient in filter(None, rows):
                error = "" if gradient is None else f"{np.max(np.abs(gradient / rows[0][4] - 1)):16.1e}"
                print(
                    f"  {name:32s}{first:9.2f}{1e3 * run:10.1f}{run / rows[0][2]:8.2f}{value:17.6f}{error}", flush=True
                )


if __name__ == "__main__":
    main()
