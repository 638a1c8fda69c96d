"""Backward elimination: the weights of a support whose loss costs least go, a few at a time, and the rest makes up for them.

With H = (G_SS + lam I)^-1 of a channel's support S, and w the least-squares weights on it, leaving weight i out raises the channel's
squared error by exactly w_i^2 / H_ii once the others are solved again (optimal brain surgeon; weight by weight: OBC, arXiv 2208.11580).
Dropping a set b at once is the block form, for the rest r:

    w_r -= H_rb H_bb^-1 w_b,     H_rr -= H_rb H_bb^-1 H_br

What goes is decided over all channels together, so those that need more weights keep more. Many at a time are misjudged where they stand
in for each other: the smaller the steps, the better (docs/reconstruction.md has the errors by step).
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.threads import one_each, powers, shared

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]
SMALL = 48
"""Rows of a half below which LAPACK factors a matrix and inverts the factor."""


def eliminate(
    G: Floats, rhs: Floats, lam: Floats, mask: Bools, alive: Bools, sizes: Sequence[int], rows: int = 1
) -> tuple[Bools, Floats, list[Floats]]:
    """The support of ``sizes[-1]`` weights, reached from ``mask`` by way of the other sizes; the weights on it; those after each size.

    G: (g, K, K) float64, summed over ``rows`` rows; rhs: (C, K) float64, R' + lam w0; lam: (g,) float64, above zero; mask: (C, K) bool;
    alive: (C, K) bool, False for an input that never varies, whose weights go first (the bias makes up for all they do); sizes: falling,
    none above the support's. Ties go to the higher index, so the count is exact and the choice repeatable.
    Returns mask (C, K) bool, weights (C, K) float64, and for each size the weights of the first support in its order, 0 where dropped.
    """
    C, K = mask.shape
    places = np.flatnonzero(mask.ravel())  # the support, channel after channel; all flat arrays below follow it
    bounds = bounds_of(places, (C, K))
    goal, varies = rhs.ravel()[places], alive.ravel()[places]
    weight, spread = np.zeros(len(places)), np.zeros(len(places))  # spread is the diagonal of H
    gone = np.zeros(len(places), np.bool_)
    parts = [slice(*pair) for pair in itertools.pairwise(bounds.tolist())]
    starts, factors = _matrices(parts), _matrices(parts)
    weights, spreads = [weight[part] for part in parts], [spread[part] for part in parts]
    made = [0] * C  # rows of F so far

    def begin(c: int) -> None:
        inputs, g = places[parts[c]] - c * K, c // (C // len(G))
        A = among(G, g, inputs)
        A /= rows
        A.reshape(-1)[:: len(inputs) + 1] += lam[g]
        starts[c][:] = A = inverse(A)
        np.dot(A, goal[parts[c]], out=weights[c])
        spreads[c][:] = np.diagonal(A)

    def drop(c: int) -> None:
        """H is A - F'F: the inverse at the beginning, less Cholesky's factor, of a row for each weight that went."""
        F, w, done = factors[c], weights[c], made[c]
        now = out[edges[c] : edges[c + 1]] - parts[c].start
        made[c] = end = done + len(now)
        across = starts[c][now]
        if done:
            across -= F[:done, now].T @ F[:done]
        turn = inverse_factor(across[:, now])
        fresh = np.matmul(turn, across, out=F[done:end])
        w -= np.dot(np.dot(turn, w[now]), fresh)
        spreads[c] -= np.einsum("bn,bn->n", fresh, fresh)

    trail = []
    with one_each() as threads:
        shared(threads, begin, range(C), 2.0 * powers(np.diff(bounds), 3))
        for size in sizes:
            there = np.flatnonzero(~gone)
            if len(there) > size:
                loss = weight[there] ** 2 / spread[there] * varies[there]
                out = there[least(loss, len(there) - size)]
                ends = np.searchsorted(out, bounds)
                edges = ends.tolist()
                gone[out] = True
                shared(threads, drop, np.flatnonzero(np.diff(ends)).tolist(), 2.0 * len(out) * len(places) / C * float(gone.sum()) / C)
                weight[gone] = 0.0  # rounding is left in those that went before
            trail.append(weight.copy())
    kept, solved = np.zeros(C * K, np.bool_), np.zeros(C * K)
    kept[places], solved[places] = ~gone, weight
    return kept.reshape(C, K), solved.reshape(C, K), trail


def among(G: Floats, g: int, inputs: npt.NDArray[np.intp]) -> Floats:
    """The rows and columns ``inputs`` (n,) of matrix ``g`` of G (g, K, K): (n, n). An index with two arrays takes twice the time."""
    K = G.shape[1]
    return np.asarray(G.reshape(-1).take(((g * K + inputs) * K)[:, None] + inputs))


def bounds_of(places: npt.NDArray[np.intp], shape: tuple[int, int]) -> npt.NDArray[np.intp]:
    """Between which of the places (n,) in (C, K), flat and ascending, each channel's lie: from one of the bounds (C + 1,) to the next."""
    return np.searchsorted(places, np.arange(shape[0] + 1) * shape[1])


def alike(sizes: npt.NDArray[np.intp], entries: int) -> list[list[int]]:
    """Channels of like sizes (C,), the largest first, in batches whose matrices, filled up to the first, have so many entries together.

    Those of size 0 are in none.
    """
    order = np.argsort(-sizes, kind="stable")[: np.count_nonzero(sizes)].tolist()
    batches: list[list[int]] = []
    while order:
        n = int(sizes[order[0]])
        count = max(1, entries // (n * n))
        batches.append(order[:count])
        del order[:count]
    return batches


def _matrices(parts: Sequence[slice]) -> list[Floats]:
    """Room for a square matrix for each part, in one array: thousands of small ones from several threads would stay with the process."""
    sizes = [part.stop - part.start for part in parts]
    store = np.empty(sum(n * n for n in sizes))
    ends = itertools.accumulate(n * n for n in sizes)
    return [store[end - n * n : end].reshape(n, n) for n, end in zip(sizes, ends, strict=True)]


def least(values: Floats, count: int) -> npt.NDArray[np.intp]:
    """The places of so many least values, ascending; of equal ones the first. NaN counts as infinite."""
    values = np.where(np.isnan(values), np.inf, values)
    border = np.partition(values, count - 1)[count - 1]
    taken = values < border
    taken[np.flatnonzero(values == border)[: count - int(taken.sum())]] = True
    return np.flatnonzero(taken)


def inverse(A: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of a symmetric positive definite matrix (n, n), or of each of several (..., n, n), exactly symmetric: T'T of the inverse
    T of Cholesky's factor.

    Products are twice as fast as LAPACK's inverse. Halves of A^-1 itself would be faster still, but each level multiplies the error of
    the one below by the condition: of 672 inputs with one of 2e4, in four levels, nothing was right.
    """
    T = inverse_factor(A)
    return np.asarray(T.swapaxes(-1, -2) @ T)


def inverse_factor(A: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The inverse of the Cholesky factor of a symmetric positive definite matrix, of which it reads the lower half; by halves.

    Of several (..., n, n) at once it takes less time where they are small: the calls are fewer, and so LAPACK's part can be smaller.
    """
    half = A.shape[-1] // 2
    if half < (SMALL if A.ndim == 2 else SMALL // 2):
        return np.linalg.inv(np.linalg.cholesky(A))
    T = np.zeros_like(A)
    T[..., :half, :half] = first = inverse_factor(A[..., :half, :half])
    across = A[..., half:, :half] @ first.swapaxes(-1, -2)
    T[..., half:, half:] = last = inverse_factor(A[..., half:, half:] - across @ across.swapaxes(-1, -2))
    T[..., half:, :half] = -(last @ (across @ first))
    return T
