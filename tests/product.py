"""What must hold of any pruned model, checked with plain ONNX Runtime and the checker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import numpy_helper

import onnxprune
from onnxprune.graph import inlining, layers, walk
from onnxprune.graph.tensors import Constants
from onnxprune.pipeline import Result
from onnxprune.report import ChangesReport

REPAIRS = ("none", "bn", "layer", "channel", "asr", "reconstruct")
Feed = Mapping[str, NDArray[Any]]


def outputs(model: onnx.ModelProto, feed: Feed) -> list[NDArray[Any]]:
    """The model's outputs from ONNX Runtime with its default optimisations."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(None, dict(feed)))


def pruned(model: onnx.ModelProto, feed: Feed, **options: Any) -> Result:
    """prune() on the CPU, with everything checked that must hold whatever the model and the options."""
    before = model.SerializeToString(deterministic=True)
    result = onnxprune.prune(model, dict(feed), device="cpu", batch_size=4, **{"sparsity": 0.5, "trial_seconds": 0, **options})
    assert model.SerializeToString(deterministic=True) == before, "the given model was changed"
    check(model, result, feed)
    return result


def check(model: onnx.ModelProto, result: Result, feed: Feed) -> None:
    """The file that comes out loads, has the same signature, exact counts, and differs where the report says."""
    new = result.model
    onnx.checker.check_model(new, full_check=True)
    for field in ("ir_version", "producer_name", "domain", "model_version", "doc_string"):
        assert getattr(new, field) == getattr(model, field)
    for field in ("opset_import", "metadata_props"):
        assert list(getattr(new, field)) == list(getattr(model, field))
    fed = [value for value in new.graph.input if value.name not in result.report.changes.initializers]
    assert fed == list(model.graph.input) and list(new.graph.output) == list(model.graph.output)
    assert not unnamed_changes(model, new, result.report.changes)
    batch = {name: value[:4] for name, value in feed.items()}
    first, second = outputs(model, batch), outputs(new, batch)
    assert [value.shape for value in first] == [value.shape for value in second]
    assert all(np.isfinite(value).all() for value in second if value.dtype.kind == "f")
    report = result.report
    chosen = [entry for entry in report.layers if entry.pruned]
    assert report.kept == sum(entry.kept for entry in chosen) and report.weights == sum(entry.weights for entry in chosen)
    if report.options["pattern"] is None and not report.options["layer_sparsity"]:
        assert report.kept == round((1 - report.options["sparsity"]) * report.weights)
    flat = inlining.inlined(new)
    constants = Constants(flat)
    by_weight = {layer.weight: layer for layer in layers.find(flat, report.options["include"]).layers}
    for entry in chosen:
        seen = constants.read(by_weight[entry.weight].seen)
        assert np.count_nonzero(seen) == entry.nonzero <= entry.kept, entry.name


def identity(model: onnx.ModelProto, feed: Feed) -> None:
    """Sparsity 0 gives the model back byte for byte, whatever the repair."""
    for repair in ("none", "channel", "reconstruct"):
        result = onnxprune.prune(model, dict(feed), device="cpu", batch_size=4, sparsity=0.0, repair=repair)
        assert result.model.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True), repair


def every_way(model: onnx.ModelProto, feed: Feed, **options: Any) -> dict[str, Result]:
    """The model through prune() with every repair, by measured errors, and at sparsity 0."""
    identity(model, feed)
    if "pattern" not in options:
        pruned(model, feed, **{"repair": "none", **options, "alloc": "error"})
    return {repair: pruned(model, feed, repair=repair, **options) for repair in REPAIRS}


def stored(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every stored tensor by the name that a report gives it: prefixed in bodies and in local functions."""
    yield from _in(model.graph, "")
    for function in model.functions:
        prefix = f"{function.domain}.{function.name}/"
        yield from _of_nodes(function.node, prefix)
        for node in function.node:
            for which, body in walk.named_bodies(node):
                for scope in walk.scopes(body):
                    inner = f"{prefix}{walk.label(node)}.{which}/{scope.prefix}"
                    yield from ((inner + tensor.name, tensor) for tensor in scope.graph.initializer)
                    yield from _of_nodes(scope.nodes, inner)


def _in(graph: onnx.GraphProto, prefix: str) -> Iterator[tuple[str, onnx.TensorProto]]:
    for scope in walk.scopes(graph):
        yield from ((scope.prefix + tensor.name, tensor) for tensor in scope.graph.initializer)
        yield from _of_nodes(scope.nodes, scope.prefix)


def _of_nodes(nodes: Sequence[onnx.NodeProto], prefix: str) -> Iterator[tuple[str, onnx.TensorProto]]:
    for node in nodes:
        if node.op_type == "Constant":
            yield from ((prefix + node.output[0], entry.t) for entry in node.attribute if entry.HasField("t"))


def unnamed_changes(before: onnx.ModelProto, after: onnx.ModelProto, changes: ChangesReport) -> list[str]:
    """Every difference between two models that the report does not name: what it names is undone in a copy, the rest must be equal."""
    copy = onnx.ModelProto()
    copy.CopyFrom(after)
    found = []
    old, new = dict(stored(before)), dict(stored(copy))
    for name in changes.values:
        if (old[name].name, old[name].dims, old[name].data_type) != (new[name].name, new[name].dims, new[name].data_type):
            found.append(f"tensor {name}: more than its values changed")
        new[name].CopyFrom(old[name])
    graph = copy.graph
    tensors = [tensor for tensor in graph.initializer if tensor.name not in changes.initializers]
    nodes = [node for node in graph.node if node.name not in changes.nodes]
    added = {name: node for node in graph.node if node.name in changes.nodes for name in node.output}
    if before.ir_version < 4:
        inputs = [value for value in graph.input if value.name not in changes.initializers]
        del graph.input[:]
        graph.input.extend(inputs)
    for node, was in zip(nodes, before.graph.node, strict=True):
        for made in added.values():  # an added node that took over the name of an output
            if made.input[0] in node.output and made.output[0] in was.output:
                node.output[list(node.output).index(made.input[0])] = made.output[0]
        if walk.label(was) in changes.rewired:
            del node.input[:]
            node.input.extend(was.input)
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(tensors)
    if copy.SerializeToString(deterministic=True) != before.SerializeToString(deterministic=True):
        found.append("something else differs")
    return found


def values(model: onnx.ModelProto, name: str) -> NDArray[Any]:
    """The values of a stored tensor."""
    return np.asarray(numpy_helper.to_array(dict(stored(model))[name]))
