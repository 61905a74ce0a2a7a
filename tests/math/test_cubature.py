"""Nodes have the moments of a normal law."""

import numpy as np
import pytest
from helpers import tol
from numpy.testing import assert_allclose

from probkit.math.cubature import normal_nodes


@pytest.mark.parametrize("columns", [1, 2, 5])
def test_moments(columns):
    x, w = (np.asarray(a, float) for a in normal_nodes(columns, float))
    small = tol(1e-10, 1e-5)
    assert_allclose(w.sum(), 1, rtol=small)
    assert_allclose(w @ x, 0, atol=small)
    assert_allclose((x * w[:, None]).T @ x, np.eye(columns), atol=small)
    assert_allclose(w @ x**4, 3, rtol=0.3 if columns > 2 else small)
    # E exp(a'x) = exp(|a|² / 2)
    assert_allclose(w @ np.exp(0.5 * x.sum(1)), np.exp(0.125 * columns), rtol=0.04 if columns > 2 else tol(1e-8, 1e-5))


def test_two_nodes_for_quadratics():
    x, w = normal_nodes(1, float, exact=True)
    assert x.shape == (2, 1)
    assert_allclose(w @ (3 * x[:, 0] ** 2 + x[:, 0] + 1), 4, rtol=1e-6)
