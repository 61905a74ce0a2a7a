"""Many series at once: 1,000 local levels of length 120 by the default fit, beside single fits and statsmodels.

Run it alone, in float64: ``JAX_ENABLE_X64=1 python benchmarks/lanes.py``.
"""

import time
import warnings

import jax
import numpy as np
from timing import median

import probkit as pk

LANES, TIME, METHOD = 1000, 120, pk.Auto(draws=500)


def series() -> np.ndarray:
    """Random walks with noise, the ratio of their scales from 0.2 to 10."""
    rng = np.random.default_rng(0)
    walk = np.cumsum(rng.normal(size=(TIME, LANES)), axis=0)
    return walk + rng.uniform(0.1, 5.0, LANES) * rng.normal(size=(TIME, LANES))


def statsmodels_seconds(y: np.ndarray, count: int) -> float:
    """Seconds a series of maximum likelihood by statsmodels (an estimate, no posterior)."""
    from statsmodels.tsa.statespace.structural import UnobservedComponents

    begin = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(count):
            UnobservedComponents(y[:, i], "llevel").fit(disp=0)
    return (time.perf_counter() - begin) / count


def main() -> None:
    """Print seconds, and how far lanes are from single fits."""
    y = series()

    def fit(seed: int, method: pk.infer.method.Method = METHOD) -> pk.LanePosterior:
        return pk.fit(pk.LocalLevel(), y, key=jax.random.key(seed), method=method, progress=False)

    begin = time.perf_counter()
    posterior = fit(0)
    first = time.perf_counter() - begin
    print(f"first fit of {LANES} series: {first:.1f} s, of which compiling {posterior.report.seconds.compile:.1f}")
    run = median(fit, 5)
    print(f"later fits, {METHOD.draws} draws each: {run:.2f} s, {1e3 * run / LANES:.2f} ms a series")
    rungs = posterior.status()["rung"].value_counts().to_dict()
    print(f"  rungs {rungs}, converged {sum(r.converged for r in posterior.reports)} of {LANES}")
    points = median(lambda seed: fit(seed, pk.MLE()), 5)
    print(f"maximum likelihood with standard errors: {points:.2f} s, {1e3 * points / LANES:.2f} ms a series")
    one = lambda i: pk.fit(pk.LocalLevel(), y[:, i], key=jax.random.key(i), method=METHOD, progress=False)
    singles = [one(i) for i in range(20)]
    begin = time.perf_counter()
    for i in range(20):
        one(i)
    print(f"single fits in a loop: {1e3 * (time.perf_counter() - begin) / 20:.2f} ms a series")
    gaps = [
        (np.log(posterior.sites[name][:, :, i]).mean() - np.log(s.sites[name]).mean()) / np.log(s.sites[name]).std()
        for i, s in enumerate(singles)
        for name in s.sites
    ]
    print(f"  lanes less single fits, means of log scales in posterior sds: root mean square {np.std(gaps):.3f}")
    theirs = statsmodels_seconds(y, 20)
    print(f"statsmodels, maximum likelihood: {1e3 * theirs:.1f} ms a series, {theirs * LANES / points:.0f} times ours")


if __name__ == "__main__":
    main()
