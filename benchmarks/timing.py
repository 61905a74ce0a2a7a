"""What the benchmarks share: medians, compilation apart from running, and where the time of a compilation goes."""

import os
import statistics
import time
from collections import defaultdict

import jax

_PARTS = {
    "/jax/core/compile/jaxpr_trace_duration": "trace",
    "/jax/core/compile/jaxpr_to_mlir_module_duration": "lower",
    "/jax/core/compile/backend_compile_duration": "XLA",
    "/jax/compilation_cache/cache_retrieval_time_sec": "cache",
}
_spent: dict[str, list[float]] = defaultdict(list)
jax.monitoring.register_event_duration_secs_listener(
    lambda event, duration, **_: _spent[_PARTS[event]].append(duration) if event in _PARTS else None
)


def compilation(run):
    """Seconds of one call of ``run``, and of its longest trace, all lowerings and all XLA compilations; with counts.

    Traces nest, so the longest stands for the outermost of the largest program.
    """
    _spent.clear()
    begin = time.perf_counter()
    jax.block_until_ready(run())
    total = time.perf_counter() - begin
    parts = {name: sum(spent) for name, spent in _spent.items()}
    parts["trace"] = max(_spent["trace"], default=0.0)
    return total, parts, len(_spent["XLA"])


def median(run, repeats=20):
    """Median seconds of a call, after one that is not counted."""
    jax.block_until_ready(run(0))
    times = []
    for i in range(repeats):
        begin = time.perf_counter()
        jax.block_until_ready(run(i + 1))
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def load():
    """One line on the machine: figures mean little when others compute too."""
    return f"jax {jax.__version__}, {jax.default_backend()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"
