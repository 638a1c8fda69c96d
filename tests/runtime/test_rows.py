"""Rows gathered in the runtime equal those that numpy gathers: nothing is computed, so every comparison asks for equality."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.errors import RuntimeFailure
from onnxprune.runtime.device import Device
from onnxprune.runtime.rows import gather
from onnxprune.runtime.session import as_array, to_device

CPU = Device("cpu", threads=1)


def rows(array, order, index):
    found = as_array(gather(to_device(array, CPU), order, index, CPU))
    assert found.dtype == np.float32
    return found


def by_numpy(array, order, index):
    """Row after row, channel after channel, tap after tap."""
    flat = array.astype(np.float32).transpose(order).reshape(-1, array.shape[order[-1]])
    found = np.zeros((len(index), flat.shape[1] * index.shape[1]), np.float32)
    for r, c, t in itertools.product(range(len(index)), range(flat.shape[1]), range(index.shape[1])):
        if index[r, t] < len(flat):
            found[r, c * index.shape[1] + t] = flat[index[r, t], c]
    return found


def test_by_hand():
    """Two samples, two channels, two positions: rows (0, 2), (1, 3), (4, 6), (5, 7) by sample and position; 4 is the padding."""
    array = np.arange(8, dtype=np.float32).reshape(2, 2, 2)
    np.testing.assert_array_equal(rows(array, [0, 2, 1], np.array([[0], [3]])), [[0, 2], [5, 7]])
    np.testing.assert_array_equal(rows(array, [0, 2, 1], np.array([[4, 1], [2, 4]])), [[0, 1, 0, 3], [4, 0, 6, 0]])
    np.testing.assert_array_equal(rows(array, [0, 1, 2], np.array([[1]])), [[2, 3]])  # channels last as they are


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("taps", [1, 3])
@pytest.mark.parametrize("order", [[0, 1], [0, 2, 1], [0, 1, 2], [0, 2, 3, 1], [0, 1, 3, 2], [0, 2, 3, 4, 1]])
def test_every_rank_and_type(order, taps, dtype):
    rng = np.random.default_rng(0)
    array = rng.normal(size=[3, 4, 2, 5, 2][: len(order)]).astype(dtype)
    count = array.size // array.shape[order[-1]]
    for top in (count, count + 1):  # without padding and with it
        index = rng.integers(0, top, (11, taps))
        index[0, 0] = top - 1
        np.testing.assert_array_equal(rows(array, order, index), by_numpy(array, order, index))


def test_padding_with_a_single_tap():
    """A 1x1 kernel with pads, or transposed with a stride, reads padding too."""
    array = np.arange(1, 5, dtype=np.float32).reshape(1, 2, 2)
    np.testing.assert_array_equal(rows(array, [0, 2, 1], np.array([[2], [0], [2]])), [[0, 0], [1, 3], [0, 0]])


def test_nothing_but_padding():
    array = np.ones((1, 2, 2), np.float32)
    np.testing.assert_array_equal(rows(array, [0, 2, 1], np.full((2, 2), 2)), np.zeros((2, 4)))


@pytest.mark.parametrize("taps", [1, 2])
def test_no_rows(taps):
    assert rows(np.ones((1, 2, 2), np.float32), [0, 2, 1], np.zeros((0, taps), np.int64)).shape == (0, 2 * taps)


@pytest.mark.parametrize("taps", [1, 2])
def test_a_row_beyond_the_padding_is_refused(taps):
    with pytest.raises(RuntimeFailure):
        rows(np.ones((1, 2, 2), np.float32), [0, 2, 1], np.full((1, taps), 3))


def test_values_that_float32_cannot_hold():
    """float64 is rounded once, as numpy does; not-a-number and infinity pass, and are not spread by padding or by another row."""
    array = np.array([[1 + 2.0**-40, np.inf], [np.nan, 1e-50], [-0.0, 3.0]])
    np.testing.assert_array_equal(rows(array, [0, 1], np.array([[0], [1], [2]])), array.astype(np.float32))
    np.testing.assert_array_equal(rows(array, [0, 1], np.array([[3, 2]])), [[0, 0, 0, 3]])


@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.lists(st.integers(1, 4), min_size=2, max_size=5), st.integers(1, 4), st.integers(1, 6), st.integers(0, 2**32 - 1), st.booleans())
def test_any(dims, taps, count, seed, last):
    """The same cached session serves other lengths: only order, channels, taps, padding and type are its own."""
    rng = np.random.default_rng(seed)
    order = list(range(len(dims))) if last else [0, *range(2, len(dims)), 1]
    array = rng.normal(size=dims).astype(np.float32)
    index = rng.integers(0, array.size // array.shape[order[-1]] + 1, (count, taps))
    np.testing.assert_array_equal(rows(array, order, index), by_numpy(array, order, index))
