"""Threads of our own in place of those of BLAS, and how many.

Each task is computed by one thread of BLAS, and what the tasks are does not depend on how many threads there are: so the results do not
either. Those of BLAS do: its kernels sum what lies at the edges of a thread's share in another way (OpenBLAS on CPUs without AVX-512).
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from threadpoolctl import ThreadpoolController

Item = TypeVar("Item")
Made = TypeVar("Made")

ALONE = 1 << 22
"""Flops that one thread has done before others have been woken."""
TASKS, FEWEST, MOST, LEAST = 16, 64, 512, 1 << 18
"""A product is so many tasks, of `FEWEST` to `MOST` rows: each lays out the right side anew for BLAS. It is one with fewer
multiplications than `LEAST`."""


def mapped(pool: ThreadPoolExecutor, work: Callable[[Item], Made], items: Iterable[Item], flops: float) -> Iterator[Made]:
    """The work for every item, in their order; by the caller where all of it is less than `ALONE`."""
    return map(work, items) if flops < ALONE else pool.map(work, items)


def powers(counts: npt.NDArray[np.intp], power: int) -> float:
    """The sum of counts to a power: what is done to square matrices of so many rows each, in flops but for a factor."""
    return float((counts.astype(np.float64) ** power).sum())


def shared(pool: ThreadPoolExecutor, threads: int, work: Callable[[int], None], channels: npt.NDArray[np.intp], flops: float) -> None:
    """Do the work for every channel, about so many flops in all: each thread takes the next channel when it is done with one."""
    turns = iter(channels.tolist())

    def run(_: int) -> None:
        for c in turns:
            work(c)

    for _ in mapped(pool, run, range(threads), flops):
        pass


@contextlib.contextmanager
def one_each() -> Iterator[tuple[ThreadPoolExecutor, int]]:
    """A pool of as many threads as compute, and their number; BLAS has one in each while the block runs."""
    threads = cores()
    with ThreadPoolExecutor(threads) as pool, _blas().limit(limits=1, user_api="blas"):
        yield pool, threads


def side_by_side(work: Callable[[int], None], channels: npt.NDArray[np.intp], flops: float) -> None:
    """`shared` in threads of its own, beside which BLAS has none: these would wait by spinning."""
    with one_each() as (pool, threads):
        shared(pool, threads, work, channels, flops)


def product(pool: ThreadPoolExecutor, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """left @ right for (g, n, K) and (g, K, m) of one float dtype, in a block of `one_each`."""
    groups, rows, width = left.shape
    if rows * width * right.shape[2] < LEAST:  # a task takes as long as what it computes
        return np.asarray(left @ right)
    made = np.empty((groups, rows, right.shape[2]), left.dtype)
    high = min(max(FEWEST, rows // TASKS), MOST)

    def block(part: tuple[int, int]) -> None:
        g, at = part
        np.matmul(left[g, at : at + high], right[g], out=made[g, at : at + high])

    for _ in mapped(pool, block, itertools.product(range(groups), range(0, rows, high)), 2.0 * groups * rows * width * right.shape[2]):
        pass
    return made


LIMIT = "ONNXPRUNE_THREADS"
"""The environment variable that holds how many threads this process computes with at most."""


def cores() -> int:
    """How many threads to compute with: a core each of those that this process may use, and no more than BLAS may have.

    So what bounds BLAS (threadpoolctl, OPENBLAS_NUM_THREADS) bounds the threads that take its place too.
    """
    return min([allowed(), *(int(library["num_threads"]) for library in _blas().info())])


@functools.cache
def _blas() -> Any:
    """The BLAS libraries of this process: NumPy's is there since its import. To look for them takes a millisecond."""
    return ThreadpoolController().select(user_api="blas")


def bound(threads: int) -> int | None:
    """How many threads BLAS may have where so many are asked for, 0 for as many as there are: None where nothing limits them."""
    return min(threads or allowed(), allowed()) if threads or _told() else None


def allowed() -> int:
    """How many cores this process may use, by its affinity and by `LIMIT`."""
    return max(1, min(there(), _told() or there()))


def there() -> int:
    """How many cores this process may use by its affinity alone."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _told() -> int | None:
    """What `LIMIT` says, None where it says nothing."""
    told = os.environ.get(LIMIT, "")
    return max(1, int(told)) if told.isdigit() else None
