"""From the gradient of what a node gives to the gradients of what it reads, as nodes of ONNX, operator by operator.

What follows its first input element by element is taken by differences. What only moves numbers is run on their places, and the
gradients go back there. Convolutions, products, sums, means and pools have adjoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto

from onnxprune.graph.building import Builder, attributes

STEP = 2.0**-8
"""What an input is moved by, in both directions, to take a difference."""
Grads = dict[str, str]
"""Tensor -> the gradient that comes to it."""


def _each(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    name = node.input[0]
    step = build.hold(STEP)
    up, down = (build.make(node.op_type, build.make(way, name, step), *node.input[1:], **attributes(node)) for way in ("Add", "Sub"))
    slope = build.make("Mul", build.make("Sub", up, down), build.hold(0.5 / STEP))
    return {name: build.make("Mul", gradient, slope)}


def _same(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    return {node.input[0]: gradient}


def _moving(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    name, rest = node.input[0], list(node.input[1:])
    if node.op_type == "Pad":  # the constant, of no use here, would have the type of the input, not of its places
        rest[1:2] = [build.hold(0, np.int64)]
    moved = build.make(node.op_type, build.places(name), *rest, **attributes(node))
    return {name: build.moved_back(gradient, name, moved, 1)}


def _padded(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    """Pads of a constant are cut off, and what was cut off is padded."""
    if attributes(node).get("mode", b"constant") != b"constant":
        return _moving(build, node, gradient)
    axes = ["", node.input[3]] if len(node.input) > 3 and node.input[3] else []
    return {node.input[0]: build.make("Pad", gradient, build.make("Neg", node.input[1]), *axes)}


def _shaping(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    return {node.input[0]: build.make("Reshape", gradient, build.make("Shape", node.input[0]))}


def _transpose(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    perm = attributes(node).get("perm", range(len(build.shapes[node.input[0]]))[::-1])
    return {node.input[0]: build.make("Transpose", gradient, perm=[int(at) for at in np.argsort(perm)])}


def _concat(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    """Each input gets its part; one that is there twice the sum of both."""
    axis = attributes(node)["axis"]
    found: Grads = {}
    at = build.hold([0], np.int64)
    for name in node.input:
        size = build.make("Gather", build.make("Shape", name), build.hold([axis], np.int64))
        end = build.make("Add", at, size)
        part = build.make("Slice", gradient, at, end, build.hold([axis], np.int64))
        found[name] = build.make("Add", found[name], part) if name in found else part
        at = end
    return found


def _sum(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    found: Grads = {}
    for number, name in enumerate(node.input):
        if not build.varies(name):
            continue
        way = build.make("Neg", gradient) if node.op_type == "Sub" and number else gradient
        part = build.narrowed(way, name, node.output[0])
        found[name] = build.make("Add", found[name], part) if name in found else part
    return found


def _mul(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    one, other = node.input
    found: Grads = {}
    for name, beside in ((one, other), (other, one)):
        if not build.varies(name):
            continue
        part = build.narrowed(build.make("Mul", gradient, beside), name, node.output[0])
        found[name] = build.make("Add", found[name], part) if name in found else part
    return found


def _div(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads | None:
    one, other = node.input
    if build.read(other) is None:
        return None
    return {one: build.narrowed(build.make("Div", gradient, other), one, node.output[0])}


def _normalised(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads | None:
    told = attributes(node)
    scale, variance = build.read(node.input[1]), build.read(node.input[4])
    rank = len(build.shape(node.input[0]))
    if scale is None or variance is None or told.get("training_mode", 0) or rank < 2:
        return None
    gain = scale.astype(np.float64) / np.sqrt(variance.astype(np.float64) + told.get("epsilon", 1e-5))
    return {node.input[0]: build.make("Mul", gradient, build.hold(gain.reshape(-1, *[1] * (rank - 2))))}


def _gemm(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads | None:
    told = attributes(node)
    if told.get("transA", 0):
        return None
    return {node.input[0]: build.make("Gemm", gradient, node.input[1], transB=1 - told.get("transB", 0), alpha=told.get("alpha", 1.0))}


def _matmul(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads | None:
    one, other = node.input
    sides = [len(build.shape(name)) for name in (one, other)]
    if min(sides) < 2:
        return None

    def turned(name: str, rank: int) -> str:
        return build.make("Transpose", name, perm=[*range(rank - 2), rank - 1, rank - 2])

    left = build.make("MatMul", gradient, turned(other, sides[1]))
    right = build.make("MatMul", turned(one, sides[0]), gradient)
    if sides[1] == 2 < sides[0]:  # a weight for all: nobody asks for its gradient
        return {one: left}
    return {one: left, other: right} if sides[0] == sides[1] else None


def _mean(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    name, told = node.input[0], attributes(node)
    told.pop("keepdims", None)
    kept = (
        build.make(node.op_type, *node.input, **told)
        if "Global" in node.op_type
        else build.make(node.op_type, *node.input, keepdims=1, **told)
    )
    wide = build.make("Expand", build.make("Reshape", gradient, build.make("Shape", kept)), build.make("Shape", name))
    if node.op_type == "ReduceSum":
        return {name: wide}
    count = build.make("Div", build.make("Size", name), build.make("Size", kept))
    return {name: build.make("Div", wide, build.make("Cast", count, to=TensorProto.FLOAT))}


def _pads(build: Builder, node: onnx.NodeProto, kernel: Sequence[int], told: Mapping[str, Any]) -> tuple[list[int], list[int]] | None:
    """The pads of a convolution or pool, and how many elements at the end of each axis no window meets; None where that is not known."""
    shapes = [build.shapes.get(name) for name in (node.input[0], node.output[0])]
    if shapes[0] is None or shapes[1] is None:
        return None
    count = len(kernel)
    strides, dilations = told.get("strides", [1] * count), told.get("dilations", [1] * count)
    wide = [(o - 1) * s + d * (k - 1) + 1 for o, s, d, k in zip(shapes[1][2:], strides, dilations, kernel, strict=True)]
    auto = told.get("auto_pad", b"NOTSET").decode()
    pads = list(told.get("pads", [0] * 2 * count))
    if auto.startswith("SAME"):
        total = [max(0, w - x) for w, x in zip(wide, shapes[0][2:], strict=True)]
        first = [t // 2 if auto.endswith("UPPER") else t - t // 2 for t in total]
        pads = [*first, *(t - f for t, f in zip(total, first, strict=True))]
    left = [x - (w - a - b) for x, w, a, b in zip(shapes[0][2:], wide, pads[:count], pads[count:], strict=True)]
    return (pads, left) if min(left, default=0) >= 0 else None


def _convolution(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads | None:
    told = attributes(node)
    found = _pads(build, node, build.shape(node.input[1])[2:], told)
    if found is None:
        return None
    how = {name: told[name] for name in ("strides", "dilations", "group") if name in told}
    return {node.input[0]: build.make("ConvTranspose", gradient, node.input[1], pads=found[0], output_padding=found[1], **how)}


def _average(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads | None:
    told = attributes(node)
    kernel = told["kernel_shape"]
    found = _pads(build, node, kernel, told)
    if found is None or (any(found[0]) and not told.get("count_include_pad", 0)) or told.get("ceil_mode", 0):
        return None
    channels = build.shapes[node.input[0]][1]
    even = build.hold(np.full((channels, 1, *kernel), 1 / np.prod(kernel)))
    how = {name: told[name] for name in ("strides", "dilations") if name in told}
    return {node.input[0]: build.make("ConvTranspose", gradient, even, pads=found[0], output_padding=found[1], group=channels, **how)}


def _largest(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads | None:
    if len(node.output) > 1 or attributes(node).get("storage_order", 0):
        return None
    taken = build.make("MaxPool", node.input[0], outputs=2, **attributes(node))
    return {node.input[0]: build.moved_back(gradient, node.input[0], taken, 0)}


def _shares(build: Builder, node: onnx.NodeProto, gradient: str) -> Grads:
    axis = attributes(node).get("axis", -1)
    made = build.make("Mul", gradient, node.output[0])
    mean = build.make("ReduceSum", made, build.hold([axis], np.int64), keepdims=1)
    return {node.input[0]: build.make("Sub", made, build.make("Mul", node.output[0], mean))}


Rule = Callable[[Builder, onnx.NodeProto, str], Grads | None]
EACH = (
    *("Relu", "LeakyRelu", "PRelu", "ThresholdedRelu", "Elu", "Selu", "Celu", "Clip", "Sigmoid", "HardSigmoid", "HardSwish", "Tanh"),
    *("Softplus", "Softsign", "Erf", "Gelu", "Mish", "Swish", "Exp", "Abs", "Pow", "Sqrt", "Reciprocal"),
)
RULES: Mapping[str, Rule] = {
    **dict.fromkeys(EACH, _each),
    **dict.fromkeys(("Identity", "Dropout"), _same),
    **dict.fromkeys(("Slice", "Gather", "Expand", "Tile"), _moving),
    **dict.fromkeys(("Reshape", "Flatten", "Squeeze", "Unsqueeze"), _shaping),
    **dict.fromkeys(("Add", "Sub", "Sum"), _sum),
    **dict.fromkeys(("GlobalAveragePool", "ReduceMean", "ReduceSum"), _mean),
    "Pad": _padded,
    "Transpose": _transpose,
    "Concat": _concat,
    "Mul": _mul,
    "Div": _div,
    "BatchNormalization": _normalised,
    "Gemm": _gemm,
    "MatMul": _matmul,
    "Conv": _convolution,
    "AveragePool": _average,
    "MaxPool": _largest,
    "Softmax": _shares,
}
"""Operator of opset 16 and later -> its rule; None from a rule where the node is beyond it."""
