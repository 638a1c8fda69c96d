"""Small networks built by hand, plain ONNX Runtime to look inside them, and a strict comparison of two models."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.report import ChangesReport

CLASSES = 5
EPSILON = 1e-5


def model_of(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, tuple[Any, ...]],
    outputs: dict[str, tuple[Any, ...]],
    initializers: dict[str, NDArray[Any]],
    *,
    opset: int = 17,
    elem_type: int = TensorProto.FLOAT,
    output_type: int | None = None,
) -> onnx.ModelProto:
    """A checked model of the given nodes."""
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(name, elem_type, shape) for name, shape in inputs.items()],
        [helper.make_tensor_value_info(name, output_type or elem_type, shape) for name, shape in outputs.items()],
        [numpy_helper.from_array(value, name) for name, value in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(model)
    return model


def twins(depth: int = 7, width: int = 8, seed: int = 0, *, exact: bool = False) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """One residual network twice: with a BatchNormalization behind every convolution, and with each folded into it.

    With ``exact`` every BatchNormalization's gain is one power of two for the whole layer and epsilon is 0, so that folding moves
    no bit and no rank, and the two have the same masks.
    """
    rng = np.random.default_rng(seed)
    explicit: dict[str, NDArray[Any]] = {}
    folded: dict[str, NDArray[Any]] = {}
    nodes: tuple[list[onnx.NodeProto], list[onnx.NodeProto]] = ([], [])
    epsilon = 0.0 if exact else EPSILON
    tensor, channels, skip = "x", 3, ""
    for number in range(depth):
        weight = rng.normal(0, np.sqrt(2 / (channels * 9)), (width, channels, 3, 3)).astype(np.float32)
        variance = np.full(width, 4.0) if exact else rng.uniform(0.5, 2, width)
        scale = np.full(width, 2.0 ** (1 + number % 2)) if exact else rng.uniform(0.6, 1.6, width)
        mean, bias = rng.normal(0, 0.3, width), rng.normal(0, 0.2, width)
        for name, values in (("w", weight), ("s", scale), ("b", bias), ("m", mean), ("v", variance)):
            explicit[f"{name}{number}"] = values.astype(np.float32)
        gain = scale / np.sqrt(variance + epsilon)
        folded[f"w{number}"] = (weight * gain.reshape(-1, 1, 1, 1)).astype(np.float32)
        folded[f"b{number}"] = (bias - gain * mean).astype(np.float32)
        conv = {"pads": [1, 1, 1, 1], "name": f"conv{number}"}
        nodes[0].append(helper.make_node("Conv", [tensor, f"w{number}"], [f"c{number}"], **conv))
        parameters = [f"{name}{number}" for name in "sbmv"]
        nodes[0].append(helper.make_node("BatchNormalization", [f"c{number}", *parameters], [f"y{number}"], f"bn{number}", epsilon=epsilon))
        nodes[1].append(helper.make_node("Conv", [tensor, f"w{number}", f"b{number}"], [f"y{number}"], **conv))
        made = f"y{number}"
        tail = []
        if skip and number % 2:
            tail.append(helper.make_node("Add", [made, skip], [f"a{number}"], f"add{number}"))
            made = f"a{number}"
        tail.append(helper.make_node("Relu", [made], [f"h{number}"], f"relu{number}"))
        for side in nodes:
            side.extend(tail)
        tensor, channels = f"h{number}", width
        if number % 2 == 0:
            skip = tensor
    head = {
        "fc.w": rng.normal(0, 0.5, (CLASSES, width)).astype(np.float32),
        "fc.b": rng.normal(0, 0.1, CLASSES).astype(np.float32),
    }
    tail = [
        helper.make_node("GlobalAveragePool", [tensor], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "fc.w", "fc.b"], ["logits"], "fc", transB=1),
    ]
    shapes = ({"x": ("batch", 3, 8, 8)}, {"logits": ("batch", CLASSES)})
    return (
        model_of([*nodes[0], *tail], *shapes, explicit | head),
        model_of([*nodes[1], *tail], *shapes, folded | head),
    )


def samples(count: int = 48, shape: tuple[int, ...] = (3, 8, 8), seed: int = 1) -> NDArray[np.float32]:
    """Smooth random images with a brightness of their own, so that batch means differ."""
    rng = np.random.default_rng(seed)
    noise = rng.normal(0, 1, (count, *shape))
    level = rng.normal(0, 1, (count, *([1] * len(shape))))
    return (noise + level).astype(np.float32)


def mlp(*, bias: bool = True, names: bool = True, width: int = 12, seed: int = 0) -> onnx.ModelProto:
    """x (batch, 8) -> MatMul [Add] Relu MatMul [Add] -> logits (batch, 5)."""
    rng = np.random.default_rng(seed)
    weights = {
        "w0": rng.normal(0, 0.5, (8, width)).astype(np.float32),
        "w1": rng.normal(0, 0.5, (width, CLASSES)).astype(np.float32),
    }
    if bias:
        weights |= {"b0": rng.normal(0, 0.5, width).astype(np.float32), "b1": rng.normal(0, 0.5, CLASSES).astype(np.float32)}
    label = (lambda name: name) if names else (lambda name: "")
    nodes = []
    for number, (source, target) in enumerate((("x", "p0"), ("h0", "logits"))):
        made = f"m{number}" if bias else target
        nodes.append(helper.make_node("MatMul", [source, f"w{number}"], [made], label(f"mm{number}")))
        if bias:
            nodes.append(helper.make_node("Add", [made, f"b{number}"], [target], label(f"plus{number}")))
        if number == 0:
            nodes.append(helper.make_node("Relu", ["p0"], ["h0"], label("relu")))
    return model_of(nodes, {"x": ("batch", 8)}, {"logits": ("batch", CLASSES)}, weights)


def run(model: onnx.ModelProto, feed: dict[str, NDArray[Any]], names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """The named tensors (inner ones too; all outputs without names) of a model, by plain ONNX Runtime in one batch."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names if name not in present)
    session = ort.InferenceSession(copy.SerializeToString(), providers=["CPUExecutionProvider"])
    wanted = list(names) or [value.name for value in model.graph.output]
    return dict(zip(wanted, session.run(wanted, feed), strict=True))


def moments(values: NDArray[Any], axis: int = 1) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and population variance per channel, float64."""
    rest = tuple(number for number in range(values.ndim) if number != axis % values.ndim)
    wide = values.astype(np.float64)
    return wide.mean(axis=rest), wide.var(axis=rest)


def tensors(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """The values of the initializers, by name."""
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def replaced(model: onnx.ModelProto, values: dict[str, NDArray[Any]]) -> onnx.ModelProto:
    """A copy of the model in which the named initializers have other values."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name].astype(numpy_helper.to_array(tensor).dtype), tensor.name))
    return copy


def differences(one: Any, other: Any, path: str = "model") -> Iterator[str]:
    """The paths of every field in which two protos of one type differ."""
    for field in one.DESCRIPTOR.fields:
        here = f"{path}.{field.name}"
        left, right = getattr(one, field.name), getattr(other, field.name)
        if field.is_repeated:
            if len(left) != len(right):
                yield f"{here}: {len(left)} entries, then {len(right)}"
            elif field.message_type is not None:
                for number, (a, b) in enumerate(zip(left, right, strict=True)):
                    yield from differences(a, b, f"{here}[{number}]")
            elif list(left) != list(right):
                yield here
        elif field.has_presence and one.HasField(field.name) != other.HasField(field.name):
            yield f"{here}: set in one only"
        elif field.message_type is not None:
            if one.HasField(field.name):
                yield from differences(left, right, here)
        elif left != right:
            yield here


def unnamed_changes(before: onnx.ModelProto, after: onnx.ModelProto, changes: ChangesReport) -> list[str]:
    """Every difference between two models that the report does not name.

    What it names is undone in a copy, the rest must be equal field by field. A node before an added Add may give its output another
    name.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(after)
    graph = copy.graph
    found = []
    old_values, new_values = _constants(before), _constants(copy)
    for name in changes.values:
        old, new = old_values[name], new_values[name]
        if (old.name, old.dims, old.data_type, old.doc_string) != (new.name, new.dims, new.data_type, new.doc_string):
            found.append(f"tensor {name}: more than its values changed")
        new.CopyFrom(old)
    found += _take_out(graph.initializer, changes.initializers, "initializer")
    made_before = {name for node in before.graph.node for name in node.output}
    added = set(changes.initializers)
    for node in [node for node in graph.node if node.name in changes.nodes]:
        added.update(node.output)
        if node.output[0] in made_before:  # it stands behind a node and took over the name of its output
            producer = next(entry for entry in graph.node if node.input[0] in entry.output)
            producer.output[list(producer.output).index(node.input[0])] = node.output[0]
    found += _take_out(graph.node, changes.nodes, "node")
    if before.ir_version < 4:  # where every initializer is listed as an input too
        found += _take_out(graph.input, changes.initializers, "input")
    labels = {entry.name or entry.output[0]: entry for entry in before.graph.node}
    for node in graph.node:
        label = node.name or node.output[0]
        if label in changes.rewired:
            pairs = list(zip([*labels[label].input, *[""] * 9], node.input, strict=False))
            if any(old != new and new not in added for old, new in pairs):
                found.append(f"node {label}: reads something else that was not added")
            del node.input[:]
            node.input.extend(labels[label].input)
    return found + list(differences(before, copy))


def _constants(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type == "Constant":
            held[node.output[0]] = node.attribute[0].t
    return held


def _take_out(entries: Any, names: Sequence[str], what: str) -> list[str]:
    """Remove the named entries, and say which are not there exactly once."""
    present = [entry.name for entry in entries]
    rest = [entry for entry in entries if entry.name not in names]
    del entries[:]
    entries.extend(rest)
    return [f"{what} {name}: there {present.count(name)} times" for name in names if present.count(name) != 1]
