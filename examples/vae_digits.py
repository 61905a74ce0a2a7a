"""A variational auto-encoder of handwritten digits: two nets and one objective.

    python examples/vae_digits.py --out results

The 1,797 images of scikit-learn's digits have 8 x 8 pixels that count from 0 to 16. Model: ``z ~ N(0, I)``, and each
pixel ``Binomial(16, p_i(z))`` with p from a net. Guide: ``q(z | x)`` normal, with mean and scale from another net. Both
learn by the ELBO, and are judged on held-out images by the ELBO and by the importance-weighted bound of 100 particles,
which is closer to log p(x), beside what pixels say that know nothing of each other. Kingma and Welling (2014),
Auto-encoding variational Bayes; Burda, Grosse and Salakhutdinov (2016), Importance weighted autoencoders. Needs
scikit-learn. Works in either precision; float32, JAX's own default, is the faster.
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
import numpyro.distributions as dist
import optax

from probkit.vi.objectives import elbo_estimate, elbo_with_kl

COUNT, PIXELS, HELD_OUT = 16, 64, 400
LATENT, WIDTH = 16, 256
STEPS, CHUNK, BATCH, RATE, DECAY = 2000, 50, 100, 2e-3, 0.3
PRIOR = dist.Normal(jnp.zeros(LATENT), 1.0).to_event(1)


# -- the model and its training ---------------------------------------------------------------------------------------


class VAE(eqx.Module):
    """Two nets, and the distributions they stand for."""

    encoder: eqx.nn.MLP
    decoder: eqx.nn.MLP

    def __init__(self, key, width=WIDTH):
        k_encoder, k_decoder = jax.random.split(key)
        self.encoder = eqx.nn.MLP(PIXELS, 2 * LATENT, width, 2, jax.nn.gelu, key=k_encoder)
        self.decoder = eqx.nn.MLP(LATENT, PIXELS, width, 2, jax.nn.gelu, key=k_decoder)

    def guide(self, x):
        """q(z | x)."""
        loc, scale = jnp.split(self.encoder(x / COUNT), 2)
        return dist.Normal(loc, jax.nn.softplus(scale)).to_event(1)

    def image(self, z):
        """p(x | z)."""
        return dist.Binomial(COUNT, logits=self.decoder(z)).to_event(1)


def mean_elbo(vae, images, key):
    """The ELBO of an image, by one draw of z for each: what is maximised."""
    one = lambda x, key: elbo_with_kl(lambda z: vae.image(z).log_prob(x), vae.guide(x), PRIOR, key, draws=1)
    return jnp.mean(jax.vmap(one)(images, jax.random.split(key, len(images))))


def train(vae, images, held_out, key, steps=STEPS):
    """Adam on random batches; the ELBO of an image that is learnt from, and of one held out, chunk by chunk."""
    optimiser = optax.adamw(optax.cosine_decay_schedule(RATE, steps), weight_decay=DECAY)
    params, static = eqx.partition(vae, eqx.is_array)

    def step(state, key):
        params, memory = state
        k_batch, k_draws = jax.random.split(key)
        batch = images[jax.random.randint(k_batch, (BATCH,), 0, len(images))]
        loss, slope = jax.value_and_grad(lambda p: -mean_elbo(eqx.combine(p, static), batch, k_draws))(params)
        updates, memory = optimiser.update(slope, memory, params)
        return (optax.apply_updates(params, updates), memory), -loss

    @jax.jit
    def chunk(state, key):
        state, learnt = jax.lax.scan(step, state, jax.random.split(key, CHUNK))
        return state, (jnp.mean(learnt), mean_elbo(eqx.combine(state[0], static), held_out, key))

    state, curve = (params, optimiser.init(params)), []
    for i in range(steps // CHUNK):
        state, point = chunk(state, jax.random.fold_in(key, i))
        curve.append(point)
    return eqx.combine(state[0], static), np.array(curve)


@eqx.filter_jit
def bounds(vae, images, key):
    """The ELBO and the bound of 100 particles, (2,), in nats per image, and their Monte Carlo errors."""

    def both(x, key):
        log_joint = lambda z: PRIOR.log_prob(z) + vae.image(z).log_prob(x)
        sizes = ((50, 1), (2, 100))  # draws, particles
        return jnp.array([elbo_estimate(log_joint, vae.guide(x), key, *size) for size in sizes])

    value, error = jnp.moveaxis(jax.vmap(both)(images, jax.random.split(key, len(images))), -1, 0)
    return jnp.mean(value, axis=0), jnp.sqrt(jnp.mean(error**2, axis=0) / len(images))


# -- data and what is compared ----------------------------------------------------------------------------------------


def read_digits():
    """Images (n, 64) with counts from 0 to 16: 1,397 to learn from; 400 held out, with their labels."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise SystemExit("The digits come with scikit-learn, which is not here: pip install scikit-learn") from error
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = jnp.asarray(images[order], jnp.result_type(float)), labels[order]
    return images[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]


def independent_pixels(images):
    """Log densities of an image whose pixels are independent: a binomial each, and a table of 17 frequencies each."""
    share = (images.sum(0) + 1) / (COUNT * len(images) + 2)
    seen = jnp.sum(jax.nn.one_hot(images.astype(int), COUNT + 1), axis=0) + 0.5
    table = dist.Categorical(probs=seen / seen.sum(-1, keepdims=True)).to_event(1)
    return {
        "a binomial for each pixel": dist.Binomial(COUNT, probs=share).to_event(1).log_prob,
        "a frequency table for each pixel": lambda x: table.log_prob(x.astype(int)),
    }


def report(vae, learnt, held_out, key):
    """Prints the log density of an image by every model, in nats: the higher, the better."""
    print(f"\n{'nats per image':34}{'learnt from':>16}{'held out':>16}")
    for name, log_prob in independent_pixels(learnt).items():
        print(f"{name:34}{log_prob(learnt).mean():16.1f}{log_prob(held_out).mean():16.1f}")
    (seen, _), (new, error) = (bounds(vae, images, key) for images in (learnt[:HELD_OUT], held_out))
    for i, name in enumerate(("VAE, ELBO", "VAE, importance-weighted bound")):
        print(f"{name:34}{seen[i]:16.1f}{new[i]:9.1f} ± {error[i]:.2f}")


# -- figures ----------------------------------------------------------------------------------------------------------


def show(axes, images):
    """Images on axes, dark on light."""
    for ax, image in zip(axes.flat, np.asarray(images), strict=True):
        ax.imshow(np.reshape(image, (8, 8)), cmap="Greys", vmin=0, vmax=COUNT)
        ax.set(xticks=[], yticks=[])
        ax.spines[:].set_color("0.8")


def draw_digits(vae, held_out, labels, key, out):
    """Held-out digits, two of each, above what the decoder makes of them; and images that the prior makes up."""
    chosen = np.concatenate([np.flatnonzero(labels == digit)[:2] for digit in range(10)])
    rebuilt = jax.vmap(lambda x: vae.image(vae.guide(x).mean).mean)(held_out[chosen])
    figure, axes = plt.subplots(2, 20, figsize=(13, 1.5), layout="constrained")
    show(axes, np.concatenate([held_out[chosen], rebuilt]))
    for ax, name in zip(axes[:, 0], ("held out", "rebuilt"), strict=True):
        ax.set_ylabel(name)
    figure.savefig(out / "vae_reconstructions.png", dpi=130)

    made_up = jax.vmap(lambda z: vae.image(z).mean)(PRIOR.sample(key, (80,)))
    figure, axes = plt.subplots(5, 16, figsize=(10.4, 3.6), layout="constrained")
    show(axes, made_up)
    figure.suptitle("Drawn from the prior: z ~ N(0, I), and the pixels' means", fontsize="medium")
    figure.savefig(out / "vae_samples.png", dpi=130)


def draw_training(vae, curve, held_out, labels, out):
    """The ELBO while it was trained, and the means of q(z | x) on their first two principal axes."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4.6), layout="constrained")
    steps = CHUNK * (np.arange(len(curve)) + 1)
    for values, name, colour in zip(curve.T, ("learnt from", "held out"), ("0.6", "C0"), strict=True):
        left.plot(steps, values, color=colour, label=f"{name}: {values[-1]:.1f} at the end")
    left.set(xlabel="step", ylabel="ELBO, nats per image", ylim=(-160, None))
    left.legend(loc="lower right", frameon=False)
    left.spines[["top", "right"]].set_visible(False)

    means = np.asarray(jax.vmap(lambda x: vae.guide(x).mean)(held_out), float)
    means = means - means.mean(axis=0)
    axes = np.linalg.svd(means, full_matrices=False)[2][:2]
    for digit in range(10):
        place = means[labels == digit] @ axes.T
        right.scatter(*place.T, s=9, color=f"C{digit}", alpha=0.5, linewidths=0)
        right.text(*np.median(place, axis=0), str(digit), color=f"C{digit}", fontsize=17, weight="bold", ha="center")
    right.set(xlabel="first axis of the latent means", ylabel="second axis", title="held-out digits")
    right.spines[["top", "right"]].set_visible(False)
    figure.savefig(out / "vae_training.png", dpi=130)


def main():
    """Train, compare, draw."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("results"), help="folder for the figures (default: results)")
    parser.add_argument("--seed", type=int, default=1, help="seed of every random draw (default: 1)")
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    learnt, held_out, labels = read_digits()
    k_nets, k_training, k_bounds, k_samples = jax.random.split(jax.random.key(a.seed), 4)
    start = time.perf_counter()
    vae, curve = train(VAE(k_nets), learnt, held_out, k_training)
    print(f"{STEPS} steps in {time.perf_counter() - start:.1f} s, compilation included")
    report(vae, learnt, held_out, k_bounds)
    draw_digits(vae, held_out, labels, k_samples, a.out)
    draw_training(vae, curve, held_out, labels, a.out)


if __name__ == "__main__":
    main()
