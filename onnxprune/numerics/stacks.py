"""Symmetric matrices of output channels, each on the channel's own support, several of like size in one array.

Channels of a pruned layer keep some hundred weights each. Calls for one of them at a time do too little: what Python does in between, and
its lock going from thread to thread, take as long as the numbers do. So matrices of like size lie together, filled up to the largest.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.elimination import Bools, alike, inverse_factor

Values = npt.NDArray[Any]
Places = npt.NDArray[np.intp]
ENTRIES = 1 << 19
"""Entries of the matrices of one stack at most: they have more than 500 rows in all, and so NumPy lets other threads go on (threads)."""
STACKS, LEAST = 8, 1 << 15
"""Threads share out so many stacks and more, where each has so many entries then."""


@dataclass(frozen=True, eq=False)
class Stack:
    """Matrices (B, n, n) of one float dtype, and slots (B, n): which weight of all channels each row is of, in the order of their places.

    A row that only fills up has the number after the last weight's; what it holds means nothing.
    """

    matrices: Values
    slots: Places

    def times(self, values: Values, into: Values) -> None:
        """The matrices times values (weights + 1,), the last of them 0, put where those are; the last is overwritten."""
        into[self.slots] = (self.matrices @ values[self.slots].astype(self.matrices.dtype)[:, :, None])[:, :, 0]

    def diagonals(self, into: Values) -> None:
        """The diagonals, put where the weights are in an array (weights + 1,)."""
        into[self.slots] = np.diagonal(self.matrices, axis1=1, axis2=2)


def slots_of(bounds: Places) -> list[Places]:
    """The slots of stacks for channels whose weights are those from one of the bounds (C + 1,) to the next."""
    sizes = np.diff(bounds)
    share = int((sizes.astype(np.float64) ** 2).sum()) // STACKS
    batches = [np.array(batch) for batch in alike(sizes, min(ENTRIES, max(share, LEAST)))]
    ranges = [np.arange(sizes[batch[0]]) for batch in batches]
    return [
        np.where(order < sizes[batch, None], bounds[batch, None] + order, bounds[-1]) for batch, order in zip(batches, ranges, strict=True)
    ]


def gathered(G: Values, rows: Places, columns: Places, there: Bools | None = None) -> Values:
    """Where rows and columns (B, n) of G (..., K) meet, (B, n, n): zeros outside ``there`` (B, n), None being everywhere.

    Rows are counted through all axes but the last.
    """
    made: Values = G.reshape(-1).take((rows * G.shape[-1])[:, :, None] + columns[:, None, :])
    if there is not None and not there.all():
        made *= there[:, :, None] & there[:, None, :]
    return made


def without(stack: Stack, gone: Bools, after: Places, weight: Values, left: Values) -> Stack:
    """A stack of inverses once weights are gone, and what those that stay make up for (elimination).

    gone: (weights + 1,) bool, True for those that go; after: (weights + 1,), the numbers of those that stay and of what fills up; weight:
    (weights + 1,) those of now; left: (weights that stay + 1,) gets them as they are then.
    """
    A, slots = stack.matrices, stack.slots
    count, n = slots.shape
    away = gone[slots]
    out, leaving = _numbers(away)
    stay, staying = _numbers(~away & (slots < len(gone) - 1))
    first = np.arange(count)[:, None] * n
    rows = A.reshape(-1, n).take(first + out, 0)  # (B, M, n)
    rows *= leaving[:, :, None]  # what fills up makes up for nothing; of `own` the lower half is read
    own = np.take_along_axis(rows, out[:, None, :], 2)
    own.reshape(count, -1)[:, :: out.shape[1] + 1] += ~leaving
    turn = inverse_factor(own)
    fresh = turn @ np.take_along_axis(rows, stay[:, None, :], 2)
    made = A.reshape(-1).take(((first + stay) * n)[:, :, None] + stay[:, None, :])
    made -= fresh.swapaxes(1, 2) @ fresh
    lost = weight[np.take_along_axis(slots, out, 1)].astype(A.dtype)
    now = np.take_along_axis(slots, stay, 1)
    places = np.where(staying, after[now], len(left) - 1)
    left[places] = weight[now] - (fresh.swapaxes(1, 2) @ (turn @ lost[:, :, None]))[:, :, 0]
    return Stack(made, places)


def _numbers(chosen: Bools) -> tuple[Places, Bools]:
    """Which columns of each row of chosen (B, n) are True, (B, m), filled up with 0 where a row has fewer than another, and where not."""
    counts = chosen.sum(1)
    there = np.arange(counts.max(initial=0)) < counts[:, None]
    found = np.zeros(there.shape, np.intp)
    found[there] = np.nonzero(chosen)[1]
    return found, there
