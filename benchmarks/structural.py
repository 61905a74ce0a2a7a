"""Structural models beside statsmodels, dynamax and our dense filter: value, and value and gradient, in one run.

python benchmarks/structural.py [--repeats 20] [--python PYTHON]

PYTHON is an interpreter that has dynamax, which may want an environment of its own: python -m venv dyn; dyn/bin/pip
install dynamax.
"""

import argparse
import os
import subprocess

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


_DYNAMAX = """
import sys, time, warnings
warnings.simplefilter("ignore")
import jax, jax.numpy as jnp, numpy as np
from dynamax.linear_gaussian_ssm import inference as d
p, y = (jnp.asarray(np.array(a.split(","), float)) for a in sys.argv[2:4])
m = 13
T = np.zeros((m, m))
T[:2, :2], T[2, 2:], T[3:, 2:-1] = [[1, 1], [0, 1]], -1, np.eye(10)
Z = np.zeros((1, m))
Z[0, [0, 2]] = 1
none = lambda k: jnp.zeros((k, 0))
def value(p):  # dynamax wants a definite Q and a start
    Q = jnp.diag(jnp.concatenate([p[:3], jnp.zeros(10)])) + 1e-12 * jnp.eye(m)
    start = d.ParamsLGSSMInitial(jnp.zeros(m), 1e6 * jnp.eye(m))
    moves = d.ParamsLGSSMDynamics(jnp.asarray(T), jnp.zeros(m), none(m), Q)
    sees = d.ParamsLGSSMEmissions(jnp.asarray(Z), jnp.zeros(1), none(1), p[3:4, None])
    return d.lgssm_filter(d.ParamsLGSSM(start, moves, sees), y[:, None]).marginal_loglik
def median(f):
    f, times = jax.jit(f), []
    jax.block_until_ready(f(p))
    for _ in range(int(sys.argv[1])):
        begin = time.perf_counter()
        jax.block_until_ready(f(p))
        times.append(time.perf_counter() - begin)
    return 1e3 * np.median(times)
print(median(value), median(jax.value_and_grad(value)), float(value(p)))
"""


def dynamax(python, y, p, repeats):
    """The same of dynamax in another interpreter, from a start of variance 1e6 (its value is ours less 6.5 log 1e6)."""
    texts = [",".join(map(repr, map(float, a))) for a in (p, y)]
    command = [python, "-c", _DYNAMAX, str(repeats), *texts]
    found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    return "dynamax (start variance 1e6)", *map(float, found[-3:])


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
    parser.add_argument("--python", help="interpreter that has dynamax; without it dynamax is left out")
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
        rows += [dynamax(options.python, y, p, options.repeats)] if options.python and length == 500 else []
        print(f"\n{label}: ms for the value, for value and gradient; log-likelihood")
        for name, value, both, figure in rows:
            print(f"  {name:28s} {value:9.3f} {both:9.3f}  {figure:.6f}")
        if length == 500:
            print(f"  statsmodels' score over ours: {rows[2][2] / rows[0][2]:.1f}")
            if options.python:
                print(f"  dynamax's value and gradient over ours: {rows[3][2] / rows[0][2]:.1f}")
    print(f"\nfloat32 against float64, T = 10,000: relative difference {precision():.1e}")


if __name__ == "__main__":
    main()
