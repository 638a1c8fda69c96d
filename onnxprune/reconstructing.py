"""Reconstruction, layer after layer: the kept weights of each are solved again on the pruned model's own inputs.

Two streams walk side by side. At a layer, the current model gives its input as repaired up to here, the dense model what the layer should
give; sampled rows of both become the moments that least squares needs (numerics.gram). Three things make the target better than
the dense output alone:

1. the last branch into an Add is asked for the dense sum less what the other branch gives now, so that it makes up for its error;
2. where an activation is flat in the dense model, any output on the flat side is as good as the dense one: the target there is what the
   solved layer gives, cut to that side, and the layer is solved once more on the same support;
3. the bias gives the dense mean.

The channels share the layer's weights by how much the next layers read of them (weighing), and errors count them so. Where it is known
what their errors are worth together in the outputs (metrics), they choose the last supports and make up for each other by that.

What cannot be reconstructed (shared weights, normalisations of their own, odd geometries) takes the channel repair. A layer whose
solution is no better on held-out rows than that, or than a new bias alone, takes it too.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph import affine, geometry, layers
from onnxprune.graph.geometry import Geometry
from onnxprune.graph.joins import Join, join_of
from onnxprune.graph.points import Point
from onnxprune.graph.points import points as points_of
from onnxprune.graph.tensors import Constants
from onnxprune.graph.uses import BIAS
from onnxprune.graph.walk import readers
from onnxprune.metrics import metrics
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.metric import Cosines, metric_of
from onnxprune.numerics.moments import Moments
from onnxprune.numerics.problem import problem_of
from onnxprune.numerics.reconstruct import Reconstruction, reconstruct, refit
from onnxprune.numerics.targets import channel_gains, importance, output_moments, silent
from onnxprune.numerics.together import solve_together
from onnxprune.runtime.device import Device
from onnxprune.runtime.spilling import Memory
from onnxprune.runtime.stream import Batch, Stream
from onnxprune.sampling import Rows, RowsThere, input_of, sample_rows
from onnxprune.scores import factor_of, scores_of
from onnxprune.sequential import Outcome, repair_point, unrepaired, variance_error, variance_ratio
from onnxprune.statistics import fold, probe_of
from onnxprune.weighing import weigh
from onnxprune.writing import fits, write_layer

ROUNDS = 1
"""How often the target is moved to the flat side of the activation and the layer solved again."""


def reconstruct_in_order(
    dense: onnx.ModelProto,
    constants: Constants,
    keep: dict[str, int],
    batches: Callable[[], Iterable[Batch]],
    some: Iterable[Batch],
    reached: frozenset[str],
    pattern: tuple[int, int] | None,
    include: Sequence[str],
    seed: int,
    device: Device,
    tick: Callable[[], None],
    memory: Memory,
    known: dict[str, Cosines | None],
) -> list[Outcome]:
    """Reconstruct the masked model behind ``constants`` in place, and say what was done at each point.

    ``batches`` gives the samples, ``some`` are those that gradients are measured on.
    ``keep`` maps a weight's name to how many weights its layer keeps; ``reached`` are the tensors that depend on a pruned weight;
    ``pattern`` is the (n, m) that the masks follow, None for none; ``include`` is as in layers.find. ``memory`` is that of both streams.
    ``known`` has what is known of the dense model's gradients (metrics), and gets what is found out.
    """
    model = constants.model
    original = Constants(dense)
    points = points_of(layers.find(model, include))
    solvable = [point for point in points if point.dense_tensor in reached and isinstance(shape_of(constants, point), Geometry)]
    affine.insert(model, affine.give_biases(constants, solvable))
    points = [point for point in points_of(layers.find(model, include)) if point.dense_tensor in reached]
    shapes = {id(point): shape_of(constants, point) for point in points}
    by = readers(model)
    joins = {id(point): join_of(model, constants, by, point.dense_tensor, point.use.node) for point in points if point.use is not None}
    goals: list[str] = []
    dense_goals: list[str] = []
    for point in points:
        if isinstance(shapes[id(point)], Geometry):
            join = joins[id(point)]
            goals += [input_of(model, point), *([join.other] if join.other else [])]
            dense_goals += dict.fromkeys([point.dense_tensor, join.output])
        else:
            goals.append(point.tensor)
            dense_goals.append(point.dense_tensor)
    current, reference = (Stream(*walk, device, memory) for walk in ((model, batches(), goals), (dense, batches(), dense_goals)))
    places = {point.use.node: (point, shape) for point in points if point.use and isinstance(shape := shapes[id(point)], Geometry)}
    read = weigh(constants, original, places)
    scores = scores_of(model, points)
    together = [point for point, shape in places.values() if shape.group == 1 and point.dense_tensor not in scores]
    worth = metrics(dense, together, some, seed, device.alone, known)
    outcomes, added = [], []
    rng = np.random.default_rng(seed)
    for point in points:
        shape = shapes[id(point)]
        if isinstance(shape, Geometry):
            rows, join = sample_rows(model, point, shape, joins[id(point)], current, reference, rng, device)
            if isinstance(rows, str):
                outcomes.append(unrepaired(point, rows))
            else:
                weights, last = read[point.dense_tensor], point.dense_tensor in scores
                cosines = worth.get(point.dense_tensor)
                outcomes.append(_solve(constants, original, point, shape, join, rows, weights, cosines, keep, pattern, last=last))
            del rows  # before the next layer's come
        else:
            target = fold(reference.advance(probe_of(point, point.dense_tensor, constants)), point)
            outcome, nodes = repair_point(constants, current, point, target, "channel")
            added.extend(nodes)
            reason = () if point.layer is None else (f"channel repair: {shape}",)
            outcomes.append(dataclasses.replace(outcome, notes=(*outcome.notes, *reason)))
        tick()
    affine.insert(model, added)
    return outcomes


def shape_of(constants: Constants, point: Point) -> Geometry | str:
    """The layer's geometry, or why it takes the channel repair."""
    if point.layer is None or point.use is None:
        return "it is a normalisation of its own"
    if point.shared:
        return "its weight is shared"
    view = constants.view(point.layer.seen)
    if view is not None and view.on_grid:
        return "its weights are integers"
    node, use = constants.model.graph.node[point.use.node], point.use
    at = BIAS.get(use.op, len(node.input))
    if len(node.input) > at and node.input[at] and (use.bias is None or use.bias.node != use.node):
        return "the bias of its node is not one number per channel, or is computed at run time"
    return geometry.geometry(node, use, point.layer.shape)


def _solve(
    constants: Constants,
    original: Constants,
    point: Point,
    shape: Geometry,
    join: Join,
    rows: Rows | RowsThere,
    read: NDArray[np.float64],
    cosines: Cosines | None,
    keep: dict[str, int],
    pattern: tuple[int, int] | None,
    *,
    last: bool,
) -> Outcome:
    """Solve one layer and write it, or its channel repair where that is better on the held-out rows.

    ``last``: its outputs are class scores, which get their confidence back: no activation cuts them, no sum takes them in.
    """
    assert point.layer is not None
    gain, _ = affine.folded(constants, point)
    dense = geometry.to_matrix(original.read(point.layer.seen), shape) * gain[:, None]
    masked = geometry.to_matrix(constants.read(point.layer.seen), shape) * gain[:, None]
    fit, held = rows.grams(shape.group)
    if not all(gram.finite for gram in (fit, held)):
        return unrepaired(point, "its inputs or outputs overflow float32")
    measure = held if held.count else fit
    power = measure.power(masked)
    gains = channel_gains(measure, masked, power)
    repaired = masked * gains[:, None]
    counts = importance(read, rows.inside(join.low, join.high))
    metric = None if cosines is None else metric_of(cosines, counts)
    counts = counts if metric is None else metric.counts
    before = measure.error(masked, measure.shift(masked), counts, power)
    plain = measure.error(repaired, measure.shift(repaired), counts, gains**2 * power)
    least = min(before, plain)
    layout = (*pattern, shape.taps) if pattern and keep[point.layer.weight] < point.layer.size else None
    whole, apart = (fit.merge(held), (fit, held)) if held.count else (fit, None)
    found = reconstruct(whole, apart, dense, keep[point.layer.weight], pattern=layout, importance=counts, unseen=last, metric=metric)
    better = found.error_after < least
    factor = factor_of(found.blind, fit, held, *rows.apart()) if last and better and apart else 1.0
    after = held.error(factor * found.blind, fit.shift(factor * found.blind), counts) if factor > 1 else found.error_after
    del fit, held, apart, measure  # hundreds of megabytes in a large layer
    weight = factor * found.weight
    if not (better and fits(constants, point, weight, whole)):
        gains = channel_gains(whole, masked)
        weight = masked * gains[:, None]
        if not fits(constants, point, weight, whole):
            return unrepaired(point, "no solution fits the type of its weights")
        why = f"held-out error {found.error_after:.3g} is not below {least:.3g}" if not better else "weights do not fit their type"
        note = (f"channel repair: the solution's {why}",)
        write_layer(constants, point, shape, weight, whole.shift(weight))
        outcome = _outcome(point, "channel", whole, masked, weight, before, plain, found, note)
        return dataclasses.replace(outcome, gain=(float(gains.min()), float(gains.max())))
    settled = found.settled if factor == 1 else None
    if np.isfinite(join.low) or np.isfinite(join.high):
        for _ in range(ROUNDS):
            again = rows.moved(whole, weight, join.low, join.high)
            if metric is None:
                other, later = refit(again, dense, found.mask, found.ridge, weight), None
            else:
                other, later = solve_together(problem_of(again, dense, found.ridge, metric), found.mask, weight, settled)
            if not fits(constants, point, other, again):
                break
            whole, weight, settled = again, other, later
    write_layer(constants, point, shape, weight, whole.shift(weight))
    notes = (f"class scores times {factor:.3f}, nearer to the dense confidence",) if factor > 1 else ()
    known = None if settled is None else settled.power(found.mask.shape) * whole.count
    return _outcome(point, "reconstruct", whole, masked, weight, before, after, found, notes, known)


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
    power: NDArray[np.float64] | None = None,
) -> Outcome:
    """``power``: gram.power of the weight, where it is known."""
    target = Moments(gram.count, gram.y_mean, gram.yy)
    old, new = output_moments(gram, masked), output_moments(gram, weight, power)
    return Outcome(
        point,
        rule,
        None,
        int(silent(gram, new).sum()),
        variance_error(target, old),
        variance_error(target, new),
        tuple(notes),
        variance_ratio(target, old),
        variance_ratio(target, new),
        relative_error=(before, after),
        ridge=found.ridge,
        steps=found.steps,
    )
