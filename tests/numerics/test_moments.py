from functools import reduce

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.numerics.moments import Moments

# float64 sums of at most some thousand elements of size ~1: their rounding stays below 1e3 * 2**-53 ~ 1e-13, twice.
CLOSE = {"rtol": 1e-11, "atol": 1e-11}


def same(a, b, **tolerance):
    assert a.count == b.count
    for one, other in ((a.mean, b.mean), (a.m2, b.m2)):
        assert one.dtype == np.float64
        np.testing.assert_allclose(one, other, **(tolerance or CLOSE))


def batches(seed, sizes, channels=3):
    rng = np.random.default_rng(seed)
    return [rng.normal(rng.normal(0, 3, channels), 1, (size, channels)) for size in sizes]


several = st.tuples(st.integers(0, 2**16), st.lists(st.integers(0, 12), min_size=1, max_size=6))


def test_by_hand():
    moments = Moments.from_batch(np.array([[1, 10], [2, 10], [6, 10]]), axis=1)
    assert moments.count == 3
    np.testing.assert_array_equal(moments.mean, [3, 10])
    np.testing.assert_array_equal(moments.m2, [14, 0])
    np.testing.assert_array_equal(moments.variance, [14 / 3, 0])


def test_merge_by_hand():
    one = Moments.from_batch(np.array([[1.0], [3]]), axis=1)  # mean 2, m2 2
    other = Moments.from_batch(np.array([[8.0]]), axis=1)  # mean 8, m2 0
    both = one.merge(other)  # 1, 3, 8: mean 4, m2 9 + 1 + 16
    same(both, Moments(3, np.array([4.0]), np.array([26.0])))


@pytest.mark.parametrize("axis", [0, 1, 2, 3, -1, -3])
@pytest.mark.parametrize("dtype", [np.float16, ml_dtypes.bfloat16, np.float32, np.float64, np.int8])
def test_every_axis_and_dtype(axis, dtype):
    x = (np.random.default_rng(0).normal(1, 3, (4, 3, 5, 2))).astype(dtype)
    moments = Moments.from_batch(x, axis)
    rows = np.moveaxis(x.astype(np.float64), axis, 0).reshape(x.shape[axis], -1)
    same(moments, Moments(rows.shape[1], rows.mean(axis=1), rows.var(axis=1) * rows.shape[1]))


@given(several)
@settings(max_examples=100, deadline=None)
def test_any_split_equals_the_pool(case):
    parts = batches(*case)
    pool = np.concatenate(parts)
    merged = reduce(Moments.merge, (Moments.from_batch(part, 1) for part in parts), Moments.empty(3))
    if len(pool) == 0:
        same(merged, Moments.empty(3))
        return
    same(merged, Moments(len(pool), pool.mean(axis=0), pool.var(axis=0) * len(pool)))
    np.testing.assert_allclose(merged.variance, pool.var(axis=0), **CLOSE)


@given(st.integers(0, 2**16), st.tuples(*[st.integers(0, 12)] * 3))
@settings(max_examples=100, deadline=None)
def test_merge_is_commutative_and_associative(seed, sizes):
    a, b, c = (Moments.from_batch(part, 1) for part in batches(seed, sizes))
    same(a.merge(b), b.merge(a))
    same(a.merge(b).merge(c), a.merge(b.merge(c)))


def test_empty_changes_nothing():
    moments = Moments.from_batch(np.array([[0.1, 0.7], [0.2, 0.3]]), 1)
    for merged in (moments.merge(Moments.empty(2)), Moments.empty(2).merge(moments)):
        same(merged, moments, rtol=0)  # bit for bit
    same(Moments.empty(2).merge(Moments.empty(2)), Moments.empty(2))
    same(Moments.from_batch(np.empty((0, 2)), 1), Moments.empty(2))
    same(Moments.from_groups(0, np.ones((4, 2)), np.ones((4, 2))), Moments.empty(2))
    same(Moments.from_groups(4, np.ones((0, 2)), np.ones((0, 2))), Moments.empty(2))
    with pytest.raises(ValueError, match="variance of 0 elements"):
        _ = Moments.empty(2).variance


@given(st.integers(0, 2**16), st.integers(1, 6), st.integers(1, 8))
@settings(max_examples=60, deadline=None)
def test_groups_equal_the_pool(seed, groups, size):
    parts = batches(seed, [size] * groups)
    mean = np.array([part.mean(axis=0) for part in parts])
    m2 = np.array([part.var(axis=0) * size for part in parts])
    same(Moments.from_groups(size, mean, m2), Moments.from_batch(np.concatenate(parts), 1))


@given(st.integers(0, 2**16), st.lists(st.integers(0, 9), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_groups_of_several_sizes_equal_the_pool(seed, sizes):
    parts = batches(seed, sizes)
    mean = np.array([part.mean(axis=0) if len(part) else np.full(3, np.nan) for part in parts])  # no number, where there are no elements
    m2 = np.array([part.var(axis=0) * len(part) if len(part) else np.full(3, np.nan) for part in parts])
    pool = np.concatenate(parts)
    same(Moments.from_groups(np.array(sizes), mean, m2), Moments.from_batch(pool, 1) if len(pool) else Moments.empty(3))


def test_two_groups_of_two_sizes_by_hand():
    # 1, 3 and 2, 2, 8: mean 16/5, squares around it 4.84 + 0.04 + 1.44 + 1.44 + 23.04
    moments = Moments.from_groups(np.array([2, 3]), np.array([[2.0], [4.0]]), np.array([[2.0], [24.0]]))
    same(moments, Moments(5, [3.2], [30.8]))


def test_groups_from_float32_are_combined_in_float64():
    # Sums of float32 groups in float32 would be off by about 1e-4 here: 3e5 groups, means near 1000.
    rng = np.random.default_rng(0)
    mean = rng.normal(1000, 1, (300_000, 1)).astype(np.float32)
    m2 = rng.uniform(0, 1, (300_000, 1)).astype(np.float32)
    moments = Moments.from_groups(5, mean, m2)
    expected = 5 * mean.astype(float).var() * 300_000 + m2.astype(float).sum()
    same(moments, Moments(1_500_000, [mean.astype(float).mean()], [expected]), rtol=1e-10)  # 3e5 terms in float64


def test_a_mean_of_300_deviations_in_float32():
    x = np.random.default_rng(0).normal(300, 1, (256, 1, 40, 40)).astype(np.float32)
    merged = reduce(Moments.merge, (Moments.from_batch(part, 1) for part in np.split(x, 16)))
    exact = x.astype(np.float64).var()
    np.testing.assert_allclose(merged.variance, [exact], rtol=1e-11)  # float64 leaves 16 - 2 * log10(300) = 11 digits
    # The formula this module does not use, in running float32 sums, misses by far more than a per cent.
    flat = x.ravel()
    naive = np.cumsum(flat * flat)[-1] / flat.size - (np.cumsum(flat)[-1] / flat.size) ** 2
    assert abs(naive - exact) > 0.01 * exact


def test_averaged_variances_lose_what_lies_between_the_batches():
    # Two batches of deviation 0.98 and means 0.6245 to both sides: average variance 0.96, pooled 0.96 + 0.39 = 1.35.
    part = np.sqrt(0.96) * np.array([[-1.0], [1.0]])
    parts = [part - np.sqrt(0.39), part + np.sqrt(0.39)]
    merged = reduce(Moments.merge, (Moments.from_batch(part, 1) for part in parts))
    averaged = np.mean([part.var() for part in parts])
    np.testing.assert_allclose([averaged, merged.variance[0]], [0.96, 1.35], rtol=1e-12)


@given(several, st.floats(-5, 5), st.booleans())
@settings(max_examples=60, deadline=None)
def test_affine_equals_the_moments_of_the_transformed(case, number, per_channel):
    x = np.concatenate(batches(*case))
    gain = np.array([number, 1.0, -0.5]) if per_channel else number
    shift = np.array([0.0, number, 2]) if per_channel else number
    same(Moments.from_batch(x, 1).affine(gain, shift), Moments.from_batch(gain * x + shift if len(x) else x, 1))


def test_errors():
    with pytest.raises(ValueError, match="2 channels with those of 3"):
        Moments.empty(2).merge(Moments.empty(3))
    with pytest.raises(ValueError, match=r"axis 2 does not exist in a batch of shape \(4, 3\)"):
        Moments.from_batch(np.ones((4, 3)), 2)
    with pytest.raises(ValueError, match=r"two \(G, C\)"):
        Moments.from_groups(2, np.ones((4, 3)), np.ones((4, 2)))
    for sizes in (np.ones(3), np.array([1, -1, 1, 1]), -1):
        with pytest.raises(ValueError, match=r"two \(G, C\)"):
            Moments.from_groups(sizes, np.ones((4, 3)), np.ones((4, 3)))
    with pytest.raises(ValueError, match=r"gain of shape \(3,\) does not fit 2 channels"):
        Moments.empty(2).affine(np.ones(3), 0)
    with pytest.raises(ValueError, match=r"shift of shape \(1, 2\)"):
        Moments.empty(2).affine(1, np.ones((1, 2)))
