"""What errors of a layer's channels are worth together: e' M e, M from second moments of gradients, as far as they can be trusted.

The moments say what channels share: their cosines. What a channel counts by itself is what the weights behind it say (weighing), which
saw all of the training. Moments of few samples say little of what two channels share, too. Those of two halves of the samples, of other
images and other random gradients, tell how much: what both say is no chance. Of the whole a share of

    2 rho / (1 + rho),   rho = 2 <first, second> / (|first|^2 + |second|^2)

is then none (Spearman 1910, Brown 1910), and so much of it is taken. M is held as a diagonal and a few directions, which take most of it.
"""

from dataclasses import dataclass

import numpy as np

from onnxprune.numerics.elimination import Floats
from onnxprune.numerics.threads import one_each, product

OWN = 0.3
"""How much of a metric is its diagonal at least, so that the channels' own errors keep counting."""
LEAST = 0.02
"""What a channel counts by itself at least, in units of the mean, and what its gradients are taken for at least."""
SMALL = 1e-9
"""What is left of a direction by rounding, in units of the largest."""
DIRECTIONS, FEWEST = 8, 16
"""One direction for so many channels, and no fewer than so many."""


@dataclass(frozen=True, eq=False)
class Metric:
    """M = diag(own) + along along': own (C,) float64 above zero, along (C, r) float64."""

    own: Floats
    along: Floats

    @property
    def counts(self) -> Floats:
        """What an error of one channel alone is worth, (C,) float64: the diagonal of M."""
        return np.asarray(self.own + np.einsum("cr,cr->c", self.along, self.along))


@dataclass(frozen=True, eq=False)
class Cosines:
    """What errors of channels have in common, apart from what each counts: ``share`` of the identity and of their cosines, the first as a
    number, both as along along' with along (C, r) float64, as far as r directions take it."""

    share: float
    along: Floats


def cosines_of(halves: Floats) -> Cosines | None:
    """What second moments of gradients say of channels together; None where they are no numbers or 0.

    halves: (2, C, C), sums over one half of the samples each.
    """
    channels = halves.shape[1]
    means = np.einsum("hcc->h", halves) / channels
    if not np.isfinite(halves).all() or not (means > 0).all():
        return None
    halves = halves / means[:, None, None]
    singles = np.maximum(np.einsum("hcc->hc", halves), LEAST)
    scale = 1.0 / np.sqrt(singles)
    first, second = (half * root[:, None] * root for half, root in zip(halves, scale, strict=True))
    for part in (first, second):
        np.fill_diagonal(part, 0.0)
    share = min(told(first, second), 1.0 - OWN)
    if share <= 0:
        return Cosines(0.0, np.zeros((channels, 0)))
    shared = share * (0.5 * (first + second) + np.eye(channels))
    return Cosines(share, directions(shared, max(FEWEST, channels // DIRECTIONS)))


def metric_of(cosines: Cosines, prior: Floats) -> Metric:
    """The metric in which channels count by themselves as ``prior`` (C,) float64 says, of mean above 0; its mean diagonal is 1."""
    counts = np.maximum(prior / prior.mean(), LEAST)
    along = np.sqrt(counts)[:, None] * cosines.along
    return Metric(np.maximum(counts - np.einsum("cr,cr->c", along, along), (1.0 - cosines.share) * counts * 0.5), along)


def told(first: Floats, second: Floats) -> float:
    """How much of the sum of two halves is no chance, from 0 to 1."""
    power = float((first**2).sum() + (second**2).sum())  # by NumPy, whose sums do not depend on the threads of BLAS
    rho = max(0.0, 2.0 * float((first * second).sum()) / power) if power > 0 else 0.0
    return 2.0 * rho / (1.0 + rho)


def directions(moments: Floats, rank: int) -> Floats:
    """Directions (C, r), r at most ``rank``, whose squares take most of positive semidefinite moments (C, C), and no more than all.

    By Nystroem's method from a random start, the same at every call (Halko, Martinsson, Tropp 2011, arXiv 0909.4061).
    """
    start = np.random.default_rng(0).normal(size=(len(moments), min(rank, len(moments))))
    with one_each() as threads:
        basis, _ = np.linalg.qr(product(threads, moments[None], product(threads, moments[None], start[None]))[0])
        across = product(threads, moments[None], basis[None])[0]
        values, vectors = np.linalg.eigh(basis.T @ across)
        there = values > SMALL * max(values.max(), 0.0)
        return np.asarray(across @ (vectors[:, there] / np.sqrt(values[there])))
