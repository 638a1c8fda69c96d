"""Which tensors of a model are kept outside of it, in which files, and which shall be."""

from __future__ import annotations

from collections.abc import Mapping

import onnx
from onnx.external_data_helper import uses_external_data

from onnxprune.graph.complete import PROTO_LIMIT, nbytes, size_of
from onnxprune.graph.mapped import is_mapped

# Tensors below this size stay inside the model file when external data is written, as onnx.save does.
EXTERNAL_MIN = 1024


def _location(tensor: onnx.TensorProto) -> list[onnx.StringStringEntryProto]:
    """The entry that names the file of a tensor."""
    return [entry for entry in tensor.external_data if entry.key == "location"]


def groups_of(model: onnx.ModelProto, places: Mapping[str, str]) -> list[list[int]]:
    """The numbers of the initializers that go into each data file."""
    raw = [number for number, tensor in enumerate(model.graph.initializer) if is_mapped(tensor) or tensor.raw_data]
    groups: dict[str, list[int]] = {}
    for number in raw:
        tensor = model.graph.initializer[number]
        name = tensor.name
        # ONNX Runtime must see a Reshape's shape while it loads the model, and cannot see it in another file.
        if name in places and not (tensor.data_type == onnx.TensorProto.INT64 and nbytes(tensor) < EXTERNAL_MIN):
            groups.setdefault(places[name], []).append(number)
    inside = size_of(model) - sum(nbytes(model.graph.initializer[number]) for group in groups.values() for number in group)
    if groups and inside < PROTO_LIMIT:
        return list(groups.values())
    large = [number for number in raw if nbytes(model.graph.initializer[number]) >= EXTERNAL_MIN]
    return [large] if large else []


def places_of(model: onnx.ModelProto) -> dict[str, str]:
    """Initializer -> the file that it is in, for those outside the model."""
    return {tensor.name: entry.value for tensor in model.graph.initializer if uses_external_data(tensor) for entry in _location(tensor)}
