"""The moments of the places of repair: those of the dense model in one pass, and of any model from what a probe gives, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice

import numpy as np
import onnx

from onnxprune.graph.mapped import has_mapped
from onnxprune.graph.points import Point
from onnxprune.graph.probes import Groups, Probe
from onnxprune.graph.tensors import Constants
from onnxprune.numerics.moments import Moments
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
    probes = [probe_of(point, point.dense_tensor, constants) for point in points]
    if has_mapped(model):
        stream = Stream(model, batches, [probe.tensor for probe in probes], device, memory)
        found = [fold(stream.advance(probe), point) for probe, point in zip(probes, points, strict=True)]
        tick()
        return found
    moments = [Moments.empty(probe.channels) for probe in probes]

    def ticked() -> Iterator[list[Groups]]:
        for groups in one_pass(model, probes, batches, device, memory):
            yield groups
            tick()

    passing = ticked()
    while together := list(islice(passing, TOGETHER)):
        made = [fold(groups, point) for groups, point in zip(zip(*together, strict=True), points, strict=True)]
        moments = [so_far.merge(more) for so_far, more in zip(moments, made, strict=True)]
    return moments


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
