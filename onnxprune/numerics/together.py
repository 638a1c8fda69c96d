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
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.conjugate import descended
from onnxprune.numerics.elimination import Bools, Floats, bounds_of, inverse, least
from onnxprune.numerics.problem import Problem
from onnxprune.numerics.stacks import Stack, gathered, slots_of, without
from onnxprune.numerics.supports import fits
from onnxprune.numerics.threads import Threads, one_each, powers, product, shared

BETWEEN, LAST = 3, 8
"""Iterations while supports are chosen, and for the weights: few, for what directions of little effect ask for fits the samples."""
PLAIN = 8
"""Iterations where the channels' own matrices are too large to be inverted, and their diagonals stand for them."""


@dataclass(frozen=True, eq=False)
class Settled:
    """What is known of weights on a support that were solved together, all in the order of their places (n,) in (C, K), flat.

    weight (n,) float64; seen (n,): G_SS w, G being the mean; stacks: the inverses of each channel's G_SS + lam I, float32, or float64
    where that is not enough. With another right side, the same G and the same ridge, a solve begins here.
    """

    places: npt.NDArray[np.intp]
    weight: Floats
    seen: Floats
    stacks: list[Stack]

    def power(self, shape: tuple[int, int]) -> Floats:
        """The mean of (w x)^2 for each channel (C,) of weights (C, K), x being centred."""
        return np.bincount(self.places // shape[1], self.weight * self.seen, shape[0]).astype(np.float64)


def solve_together(problem: Problem, mask: Bools, start: Floats, settled: Settled | None = None) -> tuple[Floats, Settled | None]:
    """The weights (C, K) float64 on a support (C, K) bool, and what the next solve on it can begin with.

    start: (C, K) float64, weights near by. settled: of the same support, G and ridge, in place of them. It is None where the channels'
    matrices are too large to be inverted. These are inverted in float32, which the weights are written in too; where that is not
    enough, in float64.
    """
    if settled is None and not fits(mask.sum(1)):
        return _plain(problem, mask, start), None

    def solved(G: npt.NDArray[Any], rows: int, settled: Settled | None) -> Settled:
        with one_each() as threads:
            return _settle(problem, threads, settled or _begin(problem, threads, mask, start, G, rows), LAST)

    found = None
    with np.errstate(over="ignore", invalid="ignore"), contextlib.suppress(np.linalg.LinAlgError):
        found = solved(problem.single, 1, settled)
    if found is None or not np.isfinite(found.weight).all():
        found = solved(problem.G, problem.rows, None)
    weight = np.zeros(mask.size)
    weight[found.places] = found.weight
    return weight.reshape(mask.shape), found


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
    with one_each() as threads:
        now = _begin(problem, threads, mask, None, G, rows)
        for size in (len(now.places), *sizes):
            if len(now.places) > size:
                spread = np.empty(len(now.places) + 1)
                for stack in now.stacks:
                    stack.diagonals(spread)
                loss = each[now.places] * now.weight**2 / spread[:-1] * varies[now.places]
                now = _left(problem, threads, now, least(loss, len(now.places) - size))
            now = _settle(problem, threads, now, BETWEEN)
            gain = np.bincount(now.places // K, (2.0 * goal[now.places] - now.seen) * now.weight, C)
            explained.append(gain.astype(np.float64))
        alone = _times(threads, now.stacks, problem.goal(now.places))
    kept, solved, apart = np.zeros(C * K, np.bool_), np.zeros(C * K), np.zeros(C * K)
    kept[now.places], solved[now.places], apart[now.places] = True, now.weight, alone
    return kept.reshape(C, K), solved.reshape(C, K), apart.reshape(C, K), explained


def _begin(problem: Problem, threads: Threads, mask: Bools, start: Floats | None, G: npt.NDArray[Any], rows: int) -> Settled:
    """What is known at weights near by; without them at those of each channel solved by itself. G: summed over ``rows`` rows."""
    C, K = mask.shape
    places = np.flatnonzero(mask.ravel())
    slots = slots_of(bounds_of(places, (C, K)))
    columns, goal = np.append(places % K, 0), np.append(problem.goal(places), 0.0)
    weight, seen = np.zeros(len(goal)) if start is None else np.append(start.ravel()[places], 0.0), np.zeros(len(goal))
    stacks: dict[int, Stack] = {}

    def some(number: int) -> None:
        here = slots[number]
        inputs = columns[here]
        A = gathered(G, inputs, inputs, here < len(places))
        A /= rows
        if start is not None:
            Stack(A, here).times(weight, seen)
        A.reshape(len(A), -1)[:, :: A.shape[1] + 1] += problem.lam
        stacks[number] = made = Stack(inverse(A), here)
        if start is None:
            made.times(goal, weight)

    shared(threads, some, range(len(slots)), 2.0 * powers(mask.sum(1), 3))
    if start is None:
        seen = goal - problem.lam * weight
    return Settled(places, weight[:-1], seen[:-1], [stacks[number] for number in range(len(slots))])


def _left(problem: Problem, threads: Threads, now: Settled, out: npt.NDArray[np.intp]) -> Settled:
    """What is left without the weights ``out``, numbers among the places: each channel's others make up for its own (elimination)."""
    gone = np.zeros(len(now.places) + 1, np.bool_)
    gone[out] = True
    stay = np.flatnonzero(~gone[:-1])
    after, weight, left = np.cumsum(~gone) - 1, np.append(now.weight, 0.0), np.zeros(len(stay) + 1)
    stacks = list(now.stacks)

    def some(number: int) -> None:
        stacks[number] = without(now.stacks[number], gone, after, weight, left)

    sizes = np.bincount(now.places // problem.w0.shape[1])
    shared(threads, some, range(len(stacks)), 2.0 * len(out) / len(now.places) * powers(sizes, 3))
    seen = now.seen[stay] + problem.lam * (now.weight[stay] - left[:-1])  # G w + lam w stays as it was
    return Settled(now.places[stay], left[:-1], seen, [stack for stack in stacks if stack.slots.size])


def _times(threads: Threads, stacks: Sequence[Stack], values: Floats) -> Floats:
    """The matrices times values (n,) of all weights, (n,)."""
    given, made = np.append(values, 0.0), np.empty(len(values) + 1)
    flops = 2.0 * sum(stack.matrices.size for stack in stacks)
    shared(threads, lambda number: stacks[number].times(given, made), range(len(stacks)), flops)
    return made[:-1]


def _settle(problem: Problem, threads: Threads, now: Settled, iterations: int) -> Settled:
    """The weights on a support after so many iterations of conjugate gradients."""
    (C, K), places, lam = problem.w0.shape, now.places, problem.lam
    each, own = (values[places // K] for values in (problem.metric.counts, problem.metric.own))
    U = problem.metric.along.astype(np.float32)
    spreads = np.zeros(C * K, np.float32)

    def preconditioned(residual: Floats) -> Floats:
        return np.asarray(_times(threads, now.stacks, residual) / each)

    def along(weight: Floats) -> npt.NDArray[np.float32]:
        """U' D G, (r, K)."""
        spreads[places] = weight
        ways = product(threads, spreads.reshape(C, K).T[None], U[None])
        return np.asarray(product(threads, problem.single[None], ways)[0].T)

    def across(ways: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """U times ways (r, K), on the support."""
        return np.asarray(product(threads, U[None], ways[None])[0].ravel()[places])

    def image(way: Floats, before: Floats) -> Floats:
        inner = before / each - lam * way  # G_SS times the way
        return np.asarray(before + across(along(way)) - (each - own) * inner)

    pull = lam * each * (problem.w0.ravel()[places] - now.weight)
    residual = own * (problem.R.ravel()[places] - now.seen) + across(problem.asked - along(now.weight)) + pull
    power = float(np.vdot(each * now.weight, now.seen + lam * now.weight))
    moved, before = descended(residual, preconditioned, image, iterations, power)
    return Settled(places, now.weight + moved, now.seen + before / each - lam * moved, now.stacks)


def _plain(problem: Problem, mask: Bools, start: Floats) -> Floats:
    """`solve_together` by products of all channels with G, the diagonal as preconditioner."""
    single, counts, lam = problem.single, problem.metric.counts[:, None], problem.lam
    scale = counts * (np.diag(single) + lam)
    weight = np.where(mask, start, 0.0)
    with one_each() as threads:

        def image(way: Floats) -> Floats:
            made = product(threads, way.astype(np.float32)[None], single[None])[0]
            return np.where(mask, problem.joined(made) + lam * counts * way, 0.0)

        wanted = np.where(mask, problem.joined(problem.R) + lam * counts * problem.w0, 0.0)
        power = float(np.vdot(wanted, weight))
        moved, _ = descended(wanted - image(weight), lambda left: left / scale, lambda way, _: image(way), PLAIN, power)
    return np.asarray(weight + moved)
