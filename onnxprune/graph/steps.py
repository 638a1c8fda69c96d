"""From a node that rearranges, casts or dequantises a constant to the step of a view; None where it is not one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.graph.views import FLOATS, Grid, Moved, Rounded, Scaled, Shaped, Step, Typed, View, limits
from onnxprune.graph.walk import label

INTEGERS = {
    "QLinearConv": ((3, 4, 5),),
    "QLinearMatMul": ((3, 4, 5), (0, 1, 2)),
    "ConvInteger": ((1, -1, 3),),
    "MatMulInteger": ((1, -1, 3), (0, -1, 2)),
}
"""Operators that take integers beside their scale and zero point: the input positions of the three, of every side that may be constant."""
OPS = ("Identity", "Transpose", "Cast", "Reshape", "Squeeze", "Unsqueeze", "Flatten", "QuantizeLinear", "DequantizeLinear")


def scaled_name(node: onnx.NodeProto, index: int) -> str:
    """The name under which Constants gives the floats that the integers of input ``index`` stand for."""
    return f"{label(node)}::input {index}"


class Reader(Protocol):
    """What is asked of the other constants: their views and values by name."""

    def view(self, name: str) -> View | None:
        """The view of a constant, None for no constant."""

    def read(self, name: str) -> NDArray[Any]:
        """Its values."""


def steps_of(node: onnx.NodeProto, view: View, names: Sequence[str], constants: Reader) -> View | None:
    """The view of a node's output, where its first input is the constant ``view`` and all of its inputs have the given names.

    For an operator of INTEGERS, of the floats that its weight stands for; the names are those of weight, scale and zero point.
    """
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if node.op_type in INTEGERS:
        scale, zero = names[1], names[2]
        scale_view, zero_view = constants.view(scale) if scale else None, constants.view(zero) if zero else None
        if limits(view.data_type)[0] is None or (zero and zero_view is None):
            return None
        axis = 0 if node.op_type in ("QLinearConv", "ConvInteger") else -1
        grid = Grid(scale if scale_view is not None else "", zero, axis, 0, "", view.data_type, onnx.TensorProto.FLOAT)
        return _with(view, Scaled(grid), view.shape, onnx.TensorProto.FLOAT)
    if node.op_type == "Identity":
        return view
    if node.op_type == "Transpose":
        perm = tuple(attributes.get("perm", range(len(view.shape))[::-1]))
        return _with(view, Moved(perm), tuple(view.shape[axis] for axis in perm))
    if node.op_type == "Cast":
        kind = int(attributes.get("to", 0))
        if view.data_type not in FLOATS or kind not in FLOATS:
            return None
        return view if kind == view.data_type else _with(view, Typed(view.data_type, kind), view.shape, kind)
    if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
        return _quantised(node, view, names, constants, attributes)
    shape = _shape_of(node, view, names, constants, attributes)
    return None if shape is None else _with(view, Shaped(view.shape, shape), shape)


def _with(view: View, step: Step, shape: tuple[int, ...], data_type: int | None = None) -> View:
    return replace(view, steps=(*view.steps, step), shape=shape, data_type=view.data_type if data_type is None else data_type)


def _shape_of(
    node: onnx.NodeProto, view: View, names: Sequence[str], constants: Reader, attributes: dict[str, Any]
) -> tuple[int, ...] | None:
    """The shape that Reshape, Flatten, Squeeze or Unsqueeze gives a constant, None when it depends on the run."""
    shape = view.shape
    if node.op_type == "Flatten":
        axis = attributes.get("axis", 1)
        axis += len(shape) if axis < 0 else 0
        return int(np.prod(shape[:axis], dtype=np.int64)), int(np.prod(shape[axis:], dtype=np.int64))
    given = attributes.get("shape" if node.op_type == "Reshape" else "axes")
    if given is None and len(names) > 1 and names[1]:
        if constants.view(names[1]) is None:
            return None
        given = constants.read(names[1]).reshape(-1).tolist()
    if node.op_type == "Reshape":
        if given is None:
            return None
        keep = not attributes.get("allowzero", 0)
        dims = [shape[axis] if dim == 0 and keep and axis < len(shape) else int(dim) for axis, dim in enumerate(given)]
        empty = np.empty(shape, np.bool_)
        try:
            return empty.reshape(dims).shape
        except ValueError:  # the runtime will say so
            return None
    if node.op_type == "Squeeze":
        gone = {axis % len(shape) for axis in given} if given is not None else {axis for axis, dim in enumerate(shape) if dim == 1}
        return tuple(dim for axis, dim in enumerate(shape) if axis not in gone)
    if given is None:
        return None
    rank = len(shape) + len(given)
    new = {axis % rank for axis in given}
    rest = iter(shape)
    return tuple(1 if axis in new else next(rest) for axis in range(rank))


def _quantised(node: onnx.NodeProto, view: View, names: Sequence[str], constants: Reader, attributes: dict[str, Any]) -> View | None:
    """The view behind QuantizeLinear or DequantizeLinear, when scale and zero point are constants too."""
    zero = names[2] if len(names) > 2 else ""
    scale_view, zero_view = constants.view(names[1]) if len(names) > 1 else None, constants.view(zero) if zero else None
    if scale_view is None or (zero and zero_view is None):
        return None
    axis = int(attributes.get("axis", 1))
    if node.op_type == "QuantizeLinear":
        kind = zero_view.data_type if zero_view is not None else int(attributes.get("output_dtype", 0)) or onnx.TensorProto.UINT8
        if view.data_type not in FLOATS:
            return None
        grid = Grid(names[1], zero, axis, int(attributes.get("block_size", 0)), node.output[0], kind, view.data_type)
        return _with(view, Rounded(grid), view.shape, kind)
    if limits(view.data_type)[0] is None and "FLOAT8" not in onnx.TensorProto.DataType.Name(view.data_type):
        return None
    wide = int(attributes.get("output_dtype", 0)) or scale_view.data_type
    if wide not in FLOATS:
        return None
    grid = Grid(names[1], zero, axis, int(attributes.get("block_size", 0)), node.output[0], view.data_type, wide)
    return _with(view, Scaled(grid), view.shape, wide)
