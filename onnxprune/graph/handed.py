"""A model for the runtime without its large values, which are handed over beside it.

protobuf takes 12 ms to serialize the 45 MB of a ResNet-18 and the runtime as long again to parse them; handed over as they are, a session
is there in 45 ms and not in 110. Values that were left in files (mapped) are read on the way.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from onnxprune.graph.complete import nbytes
from onnxprune.graph.mapped import give, is_mapped, refer, values_of
from onnxprune.graph.walk import names_read

LEAST = 1 << 16
"""Bytes from which on values are handed over; smaller ones are quicker inside."""
TYPES = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE, TensorProto.INT8, TensorProto.UINT8)
"""Types that weights have. Others stay inside: the runtime must see a Reshape's shape while it loads the model."""
ALIGNED = 64
"""Values lie at multiples of so many bytes: kernels may sum in an order that depends on where they lie."""


def apart(model: onnx.ModelProto, least: int = LEAST) -> tuple[onnx.ModelProto, dict[str, tuple[NDArray[Any], int]]]:
    """The model, and by name the values (in their shape) and ONNX types of those initializers that it no longer has inside.

    They are those that were left in files, and those of ``least`` bytes and more. A type that NumPy has not is given as unsigned integers
    of its size. What nothing reads is in neither: the runtime drops it as it loads the model, and then refuses its values.
    """
    slim, values = onnx.ModelProto(), {}
    fed = {value.name for value in model.graph.input}
    read = set(names_read(model.graph))
    give(model, slim, "graph")
    give(model.graph, slim.graph, "initializer")
    for tensor in model.graph.initializer:
        if not (is_mapped(tensor) or (_whole(tensor) and nbytes(tensor) >= least and tensor.name not in fed)):
            slim.graph.initializer.append(tensor)
            continue
        if tensor.name not in read:
            continue
        array = values_of(tensor) if is_mapped(tensor) else _inside(tensor)
        if array.dtype.kind == "V" or array.dtype.name == "bfloat16":
            array = array.view(f"u{array.itemsize}")
        values[tensor.name] = array, int(tensor.data_type)
        bare = slim.graph.initializer.add(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
        refer(bare, location=tensor.name, offset=0, length=array.nbytes)
    return slim, values


def _whole(tensor: TensorProto) -> bool:
    return tensor.HasField("raw_data") and tensor.data_type in TYPES


def _inside(tensor: TensorProto) -> NDArray[Any]:
    """A copy of the values of a tensor in raw form."""
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    given = np.frombuffer(tensor.raw_data, np.uint8)
    room = np.empty(given.size + ALIGNED, np.uint8)
    skew = -room.ctypes.data % ALIGNED
    array = room[skew : skew + given.size]
    array[:] = given
    return array.view(dtype).reshape(tuple(tensor.dims))
