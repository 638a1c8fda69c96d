import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.numerics import masks
from onnxprune.numerics.masks import magnitude, n_m, top

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


def test_top_by_hand():
    weight = np.array([[0.1, -5], [3, -0.2]])
    np.testing.assert_array_equal(top(weight, 2), [[False, True], [True, False]])
    np.testing.assert_array_equal(top(weight, 3), [[False, True], [True, True]])


def test_top_takes_the_lower_index_of_equal_values():
    np.testing.assert_array_equal(top(np.array([2.0, -1, 1, -1, 3]), 3), [1, 1, 0, 0, 1])
    np.testing.assert_array_equal(top(np.zeros((2, 2)), 3), [[1, 1], [1, 0]])
    np.testing.assert_array_equal(top(np.array([0.0, -0.0, 0.0]), 1), [1, 0, 0])


def test_top_counts_in_c_order_whatever_the_memory_order():
    weight = np.asfortranarray(np.ones((2, 3)))
    np.testing.assert_array_equal(top(weight, 3), [[1, 1, 1], [0, 0, 0]])
    np.testing.assert_array_equal(top(np.arange(6.0).reshape(2, 3).T, 2), [[0, 0], [0, 1], [0, 1]])


@given(
    st.lists(st.integers(-3, 3), max_size=24),
    st.sampled_from(FLOATS),
    st.floats(0, 1),
    st.booleans(),
)
@settings(max_examples=200, deadline=None)
def test_top_matches_a_stable_sort(values, dtype, share, column):
    weight = np.array(values, dtype).reshape((-1, 1) if column else (1, -1))
    keep = round(share * weight.size)
    mask = top(weight, keep)
    expected = np.zeros(len(values), bool)
    expected[sorted(range(len(values)), key=lambda i: (-abs(values[i]), i))[:keep]] = True
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected.reshape(weight.shape))


@pytest.mark.parametrize("dtype", FLOATS)
def test_top_refuses_nan(dtype):
    for keep in (0, 1, 3):
        with pytest.raises(ValueError, match=r"1 NaN in a weight of shape \(3,\)"):
            top(np.array([1, np.nan, 2], dtype), keep)


def test_top_takes_infinity_for_large_and_leaves_the_weight_alone():
    weight = np.array([1, -np.inf, 3])
    np.testing.assert_array_equal(top(weight, 1), [0, 1, 0])
    np.testing.assert_array_equal(weight, [1, -np.inf, 3])


@pytest.mark.parametrize("keep", [-1, 4])
def test_top_refuses_a_count_that_does_not_fit(keep):
    with pytest.raises(ValueError, match=rf"keep {keep} does not fit a weight of shape \(3,\): expected 0 to 3"):
        top(np.ones(3), keep)


def test_top_sees_what_float32_would_round_away():
    np.testing.assert_array_equal(top(np.array([1, 1 + 2**-52]), 1), [0, 1])


def test_magnitude_keeps_every_value():
    for dtype, expected in zip(FLOATS, [np.float32, np.float32, np.float32, np.float64], strict=True):
        values = magnitude(np.array([[-1.5], [0.25]], dtype))
        assert values.dtype == expected
        np.testing.assert_array_equal(values, [1.5, 0.25])


def test_n_m_by_hand():
    weight = np.array([[4, -3, 2, 1, 0, 0, -7, 0]], np.float32)
    np.testing.assert_array_equal(n_m(weight, 2, 4, axis=1), [[1, 1, 0, 0, 1, 0, 1, 0]])
    np.testing.assert_array_equal(n_m(weight.T, 1, 4, axis=0)[:, 0], [1, 0, 0, 0, 0, 0, 1, 0])
    np.testing.assert_array_equal(n_m(np.ones(4), 3, 4, axis=-1), [1, 1, 1, 0])  # ties: the lower index


@given(
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.integers(0, 2),
    st.integers(1, 5).flatmap(lambda m: st.tuples(st.integers(1, m), st.just(m))),
    st.sampled_from(FLOATS),
    st.integers(0, 2**16),
)
@settings(max_examples=120, deadline=None)
def test_n_m_matches_group_by_group(shape, axis, pattern, dtype, seed):
    n, m = pattern
    shape = tuple(size * m if i == axis else size for i, size in enumerate(shape))
    weight = np.random.default_rng(seed).integers(-3, 4, shape).astype(dtype)
    mask = n_m(weight, n, m, axis)
    expected = np.zeros(shape, bool)
    for place in np.ndindex(*shape):
        group = [(*place[:axis], place[axis] // m * m + i, *place[axis + 1 :]) for i in range(m)]
        value, index = abs(float(weight[place])), place[axis] % m
        before = sum((-abs(float(weight[one])), i) < (-value, index) for i, one in enumerate(group))
        expected[place] = before < n
    assert mask.dtype == np.bool_
    np.testing.assert_array_equal(mask, expected)


def test_n_m_errors():
    with pytest.raises(ValueError, match=r"axis 1 of shape \(8, 3, 3, 3\) has 3 values"):
        n_m(np.ones((8, 3, 3, 3)), 2, 4, axis=1)
    with pytest.raises(ValueError, match="axis 2 does not exist"):
        n_m(np.ones((4, 4)), 2, 4, axis=2)
    for n in (0, 5):
        with pytest.raises(ValueError, match=f"{n}:4 sparsity makes no sense"):
            n_m(np.ones((4, 4)), n, 4, axis=0)
    with pytest.raises(ValueError, match="1 NaN"):
        n_m(np.array([1, np.nan]), 1, 2, axis=0)


def test_balance_by_hand() -> None:
    # rms of 1, 8, sqrt(127) is sqrt((1 + 64 + 127) / 3) = 8
    factors = masks.balance(np.array([1.0, 8.0, np.sqrt(127.0)]))
    np.testing.assert_allclose(factors[:2], [4.0, 1.0], rtol=1e-12)
    assert factors[2] < 1


def test_balance_leaves_zeros_and_equal_channels_alone() -> None:
    np.testing.assert_array_equal(masks.balance(np.zeros(3)), np.ones(3))
    np.testing.assert_allclose(masks.balance(np.array([0.0, 2.0, 2.0])), [1.0, 1.0, 1.0], rtol=1e-12)


def test_balance_does_not_depend_on_the_layer_s_scale() -> None:
    norms = np.random.default_rng(5).uniform(0.1, 3, 20)
    np.testing.assert_allclose(masks.balance(norms * 1e6), masks.balance(norms), rtol=1e-12)
