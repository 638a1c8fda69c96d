"""Tensors whose values stay in their file until they are asked for.

A large initializer with external data need not be in memory: the loaded model refers to its place by absolute path, in the proto's own
words (data_location, external_data), so that copies of the model refer to it too. What was changed is kept beside the reference, in fields
that such a tensor has no other use for: a mask as packed bits in ``raw_data``, one for each value, and after it a factor for every channel
in ``double_data``, along the axis in ``int64_data``. The file must stay as it is while the model is in use; one that has changed since is
an error.

Every other tensor has its values in memory; the functions here read both kinds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import Message
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.complete import fault, nbytes

LARGE = 1 << 20
"""Bytes from which on a tensor is left in its file."""
BLOCK = 1 << 22
"""Bytes that are read at a time; whole values, and whole bytes of packed bits."""

READ = (TensorProto.INT64, TensorProto.STRING, TensorProto.UNDEFINED)
"""Types that are read in any case: shapes, and what has no bytes."""


def is_mapped(tensor: TensorProto) -> bool:
    """True for a tensor of a loaded model whose values are in a file."""
    outside: bool = tensor.data_location == TensorProto.EXTERNAL
    return outside


def has_mapped(model: onnx.ModelProto) -> bool:
    """True for a model with values that were left in files."""
    return any(map(is_mapped, model.graph.initializer))


def may_stay(tensor: TensorProto) -> bool:
    """True for a tensor with external data that is large enough to be left there, its values being whole bytes and no shape."""
    if tensor.data_location != TensorProto.EXTERNAL or fault(tensor) or tensor.data_type in READ:
        return False
    values: int = math.prod(tensor.dims)
    return nbytes(tensor) >= max(LARGE, values)


def leave(tensor: TensorProto, path: Path, offset: int) -> None:
    """Make a tensor of a type of whole bytes refer to its values in a file, in place."""
    refer(tensor, location=path.absolute(), offset=offset, checksum=_state(path))


def refer(tensor: TensorProto, **entries: object) -> None:
    """Make a tensor refer to external data by these entries instead of its values, in place."""
    drop(tensor)
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in entries.items():
        tensor.external_data.add(key=key, value=str(value))


def values_of(tensor: TensorProto) -> NDArray[Any]:
    """The values of a tensor in its own dtype; those of a file are read, and masked."""
    if not is_mapped(tensor):
        return numpy_helper.to_array(tensor)
    values = np.empty(tuple(tensor.dims), _dtype(tensor))
    flat, done = values.reshape(-1), 0
    for block in _read(tensor):
        flat[done : done + block.size] = block
        done += block.size
    return values


def raw_of(tensor: TensorProto) -> Iterator[bytes | memoryview]:
    """The bytes of a tensor that has them, in raw form, piece by piece."""
    if not is_mapped(tensor):
        yield tensor.raw_data
        return
    for block in _read(tensor):
        yield block.view(np.uint8).data


def covered(tensors: Sequence[TensorProto], kept: NDArray[np.bool_]) -> bool:
    """Make the values of tensors zero where ``kept`` (of their shape) is False, in place, if they are in files; False if they are not."""
    if not all(is_mapped(tensor) and not tensor.double_data for tensor in tensors):
        return False
    bits = np.packbits(kept)
    for tensor in tensors:
        tensor.raw_data = (bits & np.frombuffer(tensor.raw_data, np.uint8) if tensor.raw_data else bits).tobytes()
    return True


def multiplied(tensors: Sequence[TensorProto], gain: NDArray[np.float64], axis: int) -> bool:
    """Multiply the values of tensors along an axis, in float64 and rounded once, in place, if they are in files and were not before."""
    if not all(is_mapped(tensor) and not tensor.double_data for tensor in tensors):
        return False
    for tensor in tensors:
        tensor.double_data.extend(gain.tolist())
        tensor.int64_data.append(axis)
    return True


def share(target: TensorProto, source: TensorProto) -> None:
    """Give a tensor the values of another of its type and shape that is in raw form, in place."""
    drop(target)
    target.raw_data = source.raw_data
    target.double_data.extend(source.double_data)
    target.int64_data.extend(source.int64_data)
    if is_mapped(source):
        target.data_location = TensorProto.EXTERNAL
        target.external_data.extend(source.external_data)


def drop(tensor: TensorProto) -> None:
    """Take a tensor's values away, in place."""
    for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data", "raw_data", "data_location"):
        tensor.ClearField(name)
    del tensor.external_data[:]


def inside(tensor: TensorProto) -> int:
    """The bytes that a tensor in raw form takes as a message with its values in it."""
    if not is_mapped(tensor) and not tensor.HasField("raw_data"):
        return int(tensor.ByteSize())
    bare = TensorProto()
    give(tensor, bare, "raw_data")  # protobuf serializes what it counts the bytes of
    if is_mapped(tensor):
        drop(bare)
    size = nbytes(tensor)
    return int(bare.ByteSize()) + 1 + max(1, -(-size.bit_length() // 7)) + size


def give(source: Message, target: Message, but: str) -> None:
    """Give a message all that another one has, but for one field."""
    for field, value in source.ListFields():
        if field.name != but:
            if hasattr(value, "MergeFrom"):
                getattr(target, field.name).MergeFrom(value)
            else:
                setattr(target, field.name, value)


def _read(tensor: TensorProto) -> Iterator[NDArray[Any]]:
    """The values of a tensor in a file, flat, block by block; a block is overwritten by the next.

    Raises:
        ModelError: the file is gone, or is not as it was.
    """
    entries = {entry.key: entry.value for entry in tensor.external_data}
    path, dtype, left = Path(entries["location"]), _dtype(tensor), nbytes(tensor)
    kept, gain = np.frombuffer(tensor.raw_data, np.uint8), np.array(tensor.double_data)
    trailing = math.prod(tensor.dims[tensor.int64_data[0] + 1 :]) if gain.size else 1
    buffer = np.empty(min(BLOCK, left), np.uint8)
    changed = ModelError(f"{path}: the file was changed while it was in use; leave it as it is and run again")
    try:
        if _state(path) != entries["checksum"]:
            raise changed
        with path.open("rb", buffering=0) as handle:
            handle.seek(int(entries["offset"]))
            done = 0
            while left:
                piece = buffer[: min(BLOCK, left)]
                filled = 0
                while filled < piece.size:
                    got = handle.readinto(piece[filled:].data)
                    if not got:
                        raise changed
                    filled += got
                values = piece.view(dtype)
                if kept.size:
                    bits = kept[done // 8 : -(-(done + values.size) // 8)]
                    values[~np.unpackbits(bits, count=values.size).view(np.bool_)] = 0
                if gain.size:
                    values[:] = values.astype(np.float64) * _spread(gain, trailing, done, values.size)
                yield values
                done += values.size
                left -= piece.size
    except OSError as error:
        raise ModelError(f"{path}: external data cannot be read: {error.strerror or error}") from None


def _spread(gain: NDArray[np.float64], trailing: int, start: int, count: int) -> NDArray[np.float64]:
    """The factors of so many values in flat order, from number ``start`` on, where each stands for ``trailing`` values in a row."""
    if trailing == 1:
        return np.resize(np.roll(gain, -(start % gain.size)), count)
    first, last = start // trailing, (start + count - 1) // trailing
    return np.repeat(gain[np.arange(first, last + 1) % gain.size], trailing)[start - first * trailing :][:count]


def _state(path: Path) -> str:
    """What tells that a file is as it was: its size, and when it was written."""
    found = path.stat()
    return f"{found.st_size} {found.st_mtime_ns}"


def _dtype(tensor: TensorProto) -> np.dtype[Any]:
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
