"""Eight schools: a hierarchical model written as a probkit module, centred and non-centred.

    python examples/eight_schools.py --out results

A field that holds a prior is unknown, one that holds an array is fixed, and ``pk.given`` makes a hierarchy: the prior
of theta depends on mu and tau. The centred form has a funnel that no method covers with ease: where its report says so,
only the other is drawn. Data: Rubin (1981), Estimation in parallel randomized experiments; Gelman et al. (2013),
Bayesian Data Analysis, 3rd edition, section 5.5. Works in float64: JAX_ENABLE_X64 is set to 1 before JAX is imported,
unless the environment has set it already.
"""

import os

os.environ.setdefault("JAX_ENABLE_X64", "1")
os.environ.setdefault("MPLBACKEND", "Agg")

import argparse
from pathlib import Path
from typing import Any

import arviz_base as azb
import arviz_plots as azp
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import numpyro.distributions as dist
from numpyro.distributions import constraints

import probkit as pk

EFFECT = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])  # of coaching, in points of the test
SIGMA = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])  # its standard error, school by school


class EightSchools(pk.Model):
    """``y_j ~ N(theta_j, sigma_j²)``, ``theta_j ~ N(mu, tau²)``."""

    sigma: Any
    mu: Any = pk.param(default=dist.Normal(0.0, 5.0))
    tau: Any = pk.param(support=constraints.positive, default=dist.HalfCauchy(5.0))
    theta: Any = pk.param(
        dims=("school",), default=pk.given(lambda m: dist.Normal(m.mu, m.tau).expand([8]).to_event(1))
    )

    def distribution(self, X: Any, length: int) -> dist.Distribution:
        return dist.Normal(self.theta, self.sigma).to_event(1)


class NonCentred(pk.Model):
    """The same model with ``theta_j = mu + tau eta_j``, ``eta_j ~ N(0, 1)``: no funnel, so a sampler moves freely."""

    sigma: Any
    mu: Any = pk.param(default=dist.Normal(0.0, 5.0))
    tau: Any = pk.param(support=constraints.positive, default=dist.HalfCauchy(5.0))
    eta: Any = pk.param(dims=("school",), default=dist.Normal(0.0, 1.0).expand([8]).to_event(1))

    @property
    def theta(self) -> jax.Array:
        return jnp.expand_dims(self.mu, -1) + jnp.expand_dims(self.tau, -1) * self.eta

    def distribution(self, X: Any, length: int) -> dist.Distribution:
        return dist.Normal(self.theta, self.sigma).to_event(1)


def forest(posteriors: dict[str, pk.Posterior], out: Path) -> Path:
    """Effects, their mean and their spread; ``posterior.draws`` is the model again, so it has theta in either form."""
    azp.style.use("arviz-variat")
    trees = {}
    for name, posterior in posteriors.items():
        model = jax.tree_util.tree_map(lambda a: np.reshape(a, (1, -1, *a.shape[2:])), posterior.draws)
        draws = {"effect": np.array(model.theta), "mean": model.mu, "spread": model.tau}
        trees[name] = azb.from_dict(
            {"posterior": draws}, dims={"effect": ["school"]}, coords={"school": list("ABCDEFGH")}
        )
    pc = azp.plot_forest(trees, combined=True, ci_probs=(0.5, 0.95), figure_kwargs={"figsize": (9, 6)})
    axes = pc.viz["figure"].item().axes[1]
    if len(trees) > 1:
        pc.add_legend("model", title="")
    heights = pc.get_aes_as_dataset("y")["effect"].mean("model")
    axes.scatter(EFFECT, heights, marker="x", color="0.3", label="measured")
    axes.legend(loc="lower right", fontsize="x-small")
    axes.set_xlabel("points in the test: mean, 50 % and 95 %")
    plt.savefig(out / "eight_schools.png", dpi=130, bbox_inches="tight")
    return out / "eight_schools.png"


def main() -> None:
    """Fit both forms, say what the reports and the summaries say, and draw those that converged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figure (default: results)")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random draw (default: 1)")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    keys = jax.random.split(jax.random.key(a.seed))
    posteriors = {
        "centred": pk.fit(EightSchools(SIGMA), EFFECT, key=keys[0]),
        "non-centred": pk.fit(NonCentred(SIGMA), EFFECT, key=keys[1]),
    }
    for name, posterior in posteriors.items():
        print(f"\n== {name}\n\n{posterior.report}\n\n{posterior.summary().to_string()}")
    converged = {name: posterior for name, posterior in posteriors.items() if posterior.report.converged}
    print(f"\n{forest(converged or posteriors, a.out)}")


if __name__ == "__main__":
    main()
