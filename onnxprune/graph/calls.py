"""How large a model becomes when the calls of its local functions are written out, known before it is done.

Thirty functions of two calls each, one calling the other, are a file of some kilobytes and a graph of a thousand million nodes.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import onnx

from onnxprune.errors import ModelError
from onnxprune.graph.walk import named_bodies

NODES_MAX = 50_000
"""Nodes that the calls may be written out to."""
DEPTH_MAX = 100
"""Functions that may stand one inside the other: the inliner calls itself."""
Key = tuple[str, str, str]


def refuse_explosion(model: onnx.ModelProto) -> None:
    """Raises ModelError when the calls of local functions cannot be written out to a graph of reasonable size, or form a ring."""
    functions = {(entry.domain, entry.name, entry.overload): entry for entry in model.functions}
    called = {key: [call for call in map(_key, _nodes(entry.node)) if call in functions] for key, entry in functions.items()}
    sizes: dict[Key, tuple[int, int]] = {}  # nodes and depth of a function whose calls are written out
    for start in functions:
        stack = [start]
        open_ones: set[Key] = set()
        while stack:
            key = stack[-1]
            waiting = [call for call in dict.fromkeys(called[key]) if call not in sizes]
            if waiting and key not in open_ones:
                open_ones.add(key)
                stack.extend(waiting)
            elif waiting:
                raise ModelError(f"the local functions cannot be written out: {key[1]!r} calls itself through {waiting[0][1]!r}")
            else:
                inner = [sizes[call] for call in called[key]]
                own = sum(1 for _ in _nodes(functions[key].node)) - len(inner)
                sizes[key] = own + sum(size for size, _ in inner), 1 + max((depth for _, depth in inner), default=0)
                stack.pop()
    calls = [sizes[call] for call in map(_key, _nodes(model.graph.node)) if call in sizes]
    total, depth = sum(size for size, _ in calls), max((depth for _, depth in calls), default=0)
    if total > NODES_MAX or depth > DEPTH_MAX:
        what = f"{total:,} nodes, over {NODES_MAX:,}" if total > NODES_MAX else f"{depth} levels, over {DEPTH_MAX}"
        raise ModelError(f"the local functions cannot be written out: they make {what}; write them out yourself, or split the model")


def _key(node: onnx.NodeProto) -> Key:
    return node.domain, node.op_type, node.overload


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The nodes, and those of their bodies."""
    todo = list(nodes)
    while todo:
        node = todo.pop()
        yield node
        todo.extend(inner for _, body in named_bodies(node) for inner in body.node)
