"""Errors that say that memory ran out, told from all others.

ONNX Runtime has no class for them, only words: those of its CPU allocators (measured under RLIMIT_AS: with the arena "Failed to allocate
memory for requested buffer of size", without it "std::bad_alloc"), of its arena on a device ("Available memory of N is smaller than
requested bytes of M" at a limit), of CUDA ("CUDA failure 2: out of memory"), cuBLAS (CUBLAS_STATUS_ALLOC_FAILED) and cuDNN
(CUDNN_STATUS_ALLOC_FAILED, since version 9 INTERNAL_ERROR_..._ALLOCATION_FAILED).
"""

from __future__ import annotations

import errno
import re

from onnxprune.errors import OutOfMemory, RuntimeFailure

WORDS = re.compile(
    r"bad.?alloc|failed to allocate|unable to allocate|cannot allocate memory|out.?of.?memory|memoryerror"
    r"|alloc(ation)?_failed|available memory of \d+ is smaller than",
    re.IGNORECASE,
)


def short_of_memory(error: BaseException) -> bool:
    """True when the error says that there was no memory, on the host or on a device."""
    if isinstance(error, OSError):  # of a mapping; a text of the system may be in any language
        return error.errno == errno.ENOMEM
    return isinstance(error, (MemoryError, OutOfMemory)) or (not isinstance(error, RuntimeFailure) and bool(WORDS.search(str(error))))


def failure(error: BaseException, text: str) -> RuntimeFailure:
    """The error to raise with this text in place of one that ONNX Runtime raised."""
    return OutOfMemory(text) if short_of_memory(error) else RuntimeFailure(text)
