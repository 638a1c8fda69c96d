"""Outputs of the dense model against outputs of the pruned one, without labels."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Agreement:
    """How well the pruned outputs match the dense ones over ``samples`` samples.

    ``top1``: share of samples with the same largest class, 0..1; ``kl``: mean KL divergence in nats; both None unless
    the output is (samples, classes >= 2). ``cosine``: mean cosine, -1..1 (of one number a sample, see `agreement`). ``sqnr_db``: signal to
    noise ratio in dB.
    """

    samples: int
    top1: float | None
    kl: float | None
    cosine: float
    sqnr_db: float

    @property
    def score(self) -> float:
        """One number from 0 (nothing in common) to 1: top1 where there is one, otherwise the cosine, no less than 0."""
        return self.top1 if self.top1 is not None else min(max(self.cosine, 0.0), 1.0)


def agreement(dense: NDArray[Any], pruned: NDArray[Any]) -> Agreement:
    """Return the Agreement of two output arrays of one shape (samples, ...), any real dtype; all sums in float64.

    top1    share of rows with one argmax (the first of equals); a pruned row with NaN disagrees
    kl      mean of KL(softmax(dense) || softmax(pruned)); if the rows of both arrays are probabilities already (all
            >= 0, every sum within 1e-3 of 1), of KL(dense || pruned), logarithms of values clipped at 1e-12
    cosine  mean over samples of the cosine of the flattened outputs; both zero is 1, one zero is 0. Where a sample has one number only,
            whose cosine is its sign, that of all samples' distances from the dense mean instead
    sqnr_db 10 log10(sum dense^2 / sum (dense - pruned)^2), inf if equal

    NaN or infinity in pruned outputs: cosine 0 for that sample, kl inf, sqnr_db -inf.
    Raises ValueError for different shapes, no samples, and NaN or infinity in the dense outputs.
    """
    if dense.shape != pruned.shape or dense.ndim == 0 or dense.size == 0:
        raise ValueError(
            f"cannot compare dense outputs {dense.shape} with pruned outputs {pruned.shape}: expected one shape (samples, ...), not empty"
        )
    classes = dense.ndim == 2 and dense.shape[1] >= 2
    cosines = []
    signal = noise = 0.0
    for sample, (one, other) in enumerate(zip(dense, pruned, strict=True)):  # by sample: segmentation outputs are large
        a = np.asarray(one, np.float64).ravel()
        b = np.asarray(other, np.float64).ravel()
        if not np.isfinite(a).all():
            raise ValueError(f"dense output of sample {sample} has NaN or infinity; nothing can be compared with it")
        if not np.isfinite(b).all():
            cosines.append(0.0)
            noise = np.inf
            continue
        cosines.append(_cosine(a, b))
        with np.errstate(over="ignore"):
            signal += _dot(a, a)
            noise += _dot(a - b, a - b)
    return Agreement(
        samples=len(dense),
        top1=_top1(dense, pruned) if classes else None,
        kl=divergence(dense, pruned) if classes else None,
        cosine=_swing(dense, pruned) if dense.size == len(dense) > 1 else float(np.mean(cosines)),
        sqnr_db=_decibel(signal, noise),
    )


def _top1(dense: NDArray[Any], pruned: NDArray[Any]) -> float:
    same = np.argmax(dense, axis=1) == np.argmax(pruned, axis=1)
    return float(np.mean(same & ~np.isnan(pruned).any(axis=1)))


def divergence(dense: NDArray[Any], pruned: NDArray[Any]) -> float:
    """The ``kl`` of `agreement` alone: mean KL divergence in nats of two arrays (samples, classes), any real dtype."""
    dense, pruned = dense.astype(np.float64), pruned.astype(np.float64)
    if not np.isfinite(pruned).all():
        return float("inf")
    if _are_probabilities(dense) and _are_probabilities(pruned):
        p = dense
        log_p, log_q = np.log(np.maximum(dense, 1e-12)), np.log(np.maximum(pruned, 1e-12))
    else:
        log_p, log_q = _log_softmax(dense), _log_softmax(pruned)
        p = np.exp(log_p)
    ratio = np.subtract(log_p, log_q, out=np.zeros_like(p), where=p > 0)  # 0 log 0 = 0
    return max(0.0, float((p * ratio).sum(axis=1).mean()))


def _are_probabilities(rows: NDArray[np.float64]) -> bool:
    return bool((rows >= 0).all() and (np.abs(rows.sum(axis=1) - 1) <= 1e-3).all())


def _log_softmax(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    with np.errstate(over="ignore"):
        below: NDArray[np.float64] = rows - rows.max(axis=1, keepdims=True)
    below -= np.log(np.exp(below).sum(axis=1, keepdims=True))
    return below


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    largest_a, largest_b = np.abs(a).max(), np.abs(b).max()
    if largest_a == 0 or largest_b == 0:
        return float(largest_a == largest_b)
    a, b = a / largest_a, b / largest_b  # so that no square overflows or vanishes
    return float(np.clip(_dot(a, b) / np.sqrt(_dot(a, a) * _dot(b, b)), -1, 1))


def _dot(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """sum a b, the same for any number of threads: BLAS shares out long ones."""
    return float(np.einsum("i,i->", a, b))


def _swing(dense: NDArray[Any], pruned: NDArray[Any]) -> float:
    """The cosine of what the numbers of all samples are above or below the dense mean; 0 where a pruned one is no number."""
    a, b = dense.astype(np.float64).ravel(), pruned.astype(np.float64).ravel()
    return _cosine(a - a.mean(), b - a.mean()) if np.isfinite(b).all() else 0.0


def _decibel(signal: float, noise: float) -> float:
    if noise == 0:
        return float("inf")
    if signal == 0 or noise == np.inf:
        return float("-inf")
    return float(10 * np.log10(signal / noise))


def accuracy(outputs: NDArray[Any], labels: NDArray[np.int64]) -> float:
    """Return the share of rows (samples, classes) whose largest class (the first of equals) is the label (samples,), 0..1.

    A row with NaN is wrong. Raises ValueError for other shapes and for labels that are no column.
    """
    if outputs.ndim != 2 or outputs.shape[1] < 2 or labels.shape != outputs.shape[:1] or not labels.size:
        raise ValueError(
            f"cannot hold outputs {outputs.shape} against labels {labels.shape}: expected (samples, classes >= 2) and (samples,)"
        )
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise ValueError(f"labels {labels.min()} to {labels.max()} do not lie in the {outputs.shape[1]} classes")
    return float(np.mean((np.argmax(outputs, axis=1) == labels) & ~np.isnan(outputs).any(axis=1)))
