"""Fifteen posteriors of posteriordb, each a plain NumPyro model, by the default fit beside NumPyro's NUTS.

    python benchmarks/posteriordb.py [--only NAME ...] [--skip-nuts]

Reads the data beside the repository (PROBKIT_SHARED, or ../shared). Prints seconds to compile and to run, the rung that
answered, the worst error of a mean in reference sds, the extreme ratios of sds, and effective draws a second.

Source: stan-dev/posteriordb (BSD-3), reference draws by Stan's NUTS. The models follow its formulas.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_ENABLE_X64", "1")

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.distributions import constraints

import probkit as pk

SHARED = Path(os.environ.get("PROBKIT_SHARED") or Path(__file__).resolve().parents[2] / "shared") / "data/posteriordb"


def flat(name, support=constraints.real, shape=()):
    """An improper flat prior on a support."""
    return numpyro.sample(name, dist.ImproperUniform(support, (), shape))


def arK(y, K):
    alpha = numpyro.sample("alpha", dist.Normal(0, 10))
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([K]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    lags = jnp.stack([y[K - k - 1 : len(y) - k - 1] for k in range(K)], -1)
    numpyro.sample("y", dist.Normal(alpha + lags @ beta, sigma), obs=y[K:])


def arma11(y):
    mu = numpyro.sample("mu", dist.Normal(0, 10))
    phi = numpyro.sample("phi", dist.Normal(0, 2))
    theta = numpyro.sample("theta", dist.Normal(0, 2))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))

    def step(e, pair):
        before, now = pair
        e = now - (mu + phi * before + theta * e)
        return e, e

    first = y[0] - (mu + phi * mu)
    _, rest = jax.lax.scan(step, first, (y[:-1], y[1:]))
    numpyro.factor("e", dist.Normal(0, sigma).log_prob(jnp.concatenate([first[None], rest])).sum())


def eight_schools(y, sigma):
    mu = numpyro.sample("mu", dist.Normal(0, 5))
    tau = numpyro.sample("tau", dist.HalfCauchy(5))
    eta = numpyro.sample("eta", dist.Normal(0, 1).expand([len(y)]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * eta)
    numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


def garch11(y, sigma1):
    mu = flat("mu")
    alpha0 = flat("alpha0", constraints.positive)
    alpha1 = flat("alpha1", constraints.unit_interval)
    beta1 = flat("beta1", constraints.interval(0.0, 1.0 - alpha1))

    def step(s2, before):
        s2 = alpha0 + alpha1 * (before - mu) ** 2 + beta1 * s2
        return s2, s2

    _, rest = jax.lax.scan(step, sigma1**2, y[:-1])
    s = jnp.sqrt(jnp.concatenate([(sigma1**2)[None], rest]))
    numpyro.sample("y", dist.Normal(mu, s), obs=y)


def gp_regr(x, y):
    rho = numpyro.sample("rho", dist.Gamma(25, 4))
    alpha = numpyro.sample("alpha", dist.HalfNormal(2))
    sigma = numpyro.sample("sigma", dist.HalfNormal(1))
    K = alpha**2 * jnp.exp(-0.5 * ((x[:, None] - x) / rho) ** 2) + sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance_matrix=K), obs=y)


def hmm(y):
    theta1 = numpyro.sample("theta1", dist.Dirichlet(jnp.ones(2)))
    theta2 = numpyro.sample("theta2", dist.Dirichlet(jnp.ones(2)))
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.positive_ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(jnp.array([3.0, 10.0]), 1.0).log_prob(mu).sum())
    log_theta = jnp.log(jnp.stack([theta1, theta2]))
    emission = dist.Normal(mu, 1.0).log_prob(y[:, None])

    def step(gamma, e):
        return jax.nn.logsumexp(gamma[:, None] + log_theta, 0) + e, None

    gamma, _ = jax.lax.scan(step, emission[0], emission[1:])
    numpyro.factor("y", jax.nn.logsumexp(gamma))


def regression(X, y):
    """Normal regression, all priors flat."""
    beta = flat("beta", constraints.real_vector, (X.shape[1],))
    sigma = flat("sigma", constraints.positive)
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def kidscore(X, y):
    beta = flat("beta", constraints.real_vector, (X.shape[1],))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def kilpisjarvi(x, y, pmualpha, psalpha, pmubeta, psbeta):
    alpha = numpyro.sample("alpha", dist.Normal(pmualpha, psalpha))
    beta = numpyro.sample("beta", dist.Normal(pmubeta, psbeta))
    sigma = flat("sigma", constraints.positive)
    numpyro.sample("y", dist.Normal(alpha + beta * x, sigma), obs=y)


def mixture(y):
    mu = numpyro.sample("mu", dist.ImproperUniform(constraints.ordered_vector, (), (2,)))
    numpyro.factor("mu_prior", dist.Normal(0, 2).log_prob(mu).sum())
    sigma = numpyro.sample("sigma", dist.HalfNormal(2).expand([2]).to_event(1))
    theta = numpyro.sample("theta", dist.Beta(5, 5))
    parts = dist.Normal(mu, sigma).log_prob(y[:, None]) + jnp.log(jnp.stack([theta, 1 - theta]))
    numpyro.factor("y", jax.nn.logsumexp(parts, -1).sum())


def blr(X, y):
    beta = numpyro.sample("beta", dist.Normal(0, 10).expand([X.shape[1]]).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10))
    numpyro.sample("y", dist.Normal(X @ beta, sigma), obs=y)


def columns(*parts):
    """A design matrix from columns and constants."""
    n = max(np.size(p) for p in parts)
    return np.stack([np.broadcast_to(np.asarray(p, float), (n,)) for p in parts], -1)


def load(name):
    """Data of one set as float arrays."""
    raw = json.loads((SHARED / "data" / f"{name}.json").read_text())
    return {k: np.asarray(v, float) for k, v in raw.items()}


SETS = (
    "earnings", "kidiq", "nes1980", "mesquite", "kilpisjarvi_mod", "arK", "arma", "eight_schools", "garch",
    "gp_pois_regr", "hmm_example", "low_dim_gauss_mix", "sblrc",
)  # fmt: skip


def posteriors():
    """Name -> (model, its arguments)."""
    earnings, kid, nes, mesquite, kil, ar, arma, schools, garch, gp, hmm_data, mix, sblrc = (load(n) for n in SETS)
    age, logs = nes["age_discrete"], {k: np.log(v) for k, v in mesquite.items() if k not in ("N", "group")}
    nes_X = columns(
        1, nes["real_ideo"], nes["race_adj"], age == 2, age == 3, age == 4, nes["educ1"], nes["gender"], nes["income"]
    )  # fmt: skip
    tree_X = columns(
        1, *(logs[k] for k in ("diam1", "diam2", "canopy_height", "total_height", "density")), mesquite["group"]
    )
    both = kid["mom_hs"] * kid["mom_iq"]
    return {
        "arK-arK": (arK, (ar["y"], 5)),
        "arma-arma11": (arma11, (arma["y"],)),
        "eight_schools-eight_schools_noncentered": (eight_schools, (schools["y"], schools["sigma"])),
        "garch-garch11": (garch11, (garch["y"], garch["sigma1"])),
        "gp_pois_regr-gp_regr": (gp_regr, (gp["x"], gp["y"])),
        "hmm_example-hmm_example": (hmm, (hmm_data["y"],)),
        "earnings-earn_height": (regression, (columns(1, earnings["height"]), earnings["earn"])),
        "earnings-logearn_height_male": (
            regression,
            (columns(1, earnings["height"], earnings["male"]), np.log(earnings["earn"])),
        ),
        "kidiq-kidscore_interaction": (kidscore, (columns(1, kid["mom_hs"], kid["mom_iq"], both), kid["kid_score"])),
        "kidiq-kidscore_momiq": (kidscore, (columns(1, kid["mom_iq"]), kid["kid_score"])),
        "kilpisjarvi_mod-kilpisjarvi": (
            kilpisjarvi,
            tuple(kil[k] for k in ("x", "y", "pmualpha", "psalpha", "pmubeta", "psbeta")),
        ),
        "low_dim_gauss_mix-low_dim_gauss_mix": (mixture, (mix["y"],)),
        "mesquite-logmesquite": (regression, (tree_X, logs["weight"])),
        "nes1980-nes": (regression, (nes_X, nes["partyid7"])),
        "sblrc-blr": (blr, (sblrc["X"], sblrc["y"])),
    }


def table_of(sites, names):
    """Draws (S, parameters) in the order of the reference's names, such as ``beta[1]`` or ``theta1[2]``."""
    out = []
    for name in names:
        base, _, index = str(name).partition("[")
        draws = sites.get(base)
        if draws is None:  # beta1, beta2 ... of the reference are one vector here
            base, index = base.rstrip("0123456789"), base[len(base.rstrip("0123456789")) :]
            draws = sites[base]
        draws = draws.reshape(-1, *draws.shape[2:])
        at = tuple(int(i) - 1 for i in index.rstrip("]").split(",")) if index else ()
        out.append(draws[(slice(None), *at)])
    return np.stack(out, -1)


def errors(sites, name):
    """Worst error of a mean in reference sds, and the least and largest ratio of sds."""
    reference = np.load(SHARED / "reference" / f"{name}.npz")
    draws = table_of(sites, reference["names"])
    ratio = draws.std(0) / reference["sd"]
    return np.max(np.abs(draws.mean(0) - reference["mean"]) / reference["sd"]), ratio.min(), ratio.max()


def numpyro_nuts(model, args, seed):
    """NumPyro's own NUTS, 4 chains of 1,000: draws, least effective sample size, seconds."""
    kernel = numpyro.infer.NUTS(model)
    mcmc = numpyro.infer.MCMC(
        kernel, num_warmup=1000, num_samples=1000, num_chains=4, chain_method="vectorized", progress_bar=False
    )
    begin = time.perf_counter()
    mcmc.run(jax.random.key(seed), *args)
    first = time.perf_counter() - begin
    begin = time.perf_counter()
    mcmc.run(jax.random.key(seed + 1), *args)
    jax.block_until_ready(mcmc.get_samples())
    again = time.perf_counter() - begin
    sites = jax.device_get(mcmc.get_samples(group_by_chain=True))
    ess = min(float(np.min(numpyro.diagnostics.effective_sample_size(v))) for v in sites.values())
    return sites, ess, first, again


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="*", help="parts of names")
    parser.add_argument("--skip-nuts", action="store_true")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"{'posterior':34s} {'rung':10s}  first      run  k-hat    ess  |mean|    sd ratio")
    total = total_nuts = 0.0
    for name, (model, args) in posteriors().items():
        if options.only and not any(part in name for part in options.only):
            continue
        begin = time.perf_counter()
        pk.fit(model, args=args, key=jax.random.key(options.seed), progress=False)
        first = time.perf_counter() - begin
        begin = time.perf_counter()
        posterior = pk.fit(model, args=args, key=jax.random.key(options.seed + 1), progress=False)
        again = time.perf_counter() - begin
        worst, low, high = errors(posterior.sites, name)
        r = posterior.report
        line = f"{name.partition('-')[2][:33]:34s} {r.rung:10s} {first:6.1f} {again:8.3f} {r.k_hat:6.2f} {r.ess:6.0f}"
        line += f" {worst:7.3f} {low:5.2f}-{high:4.2f}" + ("" if r.converged else " NOT CONVERGED")
        total += again
        if not options.skip_nuts:
            sites, ess, first, run = numpyro_nuts(model, args, options.seed)
            worst, low, high = errors(sites, name)
            total_nuts += run
            line += f" | NUTS {first:5.1f} {run:7.3f} {ess:6.0f} {worst:6.3f} {low:4.2f}-{high:4.2f}"
            line += f" | ESS/s ratio {r.ess / again / (ess / run):7.1f}"
        print(line, flush=True)
    print(f"total after compilation: {total:.2f} s" + ("" if options.skip_nuts else f"; NUTS {total_nuts:.2f} s"))


if __name__ == "__main__":
    main()
