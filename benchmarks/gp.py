"""Exact Gaussian processes: value and gradient beside the textbook by autodiff, tinygp and scikit-learn, in one run.

python benchmarks/gp.py [--sizes 500 2000] [--columns 8] [--line 100000] [--repeats 5] [--peers PYTHON]

ARD squared exponential on --columns inputs, dense; then Matern-3/2 on a line of --line inputs, in O(n). Peers that are
not installed are left out; --peers names the Python of an environment that holds tinygp, GPJax, GPyTorch and celerite2.
A ratio is the time of that row over ours. Beside the times stands the memory that XLA plans, in matrices of n by n
(on the line in bytes over those of y); 0 where it is not known. celerite2's gradient stops at the numbers of its
matrices.

Measured at load 5 on two cores, where ratios hold but times do not, N = 2,000: 1,652 ms; tinygp 3.6, GPJax 3.2,
GPyTorch (Cholesky forced) 2.1, scikit-learn 5.5 times that; planned 5.4 matrices, tinygp and GPJax 11. On the line
61 ms, tinygp 8.3 times that, celerite2 0.45.
"""

import argparse
import math
import os
import time

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
from gp_peers import PEERS, ask, tinygp_exact, tinygp_line
from timing import load, median

import probkit as pk


def ours(theta, X, y):
    """As the model computes it; theta is the log of (lengthscales, scale, obs_scale)."""
    scales = jnp.exp(theta)
    model = pk.GP(pk.RBF(lengthscale=scales[:-2], scale=scales[-2]), obs_scale=scales[-1], mean=jnp.zeros(()))
    return model.log_likelihood(y, X)


def through_cholesky(theta, X, y):
    """The textbook, for autodiff to go through the factor."""
    scales = jnp.exp(theta)
    Z = X / scales[:-2]
    s = jnp.maximum(jnp.sum(Z**2, 1)[:, None] + jnp.sum(Z**2, 1) - 2 * Z @ Z.T, 0.0)
    K = scales[-2] ** 2 * jnp.exp(-0.5 * s) + scales[-1] ** 2 * jnp.eye(len(y))
    L = jnp.linalg.cholesky(K, symmetrize_input=False)
    w = jax.scipy.linalg.solve_triangular(L, y, lower=True)
    return -0.5 * w @ w - jnp.sum(jnp.log(jnp.diagonal(L))) - 0.5 * len(y) * math.log(2 * math.pi)


def line(theta, x, y):
    """As the model computes it, in O(n)."""
    length, scale, noise = jnp.exp(theta)
    return pk.GP(pk.Matern32(length, scale), obs_scale=noise, mean=jnp.zeros(())).log_likelihood(y, x)


def row(name, function, arguments, repeats):
    program = jax.jit(function)
    try:
        compiled = program.lower(*arguments).compile()
    except ImportError:
        return None
    planned = compiled.memory_analysis().temp_size_in_bytes / (arguments[-1].nbytes * len(arguments[-1]))
    begin = time.perf_counter()
    out = jax.block_until_ready(program(*arguments))
    first = time.perf_counter() - begin
    value, gradient = out if isinstance(out, tuple) else (out, None)
    return name, first, median(lambda i: program(*arguments), repeats), float(value), gradient, planned


def sklearn_row(theta, X, y, repeats):
    try:
        from sklearn.gaussian_process import GaussianProcessRegressor
        from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
    except ImportError:
        return None
    scales = np.exp(np.asarray(theta))
    kernel = ConstantKernel(scales[-2] ** 2) * RBF(scales[:-2]) + WhiteKernel(scales[-1] ** 2)
    model = GaussianProcessRegressor(kernel, alpha=0.0, optimizer=None).fit(np.asarray(X), np.asarray(y))
    at = model.kernel_.theta
    run = median(lambda i: model.log_marginal_likelihood(at, eval_gradient=True)[1], repeats)
    value, gradient = model.log_marginal_likelihood(at, eval_gradient=True)
    # Theirs are the logs of variances, in another order.
    return "scikit-learn", 0.0, run, value, np.concatenate([gradient[1:-1], 2 * gradient[[0, -1]]]), 0.0


def peer_rows(python, kind, arguments, repeats):
    """Peers in an environment of their own."""
    arrays = dict(zip(("theta", "X", "y"), arguments, strict=True))
    rows = []
    for library in PEERS[kind] if python else ():
        found = ask(python, kind, library, arrays, repeats=repeats)
        if found is not None:
            gradient = np.asarray(found["gradient"]) if found["gradient"] else None
            planned = found["planned"] / (arguments[-1].nbytes * len(arguments[-1]))
            rows.append((library, 0.0, found["seconds"], found["value"], gradient, planned))
    return rows


def table(title, rows):
    rows = [one for one in rows if one is not None]
    print(f"\n{title:34s} first, s        ms   ratio   log-likelihood  worst gradient  n x n")
    for name, first, run, value, gradient, planned in rows:
        error = " " * 16 if gradient is None else f"{np.max(np.abs(gradient / rows[0][4] - 1)):16.1e}"
        print(f"  {name:32s}{first:9.2f}{1e3 * run:10.1f}{run / rows[0][2]:8.2f}{value:17.6f}{error}{planned:7.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[500, 2000])
    parser.add_argument("--columns", type=int, nargs="*", default=[8])
    parser.add_argument("--line", type=int, default=100_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--peers", help="Python of the environment that holds the peers")
    options = parser.parse_args()
    print(load())
    for columns in options.columns:
        for size in options.sizes:
            rng = np.random.default_rng(0)
            X = jnp.asarray(rng.uniform(size=(size, columns)))
            y = jnp.asarray(np.sin(4 * X).sum(1) + 0.3 * rng.normal(size=size))
            theta = jnp.log(jnp.asarray([0.5 * columns**0.5] * columns + [1.0, 0.3]))
            at = (theta, X, y)
            rows = [
                row("value and gradient", jax.value_and_grad(ours), at, options.repeats),
                row("value alone", ours, at, options.repeats),
                row("autodiff through the Cholesky", jax.value_and_grad(through_cholesky), at, options.repeats),
                None if options.peers else row("tinygp", jax.value_and_grad(tinygp_exact), at, options.repeats),
                sklearn_row(theta, X, y, options.repeats),
                *peer_rows(options.peers, "exact", at, options.repeats),
            ]
            table(f"ARD RBF, N = {size:,}, D = {columns}", rows)
    if options.line:
        rng = np.random.default_rng(0)
        x = jnp.asarray(np.sort(rng.uniform(0, options.line, options.line)))
        y = jnp.asarray(np.sin(np.asarray(x) / 50) + 0.3 * rng.normal(size=options.line))
        at = (jnp.log(jnp.asarray([30.0, 1.0, 0.3])), x, y)
        rows = [
            row("value and gradient", jax.value_and_grad(line), at, options.repeats),
            row("value alone", line, at, options.repeats),
            None if options.peers else row("tinygp", jax.value_and_grad(tinygp_line), at, options.repeats),
            *peer_rows(options.peers, "line", at, options.repeats),
        ]
        table(f"Matern-3/2, N = {options.line:,}, D = 1", rows)


if __name__ == "__main__":
    main()
