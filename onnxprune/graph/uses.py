"""A use of a weight: the node that reads it, where its statistics are taken, and the bias and normalisation that may take a repair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import onnx

from onnxprune.graph.inlining import called_from
from onnxprune.graph.norms import Norm
from onnxprune.graph.tensors import FLOATS, Constants
from onnxprune.graph.walk import CORE
from onnxprune.graph.weights import CONVOLUTIONS, Weight

BIAS = {"Conv": 2, "ConvTranspose": 2, "Gemm": 2, "DeformConv": 3}
"""Operator -> the input that is its bias, for those that have one."""


@dataclass(frozen=True)
class Bias:
    """Where a use's bias lives: input ``index`` of node ``node``, added as ``scale`` times its values."""

    node: int
    index: int
    scale: float = 1.0


@dataclass(frozen=True)
class Use:
    """One node that reads a layer's weight.

    ``output`` is the tensor whose statistics the repair matches and ``axis`` its channel axis (negative: from the end).
    ``weight_axis`` is the weight's output axis; a ConvTranspose has group blocks on its input axis. ``norm`` is its
    BatchNormalization.
    """

    node: int
    op: str
    output: str
    axis: int
    channels: int
    weight_axis: int
    group: int = 1
    bias: Bias | None = None
    bias_index: int | None = None
    """The input index where the node itself takes a bias, None where it takes none (MatMul) or holds one that is not per
    channel."""
    norm: Norm | None = None
    unrepaired: str = ""
    """Why the use cannot be repaired, empty where it can."""
    scope: int = 0
    """The number of the scope whose node it is: 0 for the main graph, above for bodies."""
    outer: int = -1
    """The number of the main graph's node that holds that body; the node itself in the main graph."""
    seen: str = ""
    """The weight as this node reads it; it may be turned against what another use of the layer reads."""


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Who reads which tensor of the main graph (walk.readers)."""

    nodes: Sequence[onnx.NodeProto]
    by: Mapping[str, Sequence[int]]

    def only_reader(self, tensor: str) -> int:
        """The number of the one node of ONNX's own operators that reads a tensor, -1 when there is none such or others read it too."""
        numbers = self.by.get(tensor, ())
        return numbers[0] if len(numbers) == 1 and numbers[0] >= 0 and self.nodes[numbers[0]].domain in CORE else -1


def use_of(number: int, found: Weight, around: Neighbours, constants: Constants) -> Use:
    """The use of a weight by a node of the main graph, with its bias; its BatchNormalization is looked for later."""
    node = around.nodes[number]
    attributes = {entry.name: entry for entry in node.attribute}
    shape = constants.shape(found.weight)
    group = int(attributes["group"].i) if "group" in attributes else 1
    channels = shape[found.axis] * (group if node.op_type == "ConvTranspose" else 1)
    output = next(filter(None, node.output), "")
    plain = Use(
        number,
        node.op_type,
        output,
        found.output_axis,
        channels,
        found.axis,
        group,
        None,
        None,
        None,
        found.unrepaired,
        0,
        number,
        found.weight,
    )
    if found.unrepaired:
        return plain
    bias: Bias | None = None
    bias_index = BIAS.get(node.op_type)
    at = len(node.input) if bias_index is None else bias_index
    given = node.input[at] if len(node.input) > at else ""
    if node.op_type == "Gemm":
        scale = float(attributes["beta"].f) if "beta" in attributes else 1.0
        per_channel = bool(given) and _spread(given, channels, found.output_axis, constants)
        if given and (not per_channel or scale == 0.0):
            bias_index = None
        elif given:
            bias = Bias(number, 2, scale)
        elif scale == 0.0:
            bias_index = None
    elif node.op_type in CONVOLUTIONS and given:
        if constants.resolve(given) is None:
            bias_index = None
        else:
            bias = Bias(number, at)
    if bias is None:
        behind = around.only_reader(output)
        following = around.nodes[behind] if behind >= 0 else None
        if following is not None and following.op_type == "Add":
            side = 1 if following.input[0] == output else 0
            rank = len(shape) if node.op_type != "Einsum" else 2
            if _spread(following.input[side], channels, found.output_axis, constants, rank=rank):
                bias = Bias(behind, side)
                output = following.output[0]
    return replace(plain, output=output, bias=bias, bias_index=bias_index)


def _spread(name: str, channels: int, axis: int, constants: Constants, *, rank: int = 0) -> bool:
    """True when a constant adds one number per channel: all its dims are 1 but the channel's.

    ``rank``, the rank of the weight, is given for a bias that stands in an Add of its own: the channel's dim must be there in
    full. A convolution's output has that rank too.
    """
    if constants.resolve(name) is None or constants.data_type(name) not in FLOATS:
        return False
    shape = constants.shape(name)
    if rank and axis == 1:
        return len(shape) <= rank and (1,) * (rank - len(shape)) + shape == (1, channels, *[1] * (rank - 2))
    axis = -1 if axis == 1 else axis
    if len(shape) < -axis:
        return not rank and all(dim == 1 for dim in shape)
    rest = [dim for number, dim in enumerate(shape) if number != len(shape) + axis]
    return all(dim == 1 for dim in rest) and shape[axis] in ((channels,) if rank else (1, channels))


def with_norm(use: Use, around: Neighbours, norms: Mapping[int, Norm]) -> Use:
    """The use with the BatchNormalization that alone reads its output, if there is one of the same width."""
    if use.unrepaired or use.axis != 1:
        return use
    carrier = around.nodes[use.bias.node if use.bias is not None else use.node]
    norm = norms.get(around.only_reader(carrier.output[0]))
    if norm is None or norm.op != "BatchNormalization" or norm.channels != use.channels:
        return use
    return replace(use, norm=norm)


def bound(use: Use, shared: bool, around: Neighbours, constants: Constants) -> Use:
    """The use, marked as one that cannot be repaired where its node comes from a function or a branch and needs more than values.

    ``shared`` says that other uses read the weight too.
    """
    if use.unrepaired:
        return use
    carriers = {use.node, *([use.bias.node] if use.bias is not None else []), *([use.norm.node] if use.norm is not None else [])}
    where = next(filter(None, (called_from(around.nodes[number]) for number in sorted(carriers))), "")
    if not where:
        return use
    reason = ""
    if use.norm is not None:
        held = [around.nodes[use.norm.node].input[at] for at in range(1, 5)]
        if not all(constants.private(name) for name in held):
            reason = "its BatchNormalization is shared"
    elif use.bias is None:
        reason = "it has no bias"
    elif not constants.private(around.nodes[use.bias.node].input[use.bias.index]):
        reason = "its bias is shared"
    elif shared:
        reason = "its weight is shared"
    return replace(use, unrepaired=f"{reason}, inside the {where}") if reason else use
