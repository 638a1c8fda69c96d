"""Statistic repairs: from the moments of the dense and of the current output of a layer to a gain and a shift per channel.

With mu, v the mean and variance of a channel over batch and space, dense (d) and current (c):

    layer    gain = sqrt(mean v_d / mean v_c), one for the layer
    channel  gain = sqrt(v_d / v_c)                                         REPAIR, arXiv 2211.08403
    asr      lambda = median v_c, s = v_c / (v_c + lambda),
             gain = s * sqrt(v_d / v_c) + 1 - s                             arXiv 2605.21426
    shift    mu_d - gain * mu_c, for all of them

A dead channel, one that no longer varies (v_c is rounding, against its mean or the dense variance), has gain 1 and is
shifted to the dense mean.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.numerics.moments import Moments

Vector = NDArray[np.float64]

# float32 activations carry about 7 digits: a variance below (1e-6)^2 of the squared mean is rounding. A normalisation lifts what rounding
# leaves of a constant channel by 1/sqrt(epsilon), 316 for an epsilon of 1e-5: (6e-8 * 316)^2 = 4e-10 of the dense variance. A gain that
# brings it to the dense variance would be of 3e4 and more.
ROUNDING, FAINT = 1e-12, 1e-9


@dataclass(frozen=True, eq=False)
class Affine:
    """y -> gain * y + shift per channel, float64 (C,).

    ``dead`` marks the channels that no longer vary and ``unknown`` those whose statistics overflowed, bool (C,); the latter have
    gain 1 and shift 0.
    """

    gain: Vector
    shift: Vector
    dead: NDArray[np.bool_]
    unknown: NDArray[np.bool_]


def repair(rule: str, dense: Moments, current: Moments) -> Affine:
    """The gain and shift that bring the current moments to the dense ones by one of the rules of REPAIRS.

    Raises:
        ValueError: unknown rule, or moments of different channels.
    """
    if rule not in REPAIRS:
        raise ValueError(f"repair {rule!r} is not known; choose one of {', '.join(REPAIRS)}")
    if dense.mean.shape != current.mean.shape:
        raise ValueError(f"dense moments have {dense.mean.size} channels, current ones {current.mean.size}")
    known = np.isfinite(dense.mean + current.mean) & np.isfinite(dense.variance) & np.isfinite(current.variance)
    dead = known & dead_channels(dense, current)
    alive = known & ~dead
    gain = np.ones(dense.mean.size)
    if alive.any():
        gain[alive] = REPAIRS[rule](dense.variance[alive], current.variance[alive])
    shift = np.zeros(gain.size)
    shift[known] = dense.mean[known] - gain[known] * current.mean[known]
    return Affine(gain, shift, dead, ~known)


def dead_channels(dense: Moments, current: Moments) -> NDArray[np.bool_]:
    """True where the current output no longer varies, bool (C,)."""
    with np.errstate(over="ignore"):
        noise = np.maximum(ROUNDING * current.mean**2, FAINT * dense.variance)
    return np.asarray(current.variance <= noise)


def match_layer(dense: Vector, current: Vector) -> Vector:
    """One gain for all channels: the root of the ratio of the mean variances, float64 (C,)."""
    return np.full(dense.size, np.sqrt(dense.mean() / current.mean()))


def match_channel(dense: Vector, current: Vector) -> Vector:
    """A gain per channel: the root of the ratio of its variances, float64 (C,)."""
    return np.asarray(np.sqrt(dense / current))


def match_shrunk(dense: Vector, current: Vector) -> Vector:
    """The channel gain, drawn towards 1 where the current variance is small against the layer's median, float64 (C,)."""
    trust = current / (current + np.median(current))
    return np.asarray(trust * np.sqrt(dense / current) + 1 - trust)


REPAIRS: dict[str, Callable[[Any, Any], Vector]] = {
    "layer": match_layer,
    "channel": match_channel,
    "asr": match_shrunk,
}
