"""Least squares on a support, and the progressive thinning of that support.

One layer, C output channels, K weights each, g groups of C/g channels that share a matrix. Per channel c with
support S the problem is

    minimise over w, zero outside S:   w' G w - 2 R_c' w + lam |w - w0|^2_S
    solved by                          (G_SS + lam I) w_S = R_Sc + lam w0_S            (1)

with G = E[x x'], R = E[x y'] of centred rows and w0 the dense weight (related: AdaPrune, arXiv 2102.08124).

Two solvers of (1), chosen by their cost:

- exact: gather G_SS and solve, channels of like size as one batch: sum over c of 2/3 |S_c|^3 flops, LAPACK.
- conjugate gradients on all channels at once (`conjugate`): 2 K^2 C flops an iteration. For large supports it is many times
  cheaper; warm-started from the step before.
"""

from collections.abc import Callable, Sequence
from functools import cache

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.conjugate import Singles, solve_iterative
from onnxprune.numerics.elimination import Bools, Floats, bounds_of, eliminate
from onnxprune.numerics.stacks import gathered, slots_of
from onnxprune.numerics.threads import one_each, powers, shared

SAMPLE, MARGIN = 1 << 14, 2  # values of a sample, and how far its bracket reaches to both sides, in roots of that: four deviations and more
SLICE = 256  # rows of matrices that a thread brings into float32 at a time
ROUGH = (4, 1e-2)  # iterations at most and tolerance of conjugate gradients that decide what to drop: more of them choose no better
FINE = (80, 1e-3)  # and of those that give the final weights (docs/reconstruction.md has what others give)
SLOWER = 5.0  # seconds a flop of float64 LAPACK on a gathered support over those of a large float32 product


def select(score: Floats, keep: int, allowed: Bools, protected: Bools | None = None) -> Bools:
    """The mask of the ``keep`` largest scores among ``allowed``, all ``protected`` ones included.

    score: (C, K) float64, not negative. Ties go to the lower index, so the count is exact and the choice repeatable.
    """
    flat = np.where(allowed, score, -1.0).ravel()
    if protected is not None:
        flat[protected.ravel()] = np.inf
    kept = np.zeros(flat.size, np.bool_)
    if keep > 0:
        border = largest(flat, keep)
        kept = flat > border
        kept[np.flatnonzero(flat == border)[: keep - int(kept.sum())]] = True
    return kept.reshape(score.shape)


def largest(values: Floats, place: int) -> float:
    """The number at this place, from 1 on, of the values (n,) float64 in falling order.

    A sample brackets it, and what lies between is sorted out: 7 ms for 2.4 million values, of which NumPy's partition takes 27. Its step
    is odd, so that it sees all places of a kernel.
    """
    sample = np.sort(values[:: values.size // SAMPLE | 1])
    middle, margin = len(sample) - place * len(sample) // values.size, MARGIN * int(len(sample) ** 0.5)
    low, high = sample[max(middle - margin, 0)], sample[min(middle + margin, len(sample) - 1)]
    between = values[(values >= low) & (values <= high)]
    left = place - int(np.count_nonzero(values > high))
    if not 0 < left <= between.size:  # the sample tells little where the order of the values has a pattern
        between, left = values, place
    return float(np.partition(between, between.size - left)[between.size - left])


def best_of_each(score: Floats, allowed: Bools, n: int, m: int, kernel: int) -> Bools:
    """The mask of the n largest of every m consecutive weights along the input-channel axis.

    score: (C, K) float64 with K laid out (in/group, *kernel), ``kernel`` the product of the kernel's sizes;
    m divides in/group.
    """
    C, K = score.shape
    block = np.where(allowed, score, -1.0).reshape(C, K // (m * kernel), m, kernel)
    order = np.argsort(-block, axis=2, kind="stable")
    kept = np.zeros(block.shape, np.bool_)
    np.put_along_axis(kept, order[:, :, :n], True, axis=2)
    return kept.reshape(C, K)


def solve_exact(G: Floats, rhs: Floats, lam: Floats, mask: Bools, rows: int = 1) -> Floats:
    """The weights (C, K) that solve (1) on ``mask``, zero outside it.

    G: (g, K, K) float64, summed over ``rows`` rows: what is used of it is divided by them, so that no second copy is needed for the
    mean; rhs: (C, K) float64, R' + lam w0; lam: (g,) float64, above zero; mask: (C, K) bool.
    Channels that keep everything share one factorisation; the others are solved side by side in threads.
    """
    C, K = mask.shape
    group = np.arange(C) // (C // len(G))
    weight = np.zeros((C, K))
    sizes = mask.sum(1)
    places = np.flatnonzero(mask & (sizes < K)[:, None])  # of those that do not keep everything
    inputs, wanted, solved = np.append(places % K, 0), np.append(rhs.ravel()[places], 0.0), np.zeros(len(places) + 1)
    lines = np.append(group[places // K] * K, 0) + inputs

    def fill_whole(g: int) -> None:
        whole = (sizes == K) & (group == g)
        A = G[g] / rows
        A.reshape(-1)[:: K + 1] += lam[g]
        weight[whole] = np.linalg.solve(A, rhs[whole].T).T

    def fill(slots: npt.NDArray[np.intp]) -> None:
        A = gathered(G, lines[slots], inputs[slots], slots < len(places))
        A /= rows
        A.reshape(len(A), -1)[:, :: A.shape[1] + 1] += lam[lines[slots[:, :1]] // K]
        solved[slots] = np.linalg.solve(A, wanted[slots][:, :, None])[:, :, 0]

    # OpenBLAS shares out factorisations from 200 rows on, and its threads wait by spinning: beside our own threads, or on a busy
    # machine, solves took 30 to 60 times their time (n = 300: 1.1 s of CPU became 31 to 66 s).
    with one_each() as threads:
        shared(threads, fill_whole, np.unique(group[sizes == K]).tolist(), float((sizes == K).any()) * K**3)
        shared(threads, fill, slots_of(bounds_of(places, (C, K))), powers(sizes[sizes < K], 3))
    weight.ravel()[places] = solved[:-1]
    return weight


def solve(
    G: Floats,
    rhs: Floats,
    lam: Floats,
    mask: Bools,
    start: Floats,
    *,
    rows: int = 1,
    effort: tuple[int, float] = FINE,
    mean: Callable[[], Singles] | None = None,
) -> Floats:
    """The weights (C, K) of (1) by the cheaper solver; conjugate gradients take ``effort``, iterations at most and a tolerance.

    start: (C, K) float64, weights near by; mean: gives G/rows in float32 where a caller keeps it. The rest as in `solve_exact`.
    """
    C, K = mask.shape
    iterations, tolerance = effort
    counts = mask.sum(1, dtype=np.float64)
    exact = (counts[counts < K] ** 3).sum() * 2 / 3  # full supports share one factorisation
    if exact * SLOWER <= 2.0 * K * K * C * iterations:
        return solve_exact(G, rhs, lam, mask, rows)
    return solve_iterative(mean() if mean else single(G, rows), rhs, lam, mask, start, iterations, tolerance)


def single(G: Floats, rows: int) -> Singles:
    """G (..., K, K) over the rows, float32."""
    made = np.empty(G.shape, np.float32)
    before, after = G.reshape(-1, G.shape[-1]), made.reshape(-1, G.shape[-1])

    def part(at: int) -> None:
        np.divide(before[at : at + SLICE], rows, out=after[at : at + SLICE], casting="same_kind")

    with one_each() as threads:
        shared(threads, part, range(0, len(before), SLICE), float(G.size))
    return made


def right_side(R: Floats, lam: Floats, w0: Floats) -> tuple[Floats, Floats]:
    """The right side R' + lam w0 of (1), float64 (C, K), and lam for every channel, (C, 1). R: (g, K, C/g); lam: (g,); w0: (C, K)."""
    pull = np.repeat(lam, len(w0) // len(lam))[:, None]
    return R.transpose(0, 2, 1).reshape(w0.shape) + pull * w0, pull


def thin(
    G: Floats,
    R: Floats,
    w0: Floats,
    lam: Floats,
    sizes: Sequence[int],
    pattern: tuple[int, int, int] | None = None,
    rows: int = 1,
    fine: Sequence[int] = (),
    *,
    unsolved: bool = False,
) -> tuple[Bools, Floats, list[float]]:
    """The support of ``sizes[-1]`` weights, or ``fine[-1]``, reached by way of the other sizes; the weights solved on it; gains.

    The gain of a size is sum over c of E[y^2] - E[(y - w x)^2], what the weights explain of the outputs after it:
    at the solution of (1) it is R w - lam w (w0 - w), no further product with G.

    First the ``sizes[0]`` largest dense weights; solve; of those the ``sizes[1]`` largest re-solved ones; solve; and so on. Then, where
    ``fine`` is given, elimination from the last of these supports through its sizes. A weight whose input never varies (zero diagonal of
    G) goes first: the bias makes up for all it does.
    G: (g, K, K) summed over ``rows`` rows (see `solve_exact`), R: (g, K, C/g), w0: (C, K) the dense weights, lam: (g,), all
    float64. ``pattern`` (n, m, kernel): every step keeps the n best of each m (see `best_of_each`), so the last one has the
    pattern when ``sizes[-1]`` is n/m of the layer. ``unsolved``: what magnitude chooses last is not solved,
    so that it has no gain, and the weights are those of before.
    """
    C, K = w0.shape
    rhs, pull = right_side(R, lam, w0)
    alive = np.repeat(np.einsum("gkk->gk", G) > 0, C // len(G), axis=0)
    mask = np.ones((C, K), np.bool_)
    weight = w0
    gains: list[float] = []
    mean = cache(lambda: single(G, rows))
    for step, keep in enumerate(sizes):
        score = np.abs(weight) * alive
        protected = best_of_each(score, mask, *pattern) if pattern else None
        mask = select(score, keep, mask, protected)
        if (fine or unsolved) and step == len(sizes) - 1:
            break
        weight = solve(G, rhs, lam, mask, weight, rows=rows, effort=ROUGH if step < len(sizes) - 1 else FINE, mean=mean)
        gains.append(float(np.sum((rhs - pull * (2.0 * w0 - weight)) * weight)))
    del mean
    if fine:
        first = mask
        mask, weight, trail = eliminate(G, rhs, lam, mask, alive, fine, rows)
        a, b = rhs[first], (pull * w0)[first]
        level = np.broadcast_to(pull, w0.shape)[first]
        gains += [float(np.sum((a - 2.0 * b + level * w) * w)) for w in trail]
    return mask, weight, gains
