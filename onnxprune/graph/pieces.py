"""A Concat of Slices of one constant that takes every element once: torch's export turns the gates of an LSTM so.

It is a permutation of the elements, and a step of a view like any other (views.Picked). A Concat that leaves elements out, or repeats
them, is none: the node would not see all that is stored.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.graph.steps import Reader
from onnxprune.graph.views import Picked, View
from onnxprune.graph.walk import CORE, Scope


@dataclass(frozen=True, eq=False)
class Joined:
    """A Concat ``node`` of ``slices`` (their outputs' names in the whole model) of ``base``; ``scope`` is where they all stand."""

    scope: Scope
    node: onnx.NodeProto
    slices: Mapping[str, onnx.NodeProto]
    base: str


def joined(scopes: Iterable[Scope]) -> dict[str, Joined]:
    """Every Concat of Slices of one tensor that nothing else reads, by the name of its output in the whole model."""
    found = {}
    for scope in scopes:
        slices = {name: node for node in scope.nodes if node.op_type == "Slice" and node.domain in CORE for name in node.output}
        read = Counter(name for node in scope.nodes for name in node.input)
        read.update(value.name for value in scope.graph.output)
        for node in scope.nodes if slices else ():
            if node.op_type != "Concat" or node.domain not in CORE or not all(read[name] == 1 and name in slices for name in node.input):
                continue
            parts = {scope.prefix + name: slices[name] for name in node.input}
            bases = {scope.key(part.input[0]) for part in parts.values()}
            if len(bases) == 1:
                found[scope.prefix + node.output[0]] = Joined(scope, node, parts, bases.pop())
    return found


def picked(what: Joined, view: View, constants: Reader) -> View | None:
    """The view of the Concat's output, where ``view`` is that of the base; None where it is no permutation, or depends on the run."""
    places = np.arange(np.prod(view.shape, dtype=np.int64)).reshape(view.shape)
    taken = []
    for part in what.slices.values():
        index = _index(part, what.scope, len(view.shape), constants)
        if index is None:
            return None
        taken.append(places[index])
    axis = next((int(entry.i) for entry in what.node.attribute if entry.name == "axis"), 0)
    try:
        order = np.concatenate(taken, axis)
    except ValueError:  # the runtime will say so
        return None
    if order.size != places.size or not np.array_equal(np.sort(order, axis=None), places.reshape(-1)):
        return None
    return View(view.holder, (*view.steps, Picked(view.shape, order)), order.shape, view.data_type)


def _index(node: onnx.NodeProto, scope: Scope, rank: int, constants: Reader) -> tuple[slice, ...] | None:
    """What a Slice takes of every axis, None where that is computed at run time."""
    given: dict[str, Sequence[int]] = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    for name, source in zip(("starts", "ends", "axes", "steps"), node.input[1:], strict=False):
        if source:
            key = scope.key(source)
            if constants.view(key) is None:
                return None
            given[name] = _numbers(constants.read(key))
    starts = given["starts"]
    index = [slice(None)] * rank
    for at, (start, end) in enumerate(zip(starts, given["ends"], strict=True)):
        index[given["axes"][at] if "axes" in given else at] = slice(start, end, given["steps"][at] if "steps" in given else 1)
    return tuple(index)


def _numbers(values: NDArray[np.int64]) -> list[int]:
    return [int(value) for value in values.reshape(-1)]
