"""Branches that all samples take: a working copy of a model in which they stand in the main graph, and the way back.

What stands in the body of an If is run as one node, and its inner values are not seen. In the copy the nodes of the taken branch stand
before the If, which keeps the other branch, for what that reads is shared, and gives outputs that nobody reads: it never runs. Every
tensor goes by the name that it has in tensors.Constants, so that what a repair of the copy changes can be carried back. As in a local
function that was written out, a node of a branch takes new values where it alone reads them, but no new inputs or neighbours.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import onnx
from onnx import helper

from onnxprune.graph.affine import insert
from onnxprune.graph.inlining import CALLED, MAIN, called_from
from onnxprune.graph.layers import Found, Layer
from onnxprune.graph.mapped import share
from onnxprune.graph.planning import reads_of
from onnxprune.graph.tensors import Constants
from onnxprune.graph.walk import CORE, bodies, label, named_bodies, names_read

LEFT = "onnxprune left:"
VALUELESS = ("Shape", "Size")
"""Operators that read no values."""


def conditions(model: onnx.ModelProto, pruned: Iterable[Layer]) -> dict[str, str]:
    """Every If of the main graph that holds a pruned layer -> its condition, where no value of a pruned weight decides on that."""
    nodes = model.graph.node
    uses = [use for layer in pruned for use in layer.uses]
    held = {use.outer for use in uses}
    makers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    labels = Counter(label(node) for node in nodes)
    found = {}
    for number in sorted({use.outer for use in uses if use.scope}):
        node = nodes[number]
        if is_open(node) and labels[label(node)] == 1 and held.isdisjoint(_deciding(nodes, makers, node.input[0])):
            found[label(node)] = str(node.input[0])
    return found


def is_open(node: onnx.NodeProto) -> bool:
    """True for an If that is as it was in the model that came in."""
    return node.op_type == "If" and node.domain in CORE and not node.doc_string.startswith(LEFT)


def _deciding(nodes: Sequence[onnx.NodeProto], makers: Mapping[str, int], name: str) -> set[int]:
    """The numbers of the nodes on whose values a tensor depends."""
    found, todo = set[int](), [name]
    while todo:
        number = makers.get(todo.pop(), -1)
        if number >= 0 and number not in found:
            found.add(number)
            todo += [] if nodes[number].op_type in VALUELESS else reads_of(nodes[number])
    return found


def spliced(model: onnx.ModelProto, taken: Mapping[str, bool], *, bare: bool = False) -> onnx.ModelProto:
    """A copy of the model with the branches ``taken`` (by the label of an If, True for then) in its main graph, deeper ones in turn.

    ``bare``: without what is left of the Ifs, so that it can run as a whole.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for number, node in enumerate(copy.graph.node):
        if not called_from(node):
            node.doc_string = f"{MAIN}{number}"
    at = 0
    while at < len(copy.graph.node):
        node = copy.graph.node[at]
        if not (is_open(node) and label(node) in taken and _splice(copy, at, taken=taken[label(node)], bare=bare)):
            at += 1
    return copy


def _splice(model: onnx.ModelProto, at: int, *, taken: bool, bare: bool) -> bool:
    """Write a branch of node number ``at`` out before it; False, and nothing done, where its names are taken or it is sparse."""
    graph, node = model.graph, model.graph.node[at]
    name, which = label(node), "then_branch" if taken else "else_branch"
    body = next((body for place, body in named_bodies(node) if place == which), None)
    if body is None or body.sparse_initializer:
        return False
    prefix = f"{name}.{which}/"
    own = {tensor.name for tensor in body.initializer} | {made for child in body.node for made in child.output if made}
    names = {made: prefix + made for made in own}
    known = set(names_read(graph)) | {tensor.name for tensor in graph.initializer} | {out for child in graph.node for out in child.output}
    if not known.isdisjoint(names.values()):
        return False
    straight = {made for child in body.node if child.op_type != "Constant" for made in child.output if made}
    passed = []
    for outer, value in zip(node.output, body.output, strict=True):
        if outer and value.name in straight:
            names[value.name] = outer
            straight.discard(value.name)
        elif outer:
            passed.append(helper.make_node("Identity", [value.name], [outer], name=f"{prefix}{value.name}.passed"))
    made_nodes = []
    for child in [*body.node, *passed]:
        moved = onnx.NodeProto()
        moved.CopyFrom(child)
        moved.name = child.name if child in passed else prefix + label(child)
        moved.doc_string = child.doc_string if called_from(child) else f"{CALLED}{which.replace('_', ' ')} of If {name!r}"
        _rename(moved, names)
        made_nodes.append(moved)
    for tensor in body.initializer:
        stored = graph.initializer.add()
        stored.CopyFrom(tensor)
        stored.name = prefix + tensor.name
        if model.ir_version < 4:
            graph.input.append(helper.make_tensor_value_info(stored.name, stored.data_type, stored.dims))
    node.name, node.doc_string = name, LEFT
    outputs = [f"{name}.left/{number}" for number in range(len(node.output))]
    del node.output[:]
    node.output.extend(outputs)
    body.Clear()
    rest = [*made_nodes, *graph.node[at + bare :]]
    del graph.node[at:]
    graph.node.extend(rest)
    return True


def _rename(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Give the tensors that a node and its bodies read or make from outside their new names."""
    for side in (node.input, node.output):
        new = [names.get(name, name) for name in side]
        del side[:]
        side.extend(new)
    for body in bodies(node):
        inner = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        inner.update(made for child in body.node for made in child.output)
        left = {name: new for name, new in names.items() if name not in inner}
        for child in body.node:
            _rename(child, left)
        for value in body.output:
            value.name = left.get(value.name, value.name)


def told(found: Found, flat: Found, constants: Constants, copy: Constants) -> Found:
    """What was ``found`` in a model, by what was found in its copy, ``flat``: the uses of layers, and what is skipped.

    Layers in a branch that was left say so.
    """
    nodes = copy.model.graph.node
    uses = {layer.weight: layer.uses for layer in flat.layers}
    layers = []
    for layer in found.layers:
        seen = [
            replace(use, unrepaired=f"{use.unrepaired}, which no sample takes")
            if use.scope and nodes[use.outer].doc_string.startswith(LEFT)
            else use
            for use in uses.get(layer.weight, layer.uses)
        ]
        layers.append(replace(layer, uses=tuple(seen)))
    labels = {scope.prefix + label(node): label(node) for scope in constants.scopes for node in scope.nodes}
    skipped = tuple(replace(entry, name=labels.get(entry.name, entry.name)) for entry in flat.skipped)
    return replace(found, layers=tuple(layers), skipped=skipped)


def carry_back(constants: Constants, copy: Constants) -> None:
    """Make the changes of a copy that `spliced` made in the model it was made of, that behind ``constants``."""
    for holder, new in copy.changed().items():
        for tensor in constants.held(holder):
            share(tensor, new)
        constants.changes.tell(holder)
    graph, added = constants.model.graph, copy.changes
    graph.initializer.extend(tensor for tensor in copy.model.graph.initializer if tensor.name in added.initializers)
    if constants.model.ir_version < 4:
        graph.input.extend(value for value in copy.model.graph.input if value.name in added.initializers)
    constants.changes.initializers |= added.initializers
    constants.changes.nodes |= added.nodes
    constants.changes.inputs |= added.inputs
    nodes = graph.node
    makers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    last, inserted = -1, []
    for node in copy.model.graph.node:
        if node.doc_string.startswith(MAIN):
            last = int(node.doc_string[len(MAIN) :])
            for side, new in ((nodes[last].input, node.input), (nodes[last].output, node.output)):
                if list(side) != list(new):
                    del side[:]
                    side.extend(new)
        elif node.name in added.nodes:
            behind = max(last, *(makers.get(name, -1) for name in node.input))
            makers.update((name, behind) for name in node.output if name not in makers)
            inserted.append((behind, node))
    insert(constants.model, inserted)
