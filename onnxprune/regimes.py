"""What the rows of a sweep tell: the best combination at each sparsity, and where recalibration fails but a stronger repair does not.

With falling density, bn holds for a while and then falls off within a few points of sparsity. The transition regime lies between the
sparsity where it falls and the one where every repair does: there the choice of the repair decides. After arXiv 2605.21972, whose
finding is that allocation and repair are to be chosen together, for each network anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

from onnxprune.picking import Rated, best
from onnxprune.sweep_report import Best, Regime, RegimePoint, SweepRow

FALLEN = 0.8
"""Agreement below which bn counts as fallen: one prediction in five is another, more than a few points of any network's own errors."""
HOLDS = 0.8
"""Agreement from which a stronger repair counts as holding: the same, so that every sparsity in between is one that it wins."""
STRONGER = ("layer", "channel", "asr", "reconstruct")


def best_of(rows: Sequence[SweepRow], samples: int | None) -> tuple[Best, ...]:
    """The best row of every sparsity, in the rows' order; a sparsity at which all rows failed has none.

    ``samples``: how many gave the scores, None where the scores are cosines.
    """
    found = []
    for sparsity in dict.fromkeys(row.sparsity_asked for row in rows):
        there = [row for row in rows if row.sparsity_asked == sparsity and row.score is not None]
        if there:
            row = _best(there, samples)
            found.append(Best(sparsity, row.alloc, row.repair, row.score or 0.0, row.kl, row.accuracy))
    return tuple(found)


def regimes_of(rows: Sequence[SweepRow], fallen: float, holds: float) -> tuple[Regime, ...]:
    """The transition regime of every allocation; none where the sweep has no bn, or nothing stronger."""
    repairs = {row.repair for row in rows}
    if "bn" not in repairs or repairs.isdisjoint(STRONGER):
        return ()
    found = []
    for alloc in dict.fromkeys(row.alloc for row in rows):
        points = []
        for sparsity in sorted({row.sparsity_asked for row in rows}):
            there = [row for row in rows if (row.alloc, row.sparsity_asked) == (alloc, sparsity) and row.score is not None]
            weak = next((row.score for row in there if row.repair == "bn"), None)
            stronger = [row for row in there if row.repair in STRONGER]
            strong = _best(stronger, None) if stronger else None
            if weak is not None and strong is not None and strong.score is not None and weak < fallen and strong.score >= holds:
                points.append(RegimePoint(sparsity, weak, strong.repair, strong.score))
        places = [point.sparsity_asked for point in points]
        found.append(Regime(alloc, fallen, holds, min(places, default=None), max(places, default=None), tuple(points)))
    return tuple(found)


def _best(rows: Sequence[SweepRow], samples: int | None) -> SweepRow:
    """The best of rows that have a score."""
    return rows[best([Rated(row.score or 0.0, -inf if row.sqnr_db is None else row.sqnr_db) for row in rows], samples)]
