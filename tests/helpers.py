"""What the tests share: paths into the shared data, tolerances by precision, a counter of compilations."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

ROOT = Path(__file__).resolve().parents[1]
_COMPILED = "/jax/core/compile/backend_compile_duration"


def shared(name: str) -> Path:
    """The path of `name` in the shared data, as in `shared("data/ts/Nile.csv")`; skips the test where it is absent.

    The folder is the environment variable PROBKIT_SHARED, or else `shared/` beside the repository.
    """
    folder = Path(os.environ.get("PROBKIT_SHARED") or ROOT.parent / "shared")
    path = folder / name
    if not path.exists():
        pytest.skip(f"no {name} in the shared data (PROBKIT_SHARED, or the folder shared/ beside the repository)")
    return path


def tol(f64: float = 1e-8, f32: float = 1e-3) -> float:
    """The tolerance for the precision of this process: `f64` under JAX_ENABLE_X64=1, else `f32`."""
    return f64 if jnp.result_type(float) == jnp.float64 else f32


def label(value: object) -> str:
    """A test's id for a value: its text without addresses, which differ between the workers of pytest-xdist."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))[:60]


@dataclass
class Compilations:
    """How many programs XLA was asked for since the counter started."""

    count: int = 0


_counters: list[Compilations] = []


def _on_duration(event: str, duration: float, **_: object) -> None:
    if event == _COMPILED:
        for counter in _counters:
            counter.count += 1


jax.monitoring.register_event_duration_secs_listener(_on_duration)


@contextmanager
def count_compilations() -> Iterator[Compilations]:
    """Counts the programs compiled inside the block; one taken from the persistent cache counts too.

    Eager operations (`x + 1` on a new shape) are programs as well, so make the inputs before the block.

        with count_compilations() as compiled:
            fit(model, y, key=key)
        assert compiled.count == 0
    """
    counter = Compilations()
    _counters.append(counter)
    try:
        yield counter
    finally:
        _counters.remove(counter)
