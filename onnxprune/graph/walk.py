"""Walks over a model's protos: the names that are read, the tensors that are stored, and the graphs inside nodes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import onnx

from onnxprune.errors import ModelError

CORE = ("", "ai.onnx")


@dataclass(frozen=True, eq=False)
class Scope:
    """The main graph, or the body of an If, Loop or Scan; ``outer`` is the number of the main graph's node that holds it.

    ``prefix`` tells its names from those of other bodies; the main graph has none. ``where`` says it in words.
    """

    graph: onnx.GraphProto
    prefix: str = ""
    where: str = ""
    outer: int = -1
    parent: Scope | None = None
    made: frozenset[str] = field(default_factory=frozenset)

    @property
    def nodes(self) -> Sequence[onnx.NodeProto]:
        """The scope's own nodes."""
        nodes: Sequence[onnx.NodeProto] = self.graph.node
        return nodes

    def key(self, name: str) -> str:
        """The name of a tensor in the whole model, from its name here."""
        if not name or self.parent is None or name in self.made:
            return self.prefix + name if name else ""
        return self.parent.key(name)


def scopes(graph: onnx.GraphProto) -> list[Scope]:
    """The main graph and every body inside it, outer ones before inner ones."""
    found = [Scope(graph)]
    for scope in found:  # grows on the way
        for number, node in enumerate(scope.nodes):
            for which, body in named_bodies(node):
                made = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
                made.update(name for child in body.node for name in child.output)
                found.append(
                    Scope(
                        body,
                        f"{scope.prefix}{label(node)}.{which}/",
                        f"{which.replace('_', ' ')} of {node.op_type} {label(node)!r}",
                        number if scope.parent is None else scope.outer,
                        scope,
                        frozenset(made),
                    )
                )
    return found


def label(node: onnx.NodeProto) -> str:
    """What a node goes by: its name, or that of its first output."""
    return str(node.name or next(filter(None, node.output), node.op_type))


def bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The subgraphs that a node holds: the branches of If, the bodies of Loop and Scan."""
    for attribute in node.attribute:
        yield from _graphs(attribute)


def named_bodies(node: onnx.NodeProto) -> Iterator[tuple[str, onnx.GraphProto]]:
    """The subgraphs that a node holds, and the attributes that they are."""
    for attribute in node.attribute:
        one = attribute.type == onnx.AttributeProto.GRAPH
        yield from ((attribute.name if one else f"{attribute.name}[{at}]", body) for at, body in enumerate(_graphs(attribute)))


def _graphs(attribute: onnx.AttributeProto) -> Iterable[onnx.GraphProto]:
    if attribute.type == onnx.AttributeProto.GRAPH:
        return [attribute.g]
    return attribute.graphs if attribute.type == onnx.AttributeProto.GRAPHS else []


def names_read(graph: onnx.GraphProto) -> Iterator[str]:
    """Every tensor name that the graph's nodes (and the bodies inside them) and its outputs read, once per reading."""
    for node in graph.node:
        yield from (name for name in node.input if name)
        for body in bodies(node):
            yield from names_read(body)
    yield from (value.name for value in graph.output)


def readers(model: onnx.ModelProto) -> Mapping[str, Sequence[int]]:
    """The numbers of the nodes that read a tensor, -1 for a reader that is a graph output or inside a body."""
    found: dict[str, list[int]] = {}
    for number, node in enumerate(model.graph.node):
        for name in node.input:
            if name:
                found.setdefault(name, []).append(number)
    direct = {name: len(numbers) for name, numbers in found.items()}
    total: dict[str, int] = {}
    for name in names_read(model.graph):
        total[name] = total.get(name, 0) + 1
    for name, count in total.items():
        found.setdefault(name, []).extend([-1] * (count - direct.get(name, 0)))
    return found


def stored(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every dense tensor that the file holds: initializers and the attributes of nodes, in bodies and local functions too."""
    yield from model.graph.initializer
    yield from stored_in(model.graph.node)
    for function in model.functions:
        yield from stored_in(function.node)


def stored_in(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    """Every dense tensor that nodes hold: their attributes, and what their bodies hold."""
    for node in nodes:
        for attribute in node.attribute:
            yield from ([attribute.t] if attribute.HasField("t") else attribute.tensors)
        for body in bodies(node):
            yield from body.initializer
            yield from stored_in(body.node)


def refuse_disorder(model: onnx.ModelProto) -> None:
    """Raises ModelError when a node reads what a later one makes; ONNX asks for the order, ONNX Runtime does not."""
    maker = {name: number for number, node in enumerate(model.graph.node) for name in node.output if name}
    for number, node in enumerate(model.graph.node):
        late = [name for name in node.input if maker.get(name, -1) >= number]
        if late:
            raise ModelError(f"node {node.name or node.op_type!r} reads {late[0]!r}, which a later node makes; sort the nodes")


def opset_of(model: onnx.ModelProto) -> int:
    """The version of ONNX's own operator set that a model imports; 1 when it imports none."""
    return max((entry.version for entry in model.opset_import if entry.domain in CORE), default=1)
