"""Write gain * y + shift, one pair per channel, into the parameters behind a tensor y.

Three places can take it, each with the numbers a point has (Point):

1. the BatchNormalization that reads y' = a*x + b: scale := gain*scale, bias := gain*bias + shift, or, for recalibration, its mean
   and variance;
2. another normalisation: scale := gain*scale, bias := gain*bias + shift;
3. a layer: weight := gain*weight along the output axis, bias := gain*bias + shift. A weight with several uses is left alone and
   only the shift is written. A use without a bias gets one: the third input of Conv, ConvTranspose and Gemm, or a new Add behind the
   node.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph.gains import scale_weight
from onnxprune.graph.layers import Use
from onnxprune.graph.norms import Norm
from onnxprune.graph.points import Point
from onnxprune.graph.tensors import Constants
from onnxprune.graph.uses import BIAS

Vector = NDArray[np.float64]


def normalisation(constants: Constants, node: onnx.NodeProto, norm: Norm) -> tuple[Vector, Vector]:
    """The gain a and shift b of a BatchNormalization in inference, y = a*x + b, float64 (channels,)."""
    scale, bias, mean, variance = (constants.read(node.input[index]).astype(np.float64) for index in (1, 2, 3, 4))
    gain = scale / np.sqrt(variance + norm.epsilon)
    return gain, bias - gain * mean


def folded(constants: Constants, point: Point) -> tuple[Vector, Vector]:
    """Gain and shift between what a layer's node gives and the point's dense tensor: those of its BatchNormalization, else 1 and 0."""
    if point.norm is None:
        return np.ones(point.channels), np.zeros(point.channels)
    return normalisation(constants, constants.model.graph.node[point.norm.node], point.norm)


def write_statistics(constants: Constants, node: onnx.NodeProto, mean: Vector, variance: Vector) -> None:
    """Make ``mean`` and ``variance`` the running statistics of a BatchNormalization."""
    for index, values, what in ((3, mean, "mean"), (4, variance, "var")):
        _write(constants, node, index, values, what)


def write_affine(constants: Constants, point: Point, gain: Vector, shift: Vector) -> list[tuple[int, onnx.NodeProto]]:
    """Write gain * y + shift into the parameters behind the point's ``dense_tensor``.

    Returns the nodes to insert, each with the number of the node it comes after: empty unless a bias needs a new Add.
    """
    nodes = constants.model.graph.node
    if point.norm is not None:
        norm = point.norm
        holder = nodes[norm.scale_node]
        scale = constants.read(holder.input[norm.scale]).astype(np.float64)
        gain, shift = gain.reshape(scale.shape), shift.reshape(scale.shape)
        data_type = constants.data_type(holder.input[norm.scale])
        _write(constants, holder, norm.scale, gain * scale, "scale")
        if norm.bias < 0:
            stem = holder.name or holder.output[0]
            return [(norm.node, _add_node(constants, nodes[norm.node], shift, data_type, stem))] if np.any(shift) else []
        node = nodes[norm.bias_node]
        has_bias = len(node.input) > norm.bias and node.input[norm.bias]
        bias = constants.read(node.input[norm.bias]).astype(np.float64) if has_bias else np.zeros(scale.shape)
        _write(constants, node, norm.bias, gain.reshape(bias.shape) * bias + shift.reshape(bias.shape), "bias", data_type)
        return []
    assert point.use is not None and point.layer is not None
    place = point.use.bias
    old = None if place is None else constants.read(nodes[place.node].input[place.index])
    if not point.shared:
        scale_weight(constants, point.layer, point.use, gain)
    return [*_scale_own_bias(constants, point, gain), *_write_bias(constants, point, gain, shift, old)]


def give_biases(constants: Constants, points: Sequence[Point]) -> list[tuple[int, onnx.NodeProto]]:
    """Give every use without a bias of its own, and without a BatchNormalization, a bias of zeros; returns the nodes to insert."""
    added = []
    for point in points:
        if point.norm is None and point.use is not None and point.use.bias is None:
            added.extend(_new_bias(constants, point, np.zeros(point.channels)))
    return added


def shift_input(constants: Constants, point: Point) -> tuple[onnx.NodeProto, int]:
    """The node, and the number of its input, that `write_shift` writes: the BatchNormalization's bias or the layer's own."""
    nodes = constants.model.graph.node
    if point.norm is not None:
        return nodes[point.norm.node], point.norm.bias
    assert point.use is not None and point.use.bias is not None
    return nodes[point.use.bias.node], point.use.bias.index


def write_shift(constants: Constants, point: Point, shift: Vector) -> None:
    """Make ``shift`` all that is added to weight @ input at the point's ``dense_tensor``, in units of what leaves it.

    With a BatchNormalization y = a*(x + own bias) + b behind the weight, its bias is what changes.
    """
    nodes = constants.model.graph.node
    use = point.use
    own = constants.read(nodes[use.bias.node].input[use.bias.index]) if use is not None and use.bias is not None else None
    if point.norm is not None:
        node = nodes[point.norm.node]
        gain, offset = normalisation(constants, node, point.norm)
        bias = constants.read(node.input[point.norm.bias]).astype(np.float64)
        inside = np.zeros(point.channels) if own is None else own.astype(np.float64).reshape(-1)
        _write(constants, node, point.norm.bias, bias - offset - gain * inside + shift, "bias")
        return
    assert use is not None
    assert use.bias is not None
    assert own is not None
    _write(constants, nodes[use.bias.node], use.bias.index, shift.reshape(_like(own, use)) / use.bias.scale, "bias")


def _scale_own_bias(constants: Constants, point: Point, gain: Vector) -> list[tuple[int, onnx.NodeProto]]:
    """Scale the bias input of a node where it is not the use's bias: it is computed at run time, or is not one number per channel.

    A constant one gets new values; for another there is a Mul to insert before the node.
    """
    use = point.use
    assert use is not None and point.layer is not None
    node = constants.model.graph.node[use.node]
    own, at = use.bias is not None and use.bias.node == use.node, BIAS.get(use.op, len(node.input))
    if own or len(node.input) <= at or not node.input[at] or np.all(gain == 1):
        return []
    name, label = node.input[at], node.name or node.output[0]
    if constants.resolve(name) is not None:  # Gemm's C, of shape (M, N), (M, 1) or the like
        old = constants.read(name).astype(np.float64)
        _write(constants, node, at, old * (gain if use.axis != -2 else gain.reshape(-1, 1)), "bias")
        return []
    scaled_name = constants.fresh(f"{label}.scaled_bias")
    mul = onnx.helper.make_node("Mul", [name, ""], [scaled_name], name=constants.fresh(f"{label}.scale_bias"))
    constants.write_input(
        mul, 1, gain if use.axis != -2 else gain.reshape(-1, 1), constants.data_type(point.layer.seen), f"{label}.bias_gain"
    )
    node.input[at] = scaled_name
    constants.changes.nodes.add(mul.name)
    constants.changes.inputs.discard(mul.name)
    constants.changes.inputs.add(label)
    return [(use.node - 1, mul)]


def _write_bias(
    constants: Constants, point: Point, gain: Vector, shift: Vector, old: NDArray[Any] | None
) -> list[tuple[int, onnx.NodeProto]]:
    use = point.use
    assert use is not None and point.layer is not None
    nodes = constants.model.graph.node
    if use.bias is not None and old is not None:
        node = nodes[use.bias.node]
        bias = old.astype(np.float64) * gain.reshape(_like(old, use)) + shift.reshape(_like(old, use)) / use.bias.scale
        _write(constants, node, use.bias.index, bias, "bias")
        return []
    return _new_bias(constants, point, shift) if np.any(shift) else []


def _new_bias(constants: Constants, point: Point, shift: Vector) -> list[tuple[int, onnx.NodeProto]]:
    """A bias where there was none: the node's own third input, or an Add to insert behind it."""
    use = point.use
    assert use is not None
    assert point.layer is not None
    node = constants.model.graph.node[use.node]
    data_type = constants.data_type(point.layer.seen)
    stem = node.name or node.output[0]
    if use.bias_index is not None:
        beta = next((entry.f for entry in node.attribute if use.op == "Gemm" and entry.name == "beta"), 1.0)
        values = shift / beta if use.axis != -2 else (shift / beta).reshape(-1, 1)
        constants.write_input(node, use.bias_index, values, data_type, f"{stem}.bias")
        return []
    values = shift if use.axis == -1 else shift.reshape(-1, *[1] * _trailing(point))
    return [(use.node, _add_node(constants, node, values, data_type, stem))]


def _trailing(point: Point) -> int:
    """How many axes follow the channel axis in the point's tensor."""
    assert point.layer is not None and point.use is not None
    return -point.use.axis - 1 if point.use.axis < 0 else len(point.layer.shape) - 2


def _like(bias: NDArray[Any], use: Use) -> tuple[int, ...]:
    """The shape in which a vector per channel meets a bias: the bias' own, or one axis where the bias is a single number."""
    if bias.size == use.channels:
        return bias.shape
    shape = [1] * max(bias.ndim, 1, -use.axis)
    shape[min(use.axis, -1) if use.axis < 0 else -1] = use.channels
    return tuple(shape)


def _add_node(constants: Constants, node: onnx.NodeProto, values: NDArray[np.float64], data_type: int, stem: str) -> onnx.NodeProto:
    """An Add that takes over the name of the node's output, so that every reader sees the sum."""
    raw = constants.fresh(f"{node.output[0]}.without_bias")
    add = onnx.helper.make_node("Add", [raw, ""], [node.output[0]], name=constants.fresh(f"{stem}.add_bias"))
    constants.write_input(add, 1, values, data_type, f"{stem}.bias")
    node.output[0] = raw
    constants.changes.nodes.add(add.name)
    constants.changes.inputs.discard(add.name)
    return add


def insert(model: onnx.ModelProto, added: Sequence[tuple[int, onnx.NodeProto]]) -> None:
    """Insert nodes, each behind the node of the given number, leaving all others as they are; equal numbers keep their order."""
    nodes = model.graph.node
    for number, node in sorted(added, key=lambda place: place[0])[::-1]:
        nodes.insert(number + 1, node)


def _write(
    constants: Constants, node: onnx.NodeProto, index: int, values: NDArray[np.float64], what: str, data_type: int | None = None
) -> None:
    """Give a parameter input of a node new values, in the type that the parameter has; ``data_type`` is for one that is not there yet."""
    if index < len(node.input) and node.input[index]:
        data_type = constants.data_type(node.input[index])
    assert data_type is not None
    constants.write_input(node, index, values, data_type, f"{node.name or node.output[0]}.{what}")
