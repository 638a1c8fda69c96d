"""Moments of linear combinations from sums of products: by hand, and against the combinations themselves."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.numerics.moments import Moments
from onnxprune.numerics.products import Products


def products_of(x):
    """Of rows x (n, K)."""
    values = x.astype(np.float64)
    return Products(len(values), values.sum(0), values.T @ values)


def test_by_hand():
    """x = (1, 0), (3, 2): means 2 and 1, deviations -1, 1 in both. y = x0 + 2 x1 + 5 is 6 and 12; x0 - x1 is 1 and 1."""
    found = products_of(np.array([[1, 0], [3, 2]])).moments(np.array([[1, 2], [1, -1], [0, 0]]), np.array([5, 0, 7]))
    assert found.count == 2
    np.testing.assert_array_equal(found.mean, [9, 1, 7])
    np.testing.assert_array_equal(found.m2, [18, 0, 0])


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 200),
    inputs=st.integers(1, 9),
    outputs=st.integers(1, 30),
    far=st.sampled_from([0, 1, 1000]),
)
@settings(max_examples=60, deadline=None)
def test_the_moments_of_what_is_computed(seed, rows, inputs, outputs, far):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(rows, inputs)) + far
    weight, bias = rng.normal(size=(outputs, inputs)), rng.normal(size=outputs)
    cut = int(rng.integers(rows + 1))
    found = products_of(x[:cut]).merge(products_of(x[cut:])).merge(Products.empty(inputs)).moments(weight, bias)
    want = Moments.from_batch(x @ weight.T + bias, 1)
    size = np.sqrt(inputs) * max(far, 1)
    assert found.count == want.count == rows
    np.testing.assert_allclose(found.mean, want.mean, rtol=0, atol=1e-13 * size * 30)  # 200 sums of float64, 2^-53 each
    # sums of x^2 are some far^2 rows, and lose 2^-53 of it each
    np.testing.assert_allclose(found.m2, want.m2, rtol=1e-12, atol=1e-13 * rows * size**2 * 10)
    assert (found.m2 >= 0).all()


def test_a_channel_without_weights_does_not_vary_and_no_positions_are_no_moments():
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(3, 4)).astype(np.float32)
    weight[1] = 0
    found = products_of(rng.normal(size=(50, 4)) * 1e6).moments(weight, np.float32([1, 2, 3]))
    assert (found.m2[1], found.mean[1]) == (0, 2) and found.m2[0] > 0
    nothing = Products.empty(4).moments(weight, np.zeros(3))
    assert nothing.count == 0 and nothing.mean.shape == nothing.m2.shape == (3,)


@pytest.mark.parametrize("level", [1e-3, 1 / 3, 6, 1e5])
def test_constant_inputs_give_a_constant(level):
    x = np.full((1000, 3), level)
    x[:, 2] = np.random.default_rng(1).normal(size=1000) * 1e-5 * level  # 5 digits less
    found = products_of(x).moments(np.array([[0.3, -0.7, 0], [1 / 7, 2.5, 0], [1 / 7, 2.5, 1]]), np.zeros(3))
    np.testing.assert_array_equal(found.m2[:2], 0)
    np.testing.assert_allclose(found.variance[2], x[:, 2].var(), rtol=1e-3)  # 2^-53 of 10^10 times as much


def test_what_overflowed_is_seen():
    found = products_of(np.array([[np.inf, 1.0], [1.0, 2.0]])).moments(np.array([[1.0, 0.0], [1.0, 1.0]]), np.zeros(2))
    assert not np.isfinite(found.m2).any()


@pytest.mark.parametrize(("weight", "bias"), [((3, 5), 3), ((3, 4), 4), ((4,), 1)])
def test_shapes_that_do_not_fit(weight, bias):
    with pytest.raises(ValueError, match="do not fit 4 channels"):
        Products.empty(4).moments(np.zeros(weight), np.zeros(bias))
    with pytest.raises(ValueError, match="4 channels with those of 5"):
        Products.empty(4).merge(Products.empty(5))
