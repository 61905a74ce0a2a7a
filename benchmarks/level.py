"""The local-level likelihood of a long series: value, value and gradient, beside autodiff and statsmodels.

python benchmarks/level.py [--lengths 1000 10000 100000] [--repeats 50]
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

from probkit.ssm.level import log_likelihood


def undecorated(y, H, Q):
    """The same filter as a plain scan, NaN as missing (y[0] observed), for autodiff to go through."""
    seen = ~jnp.isnan(y)

    def step(carry, now):
        a, P, total = carry
        value, seen = now
        F = P + H
        v, K = value - a, seen * P / F
        return (a + K * v, P * (1 - K) + Q, total - 0.5 * seen * (math.log(2 * math.pi) + jnp.log(F) + v * v / F)), None

    start = (y[0], H + Q, jnp.full((), -0.5 * math.log(2 * math.pi)))
    return jax.lax.scan(step, start, (jnp.where(seen, y, 0.0)[1:], seen[1:].astype(y.dtype)))[0][2]


def row(name, function, arguments, repeats):
    program = jax.jit(function)
    begin = time.perf_counter()
    out = jax.block_until_ready(program(*arguments))
    first = time.perf_counter() - begin
    return name, first, median(lambda i: program(*arguments), repeats), float(jax.tree.leaves(out)[0])


def statsmodels_row(y, H, Q, repeats):
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    model = UnobservedComponents(np.asarray(y), "local level", use_exact_diffuse=True)
    return (
        "statsmodels, value",
        0.0,
        median(lambda i: np.asarray(model.loglike([H, Q])), repeats),
        model.loglike([H, Q]),
    )


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="*", default=[1000, 10_000, 100_000])
    parser.add_argument("--repeats", type=int, default=50)
    options = parser.parse_args()
    print(load())
    for length in options.lengths:
        rng = np.random.default_rng(0)
        y = jnp.asarray(np.cumsum(rng.normal(size=length)) + 2 * rng.normal(size=length))
        arguments = (y, jnp.asarray(4.0), jnp.asarray(1.0))
        rows = [
            row("value", log_likelihood, arguments, options.repeats),
            row("value and gradient", jax.value_and_grad(log_likelihood, (1, 2)), arguments, options.repeats),
            row("plain scan, value", undecorated, arguments, options.repeats),
            row("plain scan, value and autodiff", jax.value_and_grad(undecorated, (1, 2)), arguments, options.repeats),
            statsmodels_row(y, 4.0, 1.0, max(5, options.repeats // 5)),
        ]
        print(f"\n{f'T = {length:,}':34s} first, s        ms  / value   log-likelihood")
        for name, first, run, value in rows:
            print(f"  {name:32s}{first:9.2f}{1e3 * run:10.3f}{run / rows[0][2]:9.2f}{value:17.6f}")


if __name__ == "__main__":
    main()
