"""Nodes that reduce a tensor to the statistics of its channels, inside the runtime.

For a channel on axis 1 every sample is a group: the graph gives its mean and the sum of squares around that mean (centred, so
float32 is enough), each of shape (batch, channels); the groups are merged in float64 outside. For a channel on the last axis all rows of
the batch are one group, and the shapes are (1, channels); for one on the last axis but one, every row of positions is a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs


@dataclass(frozen=True)
class Probe:
    """Statistics of ``tensor`` per channel on ``axis`` (1, -1 or -2), and the names under which a stage gives them.

    ``elem_type`` is the tensor's onnx.TensorProto.DataType.
    """

    tensor: str
    axis: int
    channels: int
    elem_type: int = onnx.TensorProto.FLOAT

    @property
    def outputs(self) -> tuple[str, str, str]:
        """Graph outputs: mean and m2, float32 or float64 (groups, channels), and the tensor's shape, int64."""
        return (f"{self.tensor}::mean", f"{self.tensor}::m2", f"{self.tensor}::shape")

    def group_size(self, shape: tuple[int, ...]) -> int:
        """How many numbers of one channel a group has, from the tensor's shape."""
        if self.axis == -2:
            return shape[-1]
        return math.prod(shape) // max(self.channels * (shape[0] if self.axis == 1 else 1), 1)


def probe_graph(probe: Probe, opset: int) -> onnx.GraphProto:
    """The nodes, initializers and outputs that compute a probe; what they make is named after its tensor."""
    graph = gs.Graph(opset=opset)
    source = gs.Variable(probe.tensor)

    def node(op: str, *inputs: gs.Tensor, **attributes: Any) -> gs.Variable:
        made = gs.Variable(f"{probe.tensor}::{op}{len(graph.nodes)}")
        graph.nodes.append(gs.Node(op, attrs=attributes, inputs=list(inputs), outputs=[made]))
        return made

    def numbers(name: str, *values: int) -> gs.Constant:
        return gs.Constant(f"{probe.tensor}::{name}", np.array(values, np.int64))

    def reduce(op: str, source: gs.Variable, axis: int, keep: int) -> gs.Variable:
        """The axis is an attribute before opset 18 and an input from there on."""
        if opset < 18:
            return node(op, source, axes=[axis], keepdims=keep)
        return node(op, source, numbers(f"axis_{op}", axis), keepdims=keep)

    shape = node("Shape", source)
    kind = probe.elem_type
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        kind = onnx.TensorProto.FLOAT
        source = node("Cast", source, to=kind)
    rows, axis = source, -1
    if probe.axis == 1:
        rows, axis = node("Flatten", source, axis=2), 1  # (samples * channels, positions): a Reshape to -1 takes no empty tensor
    elif probe.axis == -1:
        rows, axis = node("Reshape", source, numbers("dims", 1, -1, probe.channels)), 1
    centre = reduce("ReduceMean", rows, axis, 1)
    squares = reduce("ReduceSumSquare", node("Sub", rows, centre), axis, 0)
    flat = numbers("flat", -1, probe.channels)
    graph.outputs = [node("Reshape", centre, flat), node("Reshape", squares, flat), shape]
    for tensor, name in zip(graph.outputs, probe.outputs, strict=True):
        tensor.name, tensor.dtype = name, onnx.TensorProto.INT64 if tensor is shape else kind
    made: onnx.GraphProto = gs.export_onnx(graph).graph
    made.ClearField("name")  # it goes into a graph that has one
    return made
