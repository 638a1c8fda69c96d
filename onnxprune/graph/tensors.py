"""Constant tensors of a model: where the values of a node's input live, and how they are read and written in place.

A constant is an initializer, the output of a Constant node, or either of them behind the steps of views.py, in the main graph or in a
body. A value that only one node input reads is changed where it lives. A value with several readers is left alone, and the one input is
given an initializer of its own; both are recorded, so that the report can name everything that is different in the file.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.graph.changes import Changes
from onnxprune.graph.inlining import SHARED, fill
from onnxprune.graph.mapped import covered, is_mapped, values_of
from onnxprune.graph.pieces import joined, picked
from onnxprune.graph.scales import scales_behind
from onnxprune.graph.steps import INTEGERS, OPS, scaled_name, steps_of
from onnxprune.graph.views import FLOATS, View, layout, see, store, zeros
from onnxprune.graph.walk import CORE, Scope, label, names_read, scopes

__all__ = ["FLOATS", "Changes", "Constants"]


class Constants:
    """The constants of a model, and the edits made to them. Works on the given proto in place.

    Names are those of the main graph; a body's own tensors go by Scope.key, and a local function's by "function/name".
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.changes = Changes()
        self.scopes = scopes(model.graph)
        self._tensors: dict[str, list[onnx.TensorProto]] = {}
        self._views: dict[str, View] = {}
        self._makers: dict[str, tuple[Scope, onnx.NodeProto, tuple[int, ...]]] = {}
        self._steps: dict[str, View] = {}
        self._made: dict[str, tuple[Scope, onnx.NodeProto]] = {}
        self._literal, self._behind = set[str](), dict[str, str]()
        self._joined = joined(self.scopes)
        self._into = {name: key for key, pieces in self._joined.items() for name in pieces.slices}
        for scope in self.scopes:
            for tensor in scope.graph.initializer:
                self._hold(scope.prefix + tensor.name, tensor)
            for node in scope.nodes:
                self._note(scope, node)
        self._behind |= scales_behind(self.scopes, self)
        graph = model.graph
        # Before IR version 4 every initializer must be listed as an input too; only from there on does it say that callers feed it.
        self._listed = model.ir_version < 4
        self._fed = set() if self._listed else {value.name for value in graph.input}
        self._readers = Counter(names_read(graph))
        self._taken = {tensor.name for tensor in graph.initializer} | set(self._readers) | {value.name for value in graph.input}
        self._taken.update(*(scope.made for scope in self.scopes), *(node.output for node in graph.node))

    def _hold(self, key: str, tensor: onnx.TensorProto) -> None:
        """Note a stored tensor; one that stands in a local function is held under one name for all calls."""
        holder = tensor.doc_string[len(SHARED) :] if tensor.doc_string.startswith(SHARED) else key
        self._tensors.setdefault(holder, []).append(tensor)
        self._views[key] = View(holder, (), tuple(tensor.dims), int(tensor.data_type))

    def _note(self, scope: Scope, node: onnx.NodeProto) -> None:
        """Note what a node makes, and where it is a constant, or one step away from a constant."""
        self._made.update((scope.prefix + name, (scope, node)) for name in node.output if name)
        if node.domain not in CORE or not node.output:
            return
        key = scope.prefix + node.output[0]
        if node.op_type in OPS and node.input:
            self._makers[key] = (scope, node, tuple(range(len(node.input))))
        for places in INTEGERS.get(node.op_type, ()):
            self._makers[scope.prefix + scaled_name(node, places[0])] = (scope, node, places)
        for attribute in node.attribute if node.op_type == "Constant" else ():
            if attribute.name == "value" and attribute.HasField("t"):
                self._hold(key, attribute.t)
            elif attribute.name in ("value_int", "value_ints", "value_float", "value_floats"):
                kind = np.int64 if attribute.name.startswith("value_int") else np.float32
                self._hold(key, numpy_helper.from_array(np.array(onnx.helper.get_attribute_value(attribute), kind)))
                self._literal.add(key)

    def resolve(self, name: str) -> str | None:
        """The name of the tensor that holds the values of ``name``, or None when they are not constant."""
        view = self.view(name)
        return None if view is None else view.holder

    def view(self, name: str) -> View | None:
        """How the constant ``name`` comes from what is stored, or None when it is no constant."""
        if name in self._views or name in self._steps:
            return self._views.get(name) or self._steps[name]
        chain = self._chain(name)
        view = self._views.get(chain[-1])
        for key in reversed(chain[:-1]):
            if view is None:
                return None
            pieces = self._joined.get(key)
            view = picked(pieces, view, self) if pieces else steps_of(self._makers[key][1], view, self._sources(key), self)
            if view is not None:
                self._steps[key] = view
        return view

    def passes(self, scope: Scope, node: onnx.NodeProto) -> bool:
        """True for a node that only hands a constant on to what is a constant too, as another view of it."""
        made = scope.key(node.output[0]) if node.output else ""
        return self.resolve(self._into.get(made, made)) is not None

    def sparse(self, name: str) -> bool:
        """True for sparse initializers that were not made dense: those of bodies."""
        return self._chain(name)[-1] in {s.prefix + tensor.values.name for s in self.scopes for tensor in s.graph.sparse_initializer}

    def folded_by(self, name: str) -> str:
        """The operator that makes a tensor out of constants alone by more than steps; empty where it is a constant, or needs an input."""
        end = next((key for key in reversed(self._chain(name)) if key not in self._views), "")
        if end not in self._made or self.view(name) is not None:
            return ""
        todo, seen = [end], set()
        while todo:
            key = todo.pop()
            if key in self._views or key in seen:
                continue
            seen.add(key)
            if key not in self._made or self._made[key][1].op_type.startswith("Random"):
                return ""
            scope, node = self._made[key]
            todo += [scope.key(source) for source in node.input if source]
        return str(self._made[end][1].op_type)

    def _sources(self, name: str) -> list[str]:
        """The names of what the maker of a tensor reads, empty for an input that is not there; for a Concat, what its Slices read."""
        if name in self._joined:
            return [self._joined[name].base]
        scope, node, places = self._makers[name]
        found = [scope.key(node.input[at]) if 0 <= at < len(node.input) else "" for at in places]
        return [found[0], self._behind[name], *found[2:]] if name in self._behind else found

    def _chain(self, name: str) -> list[str]:
        """A tensor and those that it is made from step by step, the last of which is stored or is no constant."""
        chain = [name]
        while chain[-1] not in self._views and (chain[-1] in self._makers or chain[-1] in self._joined):
            source = self._sources(chain[-1])[0]
            if source in chain:
                break
            chain.append(source)
        return chain

    def read(self, name: str) -> NDArray[Any]:
        """A copy of the values of the constant ``name``, in its own dtype."""
        view = self._found(name)
        first = self._tensors[view.holder][0]
        return np.array(see(view.steps, values_of(first), self.read), copy=None if is_mapped(first) else True)

    def held(self, name: str) -> list[onnx.TensorProto]:
        """The tensors that hold the values of the constant ``name`` (or are the holder of that name), all of them the same."""
        return self._tensors[name if name in self._tensors else self._found(name).holder]

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of the constant ``name``."""
        return self._found(name).shape

    def data_type(self, name: str) -> int:
        """The onnx.TensorProto.DataType of the constant ``name``."""
        return self._found(name).data_type

    def write(self, name: str, array: NDArray[Any]) -> None:
        """Give the constant ``name`` new values of the same shape; every node that reads it sees them."""
        view = self._found(name)
        if view.shape != array.shape:
            raise ValueError(f"{name}: has shape {view.shape}, got values of shape {array.shape}")
        self._store(view.holder, store(view.steps, array, self.read))

    def mask(self, name: str, mask: NDArray[np.bool_]) -> None:
        """Make zero what the constant ``name`` shows where ``mask`` is False; all else stays as it is stored, bit by bit."""
        view = self._found(name)
        tensors = self._tensors[view.holder]
        kept = store(layout(view.steps), mask, self.read)
        zero = zeros(view.steps, tuple(tensors[0].dims), self.read)
        if not zero.any() and covered(tensors, kept):
            self.changes.tell(view.holder)
        else:
            stored = values_of(tensors[0])
            self._store(view.holder, np.where(kept, stored, zero.astype(stored.dtype)))

    def _store(self, holder: str, values: NDArray[Any]) -> None:
        for tensor in self._tensors[holder]:
            fill(tensor, values)
        self.changes.tell(holder)

    def write_input(self, node: onnx.NodeProto, index: int, array: NDArray[Any], data_type: int, stem: str) -> None:
        """Give one node input new values without touching what other nodes read.

        The constant is changed in place when this input is its only reader and the shape is the same; otherwise a new initializer,
        named after ``stem``, takes the place of the input, which may have been absent.
        """
        old = node.input[index] if index < len(node.input) else ""
        if old and self.private(old) and self.shape(old) == array.shape:
            self.write(old, array)
            return
        name = self.fresh(stem)
        tensor = onnx.TensorProto(name=name, data_type=data_type, dims=array.shape)
        fill(tensor, array)
        self.model.graph.initializer.append(tensor)
        self._hold(name, self.model.graph.initializer[-1])
        if self._listed:
            self.model.graph.input.append(onnx.helper.make_tensor_value_info(name, data_type, array.shape))
        while len(node.input) <= index:
            node.input.append("")
        node.input[index] = name
        self._steps.clear()  # the input may have been the scale of a step
        self._readers[name] += 1
        if old:
            self._readers[old] -= 1
        self.changes.initializers.add(name)
        self.changes.inputs.add(label(node))

    def changed(self) -> dict[str, onnx.TensorProto]:
        """Every tensor that was changed, by name."""
        return {name: self._tensors[name][0] for name in sorted(self.changes.values)}

    def readers(self, name: str) -> int:
        """How many node inputs (in subgraphs too) and graph outputs read ``name`` by that very name."""
        return self._readers[name]

    def fresh(self, stem: str) -> str:
        """A tensor name that the model does not use yet: the stem, or the stem with a number."""
        name, number = stem, 1
        while name in self._taken:
            number += 1
            name = f"{stem}_{number}"
        self._taken.add(name)
        return name

    def private(self, name: str) -> bool:
        """True when one node input alone reads the values: one reader of every name on the way, and no caller who may feed them."""
        view = self.view(name)
        if view is None:
            return False
        chain = self._chain(name)
        alone = all(self._readers[key] == 1 and key not in self._fed and key not in self._literal for key in chain)
        return alone and len(self._tensors[view.holder]) == 1

    def _found(self, name: str) -> View:
        view = self.view(name)
        if view is None:
            raise KeyError(f"{name}: not a constant of the model")
        return view
