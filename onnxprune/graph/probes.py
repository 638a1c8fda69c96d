"""Nodes that reduce a tensor to the statistics of its channels, inside the runtime.

For a channel on axis 1 every sample is a group: the graph gives its mean and the sum of squares around that mean (centred, so
float32 is enough), each of shape (batch, channels); the groups are merged in float64 outside. For a channel on the last
axis all rows of
the batch are one group, and the shapes are (1, channels); for one on the last axis but one, every row of positions is a group.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import helper, numpy_helper


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
        return math.prod(shape) // (self.channels * (shape[0] if self.axis == 1 else 1))


def probe_nodes(probe: Probe, opset: int) -> tuple[list[onnx.NodeProto], list[onnx.TensorProto], list[onnx.ValueInfoProto]]:
    """The nodes, initializers and graph outputs that compute a probe."""
    stem = f"{probe.tensor}::"
    mean, m2, shape = probe.outputs
    nodes = [helper.make_node("Shape", [probe.tensor], [shape])]
    initializers = []
    source = probe.tensor
    kind = probe.elem_type
    if kind not in (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE):
        kind = onnx.TensorProto.FLOAT
        nodes.append(helper.make_node("Cast", [source], [f"{stem}cast"], to=kind))
        source = f"{stem}cast"
    rows, axis = f"{stem}rows", -1
    if probe.axis == -2:  # (..., channels, positions): a row of positions is a group
        rows = source
    else:
        dims = [0, probe.channels, -1] if probe.axis == 1 else [1, -1, probe.channels]
        axis = -1 if probe.axis == 1 else 1
        initializers.append(numpy_helper.from_array(np.array(dims, np.int64), f"{stem}dims"))
        nodes.append(helper.make_node("Reshape", [source, f"{stem}dims"], [rows]))
    nodes.append(_reduce("ReduceMean", rows, f"{stem}centre", axis, True, opset, initializers, stem))
    nodes.append(helper.make_node("Sub", [rows, f"{stem}centre"], [f"{stem}centred"]))
    nodes.append(_reduce("ReduceSumSquare", f"{stem}centred", f"{stem}squares", axis, False, opset, initializers, stem))
    flat = f"{stem}flat"
    initializers.append(numpy_helper.from_array(np.array([-1, probe.channels], np.int64), flat))
    nodes.append(helper.make_node("Reshape", [f"{stem}centre", flat], [mean]))
    nodes.append(helper.make_node("Reshape", [f"{stem}squares", flat], [m2]))
    values = [
        helper.make_tensor_value_info(mean, kind, None),
        helper.make_tensor_value_info(m2, kind, None),
        helper.make_tensor_value_info(shape, onnx.TensorProto.INT64, None),
    ]
    return nodes, initializers, values


def _reduce(
    op: str,
    source: str,
    target: str,
    axis: int,
    keep: bool,
    opset: int,
    initializers: list[onnx.TensorProto],
    stem: str,
) -> onnx.NodeProto:
    """A reduction over one axis; the axis is an attribute before opset 18 and an input from there on."""
    if opset < 18:
        return helper.make_node(op, [source], [target], axes=[axis], keepdims=int(keep))
    name = f"{stem}axis_{op}"
    initializers.append(numpy_helper.from_array(np.array([axis], np.int64), name))
    return helper.make_node(op, [source, name], [target], keepdims=int(keep))
