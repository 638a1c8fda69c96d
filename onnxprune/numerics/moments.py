"""Count, mean and sum of squared deviations per channel, merged batch by batch.

Everything is float64 and centred: E[x^2] - E[x]^2 loses all digits where the mean is large against the deviation, and
averaged variances lose the variance between the batch means.
Source: Chan, Golub, LeVeque 1983, Algorithms for computing the sample variance.
"""

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Moments:
    """Statistics of C channels: ``count`` elements seen in each, ``mean`` and ``m2`` = sum (x - mean)^2, float64, (C,).

    Nothing seen yet is count 0 with mean and m2 zero.
    """

    count: int
    mean: NDArray[np.float64]
    m2: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Return the moments of no elements, where a fold over batches starts: merging them changes nothing."""
        return cls(0, np.zeros(channels), np.zeros(channels))

    @classmethod
    def from_batch(cls, x: NDArray[Any], axis: int) -> Self:
        """Return the moments of each channel along ``axis`` of ``x``, over all other axes.

        ``x`` has any real dtype and rank >= 1. Two passes in float64, the second over centred values.
        """
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"channel axis {axis} does not exist in a batch of shape {x.shape}")
        channels = x.shape[axis]
        if x.size == 0:
            return cls.empty(channels)
        rest = tuple(i for i in range(x.ndim) if i != axis % x.ndim)
        values = x.astype(np.float64, copy=False)
        mean = values.mean(axis=rest, keepdims=True)
        centred = values - mean
        centred *= centred
        return cls(x.size // channels, mean.reshape(channels), centred.sum(axis=rest))

    @classmethod
    def from_groups(cls, size: int | NDArray[np.int64], mean: NDArray[Any], m2: NDArray[Any]) -> Self:
        """Return the moments of G groups together, of ``size`` elements each, or (G,); ``mean`` and ``m2``: (G, C), any float dtype.

        mean = average of the means, each as often as its group has elements; m2 = sum of the m2 + sum size_g (mean_g - mean)^2. What a
        group without elements has does not count.
        Raises ValueError if the two arrays are not of one shape (G, C), sizes are not as many, or one is negative.
        """
        sizes = np.full(len(mean), size) if np.ndim(size) == 0 else np.asarray(size)
        if mean.ndim != 2 or mean.shape != m2.shape or sizes.shape != mean.shape[:1] or (sizes < 0).any():
            raise ValueError(f"groups of {size} with mean {mean.shape} and m2 {m2.shape}: expected size >= 0 and two (G, C)")
        if not sizes.all():
            mean, m2, sizes = mean[sizes > 0], m2[sizes > 0], sizes[sizes > 0]
        if not sizes.size:
            return cls.empty(mean.shape[1])
        count = int(sizes.sum())
        with np.errstate(over="ignore", invalid="ignore"):  # statistics that overflowed stay infinite or NaN, and are seen later
            middle = np.einsum("g,gc->c", sizes / count, mean, dtype=np.float64)
            apart = mean - middle
            between = np.einsum("g,gc,gc->c", sizes.astype(np.float64), apart, apart)
        return cls(count, middle, m2.sum(axis=0, dtype=np.float64) + between)

    @property
    def variance(self) -> NDArray[np.float64]:
        """The population variance m2 / count, float64, (C,). Raises ValueError while nothing has been seen."""
        if self.count == 0:
            raise ValueError("variance of 0 elements per channel is undefined; merge a batch first")
        return self.m2 / self.count

    def merge(self, other: Self) -> Self:
        """Return the moments of both sets of elements together; the order matters only to rounding.

        With d = mean_b - mean_a: mean = mean_a + d * n_b/n; m2 = m2_a + m2_b + d^2 * n_a * n_b/n.
        Raises ValueError if the channels differ.
        """
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"cannot merge moments of {self.mean.size} channels with those of {other.mean.size}")
        if other.count == 0:
            return self
        if self.count == 0:
            return other
        count = self.count + other.count
        share = other.count / count
        delta = other.mean - self.mean
        return type(self)(count, self.mean + delta * share, self.m2 + other.m2 + delta**2 * (self.count * share))

    def affine(self, gain: float | NDArray[Any], shift: float | NDArray[Any]) -> Self:
        """Return the moments of gain * x + shift, with ``gain`` and ``shift`` one number or (C,): m2 grows by gain^2.

        Raises ValueError if gain or shift does not fit the channels.
        """
        factor, offset = np.asarray(gain, np.float64), np.asarray(shift, np.float64)
        for name, array in (("gain", factor), ("shift", offset)):
            if array.shape not in ((), self.mean.shape):
                raise ValueError(f"{name} of shape {array.shape} does not fit {self.mean.size} channels")
        if self.count == 0:
            return self
        return type(self)(self.count, factor * self.mean + offset, factor**2 * self.m2)
