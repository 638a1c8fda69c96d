"""What can be pruned in a model and what can be repaired: layers, normalisations, and what was skipped and why.

1. A layer is one constant weight of an operator that weights.py knows, in the main graph or in a body. A weight that several nodes
   read is one layer with several uses, and is masked once.
2. A use ends where its statistics are taken: at the node's output, or behind the Add that carries its bias.
3. A BatchNormalization that alone reads that output belongs to the use. Any other normalisation stands for itself.
4. What stands inside a body is not repaired.

Nothing is written here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import onnx
import onnx.shape_inference

from onnxprune.graph.norms import Norm, norms_of
from onnxprune.graph.tensors import Constants
from onnxprune.graph.uses import Bias, Neighbours, Use, bound, use_of, with_norm
from onnxprune.graph.walk import label, readers, refuse_disorder
from onnxprune.graph.weights import PRUNABLE, Weight, other_readers, weights_of

__all__ = ["PRUNABLE", "Bias", "Found", "Layer", "Skipped", "Use", "find"]


@dataclass(frozen=True)
class Layer:
    """A prunable weight: ``weight`` names the stored tensor, ``seen`` the tensor that its first node reads.

    ``shape`` is that of ``seen``; ``uses`` are the nodes that read it, in any orientation.
    """

    name: str
    op: str
    weight: str
    shape: tuple[int, ...]
    uses: tuple[Use, ...]
    seen: str

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


@dataclass(frozen=True, eq=False)
class _Met:
    """A weight where a node reads it."""

    place: int
    number: int
    node: onnx.NodeProto
    weight: Weight


def find(model: onnx.ModelProto, include: Sequence[str] = ()) -> Found:
    """The layers, free-standing normalisations and skipped nodes of a model; the model is not changed.

    Embeddings are layers where one of the regular expressions ``include`` finds their names. Calls of local functions must have been
    written out (inlining.inlined); what stands in those that could not be is skipped.

    Raises:
        ModelError: the nodes are not in the order in which they run.
    """
    refuse_disorder(model)
    constants = Constants(model)
    around = Neighbours(model.graph.node, readers(model))
    skipped: list[Skipped] = []
    met: dict[str, list[_Met]] = {}
    for place, scope in enumerate(constants.scopes):
        for number, node in enumerate(scope.nodes):
            for found in weights_of(node, scope, constants, include):
                if found.reason:
                    skipped.append(Skipped(label(node), node.op_type, found.reason))
                else:
                    met.setdefault(constants.resolve(found.weight) or "", []).append(_Met(place, number, node, found))
    norms, left = norms_of(model, around.by, constants)
    skipped.extend(Skipped(*entry) for entry in left)
    places = {holder: {(entry.place, entry.number) for entry in entries} for holder, entries in met.items()}
    for holder, reader in other_readers(constants, places).items():
        skipped.extend(Skipped(label(entry.node), entry.node.op_type, f"its weight is also read by {reader}") for entry in met.pop(holder))
    skipped.extend(_hidden(model))
    owned: set[int] = set()
    layers = []
    for holder, entries in met.items():
        uses = []
        for entry in _turned(entries, model):
            use = with_norm(_use(entry, around, constants), around, norms)
            uses.append(bound(use, len(entries) > 1, around, constants))
        owned.update(use.norm.node for use in uses if use.norm is not None)
        first = entries[0]
        name = label(first.node) + (f":{first.weight.part}" if first.weight.part else "")
        layers.append(Layer(name, first.node.op_type, holder, constants.shape(first.weight.weight), tuple(uses), first.weight.weight))
    layers.sort(key=lambda layer: layer.uses[0].outer)
    free = tuple(norm for number, norm in norms.items() if number not in owned)
    return Found(tuple(_distinct(layers)), free, tuple(skipped))


def _turned(entries: Sequence[_Met], model: onnx.ModelProto) -> list[_Met]:
    """What was met; a MatMul of a matrix and a vector, whose output is a vector too, has its channels on the last axis."""
    left = [entry for entry in entries if entry.node.op_type == "MatMul" and entry.weight.output_axis == -2 and not entry.place]
    if not left:
        return list(entries)
    try:
        known = onnx.shape_inference.infer_shapes(model).graph
    except Exception:  # over 2 GiB, or shapes that do not fit: the runtime will say so
        known = model.graph
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in (*known.input, *known.value_info) if _shaped(value)}
    vectors = [entry for entry in left if ranks.get(entry.node.input[1]) == 1]
    return [replace(entry, weight=replace(entry.weight, output_axis=-1)) if entry in vectors else entry for entry in entries]


def _shaped(value: onnx.ValueInfoProto) -> bool:
    return bool(value.type.HasField("tensor_type") and value.type.tensor_type.HasField("shape"))


def _use(entry: _Met, around: Neighbours, constants: Constants) -> Use:
    """The use that a weight has where it was met; one inside a body has no output to repair."""
    if not entry.place:
        return use_of(entry.number, entry.weight, around, constants)
    scope, shape = constants.scopes[entry.place], constants.shape(entry.weight.weight)
    group = next((attribute.i for attribute in entry.node.attribute if attribute.name == "group"), 1)
    return Use(
        entry.number,
        entry.node.op_type,
        "",
        entry.weight.output_axis,
        shape[entry.weight.axis] * (group if entry.node.op_type == "ConvTranspose" else 1),
        entry.weight.axis,
        group,
        unrepaired=f"it is inside the {scope.where}",
        scope=entry.place,
        outer=scope.outer,
        seen=entry.weight.weight,
    )


def _distinct(layers: Sequence[Layer]) -> list[Layer]:
    """The layers under names that tell them apart: one that is taken is followed by its node's output, then by a number."""
    taken: set[str] = set()
    found = []
    for layer in layers:
        name, number = layer.name, 1
        while name in taken:
            name = f"{layer.name}:{layer.uses[0].output or layer.weight}" + (f"_{number}" if number > 1 else "")
            number += 1
        taken.add(name)
        found.append(replace(layer, name=name))
    return found


def _hidden(model: onnx.ModelProto) -> list[Skipped]:
    """The prunable nodes inside local functions whose calls could not be written out."""
    called = {(node.domain, node.op_type) for node in model.graph.node}
    return [
        Skipped(label(node), node.op_type, f"it is inside the local function {function.name!r}")
        for function in model.functions
        if (function.domain, function.name) in called
        for node in function.node
        if node.op_type in PRUNABLE
    ]
