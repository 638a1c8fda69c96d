"""The best of several candidates: by the share of samples that agree as far as it tells, then by the error of the outputs."""

from __future__ import annotations

from math import inf, sqrt

from hypothesis import example, given
from hypothesis import strategies as st

from onnxprune.picking import Rated, best, contenders

shares = st.builds(Rated, st.integers(0, 20).map(lambda right: right / 20), st.sampled_from([-inf, -1.0, 0.0, 3.0, 7.5, inf]))
rated = st.lists(shares, min_size=1, max_size=8)
counts = st.sampled_from([None, 1, 20, 400])


def test_by_hand() -> None:
    """Of 50 samples, .96 and .90 differ by .06; one standard error is sqrt((.04 + .10) / 50) = .053. From .92 on it is .049 to .04."""
    assert best([Rated(0.96, 10.0), Rated(0.90, 12.0)], 50) == 0
    assert best([Rated(0.96, 10.0), Rated(0.92, 12.0)], 50) == 1
    assert best([Rated(0.96, 10.0), Rated(0.92, 10.0)], 50) == 0
    assert best([Rated(0.96, 10.0), Rated(0.92, 12.0)], None) == 0
    assert best([Rated(1.0, 10.0), Rated(1.0, 12.0), Rated(1.0, 12.0)], 50) == 1


@given(rated, counts)
@example([Rated(0.7, -1.0), Rated(0.85, -inf)], 20)
def test_nothing_is_ahead_of_the_best_in_both(found: list[Rated], samples: int | None) -> None:
    pick = found[best(found, samples)]
    assert not any(
        one.score >= pick.score and one.sqnr_db >= pick.sqnr_db and (one.score, one.sqnr_db) != (pick.score, pick.sqnr_db) for one in found
    )
    top = max(one.score for one in found)
    # In the rule's own order of operations: .85 and .7 of 20 samples lie apart by the margin to the last bit.
    assert top - pick.score <= (0 if samples is None else sqrt(((1 - top) + (1 - pick.score)) / samples))


@given(rated, counts)
def test_letting_go_of_what_cannot_win_changes_nothing(found: list[Rated], samples: int | None) -> None:
    left: list[int] = []
    for place in range(len(found)):
        left.append(place)
        left = [left[number] for number in contenders([found[one] for one in left], samples)]
    assert left[best([found[one] for one in left], samples)] == best(found, samples)


@given(rated, counts)
def test_contenders_are_ahead_of_each_other_in_one_of_the_two(found: list[Rated], samples: int | None) -> None:
    left = [found[place] for place in contenders(found, samples)]
    by_score = sorted(left, key=lambda one: one.score)
    assert [one.sqnr_db for one in by_score] == sorted((one.sqnr_db for one in left), reverse=True)
    assert len({(one.score, one.sqnr_db) for one in left}) == len(left)
