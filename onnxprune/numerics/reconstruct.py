"""A layer's kept weights by least squares: on the pruned model's inputs it gives what the dense layer gives.

Rows x are patches of the layer's input in the current model (pruned, repaired up to here), y the dense model's output
at the same place; both are centred. The weight of output channel c on its support S is

    w_S = (G_SS + lam I)^-1 (R_Sc + lam w0_S),   G = E[x x'], R = E[x y'], lam = ridge * mean diag G

and the bias makes the output's mean the dense one: b = mean y - w . mean x. The support comes from `thinning`.
Related: AdaPrune (arXiv 2102.08124), OBC (2208.11580), SparseGPT (2301.00774).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from onnxprune.numerics.elimination import Bools, Floats
from onnxprune.numerics.gram import Gram, ridge_of
from onnxprune.numerics.metric import Metric
from onnxprune.numerics.problem import problem_of
from onnxprune.numerics.ridges import RIDGE, candidates
from onnxprune.numerics.supports import BEFORE, COARSE, FLOPS, STEP, above, sizes_of, together_of
from onnxprune.numerics.thinning import right_side, solve, thin
from onnxprune.numerics.together import Settled, solve_together, thin_together

FEW_HELD = 6  # held-out rows have a part in choosing the support where they are more than one in so many
FACTOR = 1.4  # by magnitude, each support is 1/FACTOR of the one before,
FINE = 1.05  # by elimination, 1/FINE
START = 16.0  # the first support, in units of the last


@dataclass(frozen=True, eq=False)
class Reconstruction:
    """A repaired layer: weight (C, K) float64, zero where mask (C, K) bool is False; shift (C,) float64, its bias.

    blind: (C, K) weights on the same support that saw only the rows to solve on; those of `weight` where no rows were held out.
    error_after: relative (`Gram.error`), of the blind weights on the rows held out, where there are some.
    ridge: the chosen one. steps: the support sizes gone through, the last the kept; curve: the relative error on the rows that chose the
    support after each. settled: where the channels were solved together, what the next such solve on the support begins with.
    """

    weight: Floats
    blind: Floats
    shift: Floats
    mask: Bools
    error_after: float
    ridge: float
    steps: tuple[int, ...]
    curve: tuple[float, ...]
    settled: Settled | None = None


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
    metric: Metric | None = None,
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
    metric: what errors count together, in a layer without groups: the last supports are chosen and solved so (`together`).
    start, factor, fine: the supports on the way (`supports.sizes_of`); fine 1 leaves elimination out, as a pattern does. Where channels
    choose together in the end, `supports.above` bounds the first, and the others are `COARSE` and `STEP` apart.
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
    fine = 1.0 if pattern else fine
    last = together_of(keep, C, K) if metric is not None and fine > 1 else [keep]
    more = len(last) > 1
    if more:  # what comes before, in coarse steps, only gives them something to choose from
        factor, start, fine = COARSE, min(start, above(C, K)) * keep / last[0], STEP
    sizes, near = sizes_of(last[0], C, K, start, factor, fine, BEFORE if more else FLOPS)
    steps = [*(sizes[:-1] if near else sizes), *near, *last[1:]]
    rows = fit if unseen or measure.count * FEW_HELD <= whole.count else whole
    asked = rows.xy / rows.count * unit.reshape(len(rows.xy), 1, -1)
    mask, weight, gains = thin(rows.xx, asked, w0 * unit[:, None], ridge_of(rows, first), sizes, pattern, rows.count, near, unsolved=more)
    weight /= unit[:, None]
    alone = weight  # of each channel solved by itself, with the first ridge on these rows
    if metric is not None and more:
        mask, weight, alone, explained = thin_together(problem_of(rows, w0, first, metric), mask, last[1:])
        # from the first support of these on, which elimination has a gain of, too
        gains = gains[: len(steps) - len(last)] + [float(gain @ unit**2) for gain in explained]
    power = max(float(rows.yy @ unit**2) / rows.count, np.finfo(float).tiny)
    curve = tuple(max(0.0, 1.0 - gain / power) for gain in gains)
    blind = {r: alone if r == first and rows is fit else refit(fit, w0, mask, r, alone) for r in tried}
    errors = {r: measure.error(w, fit.shift(w), importance) for r, w in blind.items()}
    ridge = min(tried, key=lambda r: errors[r])
    settled = None
    if metric is not None:
        weight, settled = solve_together(problem_of(whole, w0, ridge, metric), mask, weight)
    elif apart is None:
        weight = blind[ridge]
    elif rows is fit or ridge != first:
        weight = refit(whole, w0, mask, ridge, weight)
    return Reconstruction(weight, blind[ridge], whole.shift(weight), mask, errors[ridge], ridge, tuple(steps), curve, settled)
