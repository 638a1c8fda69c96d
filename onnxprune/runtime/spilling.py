"""Live tensors within a memory budget: what is beyond it lies in a temporary file, and is mapped while it is read.

The walks of a repair go over their batches in turn, so that the tensor that was used last is the next but all others: what came first
stays in memory, what finds no room goes to the file. The file has no name, so nothing of it stays, however the process ends.
"""

from __future__ import annotations

import bisect
import math
import mmap
import os
import tempfile
import threading
import weakref
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.errors import RuntimeFailure
from onnxprune.runtime.device import Device
from onnxprune.runtime.pages import ALIGNED, in_heap, in_pages
from onnxprune.runtime.session import as_array, to_device

LEAST = mmap.ALLOCATIONGRANULARITY
"""Bytes below which a tensor stays in memory: what is mapped begins at a multiple of it."""
PLAIN = (
    *(TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BOOL),
    *(TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64),
    *(TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64),
)
"""Element types that numpy has; a tensor of another one stays in memory."""


class Live:
    """One live tensor, on its device or in the file; let go of, it gives back its place. Made by `Memory.hold`."""

    def __init__(self, memory: Memory, value: Any, device: Device, place: tuple[int, int] | None) -> None:
        self._shape, self._type, self._device = list(value.shape()), int(value.element_type()), device
        self._memory, self._place = memory, place
        self._value = value if place is None else None

    def shape(self) -> list[int]:
        """Its dimensions, as an OrtValue has them."""
        return self._shape

    def element_type(self) -> int:
        """The number of its type in ONNX."""
        return self._type

    def value(self) -> Any:
        """The tensor as an OrtValue on the device. What lies in the file is mapped for as long as the OrtValue lives."""
        return self._value if self._place is None else to_device(self.numpy(), self._device)

    def numpy(self) -> NDArray[Any]:
        """Its values."""
        if self._place is None:
            return np.array(as_array(self._value))  # a view would not keep the OrtValue
        start, skew = self._place
        count, dtype = math.prod(self._shape), onnx.helper.tensor_dtype_to_np_dtype(self._type)
        mapped = self._memory.mapped(self, start, skew + count * dtype.itemsize)
        return np.frombuffer(mapped, dtype, count, skew).reshape(self._shape)


class Mapped(mmap.mmap):
    """A part of the file in memory, which keeps the tensor that it is of: its place is not given to another meanwhile."""

    owner: Live


class Memory:
    """The budget that the walks of a run share, in bytes of live tensors; infinite unless told otherwise.

    ``roomy``: memory is no matter, as nobody asked for a bound.

    ``peak``: the most bytes that were live at once, in memory and in the file together; ``spilled``: the bytes written to the file.
    """

    def __init__(self, budget: float = math.inf, *, roomy: bool = True) -> None:
        self.budget, self.roomy = budget, roomy
        self.peak = self.spilled = 0
        self._lock = threading.RLock()
        self._held = self._filed = self._end = 0
        self._file: IO[bytes] | None = None
        self._parts: list[tuple[int, int]] = []  # start and length of what is free in the file, ascending, never side by side

    def room(self, shape: Sequence[int], element_type: int, device: Device) -> Any:
        """Memory for a tensor that a run is to give, as an OrtValue to be written and then held as one ``placed``.

        None where a tensor of that size is better taken from what the run gives: where memory is bounded, or not the host's.
        """
        if not self.roomy or device.kind != "cpu" or element_type not in PLAIN:
            return None
        dtype = onnx.helper.tensor_dtype_to_np_dtype(element_type)
        nbytes = math.prod(shape) * dtype.itemsize
        if nbytes < LEAST or self._held + nbytes > self.budget:
            return None
        return to_device(in_heap(tuple(shape), dtype, 0), device)

    def hold(self, value: Any, device: Device, *, placed: bool = False) -> Live:
        """Take an OrtValue in: the caller keeps no reference of its own. One that was ``placed`` lies in what `room` gave already.

        Raises:
            RuntimeFailure: the temporary folder takes no file, or is full.
        """
        nbytes = math.prod(value.shape()) * onnx.helper.tensor_dtype_to_np_dtype(value.element_type()).itemsize
        with self._lock:
            if not (stays := self._held + nbytes <= self.budget or nbytes < LEAST or value.element_type() not in PLAIN):
                skew = value.data_ptr() % ALIGNED
                length = -(-(nbytes + skew) // LEAST) * LEAST
                start = self._write(as_array(value), skew, length)
                self.spilled += nbytes
            self._held += nbytes if stays else 0
            self.peak = max(self.peak, self._held + self._filed)
        if not stays:
            live = Live(self, value, device, (start, skew))
            weakref.finalize(live, self._free, start, length)
            return live
        try:
            live = Live(self, value if placed else _apart(value, nbytes, device, roomy=self.roomy), device, None)
        except BaseException:
            self._release(nbytes)
            raise
        weakref.finalize(live, self._release, nbytes)
        return live

    def mapped(self, owner: Live, start: int, length: int) -> Mapped:
        """A part of the file, to read."""
        assert self._file is not None
        part = Mapped(self._file.fileno(), length, access=mmap.ACCESS_READ, offset=start)
        part.owner = owner
        return part

    def _release(self, nbytes: int) -> None:
        with self._lock:
            self._held -= nbytes

    def _write(self, array: NDArray[Any], skew: int, length: int) -> int:
        """Put the values into the file, and say where."""
        folder = os.environ.get("TMPDIR") or tempfile.gettempdir()  # tempfile would pass over a TMPDIR that it cannot write to
        start = self._place(length)
        self._filed += length
        try:
            if self._file is None:
                self._file = tempfile.TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115  # closed when nothing is left in it
            self._file.seek(start + skew)
            data = memoryview(np.ravel(array)).cast("B")  # type: ignore[arg-type]  # an array is a buffer
            while data:  # not through a mapping: there a full disk ends the process
                data = data[self._file.write(data) :]
            if self._file.seek(0, os.SEEK_END) < self._end:
                self._file.truncate(self._end)  # what is mapped ends within the file
        except OSError as error:
            self._free(start, length)
            raise RuntimeFailure(
                f"{folder}: no place for the live tensors beyond --memory: {error.strerror or error}; "
                f"set TMPDIR to a folder with room, or give a larger --memory or fewer --samples"
            ) from error
        return start

    def _place(self, length: int) -> int:
        """Where so many bytes are free: the first such place, or the end of the file."""
        for number, (start, room) in enumerate(self._parts):
            if room >= length:
                self._parts[number : number + 1] = [(start + length, room - length)] if room > length else []
                return start
        start, self._end = self._end, self._end + length
        return start

    def _free(self, start: int, length: int) -> None:
        with self._lock:
            self._filed -= length
            if not self._filed:  # nothing is left in it: give back the disk
                if self._file is not None:
                    self._file.close()
                self._file, self._end, self._parts = None, 0, []
                return
            parts = self._parts
            at = bisect.bisect(parts, (start, length))
            if at < len(parts) and parts[at][0] == start + length:
                length += parts.pop(at)[1]
            if at and sum(parts[at - 1]) == start:
                start, before = parts.pop(at - 1)
                length, at = length + before, at - 1
            parts.insert(at, (start, length))


def _apart(value: Any, nbytes: int, device: Device, *, roomy: bool) -> Any:
    """The value in memory of its own on the CPU: between what a stage allocates and frees, it would keep the heap from being given back.

    With the outputs of a run by themselves (session.run_bound) it took 640 MB off the peak of efficientnet_lite0, which holds 126 MB of
    live tensors.
    """
    if value.element_type() not in PLAIN or device.kind != "cpu":
        return value  # a device's own memory is no heap, and its way over the host would be long
    given = as_array(value)
    if nbytes < LEAST:
        return to_device(np.array(given), device)
    array = (in_heap if roomy else in_pages)(given.shape, given.dtype, value.data_ptr() % ALIGNED)
    array[...] = given
    return to_device(array, device)
