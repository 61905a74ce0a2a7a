"""The stopping rule on processes of known error."""

import numpy as np
import pytest
from numpy.testing import assert_allclose

from probkit.infer.phases import LEAST, MOST, UPDATES, Block, Phase, Phases, average


def ar(rng, count, columns, lag):
    """AR(1) processes of unit variance."""
    x = np.empty((count, columns))
    x[0] = rng.normal(size=columns)
    for i in range(1, count):
        x[i] = lag * x[i - 1] + np.sqrt(1 - lag**2) * rng.normal(size=columns)
    return x


@pytest.mark.parametrize("lag", [0.0, 0.6])
def test_the_error_of_an_average(lag):
    found = average(ar(np.random.default_rng(0), 64, 4000, lag))
    assert_allclose(np.sqrt(np.mean(found.error**2)), found.mean.std(), rtol=0.2)


def test_what_is_stationary():
    rng = np.random.default_rng(1)
    assert np.mean(average(ar(rng, 24, 1000, 0.0)).same) > 0.9
    drifting = np.linspace(0.0, 3.0, 24)[:, None] + 0.1 * rng.normal(size=(24, 1000))
    assert not np.any(average(drifting).same)


def block(value, loss=0.0):
    one = np.full((1, 2), value)
    return Block({"loc": one}, one, np.zeros((1, 2)), np.full(1, loss))


def test_a_long_phase_holds_few_blocks():
    phase = Phase()
    for i in range(5 * MOST):
        phase.add(block(float(i)))
    assert len(phase.blocks) < MOST
    assert phase.updates == 5 * MOST * UPDATES
    held = np.array([b.centre[0, 0] for b in phase.blocks])
    assert_allclose(np.diff(held), held[1] - held[0])
    assert_allclose(held[0], (held[1] - held[0] - 1) / 2)


def chunk(values, loss):
    values = np.asarray(values)[None]
    return Block({"loc": values}, values, np.zeros_like(values), np.broadcast_to(loss, values.shape[:2]))


def run(phases, bias, sd, most=60):
    """Feed iterates around ``bias`` times the step size."""
    rng = np.random.default_rng(2)
    for _ in range(most):
        noise = rng.normal(size=(8, 2))
        phases.add(chunk(bias * phases.step_size + sd * noise, rng.normal(size=8)))
        if phases.done:
            break
    return phases


def test_it_stops_at_a_step_whose_bias_is_small():
    phases = run(Phases(0.1, 0.25, 0.05), bias=20.0, sd=0.1)
    assert phases.done
    assert phases.error <= 0.05
    assert phases.bias <= 0.05
    assert phases.step_size * 20.0 < 0.15
    assert_allclose(phases.averaged()["loc"], 20.0 * phases.step_size, atol=0.1)


def test_it_goes_on_while_the_error_is_large():
    phases = run(Phases(0.1, 0.25, 0.01), bias=0.0, sd=1.0)
    assert not phases.done
    assert phases.error > 0.01


def test_a_way_that_is_lost():
    phases = Phases(0.1, 0.25, 0.05)
    phases.add(chunk(np.zeros((8, 2)), np.inf))
    assert phases.lost
    assert_allclose(phases.step_size, 0.025)
    assert np.all(np.isfinite(phases.averaged()["loc"]))
    phases.add(chunk(np.zeros((8, 2)), 0.0))
    assert not phases.lost


def test_a_step_too_small_to_tell_anything():
    rng = np.random.default_rng(3)
    phases = Phases(1e-6, 0.25, 0.05)
    for _ in range(2 * LEAST // 8):
        phases.add(chunk(1e-3 * rng.normal(size=(8, 2)), rng.normal(size=8)))
    assert not phases.stationary
