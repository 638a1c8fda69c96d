"""What a layer is asked for when an activation follows, and what a weight gives, in terms of moments.

Where the activation of the dense model is flat (z <= low, or z >= high), any output on that side passes through as the same number. The
target there is what the layer gives now, cut to its side: t = z inside, min(now, low) below, max(now, high) above.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.numerics.gram import Gram
from onnxprune.numerics.moments import Moments
from onnxprune.numerics.repair import ROUNDING, match_channel
from onnxprune.numerics.threads import mapped, one_each

Rows = NDArray[np.float32]
Floats = NDArray[np.float64]
LEAST = 0.02
BLOCK = 2048
"""Rows whose targets are moved at a time, in a thread: they stay in the cache."""


def moved(gram: Gram, x: Rows, z: Rows, other: Rows, weight: Floats, low: float, high: float) -> Gram:
    """The moments with the target moved to the flat side of the activation.

    gram: the moments of x and of z - other, with the target of now; x (R, g*K); z (R, C) the dense sums; other (R, C) the part that the
    layer does not make; weight (C, K) float64, the bias being the one that gives the target's mean.
    """
    groups, about = len(gram.x_mean), gram.y_mean.astype(np.float32)
    blocks, shift = weight.astype(np.float32), gram.shift(weight).astype(np.float32)
    count = -(-len(x) // BLOCK)
    xy, moves, power = np.zeros_like(gram.xy), np.zeros_like(gram.yy), np.zeros_like(gram.yy)

    def part(at: int) -> tuple[Floats, Floats, Floats]:
        """Of one block of rows, about the mean of the target of now: sum x (t - about)', sum (t - about), sum (t - about)^2."""
        rows = slice(at * len(x) // count, (at + 1) * len(x) // count)
        target = _outputs(x[rows], blocks, groups)
        target += shift
        target += other[rows]
        _cut(target, z[rows], low, high)
        target -= other[rows]
        target -= about
        squares = np.einsum("rc,rc->c", target, target, dtype=np.float64)
        return _cross(x[rows], target, groups), target.sum(0, dtype=np.float64), squares

    with one_each() as threads:
        for cross, sums, squares in mapped(threads, part, range(count), 4.0 * x.shape[0] * weight.size):
            xy += cross
            moves += sums
            power += squares
    move = moves / len(x)
    xy -= gram.x_mean[:, :, None] * moves.reshape(groups, 1, -1)
    return replace(gram, xy=xy, y_mean=about + move, yy=np.maximum(power - moves * move, 0.0))


def _cut(target: Rows, z: Rows, low: float, high: float) -> None:
    """Make the target, which is what the layer gives now, z where the activation is not flat, and cut it to its side where it is."""
    within = np.ones(z.shape, np.bool_)
    if np.isfinite(low):
        within &= z > low
        np.minimum(target, np.float32(low), out=target, where=~within)
    if np.isfinite(high):
        above = ~(z < high)
        np.maximum(target, np.float32(high), out=target, where=above)
        within &= ~above
    np.copyto(target, z, where=within)


def importance(read: Floats, inside: Floats) -> Floats:
    """What the squared error of each channel counts, (C,) float64, mean 1.

    read: (C,) how much the next layers read of each; inside: (C,) the share of rows where the activation behind is not flat, so that an
    error is seen. No channel counts less than `LEAST` of the mean.
    """
    product = read * np.maximum(inside, LEAST)
    mean = product.mean()
    return np.maximum(product / mean, LEAST) if mean > 0 else np.ones(len(read))


def with_targets(gram: Gram, parts: Sequence[tuple[int, Floats, Floats, Floats, Floats]]) -> Gram:
    """The moments with another target for the same rows, from parts of them.

    parts: of each count, x_mean (g, K), t_mean (C,), and about those means xy (g, K, C/g) and tt (C,), float64. With d the way from a
    part's mean to that of all rows, the sums about the latter are xy + count dx dt', tt + count dt^2 (Chan, Golub, LeVeque 1983).
    """
    mean = np.asarray(sum(count * t_mean for count, _, t_mean, _, _ in parts) / gram.count)
    xy, tt = np.zeros_like(gram.xy), np.zeros_like(gram.yy)
    for count, x_mean, t_mean, part, power in parts:
        dx, dt = x_mean - gram.x_mean, t_mean - mean
        xy += part + count * dx[:, :, None] * dt.reshape(len(dx), 1, -1)
        tt += power + count * dt**2
    return replace(gram, y_mean=mean, xy=xy, yy=tt)


def _outputs(x: Rows, blocks: Rows, groups: int) -> Rows:
    """The weight (C, K) times x for every row, float32 (R, C)."""
    if groups == 1:
        return np.asarray(x @ blocks.T)
    left = x.reshape(len(x), groups, -1).transpose(1, 0, 2)
    made: NDArray[Any] = left @ blocks.reshape(groups, -1, blocks.shape[1]).transpose(0, 2, 1)
    return np.ascontiguousarray(made.transpose(1, 0, 2)).reshape(len(x), -1)


def _cross(x: Rows, y: Rows, groups: int) -> Floats:
    """sum x y' over the rows, group by group, float64 (g, K, C/g) from float32 products."""
    left = x.reshape(len(x), groups, -1).transpose(1, 2, 0)
    right = y.reshape(len(y), groups, -1).transpose(1, 0, 2)
    product: NDArray[Any] = left @ right
    return product.astype(np.float64)


def channel_gains(gram: Gram, weight: Floats, power: Floats | None = None) -> Floats:
    """The channel repair's gains for a weight (C, K), from the moments of its inputs and of the dense outputs, float64 (C,).

    ``power``: gram.power of the weight, where it is known.
    """
    current = output_moments(gram, weight, power)
    gains = np.ones(len(weight))
    alive = ~silent(gram, current)
    gains[alive] = match_channel(gram.yy[alive], current.m2[alive])
    return gains


def silent(gram: Gram, current: Moments) -> NDArray[np.bool_]:
    """True where what a weight gives no longer varies beside the dense output, bool (C,)."""
    return np.asarray(current.m2 <= ROUNDING * np.maximum(gram.yy, np.finfo(float).tiny))


def output_moments(gram: Gram, weight: Floats, power: Floats | None = None) -> Moments:
    """The moments of weight @ x over the rows whose moments are given; ``power``: gram.power of the weight, where it is known."""
    groups, K = gram.x_mean.shape
    blocks = weight.reshape(groups, -1, K)
    mean = np.einsum("gck,gk->gc", blocks, gram.x_mean).ravel()
    return Moments(gram.count, mean, np.maximum(gram.power(weight) if power is None else power, 0.0))
