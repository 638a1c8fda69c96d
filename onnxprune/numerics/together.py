"""Least squares of all output channels together, where their errors count as a metric says, and supports that it chooses.

`thinning` gives every channel its own least squares. Where the errors e (C,) of a row count as e' M e in the outputs, and M is far from
diagonal, channels can make up for each other: most directions in which a wide layer errs do not reach the outputs. The weights W (C, K)
on given supports solve

    M W G - M R + lam diag(M) (W - w0) = 0 on the supports,   M = diag(own) + U U'

with G = E[x x'], R = E[y x'] of centred rows and w0 the dense weights. By conjugate gradients, preconditioned with the inverse of each
channel's own matrix (G_SS + lam I) diag(M)_c, which elimination needs too: leaving weight i out of channel c costs diag(M)_c w_i^2 /
[(G_SS + lam I)^-1]_ii as long as the other channels stay as they are. Then all are solved once more, and make up for it.

What all channels share takes 2 r K^2 flops an iteration, r the directions in U, in place of 2 C K^2.
"""

import contextlib
import itertools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.conjugate import descended
from onnxprune.numerics.elimination import Bools, Floats, alike, among, inverse, inverse_factor, least
from onnxprune.numerics.problem import Problem
from onnxprune.numerics.supports import fits
from onnxprune.numerics.threads import one_each, powers, product, shared

BETWEEN, LAST = 3, 8
"""Iterations while supports are chosen, and for the weights: few, for what directions of little effect ask for fits the samples."""
STACK = 1 << 19
"""Entries of the matrices that are inverted in one go, filled up to the largest: of fewer each call does too little."""
PLAIN = 8
"""Iterations where the channels' own matrices are too large to be inverted, and their diagonals stand for them."""


@dataclass(frozen=True, eq=False)
class Settled:
    """What is known of weights on a support that were solved together, all in the order of their places (n,) in (C, K), flat.

    weight (n,) float64; seen (n,): G_SS w, G being the mean; inverses: (n_c, n_c) of G_SS + lam I for each channel, float32 while
    supports are chosen, else float64. With another right side, the same G and the same ridge, a solve begins here.
    """

    places: npt.NDArray[np.intp]
    weight: Floats
    seen: Floats
    inverses: list[npt.NDArray[Any]]


def solve_together(problem: Problem, mask: Bools, start: Floats, settled: Settled | None = None) -> tuple[Floats, Settled | None]:
    """The weights (C, K) float64 on a support (C, K) bool, and what the next solve on it can begin with.

    start: (C, K) float64, weights near by. settled: of the same support, G and ridge, in place of them. It is None where the channels'
    matrices are too large to be inverted.
    """
    if settled is None and not fits(mask.sum(1)):
        return _plain(problem, mask, start), None
    with one_each() as (pool, threads):
        settled = settled or _begin(problem, pool, threads, mask, start, problem.G, problem.rows)
        settled = _settle(problem, pool, threads, settled, LAST)
    weight = np.zeros(mask.size)
    weight[settled.places] = settled.weight
    return weight.reshape(mask.shape), settled


def thin_together(problem: Problem, mask: Bools, sizes: Sequence[int]) -> tuple[Bools, Floats, Floats, list[Floats]]:
    """The support of ``sizes[-1]`` weights, reached from ``mask`` (C, K) bool by way of the others, and the weights (C, K) on it.

    Then the weights of each channel solved by itself there, (C, K), and for the mask and each size what the weights solved together
    explain of each channel's mean square, (C,) float64. A weight whose input never varies goes first. Ties go to the higher index, so
    the count is exact and the choice repeatable. In float32, which is enough to choose by; where that is not, in float64.
    """
    with np.errstate(over="ignore", invalid="ignore"), contextlib.suppress(np.linalg.LinAlgError):
        found = _thinned(problem, mask, sizes, problem.single, 1)
        if np.isfinite(found[1]).all():
            return found
    return _thinned(problem, mask, sizes, problem.G, problem.rows)


def _thinned(
    problem: Problem, mask: Bools, sizes: Sequence[int], G: npt.NDArray[Any], rows: int
) -> tuple[Bools, Floats, Floats, list[Floats]]:
    """As `thin_together`, in the type of G, summed over ``rows`` rows."""
    C, K = mask.shape
    each, goal = np.repeat(problem.metric.counts, K), problem.R.ravel()
    varies = np.tile(np.diag(problem.G) > 0, C)
    explained: list[Floats] = []
    with one_each() as (pool, threads):
        now = _begin(problem, pool, threads, mask, None, G, rows)
        for size in (len(now.places), *sizes):
            if len(now.places) > size:
                spread = np.concatenate([np.diagonal(part) for part in now.inverses])
                loss = each[now.places] * now.weight**2 / spread * varies[now.places]
                now = _left(problem, pool, threads, now, least(loss, len(now.places) - size))
            now = _settle(problem, pool, threads, now, BETWEEN)
            gain = np.bincount(now.places // K, (2.0 * goal[now.places] - now.seen) * now.weight, C)
            explained.append(gain.astype(np.float64))
        wanted, parts = problem.goal(now.places).astype(G.dtype), _parts(problem, now.places)
        alone = np.concatenate([inverse @ wanted[part] for inverse, part in zip(now.inverses, parts, strict=True)])
    kept, solved, apart = np.zeros(C * K, np.bool_), np.zeros(C * K), np.zeros(C * K)
    kept[now.places], solved[now.places], apart[now.places] = True, now.weight, alone
    return kept.reshape(C, K), solved.reshape(C, K), apart.reshape(C, K), explained


def _parts(problem: Problem, places: npt.NDArray[np.intp]) -> list[slice]:
    """Where each channel's weights are among the places."""
    C, K = problem.w0.shape
    return [slice(*pair) for pair in itertools.pairwise(np.searchsorted(places, np.arange(C + 1) * K).tolist())]


def _begin(
    problem: Problem, pool: ThreadPoolExecutor, threads: int, mask: Bools, start: Floats | None, G: npt.NDArray[Any], rows: int
) -> Settled:
    """What is known at weights near by; without them at those of each channel solved by itself. G: summed over ``rows`` rows."""
    C, K = mask.shape
    places = np.flatnonzero(mask.ravel())
    parts = _parts(problem, places)
    weight, seen = (np.empty(len(places)) if start is None else start.ravel()[places]), np.empty(len(places))
    sizes, goal = mask.sum(1), problem.goal(places) if start is None else None
    inverses: list[npt.NDArray[Any]] = [np.empty((0, 0), G.dtype)] * C
    batches = alike(sizes, STACK)

    def some(number: int) -> None:
        batch = batches[number]
        stack = np.zeros((len(batch), *[sizes[batch[0]]] * 2), G.dtype)
        matrices = [A[: sizes[c], : sizes[c]] for A, c in zip(stack, batch, strict=True)]
        for A, c in zip(matrices, batch, strict=True):
            np.divide(among(G, 0, places[parts[c]] - c * K), rows, out=A)
            if start is not None:
                seen[parts[c]] = A @ weight[parts[c]]
        stack.reshape(len(batch), -1)[:, :: stack.shape[1] + 1] += problem.lam
        for A, c in zip(inverse(stack), batch, strict=True):
            inverses[c] = A[: sizes[c], : sizes[c]]
            if goal is not None:
                weight[parts[c]] = w = inverses[c] @ goal[parts[c]].astype(A.dtype)
                seen[parts[c]] = goal[parts[c]] - problem.lam * w

    shared(pool, threads, some, np.arange(len(batches)), 2.0 * powers(sizes, 3))
    return Settled(places, weight, seen, inverses)


def _left(problem: Problem, pool: ThreadPoolExecutor, threads: int, now: Settled, out: npt.NDArray[np.intp]) -> Settled:
    """What is left without the weights ``out``, numbers among the places: each channel's others make up for its own (elimination)."""
    gone = np.zeros(len(now.places), np.bool_)
    gone[out] = True
    parts = _parts(problem, now.places)
    weight, inverses = now.weight.copy(), list(now.inverses)

    def one(c: int) -> None:
        out, stay = np.flatnonzero(gone[parts[c]]), np.flatnonzero(~gone[parts[c]])
        rows = now.inverses[c][out]
        turn = inverse_factor(rows[:, out])
        fresh = turn @ rows[:, stay]
        inverses[c] = now.inverses[c].take(stay, 0).take(stay, 1) - fresh.T @ fresh
        w = weight[parts[c]]
        w[stay] -= (turn @ w[out].astype(turn.dtype)) @ fresh

    sizes = np.bincount(now.places // problem.w0.shape[1])
    flops = 2.0 * len(out) / len(now.places) * powers(sizes, 3)
    shared(pool, threads, one, np.unique(now.places[out] // problem.w0.shape[1]), flops)
    stay = ~gone
    seen = now.seen + problem.lam * (now.weight - weight)  # G w + lam w stays as it was
    return Settled(now.places[stay], weight[stay], seen[stay], inverses)


def _settle(problem: Problem, pool: ThreadPoolExecutor, threads: int, now: Settled, iterations: int) -> Settled:
    """The weights on a support after so many iterations of conjugate gradients."""
    (C, K), places, lam = problem.w0.shape, now.places, problem.lam
    parts = _parts(problem, places)
    sizes = np.array([part.stop - part.start for part in parts])
    each, own = (np.repeat(values, sizes) for values in (problem.metric.counts, problem.metric.own))
    U = problem.metric.along.astype(np.float32)

    given, made = (np.empty(len(places), now.inverses[0].dtype) for _ in range(2))
    products = [(now.inverses[c], given[part], made[part]) for c, part in enumerate(parts)]
    spreads = np.zeros(C * K, np.float32)

    def preconditioned(residual: Floats) -> Floats:
        given[:] = residual

        def one(c: int) -> None:
            np.dot(*products[c])

        shared(pool, threads, one, np.arange(C), 2.0 * powers(sizes, 2))
        return made / each

    def along(weight: Floats) -> npt.NDArray[np.float32]:
        """U' D G, (r, K)."""
        spreads[places] = weight
        ways = product(pool, spreads.reshape(C, K).T[None], U[None])
        return np.asarray(product(pool, problem.single[None], ways)[0].T)

    def across(ways: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """U times ways (r, K), on the support."""
        return np.asarray(product(pool, U[None], ways[None])[0].ravel()[places])

    def image(way: Floats, before: Floats) -> Floats:
        inner = before / each - lam * way  # G_SS times the way
        return np.asarray(before + across(along(way)) - (each - own) * inner)

    pull = lam * each * (problem.w0.ravel()[places] - now.weight)
    residual = own * (problem.R.ravel()[places] - now.seen) + across(problem.asked - along(now.weight)) + pull
    power = float(np.vdot(each * now.weight, now.seen + lam * now.weight))
    moved, before = descended(residual, preconditioned, image, iterations, power)
    return Settled(places, now.weight + moved, now.seen + before / each - lam * moved, now.inverses)


def _plain(problem: Problem, mask: Bools, start: Floats) -> Floats:
    """`solve_together` by products of all channels with G, the diagonal as preconditioner."""
    single, counts, lam = problem.single, problem.metric.counts[:, None], problem.lam
    scale = counts * (np.diag(single) + lam)
    weight = np.where(mask, start, 0.0)
    with one_each() as (pool, _):

        def image(way: Floats) -> Floats:
            made = product(pool, way.astype(np.float32)[None], single[None])[0]
            return np.where(mask, problem.joined(made) + lam * counts * way, 0.0)

        wanted = np.where(mask, problem.joined(problem.R) + lam * counts * problem.w0, 0.0)
        power = float(np.vdot(wanted, weight))
        moved, _ = descended(wanted - image(weight), lambda left: left / scale, lambda way, _: image(way), PLAIN, power)
    return np.asarray(weight + moved)
