"""What becomes of a layer's output: the Add that joins it with another branch, and the activation behind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxprune.graph.tensors import Constants


@dataclass(frozen=True)
class Join:
    """``output`` is the layer's output, or its sum with the tensor ``other`` where an Add alone reads it.

    ``low`` and ``high`` are where an activation that alone reads ``output`` is flat: 0 and infinity for Relu, the bounds of a Clip; minus
    and plus infinity without one.
    """

    output: str
    other: str | None = None
    low: float = -math.inf
    high: float = math.inf


def join_of(model: onnx.ModelProto, constants: Constants, by: Mapping[str, Sequence[int]], tensor: str, before: int) -> Join:
    """The join of a layer's output ``tensor``; the other branch counts only when a node before number ``before`` makes it."""
    output, other = tensor, None
    node = _only(model, by, tensor)
    if node is not None and node.op_type == "Add":
        candidate = node.input[1] if node.input[0] == tensor else node.input[0]
        made = any(candidate in earlier.output for earlier in model.graph.node[:before])
        if made and constants.resolve(candidate) is None:
            output, other = node.output[0], candidate
            node = _only(model, by, output)
    if node is not None and node.op_type == "Relu":
        return Join(output, other, 0.0)
    if node is not None and node.op_type == "Clip" and node.input[0] == output:
        return Join(output, other, _bound(node, constants, 1, "min", -math.inf), _bound(node, constants, 2, "max", math.inf))
    return Join(output, other)


def _only(model: onnx.ModelProto, by: Mapping[str, Sequence[int]], tensor: str) -> onnx.NodeProto | None:
    """The one node that reads a tensor, if no other does and it is an operator of ONNX itself."""
    numbers = by.get(tensor, ())
    if len(numbers) != 1 or numbers[0] < 0:
        return None
    node = model.graph.node[numbers[0]]
    return node if node.domain in ("", "ai.onnx") else None


def _bound(node: onnx.NodeProto, constants: Constants, index: int, attribute: str, default: float) -> float:
    """A bound of a Clip: an attribute before opset 11, an input from there on; the default when it is not there or not constant."""
    for entry in node.attribute:
        if entry.name == attribute:
            return float(entry.f)
    if index < len(node.input) and node.input[index] and constants.resolve(node.input[index]) is not None:
        return float(constants.read(node.input[index]).reshape(-1)[0])
    return default
