"""A budget over layers from what was measured of them. By error curves: no weight would lower the errors more in another layer.

A layer's curve is its error at some sizes, straight between them on logarithmic axes: measured errors fall about as a power of the size.
To spend K weights so that the sum of importance * error^power is least, every layer stops where one weight more brings the same, the
Lagrange multiplier. On the lower convex hulls of the curves this is a sort: all their edges, the steepest first, until K is spent; the
last edge is taken in part. So the counts are integers that add up exactly, and the sum is least but for that one edge.
Source: layers' budgets from measured curves are those of SPDY, arXiv 2201.13096.
"""

from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import AllocationError
from onnxprune.numerics.allocation import Weights, allocate, keep_total, shared_out

GRID = 1000
"""Sizes a layer may stop at, but for the last edge: all where it has no more, else evenly on a logarithmic axis."""
POWERS = (0.5, 2.0)  # errors of a layer add up at the outputs (1), or the layers behind swallow small ones (above)
SCALE = 1_000_000  # ratios are shared out as integers of this unit
TINY = 1e-12  # an error below has no logarithm worth one


@dataclass(frozen=True)
class Curve:
    """A layer's relative error, >= 0, when it keeps ``sizes`` weights, ascending; it costs importance * error^power at the model's outputs.

    The errors are made to fall: none is below one at a larger size. With no weight left out the error is 0; with a single one it is that
    of a constant, 1, or that at the smallest size if larger.
    """

    sizes: tuple[int, ...]
    errors: tuple[float, ...]
    importance: float = 1.0
    power: float = 1.0

    def __post_init__(self) -> None:
        if len(self.sizes) != len(self.errors) or not self.sizes or min(self.sizes) < 1 or list(self.sizes) != sorted(set(self.sizes)):
            raise ValueError(f"sizes {self.sizes} and {len(self.errors)} errors: expected as many, ascending from 1")
        if not (np.isfinite(self.errors).all() and min(self.errors) >= 0 and np.isfinite(self.importance) and self.importance >= 0):
            raise ValueError(f"errors {self.errors}, importance {self.importance}: expected finite numbers from 0")
        if not 0 < self.power < np.inf:
            raise ValueError(f"power {self.power}: expected a finite number above 0")

    def at(self, counts: NDArray[np.int64], size: int) -> NDArray[np.float64]:
        """The errors of a layer of ``size`` weights that keeps ``counts`` (int64, 1 to size), float64."""
        known, errors = np.log(np.array(self.sizes, np.float64)), np.maximum(self.errors, TINY)
        errors = np.maximum.accumulate(errors[::-1])[::-1]
        if self.sizes[0] > 1:
            known, errors = np.append(0.0, known), np.append(max(1.0, errors[0]), errors)
        falls = np.log(errors)
        places = np.log(counts.astype(np.float64))
        made = np.interp(places, known, falls)
        if len(known) > 1:  # behind the last size as between the last two
            slope = (falls[-1] - falls[-2]) / (known[-1] - known[-2])
            made += slope * np.maximum(0.0, places - known[-1])
        return np.where(counts >= size, 0.0, np.exp(made))


Measured: TypeAlias = Curve | float | str
"""What was measured of a layer: its error curve, its residual ratio, or why neither could be."""


def share(sizes: Sequence[int], curves: Sequence[Curve], total: int) -> tuple[int, ...]:
    """Return how many weights each layer keeps so that the sum of importance * error^power is least, adding up to ``total``.

    ``sizes`` are the layers' weight counts. Between 1 and N_l each (0 where ``total`` is less than one a layer); ties go to the earlier
    layer. Raises AllocationError for a total outside 0..sum N.
    """
    if not 0 <= total <= sum(sizes):
        raise AllocationError(f"cannot keep {total} of {sum(sizes)} weights: expected a total from 0 to {sum(sizes)}")
    keep = [min(1, size) for size in sizes]
    if total < sum(keep):
        most = sorted(range(len(sizes)), key=lambda index: (-curves[index].importance * min(1, sizes[index]), index))[:total]
        return tuple(int(index in most) for index in range(len(sizes)))
    gains, widths, owners = [], [], []
    for index, (size, curve) in enumerate(zip(sizes, curves, strict=True)):
        corners, errors = _hull(curve, size)
        width = np.diff(corners)
        gains.append(-np.diff(errors) / width * curve.importance)
        widths.append(width)
        owners.append(np.full(len(width), index))
    left = total - sum(keep)
    edges, width, owner = (np.concatenate(parts) if parts else np.zeros(0) for parts in (gains, widths, owners))
    for edge in np.argsort(-edges, kind="stable"):  # edges of a layer fall: their order stays
        taken = min(left, int(width[edge]))
        keep[int(owner[edge])] += taken
        left -= taken
        if not left:
            break
    return tuple(keep)


def fitted(errors: tuple[float, float], costs: tuple[float, float]) -> tuple[float, float]:
    """Return importance and power with which importance * error^power is the cost at two errors, the power held within `POWERS`.

    The first of the two is met where the power is at a bound, or the two do not tell one.
    """
    power = 1.0
    if min(*errors, *costs) > TINY and errors[0] != errors[1]:
        power = float(np.clip(np.log(costs[0] / costs[1]) / np.log(errors[0] / errors[1]), *POWERS))
    return (costs[0] / errors[0] ** power if errors[0] > TINY else 0.0), power


def by_error(weights: Weights, curves: Mapping[int, Curve], sparsity: float, fixed: Mapping[int, float] = {}) -> tuple[int, ...]:
    """Return how many weights each layer keeps by its curve; as numerics.allocation.allocate in all else.

    A layer without a curve (index -> curve) keeps what lamp gives it, and leaves the rest to the others.
    """

    def told(free: Sequence[int], total: int) -> tuple[int, ...]:
        return share([weights[index].size for index in free], [curves[index] for index in free], total)

    return _measured("lamp", weights, curves, sparsity, fixed, told)


def by_ratio(weights: Weights, ratios: Mapping[int, float], sparsity: float, fixed: Mapping[int, float] = {}) -> tuple[int, ...]:
    """Return how many weights each layer keeps where erk's density of a layer is multiplied by its residual ratio, no layer above 1.

    keep_l = min(N_l, eps * RR_l * sum(shape_l)), one eps so that they add up. A layer without a ratio (index -> RR, finite, >= 0) keeps
    what erk gives it. After Zhan 2026, arXiv 2605.25508; see docs/allocation.md for the reading.
    """

    def told(free: Sequence[int], total: int) -> tuple[int, ...]:
        parts = [round(SCALE * ratios[index] * sum(weights[index].shape)) for index in free]
        return shared_out([weights[index].size for index in free], parts, total)

    return _measured("erk", weights, ratios, sparsity, fixed, told)


def _measured(
    rule: str,
    weights: Weights,
    known: Container[int],
    sparsity: float,
    fixed: Mapping[int, float],
    told: Callable[[Sequence[int], int], tuple[int, ...]],
) -> tuple[int, ...]:
    """The counts where ``told`` shares a total out over the layers that are known, and the others keep what the rule gives them."""
    keep = list(allocate(rule, weights, sparsity, fixed))
    common = [index for index in range(len(weights)) if index not in fixed]
    free = [index for index in common if index in known]
    if free:
        total = keep_total([weights[index].size for index in common], sparsity)
        total -= sum(keep[index] for index in common if index not in known)
        for index, count in zip(free, told(free, total), strict=True):
            keep[index] = count
    return tuple(keep)


def _hull(curve: Curve, size: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The corners of the lower convex hull of error^power over 1..size: counts int64, values float64."""
    if size < 2:
        return np.full(size, 1), np.zeros(size)
    counts: NDArray[Any] = np.arange(1, size + 1)
    if size > GRID:
        counts = np.unique(np.append(np.rint(np.exp(np.linspace(0, np.log(size), GRID))), curve.sizes)).astype(np.int64)
        counts = counts[counts <= size]
    errors = curve.at(counts, size) ** curve.power
    corners: list[int] = []
    for place in range(len(counts)):
        while len(corners) > 1:
            a, b = corners[-2:]
            before = (errors[b] - errors[a]) * (counts[place] - counts[b])
            if (errors[place] - errors[b]) * (counts[b] - counts[a]) > before:
                break
            corners.pop()
        corners.append(place)
    return counts[corners], errors[corners]
