"""What the C library does with large tensors that were freed.

ONNX Runtime without its arena allocates every tensor anew. glibc gives what was freed at the end of the heap back to the system, has a heap
for every thread, and gives blocks of 32 MiB and more pages of their own: each tensor then costs page faults. Where memory is no matter, one
heap that keeps what it has takes resnet56's channel repair on 512 samples from 240 to 101 thousand page faults, a tenth of a second in 2.

Where memory is bounded, it must not: aligned blocks do not fit where an equal one was, so that the heap grows with every batch. Pages of
their own go back at once: for a channel repair of efficientnet_lite0 with 256 samples, batches of 8, the peak falls from 583 to 404 MB, and
CPU time rises from 12.9 to 14.4 s.
"""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Iterator

TRIM_THRESHOLD, MMAP_THRESHOLD, MMAP_MAX, ARENA_MAX = -1, -3, -4, -8  # the numbers of mallopt(3)
MIB = 1 << 20
RETURNED = {MMAP_THRESHOLD: 4 * MIB, TRIM_THRESHOLD: 8 * MIB}
"""Large blocks have pages of their own, and go back to the system when they are freed."""
KEPT = {MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 1024 * MIB, MMAP_MAX: 0, ARENA_MAX: 1}
"""One heap for all, of which a GiB may lie idle at its end."""
USUAL = {MMAP_THRESHOLD: 32 * MIB, TRIM_THRESHOLD: 64 * MIB, MMAP_MAX: 65536, ARENA_MAX: 0}
"""What glibc would come to by itself, on a machine of 64 bits."""


@contextlib.contextmanager
def heap(*, bounded: bool) -> Iterator[None]:
    """Give large blocks back to the system when they are freed, or else keep them, in this process, until the end.

    Where there is no glibc, nothing.
    """
    library = None
    with contextlib.suppress(OSError, AttributeError, TypeError):
        library = ctypes.CDLL(None)
        _ = library.mallopt, library.malloc_trim
    if library is None:
        yield
        return
    for what, value in (RETURNED if bounded else KEPT).items():
        library.mallopt(what, value)
    try:
        yield
    finally:
        for what, value in USUAL.items():
            library.mallopt(what, value)
        library.malloc_trim(0)
