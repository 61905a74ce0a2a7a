"""Many lanes by one compiled program: batches of one size, on a CPU as many at a time as there are cores."""

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from probkit.infer.target import Lanes
from probkit.report import Seconds, timed

#: Lanes in one call of the program. On a CPU lanes go in turn, and XLA copies the whole output at each of them: 1,000
#: local levels of length 120, 500 draws each, took 5.3 s at 1,000 a call, 3.0 s at 128, and 1.7 s on two threads.
CPU_BATCH, BATCH = 128, 1024


def in_batches(program: Callable, lanes: Lanes, keys: Any, rest: tuple, progress: bool = False) -> tuple[Any, Seconds]:
    """``program(lanes, keys, *rest)`` for all lanes, its results on the host, and the seconds it took.

    The first batch compiles; the last is filled up with copies of the last lane, which are dropped.
    """
    cpu = jax.default_backend() == "cpu"
    size = min(lanes.count, CPU_BATCH if cpu else BATCH)
    begins = range(0, lanes.count, size)

    def one(begin: int) -> Any:
        index = np.minimum(np.arange(begin, begin + size), lanes.count - 1)
        found = jax.device_get(program(lanes.take(index), keys[index], *rest))
        return jax.tree_util.tree_map(lambda a: a[: lanes.count - begin], found)

    first, seconds = timed(one, begins[0])
    start = time.perf_counter()
    with ThreadPoolExecutor((os.cpu_count() or 1) if cpu else 1) as pool:
        parts = [first, *tracked(pool.map(one, begins[1:]), len(begins) - 1, progress, f"batches of {size} series")]
    found = jax.tree_util.tree_map(lambda *a: np.concatenate(a), *parts)
    return found, seconds + Seconds(0.0, time.perf_counter() - start)


def tracked(items: Iterable, count: int, progress: bool, name: str) -> Iterable:
    """Items with a progress bar, where there are several."""
    from tqdm.auto import tqdm

    return tqdm(items, total=count, disable=not progress or count < 2, desc=name, leave=False)


def bar(total: int, progress: bool, name: str) -> Any:
    """A progress bar over iterations of a compiled loop, moved from outside."""
    from tqdm.auto import tqdm

    return tqdm(total=total, disable=not progress, desc=name, unit="it", leave=False)
