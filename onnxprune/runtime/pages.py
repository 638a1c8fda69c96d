"""Pages of memory outside the heap for live tensors, used again when a tensor is gone.

A stage frees as much as it makes, batch by batch. Pages that are new to the process cost a page fault each, 2 us for 4 kB on a virtual
machine: to take in the live tensors of resnet56 over 410 samples took 0.57 s of CPU time, a tenth of the whole command, and takes 0.21.
"""

from __future__ import annotations

import contextlib
import math
import mmap
import threading
import weakref
from collections import OrderedDict
from typing import Any

import numpy as np
from numpy.typing import NDArray

SPARE = 256 << 20
"""Bytes of pages that are kept for the next tensors at most, where memory is no matter."""
LARGE = 4 << 20
"""Bytes from which on Linux may use pages of 2 MB: half the page faults of resnet18's walk, a quarter of a second of 6 of CPU time."""
WIDER = 4
"""How many times its length the pages of a tensor may have, where they lie spare: what is new costs more than what is left over."""
PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class Pages:
    """Pages by their length, those that were used longest ago first; any thread may take some and give some back.

    ``most``: the bytes that are kept for the next tensors at most.
    """

    def __init__(self, most: int = SPARE) -> None:
        self.spare = 0
        self._most = most
        self._lock = threading.RLock()  # a tensor may be let go of anywhere, here too
        self._kept: OrderedDict[int, list[mmap.mmap]] = OrderedDict()

    def array(self, shape: tuple[int, ...], dtype: np.dtype[Any], skew: int) -> NDArray[Any]:
        """An array of any values, ``skew`` bytes behind the beginning of its pages. They are given back when no view of it is left."""
        count = math.prod(shape)
        length = skew + count * dtype.itemsize
        with self._lock:
            fitting = min((kept for kept in self._kept if length <= kept <= WIDER * length), default=None)
            pages = None if fitting is None else self._take(fitting)
        if pages is None:
            pages = mmap.mmap(-1, length, **PRIVATE)
            if length >= LARGE and hasattr(mmap, "MADV_HUGEPAGE"):
                with contextlib.suppress(OSError):  # a kernel without them
                    pages.madvise(mmap.MADV_HUGEPAGE)
        flat = np.frombuffer(pages, dtype, count, skew)
        weakref.finalize(flat, self._give_back, pages)
        return flat.reshape(shape)

    def _take(self, length: int) -> mmap.mmap:
        pages = self._kept[length].pop()
        self.spare -= length
        if not self._kept[length]:
            del self._kept[length]
        return pages

    def shrink(self, most: float) -> None:
        """Let go of spare pages, down to so many bytes."""
        with self._lock:
            while self.spare > max(most, 0):
                length, kept = self._kept.popitem(last=False)
                self.spare -= length * len(kept)

    def _give_back(self, pages: mmap.mmap) -> None:
        with self._lock:
            self._kept.setdefault(len(pages), []).append(pages)
            self._kept.move_to_end(len(pages))
            self.spare += len(pages)
            self.shrink(self._most)
