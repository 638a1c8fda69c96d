"""How far second moments of gradients are trusted, and the metric made of them."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxprune.numerics.metric import LEAST, OWN, Metric, cosines_of, directions, metric_of, told

Floats = NDArray[np.float64]


def full(metric: Metric) -> Floats:
    return np.asarray(np.diag(metric.own) + metric.along @ metric.along.T)


def made(halves: Floats, prior: Floats) -> Metric | None:
    cosines = cosines_of(halves)
    return None if cosines is None else metric_of(cosines, prior)


def moments(seed: int, rows: int, mix: Floats) -> Floats:
    """Sums over so many random gradients whose channels are mixed."""
    made = np.random.default_rng(seed).normal(size=(rows, len(mix))) @ mix
    return np.asarray(made.T @ made)


def test_what_both_halves_say_is_no_chance() -> None:
    a = np.array([1.0, -2.0, 3.0])
    assert told(a, a) == pytest.approx(1)
    assert told(a, np.array([1.0, -2.0, -1.0])) == pytest.approx(2 * 0.2 / 1.2)  # rho = 2 * (1 + 4 - 3) / (14 + 6)
    assert told(a, -a) == 0
    assert told(np.zeros(3), np.zeros(3)) == 0


def test_equal_halves_by_hand() -> None:
    """The cosine of two channels, 1.2 / sqrt(3 * .48), all of it told, counts but for `OWN`, between what each counts."""
    half = np.array([[3.0, 0.6], [0.6, 0.48]])
    metric = made(np.stack([half, half]), np.array([2.0, 8.0]))
    assert metric is not None
    np.testing.assert_allclose(metric.counts, [0.4, 1.6])  # their mean is 1
    across = (1 - OWN) * 0.5 * np.sqrt(0.4 * 1.6)
    np.testing.assert_allclose(full(metric), [[0.4, across], [across, 1.6]])


def test_sums_of_unlike_numbers_of_samples_are_no_matter() -> None:
    half = np.array([[3.0, 1.2], [1.2, 1.0]])
    one, two = (made(np.stack([half, scale * half]), np.array([1.0, 1.0])) for scale in (1.0, 7.0))
    assert one is not None
    assert two is not None
    np.testing.assert_allclose(full(one), full(two))


def test_few_gradients_of_channels_that_share_nothing_leave_what_was_known() -> None:
    """Each half says something else: the cosines of 20 gradients of 300 channels, which reach .8, are chance."""
    metric = made(np.stack([moments(seed, 20, np.eye(300)) for seed in (1, 2)]), np.ones(300))
    assert metric is not None
    assert np.abs(full(metric) - np.eye(300)).max() < 0.1


def test_many_gradients_are_believed() -> None:
    rng = np.random.default_rng(0)
    mix = rng.normal(size=(6, 40)).T @ rng.normal(size=(6, 40)) + 0.1 * np.eye(40)
    truth = mix.T @ mix
    root = np.sqrt(np.diag(truth))
    metric = made(np.stack([moments(seed, 4000, mix) for seed in (1, 2)]), np.ones(40))
    assert metric is not None
    wanted = (1 - OWN) * truth / root[:, None] / root + OWN * np.eye(40)
    assert np.linalg.norm(full(metric) - wanted) < 0.05 * np.linalg.norm(wanted)


def test_a_channel_that_reaches_no_output_shares_nothing_and_still_counts() -> None:
    half = np.array([[1.0, 0.9, 0.0], [0.9, 1.0, 0.0], [0.0, 0.0, 0.0]])
    metric = made(np.stack([half, half]), np.array([1.0, 1.0, 0.0]))
    assert metric is not None
    assert metric.counts.min() == LEAST
    assert (metric.own > 0).all()
    np.testing.assert_allclose(full(metric)[2, :2], 0, atol=1e-12)


def test_no_numbers_make_no_metric() -> None:
    assert made(np.zeros((2, 3, 3)), np.ones(3)) is None
    assert made(np.stack([np.eye(3), np.full((3, 3), np.nan)]), np.ones(3)) is None
    assert made(np.stack([np.eye(3), np.zeros((3, 3))]), np.ones(3)) is None  # one batch alone: nothing tells what it is worth


def test_directions_take_what_there_is_and_no_more() -> None:
    rng = np.random.default_rng(1)
    low = rng.normal(size=(50, 4))
    few = directions(low @ low.T, 8)
    np.testing.assert_allclose(few @ few.T, low @ low.T, atol=1e-6)  # rounding of squares of squares
    whole = low @ low.T + np.diag(rng.uniform(0.1, 1, 50))
    some = directions(whole, 8)
    assert some.shape == (50, 8)
    assert np.linalg.eigvalsh(whole - some @ some.T).min() > -1e-9
    assert np.trace(some @ some.T) > 0.98 * np.sort(np.linalg.eigvalsh(whole))[-8:].sum()
    np.testing.assert_array_equal(some, directions(whole, 8))
