"""Constant tensors of a model: where the values of a node's input live, and how they are read and written in place.

A constant is an initializer, the output of a Constant node, or either of them behind Identity nodes. A value that only one node
input reads is changed where it lives. A value with several readers is left alone, and the one input is given an initializer of
its own; both are recorded, so that the report can name everything that is different in the file.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.errors import ModelError

FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass
class Changes:
    """What is different in the file that goes out: names of tensors with new values, of new initializers, and of new nodes."""

    values: set[str] = field(default_factory=set)
    initializers: set[str] = field(default_factory=set)
    nodes: set[str] = field(default_factory=set)
    inputs: set[str] = field(default_factory=set)
    """Nodes whose inputs were given another tensor."""


class Constants:
    """The constants of a model's main graph, and the edits made to them. Works on the given proto in place."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.changes = Changes()
        self._tensors: dict[str, onnx.TensorProto] = {}
        self._alias: dict[str, str] = {}
        graph = model.graph
        for tensor in graph.initializer:
            self._tensors[tensor.name] = tensor
        for node in graph.node:
            if node.op_type == "Constant" and node.output:
                for attribute in node.attribute:
                    if attribute.name == "value" and attribute.HasField("t"):
                        self._tensors[node.output[0]] = attribute.t
            elif node.op_type == "Identity" and node.domain in ("", "ai.onnx"):
                self._alias[node.output[0]] = node.input[0]
        # Before IR version 4 every initializer must be listed as an input too; only from there on does it say that callers feed it.
        self._listed = model.ir_version < 4
        self._fed = set() if self._listed else {value.name for value in graph.input}
        self._readers = Counter(names_read(graph))
        self._taken = set(self._tensors) | set(self._readers) | {value.name for value in graph.input}
        for node in graph.node:
            self._taken.update(node.output)

    def resolve(self, name: str) -> str | None:
        """The name of the tensor that holds the values of ``name``, or None when they are not constant."""
        seen: set[str] = set()
        while name not in self._tensors:
            if name not in self._alias or name in seen:
                return None
            seen.add(name)
            name = self._alias[name]
        return name

    def read(self, name: str) -> NDArray[Any]:
        """A copy of the values of the constant ``name``, in its own dtype."""
        return np.array(numpy_helper.to_array(self._tensors[self._holder(name)]))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the constant ``name``."""
        return tuple(self._tensors[self._holder(name)].dims)

    def data_type(self, name: str) -> int:
        """The onnx.TensorProto.DataType of the constant ``name``."""
        return int(self._tensors[self._holder(name)].data_type)

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Give the constant ``name`` new values of the same shape; every node that reads it sees them."""
        holder = self._holder(name)
        tensor = self._tensors[holder]
        if tuple(tensor.dims) != array.shape:
            raise ValueError(f"{holder}: has shape {tuple(tensor.dims)}, got values of shape {array.shape}")
        _fill(tensor, array)
        if holder not in self.changes.initializers:  # one that was added is named there
            self.changes.values.add(holder)

    def write_input(self, node: onnx.NodeProto, index: int, array: NDArray[Any], data_type: int, stem: str) -> None:
        """Give one node input new values without touching what other nodes read.

        The constant is changed in place when this input is its only reader and the shape is the same; otherwise a new initializer,
        named after ``stem``, takes the place of the input, which may have been absent.
        """
        label = node.name or node.output[0]
        old = node.input[index] if index < len(node.input) else ""
        holder = self.resolve(old) if old else None
        if holder is not None and self._private(old) and self.shape(old) == array.shape:
            self.write(old, array)
            return
        name = self.fresh(stem)
        tensor = onnx.TensorProto(name=name, data_type=data_type, dims=array.shape)
        _fill(tensor, array)
        self.model.graph.initializer.append(tensor)
        self._tensors[name] = self.model.graph.initializer[-1]
        if self._listed:
            self.model.graph.input.append(onnx.helper.make_tensor_value_info(name, data_type, array.shape))
        while len(node.input) <= index:
            node.input.append("")
        node.input[index] = name
        self._readers[name] += 1
        if old:
            self._readers[old] -= 1
        self.changes.initializers.add(name)
        self.changes.inputs.add(label)

    def readers(self, name: str) -> int:
        """How many node inputs (in subgraphs too) and graph outputs read ``name`` by that very name."""
        return self._readers[name]

    def fresh(self, stem: str) -> str:
        """A tensor name that the model does not use yet: the stem, or the stem with a number."""
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def _holder(self, name: str) -> str:
        holder = self.resolve(name)
        if holder is None:
            raise KeyError(f"{name}: not a constant of the model")
        return holder

    def _private(self, name: str) -> bool:
        """True when one node input alone reads the values: one reader of the name, and no alias on the way."""
        return name in self._tensors and self._readers[name] == 1 and name not in self._fed


def _fill(tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
    """Put the values into the tensor's raw bytes, rounded once to its type."""
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type)
    values = np.ascontiguousarray(array.astype(dtype, copy=False))
    for name in ("float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
        tensor.ClearField(name)
    tensor.raw_data = values.astype(values.dtype.newbyteorder("<"), copy=False).tobytes()


def names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor name that the graph's nodes (and the bodies inside them) and its outputs read, once per reading."""
    for node in graph.node:
        yield from (name for name in node.input if name)
        for body in bodies(node):
            yield from names_read(body)
    yield from (value.name for value in graph.output)


def stored(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor that the file holds: initializers and the attributes of nodes, in bodies and local functions too."""
    yield from model.graph.initializer
    yield from _stored(model.graph.node)
    for function in model.functions:
        yield from _stored(function.node)


def _stored(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
        for body in bodies(node):
            yield from body.initializer
            yield from _stored(body.node)


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs that a node holds: the branches of If, the bodies of Loop and Scan."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.g
        elif attribute.type == onnx.AttributeProto.GRAPHS:
            yield from attribute.graphs


def refuse_disorder(model: onnx.ModelProto) -> None:
    """Raises ModelError when a node reads what a later one makes; ONNX asks for the order, ONNX Runtime does not."""
    maker = {name: number for number, node in enumerate(model.graph.node) for name in node.output if name}
    for number, node in enumerate(model.graph.node):
        late = [name for name in node.input if maker.get(name, -1) >= number]
        if late:
            raise ModelError(
                f"node {node.name or node.op_type!r} reads {late[0]!r}, which a later node makes; sort the nodes (graphsurgeon's toposort)"
            )


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that a model imports; 1 when it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=1)
