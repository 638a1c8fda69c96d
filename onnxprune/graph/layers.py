"""What can be pruned in a model and what can be repaired: layers, normalisations, and what was skipped and why.

1. A layer is one constant weight of Conv, ConvTranspose, Gemm or MatMul. A weight that several nodes read is one layer with
   several uses, and is masked once.
2. A use ends where its statistics are taken: at the node's output, or behind the Add that carries its bias.
3. A BatchNormalization that alone reads that output belongs to the use. Any other normalisation stands for itself.

onnx-graphsurgeon reads the graph; nothing is written here.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import onnx
import onnx_graphsurgeon as gs
from onnx_graphsurgeon.logger import G_LOGGER

from onnxprune.errors import ModelError
from onnxprune.graph.norms import Norm, norm_of
from onnxprune.graph.tensors import FLOATS, Constants, bodies, refuse_disorder
from onnxprune.graph.weights import Weight, foreign_weights, other_readers, other_weights, weight_of

PRUNABLE = ("Conv", "ConvTranspose", "Gemm", "MatMul")


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


@dataclass(frozen=True)
class Layer:
    """A prunable weight: ``weight`` names the tensor, ``shape`` is as stored, ``uses`` are the nodes that read it."""

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    uses: tuple[Use, ...]

    @property
    def size(self) -> int:
        """How many weights the layer has."""
        size = 1
        for dim in self.shape:
            size *= dim
        return size


@dataclass(frozen=True)
class Skipped:
    """A node with weights that is left as it is."""

    name: str
    op: str
    reason: str


@dataclass(frozen=True)
class Found:
    """Everything of interest in a model, in execution order. ``norms`` are those that belong to no layer."""

    layers: tuple[Layer, ...]
    norms: tuple[Norm, ...]
    skipped: tuple[Skipped, ...]


def find(model: onnx.ModelProto) -> Found:
    """The layers, free-standing normalisations and skipped nodes of a model; the model is not changed.

    Raises:
        ModelError: onnx-graphsurgeon cannot read the graph, or its nodes are not in the order in which they run.
    """
    refuse_disorder(model)
    constants = Constants(model)
    try:
        with G_LOGGER.suppress(G_LOGGER.CRITICAL):  # it prints warnings to stdout
            graph = gs.import_onnx(model)
    except Exception as error:
        raise ModelError(f"the graph cannot be read: {' '.join(str(error).split())[:200]}") from error
    outputs = {tensor.name for tensor in graph.outputs}
    index = {id(node): number for number, node in enumerate(graph.nodes)}
    uses: dict[str, list[Use]] = {}
    first: dict[str, gs.Node] = {}
    skipped: list[Skipped] = []
    norms: dict[int, Norm] = {}
    for number, node in enumerate(graph.nodes):
        if node.domain not in (None, "", "ai.onnx"):
            skipped.extend(Skipped(_label(node), node.op, reason) for reason in foreign_weights(node, constants))
            continue
        norm = norm_of(node, number, constants)
        if isinstance(norm, Norm):
            norms[number] = norm
        elif norm is not None:
            skipped.append(Skipped(_label(node), node.op, norm))
        if other := other_weights(node, constants):
            skipped.append(Skipped(_label(node), node.op, other))
        if node.op not in PRUNABLE:
            continue
        found = weight_of(node, constants)
        if found.reason:
            skipped.append(Skipped(_label(node), node.op, found.reason))
            continue
        holder = constants.resolve(found.weight)
        assert holder is not None
        first.setdefault(holder, node)
        uses.setdefault(holder, []).append(_use(node, number, found, index, outputs, constants))
    for holder, reader in other_readers(constants, {key: {use.node for use in entries} for key, entries in uses.items()}).items():
        tied = uses.pop(holder)
        skipped.extend(Skipped(_label(graph.nodes[use.node]), use.op, f"its weight is also read by {reader}") for use in tied)
    skipped.extend(_hidden(model))
    owned: set[int] = set()
    layers = []
    names: set[str] = set()
    for holder, entries in uses.items():
        closed = tuple(_with_norm(use, graph.nodes, index, outputs, norms) for use in entries)
        owned.update(use.norm.node for use in closed if use.norm is not None)
        name = _label(first[holder])
        if name in names:
            name = f"{name}:{first[holder].outputs[0].name}"
        names.add(name)
        layers.append(Layer(name, first[holder].op, holder, constants.shape(holder), closed))
    free = tuple(norm for number, norm in norms.items() if number not in owned)
    return Found(tuple(layers), free, tuple(skipped))


def _use(node: gs.Node, number: int, found: Weight, index: dict[int, int], outputs: set[str], constants: Constants) -> Use:
    """The use of a weight by a node, with its bias; its BatchNormalization is looked for later."""
    shape = constants.shape(found.weight)
    group = int(node.attrs.get("group", 1))
    channels = shape[found.axis] * (group if node.op == "ConvTranspose" else 1)
    output = node.outputs[0]
    bias: Bias | None = None
    bias_index = None if node.op == "MatMul" else 2
    if node.op == "Gemm":
        scale = float(node.attrs.get("beta", 1.0))
        given = len(node.inputs) > 2 and bool(node.inputs[2].name)
        per_channel = given and _spread(node.inputs[2].name, channels, -1, constants)
        if given and (not per_channel or scale == 0.0):
            bias_index = None
        elif given:
            bias = Bias(number, 2, scale)
        elif scale == 0.0:
            bias_index = None
    elif node.op in ("Conv", "ConvTranspose") and len(node.inputs) > 2 and node.inputs[2].name:
        if constants.resolve(node.inputs[2].name) is None:
            bias_index = None
        else:
            bias = Bias(number, 2)
    if bias is None:
        following = _only_reader(output, outputs)
        if following is not None and following.op == "Add" and id(following) in index:
            side = 1 if following.inputs[0] is output else 0
            if _spread(following.inputs[side].name, channels, found.output_axis, constants, rank=len(shape)):
                bias = Bias(index[id(following)], side)
                output = following.outputs[0]
    return Use(number, node.op, output.name, found.output_axis, channels, found.axis, group, bias, bias_index)


def _spread(name: str, channels: int, axis: int, constants: Constants, *, rank: int = 0) -> bool:
    """True when a constant adds one number per channel: all its dims are 1 but the channel's.

    ``rank``, the rank of the weight, is given for a bias that stands in an Add of its own: the channel's dim must be there in
    full. A convolution's output has that rank too.
    """
    if constants.resolve(name) is None or constants.data_type(name) not in FLOATS:
        return False
    shape = constants.shape(name)
    if axis == 1:
        return len(shape) <= rank and (1,) * (rank - len(shape)) + shape == (1, channels, *[1] * (rank - 2))
    if len(shape) < -axis:
        return not rank and all(dim == 1 for dim in shape)
    rest = [dim for number, dim in enumerate(shape) if number != len(shape) + axis]
    return all(dim == 1 for dim in rest) and shape[axis] in ((channels,) if rank else (1, channels))


def _with_norm(use: Use, nodes: list[gs.Node], index: dict[int, int], outputs: set[str], norms: dict[int, Norm]) -> Use:
    """The use with the BatchNormalization that alone reads its output, if there is one of the same width."""
    carrier = nodes[use.bias.node if use.bias is not None else use.node]
    following = _only_reader(carrier.outputs[0], outputs)
    if following is None or use.axis != 1:
        return use
    norm = norms.get(index.get(id(following), -1))
    if norm is None or norm.op != "BatchNormalization" or norm.channels != use.channels:
        return use
    return replace(use, norm=norm)


def _only_reader(tensor: gs.Variable, outputs: set[str]) -> gs.Node | None:
    """The one node that reads a tensor, or None when there are none, several, or the tensor leaves the graph."""
    if tensor.name in outputs or len(tensor.outputs) != 1:
        return None
    return tensor.outputs[0]


def _label(node: gs.Node) -> str:
    return str(node.name or next(tensor.name for tensor in node.outputs if tensor.name))


def _hidden(model: onnx.ModelProto) -> Iterator[Skipped]:
    """The prunable nodes inside the bodies of If, Loop and Scan and inside local functions."""

    def walk(nodes: list[onnx.NodeProto], where: str, depth: int) -> Iterator[Skipped]:
        for node in nodes:
            if depth and node.op_type in PRUNABLE:
                yield Skipped(node.name or node.output[0], node.op_type, f"it is inside {where}")
            for body in bodies(node):
                yield from walk(list(body.node), f"the body of {node.op_type} {node.name or node.output[0]!r}", depth + 1)

    yield from walk(list(model.graph.node), "", 0)
    for function in model.functions:
        yield from walk(list(function.node), f"the local function {function.name!r}", 1)
