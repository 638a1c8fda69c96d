"""Centred second moments of a layer's inputs and outputs, summed over rows: all that least squares needs to know of them."""

import functools
import itertools
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.elimination import Floats, bounds_of
from onnxprune.numerics.stacks import gathered, slots_of
from onnxprune.numerics.threads import Threads, one_each, powers, product, shared, side_by_side

ROWS = 4096  # rows of one float32 product; the sums over products are float64
SIDE, FEW = 128, 16  # columns of such a product that one thread makes; of small ones, so many groups
GATHERED = 10.0  # flops done in the time in which an entry is gathered
SPARSE = 0.2  # up to this share of weights, those entries of xx that they meet are gathered, in place of a product with all


@dataclass(frozen=True, eq=False)
class Gram:
    """Centred second moments of input rows x and output rows y: all that least squares needs to know of them.

    For g groups of K inputs and C outputs in all: count rows; x_mean (g, K); y_mean (C,);
    xx (g, K, K) = sum (x - x_mean)(x - x_mean)'; xy (g, K, C/g) = sum (x - x_mean)(y - y_mean)';
    yy (C,) = sum (y - y_mean)^2. Float64. A layer without groups has g = 1.
    """

    count: int
    x_mean: Floats
    y_mean: Floats
    xx: Floats
    xy: Floats
    yy: Floats

    @classmethod
    def from_batch(cls, x: npt.NDArray[Any], y: npt.NDArray[Any], groups: int = 1) -> Self:
        """The moments of a batch. x: (rows, g * K), y: (rows, C), float32 or float64, columns group after group.

        Float32 rows are centred by their float64 mean and multiplied in float32, `ROWS` at a time, `SIDE` columns by a thread; the sums
        are float64.
        """
        rows, width = x.shape
        if y.ndim != 2 or len(y) != rows or width % groups or y.shape[1] % groups:
            raise ValueError(f"rows x {x.shape} and y {y.shape} do not pair up in {groups} groups")
        K, C = width // groups, y.shape[1]
        x_mean = x.mean(0, dtype=np.float64) if rows else np.zeros(width)
        y_mean = y.mean(0, dtype=np.float64) if rows else np.zeros(C)
        xx, xy, yy = np.zeros((groups, K, K)), np.zeros((groups, K, C // groups)), np.zeros(C)
        middle, level = x_mean.astype(x.dtype), y_mean.astype(y.dtype)
        apart = np.empty((min(ROWS, rows), width), x.dtype)  # used again: new pages take as long as the differences
        # What overflows is infinite or NaN, and seen by who solves.
        with np.errstate(over="ignore", invalid="ignore"), one_each() as threads:
            for at in range(0, rows, ROWS):
                a, b = apart[: rows - at], y[at : at + ROWS] - level
                centred(threads, x[at : at + ROWS], middle, a)
                yy += np.einsum("rc,rc->c", b, b, dtype=np.float64)
                add_products(threads, xx, xy, a.reshape(-1, groups, K), b.reshape(-1, groups, C // groups))
            shared(threads, functools.partial(_mirror, xx), range(0, K, SIDE), float(xx.size))
        return cls(rows, x_mean.reshape(groups, K), y_mean, xx, xy, yy)

    @property
    def finite(self) -> bool:
        """False where something overflowed. No product of two inputs does before the square of one of them (Cauchy, Schwarz)."""
        return all(np.isfinite(part).all() for part in (self.x_mean, np.einsum("gkk->gk", self.xx), self.xy, self.yy))

    def merge(self, other: Self, *, overwrite: bool = False) -> Self:
        """The moments of the rows of both, exactly (Chan, Golub, LeVeque 1983).

        ``overwrite`` puts them where this one's were, whose values are lost: one (g, K, K) array less.
        """
        n = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        dx, dy = other.x_mean - self.x_mean, other.y_mean - self.y_mean
        share, between = other.count / n, self.count * other.count / n
        xx = self.xx if overwrite else np.empty_like(self.xx)

        def add(part: tuple[int, int]) -> None:
            g, at = part
            rows = slice(at, at + SIDE)
            np.add(self.xx[g, rows], other.xx[g, rows], out=xx[g, rows])
            xx[g, rows] += (between * dx[g, rows, None]) * dx[g]

        with one_each() as threads:
            shared(threads, add, list(itertools.product(range(len(xx)), range(0, xx.shape[1], SIDE))), 4.0 * xx.size)
        xy = np.add(self.xy, other.xy, out=self.xy if overwrite else None)
        xy += between * dx[:, :, None] * dy.reshape(len(dx), 1, -1)
        yy = self.yy + other.yy + between * dy**2
        return type(self)(n, self.x_mean + share * dx, self.y_mean + share * dy, xx, xy, yy)

    def shift(self, weight: Floats) -> Floats:
        """The bias (C,) with which ``weight`` (C, K) gives the mean of y."""
        g, K = self.x_mean.shape
        return np.asarray(self.y_mean - np.einsum("gck,gk->gc", weight.reshape(g, -1, K), self.x_mean).ravel())

    def power(self, weight: Floats) -> Floats:
        """sum (w (x - x_mean))^2 for every channel (C,) of ``weight`` (C, K): w xx w'."""
        g, K = self.x_mean.shape
        w = weight.reshape(g, -1, K)
        if np.count_nonzero(w) > SPARSE * w.size:
            with one_each() as threads:
                return np.asarray(np.einsum("gck,gck->gc", product(threads, w, self.xx), w).ravel())
        places = np.flatnonzero(weight)
        values, inputs, channels = np.append(weight.ravel()[places], 0.0), np.append(places % K, 0), np.append(places // K, 0)
        lines = channels // w.shape[1] * K + inputs
        slots = slots_of(bounds_of(places, (len(weight), K)))
        made = np.zeros(len(weight))

        def gather(number: int) -> None:
            here = slots[number]
            rows = values[here]
            images = gathered(self.xx, lines[here], inputs[here]) @ rows[:, :, None]
            made[channels[here[:, 0]]] = np.einsum("bn,bn->b", rows, images[:, :, 0])

        side_by_side(gather, range(len(slots)), GATHERED * powers(np.count_nonzero(weight, axis=1), 2))
        return made

    def error(self, weight: Floats, shift: Floats, importance: Floats | None = None, power: Floats | None = None) -> float:
        """sum (y - weight x - shift)^2 / sum (y - y_mean)^2 over rows and channels: 0 is perfect, 1 a constant.

        importance: (C,) float64, how often a channel's squares count in both sums; None: once. power: that of the weight, where known.
        """
        w = weight.reshape(len(self.xx), -1, weight.shape[1])
        inner = (self.power(weight) if power is None else power) - 2.0 * np.einsum("gkc,gck->gc", self.xy, w).ravel() + self.yy
        counts = np.ones(len(self.yy)) if importance is None else importance
        left = max(0.0, float(counts @ inner)) + self.count * float(counts @ (self.shift(weight) - shift) ** 2)
        total = float(counts @ self.yy)
        return left / total if total > 0 else (0.0 if left == 0 else np.inf)


def add_products(threads: Threads, xx: Floats, xy: Floats, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
    """Add x x' and x y' of rows to sums of them: a (R, g, K), b (R, g, n); xx (g, K, K), on and above its diagonal, and xy (g, K, n).

    In a block of `one_each`.
    """
    groups, K = a.shape[1:]
    left, right = a.transpose(1, 0, 2), b.transpose(1, 0, 2)
    if K <= SIDE:
        left = np.ascontiguousarray(left)
        parts = [(slice(at, at + FEW), slice(K)) for at in range(0, groups, FEW)]
    else:
        parts = [(slice(g, g + 1), slice(at, at + SIDE)) for g in range(groups) for at in range(0, K, SIDE)]

    def block(part: tuple[slice, slice]) -> None:
        some, rows = part
        turned = left[some, :, rows].transpose(0, 2, 1)
        xx[some, rows, rows.start :] += turned @ left[some, :, rows.start :]
        xy[some, rows] += turned @ right[some]

    shared(threads, block, parts, float(a.shape[0] * groups * K * (K + xy.shape[2])))


def _mirror(xx: Floats, first: int) -> None:
    """Make `SIDE` columns of each matrix (g, K, K) from ``first`` on below the diagonal what rows are above it."""
    beside = xx[:, first : first + SIDE, first:]
    beside[:, :, :SIDE] = np.triu(beside[:, :, :SIDE]) + np.triu(beside[:, :, :SIDE], 1).transpose(0, 2, 1)
    xx[:, first + SIDE :, first : first + SIDE] = beside[:, :, SIDE:].transpose(0, 2, 1)


def centred(threads: Threads, x: npt.NDArray[Any], middle: npt.NDArray[Any], out: npt.NDArray[Any]) -> None:
    """x - middle for rows x (R, n), into ``out``. In a block of `one_each`."""

    def part(at: int) -> None:
        np.subtract(x[at : at + SIDE], middle, out=out[at : at + SIDE])

    shared(threads, part, range(0, len(x), SIDE), float(x.size))


def ridge_of(gram: Gram, ridge: float) -> Floats:
    """lam (g,): ridge times the mean of G's diagonal; 1 for a group whose inputs never vary, which any weight fits."""
    mean = np.einsum("gkk->g", gram.xx) / (gram.count * gram.xx.shape[1])
    return np.where(mean > 0, ridge * mean, 1.0)
