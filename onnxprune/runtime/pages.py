"""Where live tensors lie: in the heap, or in pages of their own.

A stage frees as much as it makes, batch by batch. Where memory is no matter, the heap keeps what was freed (heap), also of
sessions that are gone, and a tensor takes its place: memory that is new to the process costs a page fault for every 4 kB, which
takes 2 to 4 us on a virtual machine. Where memory is bounded, a tensor in the heap would lie between what a stage allocates and frees, and
keep it from being given back.
"""

from __future__ import annotations

import contextlib
import math
import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

ALIGNED = 64
"""A tensor lies where it did by its address modulo this: kernels may sum in an order that depends on it."""
LARGE = 4 << 20
"""Bytes from which on Linux may use pages of 2 MB: half the page faults of resnet18's walk."""
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


def in_heap(shape: tuple[int, ...], dtype: np.dtype[Any], skew: int) -> NDArray[Any]:
    """An array of any values in the heap, ``skew`` bytes behind a multiple of `ALIGNED`."""
    size = math.prod(shape) * dtype.itemsize
    whole = np.empty(size + ALIGNED, np.uint8)
    start = (skew - whole.ctypes.data) % ALIGNED
    return whole[start : start + size].view(dtype).reshape(shape)


def in_pages(shape: tuple[int, ...], dtype: np.dtype[Any], skew: int) -> NDArray[Any]:
    """An array of any values, ``skew`` bytes behind the beginning of pages of its own. They go when no view of it is left."""
    count = math.prod(shape)
    length = skew + count * dtype.itemsize
    pages = mmap.mmap(-1, length, **PRIVATE)
    if length >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without them
            pages.madvise(mmap.MADV_HUGEPAGE)
    return np.frombuffer(pages, dtype, count, skew).reshape(shape)
