"""How much memory a CUDA device has free, asked of its driver: ONNX Runtime does not tell.

The driver's library is there wherever a CUDA session runs, under the same name for every version of CUDA, and counts devices as ONNX
Runtime does, CUDA_VISIBLE_DEVICES included (nvidia-smi and NVML do not).
"""

from __future__ import annotations

import contextlib
import ctypes
import sys
from typing import Any


def driver() -> Any:
    """The driver's library.

    Raises:
        OSError: there is none.
    """
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def free_on(index: int) -> int:
    """The bytes that are free on the CUDA device of this number; 0 where the driver does not tell."""
    device, context, left = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_void_p()
    free, total = ctypes.c_size_t(), ctypes.c_size_t()
    with contextlib.suppress(OSError, AttributeError):
        cuda = driver()
        if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), index):
            return 0
        if cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device):  # the one that ONNX Runtime has too
            return 0
        try:
            if cuda.cuCtxPushCurrent_v2(context):
                return 0
            told = cuda.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
            cuda.cuCtxPopCurrent_v2(ctypes.byref(left))
            return 0 if told else int(free.value)
        finally:
            cuda.cuDevicePrimaryCtxRelease_v2(device)
    return 0
