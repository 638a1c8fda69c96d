"""Which samples repair and which are held out."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError


@dataclass(frozen=True)
class Split:
    """Sample indices, ascending, of the repair and the holdout side, and notes for the user."""

    repair: NDArray[np.intp]
    holdout: NDArray[np.intp]
    notes: tuple[str, ...]


def split(
    count: int,
    *,
    limit: int,
    holdout: float,
    seed: int,
    fixed_batch: int | None,
    kinds: NDArray[np.intp] | None = None,
) -> Split:
    """Return ``n = min(limit, count)`` sample indices drawn by ``seed``, ``round(holdout * n)`` of them held out.

    intp indices, disjoint. With a fixed batch both sides are cut to multiples of it; where ``kinds`` tells samples of several shapes
    apart, to multiples of it of every kind. Raises CalibrationError where a side asked for would be empty, and for a limit below 1 or a
    holdout outside 0 <= holdout < 1.
    """
    if limit < 1:
        raise CalibrationError(f"--samples {limit}: expected 1 or more: pass the number of samples to use")
    if not 0 <= holdout < 1:
        raise CalibrationError(f"--holdout {holdout:g}: expected a share, 0 <= share < 1: pass for example --holdout 0.1")
    batch = fixed_batch or 1
    n = min(limit, count)
    drawn = np.random.default_rng(seed).permutation(count)[:n].astype(np.intp)
    held, rest = drawn[: round(holdout * n)], drawn[round(holdout * n) :]
    several = kinds is not None and np.unique(kinds).size > 1
    held, rest = (_whole(side, np.zeros(count, np.intp) if kinds is None else kinds, batch) for side in (held, rest))
    if several and batch > 1 and (rest.size == 0 or (holdout > 0 and held.size == 0)):
        raise CalibrationError(
            f"no {batch} of {n} calibration samples have one shape on {'the repair side' if rest.size == 0 else 'the holdout'}, and the "
            f"model takes batches of {batch}: give more samples of one shape"
        )
    if rest.size == 0 or (holdout > 0 and held.size == 0):
        # round(share * n) >= batch above n = (batch - 1/2) / share; a little more, as 1 - holdout is rounded
        least = max((batch - 0.5) / share for share in (holdout, 1 - holdout) if share > 0) * (1 + 1e-9)
        needed = math.floor(min(least, 1e15)) + 1
        side = "the repair side" if rest.size == 0 else f"the holdout (share {holdout:g})"
        steps = (("more samples", count < needed), (f"--samples {needed}", limit < needed))
        more = " and ".join(step for step, short in steps if short)
        fixed = f" in batches of {batch}" if batch > 1 else ""
        other = " or pass --holdout 0" if holdout > 0 else ""
        raise CalibrationError(
            f"{n} of {count} calibration samples{fixed} leave nothing for {side}, {needed} are needed: give {more}{other}"
        )
    dropped = n - held.size - rest.size
    note = f"{dropped} of {n} samples dropped: the model takes batches of {batch}"
    return Split(np.sort(rest), np.sort(held), (note,) if dropped else ())


def _whole(side: NDArray[np.intp], kinds: NDArray[np.intp], batch: int) -> NDArray[np.intp]:
    """Return the first of every kind that fill batches, in the order in which they were drawn."""
    keep = np.zeros(side.size, np.bool_)
    for kind in np.unique(kinds[side]):
        (at,) = np.nonzero(kinds[side] == kind)
        keep[at[: at.size - at.size % batch]] = True
    return side[keep]
