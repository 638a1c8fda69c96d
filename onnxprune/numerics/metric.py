"""Least squares of all output channels together, where their errors count as a metric says.

`reconstruct` gives every channel its own least squares. Where the errors e (C,) of a row count as e' M e in the outputs, and M is far from
diagonal, channels can make up for each other: most directions in which a wide layer errs do not reach the outputs. On given supports the
weights W (C, K) that solve

    (M W G - M R' + lam diag(M) (W - w0)) on the support = 0

do so: G = E[x x'], R = E[x y'], lam = ridge * mean diag G. They come by conjugate gradients from those of the channels on their own.
"""

import numpy as np

from onnxprune.numerics.elimination import Bools, Floats
from onnxprune.numerics.gram import Gram, ridge_of
from onnxprune.numerics.threads import one_each, product

OWN = 0.3
"""How much of a metric is its diagonal, so that the channels' own errors keep counting: the metric is known from few samples."""
ROUNDING = 1e-11
"""The share of the first squared residual from which on nothing is left but the rounding of float32 products."""
LEAST = 0.02
"""What a channel counts by itself at least, in units of the mean."""
ITERATIONS = 12
"""Of conjugate gradients, which end early: what directions of little effect still ask for would fit the samples."""


def normalised(moments: Floats) -> Floats | None:
    """The metric of second moments of gradients (C, C): of mean diagonal 1, `OWN` of it diagonal; None where they are no numbers or 0.

    No channel counts less than `LEAST` by itself: one that seems to reach no output keeps its own least squares.
    """
    mean = np.diag(moments).mean()
    if not np.isfinite(moments).all() or mean <= 0:
        return None
    scaled = moments / mean
    counts = np.diag(scaled)
    return np.asarray((1.0 - OWN) * scaled + np.diag(np.maximum(OWN * counts, LEAST - (1.0 - OWN) * counts)))


def refine(gram: Gram, w0: Floats, mask: Bools, ridge: float, metric: Floats, start: Floats, iterations: int = ITERATIONS) -> Floats:
    """The weights (C, K) on a given support for errors that count as ``metric`` (C, C) says, float64 from float32 products.

    gram: of one group. w0: (C, K) the dense weights. start: (C, K) weights near by, on the support.
    """
    G, R = (gram.xx[0] / gram.count).astype(np.float32), gram.xy[0].T / gram.count
    single = metric.astype(np.float32)
    own = np.diag(metric)[:, None]
    ridges = float(ridge_of(gram, ridge)[0]) * own
    scale = own * np.diag(G) + ridges  # of the preconditioner
    weight = np.where(mask, start, 0.0)
    with one_each() as (pool, _):

        def moved(direction: Floats) -> Floats:
            made = product(pool, single[None], product(pool, direction.astype(np.float32)[None], G[None]))[0] + ridges * direction
            return np.asarray(np.where(mask, made, 0.0))

        left = np.where(mask, product(pool, metric[None], R[None])[0] + ridges * w0, 0.0) - moved(weight)
        way = left / scale
        power = first = np.vdot(left, way)
        for _ in range(iterations):
            if power <= ROUNDING * first:  # it is there
                break
            image = moved(way)
            step = power / np.vdot(way, image)
            weight += step * way
            left -= step * image
            scaled = left / scale
            before, power = power, np.vdot(left, scaled)
            way = scaled + (power / before) * way
    return weight
