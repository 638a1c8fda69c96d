"""What must hold for every model that prune() lets out, whatever is in it.

Written against protos and ONNX Runtime alone: the graph engine is not asked what it found. ``check`` is the one way in; the zoo, the
random graphs and the run over real files share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from networks import differences
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune import Result
from onnxprune.graph.model import load
from onnxprune.report import ChangesReport, LayerReport

Feed = Mapping[str, NDArray[Any]]

# Operator -> the inputs that can hold a weight.
WEIGHTED = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "DeformConv": (1,),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "Einsum": range(9),
    "LSTM": (1, 2),
    "GRU": (1, 2),
    "RNN": (1, 2),
    "Gather": (0,),
    "QLinearConv": (3,),
    "QLinearMatMul": (0, 3),
    "ConvInteger": (1,),
    "MatMulInteger": (0, 1),
}
# Operator -> (input of integer weights, input of their zero point).
ZERO_POINTS = {"DequantizeLinear": (0, 2), "QLinearConv": (3, 5), "QLinearMatMul": (3, 5), "ConvInteger": (1, 3), "MatMulInteger": (1, 3)}
MARK = "\0"
"""Between the scope and the name in the path of a tensor."""
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


def check(model: onnx.ModelProto, result: Result, feed: Feed, options: Mapping[str, Any]) -> None:
    """Assert everything that a result must hold, against the dense model and one batch of samples."""
    after, report = result.model, result.report
    same_signature(model, after)
    checked_as_before(model, after)
    dense, pruned = run(model, feed), run(after, feed)
    for name, values in dense.items():
        if is_float(values) and np.isfinite(values.astype(np.float64)).all():
            assert np.isfinite(pruned[name].astype(np.float64)).all(), f"output {name} is not finite"
    exact_counts(model, result, options)
    assert unnamed_changes(model, after, report.changes) == []
    assert not passed_over(model, result), f"neither layer nor skipped: {passed_over(model, result)}"
    for entry in report.skipped:
        assert entry.reason, f"skipped without a reason: {entry}"
    if report.agreement is not None:
        for entry in (*report.agreement.masked, *report.agreement.repaired):
            assert np.isfinite(entry.cosine)


def check_identity(model: onnx.ModelProto, again: Callable[..., Result]) -> None:
    """Sparsity 0 gives the same bytes and names no change."""
    result = again(sparsity=0.0)
    assert data(result.model) == data(model), f"sparsity 0 changes {list(differences(model, result.model))[:5]}"
    changes = result.report.changes
    assert not (changes.values or changes.initializers or changes.nodes or changes.rewired)


def data(model: onnx.ModelProto) -> bytes:
    """The bytes of a model."""
    return model.SerializeToString(deterministic=True)


def same_signature(model: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """Inputs, outputs, opset imports, functions, metadata and versions are those of before."""
    added = len(after.graph.input) - len(model.graph.input)
    assert added == 0 or model.ir_version < 4  # where an added initializer must be listed as an input
    assert list(after.graph.input[: len(model.graph.input)]) == list(model.graph.input)
    for name in ("output", "value_info"):
        assert list(getattr(after.graph, name)) == list(getattr(model.graph, name)), name
    assert [(entry.domain, entry.name, entry.overload) for entry in after.functions] == [
        (entry.domain, entry.name, entry.overload) for entry in model.functions
    ]
    for name in ("opset_import", "metadata_props"):
        assert list(getattr(after, name)) == list(getattr(model, name)), name
    for name in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        assert getattr(after, name) == getattr(model, name), name


def checked_as_before(model: onnx.ModelProto, after: onnx.ModelProto) -> None:
    """The checker with full_check passes, or says the same as of the dense model."""
    if model.ByteSize() < 1 << 31:
        try:
            onnx.checker.check_model(model, full_check=True)
        except Exception:
            return
        onnx.checker.check_model(after, full_check=True)


def run(model: onnx.ModelProto, feed: Feed) -> dict[str, NDArray[Any]]:
    """The outputs that are arrays, by plain ONNX Runtime with all its optimisations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    taken = {value.name for value in session.get_inputs()}
    names = [value.name for value in session.get_outputs()]
    outputs = session.run(names, {name: values for name, values in feed.items() if name in taken})
    return {name: values for name, values in zip(names, outputs, strict=True) if isinstance(values, np.ndarray)}


def is_float(values: NDArray[Any]) -> bool:
    """True for an array of a float type."""
    return bool(np.issubdtype(values.dtype, np.floating))


# ---- counts


def exact_counts(model: onnx.ModelProto, result: Result, options: Mapping[str, Any]) -> None:
    """The counts add up, and every weight in the file has the zeros that the report says."""
    report = result.report
    pruned = [entry for entry in report.layers if entry.pruned]
    assert report.weights == sum(entry.weights for entry in pruned)
    assert report.kept == sum(entry.kept for entry in pruned)
    if "sparsity" in options and not options.get("layer_sparsity"):
        # round half to even of the exact product; float rounding may sit on either side of a half
        assert abs(report.kept - (1 - options["sparsity"]) * report.weights) <= 0.5 + 1e-6
    for entry in report.layers:
        before, after = weight_of(model, entry), weight_of(result.model, entry)
        assert before.values.shape == after.values.shape == tuple(entry.shape), entry.name
        assert after.values.size == entry.weights
        assert after.nonzero == entry.nonzero, f"{entry.name}: {after.nonzero} in the file, {entry.nonzero} in the report"
        assert entry.nonzero <= entry.kept
        if entry.kept == entry.weights and entry.repair == "none" and entry.weight not in report.changes.values:
            np.testing.assert_array_equal(before.values, after.values)


@dataclass(frozen=True, eq=False)
class Stored:
    """The values of a weight as stored, and the zero point (0 for floats) that means no weight."""

    values: NDArray[Any]
    zero: NDArray[Any]

    @property
    def nonzero(self) -> int:
        """How many weights differ from the zero point."""
        return int(np.count_nonzero(self.values.astype(np.float64) - self.zero))


def weight_of(model: onnx.ModelProto, entry: LayerReport) -> Stored:
    """The tensor that a layer's report names."""
    places = {path: tensor for path, tensor in tensors(model).items() if entry.weight in (path, tensor_name(path))}
    assert len(places) >= 1, f"{entry.name}: no tensor {entry.weight}"
    exact = places.get(entry.weight)
    assert exact is not None or len(places) == 1, f"{entry.name}: {entry.weight} names {sorted(places)}"
    values = np.asarray(numpy_helper.to_array(exact if exact is not None else next(iter(places.values()))))
    zero: NDArray[Any] = np.zeros(1)
    if not is_float(values) and values.dtype.name != "bfloat16":
        zero = _zero_point(model, tensor_name(entry.weight), values)
    return Stored(values, zero)


def _zero_point(model: onnx.ModelProto, name: str, values: NDArray[Any]) -> NDArray[Any]:
    held = {tensor_name(path): tensor for path, tensor in tensors(model).items()}
    for _, node in all_nodes(model):
        at, zero_at = ZERO_POINTS.get(node.op_type, (0, 0))
        if zero_at and len(node.input) > zero_at and node.input[at] == name and node.input[zero_at]:
            zero = np.asarray(numpy_helper.to_array(held[node.input[zero_at]])).astype(np.float64)
            if zero.size == 1:
                return zero.reshape(1)
            axis = {"QLinearMatMul": -1, "MatMulInteger": -1, "DequantizeLinear": 1}.get(node.op_type, 0)
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), axis)
            shape = [1] * values.ndim
            shape[axis] = -1
            return zero.reshape(shape)
    return np.zeros(1)


# ---- walks


def all_nodes(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto]]:
    """Every node with the path of its scope: the main graph (''), bodies of If, Loop and Scan, and functions."""
    yield from _nodes(model.graph.node, "")
    for function in model.functions:
        yield from _nodes(function.node, f"{function.domain}.{function.name}")


def _nodes(nodes: Any, path: str) -> Iterator[tuple[str, onnx.NodeProto]]:
    for node in nodes:
        yield path, node
        for name, body in bodies(node):
            yield from _nodes(body.node, f"{path}/{label(node)}.{name}")


def bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graphs that a node holds, by attribute."""
    for attribute in node.attribute:
        if attribute.type == onnx.AttributeProto.GRAPH:
            yield attribute.name, attribute.g
        for number, body in enumerate(attribute.graphs):
            yield f"{attribute.name}{number}", body


def label(node: onnx.NodeProto) -> str:
    """A node's name, or its first output."""
    return node.name or next((name for name in node.output if name), "")


def tensors(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    """Every stored tensor by path: scope, MARK, name, and just the name in the main graph."""
    found = {tensor.name: tensor for tensor in model.graph.initializer}
    for scope, node in all_nodes(model):
        inside = f"{scope}{MARK}" if scope else ""
        if node.op_type == "Constant":
            found.update({f"{inside}{node.output[0]}": entry.t for entry in node.attribute if entry.name == "value"})
        for name, body in bodies(node):
            found.update({f"{scope}/{label(node)}.{name}{MARK}{tensor.name}": tensor for tensor in body.initializer})
    return found


def tensor_name(path: str) -> str:
    """The name at the end of a path."""
    return path.rsplit(MARK, 1)[-1]


# ---- what has changed


def unnamed_changes(before: onnx.ModelProto, after: onnx.ModelProto, changes: ChangesReport) -> list[str]:
    """Every difference between two models that the report does not name: what it names is undone in a copy, the rest must be equal."""
    copy = onnx.ModelProto()
    copy.CopyFrom(after)
    old, new = tensors(before), tensors(copy)
    named = set(changes.values)
    for path in old.keys() & new.keys():
        if path in named or tensor_name(path) in named:
            raw = new[path].raw_data
            kept = (old[path].name, list(old[path].dims), old[path].data_type, old[path].doc_string)
            if kept != (new[path].name, list(new[path].dims), new[path].data_type, new[path].doc_string):
                return [f"tensor {path}: more than its values changed ({len(raw)} bytes)"]
            new[path].CopyFrom(old[path])
    _undo(before.graph, copy.graph, changes)
    if before.ir_version < 4:
        _take_out(copy.graph.input, changes.initializers)
    for was, now in zip(before.functions, copy.functions, strict=True):
        _undo(was, now, changes)
    return list(differences(before, copy))


def _undo(before: Any, after: Any, changes: ChangesReport) -> None:
    """Take out of a graph what was added to it, and give its nodes their inputs back."""
    if isinstance(after, onnx.GraphProto):
        _take_out(after.initializer, [name for name in changes.initializers if name not in {entry.name for entry in before.initializer}])
    made = {name for node in before.node for name in node.output}
    for node in [node for node in after.node if node.name and node.name in changes.nodes]:
        if node.output[0] in made:  # it stands behind a node and took over the name of its output
            producer = next(entry for entry in after.node if node.input[0] in entry.output)
            producer.output[list(producer.output).index(node.input[0])] = node.output[0]
    _take_out(after.node, [name for name in changes.nodes if name not in {node.name for node in before.node}])
    labels = {label(node): node for node in before.node}
    for node in after.node:
        if label(node) in changes.rewired and label(node) in labels:
            del node.input[:]
            node.input.extend(labels[label(node)].input)
    for was, now in zip(before.node, after.node, strict=False):
        for (_, one), (_, other) in zip(bodies(was), bodies(now), strict=False):
            _undo(one, other, changes)


def _take_out(entries: Any, names: Any) -> None:
    rest = [entry for entry in entries if entry.name not in set(names)]
    del entries[:]
    entries.extend(rest)


# ---- what was found


def passed_over(model: onnx.ModelProto, result: Result) -> list[str]:
    """The nodes with a constant weight that the report names neither as a layer nor as skipped."""
    report = result.report
    names = {entry.name for entry in (*report.layers, *report.skipped)}
    weights = {tensor_name(entry.weight) for entry in report.layers}
    missing = []
    for scope, node, holders in weighted(model):
        known = label(node) in names or any(name.startswith(f"{label(node)}:") for name in names)
        inside = bool(scope) and any(label(node) in name for name in names)
        if not (known or inside or {tensor_name(holder) for holder in holders} & weights):
            missing.append(f"{scope}/{node.op_type} {label(node)!r} reads {sorted(holders)[:3]}")
    return missing


def weighted(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto, frozenset[str]]]:
    """Every node that reads a constant weight, with its scope and the stored tensors behind the weight.

    Constants are folded through every operator: a weight behind Transpose, Cast or a chain of them counts.
    """
    functions = {(entry.domain, entry.name, entry.overload): entry for entry in model.functions}
    wide = {tensor_name(path): tensor for path, tensor in tensors(model).items()}
    yield from _weighted(model.graph, "", {}, functions, wide)


def _weighted(graph: Any, scope: str, outer: Mapping[str, frozenset[str]], functions: Any, wide: Any) -> Iterator[Any]:
    env = dict(outer)
    if isinstance(graph, onnx.GraphProto):
        env.update({tensor.name: frozenset({tensor.name}) for tensor in graph.initializer})
    for node in graph.node:
        reads = [name for name in node.input if name]
        if node.op_type == "Constant":
            env[node.output[0]] = frozenset({node.output[0]})
        elif reads and all(name in env for name in reads) and not node.op_type.startswith(("Random", "Bernoulli", "Multinomial")):
            env.update(dict.fromkeys(node.output, frozenset().union(*(env[name] for name in reads))))
            continue
        called = functions.get((node.domain, node.op_type, node.overload))
        if called is not None:
            given = {formal: env[name] for formal, name in zip(called.input, node.input, strict=False) if name in env}
            yield from _weighted(called, f"{called.domain}.{called.name}", given, functions, wide)
            continue
        foreign = node.domain not in ("", "ai.onnx")
        places = WEIGHTED.get(node.op_type, ()) if not foreign else range(len(node.input))
        for place in places:
            name = node.input[place] if place < len(node.input) else ""
            if name in env and any(map(partial(_is_weight, node, wide), env[name])):
                yield scope, node, env[name]
                break
        for name, body in bodies(node):
            yield from _weighted(body, f"{scope}/{label(node)}.{name}", env, functions, wide)


def _is_weight(node: onnx.NodeProto, wide: Mapping[str, onnx.TensorProto], holder: str) -> bool:
    """True for a stored tensor that can be a weight: of floats, or of bytes or less; a matrix where a Gather or a foreign operator reads it."""
    tensor = wide.get(holder)
    if tensor is None or int(np.prod(tensor.dims)) < 2:
        return False
    if node.domain not in ("", "ai.onnx"):
        return len(tensor.dims) > 1 and tensor.data_type in FLOATS + INTEGERS
    if node.op_type == "Gather":
        return len(tensor.dims) > 1 and tensor.data_type in FLOATS
    return tensor.data_type in FLOATS + INTEGERS


def loaded(path: Any) -> onnx.ModelProto:
    """A model from a file, its external data in it."""
    return load(path).model
