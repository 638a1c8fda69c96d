"""Weights and a total -> how many weights each layer keeps.

Every rule takes the layers' weights (any float dtype and shape, ONNX layout) and the total K, and gives exact integers
with 0 <= keep_l <= N_l that add up to K. uniform and erk share the total out in exact fractions and round by largest
remainder; global and lamp take the K largest scores by count. Ties go to the earlier layer.
"""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import floor, prod
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import AllocationError
from onnxprune.numerics.selection import largest, refuse_total


@dataclass(frozen=True, eq=False)
class Unread:
    """A weight that is read when its values are asked for, by np.asarray, and not kept."""

    shape: tuple[int, ...]
    read: Callable[[], NDArray[Any]]

    @property
    def size(self) -> int:
        """How many values it has."""
        return prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return np.asarray(self.read(), dtype)


Weight: TypeAlias = NDArray[Any] | Unread
Weights: TypeAlias = Sequence[Weight]


def keep_total(sizes: Sequence[int], sparsity: float) -> int:
    """Return K = round((1 - sparsity) * sum(sizes)), the number of weights that all layers keep together.

    Exact in the decimal digits of ``sparsity``, halves to the even number. ``sizes`` are the layers' weight counts.
    Raises AllocationError for a sparsity outside 0 <= S < 1, and where K is less than one weight per (non-empty) layer.
    """
    if not 0 <= sparsity < 1:
        raise AllocationError(f"sparsity {sparsity} is out of range: expected 0 <= sparsity < 1, such as 0.95")
    size, layers = sum(sizes), sum(n > 0 for n in sizes)
    total = round((1 - Fraction(str(sparsity))) * size)
    if total < layers:
        digits = 10 ** len(str(size))
        highest = floor(Fraction(size - layers, size) * digits) / digits
        raise AllocationError(
            f"sparsity {sparsity} of {size} weights keeps {total} weights for {layers} layers, expected at least one "
            f"each; lower the sparsity to {highest} or less"
        )
    return total


def allocate(rule: str, weights: Weights, sparsity: float, fixed: Mapping[int, float] = {}) -> tuple[int, ...]:
    """Return how many weights each layer keeps, in the layers' order, by the rule of that name in ``ALLOCATIONS``.

    A layer in ``fixed`` (index -> its own sparsity) keeps round((1 - s) * N_l) and leaves the common budget:
    ``sparsity`` then holds over the remaining layers together, and is not looked at if there are none.
    Raises ValueError for an unknown rule or index, AllocationError where a sparsity cannot be met.
    """
    if rule not in ALLOCATIONS:
        raise ValueError(f"allocation {rule!r} is unknown: choose from {', '.join(ALLOCATIONS)}")
    if unknown := sorted(set(fixed) - set(range(len(weights)))):
        raise ValueError(f"fixed sparsity for layer index {unknown[0]}: expected 0 to {len(weights) - 1}")
    keep = {}
    for index, own in fixed.items():
        try:
            keep[index] = keep_total([weights[index].size], own)
        except AllocationError as error:
            raise AllocationError(f"layer index {index}: {error}") from None
    common = [index for index in range(len(weights)) if index not in fixed]
    if common:
        shared = [weights[index] for index in common]
        total = keep_total([weight.size for weight in shared], sparsity)
        keep.update(zip(common, ALLOCATIONS[rule](shared, total), strict=True))
    return tuple(keep[index] for index in range(len(weights)))


def uniform(weights: Weights, total: int) -> tuple[int, ...]:
    """Return counts at one density for all layers: keep_l = total * N_l / sum N, largest remainders rounded up.

    If ``total`` is at least the number of layers, no layer gets less than 1: a layer with no weight cuts the network.
    Only the sizes count, not the values. Raises AllocationError for a total outside 0..sum N.
    """
    return shared_out([weight.size for weight in weights], [weight.size for weight in weights], total)


def erk(weights: Weights, total: int) -> tuple[int, ...]:
    """Return counts by the Erdos-Renyi kernel rule: keep_l = min(N_l, eps * sum(shape_l)), one eps so that they add up.

    If ``total`` is at least the number of layers, no layer gets less than 1: a layer with no weight cuts the network.
    Only the shapes count, not the values. Source: Evci 2020, arXiv 1911.11134; the cap makes the target exact.
    Raises AllocationError for a total outside 0..sum N.
    """
    return shared_out([weight.size for weight in weights], [sum(weight.shape) for weight in weights], total)


def global_magnitude(weights: Weights, total: int) -> tuple[int, ...]:
    """Return how many of the ``total`` largest ``|w|`` over all layers lie in each layer; it may be none.

    Source: Han 2015, arXiv 1506.02626. Raises AllocationError for a total outside 0..sum N, ValueError for NaN or
    infinity in a weight.
    """
    return largest(weights, total, lamp=False)


def lamp(weights: Weights, total: int) -> tuple[int, ...]:
    """Return how many of the ``total`` largest LAMP scores over all layers lie in each layer.

    score(u) = w_u^2 / sum over v from u on of w_v^2, the layer in ascending order of w^2, in float64. Equal weights
    still have an order, so the last weight of a layer scores 1, all others at most 1/2, and no layer with a weight
    other than 0 gets 0 while ``total`` is at least the number of layers. A layer of zeros scores 0.
    Source: Lee 2021, arXiv 2010.07611. Raises AllocationError for a total outside 0..sum N, ValueError for NaN or
    infinity in a weight.
    """
    return largest(weights, total, lamp=True)


ALLOCATIONS: dict[str, Callable[[Weights, int], tuple[int, ...]]] = {
    "uniform": uniform,
    "global": global_magnitude,
    "erk": erk,
    "lamp": lamp,
}


def shared_out(sizes: Sequence[int], shares: Sequence[int], total: int) -> tuple[int, ...]:
    """Return integers adding up to ``total``, rounded from clip(level * share_l, 1, N_l) at the one fitting level."""
    refuse_total(sum(sizes), total)
    enough = total >= sum(size > 0 for size in sizes)
    lowest = [min(1, size) if enough else 0 for size in sizes]
    layers = list(zip(lowest, [max(1, share) for share in shares], sizes, strict=True))

    def filled(level: Fraction) -> list[Fraction]:
        return [min(max(level * share, Fraction(low)), Fraction(high)) for low, share, high in layers]

    def filled_total(level: Fraction) -> Fraction:
        return sum(filled(level), Fraction(0))

    # The sum rises with the level, straight between the levels at which some layer meets its bound.
    bends = sorted({Fraction(0)} | {Fraction(bound, share) for low, share, high in layers for bound in (low, high)})
    after = bisect_left(bends, Fraction(total), key=filled_total)
    level = bends[after]
    if after:
        left, right = bends[after - 1], bends[after]
        low, high = filled_total(left), filled_total(right)
        level = left + (right - left) * (total - low) / (high - low)
    exact = filled(level)
    keep = [floor(value) for value in exact]
    by_remainder = sorted(range(len(exact)), key=lambda index: keep[index] - exact[index])  # stable: ties stay in order
    for index in by_remainder[: total - sum(keep)]:
        keep[index] += 1
    return tuple(keep)
