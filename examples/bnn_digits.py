"""Digits: how good, how honest and how wary an ensemble of small nets is.

    python examples/bnn_digits.py --out results

The 1,797 images of 8 x 8 pixels that come with scikit-learn, from 0 to 9. An ensemble of convolutional nets learns from
two thirds; accuracy, log loss and calibration error on the rest stand beside those of a single net, before and after
temperature scaling on images held out for it. Strangers (images turned inside out, and noise) should have more entropy
than digits. Needs scikit-learn.
"""

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import argparse
import time
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import probkit as pk
from probkit import evaluate as ev
from probkit.likelihoods import Categorical

MEMBERS, STEPS = 5, 300


class Net(eqx.Module):
    """Two convolutions and a dense layer; one image (8, 8, 1) to ten logits."""

    first: eqx.nn.Conv2d
    second: eqx.nn.Conv2d
    last: eqx.nn.Linear

    def __init__(self, key):
        keys = jax.random.split(key, 3)
        self.first = eqx.nn.Conv2d(1, 8, 3, padding=1, key=keys[0])
        self.second = eqx.nn.Conv2d(8, 16, 3, stride=2, padding=1, key=keys[1])
        self.last = eqx.nn.Linear(16 * 16, 10, key=keys[2])

    def __call__(self, image):
        x = jax.nn.relu(self.first(jnp.moveaxis(image, -1, 0)))
        return self.last(jnp.ravel(jax.nn.relu(self.second(x))))


def read_digits():
    """Images (n, 8, 8, 1) and labels, shuffled once."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("The digits come with scikit-learn, which is not here: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    return images[order].reshape(-1, 8, 8, 1).astype(np.float32), labels[order].astype(np.float32)


def fit(X, y, members, key, steps=STEPS):
    method = pk.bnn.Ensemble(members=members, steps=steps, batch_size=100, learning_rate=1e-2)
    return pk.fit(
        pk.BNN(Net(jax.random.key(0)), Categorical(10), prior=10.0), y, X, key=key, method=method, progress=False
    )


def row(name, p, y, key):
    error, low, high = ev.bootstrap(
        lambda p, y: 100 * ev.calibration_error(p, y, debiased=True), p, y, key=key, draws=300
    )
    accuracy = 100 * np.mean(p.argmax(1) == y)
    print(f"{name:32s} {accuracy:7.2f} {ev.log_loss(p, y):9.4f} {error:8.2f} ({low:.2f} to {high:.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figures")
    parser.add_argument("--members", type=int, default=MEMBERS)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    key, start = jax.random.key(0), time.perf_counter()
    X, y = read_digits()
    train, held, test = slice(0, 1000), slice(1000, 1300), slice(1300, None)
    print("                                accuracy  log loss  ECE in % (95% by bootstrap)")
    fig, axes = plt.subplots(1, 2, figsize=(8, 3.4), layout="constrained")
    for name, members in (("one net", 1), (f"ensemble of {args.members}", args.members)):
        posterior = fit(X[train], y[train], members, key)
        p_held, p = (posterior.predict(X[part]).class_probabilities for part in (held, test))
        scaled = ev.temperature(ev.as_logits(p_held), y[held])(ev.as_logits(p))
        row(name, p, y[test], key)
        row(f"{name}, temperature scaled", scaled, y[test], key)
    ev.reliability(p, y[test], 10, key=key, adaptive=True).plot(axes[0])
    axes[0].set(title="ensemble, most probable class", xlim=(0.5, 1), ylim=(0.5, 1))

    noise = np.random.default_rng(1).uniform(0, 16, (len(y[test]), 8, 8, 1)).astype(np.float32)
    known = posterior.predict(X[test])
    for i, (name, strangers) in enumerate({"inside out": 16 - X[test], "noise": noise}.items()):
        other = posterior.predict(strangers)
        is_stranger = np.r_[np.zeros(len(known.entropy)), np.ones(len(other.entropy))]
        found = [ev.auroc(np.r_[getattr(known, q), getattr(other, q)], is_stranger) for q in ("entropy", "epistemic")]
        print(f"strangers ({name}): AUROC {found[0]:.3f} by entropy, {found[1]:.3f} by mutual information")
        axes[1].hist(other.entropy, 30, range=(0, 2.3), alpha=0.5, color=f"C{i + 1}", label=name)
    axes[1].hist(known.entropy, 30, range=(0, 2.3), alpha=0.7, color="C0", label="digits")
    axes[1].set(title="entropy", xlabel="nats", yscale="log")
    axes[1].legend(fontsize=8, frameon=False)

    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
    fig.savefig(args.out / "bnn_digits.png", dpi=110)
    print(f"{time.perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
