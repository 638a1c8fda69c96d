"""Rows of one layer for least squares: its inputs in the current model, and what the dense model has at the same places."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph import geometry
from onnxprune.graph.geometry import Geometry
from onnxprune.graph.joins import Join
from onnxprune.graph.points import Point
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.targets import moved, with_targets
from onnxprune.runtime.device import Device
from onnxprune.runtime.grams import Piece, joined, moments, moved_moments, shares_inside
from onnxprune.runtime.rows import gather
from onnxprune.runtime.session import as_array
from onnxprune.runtime.several import several
from onnxprune.runtime.stream import Stream
from onnxprune.sequential import NOTHING

ROWS, AN_INPUT, FLOPS = 20_000, 7, 1.3e10
"""Rows sampled a layer, over all batches, at most. Where an output has many inputs so many for each are enough (an eighth is held out, and
from six on `ridges` trusts them), or as many as moments of so many flops take: more gain nothing (docs/reconstruction.md)."""
HELD = 8
"""One batch in so many is held out, to measure a layer's error on and to choose its ridge by."""
GRAPHS = {"cpu": False, "cuda": True}
"""By the kind of device, whether moments come from ONNX graphs where the rows are, or from BLAS (figures in runtime.grams)."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Sampled rows, float32: inputs x (R, groups * K), dense outputs or sums z (R, C), and the other branch's part of them (R, C).

    The first ``fit`` rows are there to solve on, the rest come from other batches and are held out.
    """

    x: NDArray[np.float32]
    z: NDArray[np.float32]
    other: NDArray[np.float32]
    fit: int

    def grams(self, groups: int) -> tuple[Gram, Gram]:
        """The moments of the inputs and of z - other, of the rows to solve on and of those held out."""
        target = self.z - self.other
        parts = (slice(None, self.fit), slice(self.fit, None))
        fit, held = (Gram.from_batch(self.x[rows], target[rows], groups) for rows in parts)
        return fit, held

    def inside(self, low: float, high: float) -> NDArray[np.float64]:
        """The share of all rows where z is above ``low`` and below ``high``, for each channel (C,)."""
        return np.asarray(((self.z > low) & (self.z < high)).mean(0))

    def apart(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The inputs and dense outputs of the rows that are held out."""
        return self.x[self.fit :], self.z[self.fit :]

    def moved(self, gram: Gram, weight: NDArray[np.float64], low: float, high: float) -> Gram:
        """The moments ``gram`` of all rows with the target moved to the flat side of the activation (numerics.targets.moved)."""
        return moved(gram, self.x, self.z, self.other, weight, low, high)


@dataclass(frozen=True, eq=False)
class RowsThere:
    """The same as `Rows`, batch by batch and still on the device, where graphs make the moments."""

    fit: Sequence[Piece]
    held: Sequence[Piece]
    device: Device

    def grams(self, groups: int) -> tuple[Gram, Gram]:
        """As `Rows.grams`."""
        like = (self.fit or self.held)[0]
        return _gram_there(self.fit, groups, like, self.device), _gram_there(self.held, groups, like, self.device)

    def inside(self, low: float, high: float) -> NDArray[np.float64]:
        """As `Rows.inside`."""
        runs = joined([*self.fit, *self.held])
        counts = [sum(z.shape()[0] for _, z, _ in run) for run in runs]
        shares = [shares_inside(run, (low, high), self.device) for run in runs]
        return np.average(shares, axis=0, weights=counts)

    def apart(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """As `Rows.apart`."""
        x, z = (np.concatenate([as_array(piece[part]) for piece in self.held]) for part in (0, 1))
        return x, z

    def moved(self, gram: Gram, weight: NDArray[np.float64], low: float, high: float) -> Gram:
        """As `Rows.moved`."""
        groups, shift = len(gram.x_mean), gram.shift(weight)
        runs = joined([*self.fit, *self.held])
        return with_targets(gram, [moved_moments(run, weight, shift, (low, high), groups, self.device) for run in runs])


def gram_of(pieces: Sequence[Piece], groups: int, device: Device) -> Gram:
    """The moments of the rows of one batch or more, without another branch: by graphs where they are, or by BLAS."""
    if GRAPHS[device.kind]:
        return _gram_there(pieces, groups, pieces[0], device)
    x, z = (np.concatenate([as_array(piece[part]) for piece in pieces]) for part in (0, 1))
    return Gram.from_batch(x, z, groups)


def _gram_there(pieces: Sequence[Piece], groups: int, like: Piece, device: Device) -> Gram:
    """The moments by graphs; of no rows, those of rows such as ``like``."""
    runs = joined(pieces)
    if not runs:
        x, z, _ = like
        return Gram.from_batch(np.zeros((0, x.shape()[1])), np.zeros((0, z.shape()[1])), groups)
    whole = Gram(*moments(runs[0], groups, device))
    for run in runs[1:]:
        whole = whole.merge(Gram(*moments(run, groups, device)), overwrite=True)
    return whole


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
) -> tuple[Rows | RowsThere | str, Join]:
    """Walk both streams to a layer and gather the same rows of its input, of the dense output and of the other branch.

    Returns the rows, or why there are none, and the join that they are for: without the other branch where its shape is another.
    """
    assert point.use is not None
    name = input_of(model, point)
    given = current.values([name, *([join.other] if join.other else [])], point.use.node)
    wanted = reference.values(list(dict.fromkeys([point.dense_tensor, join.output])))
    if not all(_paired(shape, ours[name], theirs[point.dense_tensor]) for ours, theirs in zip(given, wanted, strict=True)):
        return "the values decide which rows it has, and the pruned model has others than the dense one", join
    if join.other is not None and any(
        len({tuple(value.shape()) for value in (ours[join.other], theirs[join.output], theirs[point.dense_tensor])}) > 1
        for ours, theirs in zip(given, wanted, strict=True)
    ):
        join = Join(point.dense_tensor)  # an Add that broadcasts: the layer is asked for its own output alone
    apart = {number for number in range(len(given)) if len(given) > 1 and number % HELD == HELD // 2 % len(given)}
    width = tuple(given[0][name].shape())
    most = rows_of(width[geometry.last_axis(len(width), shape)[-1]] // shape.group * shape.taps)
    places = [_places(shape, batch[join.output], -(-most // len(given)), rng) for batch in wanted]

    def piece(number: int) -> Piece:
        ours, dense, at = given[number], wanted[number][join.output], places[number]
        index = geometry.sources(shape, tuple(ours[name].shape()), tuple(dense.shape()), at)
        axes = geometry.last_axis(len(dense.shape()), shape)
        return (
            gather(ours[name].value(), geometry.last_axis(len(ours[name].shape()), shape), index, device),
            gather(dense.value(), axes, at[:, None], device),
            gather(ours[join.other].value(), axes, at[:, None], device) if join.other is not None else None,
        )

    fit = [number for number in range(len(given)) if number not in apart]
    if not any(len(places[number]) for number in fit):
        return NOTHING, join
    if GRAPHS[device.kind]:
        return RowsThere([piece(number) for number in fit], [piece(number) for number in sorted(apart)], device), join
    order = [*fit, *sorted(apart)]
    ends = dict(zip(order, accumulate(len(places[number]) for number in order), strict=True))
    first = piece(order[0])
    x, z = (np.empty((ends[order[-1]], part.shape()[1]), np.float32) for part in first[:2])
    other = np.empty_like(z) if join.other is not None else np.zeros_like(z)

    def put(number: int, made: Piece) -> None:
        rows = slice(ends[number] - len(places[number]), ends[number])
        for whole, part in zip((x, z, other), made, strict=True):
            if part is not None:
                whole[rows] = as_array(part)

    put(order[0], first)
    del first
    for _ in several(lambda number: put(number, piece(number)), order[1:], device.at_once):
        pass
    return Rows(x, z, other, sum(len(places[number]) for number in fit)), join


def rows_of(inputs: int) -> int:
    """How many rows are sampled at most where an output has so many inputs."""
    return min(ROWS, max(AN_INPUT * inputs, int(FLOPS / inputs**2)))


def _paired(shape: Geometry, given: Any, made: Any) -> bool:
    """True when the input of a layer, in one model, can be that of an output in another: of as many samples and positions."""
    inside, outside = ([value.shape()[axis] for axis in geometry.last_axis(len(value.shape()), shape)[:-1]] for value in (given, made))
    return inside[:1] == outside[:1] and len(inside) == len(outside) if shape.kernel else inside == outside


def dense_rows(
    model: onnx.ModelProto, point: Point, shape: Geometry, stream: Stream, most: int, rng: np.random.Generator, device: Device
) -> list[Piece]:
    """Walk one stream up to a layer, and gather of every batch the same rows of its input (R, groups * K) and of its output (R, C).

    ``most`` rows over all batches. The layer itself has not run in the stream, so its parameters may still change there.
    """
    assert point.use is not None
    name = input_of(model, point)
    inputs = stream.values([name], point.use.node)
    rows = []
    for batch, (output,) in zip(inputs, stream.finish([point.dense_tensor], len(inputs)), strict=True):
        given = batch[name]
        at = _places(shape, output, -(-most // len(inputs)), rng)
        index = geometry.sources(shape, tuple(given.shape()), tuple(output.shape()), at)
        x = gather(given.value(), geometry.last_axis(len(given.shape()), shape), index, device)
        y = gather(output.value(), geometry.last_axis(len(output.shape()), shape), at[:, None], device)
        rows.append((x, y, None))
    return rows


def _places(shape: Geometry, value: Any, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Output rows of one batch: all, or ``most`` drawn without repetition, ascending, int64."""
    dims = [value.shape()[axis] for axis in geometry.last_axis(len(value.shape()), shape)[:-1]]
    total = int(np.prod(dims, dtype=np.int64))
    return np.arange(total) if total <= most else np.sort(rng.choice(total, most, replace=False))
