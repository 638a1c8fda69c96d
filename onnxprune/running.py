"""One run on a model and its samples: allocation, masks, repair, agreement; and what several runs on the same ones share.

The dense model's outputs on the held-out samples, its statistics at the places of repair and its gradients there depend on no option that
decides how it is pruned. They are made when they are first asked for, and kept. The model that is repaired shares nothing with another.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import onnx

from onnxprune import metrics
from onnxprune.branching import always, straightened
from onnxprune.budgeting import chosen_samples, measure
from onnxprune.clock import Clock, Progress, ticker
from onnxprune.drawing import CACHED, MOST, Taken
from onnxprune.graph.branches import carry_back, told
from onnxprune.graph.mapped import has_mapped
from onnxprune.graph.points import Point
from onnxprune.graph.points import points as points_of
from onnxprune.judging import Outputs, collect, collect_in_stages
from onnxprune.masking import Decided, Masked, decide, masked
from onnxprune.memory import at_once
from onnxprune.numerics.metric import Cosines
from onnxprune.numerics.moments import Moments
from onnxprune.numerics.threads import allowed, bound
from onnxprune.options import Options
from onnxprune.reconstructing import reconstruct_in_order
from onnxprune.runtime.device import Device
from onnxprune.runtime.idle import THERE
from onnxprune.runtime.session import session_of
from onnxprune.runtime.spilling import Memory
from onnxprune.sequential import Outcome, repair_in_order, touched
from onnxprune.statistics import dense_moments


@dataclass(frozen=True, eq=False)
class Tools:
    """What every pass over the samples needs, and what was found out about the dense model so far.

    ``moments`` has the dense statistics by tensor and axis, ``cosines`` what errors of channels have in common in the outputs by tensor
    (metrics), ``branches`` the branch of an If that all samples take, None where they take both; ``memory`` bounds the live tensors of all
    walks together.
    """

    device: Device
    taken: Taken
    clock: Clock
    progress: Progress
    moments: dict[tuple[str, int], Moments] = field(default_factory=dict)
    cosines: dict[str, Cosines | None] = field(default_factory=dict)
    branches: dict[str, bool | None] = field(default_factory=dict)
    memory: Memory = field(default_factory=Memory)


@dataclass(frozen=True, eq=False)
class Done:
    """A pruned and repaired model: the options that made it, what was decided and done, its outputs on the held-out samples."""

    options: Options
    kept: Decided
    masked: Masked
    outcomes: Sequence[Outcome]
    outputs: Outputs | None


def beside(device: Device, taken: Taken, options: Options) -> Device:
    """The device with as many batches at once as cores and memory let run side by side, and the threads that each has then.

    Where threads are not counted, there may be more of them, for idle cores: but not where full batches leave the cache, out of which one
    more would drive the others (EfficientNet-Lite0 took 9 % longer).
    """
    if device.kind != "cpu" or options.memory is not None or taken.elements is None:
        return device
    cores, each = device.threads or allowed(), 4 * taken.elements / taken.least
    count = at_once(cores, int(each * taken.batch_size))
    gaps = THERE and each * MOST <= CACHED and bound(options.threads) is None
    return device if count == 1 else replace(device, threads=cores // count, at_once=count, gaps=gaps)


def decided(dense: onnx.ModelProto, options: Options, tools: Tools) -> Decided:
    """What each layer keeps, by measured layers where the allocation asks for them."""
    with tools.clock.phase("allocation"):
        found = decide(dense, options)
    return by_error(dense, found, options, tools) if options.measured else found


def by_error(dense: onnx.ModelProto, found: Decided, options: Options, tools: Tools) -> Decided:
    """What each layer keeps by what is measured on samples that repair."""
    taken = tools.taken
    rows = chosen_samples(taken.split.repair, taken.batch_size)
    with tools.clock.phase("error curves"):
        told = partial(ticker, tools.progress, "error curves")
        curves = measure(dense, found, options, lambda: taken.batches(rows), taken.axes, tools.device.alone, told, tools.memory)
    with tools.clock.phase("allocation"):
        return decide(dense, options, curves)


def pruned_as(dense: onnx.ModelProto, kept: Decided, tools: Tools) -> Masked:
    """A copy of the model with masks alone."""
    with tools.clock.phase("allocation"):
        return masked(dense, kept)


def carried_out(dense: onnx.ModelProto, kept: Decided, options: Options, tools: Tools, pruned: Masked | None = None) -> Done:
    """The model pruned as decided, repaired and run on the held-out samples; ``pruned`` is what `pruned_as` gave, where it was called."""
    pruned = pruned or pruned_as(dense, kept, tools)
    pruned, outcomes = repair(dense, pruned, options, tools)
    return Done(options, kept, pruned, outcomes, outputs(pruned.model, "repaired outputs", tools))


def outputs(model: onnx.ModelProto, phase: str, tools: Tools) -> Outputs | None:
    """The model's outputs on the held-out samples, None when none are held out."""
    held = tools.taken.split.holdout
    if not len(held):
        return None
    if has_mapped(model):
        with tools.clock.phase("agreement"):
            return collect_in_stages(model, tools.taken.batches(held), tools.taken.axes, tools.device, tools.memory)
    with tools.clock.phase("agreement"), session_of(model, tools.device) as session:
        tick = ticker(tools.progress, phase, tools.taken.count(held))
        return collect(session, tools.taken.batches(held), tools.taken.axes, tick, tools.device.at_once)


def statistics(dense: onnx.ModelProto, points: Sequence[Point], tools: Tools) -> list[Moments]:
    """The dense moments at the points, in one pass for those that are not known yet."""
    new = [point for point in points if _key(point) not in tools.moments]
    if new:
        with tools.clock.phase("dense statistics"):
            tick = ticker(tools.progress, "dense statistics", tools.taken.repairs)
            made = dense_moments(dense, new, tools.taken.repairing(), tools.device, tick, tools.memory)
        tools.moments.update(zip(map(_key, new), made, strict=True))
    return [tools.moments[_key(point)] for point in points]


def _key(point: Point) -> tuple[str, int]:
    return point.dense_tensor, point.axis


def repair(dense: onnx.ModelProto, pruned: Masked, options: Options, tools: Tools) -> tuple[Masked, list[Outcome]]:
    """Repair the masked model in place, where anything that was pruned reaches; returns it as it is now known, and what was done.

    Layers in a branch of an If that all samples take are repaired like others (branching).
    """
    if options.repair == "none" or not pruned.fewer:
        return pruned, []
    which = partial(branches, tools=tools)
    flat = straightened(dense, pruned, options.include, which)
    if flat is None:
        return pruned, _repaired(dense, pruned, options, tools)
    found = told(pruned.found, flat[1].found, pruned.constants, flat[1].constants)  # before new nodes move the others' numbers
    outcomes = _repaired(*flat, options, tools)
    carry_back(pruned.constants, flat[1].constants)
    return replace(pruned, found=found), outcomes


def branches(model: onnx.ModelProto, conditions: Mapping[str, str], tools: Tools) -> dict[str, bool]:
    """The branch of every If that all samples that repair take, as far as there is one; by the name of an If and its condition."""
    new = {name: condition for name, condition in conditions.items() if name not in tools.branches}
    if new:
        with tools.clock.phase("branches"):
            tools.branches.update(always(model, new, tools.taken.repairing(), tools.device, tools.memory))
    known = {name: tools.branches[name] for name in conditions}
    return {name: way for name, way in known.items() if way is not None}


def _repaired(dense: onnx.ModelProto, pruned: Masked, options: Options, tools: Tools) -> list[Outcome]:
    """Repair a masked model whose bodies are single nodes.

    bn makes every BatchNormalization's statistics those of the calibration samples, also before the first pruned layer.
    """
    fewer = pruned.fewer
    reached = touched(pruned.model, fewer)
    points = [
        point
        for point in points_of(pruned.found)
        if point.dense_tensor in reached or (options.repair == "bn" and point.kind == "batchnorm")
    ]
    if not points:
        return []
    batches = tools.taken.repairing
    if options.repair == "reconstruct":
        keep = {layer.weight: count for layer, count in zip(pruned.found.layers, pruned.keep, strict=True)}
        with tools.clock.phase("repair"):
            tick = ticker(tools.progress, "repair", len(points))
            rows = chosen_samples(tools.taken.split.repair, tools.taken.batch_size, metrics.SAMPLES, metrics.HALVES)
            gradients = tools.taken.batches(rows)  # of the samples as they are, not of what is made of them
            how = (options.n_m, options.include, options.seed, tools.device, tick, tools.memory, tools.cosines)
            return reconstruct_in_order(dense, pruned.constants, keep, batches, gradients, reached, *how)
    moments = statistics(dense, points, tools)
    with tools.clock.phase("repair"):
        tick = ticker(tools.progress, "repair", len(points))
        return repair_in_order(pruned.constants, points, moments, options.repair, batches(), tools.device, tick, tools.memory)
