"""How much the output channels of a layer count, by what the next layers make of them.

Least squares asks every channel for its dense output alike, but the channels share one budget of weights. An error e of channel c becomes
W[:, c] e in a layer that reads it, so its square counts as much as that layer's weights of the channel do: the diagonal of the error that
the reader sees, as optimal brain damage takes the diagonal of a Hessian (LeCun, Denker, Solla 1989):

    read_c = sum over readers of |W[:, c]|^2 / mean over channels of |W[:, c]|^2

W has the reader's BatchNormalization folded in. Readers are found through activations, pooling, sums and whatever else leaves channels
where they are; behind a residual branch all later layers of its stage read it, each with the same say. A depthwise layer hands on what
is read behind it. (Handing on through all layers did worse: docs/reconstruction.md.)
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph import affine, geometry
from onnxprune.graph.cheap import EACH
from onnxprune.graph.geometry import Geometry
from onnxprune.graph.points import Point
from onnxprune.graph.tensors import Constants
from onnxprune.graph.walk import CORE

Vector = NDArray[np.float64]
Read = tuple[int, Vector]
"""The axis of a tensor that has the channels (1, -1, -2, or 0 where it may be any), and how much each of them is read."""

KEEPING = EACH | {
    *("Dropout", "Cast", "Resize", "Softplus", "Softsign", "Erf", "Exp", "Sqrt", "Pow", "LRN"),
    *("Max", "Min", "Where", "Sum", "QuantizeLinear", "DequantizeLinear"),
    *("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool"),
    *("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization"),
}
"""Operators that leave every channel where it is."""
FOLDING = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "ReduceMean", "ReduceMax", "ReduceSum"}
"""Operators behind which the channels may stand on another axis, in the same order."""


def weigh(constants: Constants, dense: Constants, places: Mapping[int, tuple[Point, Geometry]]) -> dict[str, Vector]:
    """By the tensor behind a layer, how much each of its channels is read, float64 (C,), mean 1; all 1 where no reader is known.

    ``places`` are the layers by the number of their node in the model behind ``constants``; their weights come from ``dense``.
    """
    read: dict[str, Read] = {}
    nodes = constants.model.graph.node
    for number in reversed(range(len(nodes))):
        node = nodes[number]
        if number in places:
            point, shape = places[number]
            assert point.layer is not None
            matrix = geometry.to_matrix(dense.read(point.layer.seen), shape) * affine.folded(constants, point)[0][:, None]
            energy = _by_input(matrix, shape)
            if len(energy) == shape.group == point.channels:  # a depthwise layer hands its channels on
                energy *= _folded(read.get(point.dense_tensor), point)
            if energy.mean() > 0:
                given = node.input[1] if shape.left else node.input[0]
                axis = 1 if shape.kernel else {"Gemm": 0}.get(shape.op, -2 if shape.left else -1)
                _add(read, given, (axis, energy / energy.mean()))
        elif node.domain in CORE and node.output and node.output[0] in read:
            before = _before(node, read[node.output[0]], constants)
            for name in node.input if before else ():
                if name and constants.resolve(name) is None:
                    _add(read, name, before)
    return {point.dense_tensor: _folded(read.get(point.dense_tensor), point) for point, _ in places.values()}


def _by_input(matrix: Vector, shape: Geometry) -> Vector:
    """The sum of squares of a weight (outputs, K) for each input channel, the groups' one after the other."""
    squares = (matrix**2).reshape(shape.group, -1, matrix.shape[1] // shape.taps, shape.taps)
    return np.asarray(squares.sum((1, 3)).ravel())


def _before(node: onnx.NodeProto, read: Read, constants: Constants) -> Read | None:
    """What a node's output being read says of its inputs; None when nothing."""
    axis, values = read
    if node.op_type == "BatchNormalization":
        if any(constants.resolve(node.input[at]) is None for at in (1, 4)):
            return read
        scale, variance = (constants.read(node.input[at]).astype(np.float64) for at in (1, 4))
        epsilon = next((entry.f for entry in node.attribute if entry.name == "epsilon"), 1e-5)
        return (axis, values * scale**2 / (variance + epsilon)) if scale.shape == values.shape else read
    if node.op_type in KEEPING:
        return read
    if node.op_type in FOLDING:
        return 0, values
    if node.op_type == "Transpose" and axis:
        perm = next((list(entry.ints) for entry in node.attribute if entry.name == "perm"), [])
        source = perm[axis] if len(perm) > 1 else 0
        return {1: (1, values), len(perm) - 1: (-1, values), len(perm) - 2: (-2, values)}.get(source)
    return None


def _add(read: dict[str, Read], tensor: str, more: Read | None) -> None:
    """Count another reader of a tensor; one that sees other channels is left out."""
    if more is None:
        return
    axis, values = read.get(tensor, (more[0], np.zeros(len(more[1]))))
    if len(values) == len(more[1]) and (axis == more[0] or 0 in (axis, more[0])):
        read[tensor] = (axis or more[0], values + more[1])


def _folded(read: Read | None, point: Point) -> Vector:
    """The readings of a point's channels, mean 1; where pixels or steps were spread out they are added up."""
    even = np.ones(point.channels)
    if read is None or read[0] not in (0, point.axis) or len(read[1]) % point.channels:
        return even
    values = read[1].reshape(point.channels, -1).sum(1) if point.axis == 1 else read[1].reshape(-1, point.channels).sum(0)
    return values / values.mean() if np.isfinite(values).all() and values.min() >= 0 and values.mean() > 0 else even
