"""Reconstruction, layer after layer: the kept weights of each are solved again on the pruned model's own inputs.

Two streams walk side by side. At a layer, the current model gives its input as repaired up to here, the dense model what the layer should
give; sampled rows of both become the moments that least squares needs (numerics.reconstruct). Three things make the target better than
the dense output alone:

1. the last branch into an Add is asked for the dense sum less what the other branch gives now, so that it makes up for its error;
2. where an activation is flat in the dense model, any output on the flat side is as good as the dense one: the target there is what the
   solved layer gives, cut to that side, and the layer is solved once more on the same support;
3. the bias gives the dense mean.

What cannot be reconstructed (shared weights, normalisations of their own, odd geometries) takes the channel repair, and so does a
layer whose solution is no better on held-out rows.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph import affine, geometry, layers
from onnxprune.graph.affine import Point
from onnxprune.graph.geometry import Geometry
from onnxprune.graph.joins import Join, join_of, readers
from onnxprune.graph.tensors import Constants
from onnxprune.numerics.moments import Moments
from onnxprune.numerics.reconstruct import Gram, Reconstruction, reconstruct, refit
from onnxprune.numerics.repair import match_channel
from onnxprune.runtime.rows import gather
from onnxprune.runtime.session import Device
from onnxprune.runtime.stream import Batch, Stream
from onnxprune.sequential import Outcome, fold, probe_of, repair_point, variance_error

ROWS = 30_000
"""Rows sampled a layer, over all batches: more gain nothing (docs/reconstruction.md)."""
HELD = 8
"""One batch in so many is held out, to measure a layer's error on and to choose its ridge by."""
ROUNDS = 2
"""How often the target is moved to the flat side of the activation and the layer solved again."""


@dataclass(frozen=True, eq=False)
class Rows:
    """Sampled rows of one layer: inputs x (R, groups * K), dense sums z (R, C) and the other branch's part (R, C), float32."""

    x: NDArray[np.float32]
    z: NDArray[np.float32]
    other: NDArray[np.float32]
    held: NDArray[np.bool_]


def reconstruct_in_order(
    dense: onnx.ModelProto,
    constants: Constants,
    keep: dict[str, int],
    batches: Callable[[], Iterable[Batch]],
    reached: frozenset[str],
    pattern: tuple[int, int] | None,
    seed: int,
    device: Device,
    tick: Callable[[], None],
) -> list[Outcome]:
    """Reconstruct the masked model behind ``constants`` in place, and say what was done at each point.

    ``keep`` maps a weight's name to how many weights its layer keeps; ``reached`` are the tensors that depend on a pruned weight;
    ``pattern`` is the (n, m) that the masks follow, None for none.
    """
    model = constants.model
    original = Constants(dense)
    points = affine.points(layers.find(model))
    affine.insert(model, affine.give_biases(constants, [point for point in points if point.dense_tensor in reached]))
    points = [point for point in affine.points(layers.find(model)) if point.dense_tensor in reached]
    shapes = {id(point): _shape(model, point) for point in points}
    by = readers(model)
    joins = {id(point): join_of(model, constants, by, point.dense_tensor, point.use.node) for point in points if point.use is not None}
    goals, dense_goals = [], []
    for point in points:
        if isinstance(shapes[id(point)], Geometry):
            join = joins[id(point)]
            goals += [_input(model, point), *([join.other] if join.other else [])]
            dense_goals.append(join.output)
        else:
            goals.append(point.tensor)
            dense_goals.append(point.dense_tensor)
    current, reference = Stream(model, batches(), goals, device), Stream(dense, batches(), dense_goals, device)
    outcomes, added = [], []
    rng = np.random.default_rng(seed)
    for point in points:
        shape = shapes[id(point)]
        if isinstance(shape, Geometry):
            join = joins[id(point)]
            rows = _rows(model, point, shape, join, current, reference, rng, device)
            outcomes.append(_solve(constants, original, point, shape, join, rows, keep, pattern))
        else:
            target = fold(reference.advance(probe_of(point, point.dense_tensor, constants)), point)
            outcome, nodes = repair_point(constants, current, point, target, "channel")
            added.extend(nodes)
            reason = () if point.layer is None else (f"channel repair: {shape}",)
            outcomes.append(dataclasses.replace(outcome, notes=(*outcome.notes, *reason)))
        tick()
    affine.insert(model, added)
    return outcomes


def _shape(model: onnx.ModelProto, point: Point) -> Geometry | str:
    """The layer's geometry, or why it takes the channel repair."""
    if point.layer is None or point.use is None:
        return "it is a normalisation of its own"
    if point.shared:
        return "its weight is shared"
    if point.use.bias is None and point.use.norm is None:
        return "its bias is computed at run time"
    return geometry.geometry(model.graph.node[point.use.node], point.use, point.layer.shape)


def _input(model: onnx.ModelProto, point: Point) -> str:
    """The tensor a layer reads beside its weight."""
    assert point.use is not None
    return str(model.graph.node[point.use.node].input[1 if point.use.axis == -2 else 0])


def _rows(
    model: onnx.ModelProto,
    point: Point,
    shape: Geometry,
    join: Join,
    current: Stream,
    reference: Stream,
    rng: np.random.Generator,
    device: Device,
) -> Rows:
    """Sampled rows of the layer over all batches, the same ones of input, dense output and other branch."""
    assert point.use is not None
    name = _input(model, point)
    given = current.values([name, *([join.other] if join.other else [])], point.use.node)
    wanted = reference.values([join.output])
    parts: tuple[list[Any], list[Any], list[Any], list[Any]] = ([], [], [], [])
    per_batch = -(-ROWS // len(given))
    for number, (ours, theirs) in enumerate(zip(given, wanted, strict=True)):
        z = theirs[join.output]
        order = geometry.last_axis(len(z.shape()), shape)
        total = int(np.prod([z.shape()[axis] for axis in order[:-1]], dtype=np.int64))
        at = np.arange(total) if total <= per_batch else np.sort(rng.choice(total, per_batch, replace=False))
        index = geometry.sources(shape, tuple(ours[name].shape()), tuple(z.shape()), at)
        parts[0].append(gather(ours[name], geometry.last_axis(len(ours[name].shape()), shape), index, device))
        parts[1].append(gather(z, order, at[:, None], device))
        if join.other is not None:
            parts[2].append(gather(ours[join.other], order, at[:, None], device))
        held = len(given) > 1 and number % HELD == HELD // 2 % len(given)
        parts[3].append(np.full(len(at), held))
    z_rows = np.concatenate(parts[1])
    other = np.concatenate(parts[2]) if parts[2] else np.zeros_like(z_rows)
    return Rows(np.concatenate(parts[0]), z_rows, other, np.concatenate(parts[3]))


def _solve(
    constants: Constants,
    original: Constants,
    point: Point,
    shape: Geometry,
    join: Join,
    rows: Rows,
    keep: dict[str, int],
    pattern: tuple[int, int] | None,
) -> Outcome:
    """Solve one layer and write it, or its channel repair where that is better on the held-out rows."""
    assert point.layer is not None
    gain, _ = _normalisation(constants, point)
    dense = geometry.to_matrix(original.read(point.layer.weight), shape) * gain[:, None]
    masked = geometry.to_matrix(constants.read(point.layer.weight), shape) * gain[:, None]
    fit, held = _grams(rows, rows.z - rows.other, shape.group)
    measure = held if held.count else fit
    repaired = masked * _gains(measure, masked)[:, None]
    plain = measure.error(repaired, measure.shift(repaired))
    layout = (*pattern, shape.taps) if pattern and keep[point.layer.weight] < point.layer.size else None
    found = reconstruct(fit, held if held.count else None, dense, keep[point.layer.weight], pattern=layout)
    before = measure.error(masked, measure.shift(masked))
    if found.error_after >= plain:
        whole = fit.merge(held)
        weight = masked * _gains(whole, masked)[:, None]
        note = (f"channel repair: the solution's held-out error {found.error_after:.3g} is not below {plain:.3g}",)
        _write(constants, point, shape, weight, whole.shift(weight))
        return _outcome(point, "channel", whole, masked, weight, before, plain, found, note)
    weight, whole = found.weight, fit.merge(held)
    if np.isfinite(join.low) or np.isfinite(join.high):
        for _ in range(ROUNDS):
            whole = _moved(rows, join, whole, weight, shape.group)
            weight = refit(whole, dense, found.mask, found.ridge, weight)
    _write(constants, point, shape, weight, whole.shift(weight))
    return _outcome(point, "reconstruct", whole, masked, weight, before, found.error_after, found, ())


def _grams(rows: Rows, target: NDArray[np.float32], group: int) -> tuple[Gram, Gram]:
    """The moments of the rows to solve on and of those held out."""
    return (
        Gram.from_batch(rows.x[~rows.held], target[~rows.held], group),
        Gram.from_batch(rows.x[rows.held], target[rows.held], group),
    )


def _moved(rows: Rows, join: Join, gram: Gram, weight: NDArray[np.float64], group: int) -> Gram:
    """The moments with the target moved to what the layer gives where the dense activation is flat and stays on its side."""
    blocks = weight.reshape(group, -1, weight.shape[1]).astype(np.float32)
    inputs = rows.x.reshape(len(rows.x), group, -1)
    given = np.einsum("rgk,gck->rgc", inputs, blocks, optimize=True).reshape(len(rows.x), -1) if group > 1 else rows.x @ blocks[0].T
    now = given + gram.shift(weight).astype(np.float32) + rows.other
    target = rows.z
    if np.isfinite(join.low):
        target = np.where(target > join.low, target, np.minimum(now, np.float32(join.low)))
    if np.isfinite(join.high):
        target = np.where(rows.z < join.high, target, np.maximum(now, np.float32(join.high)))
    target = target - rows.other
    mean = target.mean(0, dtype=np.float64)
    centred = target - mean.astype(np.float32)
    inputs32 = rows.x - gram.x_mean.ravel().astype(np.float32)
    if group == 1:
        xy = (inputs32.T @ centred).astype(np.float64)[None]
    else:
        xy = np.einsum("rgk,rgc->gkc", inputs32.reshape(inputs.shape), centred.reshape(len(centred), group, -1), optimize=True).astype(
            np.float64
        )
    return dataclasses.replace(gram, xy=xy, y_mean=mean, yy=np.einsum("rc,rc->c", centred, centred, dtype=np.float64))


def _gains(gram: Gram, weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """The channel repair's gains for a weight (C, K), from the moments of its inputs and of the dense outputs."""
    current = output_moments(gram, weight)
    gains = np.ones(len(weight))
    alive = current.m2 > 1e-12 * np.maximum(gram.yy, 1e-300)
    gains[alive] = match_channel(gram.yy[alive], current.m2[alive])
    return gains


def output_moments(gram: Gram, weight: NDArray[np.float64]) -> Moments:
    """The moments of weight @ x over the rows of the moments of x."""
    g, K = gram.x_mean.shape
    blocks = weight.reshape(g, -1, K)
    m2 = np.einsum("gck,gck->gc", blocks @ gram.xx, blocks).ravel()
    return Moments(gram.count, (blocks @ gram.x_mean[:, :, None]).ravel(), np.maximum(m2, 0.0))


def _normalisation(constants: Constants, point: Point) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gain and shift between what the layer's node gives and the point's dense tensor: those of its BatchNormalization, else 1 and 0."""
    if point.norm is None:
        return np.ones(point.channels), np.zeros(point.channels)
    return affine.normalisation(constants, constants.model.graph.node[point.norm.node], point.norm)


def _write(constants: Constants, point: Point, shape: Geometry, weight: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    """Write a weight (C, K) and a bias (C,), both as seen behind the BatchNormalization if there is one."""
    assert point.layer is not None
    gain, _ = _normalisation(constants, point)
    inverse = np.divide(1.0, gain, out=np.zeros_like(gain), where=gain != 0)
    stored = constants.read(point.layer.weight)
    constants.write(point.layer.weight, geometry.from_matrix(weight * inverse[:, None], shape, stored.shape).astype(stored.dtype))
    affine.write_shift(constants, point, shift)


def _outcome(
    point: Point,
    rule: str,
    gram: Gram,
    masked: NDArray[np.float64],
    weight: NDArray[np.float64],
    before: float,
    after: float,
    found: Reconstruction,
    notes: Sequence[str],
) -> Outcome:
    target = Moments(gram.count, gram.y_mean, gram.yy)
    old, new = output_moments(gram, masked), output_moments(gram, weight)
    return Outcome(
        point,
        rule,
        (1.0, 1.0),
        int((new.m2 <= 1e-12 * np.maximum(gram.yy, 1e-300)).sum()),
        variance_error(target, old),
        variance_error(target, new),
        tuple(notes),
        relative_error=(before, after),
        ridge=found.ridge,
        steps=found.steps,
    )
