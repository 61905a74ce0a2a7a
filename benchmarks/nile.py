"""The Nile under a local level: first fit, later fits, effective draws a second beside NumPyro, MLE beside statsmodels.

    python benchmarks/nile.py [--repeats 20] [--skip-first]

First fits run in fresh processes: with nothing cached, and with JAX's persistent cache filled by the process before.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time

os.environ.setdefault("JAX_ENABLE_X64", "1")


def child():
    """One fresh process: seconds to import, and of the first fit, in parts."""
    begin = time.perf_counter()
    import jax

    import probkit as pk

    y, model, key = pk.datasets.nile(), pk.LocalLevel(), jax.random.key(0)
    imported = time.perf_counter() - begin
    from timing import compilation

    total, parts, programs = compilation(lambda: pk.fit(model, y, key=key, progress=False).sites)
    print(json.dumps({"import": imported, "total": total, "programs": programs, **parts}))


def first_fit(cache=None):
    """Runs a child with a given persistent cache, or none."""
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_COMPILATION", "JAX_PERSISTENT"))}
    if cache:
        env |= {"JAX_COMPILATION_CACHE_DIR": cache, "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    done = subprocess.run([sys.executable, __file__, "--child"], env=env, check=True, capture_output=True, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def print_first_fits():
    print(f"{'first fit, seconds':34s} import  total  trace  lower    XLA  cache  programs")
    with tempfile.TemporaryDirectory() as folder:
        runs = {"nothing cached": first_fit(), "filling the cache": first_fit(folder), "cached": first_fit(folder)}
    for name, run in runs.items():
        parts = "".join(f"{run.get(part, 0.0):7.2f}" for part in ("import", "total", "trace", "lower", "XLA", "cache"))
        print(f"  {name:32s}{parts}{run['programs']:10d}", flush=True)


def numpyro_nuts(model, y, seed):
    """NumPyro's NUTS on the model called as a NumPyro model, 4 x 1,000 draws: least ESS; seconds first, again, and
    again less what it compiles: MCMC.run compiles its loop at every call.
    """
    import jax
    import numpy as np
    from numpyro.diagnostics import effective_sample_size
    from numpyro.infer import MCMC
    from numpyro.infer import NUTS as Kernel
    from timing import compilation

    sampler = MCMC(
        Kernel(model), num_warmup=1000, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False
    )

    def run(seed):
        sampler.run(jax.random.key(seed), y)
        return sampler.get_samples()

    (first, _, _), *later = [compilation(lambda i=i: run(seed + i)) for i in range(4)]
    sites = jax.device_get(sampler.get_samples(group_by_chain=True))
    ess = min(float(np.min(effective_sample_size(v))) for v in sites.values())
    again = float(np.median([total for total, _, _ in later]))
    return ess, first, again, float(np.median([total - sum(parts.values()) for total, parts, _ in later]))


def print_posteriors(repeats):
    import jax
    import jax.numpy as jnp
    import numpy as np
    from timing import median

    import probkit as pk

    y, rng = pk.datasets.nile(), np.random.default_rng(0)
    fresh = [y + rng.normal(size=len(y)) for _ in range(repeats + 1)]
    keys = jax.random.split(jax.random.key(1), repeats + 1)
    rows = []
    for name, method in {"Auto": pk.Auto(), "NUTS": pk.NUTS()}.items():
        begin = time.perf_counter()
        pk.fit(pk.LocalLevel(), y, key=keys[0], method=method, progress=False)
        first, ess = time.perf_counter() - begin, []

        def again(i, method=method, ess=ess):
            posterior = pk.fit(pk.LocalLevel(), fresh[i], key=keys[i], method=method, progress=False)
            ess.append(posterior.report.ess)
            return posterior.sites

        seconds = median(again, repeats if name == "Auto" else 5)
        rows.append((f"pk.fit, {name}", float(np.median(ess)), first, seconds, seconds))
    rows.append(("NumPyro NUTS, vectorized", *numpyro_nuts(pk.LocalLevel(), jnp.asarray(y.to_numpy(), float), 2)))
    print(f"\n{'4,000 draws':34s} first, s  again, ms    run, ms    ESS  ESS/s of: first   again     run")
    for name, ess, *seconds in rows:
        first, again, run = seconds
        rates = "".join(f"{ess / s:8.0f}" for s in seconds)
        print(f"  {name:32s}{first:9.2f}{1e3 * again:11.1f}{1e3 * run:11.1f}{ess:7.0f}         {rates}")
    best = [rows[0][1] / s for s in rows[0][2:]]
    for name, ess, *seconds in rows[1:]:
        ratios = "".join(f"{rate / (ess / s):8.1f}" for rate, s in zip(best, seconds, strict=True))
        print(f"  {'Auto / ' + name + ', ESS/s':70s}         {ratios}")


def print_mle(repeats):
    import warnings

    import jax
    import numpy as np
    from statsmodels.tsa.statespace.structural import UnobservedComponents
    from timing import median

    import probkit as pk

    y, key = pk.datasets.nile(), jax.random.key(0)
    model = UnobservedComponents(y.to_numpy(), "local level", use_exact_diffuse=True)
    begin = time.perf_counter()
    ours = pk.fit(pk.LocalLevel(), y, key=key, method=pk.MLE())
    first = time.perf_counter() - begin
    seconds = median(lambda i: pk.fit(pk.LocalLevel(), y, key=key, method=pk.MLE()).sites, repeats)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = model.fit(disp=False)
        peer = median(lambda i: np.asarray(model.fit(disp=False).params), repeats)
    found = [ours.sites[n].item() ** 2 for n in ("obs_scale", "level_scale")]
    print(f"\n{'maximum likelihood':34s}    ms   ratio  log-likelihood  variances")
    print(
        f"  {'pk.MLE, 8 starts':32s}{1e3 * seconds:6.1f}{1.0:8.2f}{ours.report.log_density:16.4f}  {np.round(found, 1)}"
    )
    variances = np.round(theirs.params, 1)
    print(f"  {'statsmodels, 1 start':32s}{1e3 * peer:6.1f}{peer / seconds:8.2f}{theirs.llf:16.4f}  {variances}")
    print(f"  (pk.MLE first: {first:.2f} s)")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--skip-first", action="store_true", help="leave the fresh processes out")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        return child()
    from timing import load

    print(load())
    if not options.skip_first:
        print_first_fits()
    print_posteriors(options.repeats)
    print_mle(options.repeats)
    return None


if __name__ == "__main__":
    main()
