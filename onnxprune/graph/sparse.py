"""Sparse initializers: weights stored as the values other than zero and their places (COO), and how many bytes that saves.

They are int64 linear indices, ascending, which ONNX Runtime reads and makes dense again. A value counts as zero by its bits: -0.0 is
stored, so that what is read is bit by bit what was dense. Only the main graph's are written and read; those of bodies stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping, Set

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import SparseTensorProto, TensorProto, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.complete import PROTO_LIMIT, fault, nbytes
from onnxprune.graph.external import EXTERNAL_MIN
from onnxprune.graph.mapped import give, inside, values_of

TYPES = (
    TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16,
    TensorProto.INT8, TensorProto.UINT8, TensorProto.INT16, TensorProto.UINT16, TensorProto.INT32,
)  # fmt: skip
IR_VERSION = 6
"""The first that has sparse initializers."""
UNREAD = "OpenVINO, onnxsim, onnxslim, ONNX's version converter and ONNX Runtime's quantizers"
NOTE = f"sparse initializers: ONNX Runtime reads them; {UNREAD} do not, and onnx.checker refuses them with full_check"


def coo(tensor: TensorProto) -> SparseTensorProto:
    """The tensor as values (in its own dtype) and ascending int64 linear indices of all that is not zero bit by bit."""
    flat, places = _nonzero(tensor)
    return _sparse(tensor, places.size, np.ascontiguousarray(flat[places]).tobytes(), places.astype("<i8").tobytes())


def _sparse(tensor: TensorProto, count: int, values: bytes, places: bytes) -> SparseTensorProto:
    """A sparse tensor of that name, type and shape, of so many values."""
    sparse = SparseTensorProto(dims=tensor.dims)
    sparse.values.CopyFrom(TensorProto(name=tensor.name, data_type=tensor.data_type, dims=[count]))
    if tensor.doc_string:
        sparse.values.doc_string = tensor.doc_string
    sparse.values.raw_data = values
    sparse.indices.CopyFrom(TensorProto(data_type=TensorProto.INT64, dims=[count], raw_data=places))
    return sparse


def dense(sparse: SparseTensorProto, where: str = "the model") -> TensorProto:
    """The tensor that a sparse one stands for; its indices are linear, or (values, axes).

    Raises:
        ModelError: it is damaged, has no name, or its indices do not lie in its shape, or not once each.
    """
    values, name = sparse.values, sparse.values.name
    shape = tuple(sparse.dims)
    bad = f"{where}: sparse initializer {name!r} cannot be read"
    made = TensorProto(name=name, data_type=values.data_type, dims=shape)
    if values.doc_string:
        made.doc_string = values.doc_string
    # The shape alone first: it decides how much memory is asked for.
    made.data_location = TensorProto.EXTERNAL
    why = "" if name else "it has no name"
    why = why or fault(values) or fault(sparse.indices) or fault(made)
    made.ClearField("data_location")
    if why or values.data_type in (TensorProto.STRING, TensorProto.UNDEFINED) or sparse.indices.data_type != TensorProto.INT64:
        raise ModelError(f"{bad}: {why or 'its values are no numbers, or its indices no int64'}; is the file complete?")
    if nbytes(made) > PROTO_LIMIT:
        raise ModelError(f"{bad}: its shape {shape} takes {nbytes(made)} bytes when it is dense, over {PROTO_LIMIT}")
    held, places = numpy_helper.to_array(values), numpy_helper.to_array(sparse.indices)
    if places.ndim == 2 and places.shape[1] == len(shape):
        inside = bool(((places >= 0) & (places < np.array(shape, np.int64))).all())
        places = np.ravel_multi_index(tuple(places.T), shape) if inside else np.full(1, -1, np.int64)
    size = math.prod(shape)
    fits = held.ndim == 1 and places.shape == held.shape and np.unique(places).size == places.size
    if not fits or (places.size and not (places.min() >= 0 and places.max() < size)):
        raise ModelError(f"{bad}: it has {held.size} values at {places.size} places of {size}, which do not fit; is the file complete?")
    out = np.zeros(size, held.dtype)
    out[places] = held
    made.raw_data = numpy_helper.from_array(out).raw_data
    return made


def densify(model: onnx.ModelProto, where: str = "the model") -> dict[str, SparseTensorProto]:
    """Make the model's sparse initializers dense ones, in place; gives back what they were, by name.

    Raises:
        ModelError: one is damaged, or has the name of another initializer.
    """
    held: dict[str, SparseTensorProto] = {}
    names = {tensor.name for tensor in model.graph.initializer}
    for sparse in model.graph.sparse_initializer:
        if sparse.values.name in names | held.keys():
            raise ModelError(f"{where}: two initializers have the name {sparse.values.name!r}; is the file complete?")
        model.graph.initializer.append(dense(sparse, where))
        held[sparse.values.name] = sparse
    kept = {name: SparseTensorProto.FromString(sparse.SerializeToString()) for name, sparse in held.items()}
    del model.graph.sparse_initializer[:]
    return kept


def made_dense(model: onnx.ModelProto) -> tuple[onnx.ModelProto, dict[str, SparseTensorProto]]:
    """The model, or a copy of it where it has sparse initializers, which are made dense as by densify."""
    if not model.graph.sparse_initializer:
        return model, {}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy, densify(copy)


def restore(model: onnx.ModelProto, held: Mapping[str, SparseTensorProto]) -> None:
    """Make initializers that came in sparse sparse again, in place: those without a change just as they came."""
    found = {tensor.name: tensor for tensor in model.graph.initializer if tensor.name in held}
    for name, sparse in held.items():
        same = dense(sparse).raw_data == found[name].raw_data
        model.graph.sparse_initializer.append(sparse if same else coo(found[name]))
    _drop(model, held.keys())


def move(model: onnx.ModelProto) -> tuple[str, ...]:
    """Store the model's initializers sparse, in place, wherever that takes fewer bytes; gives back their names.

    Raises:
        ModelError: the model's IR version has no sparse initializers, or they would not fit into the model file.
    """
    if model.ir_version < IR_VERSION:
        raise ModelError(f"IR version {model.ir_version} has no sparse initializers, {IR_VERSION} has; leave --sparse-initializers out")
    gains = _gains(model)
    if sum(gain[1] for gain in gains.values()) > PROTO_LIMIT:
        raise ModelError("the sparse initializers would be over 2 GiB together; leave --sparse-initializers out")
    model.graph.sparse_initializer.extend(coo(tensor) for tensor in model.graph.initializer if tensor.name in gains)
    _drop(model, gains.keys())
    return tuple(gains)


def _drop(model: onnx.ModelProto, names: Set[str]) -> None:
    """Remove the initializers of these names."""
    for number in reversed(range(len(model.graph.initializer))):
        if model.graph.initializer[number].name in names:
            del model.graph.initializer[number]


def saved(model: onnx.ModelProto, besides: Container[str] = ()) -> int:
    """How many bytes smaller the file gets when its initializers are stored sparse wherever that takes fewer bytes.

    External data counts as if it were in the file, without the padding between its tensors. The names ``besides`` do not count.
    """
    bare = onnx.GraphProto()
    give(model.graph, bare, "initializer")
    inner = int(bare.ByteSize()) + sum(_field(inside(tensor)) for tensor in model.graph.initializer)
    less = sum(before - after for name, (before, after) in _gains(model).items() if name not in besides)
    return less + _varint(inner) - _varint(inner - less)


def _gains(model: onnx.ModelProto) -> dict[str, tuple[int, int]]:
    """Name -> bytes in the graph now and as a sparse one, for every initializer that gets smaller and may be moved."""
    named = {value.name for value in (*model.graph.input, *model.graph.output)}
    found = {}
    for tensor in model.graph.initializer:
        # Small ones are shapes and the like, which ONNX Runtime must see while it loads the model.
        if tensor.name in named or tensor.data_type not in TYPES or len(tensor.dims) < 2 or nbytes(tensor) < EXTERNAL_MIN:
            continue
        before = _field(inside(tensor))
        bits = _bits(tensor)
        count = int(np.count_nonzero(bits))
        if count * 8 >= before:
            continue
        after = _field(_sparse(tensor, count, bytes(count * bits.itemsize), bytes(count * 8)).ByteSize())
        if after < before:
            found[tensor.name] = (before, after)
    return found


def _nonzero(tensor: TensorProto) -> tuple[NDArray[np.unsignedinteger], NDArray[np.int64]]:
    """The values of a tensor as unsigned integers of their size, flat, and the places of those that are not zero bit by bit."""
    flat = _bits(tensor)
    return flat, np.flatnonzero(flat).astype(np.int64)


def _bits(tensor: TensorProto) -> NDArray[np.unsignedinteger]:
    """The values of a tensor as unsigned integers of their size, flat."""
    array = np.ascontiguousarray(values_of(tensor)).reshape(-1)
    return array.view(np.dtype(f"u{array.dtype.itemsize}"))


def _field(size: int) -> int:
    """The bytes of a message of that size as an entry of the graph: its tag, its length, and itself. Both fields' tags take one byte."""
    return 1 + _varint(size) + size


def _varint(number: int) -> int:
    return max(1, -(-number.bit_length() // 7))
