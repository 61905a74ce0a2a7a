"""The helpers themselves: a counter that never counts would pass every test that leans on it."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest
from helpers import count_compilations, shared, tol


def test_counts_a_new_program_once():
    @jax.jit
    def double(x):
        return 2.0 * x

    x = jax.device_put(np.arange(3.0, dtype=np.float32))
    with count_compilations() as first:
        double(x).block_until_ready()
    with count_compilations() as second:
        double(x).block_until_ready()
    assert (first.count, second.count) == (1, 0)


def test_counts_a_new_shape_again_and_stops_after_the_block():
    @jax.jit
    def negative(x):
        return -x

    with count_compilations() as both:
        negative(np.ones(4, np.float32))
        negative(np.ones(5, np.float32))
    negative(np.ones(6, np.float32))
    assert both.count == 2


def test_tol_follows_the_precision():
    expected = 1e-10 if os.environ.get("JAX_ENABLE_X64", "0").lower() in ("1", "true") else 1e-4
    assert tol(f64=1e-10, f32=1e-4) == expected


def test_shared_skips_what_is_absent(monkeypatch, tmp_path):
    monkeypatch.setenv("PROBKIT_SHARED", str(tmp_path))
    with pytest.raises(pytest.skip.Exception, match=r"no data/ts/Nile.csv"):
        shared("data/ts/Nile.csv")
    (tmp_path / "here.csv").touch()
    assert shared("here.csv") == tmp_path / "here.csv"


def test_the_environment_alone_sets_up_the_compilation_cache(tmp_path):
    code = """if True:
        import json, jax
        hits = []
        jax.monitoring.register_event_listener(lambda event, **_: hits.append(event.endswith("/cache_hits")))
        jax.jit(lambda x: x * 3.0 + 1.0)(1.0)
        print(json.dumps(sum(hits)))
    """
    env = dict(os.environ, JAX_COMPILATION_CACHE_DIR=str(tmp_path), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0")
    runs = [subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True) for _ in range(2)]
    assert [json.loads(run.stdout) for run in runs] == [0, 1], runs[-1].stderr
