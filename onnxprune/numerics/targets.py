"""What a layer is asked for when an activation follows, and what a weight gives, in terms of moments.

Where the activation of the dense model is flat (z <= low, or z >= high), any output on that side passes through as the same number. The
target there is what the layer gives now, cut to its side: t = z inside, min(now, low) below, max(now, high) above.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.numerics.moments import Moments
from onnxprune.numerics.reconstruct import Gram
from onnxprune.numerics.repair import match_channel

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]


def moved(gram: Gram, x: Rows, z: Rows, other: Rows, weight: Floats, low: float, high: float) -> Gram:
    """The moments with the target moved to the flat side of the activation.

    gram: the moments of x and of z - other, with the target of now; x (R, g*K); z (R, C) the dense sums; other (R, C) the part that the
    layer does not make; weight (C, K) float64, the bias being the one that gives the target's mean.
    """
    groups = len(gram.x_mean)
    now = _outputs(x, weight, groups) + gram.shift(weight).astype(np.float32) + other
    target = z
    if np.isfinite(low):
        target = np.where(z > low, target, np.minimum(now, np.float32(low)))
    if np.isfinite(high):
        target = np.where(z < high, target, np.maximum(now, np.float32(high)))
    target = target - other
    mean = target.mean(0, dtype=np.float64)
    target -= mean.astype(np.float32)
    # sum (x - mean x)(t - mean t)' = sum x (t - mean t)', the centred t sums to nothing but rounding, which the second term takes away
    xy = _cross(x, target, groups) - gram.x_mean[:, :, None] * target.sum(0, dtype=np.float64).reshape(groups, 1, -1)
    return replace(gram, xy=xy, y_mean=mean, yy=np.einsum("rc,rc->c", target, target, dtype=np.float64))


def _outputs(x: Rows, weight: Floats, groups: int) -> Rows:
    """weight @ x for every row, float32 (R, C)."""
    blocks = weight.astype(np.float32)
    if groups == 1:
        return np.asarray(x @ blocks.T)
    left = x.reshape(len(x), groups, -1).transpose(1, 0, 2)
    return np.ascontiguousarray((left @ blocks.reshape(groups, -1, blocks.shape[1]).transpose(0, 2, 1)).transpose(1, 0, 2)).reshape(
        len(x), -1
    )


def _cross(x: Rows, y: Rows, groups: int) -> Floats:
    """sum x y' over the rows, group by group, float64 (g, K, C/g) from float32 products."""
    left = x.reshape(len(x), groups, -1).transpose(1, 2, 0)
    right = y.reshape(len(y), groups, -1).transpose(1, 0, 2)
    product: NDArray[Any] = left @ right
    return product.astype(np.float64)


def channel_gains(gram: Gram, weight: Floats) -> Floats:
    """The channel repair's gains for a weight (C, K), from the moments of its inputs and of the dense outputs, float64 (C,)."""
    current = output_moments(gram, weight)
    gains = np.ones(len(weight))
    alive = current.m2 > 1e-12 * np.maximum(gram.yy, np.finfo(float).tiny)
    gains[alive] = match_channel(gram.yy[alive], current.m2[alive])
    return gains


def output_moments(gram: Gram, weight: Floats) -> Moments:
    """The moments of weight @ x over the rows whose moments are given."""
    groups, K = gram.x_mean.shape
    blocks = weight.reshape(groups, -1, K)
    m2 = np.einsum("gck,gck->gc", blocks @ gram.xx, blocks).ravel()
    return Moments(gram.count, (blocks @ gram.x_mean[:, :, None]).ravel(), np.maximum(m2, 0.0))
