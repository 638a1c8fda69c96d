"""Normalisations: what they normalise, and which inputs of which nodes hold scale, bias, mean and variance.

1. Operators: NORMS, and those of com.microsoft that ONNX Runtime's optimiser writes.
2. Chains, as exporters write them: a Mul by one constant a channel, and perhaps an Add of another, behind

       LayerNorm, RMSNorm   Div(x, Sqrt(... ReduceMean ...)), or Mul(x, Reciprocal(Sqrt(...))), with Pow for Sqrt and 1/x for Reciprocal
       GroupNorm            Reshape(InstanceNormalization(Reshape(x)))

   and perhaps a Cast.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxprune.graph.inlining import called_from
from onnxprune.graph.tensors import FLOATS, Constants
from onnxprune.graph.walk import CORE, label, opset_of

# Operator -> (input of the scale, input of the bias or -1, axis of the channels in the output).
NORMS = {
    "BatchNormalization": (1, 2, 1),
    "InstanceNormalization": (1, 2, 1),
    "GroupNormalization": (1, 2, 1),
    "LayerNormalization": (1, 2, -1),
    "RMSNormalization": (1, -1, -1),
    "SimplifiedLayerNormalization": (1, -1, -1),
}
MICROSOFT = {"SkipLayerNormalization": (2, 3, -1), "SkipSimplifiedLayerNormalization": (2, -1, -1)}
WIDE = "its scale and bias are not one number per channel"
REACH = 8
"""How many nodes above a division the mean of its denominator is looked for."""


@dataclass(frozen=True)
class Norm:
    """A normalisation whose scale and bias are constants, one per channel.

    ``input`` and ``output`` are tensor names; ``scale`` and ``bias`` are input positions of the nodes ``scale_node`` and ``bias_node``,
    which are ``node`` itself for an operator; a ``bias`` of -1 says that there is no place for one. ``epsilon`` is a
    BatchNormalization's.
    """

    name: str
    op: str
    node: int
    input: str
    output: str
    axis: int
    channels: int
    scale: int
    bias: int
    epsilon: float
    scale_node: int
    bias_node: int


@dataclass(frozen=True, eq=False)
class _Graph:
    nodes: Sequence[onnx.NodeProto]
    makers: Mapping[str, int]
    by: Mapping[str, Sequence[int]]

    def maker(self, name: str) -> onnx.NodeProto | None:
        """The node that makes a tensor, if it is one of ONNX's own operators; Casts are looked through."""
        node = self.nodes[self.makers[name]] if name in self.makers else None
        if node is None or node.domain not in CORE:
            return None
        return self.maker(node.input[0]) if node.op_type == "Cast" else node


def norms_of(
    model: onnx.ModelProto, by: Mapping[str, Sequence[int]], constants: Constants
) -> tuple[dict[int, Norm], list[tuple[str, str, str]]]:
    """Node number -> normalisation, and name, operator and reason of those whose parameters cannot be repaired."""
    graph = _Graph(model.graph.node, {name: at for at, node in enumerate(model.graph.node) for name in node.output if name}, by)
    norms: dict[int, Norm] = {}
    left: list[tuple[str, str, str]] = []
    for number, node in enumerate(graph.nodes):
        found = _operator(node, number, constants) or _chain(node, number, graph, constants)
        if isinstance(found, Norm):
            found = _foreign_values(found, graph, constants) or found
        if isinstance(found, Norm):
            norms[found.node] = found
            shaped = graph.maker(found.input)
            if found.op == "Mul" and shaped is not None and shaped.op_type == "Reshape":
                norms.pop(graph.makers[shaped.input[0]], None)  # the InstanceNormalization, whose own scale is that of the groups
        elif found is not None:
            left.append((label(node), node.op_type, found))
    for scope in constants.scopes[1:]:
        left += [(label(node), node.op_type, f"it is inside the {scope.where}") for node in scope.nodes if node.op_type in NORMS]
    return norms, left


def _operator(node: onnx.NodeProto, number: int, constants: Constants) -> Norm | str | None:
    """The normalisation that a node is, the reason why its parameters cannot be repaired, or None for another operator."""
    table = NORMS if node.domain in CORE else MICROSOFT if node.domain == "com.microsoft" else {}
    if node.op_type not in table:
        return None
    scale, bias, axis = table[node.op_type]
    names = list(node.input)
    needed = names[1:5] if node.op_type == "BatchNormalization" else [names[at] for at in (scale, bias) if 0 <= at < len(names)]
    for name in needed:
        if name and (constants.resolve(name) is None or constants.data_type(name) not in FLOATS):
            return "its scale and bias are not constants"
    shapes = {constants.shape(name) for name in needed if name}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        return WIDE
    (channels,) = shapes.pop()
    if node.op_type == "GroupNormalization" and opset_of(constants.model) < 21:
        return "its scale and bias are one number per group (before opset 21)"
    attributes = {entry.name: entry for entry in node.attribute}
    if node.op_type == "BatchNormalization":
        training = "training_mode" in attributes and attributes["training_mode"].i
        if training or len([name for name in node.output if name]) > 1:
            return "it is in training mode"
        if "spatial" in attributes and attributes["spatial"].i != 1:
            return "it normalises every position on its own (spatial=0)"
    epsilon = float(attributes["epsilon"].f) if "epsilon" in attributes else 1e-5
    return Norm(
        label(node),
        node.op_type,
        number,
        names[0],
        node.output[0],
        axis,
        channels,
        scale,
        bias,
        epsilon,
        number,
        number if bias >= 0 else -1,
    )


def _chain(node: onnx.NodeProto, number: int, graph: _Graph, constants: Constants) -> Norm | str | None:
    """The normalisation whose scale a Mul holds, the reason why it cannot be repaired, or None for another node."""
    if node.op_type != "Mul" or node.domain not in CORE or len(node.input) != 2:
        return None
    side = next((at for at in (0, 1) if constants.resolve(node.input[at]) is not None), None)
    if side is None or not _normalised(node.input[1 - side], graph):
        return None
    channels, axis = _channels(node.input[side], constants)
    if channels == 1:
        return None
    if not channels:
        return WIDE
    bias = _bias(node, (channels, axis), graph, constants)
    at, place = bias or (number, -1)
    source, made = node.input[1 - side], graph.nodes[at].output[0]
    # Behind one axis or more that follow the channels they stand on axis 1, as in images; else they are the last.
    return Norm(label(node), "Mul", at, source, made, -1 if axis == -1 else 1, channels, side, place, 0.0, number, at if bias else -1)


def _bias(node: onnx.NodeProto, wanted: tuple[int, int], graph: _Graph, constants: Constants) -> tuple[int, int] | None:
    """Number and input position of the Add that alone reads a Mul and adds one constant per channel."""
    numbers = graph.by.get(node.output[0], ())
    if len(numbers) != 1 or numbers[0] < 0 or graph.nodes[numbers[0]].op_type != "Add" or graph.nodes[numbers[0]].domain not in CORE:
        return None
    add = graph.nodes[numbers[0]]
    place = 1 if add.input[0] == node.output[0] else 0
    return (numbers[0], place) if constants.resolve(add.input[place]) and _channels(add.input[place], constants) == wanted else None


def _channels(name: str, constants: Constants) -> tuple[int, int]:
    """How many channels a constant has a number for, and their axis from the end; 0 channels when it varies on several axes."""
    shape = constants.shape(name)
    wide = [axis - len(shape) for axis, dim in enumerate(shape) if dim != 1]
    if constants.data_type(name) not in FLOATS or len(wide) > 1:
        return 0, 0
    return (shape[wide[0]], wide[0]) if wide else (1, -1)


def _normalised(name: str, graph: _Graph) -> bool:
    """True for a tensor that was divided by a root of a mean, or that an InstanceNormalization gives in another shape."""
    node = graph.maker(name)
    if node is None:
        return False
    if node.op_type == "Reshape":
        return _is(graph.maker(node.input[0]), "InstanceNormalization")
    if node.op_type == "Div":
        return _root_of_mean(graph.maker(node.input[1]), graph)
    if node.op_type == "Mul":
        makers = [graph.maker(source) for source in node.input]
        inverse = [maker for maker in makers if maker is not None and maker.op_type in ("Reciprocal", "Div", "Pow")]
        return any(_root_of_mean(maker if maker.op_type == "Pow" else graph.maker(maker.input[-1]), graph) for maker in inverse)
    return False


def _root_of_mean(node: onnx.NodeProto | None, graph: _Graph) -> bool:
    """True for a Sqrt, or a Pow, that has a ReduceMean a few nodes above it."""
    if not _is(node, "Sqrt", "Pow"):
        return False
    todo = [node]
    for _ in range(REACH):
        if not todo:
            return False
        here = todo.pop(0)
        if _is(here, "ReduceMean"):
            return True
        todo += [graph.maker(name) for name in here.input] if here is not None else []
    return False


def _is(node: onnx.NodeProto | None, *ops: str) -> bool:
    return node is not None and node.op_type in ops


def _foreign_values(norm: Norm, graph: _Graph, constants: Constants) -> str | None:
    """Why a normalisation of a local function takes no repair: it needs more than values that its nodes alone read."""
    where = called_from(graph.nodes[norm.scale_node])
    if not where:
        return None
    held = [(norm.scale_node, norm.scale), (norm.bias_node, norm.bias)]
    names = [graph.nodes[at].input[place] if at >= 0 and place < len(graph.nodes[at].input) else "" for at, place in held]
    if all(name and constants.private(name) for name in names):
        return None
    return f"it has no scale and bias of its own, inside the {where}"
