"""Which inputs of a node are its weights, and why it has none."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

import onnx
from onnx import helper

from onnxprune.graph.steps import INTEGERS, scaled_name
from onnxprune.graph.tensors import FLOATS, Constants
from onnxprune.graph.walk import CORE, Scope, label

CONVOLUTIONS = ("Conv", "ConvTranspose", "DeformConv")
RECURRENT = ("LSTM", "GRU", "RNN")
PRUNABLE = (*CONVOLUTIONS, "Gemm", "MatMul", "Einsum", *RECURRENT, *INTEGERS)
EMBEDDING = "embedding tables stay dense unless --include names them"


@dataclass(frozen=True)
class Weight:
    """A node's weight: tensor name, its output axis, and the channel axis of the node's output; or the reason why there is none.

    ``part`` tells several weights of one node apart. ``unrepaired`` is why the node cannot be repaired, empty where it can.
    """

    weight: str = ""
    axis: int = 0
    reason: str = ""
    output_axis: int = 1
    part: str = ""
    unrepaired: str = ""


def weights_of(node: onnx.NodeProto, scope: Scope, constants: Constants, include: Sequence[str] = ()) -> list[Weight]:
    """The weights of a node, or one entry with the reason why it has none; nothing for a node that holds no weights.

    A Gather is an embedding, and has a weight when one of the regular expressions ``include`` finds its name.
    """
    names = [scope.key(name) for name in node.input]
    if node.domain not in CORE:
        return [Weight(reason=reason) for reason in _foreign(node, names, constants)]
    if node.op_type == "Gather" and names and is_weight(names[0], constants) and len(constants.shape(names[0])) > 1:
        named = any(re.search(pattern, label(node)) for pattern in include)
        return [Weight(names[0], 0, unrepaired="it is an embedding") if named else Weight(reason=EMBEDDING)]
    if node.op_type not in PRUNABLE:
        return []
    if node.op_type in RECURRENT:
        return _recurrent(node, names, constants)
    if node.op_type in INTEGERS:
        return _integer(node, scope, names, constants)
    if len(names) < 2:
        return [Weight(reason="it has no weight input")]
    if node.op_type == "Einsum":
        return [_einsum(node, names, constants)]
    return [_matmul(names[:2], constants) if node.op_type == "MatMul" else _weighted(node, names, constants)]


def _weighted(node: onnx.NodeProto, names: list[str], constants: Constants) -> Weight:
    """The weight of a Conv, ConvTranspose, DeformConv or Gemm."""
    attributes = {entry.name: entry.i for entry in node.attribute}
    if not is_weight(names[1], constants):
        if node.op_type == "Gemm" and is_weight(names[0], constants):
            return Weight(names[0], 1 if attributes.get("transA", 0) else 0, output_axis=-2)
        return Weight(reason=_why_not(names[1], constants))
    if node.op_type == "Gemm":
        if is_weight(names[0], constants):
            return Weight(reason="both sides are constants")
        return Weight(names[1], 0 if attributes.get("transB", 0) else 1)
    return Weight(names[1], 1 if node.op_type == "ConvTranspose" else 0)


def _matmul(sides: list[str], constants: Constants) -> Weight:
    constant = [is_weight(name, constants) for name in sides]
    if all(constant):
        return Weight(reason="both sides are constants")
    if not any(constant):
        held = [name for name in sides if constants.resolve(name) is not None or constants.folded_by(name) or constants.sparse(name)]
        return Weight(reason=_why_not(held[-1], constants) if held else "both sides are computed at run time")
    side = constant.index(True)
    rank = len(constants.shape(sides[side]))
    if rank < 2:
        return Weight(reason="the weight is a vector")
    return Weight(sides[side], rank - 1 if side == 1 else rank - 2, output_axis=-1 if side == 1 else -2)


def _recurrent(node: onnx.NodeProto, names: list[str], constants: Constants) -> list[Weight]:
    found = [
        Weight(names[at], 1, part=part, unrepaired="recurrent layers are not repaired")
        for at, part in ((1, "W"), (2, "R"))
        if at < len(names) and is_weight(names[at], constants)
    ]
    missing = [at for at in (1, 2) if at < len(names) and not is_weight(names[at], constants)]
    return [*found, *(Weight(reason=f"{'WR'[at - 1]}: {_why_not(names[at], constants)}") for at in missing)]


def _integer(node: onnx.NodeProto, scope: Scope, names: list[str], constants: Constants) -> list[Weight]:
    """The integer weight of a QLinear or Integer operator, as the floats it stands for."""
    held = [at for at, _, _ in INTEGERS[node.op_type] if at < len(names) and constants.resolve(names[at]) is not None]
    if not held:
        return [Weight(reason="the weight is computed at run time")]
    if len(held) > 1:
        return [Weight(reason="both sides are constants")]
    name = scope.prefix + scaled_name(node, held[0])
    if constants.view(name) is None:
        return [Weight(reason="its zero point is computed at run time")]
    rank = len(constants.shape(name))
    if rank < 2:
        return [Weight(reason="the weight is a vector")]
    axis = 0 if "Conv" in node.op_type else rank - 2 if held[0] == 0 else rank - 1
    what = "its output is quantised" if node.op_type.startswith("QLinear") else "its output is in integers"
    return [Weight(name, axis, unrepaired=what)]


def _einsum(node: onnx.NodeProto, names: list[str], constants: Constants) -> Weight:
    """The only constant of an Einsum; its outputs are one label of it, on the last axis of what the node gives, for a repair."""
    held = [number for number, name in enumerate(names) if is_weight(name, constants)]
    if len(held) != 1:
        return Weight(reason="all sides are constants" if held else "all sides are computed at run time")
    (side,) = held
    equation = next(
        (helper.get_attribute_value(entry).decode(errors="replace") for entry in node.attribute if entry.name == "equation"), ""
    )
    weight, rank = names[side], len(constants.shape(names[side]))
    if rank < 2:
        return Weight(reason="the weight is a vector")
    left, _, made = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    own = terms[side] if side < len(terms) else ""
    others = "".join(term for number, term in enumerate(terms) if number != side)
    outputs = [mark for mark in own if mark in made]
    plain = "->" in equation and "." not in own and len(set(own)) == len(own) == rank
    if plain and len(outputs) == 1 and outputs[0] == made[-1:] and outputs[0] not in others:
        return Weight(weight, own.index(outputs[0]), output_axis=-1)
    return Weight(weight, 0, output_axis=-1, unrepaired=f"Einsum {equation!r} has no one axis of output channels, at the end")


def is_weight(name: str, constants: Constants) -> bool:
    """True for a constant of a float type."""
    return bool(name) and constants.resolve(name) is not None and constants.data_type(name) in FLOATS


def _foreign(node: onnx.NodeProto, names: list[str], constants: Constants) -> list[str]:
    """The reason why a node of another domain is skipped: one when it reads a constant of two axes or more that is no shape, else none."""
    shapes = (onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL, onnx.TensorProto.STRING)
    held = [name for name in names if name and constants.resolve(name) is not None]
    wide = any(len(constants.shape(name)) > 1 and constants.data_type(name) not in shapes for name in held)
    return [f"operators of the domain {node.domain!r} are not pruned"] if wide else []


def other_readers(constants: Constants, uses: Mapping[str, Set[tuple[int, int]]]) -> dict[str, str]:
    """Weight -> what reads its values besides the nodes given for it (scope and number): an embedding, or an output of a graph.

    Shape and Size do not read values, and the steps of a view only pass them on; so does a call that gives it to a body.
    """
    found: dict[str, str] = {}
    for place, scope in enumerate(constants.scopes):
        for number, node in enumerate(scope.nodes):
            if node.op_type in ("Shape", "Size"):
                continue
            for at, name in enumerate(node.input):
                key = scope.key(name)
                holder = constants.resolve(key) if key else None
                if holder is None or (place, number) in uses.get(holder, {(place, number)}):
                    continue
                if at == 0 and constants.passes(scope, node):
                    continue
                inside = f" in the {scope.where}" if scope.where else ""
                found.setdefault(holder, f"{node.op_type} {label(node)!r}{inside}")
        for value in scope.graph.output:
            holder = constants.resolve(scope.key(value.name))
            if holder is not None and holder in uses:
                found[holder] = f"the {'graph' if not scope.where else scope.where}'s output {value.name!r}"
    return found


def _why_not(name: str, constants: Constants) -> str:
    """The reason why an input is no prunable weight."""
    if not name or constants.resolve(name) is None:
        if name and constants.sparse(name):
            return "the weight is a sparse initializer; store it dense to prune it"
        made = name and constants.folded_by(name)
        return f"the weight is made of constants by {made}; fold them first" if made else "the weight is computed at run time"
    return f"the weight is of type {onnx.TensorProto.DataType.Name(constants.data_type(name))}"
