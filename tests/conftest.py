"""Set-up of every test session.

JAX is set up by the environment alone: JAX_ENABLE_X64 chooses the precision, JAX_COMPILATION_CACHE_DIR a persistent
compilation cache. Neither the library nor a test touches `jax.config`.

Nine tenths of the time of the tests is compilation, so LLVM is told not to optimise what runs once: the same programs
and the same HLO passes, 40% less time; and XLA of jaxlib 0.10 not to use its newer emitters of fusions, a third less
again. Its own threads are off because batched eigendecompositions side by side in one program have been seen to wait
for one another for ever (two cores). XLA_FLAGS in the environment overrides all that, as CI does on one of its runs.
"""

import gc
import os
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
# XLA aborts at a flag that it does not know, and later ones do not know these two.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_backend_optimization_level=0"
    + " --xla_cpu_use_fusion_emitters=false --xla_cpu_multi_thread_eigen=false" * version("jaxlib").startswith("0.10."),
)

import jax
import pytest

import probkit as pk


def pytest_report_header(config: pytest.Config) -> str:
    """One line on what the session runs with."""
    precision = "float64" if jax.config.jax_enable_x64 else "float32"
    return f"jax {jax.__version__}, {jax.default_backend()}, {precision}"


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skips the tests marked `gpu` where there is none."""
    if item.get_closest_marker("gpu") and jax.default_backend() == "cpu":
        pytest.skip("needs an accelerator")


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Lets compiled programs go before Linux's limit on memory maps (65,530), where XLA's compiler crashes."""
    if nextitem is not None and nextitem.path == item.path and not item.get_closest_marker("slow"):
        return
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_bytes().splitlines()) > 40_000:
        jax.clear_caches()
        gc.collect()
        jax.random.key(0)  # so that a key made inside a count of compilations counts nothing, here as elsewhere


# The three families of the main job, fitted to the Nile by the default method: one fit each for a whole session.


@pytest.fixture(scope="session")
def nile_level():
    return pk.fit(pk.LocalLevel(), pk.datasets.nile(), key=jax.random.key(1))


@pytest.fixture(scope="session")
def nile_arima():
    return pk.fit(pk.ARIMA(0, 1, 1), pk.datasets.nile(), key=jax.random.key(1))


@pytest.fixture(scope="session")
def nile_gp():
    return pk.fit(pk.GP(), pk.datasets.nile(), key=jax.random.key(1), method=pk.Auto(draws=1000))
