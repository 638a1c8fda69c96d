"""Nodes that are run again in each stage that needs them, as that costs less than to keep what they give.

To keep a tensor between two stages it is brought into the plain layout, written to pages that may be new, read, and brought back: as much
time as 200 multiplications and additions an element and more. A convolution of few inputs, as those that widen a tensor and depthwise ones,
is cheaper, and what it reads is smaller. Inside one stage it is also fused with its normalisation and activation.

Both numbers here are counted for one element of a tensor: ``work``, the multiplications to make it from tensors that are kept, and
``held``, how many elements of those there are. Whatever is behind them is not cheap.
"""

from __future__ import annotations

from collections.abc import Set

import numpy as np
import onnx

from onnxprune.graph.walk import CORE

WORK = 200.0
"""Multiplications an element up to which a tensor is made again,"""
HELD = 0.7
"""if that needs no more elements than this to be kept. (Depthwise ones of stride 2 behind a widening by 6 need 0.67.)"""
EACH = {
    *("Relu", "LeakyRelu", "PRelu", "Elu", "Selu", "Celu", "Gelu", "Sigmoid", "HardSigmoid", "HardSwish", "Swish", "Mish", "Tanh"),
    *("Clip", "Neg", "Abs", "Identity", "Add", "Sub", "Mul", "Div", "BatchNormalization", "Pad"),
}
"""Operators that give as many elements as they read, or nearly so, each by itself."""


def cheap(model: onnx.ModelProto, fixed: Set[str]) -> frozenset[int]:
    """The numbers of the nodes of the main graph that are cheap.

    ``fixed`` are the constant tensors, also those that are computed. The parameters of cheap nodes are constants, so that a repair changes
    them where they are.
    """
    dims = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: dict[str, tuple[float, float]] = {}  # work and held by tensor; what is not there is kept
    again = set()
    for number, node in enumerate(model.graph.node):
        given = [found.get(name, (0.0, 1.0)) for name in node.input if name and name not in fixed]
        made: tuple[float, float] | None = None
        if not given or node.domain not in CORE:
            continue
        if node.op_type == "Conv" and {*filter(None, node.input[1:])} <= fixed:
            made = _conv(node, dims.get(node.input[1]), *given)
        elif node.op_type in EACH and len(node.output) == 1:
            made = sum(work for work, _ in given), sum(held for _, held in given)
        if made is not None and made[0] <= WORK and made[1] <= HELD:
            again.add(number)
            found[node.output[0]] = made
    return frozenset(again)


def _conv(node: onnx.NodeProto, dims: tuple[int, ...] | None, given: tuple[float, float]) -> tuple[float, float] | None:
    """Work and held of what a convolution gives, from those of its input; None where its weight's shape is not known."""
    if dims is None or len(dims) < 3:
        return None
    told = {entry.name: entry for entry in node.attribute}
    group = told["group"].i if "group" in told else 1
    steps = float(np.prod(told["strides"].ints)) if "strides" in told else 1.0
    inputs = dims[1] * group / dims[0] * steps  # elements that it reads, for one that it gives
    work, held = given
    return float(np.prod(dims[1:])) + inputs * work, inputs * held
