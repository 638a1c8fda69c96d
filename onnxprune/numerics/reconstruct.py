"""A layer's kept weights by least squares: on the pruned model's inputs it gives what the dense layer gives.

Rows x are patches of the layer's input in the current model (pruned, repaired up to here), y the dense model's output
at the same place; both are centred. The weight of output channel c on its support S is

    w_S = (G_SS + lam I)^-1 (R_Sc + lam w0_S),   G = E[x x'], R = E[x y'], lam = ridge * mean diag G

and the bias makes the output's mean the dense one: b = mean y - w . mean x. The support comes from `thinning`.
Related: AdaPrune (arXiv 2102.08124), OBC (2208.11580), SparseGPT (2301.00774).
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.elimination import Bools, Floats, among
from onnxprune.numerics.ridges import RIDGE, candidates
from onnxprune.numerics.supports import schedule, sizes_of
from onnxprune.numerics.thinning import right_side, solve, thin
from onnxprune.numerics.threads import one_each, product, side_by_side

ROWS = 4096  # rows of one float32 product; the sums over products are float64
SIDE, FEW = 128, 16  # columns of such a product that one thread makes; of small ones, so many groups
SPARSE = 0.2  # up to this share of weights, those entries of xx that they meet are gathered, in place of a product with all
FEW_HELD = 6  # held-out rows have a part in choosing the support where they are more than one in so many
FACTOR = 1.4  # by magnitude, each support is 1/FACTOR of the one before,
FINE = 1.05  # by elimination, 1/FINE
START = 16.0  # the first support, in units of the last


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
        with one_each() as (pool, _):
            for at in range(0, rows, ROWS):
                a, b = apart[: rows - at], y[at : at + ROWS] - level
                np.subtract(x[at : at + ROWS], middle, out=a)
                with np.errstate(over="ignore", invalid="ignore"):  # what overflows is infinite or NaN, and seen by who solves
                    yy += np.einsum("rc,rc->c", b, b, dtype=np.float64)
                add_products(pool, xx, xy, a.reshape(-1, groups, K), b.reshape(-1, groups, C // groups))
        for first in range(0, K, SIDE):  # below the diagonal as above it
            beside = xx[:, first : first + SIDE, first:]
            beside[:, :, :SIDE] = np.triu(beside[:, :, :SIDE]) + np.triu(beside[:, :, :SIDE], 1).transpose(0, 2, 1)
            xx[:, first + SIDE :, first : first + SIDE] = beside[:, :, SIDE:].transpose(0, 2, 1)
        return cls(rows, x_mean.reshape(groups, K), y_mean, xx, xy, yy)

    def merge(self, other: Self, *, overwrite: bool = False) -> Self:
        """The moments of the rows of both, exactly (Chan, Golub, LeVeque 1983).

        ``overwrite`` puts them where this one's were, whose values are lost: one (g, K, K) array less.
        """
        n = self.count + other.count
        if not self.count or not other.count:
            return self if self.count else other
        dx, dy = other.x_mean - self.x_mean, other.y_mean - self.y_mean
        share, between = other.count / n, self.count * other.count / n
        xx = np.add(self.xx, other.xx, out=self.xx if overwrite else None)
        xx += between * dx[:, :, None] * dx[:, None, :]
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
            with one_each() as (pool, _):
                return np.asarray(np.einsum("gck,gck->gc", product(pool, w, self.xx), w).ravel())
        made = np.zeros(len(weight))

        def gather(c: int) -> None:
            inputs = np.flatnonzero(weight[c])
            row = weight[c, inputs]
            made[c] = row @ among(self.xx, c // w.shape[1], inputs) @ row

        side_by_side(gather, np.arange(len(weight)))
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


def add_products(pool: ThreadPoolExecutor, xx: Floats, xy: Floats, a: npt.NDArray[Any], b: npt.NDArray[Any]) -> None:
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
        with np.errstate(over="ignore", invalid="ignore"):
            turned = left[some, :, rows].transpose(0, 2, 1)
            xx[some, rows, rows.start :] += turned @ left[some, :, rows.start :]
            xy[some, rows] += turned @ right[some]

    for _ in pool.map(block, parts):
        pass


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A repaired layer: weight (C, K) float64, zero where mask (C, K) bool is False; shift (C,) float64, its bias.

    blind: (C, K) weights on the same support that saw only the rows to solve on; those of `weight` where no rows were held out.
    error_after: relative (`Gram.error`), of the blind weights on the rows held out, where there are some.
    ridge: the chosen one. steps: the support sizes gone through, the last the kept; curve: the relative error on the rows that chose the
    support after each.
    """

    weight: Floats
    blind: Floats
    shift: Floats
    mask: Bools
    error_after: float
    ridge: float
    steps: tuple[int, ...]
    curve: tuple[float, ...]


def refit(fit: Gram, w0: Floats, mask: Bools, ridge: float, start: Floats | None = None) -> Floats:
    """The least-squares weights (C, K) on a given support, with ``ridge`` towards ``w0`` (C, K), the dense weights.

    start: (C, K) weights near by, from which an iterative solve begins.
    """
    lam = ridge_of(fit, ridge)
    rhs, _ = right_side(fit.xy / fit.count, lam, w0)
    return solve(fit.xx, rhs, lam, mask, w0 if start is None else start, rows=fit.count)


def reconstruct(
    whole: Gram,
    apart: tuple[Gram, Gram] | None,
    w0: npt.NDArray[Any],
    keep: int,
    *,
    ridges: Sequence[float] | None = None,
    factor: float = FACTOR,
    start: float = START,
    fine: float = FINE,
    pattern: tuple[int, int, int] | None = None,
    importance: Floats | None = None,
    unseen: bool = False,
) -> Reconstruction:
    """The ``keep`` weights of a layer that best give the dense outputs, chosen over all channels and groups together.

    whole: all rows, on which the weights are solved.
    apart: the same rows in two parts: weights solved on the first and measured on the second choose of ``ridges`` (None: by the number
    of rows, `ridges.candidates`) and give the error; None: no rows are held out. The support is chosen on the first part, and on all rows
    where the second is more than one in `FEW_HELD` of them.
    w0: (C, K) the dense weights with their BatchNorm folded in, so that explicit and folded models are one problem.
    pattern: (n, m, kernel) for n of every m weights along the input-channel axis, K being (in/group, *kernel);
    keep is C*K*n/m then.
    importance: (C,) float64, > 0: what a channel's squared error counts when the channels share the weights out; None: all alike.
    On a given support it changes no weight; errors count it in.
    start, factor, fine: the supports on the way (`supports.sizes_of`); fine 1 leaves elimination out, as a pattern does.
    unseen: with fewer rows than inputs the support is chosen on the first part alone, so that nothing has seen the rows held out.
    """
    w0 = np.asarray(w0, np.float64)
    C, K = w0.shape
    fit, measure = apart or (whole, whole)
    unseen = unseen and apart is not None and fit.count < K
    first, tried = (RIDGE, (RIDGE,)) if apart is None else candidates(fit.count, K, unseen=unseen)
    if ridges is not None:
        first, tried = sorted(ridges)[len(ridges) // 2] if ridges else 0.0, ridges
    if (len(whole.x_mean), whole.x_mean.shape[1], len(whole.y_mean)) != (len(whole.xx), K, C) or not 0 <= keep <= w0.size:
        raise ValueError(f"keep {keep} of weights {w0.shape} with rows of {whole.x_mean.shape} inputs and {whole.y_mean.shape} outputs")
    if min(fit.count, measure.count) == 0 or not tried or min(tried) <= 0 or factor <= 1 or start < 1:
        raise ValueError(f"{fit.count} rows, ridges {tuple(tried)}, factor {factor}, start {start}: want > 0, all > 0, > 1, >= 1")
    if pattern and (K % (pattern[1] * pattern[2]) or keep * pattern[1] != w0.size * pattern[0]):
        raise ValueError(f"pattern {pattern[0]}:{pattern[1]} over kernels of {pattern[2]} does not make {keep} of {w0.shape}")
    unit = np.ones(C) if importance is None else np.sqrt(importance)  # y and w in units in which all channels count alike
    sizes, near = (schedule(keep, w0.size, factor, start), []) if pattern else sizes_of(keep, C, K, start, factor, fine)
    steps = [*sizes[:-1], *near] if near else sizes
    rows = fit if unseen or measure.count * FEW_HELD <= whole.count else whole
    asked = rows.xy / rows.count * unit.reshape(len(rows.xy), 1, -1)
    mask, weight, gains = thin(rows.xx, asked, w0 * unit[:, None], ridge_of(rows, first), sizes, pattern, rows.count, near)
    weight /= unit[:, None]
    power = max(float(rows.yy @ unit**2) / rows.count, np.finfo(float).tiny)
    curve = tuple(max(0.0, 1.0 - gain / power) for gain in gains)
    blind = {r: weight if r == first and rows is fit else refit(fit, w0, mask, r, weight) for r in tried}
    errors = {r: measure.error(w, fit.shift(w), importance) for r, w in blind.items()}
    ridge = min(tried, key=lambda r: errors[r])
    if apart is None:
        weight = blind[ridge]
    elif rows is fit or ridge != first:
        weight = refit(whole, w0, mask, ridge, weight)
    return Reconstruction(weight, blind[ridge], whole.shift(weight), mask, errors[ridge], ridge, tuple(steps), curve)


def ridge_of(gram: Gram, ridge: float) -> Floats:
    """lam (g,): ridge times the mean of G's diagonal; 1 for a group whose inputs never vary, which any weight fits."""
    mean = np.einsum("gkk->g", gram.xx) / (gram.count * gram.xx.shape[1])
    return np.where(mean > 0, ridge * mean, 1.0)
