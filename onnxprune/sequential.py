"""Statistic repair, layer after layer: when a layer is repaired, all before it already are.

The dense model's statistics do not depend on the repair and come from one plain pass (statistics). The current model is walked by a Stream:
its statistics at a place of repair come from a model whose earlier places are already repaired. Two passes in all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph import affine, gains
from onnxprune.graph.layers import Layer
from onnxprune.graph.planning import plan
from onnxprune.graph.points import Point
from onnxprune.graph.tensors import Constants
from onnxprune.numerics.moments import Moments
from onnxprune.numerics.repair import dead_channels, repair
from onnxprune.runtime.device import Device
from onnxprune.runtime.spilling import Memory
from onnxprune.runtime.stream import Batch, Stream
from onnxprune.statistics import current_moments

Tick = Callable[[], None]
NOTHING = "no value reaches it on the samples"
"""Why a layer behind a selection (the boxes that a detector finds) may have no statistics."""


@dataclass(frozen=True)
class Outcome:
    """What a repair did at one place: ``rule`` as written, the range of its gains, how many channels are dead, and remarks.

    ``gain`` is None for a reconstruction, which solves weights and scales nothing.

    ``error_before`` and ``error_after`` are the root mean square over channels of log(v_c / v_d), before and after the
    repair of this place; ``ratio_before`` and ``ratio_after`` the geometric mean of v_c / v_d.
    """

    point: Point
    rule: str
    gain: tuple[float, float] | None
    dead: int
    error_before: float | None
    error_after: float | None
    notes: tuple[str, ...] = ()
    ratio_before: float | None = None
    ratio_after: float | None = None
    relative_error: tuple[float, float] | None = None
    ridge: float | None = None
    steps: tuple[int, ...] = ()


def touched(model: onnx.ModelProto, pruned: Iterable[Layer]) -> frozenset[str]:
    """The tensors that depend on the weight of a pruned layer: what its nodes give, and all behind."""
    reached = {name for layer in pruned for use in layer.uses for name in model.graph.node[use.outer].output if name}
    for number, reads in enumerate(plan(model).reads):
        if not reached.isdisjoint(reads):
            reached.update(model.graph.node[number].output)
    return frozenset(reached)


def repair_in_order(
    constants: Constants,
    points: Sequence[Point],
    dense: Sequence[Moments],
    rule: str,
    batches: Iterable[Batch],
    device: Device,
    tick: Tick,
    memory: Memory | None = None,
) -> list[Outcome]:
    """Repair the model behind ``constants`` in place, point by point, and say what was done at each.

    ``rule`` is bn, layer, channel or asr. bn sets the statistics of every BatchNormalization; a layer without one had it folded
    into its weights, where the same recalibration is a channel repair.
    """
    stream = Stream(constants.model, batches, [point.tensor for point in points], device, memory)
    added: list[tuple[int, onnx.NodeProto]] = []
    outcomes = []
    for point, target in zip(points, dense, strict=True):
        outcome, nodes = repair_point(constants, stream, point, target, rule)
        outcomes.append(outcome)
        added.extend(nodes)
        tick()
    affine.insert(constants.model, added)
    return outcomes


def repair_point(
    constants: Constants, stream: Stream, point: Point, target: Moments, rule: str
) -> tuple[Outcome, list[tuple[int, onnx.NodeProto]]]:
    """Walk the stream to a point and repair it; returns what was done and the nodes to insert once the walk is over."""
    current = current_moments(stream, point, constants)
    if not (current.count and target.count):
        return unrepaired(point, NOTHING), []
    node = constants.model.graph.node[point.node]
    if point.kind == "batchnorm" and point.norm is not None:
        gain, shift = affine.normalisation(constants, node, point.norm)
        if rule == "bn":
            outcome = _recalibrate(constants, point, node, target, current)
            _tell(stream, constants, point, gain, shift)
            return outcome, []
        current = current.affine(gain, shift)
    found = repair("channel" if rule == "bn" else rule, target, current)
    gain, shift = found.gain, found.shift
    notes: tuple[str, ...] = ()
    if found.unknown.any():
        notes += (f"{found.unknown.sum()} channels overflow float32 and stay as they are",)
    cut = _cut(constants, point)
    gain, note = _writable(constants, point, np.where(cut, 1.0, gain))
    if note or (cut & ~found.dead).any():
        shift = np.where(found.unknown, 0.0, target.mean - gain * current.mean)
        notes += (note,) if note else ()
    added = affine.write_affine(constants, point, gain, shift)
    _tell(stream, constants, point, gain, shift)
    outcome = Outcome(
        point,
        rule if rule != "bn" else "channel" if point.norm is not None else "bn (folded)",
        (float(gain.min()), float(gain.max())),
        int((found.dead | cut).sum()),
        variance_error(target, current),
        variance_error(target, current.affine(gain, shift)),
        notes,
        variance_ratio(target, current),
        variance_ratio(target, current.affine(gain, shift)),
    )
    return outcome, added


def unrepaired(point: Point, reason: str) -> Outcome:
    """The outcome of a place that stays as the masks left it."""
    return Outcome(point, "none", None, 0, None, None, (f"pruned, not repaired: {reason}",))


def _cut(constants: Constants, point: Point) -> NDArray[np.bool_]:
    """True for the channels that no weight is left of, bool (C,): runtimes that compute with integers give them noise, not zeros."""
    if point.norm is not None or point.layer is None or point.use is None:
        return np.zeros(point.channels, np.bool_)
    return np.isinf(gains.highest(constants.read(point.use.seen), point.use))


def _writable(constants: Constants, point: Point, gain: NDArray[np.float64]) -> tuple[NDArray[np.float64], str]:
    """The gain that the point's parameters can take, and why it is not the one that was asked for."""
    if point.norm is not None or point.layer is None or point.use is None:
        return gain, ""
    if reason := gains.refusal(constants, point.layer, point.use, gain):
        return np.ones_like(gain), reason
    top = gains.highest(constants.read(point.layer.seen), point.use)
    return (gain, "") if (gain <= top).all() else (np.minimum(gain, top), "a gain was cut, so that the weights fit their type")


def _tell(stream: Stream, constants: Constants, point: Point, gain: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    """Let the stream go on as if the point had been repaired from the start."""
    if point.kind == "batchnorm" and point.norm is not None:
        node = constants.model.graph.node[point.norm.node]
        stream.adjust(point.norm.output, *affine.normalisation(constants, node, point.norm), 1, source=point.norm.input)
    else:
        stream.adjust(point.tensor, gain, shift, point.axis)


def _recalibrate(constants: Constants, point: Point, node: onnx.NodeProto, target: Moments, current: Moments) -> Outcome:
    """Make the current statistics those of the BatchNormalization."""
    assert point.norm is not None
    old = affine.normalisation(constants, node, point.norm)
    mean, variance = (constants.read(node.input[index]).astype(np.float64) for index in (3, 4))
    known = np.isfinite(current.mean) & np.isfinite(current.variance)
    positive = known & (current.variance + point.norm.epsilon > 0)  # epsilon may be 0, and a dead channel has no variance
    mean, variance = np.where(known, current.mean, mean), np.where(positive, current.variance, variance)
    affine.write_statistics(constants, node, mean, variance)
    new = affine.normalisation(constants, node, point.norm)
    with np.errstate(divide="ignore", invalid="ignore"):
        gain = np.where(old[0] == 0, 1.0, new[0] / old[0])
    before = current.affine(*old)
    return Outcome(
        point,
        "bn",
        (float(gain.min()), float(gain.max())),
        int(dead_channels(target, before).sum()),
        variance_error(target, before),
        variance_error(target, current.affine(*new)),
        ratio_before=variance_ratio(target, before),
        ratio_after=variance_ratio(target, current.affine(*new)),
    )


def variance_error(dense: Moments, current: Moments) -> float | None:
    """Root mean square over channels of log(v_c / v_d); channels that do not vary in both models are left out, None without any."""
    logs = _log_ratios(dense, current)
    return float(np.sqrt(np.mean(logs**2))) if logs.size else None


def variance_ratio(dense: Moments, current: Moments) -> float | None:
    """Geometric mean over channels of v_c / v_d, without those that variance_error leaves out; below 1 the layer varies too little."""
    logs = _log_ratios(dense, current)
    return float(np.exp(np.mean(logs))) if logs.size else None


def _log_ratios(dense: Moments, current: Moments) -> NDArray[np.float64]:
    """log(v_c / v_d) of the channels that vary in both models, float64."""
    both = (dense.variance > 0) & (current.variance > 0) & np.isfinite(dense.variance) & np.isfinite(current.variance)
    return np.asarray(np.log(current.variance[both] / dense.variance[both]))
