"""Normalisation nodes: what they normalise, and which of their inputs hold scale, bias, mean and variance."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_graphsurgeon as gs

from onnxprune.graph.tensors import FLOATS, Constants, opset_of

# Operator -> (input of the scale, input of the bias, axis of the channels in the output).
NORMS = {
    "BatchNormalization": (1, 2, 1),
    "InstanceNormalization": (1, 2, 1),
    "GroupNormalization": (1, 2, 1),
    "LayerNormalization": (1, 2, -1),
}


@dataclass(frozen=True)
class Norm:
    """A normalisation whose scale and bias are constants, one per channel.

    ``input`` and ``output`` are tensor names; ``scale`` and ``bias`` are input positions of the node; ``epsilon`` is a
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


def norm_of(node: gs.Node, number: int, constants: Constants) -> Norm | str | None:
    """The normalisation that a node is, the reason why its parameters cannot be repaired, or None for another operator."""
    if node.op not in NORMS:
        return None
    scale, bias, axis = NORMS[node.op]
    names = [tensor.name for tensor in node.inputs]
    needed = names[1:5] if node.op == "BatchNormalization" else names[1:3]
    for name in needed:
        if name and (constants.resolve(name) is None or constants.data_type(name) not in FLOATS):
            return "its scale and bias are not constants"
    shapes = {constants.shape(name) for name in needed if name}
    if len(shapes) != 1 or len(next(iter(shapes))) != 1:
        return "its scale and bias are not one number per channel"
    (channels,) = shapes.pop()
    if node.op == "GroupNormalization" and opset_of(constants.model) < 21:
        return "its scale and bias are one number per group (before opset 21)"
    if node.op == "BatchNormalization":
        if node.attrs.get("training_mode", 0) or len([tensor for tensor in node.outputs if tensor.name]) > 1:
            return "it is in training mode"
        if node.attrs.get("spatial", 1) != 1:
            return "it normalises every position on its own (spatial=0)"
    return Norm(
        name=str(node.name or node.outputs[0].name),
        op=node.op,
        node=number,
        input=names[0],
        output=node.outputs[0].name,
        axis=axis,
        channels=channels,
        scale=scale,
        bias=bias,
        epsilon=float(node.attrs.get("epsilon", 1e-5)),
    )
