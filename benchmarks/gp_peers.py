"""Gaussian processes of other libraries, run in an environment of their own by gp.py and gp_large.py.

python benchmarks/gp_peers.py KIND LIBRARY IN.npz OUT.npz [--repeats 5] [--epochs 20] [--count 512]

KIND is exact (value and gradient, ARD RBF), line (Matern-3/2 on sorted inputs) or svgp (training on minibatches).
"""

import argparse
import json
import math
import subprocess
import tempfile
import time
from pathlib import Path

import numpy as np


def timed(run, repeats):
    """The median of several calls, after one that is not counted, and what the last gave."""
    out, times = run(), []
    for _ in range(repeats):
        begin = time.perf_counter()
        out = run()
        times.append(time.perf_counter() - begin)
    return float(np.median(times)), out


def by_jax(function, theta, X, y, repeats):
    import jax

    jax.config.update("jax_enable_x64", True)
    theta, X, y = (jax.numpy.asarray(a) for a in (theta, X, y))
    program = jax.jit(jax.value_and_grad(function))
    planned = program.lower(theta, X, y).compile().memory_analysis().temp_size_in_bytes
    seconds, (value, gradient) = timed(lambda: jax.block_until_ready(program(theta, X, y)), repeats)
    return seconds, float(value), np.asarray(gradient), planned


def tinygp_exact(theta, X, y):
    import jax.numpy as jnp
    from tinygp import GaussianProcess, kernels, transforms

    scales = jnp.exp(theta)
    kernel = scales[-2] ** 2 * transforms.Linear(1 / scales[:-2], kernels.ExpSquared())
    return GaussianProcess(kernel, X, diag=scales[-1] ** 2).log_probability(y)


def gpjax_exact(theta, X, y):
    import gpjax as gpx
    import jax.numpy as jnp

    scales = jnp.exp(theta)
    kernel = gpx.kernels.RBF(lengthscale=scales[:-2], variance=scales[-2] ** 2)
    prior = gpx.gps.Prior(mean_function=gpx.mean_functions.Zero(), kernel=kernel, jitter=0.0)
    model = prior * gpx.likelihoods.Gaussian(obs_stddev=scales[-1])
    return gpx.objectives.conjugate_mll(model, gpx.Dataset(X=X, y=y[:, None]))


def tinygp_line(theta, x, y):
    import jax.numpy as jnp
    from tinygp import GaussianProcess
    from tinygp.kernels import quasisep

    length, scale, noise = jnp.exp(theta)
    return GaussianProcess(quasisep.Matern32(length, scale), x, diag=noise**2).log_probability(y)


def gpytorch_exact(theta, X, y, repeats):
    import gpytorch
    import torch

    torch.set_default_dtype(torch.float64)
    X, y, theta = (torch.tensor(a) for a in (X, y, theta))
    likelihood = gpytorch.likelihoods.GaussianLikelihood()

    class Model(gpytorch.models.ExactGP):
        def __init__(self):
            super().__init__(X, y, likelihood)
            self.mean_module = gpytorch.means.ZeroMean()
            base = gpytorch.kernels.RBFKernel(ard_num_dims=X.shape[1])
            self.covar_module = gpytorch.kernels.ScaleKernel(base)

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model = Model()
    scales = torch.exp(theta)
    model.covar_module.base_kernel.lengthscale = scales[:-2]
    model.covar_module.outputscale = scales[-2] ** 2
    likelihood.noise = scales[-1] ** 2
    objective = gpytorch.mlls.ExactMarginalLogLikelihood(likelihood, model)
    model.train()

    def run():
        model.zero_grad()
        value = objective(model(X), y) * len(y)
        value.backward()
        return float(value.detach())

    exact = gpytorch.settings.fast_computations(False, False, False)
    with exact, gpytorch.settings.max_cholesky_size(10**7), gpytorch.settings.cholesky_jitter(0.0, 0.0):
        seconds, value = timed(run, repeats)
    return seconds, value, np.zeros(0), 0


def celerite2_line(theta, x, y, repeats):
    """Value and gradient in the numbers of its matrices; the chain to theta is left out of the time."""
    from celerite2 import backprop, terms

    length, scale, noise = np.exp(theta)
    term = terms.Matern32Term(sigma=scale, rho=length)

    def run():
        c, a, U, V = term.get_celerite_matrices(x, np.full_like(x, noise**2))
        Y = y[:, None]
        d, W, S = np.empty_like(a), np.empty_like(V), np.empty((len(x), U.shape[1], U.shape[1]))
        d, W, S = backprop.factor_fwd(x, c, a, U, V, d, W, S)
        Z, F = np.empty_like(Y), np.empty((len(x), U.shape[1], 1))
        Z, F = backprop.solve_lower_fwd(x, c, U, W, Y, Z, F)
        value = -0.5 * (np.sum(Z[:, 0] ** 2 / d) + np.sum(np.log(d)) + len(x) * math.log(2 * math.pi))
        bZ = -Z / d[:, None]
        bd = 0.5 * (Z[:, 0] ** 2 / d**2 - 1 / d)
        like = [np.zeros_like(one) for one in (x, c, U, W, Y)]
        _, _, bU, bW, _ = backprop.solve_lower_rev(x, c, U, W, Y, Z, F, bZ, *like)
        like = [np.zeros_like(one) for one in (x, c, a, U, V)]
        slopes = backprop.factor_rev(x, c, a, U, V, d, W, S, bd, bW, *like)
        return value, slopes, bU

    seconds, (value, _, _) = timed(run, repeats)
    return seconds, float(value), np.zeros(0), 0


def gpytorch_svgp(held, count, epochs, batch=1024):
    """Whitened, Cholesky, Adam at 0.01 on everything: the library's own example."""
    import gpytorch
    import torch

    torch.set_default_dtype(torch.float64)
    torch.manual_seed(0)
    X, y, X_new, y_new, Z = (torch.tensor(held[name]) for name in ("X", "y", "X_new", "y_new", "Z"))

    class Model(gpytorch.models.ApproximateGP):
        def __init__(self):
            law = gpytorch.variational.CholeskyVariationalDistribution(count)
            super().__init__(gpytorch.variational.VariationalStrategy(self, Z, law, learn_inducing_locations=False))
            self.mean_module = gpytorch.means.ConstantMean()
            self.covar_module = gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel(ard_num_dims=X.shape[1]))

        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(self.mean_module(x), self.covar_module(x))

    model, likelihood = Model(), gpytorch.likelihoods.GaussianLikelihood()
    objective = gpytorch.mlls.VariationalELBO(likelihood, model, num_data=len(y))
    optimiser = torch.optim.Adam([*model.parameters(), *likelihood.parameters()], lr=0.01)
    model.train(), likelihood.train()
    times, start = [], time.perf_counter()
    for _ in range(epochs):
        order = torch.randperm(len(y))
        for i in range(len(y) // batch):
            begin = time.perf_counter()
            rows = order[i * batch : (i + 1) * batch]
            optimiser.zero_grad()
            loss = -objective(model(X[rows]), y[rows])
            loss.backward()
            optimiser.step()
            times.append(time.perf_counter() - begin)
    seconds = time.perf_counter() - start
    model.eval(), likelihood.eval()
    with torch.no_grad():
        parts = [likelihood(model(X_new[i : i + 1000])) for i in range(0, len(y_new), 1000)]
        mean, std = torch.cat([p.mean for p in parts]).numpy(), torch.cat([p.stddev for p in parts]).numpy()
    y_new = y_new.numpy()
    density = 0.5 * ((y_new - mean) / std) ** 2 + np.log(std) + 0.5 * np.log(2 * np.pi)
    figures = {"rmse": np.sqrt(np.mean((y_new - mean) ** 2)), "nlpd": np.mean(density)}
    return figures | {"step_median": np.median(times), "seconds": seconds}


#: What each library is asked, by kind; those on JAX are functions of (theta, X, y).
PEERS = {
    "exact": {"tinygp": tinygp_exact, "GPJax": gpjax_exact, "GPyTorch": gpytorch_exact},
    "line": {"tinygp": tinygp_line, "celerite2": celerite2_line},
    "svgp": {"GPyTorch": gpytorch_svgp},
}


def ask(python, kind, library, arrays, **options):
    """Run a peer in its own environment; a dictionary of figures, or None where it is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "in.npz", Path(folder) / "out.json"
        np.savez(source, **{name: np.asarray(a) for name, a in arrays.items()})
        more = [part for name, value in options.items() for part in (f"--{name}", str(value))]
        done = subprocess.run([python, __file__, kind, library, source, target, *more], capture_output=True, text=True)
        if done.returncode:
            print(f"  {library} failed: {done.stderr.strip().splitlines()[-1]}")
            return None
        return json.loads(target.read_text())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("kind", choices=sorted(PEERS))
    parser.add_argument("library")
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--count", type=int, default=512)
    options = parser.parse_args()
    peer, held = PEERS[options.kind][options.library], np.load(options.source)
    if options.kind == "svgp":
        figures = {name: float(value) for name, value in peer(held, options.count, options.epochs).items()}
    else:
        at = held["theta"], held["X"], held["y"]
        own = options.library in ("GPyTorch", "celerite2")
        found = peer(*at, options.repeats) if own else by_jax(peer, *at, options.repeats)
        figures = dict(zip(("seconds", "value", "gradient", "planned"), found, strict=True))
        figures["gradient"] = np.asarray(figures["gradient"]).tolist()
    options.target.write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
