"""Local functions: a working copy of a model with every call written out, and the way back.

Layers are found, run and repaired in the working copy. A tensor that stands in a function stands in the copy once a call, under one
doc string, so that all of them are written together (tensors.Constants). A node that comes from a function takes new values where it
alone reads them, but no new inputs or neighbours. `restored` writes what was changed into the original, whose functions stay as they are
but for the values of their own constants.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Set
from typing import Any

import numpy as np
import onnx
import onnx.inliner
from numpy.typing import NDArray
from onnx import defs, helper, numpy_helper

from onnxprune.errors import ModelError
from onnxprune.graph.calls import refuse_explosion
from onnxprune.graph.mapped import drop, share
from onnxprune.graph.walk import CORE, label, named_bodies, opset_of, scopes

SHARED = "onnxprune shared:"
MAIN = "onnxprune main:"
CALLED = "onnxprune called:"


def inlined(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of the model without calls of local functions, its nodes and tensors marked; the model itself where it has no function.

    Raises:
        ModelError: the functions call each other in a ring, or make too many nodes, or a call does not fit its function.
    """
    if not model.functions:
        return model
    refuse_explosion(model)
    marked = onnx.ModelProto()
    marked.CopyFrom(model)
    for number, node in enumerate(marked.graph.node):
        node.doc_string = f"{MAIN}{number}"
    for function in marked.functions:
        for key, tensor in _own(function):
            tensor.doc_string = f"{SHARED}{key}"
        for node in function.node:
            node.doc_string = f"{CALLED}local function {function.name!r}"
        _raise_opset(function, opset_of(model))
    try:
        return onnx.inliner.inline_local_functions(marked)
    except Exception as error:  # the inliner is C++ and raises what it likes
        raise ModelError(f"the local functions cannot be written out: {' '.join(str(error).split())[:200]}") from error


def _raise_opset(function: onnx.FunctionProto, version: int) -> None:
    """Give a function the model's opset where none of its operators differs between the two: the inliner takes no other."""
    own = next((entry for entry in function.opset_import if entry.domain in CORE), None)
    if own is None or own.version == version:
        return
    todo, used = list(function.node), set[str]()
    while todo:
        node = todo.pop()
        used.update([node.op_type] if node.domain in CORE else [])
        todo.extend(inner for _, body in named_bodies(node) for inner in body.node)
    try:
        same = all(defs.get_schema(op, own.version).since_version == defs.get_schema(op, version).since_version for op in used)
    except Exception:  # an operator that one of the two does not have
        return
    if same:
        own.version = version


def called_from(node: onnx.NodeProto) -> str:
    """The local function, or the branch, that a node of a working copy comes from, in words; empty for one of the main graph."""
    return node.doc_string[len(CALLED) :] if node.doc_string.startswith(CALLED) else ""


def restored(
    original: onnx.ModelProto, working: onnx.ModelProto, values: Mapping[str, onnx.TensorProto], added: Set[str]
) -> onnx.ModelProto:
    """A copy of the original with the changes of its working copy: tensors in raw form by holder, and the names of what was ``added``.

    The working copy itself where the original has no function.
    """
    if not original.functions:
        return working
    result = onnx.ModelProto()
    result.CopyFrom(original)
    tensors = dict(_main(result))
    for function in result.functions:
        tensors.update(_own(function))
    for holder in values.keys() - added:
        share(tensors[holder], values[holder])
    result.graph.initializer.extend(tensor for tensor in working.graph.initializer if tensor.name in added)
    nodes: list[onnx.NodeProto] = []
    given, done = list(original.graph.node), 0  # of the original's nodes, how many are there
    makers = {name: number for number, node in enumerate(given) for name in node.output if name}
    for node in working.graph.node:
        if node.doc_string.startswith(MAIN):
            number = int(node.doc_string[len(MAIN) :])
            nodes.extend(given[done:number])
            done = number + 1
            kept = onnx.NodeProto()
            kept.CopyFrom(given[number])
            del kept.input[:], kept.output[:]
            kept.input.extend(node.input)
            kept.output.extend(node.output)
            nodes.append(kept)
        elif node.name in added:
            behind = max(done - 1, *(makers.get(name, -1) for name in node.input))  # it may read what a call gives
            nodes.extend([*given[done : behind + 1], node])
            done = behind + 1
    nodes.extend(given[done:])
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def fill(tensor: onnx.TensorProto, array: NDArray[Any]) -> None:
    """Put values into a tensor's raw bytes, rounded once to its type."""
    values = array.astype(helper.tensor_dtype_to_np_dtype(tensor.data_type), copy=False)
    drop(tensor)
    tensor.raw_data = numpy_helper.from_array(np.ascontiguousarray(values)).raw_data  # which packs types of less than a byte


def _main(model: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """The stored tensors of the main graph and of its bodies by their names in Constants."""
    for scope in scopes(model.graph):
        yield from ((scope.prefix + tensor.name, tensor) for tensor in scope.graph.initializer)
        yield from _constant_nodes(scope.nodes, scope.prefix)


def _own(function: onnx.FunctionProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """The stored tensors of a local function by their names in Constants."""
    prefix = f"{function.domain}.{function.name}{function.overload and ':' + function.overload}/"
    yield from _constant_nodes(function.node, prefix)
    for node in function.node:
        for which, body in named_bodies(node):
            for scope in scopes(body):
                inner = f"{prefix}{label(node)}.{which}/{scope.prefix}"
                yield from ((inner + tensor.name, tensor) for tensor in scope.graph.initializer)
                yield from _constant_nodes(scope.nodes, inner)


def _constant_nodes(nodes: Iterable[onnx.NodeProto], prefix: str) -> Iterator[tuple[str, onnx.TensorProto]]:
    for node in nodes:
        if node.op_type == "Constant":
            yield from ((prefix + node.output[0], entry.t) for entry in node.attribute if entry.name == "value")
