"""Nodes and constants that are put beside a model's own to compute gradients."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.graph.tensors import Constants


@dataclass(frozen=True, eq=False)
class Builder:
    """Nodes and constants that are added to a model. ``shapes`` are those of its tensors in one batch."""

    constants: Constants
    shapes: Mapping[str, tuple[int, ...]]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    stored: list[onnx.TensorProto] = field(default_factory=list)

    def make(self, op: str, *inputs: str, outputs: int = 1, **attributes: Any) -> str:
        """A node; the name of its last output. The others are left out."""
        name = f"::gradient/{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [*[f"{name}::rest"] * (outputs - 1), name], name, **attributes))
        return name

    def hold(self, values: Any, dtype: Any = np.float32) -> str:
        """A constant; its name."""
        name = f"::gradient/constant/{len(self.stored)}"
        self.stored.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def read(self, name: str) -> NDArray[Any] | None:
        """The values of a constant of the model, None for what is none."""
        return self.constants.read(name) if name and self.constants.resolve(name) is not None else None

    def varies(self, name: str) -> bool:
        """True for a tensor that is no constant: only such ones are asked for their gradients."""
        return self.constants.resolve(name) is None

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor or constant of the model, empty where it is not known."""
        return self.constants.shape(name) if self.constants.resolve(name) is not None else self.shapes.get(name, ())

    def moved_back(self, gradient: str, source: str, places: str, first: int) -> str:
        """The gradient of ``source``, from that of what took its elements from ``places``, the first element being number ``first``.

        Places below that are of no element.
        """
        size = self.make("Add", self.make("Size", source), self.hold(first, np.int64))
        room = self.make("Expand", self.hold(0.0), self.make("Reshape", size, self.hold([1], np.int64)))
        line = self.hold([-1], np.int64)
        flat = [self.make("Reshape", tensor, line) for tensor in (places, gradient)]
        sums = self.make("ScatterElements", room, *flat, axis=0, reduction="add")
        if first:
            sums = self.make("Slice", sums, self.hold([first], np.int64), self.hold([np.iinfo(np.int64).max], np.int64))
        return self.make("Reshape", sums, self.make("Shape", source))

    def places(self, source: str) -> str:
        """The numbers of a tensor's elements, from 1, in its shape."""
        one = self.hold(1, np.int64)
        numbers = self.make("Range", one, self.make("Add", self.make("Size", source), one), one)
        return self.make("Reshape", numbers, self.make("Shape", source))

    def narrowed(self, gradient: str, source: str, output: str) -> str:
        """The gradient of an input that was spread to the shape of the output."""
        if self.shapes.get(source) == self.shapes.get(output):
            return gradient
        spread = self.make("Expand", self.places(source), self.make("Shape", output))
        return self.moved_back(gradient, source, spread, 1)


def attributes(node: onnx.NodeProto) -> dict[str, Any]:
    """The values of a node's attributes by name."""
    return {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
