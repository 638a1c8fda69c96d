"""Class scores: behind the layer that makes them no other makes up for what they lack.

Least squares gives what the inputs tell of an output, and that varies less than the output does, the less the fewer the rows for the
inputs. A later layer, solved on what it is given, makes up for it. Behind the last one class scores may lose their confidence: those of
EfficientNet-Lite0 at 0.5 had .64 of the dense variance, and twice the divergence that they have with it (docs/reconstruction.md).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph.planning import reads_of
from onnxprune.graph.points import Point
from onnxprune.numerics.agreement import divergence
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.threads import one_each, product

STEPS = 33
"""Factors that are tried."""
AS_SHARES = ("Softmax", "LogSoftmax")
"""Operators that make shares of class scores."""


def scores_of(model: onnx.ModelProto, points: Sequence[Point]) -> frozenset[str]:
    """The tensors behind the points, as the dense model names them, that are class scores and that no other point reads.

    Class scores are an output of two axes, samples and classes, as numerics.agreement takes it, or what a Softmax makes one of.
    """
    given = {value.name for value in model.graph.output if len(value.type.tensor_type.shape.dim) == 2}
    places = {point.node if point.use is None else point.use.node for point in points}
    read: set[str] = set()
    for number in reversed(range(len(model.graph.node))):
        node = model.graph.node[number]
        if number in places or not read.isdisjoint(node.output):
            read.update(reads_of(node))
        if node.op_type in AS_SHARES and not given.isdisjoint(node.output):
            given.add(node.input[0])
    return frozenset(point.dense_tensor for point in points) & given - read


def factor_of(weight: NDArray[np.float64], fit: Gram, held: Gram, x: NDArray[np.float32], z: NDArray[np.float32]) -> float:
    """The factor on all that a weight (C, K) gives, about the dense mean, with which held-out class scores diverge least from the dense.

    Not below 1, and no more than gives them the dense variance: what is no class score after all is then not spread beyond it. One for
    all classes, so that hardly one gains on another.

    fit: the moments of the rows that the weight was solved on; held, x (R, K) and z (R, C): those of the rows held out, their inputs and
    their dense scores.
    """
    power, wanted = float(held.power(weight).sum()), float(held.yy.sum())
    if not 0 < power < wanted:
        return 1.0
    with one_each() as threads:
        swing = product(threads, (x - fit.x_mean[0])[None], weight.T[None])[0]
    factors = np.linspace(1.0, np.sqrt(wanted / power), STEPS)
    return float(min(factors, key=lambda factor: divergence(z, fit.y_mean + factor * swing)))
