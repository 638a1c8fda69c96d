"""Matrices of channels of like size in one array: where they lie, and what is made of them, beside one channel at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.numerics import stacks
from onnxprune.numerics.stacks import Stack, gathered, slots_of, without

SIZES = [3, 0, 4, 2, 9, 4]
BOUNDS = np.concatenate([[0], np.cumsum(SIZES)])
TOTAL = int(BOUNDS[-1])


def inverses(seed: int) -> list[NDArray[np.float64]]:
    """A matrix for each channel, symmetric and positive definite."""
    rng = np.random.default_rng(seed)
    return [np.linalg.inv(mix @ mix.T + np.eye(n)) for n in SIZES for mix in [rng.normal(size=(n, 2 * n))]]


def stacked(matrices: list[NDArray[np.float64]], filled: float = 7.0) -> list[Stack]:
    """They in stacks; what only fills up means nothing, so there are numbers."""
    made = []
    for slots in slots_of(BOUNDS):
        A = np.full((*slots.shape, slots.shape[1]), filled)
        for one, rows in zip(A, slots, strict=True):
            channel = int(np.searchsorted(BOUNDS, rows[0], "right")) - 1
            one[: SIZES[channel], : SIZES[channel]] = matrices[channel]
        made.append(Stack(A, slots))
    return made


def test_slots_name_each_weight_once_and_fill_up_with_the_number_after_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "ENTRIES", 32)
    assert [slots.tolist() for slots in slots_of(BOUNDS)] == [
        [[9, 10, 11, 12, 13, 14, 15, 16, 17]],
        [[3, 4, 5, 6], [18, 19, 20, 21]],
        [[0, 1, 2], [7, 8, TOTAL]],
    ]
    assert slots_of(np.zeros(4, np.intp)) == []


def test_threads_have_stacks_to_share_out_where_they_are_worth_it() -> None:
    """Eight where each has 2^15 entries then, and as many as 2^19 entries ask for where there are more."""
    assert len(slots_of(np.arange(65) * 100)) == 8
    assert len(slots_of(np.arange(65) * 20)) == 1
    assert len(slots_of(np.arange(513) * 200)) == 40  # 13 channels each


def test_rows_and_columns_meet_and_what_fills_up_is_zero() -> None:
    G = np.arange(16.0).reshape(4, 4)
    rows = np.array([[1, 3], [2, 0]])
    found = gathered(G, rows, rows, np.array([[True, True], [True, False]]))
    assert found.tolist() == [[[5, 7], [13, 15]], [[10, 0], [0, 0]]]
    both = np.stack([G, -G])
    assert gathered(both, np.add(rows, [[0], [4]]), rows).tolist() == [[[5, 7], [13, 15]], [[-10, -8], [-2, 0]]]


@pytest.mark.parametrize("entries", [1, 32, 1 << 19])
def test_products_and_diagonals_are_those_of_the_channels(entries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stacks, "ENTRIES", entries)
    matrices, values = inverses(1), np.append(np.random.default_rng(2).normal(size=TOTAL), 0.0)
    made, diagonals = np.empty(TOTAL + 1), np.empty(TOTAL + 1)
    for stack in stacked(matrices):
        stack.times(values, made)
        stack.diagonals(diagonals)
    parts = [slice(BOUNDS[c], BOUNDS[c + 1]) for c in range(len(SIZES))]
    np.testing.assert_allclose(made[:-1], np.concatenate([A @ values[part] for A, part in zip(matrices, parts, strict=True)]), atol=1e-12)
    np.testing.assert_array_equal(diagonals[:-1], np.concatenate([np.diagonal(A) for A in matrices]))


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("entries", [1, 32, 1 << 19])
def test_what_is_left_is_what_each_channel_by_itself_leaves(entries: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the block form, channel after channel; the first seed takes nothing, the second everything, the third the whole of one channel."""
    monkeypatch.setattr(stacks, "ENTRIES", entries)
    rng = np.random.default_rng(seed)
    gone = np.append(rng.random(TOTAL) < (0, 1, 0.3, 0.3, 0.5, 0.9)[seed], False)
    if seed == 2:
        gone[BOUNDS[2] : BOUNDS[3]] = True
    matrices, weight = inverses(seed), np.append(rng.normal(size=TOTAL), 0.0)
    stays = int((~gone).sum()) - 1
    left = np.empty(stays + 1)
    after = np.cumsum(~gone) - 1
    found = [without(stack, gone, after, weight, left) for stack in stacked(matrices)]
    wanted_weight, wanted = np.zeros(0), []
    for c, A in enumerate(matrices):
        out = gone[BOUNDS[c] : BOUNDS[c + 1]]
        w = weight[BOUNDS[c] : BOUNDS[c + 1]]
        own = np.linalg.inv(A[out][:, out])
        wanted.append(A[~out][:, ~out] - A[~out][:, out] @ own @ A[out][:, ~out])
        wanted_weight = np.append(wanted_weight, w[~out] - A[~out][:, out] @ own @ w[out])
    np.testing.assert_allclose(left[:-1], wanted_weight, rtol=1e-10, atol=1e-12)
    bounds = np.concatenate([[0], np.cumsum([len(A) for A in wanted])])
    seen: list[Any] = []
    for stack in found:
        for A, slots in zip(stack.matrices, stack.slots, strict=True):
            there = slots < stays
            if there.any():
                channel = int(np.searchsorted(bounds, slots[0], "right")) - 1
                np.testing.assert_allclose(A[there][:, there], wanted[channel], rtol=1e-10, atol=1e-12)
                seen.extend(slots[there])
    assert sorted(seen) == list(range(stays))
