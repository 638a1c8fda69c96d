"""Sums of channels and of their products, from which the moments of any linear combination of the channels follow.

For y = W x + b over n positions, with s = sum x and S = sum x x':

    mean y = W s / n + b,   sum (y - mean y)^2 = diag(W (S - s s' / n) W')

All in float64, where the difference keeps nine digits of a channel whose mean is a thousand times its deviation.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from onnxprune.numerics.moments import Moments
from onnxprune.numerics.threads import one_each, product

ROUNDING = 2.0**-46
"""What is left of equal sums where they should cancel: some hundred roundings of float64."""


@dataclass(frozen=True, eq=False)
class Products:
    """Sums over ``count`` positions of K channels, ``sums`` (K,), and of the products of every two, ``products`` (K, K), float64."""

    count: int
    sums: NDArray[np.float64]
    products: NDArray[np.float64]

    @classmethod
    def empty(cls, channels: int) -> Self:
        """Return the sums of no positions."""
        return cls(0, np.zeros(channels), np.zeros((channels, channels)))

    def merge(self, other: Self) -> Self:
        """Return the sums over both sets of positions. Raises ValueError if the channels differ."""
        if self.sums.shape != other.sums.shape:
            raise ValueError(f"cannot merge products of {self.sums.size} channels with those of {other.sums.size}")
        return type(self)(self.count + other.count, self.sums + other.sums, self.products + other.products)

    def moments(self, weight: NDArray[Any], bias: NDArray[Any]) -> Moments:
        """Return the moments of weight @ x + bias, ``weight`` (C, K) and ``bias`` (C,) of any float dtype.

        A channel whose m2 is no more than what rounding may leave does not vary: m2 is 0. Raises ValueError if the shapes do not fit.
        """
        if weight.ndim != 2 or weight.shape[1:] != self.sums.shape or bias.shape != weight.shape[:1]:
            raise ValueError(f"a weight {weight.shape} and a bias {bias.shape} do not fit {self.sums.size} channels")
        if self.count == 0:
            return Moments.empty(len(weight))
        factors = weight.astype(np.float64)
        mean = self.sums / self.count
        with np.errstate(over="ignore", invalid="ignore"):  # sums that overflowed stay infinite or NaN, and are seen later
            about = self.products - np.outer(self.sums, mean)
            with one_each() as threads:
                spread = np.einsum("ck,ck->c", product(threads, factors[None], about[None])[0], factors)
            most = np.einsum("ck,k->c", np.abs(factors), np.sqrt(np.diag(self.products))) ** 2  # of sum y^2
            return Moments(self.count, np.einsum("ck,k->c", factors, mean) + bias, np.where(spread <= ROUNDING * most, 0.0, spread))
