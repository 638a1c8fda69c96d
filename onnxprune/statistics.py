"""The moments of the places of repair: those of the dense model in one pass, and of any model from what a probe gives, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import onnx

from onnxprune.graph.affine import folded
from onnxprune.graph.mapped import has_mapped
from onnxprune.graph.planning import plan
from onnxprune.graph.points import Point
from onnxprune.graph.probes import Groups, Probe
from onnxprune.graph.tensors import Constants
from onnxprune.graph.wide import wide
from onnxprune.numerics.moments import Moments
from onnxprune.numerics.products import Products
from onnxprune.runtime.device import Device
from onnxprune.runtime.spilling import Memory
from onnxprune.runtime.stream import Batch, Stream, one_pass

TOGETHER = 64
"""Batches whose statistics are merged at a time."""


def dense_moments(
    model: onnx.ModelProto,
    points: Sequence[Point],
    batches: Iterable[Batch],
    device: Device,
    tick: Callable[[], None],
    memory: Memory | None = None,
) -> list[Moments]:
    """The moments of every point in the model as given, in one pass over the batches; in stages where its weights were left in files."""
    constants = Constants(model)
    if has_mapped(model):
        stream = Stream(model, batches, [point.dense_tensor for point in points], device, memory)
        staged = [fold(stream.advance(probe_of(point, point.dense_tensor, constants)), point) for point in points]
        tick()
        return staged
    known = plan(model)
    wides = {at: found for at, point in enumerate(points) if (found := wide(constants, known, point)) is not None}
    probes = [wides.get(at) or probe_of(point, point.dense_tensor, constants) for at, point in enumerate(points)]
    moments = [Moments.empty(point.channels) for point in points]
    sums = {at: Products.empty(found.channels) for at, found in wides.items()}
    others = [at for at in range(len(points)) if at not in wides]

    def ticked() -> Iterator[list[Groups]]:
        for made in one_pass(model, probes, batches, device, memory):
            for at in wides:
                sums[at] = sums[at].merge(Products(*made[at]))
            yield [made[at] for at in others]
            tick()

    passing = ticked()
    while together := list(islice(passing, TOGETHER)):
        for at, groups in zip(others, zip(*together, strict=True), strict=True):
            moments[at] = moments[at].merge(fold(groups, points[at]))
    for at, found in wides.items():
        moments[at] = sums[at].moments(*found.parameters(constants)).affine(*folded(constants, points[at]))
    return moments


def current_moments(stream: Stream, point: Point, constants: Constants) -> Moments:
    """The moments at a point of the model that a stream walks through, with all before it repaired."""
    found = wide(constants, stream.plan, point) if stream.ahead(point.tensor) else None
    if found is None:
        return fold(stream.advance(probe_of(point, point.tensor, constants)), point)
    total = Products.empty(found.channels)
    for sums in stream.sums(found):
        total = total.merge(Products(*sums))
    return total.moments(*found.parameters(constants))


def probe_of(point: Point, tensor: str, constants: Constants) -> Probe:
    """The probe of a tensor; its element type is that of the parameter beside it."""
    if point.layer is not None:
        parameter = point.layer.seen
    else:
        assert point.norm is not None
        parameter = constants.model.graph.node[point.norm.scale_node].input[point.norm.scale]
    return Probe(tensor, point.axis, point.channels, constants.data_type(parameter))


def fold(batches: Sequence[Groups], point: Point) -> Moments:
    """The moments of a point over all batches."""
    if not batches:
        return Moments.empty(point.channels)
    sizes, means, spreads = zip(*batches, strict=True)
    return Moments.from_groups(np.repeat(sizes, [len(mean) for mean in means]), np.concatenate(means), np.concatenate(spreads))
