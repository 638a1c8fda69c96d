"""The largest scores over all layers by exact count, with few layers in memory at a time.

Each layer is read twice. The first reading leaves an outline of it: how many weights have less than some scores. For ``|w|`` these are the
buckets of a histogram by the high half of the floats' bit patterns, which are in the order of the numbers; for LAMP, whose scores need the
layer sorted, every STEP-th score. The outlines bracket the score that decides. The second reading takes the few scores inside the bracket;
a scan finds them, no second sort, and partial sums that were kept make them the same floats as LAMP scores computed in one piece.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import AllocationError
from onnxprune.numerics.masks import magnitude
from onnxprune.numerics.threads import cores

STEP = 4096
"""Ranks from one kept score to the next: 3e9 weights leave 18 MB."""
BLOCK = 16
"""Steps whose squares are summed up at a time: 512 kB, which stay in the cache."""
CHUNK = 1 << 17
"""Values that are counted at a time, for the same reason."""


@dataclass(frozen=True, eq=False)
class _Outline:
    """A layer at some of its ranks in ascending order of ``|w|``, from 0 to N.

    What lies before a rank is less than the number in ``values``, and what lies from there on is not; so it is with the ``scores``, in
    float64. At N they are the largest ``|w|`` and infinity. ``tails`` are the sums of w^2 from there on in float64, None for scores
    that are ``|w|`` itself. float64 weights are scaled by 2^-exponent before they are squared.
    """

    ranks: NDArray[np.int64]
    values: NDArray[Any]
    scores: NDArray[np.float64]
    tails: NDArray[np.float64] | None
    exponent: int

    @property
    def size(self) -> int:
        return int(self.ranks[-1])

    def surely(self, score: float) -> int:
        """The least number of weights that can have this score or more."""
        return self.size - int(self.ranks[self.scores.searchsorted(score)])

    def perhaps(self, score: float) -> int:
        """The largest number of weights that can have this score or more."""
        place = int(self.scores.searchsorted(score))
        return self.size - int(self.ranks[place - 1]) if place else self.size


@dataclass(frozen=True, eq=False)
class _Bracketed:
    """The distinct scores of a layer inside the bracket, ascending float64 (n,), and how many lie at or above each, int64 (n + 1,)."""

    scores: NDArray[np.float64]
    reach: NDArray[np.int64]

    def count(self, score: float, side: Any) -> int:
        return int(self.reach[self.scores.searchsorted(score, side)])


def largest(weights: Sequence[Any], total: int, *, lamp: bool, step: int = STEP) -> tuple[int, ...]:
    """Return how many of the ``total`` largest scores lie in each layer; ties go to the earlier layer.

    The scores are ``|w|``, or with ``lamp`` LAMP's: w_u^2 / sum over v from u on of w_v^2, ascending, float64. The items of ``weights``
    are arrays, or whatever np.asarray makes one of; it is asked twice for each, and the arrays are dropped.
    Raises AllocationError for a total outside 0..sum N, ValueError for NaN or infinity in a weight.
    """

    def outlined(index: int) -> _Outline:
        values = magnitude(np.asarray(weights[index]))
        if values.size and not np.isfinite(values.max()):  # max hands NaN on
            raise ValueError(f"weight of layer index {index}, shape {weights[index].shape}, has NaN or infinity; expected finite values")
        return _sorted(values, step) if lamp else _histogram(values)

    # As many layers at a time as there are cores, but of those that are read from files one.
    with ThreadPoolExecutor(cores() if all(isinstance(weight, np.ndarray) for weight in weights) else 1) as pool:
        outlines = list(pool.map(outlined, range(len(weights))))
        return _chosen(weights, outlines, total, pool)


def _chosen(weights: Sequence[Any], outlines: Sequence[_Outline], total: int, pool: Executor) -> tuple[int, ...]:
    """How many of the ``total`` largest scores lie in each layer, from the layers' outlines and a second reading."""
    refuse_total(sum(outline.size for outline in outlines), total)
    marks = np.unique(np.concatenate([outline.scores[:-1] for outline in outlines])) if outlines else np.zeros(0)
    if not marks.size:
        return (0,) * len(outlines)
    low = marks[max(bisect_left(marks, True, key=lambda mark: sum(one.surely(mark) for one in outlines) < total) - 1, 0)]
    place = bisect_left(marks, True, key=lambda mark: sum(one.perhaps(mark) for one in outlines) < total)
    high = marks[place] if place < len(marks) else np.inf
    return _counts(list(pool.map(lambda weight, one: _bracketed(weight, one, low, high), weights, outlines)), total)


def refuse_total(size: int, total: int) -> None:
    """Raises AllocationError for a total outside 0..size."""
    if not 0 <= total <= size:
        raise AllocationError(f"cannot keep {total} of {size} weights: expected a total from 0 to {size}")


def _histogram(values: NDArray[Any]) -> _Outline:
    """The outline of ``|w|`` by the buckets that hold any: the numbers that share the 16 high bits."""
    pattern = np.dtype(f"u{values.itemsize}")
    low = pattern.itemsize * 8 - 16
    counts = np.zeros(1 << 15, np.int64)  # there is no sign
    for start in range(0, values.size, CHUNK):
        counts += np.bincount(values[start : start + CHUNK].view(pattern) >> low, minlength=counts.size)
    held = np.flatnonzero(counts)
    edges = (held.astype(pattern) << pattern.type(low)).view(values.dtype)
    ranks = np.append(0, np.cumsum(counts[held]))
    return _Outline(ranks, np.append(edges, values.max(initial=0)), np.append(edges.astype(np.float64), np.inf), None, 0)


def _sorted(values: NDArray[Any], step: int) -> _Outline:
    """The outline of LAMP scores by every step-th of them; sorts the values."""
    values.sort()
    ranks = np.append(np.arange(0, values.size, step), values.size)
    marked = np.append(values[::step], values[-1:] if values.size else np.zeros(1))
    # The largest value to 0.5..1 by a power of two, so that no square overflows.
    exponent = int(np.frexp(marked[-1])[1]) if values.dtype == np.float64 else 0
    tails, block = np.zeros(ranks.size), BLOCK * step
    for start in reversed(range(0, values.size, block)):
        made = _tails(_squares(values[start : start + block], exponent), tails[-(-min(start + block, values.size) // step)])
        tails[start // step : start // step + -(-made.size // step)] = made[::step]
    scores = _scores(_squares(values[::step], exponent), tails[:-1])
    return _Outline(ranks, marked, np.append(scores, np.inf), tails, exponent)


def _bracketed(weight: Any, outline: _Outline, low: float, high: float) -> _Bracketed:
    """The layer's scores from ``low`` to below ``high``, and a few around them, by a second reading."""
    first = max(int(outline.scores.searchsorted(low)) - 1, 0)
    last = int(outline.scores.searchsorted(high))
    start, stop = int(outline.ranks[first]), int(outline.ranks[last])
    if start == stop:
        return _Bracketed(np.zeros(0), np.array([outline.size - stop]))
    values = magnitude(np.asarray(weight))
    least, most = outline.values[first], outline.values[last]
    below = start if outline.tails is None else int(np.count_nonzero(values < least))
    near = values[(values >= least) & (values <= most)]
    del values
    near.sort()
    near = near[start - below : stop - below]
    if outline.tails is None:
        scores = near.astype(np.float64)
    else:
        squares = _squares(near, outline.exponent)
        scores = _scores(squares, _tails(squares, outline.tails[last]))
    distinct, counts = np.unique(scores, return_counts=True)
    reach = np.append(np.cumsum(counts[::-1])[::-1], 0) + (outline.size - stop)
    return _Bracketed(distinct, reach)


def _squares(values: NDArray[Any], exponent: int) -> NDArray[np.float64]:
    squares = values.astype(np.float64)
    if exponent:
        np.ldexp(squares, -exponent, out=squares)
    squares *= squares
    return squares


def _tails(squares: NDArray[np.float64], behind: float) -> NDArray[np.float64]:
    """The sum from each ascending square on, added up from the last one, after what lies ``behind`` it."""
    running = np.empty(squares.size + 1)
    running[0] = behind
    running[1:] = squares[::-1]
    return np.cumsum(running, out=running)[:0:-1]


def _scores(squares: NDArray[np.float64], tails: NDArray[np.float64]) -> NDArray[np.float64]:
    """LAMP scores; they are ascending too, also after rounding. A layer of zeros scores 0."""
    return np.divide(squares, tails, out=np.zeros(squares.size), where=tails > 0)


def _counts(layers: Sequence[_Bracketed], total: int) -> tuple[int, ...]:
    """How many of the ``total`` largest scores each layer has, from those that decide."""
    scores = np.unique(np.concatenate([layer.scores for layer in layers]))
    place = bisect_left(scores, True, key=lambda score: sum(layer.count(score, "left") for layer in layers) < total)
    last = scores[max(place - 1, 0)]
    keep = [layer.count(last, "right") for layer in layers]
    left = total - sum(keep)
    for index, layer in enumerate(layers):
        tied = min(left, layer.count(last, "left") - keep[index])
        keep[index] += tied
        left -= tied
    return tuple(keep)
