"""Moments from graphs against float64 numpy over the same rows, and by hand."""

import numpy as np
import pytest

from onnxprune.runtime import grams
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import to_device

CPU = Device("cpu", threads=1)
# Graphs sum products of up to 8192 float32 rows: rounding adds up like a random walk, 2^-24 * sqrt(8192) = 5e-6 of the terms' own size.
FLOAT32 = 1e-5


def rows(counts, K, C, groups=1, offset=0.0, other=True, seed=0):
    """Batches of rows as OrtValues, and x, z, other of all of them (zeros for a missing other), float32."""
    rng = np.random.default_rng(seed)
    x = (rng.standard_normal((sum(counts), groups * K)) + offset).astype(np.float32)
    z = (x[:, :1] + rng.standard_normal((len(x), C)) - 2 * offset).astype(np.float32)
    part = rng.standard_normal(z.shape).astype(np.float32)
    ends = np.cumsum(counts)[:-1]
    split = [[to_device(block, CPU) for block in np.split(values, ends)] for values in (x, z, part)]
    pieces = [(a, b, c if other else None) for a, b, c in zip(*split, strict=True)]
    return pieces, x, z, part if other else np.zeros_like(part)


def slow(x, y, groups):
    """Count, x_mean, y_mean, xy, yy and xx in float64."""
    x, y = x.astype(np.float64), y.astype(np.float64)
    a, b = (v - v.mean(0) for v in (x, y))
    a, b = a.reshape(len(x), groups, -1), b.reshape(len(y), groups, -1)
    xy, xx = np.einsum("rgk,rgc->gkc", a, b), np.einsum("rgk,rgl->gkl", a, a)
    return len(x), x.mean(0).reshape(groups, -1), y.mean(0), xy, (b**2).sum(0).ravel(), xx


def close(found, wanted, scale):
    """Equal within the rounding of float32 sums whose terms add up to ``scale``."""
    np.testing.assert_allclose(found, wanted, rtol=0, atol=FLOAT32 * scale)
    assert found.dtype == np.float64
    assert found.shape == wanted.shape


def test_three_rows_by_hand():
    x = np.array([[1, 0], [2, 0], [3, 3]], np.float32)
    z, other = np.array([[3], [5], [10]], np.float32), np.ones((3, 1), np.float32)
    count, x_mean, y_mean, xx, xy, yy = grams.moments([tuple(to_device(v, CPU) for v in (x, z, other))], 1, CPU)
    assert count == 3
    np.testing.assert_array_equal(x_mean, [[2, 1]])
    np.testing.assert_array_equal(y_mean, [5])
    np.testing.assert_array_equal(xx, [[[2, 3], [3, 6]]])
    np.testing.assert_array_equal(xy, [[[7], [12]]])
    np.testing.assert_array_equal(yy, [26])


@pytest.mark.parametrize("counts", [[700], [300, 1, 399]])
@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize(("groups", "K", "C"), [(1, 20, 6), (3, 5, 6), (8, 9, 8), (1, 1, 1)])
def test_moments_are_those_of_float64(counts, other, groups, K, C):
    pieces, x, z, part = rows(counts, K, C, groups, other=other)
    count, x_mean, y_mean, xx, xy, yy = grams.moments(pieces, groups, CPU)
    wanted = slow(x, z - part, groups)
    assert count == wanted[0]
    scale = count * 4  # variances are at most 3
    for found, want, size in ((x_mean, wanted[1], 1), (y_mean, wanted[2], 1), (xy, wanted[3], scale), (yy, wanted[4], scale)):
        close(found, want, size)
    close(xx, wanted[5], scale)


@pytest.mark.parametrize("offset", [300.0, 3e4])
def test_rows_far_from_zero_keep_their_moments(offset):
    """A float32 mean of 8000 rows around 300 is off by 1e-3, around 3e4 by 2e-2, whose square is 4e-4 of these variances."""
    pieces, x, z, _ = rows([8000], 5, 3, offset=offset, other=False)
    count, x_mean, y_mean, xx, xy, yy = grams.moments(pieces, 1, CPU)
    wanted = slow(x, z, 1)
    np.testing.assert_allclose(x_mean, wanted[1], rtol=1e-8)
    np.testing.assert_allclose(y_mean, wanted[2], rtol=1e-8)
    for found, want in ((xx, wanted[5]), (xy, wanted[3]), (yy, wanted[4])):
        close(found, want, count * 4)


@pytest.mark.parametrize("bounds", [(0.0, np.inf), (-np.inf, 0.5), (-0.3, 0.4), (-np.inf, np.inf)])
@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize(("groups", "K", "C"), [(1, 20, 6), (3, 5, 6), (8, 9, 8)])
def test_moved_moments_are_those_of_float64(bounds, other, groups, K, C):
    pieces, x, z, part = rows([200, 300], K, C, groups, other=other)
    rng = np.random.default_rng(5)
    weight, shift = rng.normal(size=(C, K)), rng.normal(size=C)
    now = np.einsum("rgk,gck->rgc", x.reshape(len(x), groups, K), weight.reshape(groups, -1, K)).reshape(z.shape) + shift + part
    low, high = bounds
    target = np.where(z <= low, np.minimum(now, low), np.where(z >= high, np.maximum(now, high), z)) - part
    assert (np.abs(target - (z - part)) > 1e-3).any() == np.isfinite(bounds).any()
    count, x_mean, y_mean, xy, yy = grams.moved_moments(pieces, weight, shift, bounds, groups, CPU)
    wanted = slow(x, target, groups)
    assert count == wanted[0]
    scale = max(wanted[4].max(), count)
    for found, want, size in ((x_mean, wanted[1], 1), (y_mean, wanted[2], 10), (xy, wanted[3], scale), (yy, wanted[4], scale)):
        close(found, want, size)


def test_batches_are_joined_up_to_the_limit(monkeypatch):
    monkeypatch.setattr(grams, "ROWS", 10)
    counts = [4, 6, 0, 1, 12, 9, 2]
    pieces = rows(counts, 2, 2)[0]
    assert [[piece[0].shape()[0] for piece in run] for run in grams.joined(pieces)] == [[4, 6], [1], [12], [9], [2]]
    assert grams.joined([]) == []
