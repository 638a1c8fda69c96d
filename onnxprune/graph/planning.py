"""What a walk through a model in stages needs to know of it, once: who makes what, what is constant, and how long a tensor is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx

from onnxprune.graph.cheap import cheap
from onnxprune.graph.walk import bodies

RANDOM = ("RandomNormal", "RandomUniform", "RandomNormalLike", "RandomUniformLike", "Bernoulli", "Multinomial")
"""Operators that give other values at every run although they read nothing."""
SEQUENCES = ("SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SplitToSequence", "SequenceMap", "Optional")
"""Operators that make no tensor."""


@dataclass(frozen=True)
class Plan:
    """What does not change while the parameters do: which node makes which tensor, which are constant, and what every node
    reads. Nodes in ``again`` are run by every stage that needs them: they make sequences, which cannot be kept between stages, or
    tensors that are cheaper to make than to keep. ``stored`` has the place of every initializer."""

    producer: Mapping[str, int]
    reads: Sequence[frozenset[str]]
    constant: frozenset[int]
    inputs: tuple[str, ...]
    again: frozenset[int]
    stored: Mapping[str, int]

    def ends(self, targets: Iterable[str]) -> dict[str, int]:
        """Tensor that may be kept -> the number of the last node that reads it on the way to the ``targets``.

        A node that is run again reads what it reads for as long as what it gives is read.
        """
        needed: set[int] = set()
        todo = list(targets)
        while todo:
            node = self.producer.get(todo.pop(), -1)
            if node >= 0 and node not in self.constant and node not in needed:
                needed.add(node)
                todo.extend(self.reads[node])
        made: dict[int, list[str]] = {}
        for name, node in self.producer.items():
            made.setdefault(node, []).append(name)
        last: dict[str, int] = {}
        for node in sorted(needed, reverse=True):
            until = max(node, *(last.get(name, -1) for name in made[node])) if node in self.again else node
            for name in self.reads[node]:
                last[name] = max(until, last.get(name, -1))
        return {name: until for name, until in last.items() if self._kept(name)}

    def _kept(self, name: str) -> bool:
        node = self.producer.get(name)
        return name in self.inputs if node is None else node not in self.constant and node not in self.again

    def live(self, stop: int, targets: Iterable[str], ends: Mapping[str, int]) -> set[str]:
        """The tensors that must be kept once the nodes before ``stop`` have run, to reach the ``targets`` later.

        ``ends`` is that of these targets, and of others that were made before: their way does not go by a node behind ``stop``.
        """
        needed = {name for name, until in ends.items() if until >= stop and self.producer.get(name, -1) < stop}
        todo = [name for name in targets if self.producer.get(name, -1) < stop]
        while todo:  # targets that are there already
            name = todo.pop()
            if self._kept(name):
                needed.add(name)
            elif self.producer.get(name, -1) in self.again:
                todo.extend(self.reads[self.producer[name]])
        return needed


def plan(model: onnx.ModelProto, moving: Iterable[str] = ()) -> Plan:
    """The plan of a model's main graph. The tensors ``moving`` are no constants even where they depend on nothing else."""
    held = set(moving)
    graph = model.graph
    producer = {name: number for number, node in enumerate(graph.node) for name in node.output if name}
    stored = {tensor.name: place for place, tensor in enumerate(graph.initializer)}
    initial = set(stored) | {tensor.values.name for tensor in graph.sparse_initializer}
    inputs = tuple(value.name for value in graph.input if value.name not in initial)
    reads = [frozenset(reads_of(node)) for node in graph.node]
    fixed = set(initial)
    constant = set()
    for number, node in enumerate(graph.node):
        if reads[number] <= fixed and node.op_type not in RANDOM and held.isdisjoint(node.output):
            constant.add(number)
            fixed.update(node.output)
    again = frozenset(number for number, node in enumerate(graph.node) if node.op_type in SEQUENCES)
    return Plan(producer, reads, frozenset(constant), inputs, again | cheap(model, fixed), stored)


def reads_of(node: onnx.NodeProto) -> Iterable[str]:
    """The names a node reads, those its bodies take from outside among them."""
    yield from (name for name in node.input if name)
    for body in bodies(node):
        inner = {value.name for value in body.input} | {tensor.name for tensor in body.initializer}
        for child in body.node:
            inner.update(child.output)
        for child in body.node:
            yield from (name for name in reads_of(child) if name not in inner)
        yield from (value.name for value in body.output if value.name not in inner)
