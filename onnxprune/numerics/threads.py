"""Threads of our own in place of those of BLAS, and how many.

Each task is computed by one thread of BLAS, and what the tasks are does not depend on how many threads there are: so the results do not
either. Those of BLAS do: its kernels sum what lies at the edges of a thread's share in another way (OpenBLAS on CPUs without AVX-512).

NumPy keeps Python's lock in matmul and in what solves equations while they give no more than 500 numbers, so that a thread that multiplies
a large matrix by a vector with @ holds up the others. np.dot never does.
"""

import contextlib
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Threads:
    """As many threads as compute, ``count``, and the pool that they are in."""

    pool: ThreadPoolExecutor
    count: int


def mapped(threads: Threads, work: Callable[[Item], Made], items: Iterable[Item], flops: float) -> Iterator[Made]:
    """The work for every item, in their order; by the caller where all of it is less than `ALONE`."""
    return map(work, items) if flops < ALONE else threads.pool.map(work, items)


def shared(threads: Threads, work: Callable[[Item], None], items: Sequence[Item], flops: float) -> None:
    """Do the work for every item, about so many flops in all: each thread takes the next one when it is done with one."""
    turns = iter(items)

    def run(_: int) -> None:
        for item in turns:
            work(item)

    for _ in mapped(threads, run, range(threads.count), flops):
        pass


def powers(counts: npt.NDArray[np.intp], power: int) -> float:
    """The sum of counts to a power: what is done to square matrices of so many rows each, in flops but for a factor."""
    return float((counts.astype(np.float64) ** power).sum())


@contextlib.contextmanager
def one_each() -> Iterator[Threads]:
    """As many threads as compute; BLAS has one in each while the block runs, and NumPy's error state is in each what it is here."""
    count = cores()
    alike = functools.partial(np.seterr, **np.geterr())  # a thread begins with the default, and would warn of what is expected here
    with ThreadPoolExecutor(count, initializer=alike) as pool, _blas().limit(limits=1, user_api="blas"):
        yield Threads(pool, count)


def side_by_side(work: Callable[[Item], None], items: Sequence[Item], flops: float) -> None:
    """`shared` in threads of its own, beside which BLAS has none: these would wait by spinning."""
    with one_each() as threads:
        shared(threads, work, items, flops)


def product(threads: Threads, left: npt.NDArray[Any], right: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """left @ right for (g, n, K) and (g, K, m) of one float dtype, in a block of `one_each`."""
    groups, rows, width = left.shape
    if rows * width * right.shape[2] < LEAST:  # a task takes as long as what it computes
        return np.asarray(left @ right)
    made = np.empty((groups, rows, right.shape[2]), left.dtype)
    high = min(max(FEWEST, rows // TASKS), MOST)

    def block(part: tuple[int, int]) -> None:
        g, at = part
        np.matmul(left[g, at : at + high], right[g], out=made[g, at : at + high])

    parts = list(itertools.product(range(groups), range(0, rows, high)))
    shared(threads, block, parts, 2.0 * groups * rows * width * right.shape[2])
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
