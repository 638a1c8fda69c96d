"""Moments of rows, computed where the rows are: a few matrix products in a small ONNX graph, so that K-by-K sums leave the device.

The graph joins the batches it is given, takes their mean away and multiplies, all in float32:

    x = x - mean x,   y = z - other,   y = y - mean y,   xx = x' x,   xy = x' y,   yy = sum y^2

The mean is taken away twice, as float32 sums of thousands of rows give it to five digits only: what the first leaves, the second takes,
and their float64 sum is the mean. Callers add the moments of several calls in float64; up to `ROWS` rows go into one call, since float32
sums of more lose digits, and fewer would move a K-by-K matrix for every small batch.

On the CPU numpy is faster: its x' x is made on one side of the diagonal, half the work of the full product. Milliseconds for all moments
of 8192 rows with 64 outputs, numerics' Gram.from_batch (OpenBLAS, by its syrk) against this graph, best of five, a Xeon with AVX-512 (two
cores: while others used them):

    K       one core: BLAS   graph      two cores: BLAS   graph
    576                 74     125                   60      75
    1152               209     455                  184     247
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnx_graphsurgeon as gs
from numpy.typing import NDArray

from onnxprune.runtime.device import Device
from onnxprune.runtime.session import as_array, open_session, run_bound, to_device

ROWS = 8192
Floats = NDArray[np.float64]
Piece = tuple[Any, Any, Any]
"""Rows of one batch as OrtValues, float32: inputs x (R, g * K), dense outputs z (R, C), the other branch's part (R, C) or None."""
Cross = tuple[int, Floats, Floats, Floats, Floats]
"""Count, x_mean (g, K), y_mean (C,), and about the means xy (g, K, C/g) and yy (C,), float64."""


def joined(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """The pieces in their order, in runs of at most `ROWS` rows; a piece with more is a run by itself, one with none is left out."""
    runs: list[list[Piece]] = []
    filled = 0
    for piece in pieces:
        rows = piece[0].shape()[0]
        if not rows:
            continue
        if not runs or filled + rows > ROWS:
            runs.append([])
            filled = 0
        runs[-1].append(piece)
        filled += rows
    return runs


def moments(run: Sequence[Piece], groups: int, device: Device) -> tuple[int, Floats, Floats, Floats, Floats, Floats]:
    """Count, x_mean (g, K), y_mean (C,), xx (g, K, K), xy (g, K, C/g) and yy (C,) of one run of rows, float64; y is z - other."""
    session = _session(len(run), run[0][2] is not None, groups, None, device)
    made = _sums(session, _feed(run), [*_MEANS, "xx", "xy", "yy"], device)
    count, x_mean, y_mean, xy, yy = _cross(run, groups, made)
    return count, x_mean, y_mean, _cube(made["xx"], groups), xy, yy


def moved_moments(run: Sequence[Piece], weight: Floats, shift: Floats, bounds: tuple[float, float], groups: int, device: Device) -> Cross:
    """The moments, without xx, of one run of rows whose target is moved to the flat side of an activation.

    What the layer gives now is weight @ x + shift + other, weight (C, K) and shift (C,) float64. The target t is z within ``bounds`` (low,
    high, infinite where there is none); min(now, low) where z <= low, max(now, high) where z >= high; y is t - other.
    """
    session = _session(len(run), run[0][2] is not None, groups, bounds, device)
    blocks = np.asarray(weight, np.float32).reshape(groups, -1, weight.shape[1]).transpose(0, 2, 1)
    feed = _feed(run)
    feed["weight"] = to_device(blocks[0] if groups == 1 else blocks, device)
    feed["shift"] = to_device(np.asarray(shift, np.float32), device)
    return _cross(run, groups, _sums(session, feed, [*_MEANS, "xy", "yy"], device))


def shares_inside(run: Sequence[Piece], bounds: tuple[float, float], device: Device) -> Floats:
    """The share of rows whose z lies within ``bounds`` (low, high), for each channel (C,), float64."""
    feed = {f"z{number}": piece[1] for number, piece in enumerate(run)}
    made = _sums(_shares(len(run), bounds, device), feed, ["share"], device)
    return np.asarray(as_array(made["share"]).astype(np.float64))


@functools.lru_cache(maxsize=16)
def _shares(parts: int, bounds: tuple[float, float], device: Device) -> Any:
    """The graph of `shares_inside`, for so many batches."""
    graph = gs.Graph(name="shares", opset=13, ir_version=7)
    graph.inputs = [gs.Variable(f"z{number}", np.float32, [f"rows_{number}", "channels"]) for number in range(parts)]

    def node(op: str, *inputs: Any, **attributes: Any) -> gs.Variable:
        return graph.layer(op=op, inputs=inputs, outputs=[op], attrs=attributes)[0]

    z = node("Concat", *graph.inputs, axis=0) if parts > 1 else graph.inputs[0]
    low, high = (np.array(bound, np.float32) for bound in bounds)
    within = node("Cast", node("And", node("Greater", z, low), node("Less", z, high)), to=onnx.TensorProto.FLOAT)
    share = node("ReduceMean", within, axes=[0], keepdims=0)
    share.name, share.dtype = "share", np.float32
    graph.outputs.append(share)
    return open_session(gs.export_onnx(graph).SerializeToString(), device, lean=True)


def _sums(session: Any, feed: dict[str, Any], names: list[str], device: Device) -> dict[str, Any]:
    """What a graph of this module gives, on the host."""
    return run_bound(session, feed, names, device, names)


_MEANS = ["x_mean", "x_rest", "y_mean", "y_rest"]


def _feed(run: Sequence[Piece]) -> dict[str, Any]:
    """Input name -> OrtValue for a run."""
    feed = {}
    for number, piece in enumerate(run):
        feed.update({f"{name}{number}": value for name, value in zip(("x", "z", "other"), piece, strict=True) if value is not None})
    return feed


def _cross(run: Sequence[Piece], groups: int, made: dict[str, Any]) -> Cross:
    """What the graph gave, in float64."""
    first, rest, y_first, y_rest = (as_array(made[name]).astype(np.float64).ravel() for name in _MEANS)
    count = sum(int(x.shape()[0]) for x, _, _ in run)
    yy = as_array(made["yy"]).astype(np.float64)
    return count, (first + rest).reshape(groups, -1), y_first + y_rest, _cube(made["xy"], groups), yy


def _cube(value: Any, groups: int) -> Floats:
    """A product (K, n) or (g, K, n), float64 (g, K, n)."""
    product = as_array(value)
    return product.reshape(groups, *product.shape[-2:]).astype(np.float64)


@functools.lru_cache(maxsize=16)
def _session(parts: int, with_other: bool, groups: int, bounds: tuple[float, float] | None, device: Device) -> Any:
    """The graph of `moments`, or with ``bounds`` that of `moved_moments`, for so many batches."""
    graph = gs.Graph(name="moments", opset=13, ir_version=7)
    made: dict[str, gs.Variable] = {}

    def node(op: str, *inputs: Any, **attributes: Any) -> gs.Variable:
        return graph.layer(op=op, inputs=inputs, outputs=[op], attrs=attributes)[0]

    def take(name: str, rank: int) -> gs.Variable:
        graph.inputs.append(gs.Variable(name, np.float32, [f"{name}_{axis}" for axis in range(rank)]))
        return graph.inputs[-1]

    def join(name: str) -> gs.Variable:
        pieces = [take(f"{name}{number}", 2) for number in range(parts)]
        return node("Concat", *pieces, axis=0) if parts > 1 else pieces[0]

    def centre(source: gs.Variable, name: str) -> gs.Variable:
        mean = made[f"{name}_mean"] = node("ReduceMean", source, axes=[0], keepdims=1)
        once = node("Sub", source, mean)
        rest = made[f"{name}_rest"] = node("ReduceMean", once, axes=[0], keepdims=1)
        return node("Sub", once, rest)

    def by_group(source: gs.Variable, *perm: int) -> gs.Variable:
        """(R, g * n) with the axes of (R, g, n) in the order ``perm``."""
        return node("Transpose", node("Reshape", source, [0, groups, -1]), perm=perm)

    x, z = join("x"), join("z")
    other = join("other") if with_other else None
    target = z
    if bounds is not None:
        if groups == 1:
            now = node("MatMul", x, take("weight", 2))
        else:
            blocks = node("MatMul", by_group(x, 1, 0, 2), take("weight", 3))
            now = node("Reshape", node("Transpose", blocks, perm=[1, 0, 2]), [0, -1])
        now = node("Add", now, take("shift", 1))
        now = node("Add", now, other) if other else now
        for bound, inside, cut in zip(bounds, ("Greater", "Less"), ("Min", "Max"), strict=True):
            if math.isfinite(bound):
                flat = np.array(bound, np.float32)
                target = node("Where", node(inside, z, flat), target, node(cut, now, flat))
    x, y = centre(x, "x"), centre(node("Sub", target, other) if other else target, "y")
    for name, right in [("xy", y)] if bounds is not None else [("xx", x), ("xy", y)]:
        if groups == 1:
            made[name] = node("Gemm", x, right, transA=1)
        else:
            made[name] = node("MatMul", by_group(x, 1, 2, 0), by_group(right, 1, 0, 2))
    made["yy"] = node("ReduceSumSquare", y, axes=[0], keepdims=0)
    for name, tensor in made.items():
        tensor.name, tensor.dtype = name, np.float32
        graph.outputs.append(tensor)
    return open_session(gs.export_onnx(graph).SerializeToString(), device, lean=True)
