"""What a layer was solved to be, a weight (C, K) and a bias (C,) as seen behind its BatchNormalization, where the model holds it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxprune.graph import affine, geometry
from onnxprune.graph.gains import largest
from onnxprune.graph.geometry import Geometry
from onnxprune.graph.points import Point
from onnxprune.graph.tensors import Constants
from onnxprune.numerics.gram import Gram


def write_layer(constants: Constants, point: Point, shape: Geometry, weight: NDArray[np.float64], shift: NDArray[np.float64]) -> None:
    """Write a weight (C, K) and a bias (C,), both as seen behind the BatchNormalization if there is one."""
    assert point.layer is not None
    gain, _ = affine.folded(constants, point)
    inverse = np.divide(1.0, gain, out=np.zeros_like(gain), where=gain != 0)
    stored = constants.read(point.layer.seen)
    constants.write(point.layer.seen, geometry.from_matrix(weight * inverse[:, None], shape, stored.shape).astype(stored.dtype))
    affine.write_shift(constants, point, shift)


def fits(constants: Constants, point: Point, weight: NDArray[np.float64], gram: Gram) -> bool:
    """True when a weight (C, K) behind the BatchNormalization, and the shift that goes with it, are numbers of the layer's type."""
    assert point.layer is not None
    gain, _ = affine.folded(constants, point)
    inner = np.abs(np.divide(weight, gain[:, None], out=np.zeros_like(weight), where=gain[:, None] != 0))
    shift = np.abs(gram.shift(weight))
    return bool(max(inner.max(initial=0), shift.max(initial=0)) <= largest(constants.read(point.layer.seen).dtype))
