"""ONNX test data sets: a folder with one tensor for each model input, ``input_0.pb``, ``input_1.pb``, ...

Tensors that all have the name of an input go by name, otherwise input_K.pb serves the model's input number K. A tensor of the input's
rank is a batch along the axis on which the model has it (test data sets usually hold a batch of one), one rank less is one sample.
``output_K.pb`` is not read.
"""

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.graph.complete import fault
from onnxprune.runtime.finding import tensors_of
from onnxprune.runtime.sources import Source, fitted, reading, rows_of


def open_set(folder: Path, ranks: Mapping[str, int], axes: Mapping[str, int | None]) -> Source:
    """Return the Source of one test data set; ``ranks`` counts the batch axis, by input in the model's order, ``axes`` says where it is.

    Raises CalibrationError for damaged files, sequences, optionals and strings, and another number of tensors than of inputs.
    """
    files = tensors_of(folder)
    tensors = [_tensor(file) for file in files]
    names, inputs = [tensor.name for tensor in tensors], list(ranks)
    if len(tensors) != len(inputs) and not set(inputs) <= set(names):
        raise CalibrationError(f"{folder}: holds {len(files)} inputs, the model has {len(inputs)} ({', '.join(inputs)}): complete the set")
    by_name = set(inputs) <= set(names)
    place = {name: names.index(name) if by_name else number for number, name in enumerate(inputs)}
    headers = {}
    for name, number in place.items():
        dtype = onnx.helper.tensor_dtype_to_np_dtype(tensors[number].data_type)
        shape = list(tensors[number].dims)
        if len(shape) == ranks[name]:
            shape.insert(0, shape.pop(axes.get(name) or 0))
        headers[name] = (str(files[number]), dtype, tuple(shape))
    count, stored = fitted(str(folder), headers, ranks)
    unused = tuple(names[number] or files[number].name for number in range(len(files)) if number not in place.values())

    def arrays() -> dict[str, NDArray[Any]]:
        held = {name: _array(files[number]) for name, number in place.items()}
        return {name: np.moveaxis(a, axes.get(name) or 0, 0) if a.ndim == ranks[name] else a for name, a in held.items()}

    return Source(str(folder), count, stored, unused, partial(rows_of, arrays, stored, count))


def _tensor(file: Path) -> onnx.TensorProto:
    """Return the checked tensor of a file."""
    if not file.is_file():
        raise CalibrationError(f"{file}: is no regular file: replace it")
    with reading(file):
        data = file.read_bytes()
    tensor = onnx.TensorProto()
    try:
        tensor.ParseFromString(data)
        why = fault(tensor)
    except DecodeError:
        why = f"{len(data)} bytes do not parse"
    if tensor.data_type == onnx.TensorProto.STRING and not why:
        raise CalibrationError(f"{file}: holds strings, which cannot be fed: give a model that takes numbers")
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise CalibrationError(f"{file}: keeps its data in another file, which is not read: save the tensor in one file")
    if why or tensor.data_type == onnx.TensorProto.UNDEFINED:
        kind = _other_kind(data)
        if kind:
            raise CalibrationError(f"{file}: holds {kind}, expected a tensor: such inputs cannot be fed, save a tensor")
        raise CalibrationError(f"{file}: cannot be read ({why or 'it has no element type'}): replace the file with a TensorProto")
    return tensor


def _array(file: Path) -> NDArray[Any]:
    with reading(file):
        return onnx.numpy_helper.to_array(_tensor(file))


def _other_kind(data: bytes) -> str:
    """Return what the bytes are where they are no tensor but another value that a test data set may hold, else nothing."""
    kinds = {onnx.SequenceProto: "a sequence or an optional", onnx.SparseTensorProto: "a sparse tensor"}  # those two look alike
    for kind, words in kinds.items():
        value = kind()
        try:
            value.ParseFromString(data)
        except DecodeError:
            continue
        if {field.name for field, _ in value.ListFields()} & {"tensor_values", "sparse_tensor_values", "sequence_values", "values"}:
            return words
    return ""
