"""Whether a stored tensor is whole: a known type, dimensions that can be, and just the values that they ask for."""

from __future__ import annotations

import functools
import math
import re

import onnx
from google.protobuf.message import EncodeError
from onnx import TensorProto

from onnxprune.graph.walk import stored

PROTO_LIMIT = 2**31 - 1
"""The most bytes of a message that protobuf writes."""
ELEMENTS_MAX = 2**48
"""No tensor has more values than this, with empty dimensions counted as one; what is beyond is damage."""

FIELDS = {
    "float_data": (TensorProto.FLOAT, TensorProto.COMPLEX64),
    "double_data": (TensorProto.DOUBLE, TensorProto.COMPLEX128),
    "int64_data": (TensorProto.INT64,),
    "uint64_data": (TensorProto.UINT32, TensorProto.UINT64),
}


def fault(tensor: TensorProto) -> str:
    """What is wrong with a tensor, in a few words; empty when it is whole. The data of an external one is not looked at."""
    if tensor.data_type == TensorProto.UNDEFINED and not tensor.ListFields():
        return ""
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    except KeyError:
        return f"it has the unknown type {tensor.data_type}"
    dims = list(tensor.dims)
    if any(dim < 0 for dim in dims) or math.prod(max(dim, 1) for dim in dims) > ELEMENTS_MAX or len(dims) > 64:
        return f"no tensor has the shape {dims[:8]}"
    if tensor.HasField("segment"):
        return "it is stored in segments, which ONNX has given up"
    size = math.prod(dims)
    if tensor.data_type == TensorProto.STRING:
        return "" if len(tensor.string_data) == size else f"it has {len(tensor.string_data)} strings, its shape {dims} needs {size}"
    if tensor.data_location == TensorProto.EXTERNAL:
        return ""
    if tensor.HasField("raw_data"):
        if (needed := nbytes(tensor)) != len(tensor.raw_data):
            return f"it has {len(tensor.raw_data)} bytes, its shape {dims} needs {needed}"
        return ""
    field = next((name for name, types in FIELDS.items() if tensor.data_type in types), "int32_data")
    values = len(getattr(tensor, field))
    bits = _bits(tensor.data_type)
    needed = -(-size * bits // 8) if bits < 8 else size * (2 if dtype.kind == "c" else 1)
    if values != needed:
        return f"it has {values} values, its shape {dims} needs {needed}"
    return ""


def nbytes(tensor: TensorProto) -> int:
    """The bytes that a tensor's values take in raw form, from its type and shape."""
    size: int = math.prod(tensor.dims)
    return -(-size * _bits(tensor.data_type) // 8)


def fits(model: onnx.ModelProto, limit: int) -> bool:
    """True when a model in one piece has fewer bytes than ``limit``, some hundred MB; quick where its values leave no doubt.

    protobuf serializes what it counts the bytes of, 45 ms for the 45 MB of a ResNet-18: here only values outside of ``raw_data``.
    """
    most = sum(
        nbytes(tensor) if tensor.HasField("raw_data") or tensor.data_location == TensorProto.EXTERNAL else int(tensor.ByteSize())
        for tensor in stored(model)
    )
    return most < limit // 2 or size_of(model) < limit


def size_of(model: onnx.ModelProto) -> int:
    """The bytes of a model in one piece; over `PROTO_LIMIT`, where protobuf raises an error instead, those of its values.

    Values that were left in files (mapped) count too.
    """
    left = sum(nbytes(tensor) for tensor in stored(model) if tensor.data_location == TensorProto.EXTERNAL)
    held = sum(nbytes(tensor) for tensor in stored(model) if tensor.data_location != TensorProto.EXTERNAL and tensor.HasField("raw_data"))
    if held + left > PROTO_LIMIT:
        return held + left
    try:
        return left + int(model.ByteSize())
    except EncodeError:  # close to the limit, or values in other fields
        return PROTO_LIMIT + 1


@functools.cache
def _bits(data_type: int) -> int:
    """The bits of one value."""
    found = re.fullmatch(r"(?:U?INT|FLOAT)([24])\w*", TensorProto.DataType.Name(data_type))
    return int(found[1]) if found else 8 * int(onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize)
