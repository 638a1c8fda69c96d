"""Which of several candidates is nearest to the dense model, where few samples tell their agreement only roughly.

The share of samples that keep their class counts first. Over n samples two shares a and b may differ by chance by
sqrt(((1 - a) + (1 - b)) / n), one standard error of their difference if no sample is lost by both. Candidates within that of the highest
share are as good by it, and the smallest error of the outputs (SQNR), which every sample adds to, decides among them. docs/choosing.md has
what that rule gave beside others. A cosine is no share: there the highest counts, and of equals the smaller error.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import sqrt


@dataclass(frozen=True)
class Rated:
    """A candidate's agreement with the dense model, 0..1, and the signal to noise ratio of its outputs in dB, which may be infinite."""

    score: float
    sqnr_db: float


def best(rated: Sequence[Rated], samples: int | None) -> int:
    """The place of the best of one or more candidates; of equals the earliest. ``samples``: how many gave the scores, None for cosines."""
    within = _within(rated, samples)
    return max(within, key=lambda place: (rated[place].sqnr_db, rated[place].score, -place))


def contenders(rated: Sequence[Rated], samples: int | None) -> list[int]:
    """The places of those that may still be the best when others follow, ascending.

    The margin below the highest score only moves up, and nothing that is behind another in both can win.
    """

    def behind(place: int) -> bool:
        mine = rated[place]
        others = (other for number, other in enumerate(rated) if other != mine or number < place)
        return any(other.score >= mine.score and other.sqnr_db >= mine.sqnr_db for other in others)

    return [place for place in _within(rated, samples) if not behind(place)]


def _within(rated: Sequence[Rated], samples: int | None) -> list[int]:
    """The places of those whose score is the highest as far as so many samples can tell, ascending."""
    top = max(one.score for one in rated)
    if samples is None:
        return [place for place, one in enumerate(rated) if one.score == top]
    return [place for place, one in enumerate(rated) if top - one.score <= sqrt(((1 - top) + (1 - one.score)) / samples)]
