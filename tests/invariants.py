"""What must hold for every model that prune() lets out, whatever is in it.

Written against protos and ONNX Runtime alone: the graph engine is not asked what it found. ``check`` is the one way in; the zoo, the
random graphs and the run over real files share it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from networks import differences
from numpy.typing import NDArray
from onnx import numpy_helper
from zoo import COUNT

from onnxprune import Options, Result
from onnxprune.drawing import draw
from onnxprune.graph.inlining import inlined
from onnxprune.graph.model import load
from onnxprune.graph.sparse import made_dense
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
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)
INTEGERS = (onnx.TensorProto.INT8, onnx.TensorProto.UINT8, onnx.TensorProto.INT4, onnx.TensorProto.UINT4)


def check(model: onnx.ModelProto, result: Result, feed: Feed, options: Mapping[str, Any]) -> None:
    """Assert everything that a result must hold, against the dense model and one batch of samples."""
    model = made_dense(model)[0]  # tests/test_storing.py looks at sparse initializers themselves
    result = replace(result, model=made_dense(result.model)[0])
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


def run(model: onnx.ModelProto, feed: Feed, *, plain: bool = False) -> dict[str, NDArray[Any]]:
    """The outputs that are arrays, by ONNX Runtime with all its optimisations, or with none."""
    options = ort.SessionOptions()
    if plain:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
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
        assert before.values.shape == after.values.shape, entry.name
        assert after.values.size == entry.weights == int(np.prod(entry.shape)), entry.name
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
    """The tensor that a layer's report names: by its path, or by its name where that is one tensor's alone."""
    held = tensors(model)
    places = [path for path, (name, _) in held.items() if entry.weight == name]
    path = entry.weight if entry.weight in held else places[0] if len(places) == 1 else ""
    assert path, f"{entry.name}: {entry.weight} is the name of {len(places)} tensors"
    name, tensor = held[path]
    values = np.asarray(numpy_helper.to_array(tensor))
    zero: NDArray[Any] = np.zeros(1)
    if tensor.data_type not in FLOATS:
        zero = _zero_point(model, name, values)
    return Stored(values, zero)


def _zero_point(model: onnx.ModelProto, name: str, values: NDArray[Any]) -> NDArray[Any]:
    held = dict(tensors(model).values())
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
            yield from _nodes(body.node, inside(path, f"{label(node)}.{name}"))


def inside(scope: str, name: str) -> str:
    """The path of a name in a scope; the main graph has none."""
    return f"{scope}/{name}" if scope else name


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


def tensors(model: onnx.ModelProto) -> dict[str, tuple[str, onnx.TensorProto]]:
    """Every stored tensor by path, with its name."""
    found = {tensor.name: (tensor.name, tensor) for tensor in model.graph.initializer}
    for scope, node in all_nodes(model):
        if node.op_type == "Constant":
            name = node.output[0]
            found.update({inside(scope, name): (name, entry.t) for entry in node.attribute if entry.name == "value"})
        for attribute, body in bodies(node):
            below = inside(scope, f"{label(node)}.{attribute}")
            found.update({inside(below, tensor.name): (tensor.name, tensor) for tensor in body.initializer})
    return found


# ---- what has changed


def unnamed_changes(before: onnx.ModelProto, after: onnx.ModelProto, changes: ChangesReport) -> list[str]:
    """Every difference between two models that the report does not name: what it names is undone in a copy, the rest must be equal."""
    copy = onnx.ModelProto()
    copy.CopyFrom(after)
    old, new = tensors(before), tensors(copy)
    named = set(changes.values)
    for path in old.keys() & new.keys():
        (name, was), (_, now) = old[path], new[path]
        if path in named or name in named:
            if (was.name, list(was.dims), was.data_type, was.doc_string) != (now.name, list(now.dims), now.data_type, now.doc_string):
                return [f"tensor {path}: more than its values changed"]
            now.CopyFrom(was)
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
    weights = {entry.weight for entry in report.layers} | {entry.weight.rsplit("/", 1)[-1] for entry in report.layers}
    missing = []
    for scope, node, holders in weighted(model):
        known = label(node) in names or any(name.startswith(f"{label(node)}:") for name in names)
        below = bool(scope) and any(label(node) in name for name in names)
        if not (known or below or holders & weights):
            missing.append(f"{scope}/{node.op_type} {label(node)!r} reads {sorted(holders)[:3]}")
    return missing


def weighted(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.NodeProto, frozenset[str]]]:
    """Every node that reads a constant weight, with its scope and the names of the stored tensors behind the weight.

    Constants are folded through every operator: a weight behind Transpose, Cast or a chain of them counts.
    """
    functions = {(entry.domain, entry.name, entry.overload): entry for entry in model.functions}
    yield from _weighted(model.graph, "", {}, functions, dict(tensors(model).values()))


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
            yield from _weighted(body, inside(scope, f"{label(node)}.{name}"), env, functions, wide)


def _is_weight(node: onnx.NodeProto, wide: Mapping[str, onnx.TensorProto], holder: str) -> bool:
    """True for a stored tensor that can be a weight: of floats, or of bytes or less; a matrix for a Gather or a foreign operator."""
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


# ---- what a repair does


def unmatched(
    model: onnx.ModelProto, result: Result, samples: Feed, batch: int, *, count: int = COUNT, tolerance: float = 0.02
) -> list[str]:
    """Layers whose channels do not have the dense model's variance although the report says that ``channel`` gave it to them.

    Looked at from outside: both models run on the samples that repaired (there must be no holdout), and the layer's own output, or that
    of the norm right behind it, is compared. Shared weights and layers in bodies and functions are left out.
    """
    graph = model.graph
    makers = {label(node): node for node in graph.node}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    wanted: list[tuple[str, str, int]] = []
    for entry in result.report.layers:
        node = makers.get(entry.name)
        told = " ".join(entry.notes)
        if node is None or entry.repair != "channel" or entry.kept == entry.weights:
            continue
        if "nodes" in told or "overflow" in told or "only the shift" in told or entry.dead_channels:
            continue
        axis = _channel_axis(model, node)
        if axis is None:
            continue
        output = node.output[0]
        behind = readers.get(output, [])
        while len(behind) == 1 and behind[0].op_type in ("Add", "BatchNormalization") and "BatchNormalization" in told:
            output = behind[0].output[0]
            behind = readers.get(output, []) if behind[0].op_type == "Add" else []
        wanted.append((entry.name, output, axis))
    names = [output for _, output, _ in wanted]
    if not names:
        return []
    dense, pruned = (_inner(each, samples, batch, names, count) for each in (model, result.model))
    found = []
    for name, output, axis in wanted:
        one, other = (
            np.concatenate([np.moveaxis(part[output], axis, 0).reshape(part[output].shape[axis], -1) for part in side], axis=1)
            for side in (dense, pruned)
        )
        was, now = one.astype(np.float64).var(axis=1), other.astype(np.float64).var(axis=1)
        far = (was > 1e-8) & (np.abs(now - was) > tolerance * was)
        if far.any():
            worst = int(np.argmax(np.where(far, np.abs(np.log((now + 1e-12) / (was + 1e-12))), 0)))
            found.append(
                f"{name}: {far.sum()} of {far.size} channels, such as {worst}: variance {was[worst]:.4g} dense, {now[worst]:.4g} repaired"
            )
    return found


def _channel_axis(model: onnx.ModelProto, node: onnx.NodeProto) -> int | None:
    """The channels' axis in a node's output, None where there is no one axis."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 1
    held = {name for name, _ in tensors(model).values()}
    if node.op_type in ("Gemm", "MatMul"):
        return -1 if node.input[0] not in held else -2
    if node.op_type == "Einsum":
        equation = next(entry.s.decode() for entry in node.attribute if entry.name == "equation").replace(" ", "")
        sides, output = equation.split("->")
        terms = sides.split(",")
        weight = next((number for number, name in enumerate(node.input) if name in held), None)
        if weight is not None and "." not in equation:
            own = [each for each in terms[weight] if each in output and not any(each in t for n, t in enumerate(terms) if n != weight)]
            return output.index(own[0]) if len(own) == 1 else None
    return None


def _inner(model: onnx.ModelProto, samples: Feed, batch: int, names: list[str], count: int) -> list[dict[str, NDArray[Any]]]:
    """Tensors inside a model, batch by batch; a bias that was moved into an Add gives the tensor its old name back."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in present)
    taken = draw(dict(samples), inlined(model), Options(sparsity=0.5, samples=count, batch_size=batch), "cpu", holdout=0)
    return [run(copy, feed, plain=True) for feed in taken.repairing()]
