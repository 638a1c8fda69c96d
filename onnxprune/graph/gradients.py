"""A model that gives how much its outputs depend on what its layers give: the second moments of random gradients.

With v random, independent and of variance 1, g = J'v for the Jacobian J of the outputs has E[g g'] = J'J: what an error of a layer's
channels, and of several of them together, is worth in the outputs. For each layer the sum of g g' over all positions comes out, (C, C).

The graph goes backwards from the outputs, each rescaled to a mean square of 1, by the rules of adjoints.py. Of what an operator without
one reads, and of all before it, nothing is known.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxprune.graph.adjoints import RULES
from onnxprune.graph.building import Builder
from onnxprune.graph.planning import reads_of
from onnxprune.graph.points import Point
from onnxprune.graph.tensors import Constants
from onnxprune.graph.walk import CORE, opset_of

OPSET = 16
"""From here on ScatterElements adds."""
COUNTING = ("Shape", "Size", "ArgMax", "ArgMin", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonZero", "IsNaN", "IsInf")
"""Operators whose outputs do not change with small changes of what they read."""


def shaped(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model whose outputs are the shapes of all its tensors, by the name TENSOR::shape."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    del copy.graph.output[:]
    names = [value.name for value in model.graph.input] + [name for node in model.graph.node for name in node.output if name]
    for name in names:
        copy.graph.node.append(helper.make_node("Shape", [name], [f"{name}::shape"]))
        copy.graph.output.append(helper.make_tensor_value_info(f"{name}::shape", TensorProto.INT64, None))
    return copy


def backwards(
    model: onnx.ModelProto, points: Sequence[Point], shapes: Mapping[str, tuple[int, ...]], seed: int
) -> tuple[onnx.ModelProto, list[Point]] | None:
    """A model whose outputs are the moments of the gradients at the points, by the names of their dense tensors and ::gradient.

    Returns it with the points that it knows of, in their order; None where it knows of none. ``shapes`` are those of one batch.
    """
    if opset_of(model) < OPSET:
        return None
    nodes = model.graph.node
    build = Builder(Constants(model), shapes)
    asked = {point.dense_tensor for point in points}
    behind = set(asked)
    for node in nodes:
        if node.op_type not in COUNTING and not behind.isdisjoint(reads_of(node)):
            behind.update(node.output)
    gradients: dict[str, list[str]] = {}
    for number, value in enumerate(model.graph.output):
        if value.name in behind and value.type.tensor_type.elem_type == TensorProto.FLOAT:
            gradients.setdefault(value.name, []).append(_start(build, value.name, 1 + number + 101 * (seed % 100_003)))
    lost: set[str] = set()  # of these nothing is known
    known: dict[str, str] = {}
    for node in reversed(nodes):
        made = [name for name in node.output if name in behind]
        unknown = not lost.isdisjoint(made)
        arrived = {name: _total(build, gradients[name]) for name in made if name in gradients and name not in lost}
        known.update(arrived)
        read = {name for name in reads_of(node) if name in behind}
        if not read or not (unknown or arrived):
            continue
        rule = RULES.get(node.op_type) if node.domain in CORE else None
        found = rule(build, node, arrived[node.output[0]]) if rule and not unknown and list(arrived) == [node.output[0]] else None
        if found is None or not read <= found.keys():
            lost |= read
            continue
        for name in read:
            gradients.setdefault(name, []).append(found[name])
    told = [point for point in points if point.dense_tensor in known and point.axis in (1, -1)]
    if not told:
        return None
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    names = {point.dense_tensor: _moments(build, point, known[point.dense_tensor]) for point in told}
    copy.graph.node.extend(build.nodes)
    copy.graph.initializer.extend(build.stored)
    del copy.graph.output[:]
    for tensor, name in names.items():
        copy.graph.node.append(helper.make_node("Identity", [name], [f"{tensor}::gradient"]))
        copy.graph.output.append(helper.make_tensor_value_info(f"{tensor}::gradient", TensorProto.FLOAT, None))
    return copy, told


def _start(build: Builder, name: str, seed: int) -> str:
    """A random gradient of an output, over the root of its mean square; seeds from 1 on, for the runtime takes 0 for 1."""
    square = build.make("Mul", name, name)
    size = build.make("Sqrt", build.make("Add", build.make("ReduceMean", square, keepdims=0), build.hold(np.finfo(np.float32).tiny)))
    return build.make("Div", build.make("RandomNormalLike", name, seed=float(seed)), size)


def _total(build: Builder, gradients: Sequence[str]) -> str:
    return gradients[0] if len(gradients) == 1 else build.make("Sum", *gradients)


def _moments(build: Builder, point: Point, gradient: str) -> str:
    rank = len(build.shapes[point.dense_tensor])
    if point.axis == -1 or rank == 2:
        rows = build.make("Reshape", gradient, build.hold([-1, point.channels], np.int64))
        return build.make("Gemm", rows, rows, transA=1)
    turned = build.make("Transpose", gradient, perm=[1, 0, *range(2, rank)])
    columns = build.make("Reshape", turned, build.hold([point.channels, -1], np.int64))
    return build.make("Gemm", columns, columns, transB=1)
