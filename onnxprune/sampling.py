"""Rows of one layer for least squares: its inputs in the current model, and what the dense model has at the same places."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph import geometry
from onnxprune.graph.affine import Point
from onnxprune.graph.geometry import Geometry
from onnxprune.graph.joins import Join
from onnxprune.runtime.rows import gather
from onnxprune.runtime.session import Device
from onnxprune.runtime.stream import Stream

ROWS = 30_000
"""Rows sampled a layer, over all batches: more gain nothing (docs/reconstruction.md)."""
HELD = 8
"""One batch in so many is held out, to measure a layer's error on and to choose its ridge by."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Sampled rows, float32: inputs x (R, groups * K), dense outputs or sums z (R, C), and the other branch's part of them (R, C).

    The first ``fit`` rows are there to solve on, the rest come from other batches and are held out.
    """

    x: NDArray[np.float32]
    z: NDArray[np.float32]
    other: NDArray[np.float32]
    fit: int


def input_of(model: onnx.ModelProto, point: Point) -> str:
    """The tensor a layer reads beside its weight."""
    assert point.use is not None
    return str(model.graph.node[point.use.node].input[1 if point.use.axis == -2 else 0])


def sample_rows(
    model: onnx.ModelProto,
    point: Point,
    shape: Geometry,
    join: Join,
    current: Stream,
    reference: Stream,
    rng: np.random.Generator,
    device: Device,
) -> Rows:
    """Walk both streams to a layer and gather the same rows of its input, of the dense output and of the other branch."""
    assert point.use is not None
    name = input_of(model, point)
    given = current.values([name, *([join.other] if join.other else [])], point.use.node)
    wanted = reference.values([join.output])
    apart = {number for number in range(len(given)) if len(given) > 1 and number % HELD == HELD // 2 % len(given)}
    order = sorted(range(len(given)), key=lambda number: (number in apart, number))
    places = {number: _places(shape, wanted[number][join.output], -(-ROWS // len(given)), rng) for number in range(len(given))}
    total = sum(len(at) for at in places.values())
    x = z = other = np.zeros((0, 0), np.float32)
    filled = fit = 0
    for number in order:
        ours, dense, at = given[number], wanted[number][join.output], places[number]
        index = geometry.sources(shape, tuple(ours[name].shape()), tuple(dense.shape()), at)
        inputs = gather(ours[name], geometry.last_axis(len(ours[name].shape()), shape), index, device)
        axes = geometry.last_axis(len(dense.shape()), shape)
        outputs = gather(dense, axes, at[:, None], device)
        if not filled:
            x, z = np.empty((total, inputs.shape[1]), np.float32), np.empty((total, outputs.shape[1]), np.float32)
            other = np.zeros_like(z)
        rows = slice(filled, filled + len(at))
        x[rows], z[rows] = inputs, outputs
        if join.other is not None:
            other[rows] = gather(ours[join.other], axes, at[:, None], device)
        filled += len(at)
        fit += 0 if number in apart else len(at)
    return Rows(x, z, other, fit)


def _places(shape: Geometry, value: Any, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Output rows of one batch: all, or ``most`` drawn without repetition, ascending, int64."""
    dims = [value.shape()[axis] for axis in geometry.last_axis(len(value.shape()), shape)[:-1]]
    total = int(np.prod(dims, dtype=np.int64))
    return np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))
