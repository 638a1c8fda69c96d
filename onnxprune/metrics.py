"""What errors of a layer's channels are worth in the outputs of the dense model, measured on samples (graph.gradients)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import ModelError, OutOfMemory, RuntimeFailure
from onnxprune.graph.gradients import backwards, shaped
from onnxprune.graph.points import Point
from onnxprune.numerics.metric import Cosines, cosines_of
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import run_session, session_of
from onnxprune.runtime.stream import Batch

SAMPLES, HALVES = 128, 2
"""How many samples are enough, and how many batches it takes to tell what is chance."""
LARGEST = 1 << 28
"""Weights up to which a model is small enough: 1 GiB of float32."""


def metrics(
    dense: onnx.ModelProto,
    points: Sequence[Point],
    batches: Iterable[Batch],
    seed: int,
    device: Device,
    known: dict[str, Cosines | None],
) -> Mapping[str, Cosines | None]:
    """By the dense tensor of a point what errors there have in common, None where it cannot be told: ``known``, with what was missing.

    The batches are run through only where something was.
    """
    new = [point for point in points if point.dense_tensor not in known]
    moments = gradient_moments(dense, new, batches, seed, device)
    for point in new:
        halves = moments.pop(point.dense_tensor, None)
        known[point.dense_tensor] = None if halves is None else cosines_of(halves)
    return known


def gradient_moments(
    dense: onnx.ModelProto, points: Sequence[Point], batches: Iterable[Batch], seed: int, device: Device
) -> dict[str, NDArray[np.float64]]:
    """By the dense tensor of a point the second moments of gradients there, (2, C, C) float64: sums over every other batch each.

    Points are missing whose way to the outputs leads through an operator that has no adjoint, and all in a model that runs in stages for
    its size: this takes all of its weights at a time. One batch alone tells nothing of what it can be trusted in.
    """
    if not points or sum(math.prod(tensor.dims) for tensor in dense.graph.initializer) > LARGEST:
        return {}
    sums: dict[str, NDArray[np.float64]] = {}
    try:
        passing = iter(batches)
        first = next(passing)
        made = backwards(dense, points, shapes_of(dense, first, device), seed)
        if made is None:
            return {}
        model, known = made
        names = [f"{point.dense_tensor}::gradient" for point in known]
        with session_of(model, device, lean=True) as session:
            for number, batch in enumerate((first, *passing)):
                for point, moments in zip(known, run_session(session, batch, names), strict=True):
                    sums.setdefault(point.dense_tensor, np.zeros((HALVES, *moments.shape)))[number % HALVES] += moments
    except OutOfMemory:
        raise
    except (ModelError, RuntimeFailure):  # operators may not take what the graph of the gradients gives them
        return {}
    return sums


def shapes_of(model: onnx.ModelProto, batch: Batch, device: Device) -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of a model in a batch."""
    with session_of(shaped(model), device, lean=True) as session:
        names = [value.name for value in session.get_outputs()]
        made = run_session(session, batch, names)
    return {name.removesuffix("::shape"): tuple(map(int, shape)) for name, shape in zip(names, made, strict=True)}
