"""Which input of a node is its weight, and why it has none."""

from __future__ import annotations

from dataclasses import dataclass

import onnx
import onnx_graphsurgeon as gs

from onnxprune.graph.tensors import FLOATS, Constants


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
            return Weight(
                reason=_why_not(sides[1], constants) if constants.resolve(sides[1]) else "both sides are computed at run time"
            )
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


def _why_not(name: str, constants: Constants) -> str:
    """The reason why an input is no prunable weight."""
    if constants.resolve(name) is None:
        return "the weight is computed at run time"
    return f"the weight is of type {onnx.TensorProto.DataType.Name(constants.data_type(name))}"
