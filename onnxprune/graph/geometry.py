"""A layer as a matrix: its weight as (outputs, inputs) and the input elements behind every output element.

Output element o of a convolution reads, for kernel position k, the input position i = o*stride + k*dilation - pad (Conv), or
the i with o = i*stride + k*dilation - pad where there is one (ConvTranspose). Gemm and MatMul have one kernel position, the row itself.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from onnxprune.graph.layers import Use

Index = NDArray[np.int64]
KNOWN = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""The operators whose geometry is known."""


@dataclass(frozen=True)
class Geometry:
    """How a use reads its input. ``kernel``, ``strides``, ``dilations`` have one entry a spatial axis, and are empty for Gemm and MatMul.

    ``pads`` are those at the beginning; None where auto_pad or output_shape make them depend on the sizes. ``alpha`` is Gemm's.
    """

    op: str
    group: int
    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...] | None
    auto_pad: str
    extra: tuple[int, ...]
    transposed: bool
    left: bool
    alpha: float

    @property
    def taps(self) -> int:
        """Kernel positions."""
        return int(np.prod(self.kernel, dtype=np.int64))


def geometry(node: onnx.NodeProto, use: Use, shape: tuple[int, ...]) -> Geometry | str:
    """The geometry of a use of a weight of the given shape, or the reason why there is none."""
    if use.op not in KNOWN:
        return f"{use.op} is not solved"
    attributes = {entry.name: helper.get_attribute_value(entry) for entry in node.attribute}
    if use.op == "MatMul" and len(shape) != 2:
        return "its weight is a batch of matrices"
    if use.op == "MatMul" and use.axis == -1 and use.weight_axis != len(shape) - 1:
        return "its input is a vector"
    if use.op == "Gemm" and use.axis == -2:
        return "its weight is on Gemm's left side"
    if use.op == "Gemm" and attributes.get("transA", 0):
        return "Gemm transposes its input"
    if use.op == "Gemm" and attributes.get("alpha", 1.0) == 0:
        return "Gemm multiplies it by 0"
    spatial = len(shape) - 2 if use.op in ("Conv", "ConvTranspose") else 0
    auto_pad = attributes.get("auto_pad", b"NOTSET").decode(errors="replace")
    pads = tuple(attributes.get("pads", [0] * (2 * spatial)))[:spatial]
    open_pads = auto_pad in ("SAME_UPPER", "SAME_LOWER") or "output_shape" in attributes
    return Geometry(
        op=use.op,
        group=use.group,
        kernel=tuple(shape[2:]) if spatial else (),
        strides=tuple(attributes.get("strides", [1] * spatial)),
        dilations=tuple(attributes.get("dilations", [1] * spatial)),
        pads=None if open_pads else (0,) * spatial if auto_pad == "VALID" else pads,
        auto_pad=auto_pad,
        extra=tuple(attributes.get("output_padding", [0] * spatial)),
        transposed=bool(use.op == "Gemm" and not attributes.get("transB", 0)) or (use.op == "MatMul" and use.axis == -1),
        left=use.op == "MatMul" and use.axis == -2,
        alpha=float(attributes.get("alpha", 1.0)) if use.op == "Gemm" else 1.0,
    )


def to_matrix(weight: NDArray[Any], shape: Geometry) -> NDArray[np.float64]:
    """The weight as (outputs, K) float64, K = (inputs of the group, *kernel), so that output = matrix @ inputs."""
    values = weight.astype(np.float64)
    if shape.op == "ConvTranspose":
        inner, outer = weight.shape[0] // shape.group, weight.shape[1]
        blocks = values.reshape(shape.group, inner, outer, shape.taps).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(blocks).reshape(shape.group * outer, inner * shape.taps)
    if shape.transposed:
        values = values.T
    return np.ascontiguousarray(values.reshape(len(values), -1)) * shape.alpha


def from_matrix(matrix: NDArray[np.float64], shape: Geometry, stored: tuple[int, ...]) -> NDArray[np.float64]:
    """The weight as it is stored, from (outputs, K)."""
    if shape.op == "ConvTranspose":
        inner, outer = stored[0] // shape.group, stored[1]
        blocks = matrix.reshape(shape.group, outer, inner, shape.taps).transpose(0, 2, 1, 3)
        return np.ascontiguousarray(blocks).reshape(stored)
    values = matrix / shape.alpha
    return np.ascontiguousarray(values.T) if shape.transposed else values.reshape(stored)


def last_axis(rank: int, shape: Geometry) -> list[int]:
    """The permutation that brings the channels of the layer's input, or output, to the last axis."""
    if shape.op in ("Conv", "ConvTranspose"):
        return [0, *range(2, rank), 1]
    return [*range(rank - 2), rank - 1, rank - 2] if shape.left else list(range(rank))


def sources(shape: Geometry, given: tuple[int, ...], made: tuple[int, ...], at: Index) -> Index:
    """For output rows ``at`` (R,), the input rows behind them by kernel position, int64 (R, taps).

    Rows count the elements of a channel in the order of last_axis(). ``given`` and ``made`` are the shapes of the layer's input and output.
    An input row equal to the number of rows stands for the padding around the input.
    """
    if not shape.kernel:
        return at[:, None]
    inside, outside = given[2:], made[2:]
    per_sample = int(np.prod(outside, dtype=np.int64))
    sample, position = np.divmod(at, per_sample)
    grid = np.unravel_index(position, outside)
    taps = np.unravel_index(np.arange(shape.taps), shape.kernel)
    pads = shape.pads if shape.pads is not None else _same_pads(shape, inside, outside)
    row = np.broadcast_to(sample[:, None], (len(at), shape.taps)).astype(np.int64)
    valid = np.ones(row.shape, np.bool_)
    for axis, size in enumerate(inside):
        step = taps[axis][None, :] * shape.dilations[axis] - pads[axis]
        if shape.op == "Conv":
            place = grid[axis][:, None] * shape.strides[axis] + step
        else:
            place, rest = np.divmod(grid[axis][:, None] - step, shape.strides[axis])
            valid &= rest == 0
        valid &= (place >= 0) & (place < size)
        row = row * size + place
    rows = given[0] * int(np.prod(inside, dtype=np.int64))
    return np.where(valid, row, rows).astype(np.int64)


def _same_pads(shape: Geometry, inside: tuple[int, ...], outside: tuple[int, ...]) -> tuple[int, ...]:
    """The pads at the beginning that make the output the size it is: half of all, the odd one at the end for SAME_UPPER."""
    pads = []
    for axis, (size, made) in enumerate(zip(inside, outside, strict=True)):
        reach = (shape.kernel[axis] - 1) * shape.dilations[axis] + 1
        if shape.op == "Conv":
            total = max((made - 1) * shape.strides[axis] + reach - size, 0)
        else:
            total = shape.strides[axis] * (size - 1) + shape.extra[axis] + reach - made
        pads.append(total // 2 if (shape.auto_pad == "SAME_UPPER") == (total >= 0) or total % 2 == 0 else total - total // 2)
    return tuple(pads)
