"""Which input of a node is its weight, and why it has none."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxprune.graph.tensors import FLOATS, Constants, bodies, names_read

# Operators that hold weights too. They are named as skipped, so that no weight is passed over in silence.
RECURRENT = "recurrent weights are not pruned"
OTHER_FLOATS = {
    "LSTM": RECURRENT,
    "GRU": RECURRENT,
    "RNN": RECURRENT,
    "Gather": "embedding tables stay dense",
    "Einsum": "Einsum is not pruned",
    "DeformConv": "DeformConv is not pruned",
}
# Operators with integer weights, and the input that holds them.
INTEGERS = {"QLinearConv": 3, "QLinearMatMul": 3, "ConvInteger": 1, "MatMulInteger": 1}


@dataclass(frozen=True)
class Weight:
    """A node's weight: tensor name, its output axis, and the channel axis of the node's output; or the reason why there is none."""

    weight: str = ""
    axis: int = 0
    reason: str = ""
    output_axis: int = 1


def weight_of(node: gs.Node, constants: Constants) -> Weight:
    """The weight input of a prunable node, its output axis and the output's channel axis, or the reason why there is none."""
    sides = [tensor.name for tensor in node.inputs[:2]]
    if len(sides) < 2:
        return Weight(reason="it has no weight input")
    if node.op == "MatMul":
        constant = [is_weight(name, constants) for name in sides]
        if all(constant):
            return Weight(reason="both sides are constants")
        if not any(constant):
            return Weight(reason=_why_not(sides[1], constants) if constants.resolve(sides[1]) else "both sides are computed at run time")
        side = constant.index(True)
        rank = len(constants.shape(sides[side]))
        if rank < 2:
            return Weight(reason="the weight is a vector")
        axis = rank - 1 if side == 1 else rank - 2
        return Weight(sides[side], axis, output_axis=-1 if side == 1 else -2)
    if not is_weight(sides[1], constants):
        if node.op == "Gemm" and is_weight(sides[0], constants):
            return Weight(reason="the constant is on Gemm's left side")
        return Weight(reason=_why_not(sides[1], constants))
    if node.op == "Gemm":
        return Weight(sides[1], 0 if node.attrs.get("transB", 0) else 1)
    return Weight(sides[1], 1 if node.op == "ConvTranspose" else 0)


def is_weight(name: str, constants: Constants) -> bool:
    """True for a constant of a float type."""
    return constants.resolve(name) is not None and constants.data_type(name) in FLOATS


def other_weights(node: gs.Node, constants: Constants) -> str:
    """The reason why a node of another operator is skipped although it holds weights; empty when it holds none."""
    names = [tensor.name for tensor in node.inputs]
    if node.op in OTHER_FLOATS and any(is_weight(name, constants) for name in names):
        return OTHER_FLOATS[node.op]
    at = INTEGERS.get(node.op, len(names))
    return "integer weights are not pruned" if at < len(names) and constants.resolve(names[at]) is not None else ""


def foreign_weights(node: gs.Node, constants: Constants) -> list[str]:
    """The reason why a node of another domain is skipped: one when it reads a float constant of two axes or more, else none."""
    wide = any(is_weight(tensor.name, constants) and len(constants.shape(tensor.name)) > 1 for tensor in node.inputs)
    return [f"operators of the domain {node.domain!r} are not pruned"] if wide else []


def other_readers(constants: Constants, uses: Mapping[str, Set[int]]) -> dict[str, str]:
    """Weight -> what reads its values besides the nodes given for it: an embedding, a body of If, or the graph's outputs.

    Shape and Size do not read values, and Identity only passes them on.
    """
    found: dict[str, str] = {}
    graph = constants.model.graph
    for number, node in enumerate(graph.node):
        if node.op_type in ("Identity", "Shape", "Size"):
            continue
        for name in [*node.input, *(name for body in bodies(node) for name in names_read(body))]:
            holder = constants.resolve(name)
            if holder is not None and number not in uses.get(holder, {number}):
                found.setdefault(holder, f"{node.op_type} {node.name or next(filter(None, node.output), '')!r}")
    for value in graph.output:
        holder = constants.resolve(value.name)
        if holder is not None and holder in uses:
            found[holder] = f"the graph's output {value.name!r}"
    return found


def _why_not(name: str, constants: Constants) -> str:
    """The reason why an input is no prunable weight."""
    if constants.resolve(name) is None:
        return "the weight is computed at run time"
    return f"the weight is of type {onnx.TensorProto.DataType.Name(constants.data_type(name))}"
