"""The guides, driven through the same invariants."""

from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.vi.guides import FullRank, LowRank, MeanField, affine, start_guide

DIM, RANK = 4, 2
KINDS = {"mean-field": MeanField, "full-rank": FullRank, "low-rank": LowRank}


def guide(kind, dtype=None):
    rng, dtype = np.random.default_rng(0), dtype or jnp.result_type(float)
    draw = lambda *shape: rng.normal(size=shape).astype(dtype)
    rest = {"mean-field": (), "full-rank": (draw(DIM, DIM),), "low-rank": (draw(DIM, RANK),)}[kind]
    return KINDS[kind](draw(DIM), 0.5 * draw(DIM), *rest)


def root(kind):
    """Location and R with covariance R R', in NumPy."""
    g = guide(kind, np.float64)
    if kind == "full-rank":
        return g.loc, np.tril(g.lower, -1) + np.diag(np.exp(g.log_diagonal))
    scales = np.diag(np.exp(g.log_scale))
    return g.loc, scales if kind == "mean-field" else np.hstack([scales, g.directions])


CENTRE, VECTOR = np.array([1.0, -2.0, 0.0, 3.0]), np.array([0.5, 2.0, 1.0, 3.0])
MATRIX = np.tril(np.random.default_rng(1).normal(size=(DIM, DIM)), -1) + np.diag(VECTOR)


@cache
def found(kind):
    """What the tests look at, in one program."""
    dtype = jnp.result_type(float)
    centre, vector, matrix = (a.astype(dtype) for a in (CENTRE, VECTOR, MATRIX))

    @jax.jit
    def everything(g):
        basis = jnp.concatenate([jnp.zeros((1, g.noise_dim), dtype), jnp.eye(g.noise_dim, dtype=dtype)])
        moved = {"vector": affine(g, centre, vector)}
        if kind == "full-rank":
            moved["matrix"] = affine(g, centre, matrix)
        q = g.distribution()

        def target(g):
            u = jax.vmap(g.transform)(basis)
            return jnp.sum(jnp.sin(u)) + g.entropy() + jnp.sum(jnp.log(g.scale()))

        return {
            "points": jax.vmap(g.transform)(basis),
            "moved": {name: (jax.vmap(m.transform)(basis), m.entropy(), m) for name, m in moved.items()},
            "entropy": g.entropy(),
            "scale": g.scale(),
            "of distribution": (q.entropy() if kind != "low-rank" else None, q.log_prob(centre), q.variance),
            "gradient": jax.grad(target)(g),
        }

    return everything(guide(kind))


def law(points):
    """Mean and covariance of an affine function of standard normal noise, from its values at 0 and the unit vectors."""
    points = np.asarray(points, float)
    columns = (points[1:] - points[0]).T
    return points[0], columns @ columns.T


@pytest.mark.parametrize("kind", KINDS)
def test_noise_becomes_the_distribution(kind):
    (mean, covariance), (loc, R) = law(found(kind)["points"]), root(kind)
    S = R @ R.T
    assert_allclose(mean, loc, rtol=tol(1e-12, 1e-5))
    assert_allclose(covariance, S, rtol=tol(1e-11, 1e-4), atol=tol(1e-12, 1e-5))
    _, log_density, variance = found(kind)["of distribution"]
    away = CENTRE - loc
    expected = -0.5 * (away @ np.linalg.solve(S, away) + np.linalg.slogdet(2 * np.pi * S)[1])
    assert_allclose(log_density, expected, rtol=tol(1e-11, 1e-4))
    assert_allclose(variance, np.diagonal(S), rtol=tol(1e-12, 1e-5))
    assert_allclose(found(kind)["scale"], np.sqrt(np.diagonal(S)), rtol=tol(1e-12, 1e-5))


@pytest.mark.parametrize("kind", KINDS)
def test_entropy(kind):
    _, R = root(kind)
    expected = 0.5 * np.linalg.slogdet(2 * np.pi * np.e * R @ R.T)[1]
    assert_allclose(found(kind)["entropy"], expected, rtol=tol(1e-12, 1e-5))
    theirs = found(kind)["of distribution"][0]
    if theirs is not None:
        assert_allclose(theirs, expected, rtol=tol(1e-12, 1e-5))


@pytest.mark.parametrize(("kind", "by"), [*((kind, "vector") for kind in KINDS), ("full-rank", "matrix")])
def test_affine_has_the_law_of_the_image(kind, by):
    A = np.diag(VECTOR) if by == "vector" else MATRIX
    points, entropy, moved = found(kind)["moved"][by]
    assert isinstance(moved, KINDS[kind])
    mean, covariance = law(points)
    loc, R = root(kind)
    assert_allclose(mean, CENTRE + A @ loc, rtol=tol(1e-12, 1e-4), atol=tol(1e-12, 1e-5))
    assert_allclose(covariance, A @ R @ R.T @ A.T, rtol=tol(1e-11, 1e-4), atol=tol(1e-11, 1e-4))
    assert_allclose(entropy, found(kind)["entropy"] + np.log(VECTOR).sum(), rtol=tol(1e-12, 1e-5))


def test_a_matrix_is_for_full_rank():
    for kind in ("mean-field", "low-rank"):
        with pytest.raises(TypeError, match=f"{KINDS[kind].__name__} guide is not closed"):
            affine(guide(kind), CENTRE, MATRIX)


def test_scales_may_be_negative_in_an_affine_map():
    """The law of a mean-field guide has no sign."""
    moved = affine(guide("mean-field"), CENTRE, -VECTOR)
    loc, R = root("mean-field")
    assert_allclose(moved.loc, CENTRE - VECTOR * loc, rtol=tol(1e-12, 1e-4), atol=tol(1e-12, 1e-5))
    assert_allclose(np.exp(moved.log_scale), VECTOR * np.diagonal(R), rtol=tol(1e-12, 1e-5))


@pytest.mark.parametrize("kind", KINDS)
def test_pytree(kind):
    g = guide(kind)
    leaves, structure = jax.tree.flatten(g)
    again = jax.tree.unflatten(structure, leaves)
    assert type(again) is KINDS[kind] and len(leaves) == (2 if kind == "mean-field" else 3)
    assert jax.tree.all(jax.tree.map(np.array_equal, g, again))
    assert again.noise_dim == DIM + (RANK if kind == "low-rank" else 0)


@pytest.mark.parametrize("kind", KINDS)
def test_gradients(kind):
    for leaf in jax.tree.leaves(found(kind)["gradient"]):
        assert np.isfinite(leaf).all() and leaf.dtype == jnp.result_type(float)


@pytest.mark.parametrize("kind", KINDS)
def test_precision_is_kept(kind):
    def outputs(g):
        q = g.distribution()
        return [g.transform(jnp.ones(g.noise_dim, jnp.float32)), g.entropy(), g.scale(), q.log_prob(g.loc)]

    assert {a.dtype for a in jax.eval_shape(outputs, guide(kind, np.float32))} == {jnp.dtype(jnp.float32)}


@pytest.mark.parametrize("kind", KINDS)
def test_starts(kind):
    start = lambda key: start_guide(kind, DIM, RANK, key, jnp.result_type(float))
    g, scale = jax.jit(lambda key: (start(key), start(key).scale()))(jax.random.key(0))
    assert type(g) is KINDS[kind] and not np.any(g.loc)
    assert_allclose(scale, 1, atol=0.1)
    assert isinstance(g.distribution(), dist.Distribution)
