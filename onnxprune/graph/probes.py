"""Nodes that reduce a tensor to the statistics of its channels, inside the runtime.

For a channel on axis 1 every sample is a group: the graph gives its mean and the sum of squares around that mean (centred, so
float32 is enough), each of shape (batch, channels); the groups are merged in float64 outside. For a channel on the last axis all rows of
the batch are one group, and the shapes are (1, channels); for one on the last axis but one, every row of positions is a group.

On the CPU one node does it for axis 1, a BatchNormalization in training: mean and variance of the whole batch, (channels,). It takes a
third of the time, and the variances are within 3e-7. CUDA has no kernel for it, and before opset 14 there is none. No node may read them:
ONNX Runtime then puts them where the initializers are that go in, which runs at the same time share.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

Groups = tuple[int, NDArray[Any], NDArray[Any]]
"""Size of a group, and mean and centred sum of squares of every group and channel, float32 or float64 (groups, channels).

For a `graph.wide.Wide`: how many positions, sums and products."""


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
        """Graph outputs, which `read` reads: mean and m2, float32 or float64 (groups, channels), and the tensor's shape, int64.

        One node for the batch gives its mean and variance, (channels,).
        """
        return (f"{self.tensor}::mean", f"{self.tensor}::m2", f"{self.tensor}::shape")

    def read(self, mean: NDArray[Any], spread: NDArray[Any], shape: NDArray[np.int64]) -> Groups:
        """The statistics that the outputs hold; ``spread`` is m2 or the variance."""
        if mean.ndim == 1:
            size = self.group_size(tuple(shape.tolist()), 1)
            return size, mean[None], spread[None].astype(np.float64) * size
        return self.group_size(tuple(shape.tolist()), len(mean)), mean, spread

    def group_size(self, shape: tuple[int, ...], groups: int) -> int:
        """How many numbers of one channel each of so many groups has, from the tensor's shape."""
        return math.prod(shape) // max(self.channels * groups, 1)


def add_node(graph: gs.Graph, stem: str, op: str, *inputs: gs.Tensor, **attributes: Any) -> gs.Variable:
    """What a new node of the graph makes, named after ``stem``."""
    made = gs.Variable(f"{stem}::{op}{len(graph.nodes)}")
    graph.nodes.append(gs.Node(op, attrs=attributes, inputs=list(inputs), outputs=[made]))
    return made


def beside(graph: gs.Graph, outputs: Iterable[tuple[gs.Variable, str, int]]) -> onnx.GraphProto:
    """The graph to put beside a model's nodes; ``outputs`` are its tensors, their names and their onnx.TensorProto.DataType."""
    for tensor, name, kind in outputs:
        tensor.name, tensor.dtype = name, kind
        graph.outputs.append(tensor)
    made: onnx.GraphProto = gs.export_onnx(graph).graph
    made.ClearField("name")  # it goes into a graph that has one
    return made


@functools.lru_cache(4096)
def probe_graph(probe: Probe, opset: int, *, one_node: bool = False) -> onnx.GraphProto:
    """The nodes, initializers and outputs that compute a probe; what they make is named after its tensor. Not to be changed.

    ``one_node`` allows the one node for axis 1. The dense pass and the walk ask for the same ones.
    """
    graph = gs.Graph(opset=opset)
    source = gs.Variable(probe.tensor)
    node = functools.partial(add_node, graph, probe.tensor)

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

    def given(mean: gs.Variable, spread: gs.Variable) -> onnx.GraphProto:
        return beside(graph, zip((mean, spread, shape), probe.outputs, (kind, kind, onnx.TensorProto.INT64), strict=True))

    if one_node and probe.axis == 1 and opset >= 14:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(kind)
        one, zero = (gs.Constant(f"{probe.tensor}::{value}", np.full(probe.channels, value, dtype)) for value in (1, 0))
        made = [gs.Variable(f"{probe.tensor}::batch_{what}") for what in ("values", "mean", "variance")]
        attributes = {"training_mode": 1, "momentum": 0.0}
        graph.nodes.append(gs.Node("BatchNormalization", attrs=attributes, inputs=[source, one, zero, zero, one], outputs=made))
        return given(*made[1:])
    rows, axis = source, -1
    if probe.axis == 1:
        rows, axis = node("Flatten", source, axis=2), 1  # (samples * channels, positions): a Reshape to -1 takes no empty tensor
    elif probe.axis == -1:
        rows, axis = node("Reshape", source, numbers("dims", 1, -1, probe.channels)), 1
    centre = reduce("ReduceMean", rows, axis, 1)
    squares = reduce("ReduceSumSquare", node("Sub", rows, centre), axis, 0)
    flat = numbers("flat", -1, probe.channels)
    return given(node("Reshape", centre, flat), node("Reshape", squares, flat))
