"""The support sizes that thinning goes through: by magnitude from far above what is kept, then by elimination."""

import numpy as np
import numpy.typing as npt

NEAR = 4.0  # elimination begins at so many times the last size at most,
WORTH = 1.2  # and is left out where it cannot begin at so many times it
FLOPS, BYTES = 1.5e10, 1.5e8  # at most of an elimination: 4 n^3, and 8 n^2 a matrix (it has two), a channel of n weights, all alike
COARSE = 2.0  # above that, each support is 1/COARSE of the one before
TOGETHER, STEP = 1.6, 1.1  # channels that are solved together choose from so many times the last size, in steps of 1/STEP,
COARSER = 1.17  # or of 1/COARSER where an elimination from there takes more flops than BEFORE, or a product with G more than PRODUCT
BEFORE = 5e9  # the elimination before that, in steps of 1/STEP too, may take so many flops, in place of FLOPS,
ABOVE, DEAR = 8.0, 4.0  # and magnitude begins at so many times the last size at most; at the second where
PRODUCT = 5e9  # a product of all weights with G takes more flops than this


def schedule(keep: int, size: int, factor: float, start: float) -> list[int]:
    """The support sizes from at most ``start * keep`` (and below ``size``) down to ``keep``.

    Each is about 1/factor of the one before; there are none but ``keep`` when that is 0 or everything.
    """
    top = min(float(size), start * keep)
    if keep == 0 or top <= keep:
        return [keep]
    steps = max(1, int(np.ceil(np.log(top / keep) / np.log(factor) - 1e-9)))
    ratio = (top / keep) ** (1.0 / steps)
    first = 1 if top >= size else 0  # the whole layer is no support to solve on: nothing was dropped yet
    sizes = {round(keep * ratio ** (steps - i)) for i in range(first, steps)} | {keep}
    return sorted((s for s in sizes if s < size or s == keep), reverse=True)


def sizes_of(
    keep: int, channels: int, inputs: int, start: float, factor: float, fine: float, flops: float = FLOPS
) -> tuple[list[int], list[int]]:
    """The support sizes of a layer of ``channels`` x ``inputs`` weights on the way to ``keep``: by magnitude, and by elimination.

    Elimination begins at `NEAR` times the last size, or as far up as ``flops`` and `BYTES` let it when the channels keep equally many;
    when that is less than `WORTH` times, there is none.
    """
    size, each = channels * inputs, max(keep, 1) / channels
    reach = _reach(min(NEAR, start), each, channels, flops)
    if fine <= 1 or keep in (0, size) or min(reach * keep, size) < min(WORTH * keep, size):
        return schedule(keep, size, factor, start), []
    begin = min(size, round(reach * keep))
    steps = [begin]
    while steps[0] * COARSE <= min(start * keep, size - 1):
        steps.insert(0, round(steps[0] * COARSE))
    return steps, schedule(keep, begin, fine, reach)


def above(channels: int, inputs: int) -> float:
    """At how many times the last size magnitude begins at most, in a layer whose channels are solved together."""
    return DEAR if _dear(channels, inputs) else ABOVE


def _dear(channels: int, inputs: int) -> bool:
    """True where a product of all weights with G takes more than `PRODUCT`."""
    return 2.0 * channels * inputs**2 > PRODUCT


def _reach(most: float, each: float, channels: int, flops: float) -> float:
    """From how many times ``each`` weights a channel on, ``most`` at most, elimination takes no more than ``flops`` and `BYTES`."""
    return min(most, float((flops / (4 * channels)) ** (1 / 3) / each), float((BYTES / (8 * channels)) ** 0.5 / each))


def together_of(keep: int, channels: int, inputs: int) -> list[int]:
    """The support sizes of a layer on the way to ``keep`` at which its channels are solved together; ``keep`` alone if too much."""
    size, each = channels * inputs, max(keep, 1) / channels
    reach = _reach(TOGETHER, each, channels, FLOPS)
    dear = 4.0 * channels * (reach * each) ** 3 > BEFORE or _dear(channels, inputs)
    return schedule(keep, size, COARSER if dear else STEP, reach) if reach >= STEP and keep * STEP < size else [keep]


def fits(counts: npt.NDArray[np.intp]) -> bool:
    """True where the matrices of channels with so many weights can be inverted within `FLOPS` and `BYTES`."""
    weights = counts.astype(np.float64)
    return bool(4.0 * (weights**3).sum() <= FLOPS and 8.0 * (weights**2).sum() <= BYTES)
