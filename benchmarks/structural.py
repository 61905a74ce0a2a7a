"""Structural models beside statsmodels and our dense filter: value, and value and gradient, in one run.

python benchmarks/structural.py [--repeats 20]
"""

import argparse
import os

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
from timing import load, median

from probkit.ssm import components, kalman, structured


def trend_and_season(length):
    """13 states: trend and dummy season of 12."""
    times = np.arange(length)
    return lambda p, dtype: components.assemble(
        [components.trend(p[0], p[1]), components.seasonal(p[2], 12, times)], p[3], dtype
    )


def trend_and_harmonics(length):
    """42 states: trend and 20 harmonics of a week of hours."""
    times = np.arange(length)
    return lambda p, dtype: components.assemble(
        [components.trend(p[0], p[1]), components.trigonometric(p[2], 168, 20, times)], p[3], dtype
    )


def ours(y, build, p, repeats):
    """Milliseconds of value and of value and gradient, structured and dense, and the value."""
    dtype, rows = p.dtype, []
    plain = lambda p: structured.log_likelihood(y, build(p, dtype))

    def dense(p):
        s = build(p, dtype)
        return kalman.log_likelihood(y, s.matrices(), s.start())

    for name, f in (("structured", plain), ("dense", dense)):
        value, both = jax.jit(f), jax.jit(jax.value_and_grad(f))
        times = [1e3 * median(lambda i, run=run: run(p), repeats) for run in (value, both)]
        rows.append((name, *times, float(value(p))))
    return rows


def statsmodels(y, p, repeats):
    """The same of statsmodels' UnobservedComponents, its score by complex steps."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    model = UnobservedComponents(np.asarray(y), "lltrend", seasonal=12, use_exact_diffuse=True)
    q = np.array([p[3], p[0], p[1], p[2]])
    value = 1e3 * median(lambda i: np.asarray(model.loglike(q)), repeats)
    score = 1e3 * median(lambda i: np.asarray(model.score(q)), repeats)
    return "statsmodels (value, score)", value, score, model.loglike(q)


def precision():
    """float32 against float64 at 10,000 times, 13 states and variances over six orders of magnitude."""
    rng = np.random.default_rng(1)
    p = np.array([1e-3, 1e-6, 1e-4, 1.0])
    y = np.cumsum(np.sqrt(p[0]) * rng.normal(size=10_000)) + rng.normal(size=10_000)
    build = trend_and_season(len(y))
    found = [structured.log_likelihood(jnp.asarray(y, d), build(p, d)) for d in (jnp.float32, jnp.float64)]
    return abs(float(found[0]) / float(found[1]) - 1)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    options = parser.parse_args()
    print(load())
    rng, p = np.random.default_rng(0), jnp.asarray([0.3, 0.1, 0.2, 0.5])
    for label, build, length in (
        ("trend + season of 12, T = 500", trend_and_season, 500),
        ("trend + 20 harmonics of 168, T = 4000", trend_and_harmonics, 4000),
    ):
        y = jnp.asarray(rng.normal(size=length).cumsum())
        rows = ours(y, build(length), p, options.repeats)
        rows += [statsmodels(y, np.asarray(p), options.repeats)] if length == 500 else []
        print(f"\n{label}: ms for the value, for value and gradient; log-likelihood")
        for name, value, both, figure in rows:
            print(f"  {name:28s} {value:9.3f} {both:9.3f}  {figure:.6f}")
        if length == 500:
            print(f"  statsmodels' score over ours: {rows[2][2] / rows[0][2]:.1f}")
    print(f"\nfloat32 against float64, T = 10,000: relative difference {precision():.1e}")


if __name__ == "__main__":
    main()
