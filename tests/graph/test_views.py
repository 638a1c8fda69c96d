import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnxprune.graph.views import Grid, Moved, Picked, Rounded, Scaled, Shaped, Typed, layout, limits, see, spread, store, zeros

FLOAT, HALF, INT8 = TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.INT8
NUMBERS = {"s": np.array([0.5, 2.0], np.float32), "z": np.array([1, -3], np.int8), "one": np.float32(0.25)}


def read(name):
    return NUMBERS[name]


def test_steps_by_hand():
    """Integers (2, 3), a scale and a zero point a row, turned and flattened."""
    grid = Grid("s", "z", 0, 0, "d", INT8, FLOAT)
    steps = (Scaled(grid), Moved((1, 0)), Shaped((3, 2), (6,)))
    stored = np.array([[1, 3, 5], [-3, -2, 7]], np.int8)
    seen = np.array([0, 0, 1, 2, 2, 20], np.float32)
    np.testing.assert_array_equal(see(steps, stored, read), seen)
    np.testing.assert_array_equal(store(steps, seen, read), stored)
    np.testing.assert_array_equal(zeros(steps, (2, 3), read), [[1, 1, 1], [-3, -3, -3]])
    assert layout(steps) == steps[1:]


def test_another_order_by_hand():
    stored = np.array([[10, 20], [30, 40], [50, 60]])
    steps = (Picked((3, 2), np.array([[4, 5, 0], [1, 2, 3]])),)
    np.testing.assert_array_equal(see(steps, stored, read), [[50, 60, 10], [20, 30, 40]])
    np.testing.assert_array_equal(store(steps, np.array([[1, 2, 3], [4, 5, 6]]), read), [[3, 4], [5, 6], [1, 2]])
    assert layout(steps) == steps


def test_values_that_a_grid_does_not_have_are_rounded_and_cut():
    grid = Grid("one", "", 1, 0, "d", INT8, FLOAT)
    np.testing.assert_array_equal(store((Scaled(grid),), np.array([0.3, 0.4, 1000, -1000]), read), np.array([1, 2, 127, -128], np.int8))
    np.testing.assert_array_equal(see((Rounded(grid), Scaled(grid)), np.array([0.3, 100], np.float32), read), [0.25, 31.75])


def test_spread():
    grid = Grid("", "", 1, 2, "", INT8, FLOAT)
    np.testing.assert_array_equal(spread(np.array([[1, 2], [3, 4]]), grid, (2, 3)), [[1, 1, 2], [3, 3, 4]])  # the last block is short
    by_row = Grid("", "", 0, 0, "", INT8, FLOAT)
    np.testing.assert_array_equal(spread(np.array([1, 2]), by_row, (2, 2)), [[1, 1], [2, 2]])
    np.testing.assert_array_equal(spread(np.array([[5]]), by_row, (2, 2)), [[5, 5], [5, 5]])


@pytest.mark.parametrize(
    ("kind", "found"),
    [("INT8", (-128, 127)), ("UINT8", (0, 255)), ("INT4", (-8, 7)), ("UINT4", (0, 15)), ("INT32", (-(2**31), 2**31 - 1))],
)
def test_limits(kind, found):
    assert limits(TensorProto.DataType.Value(kind)) == found
    assert limits(TensorProto.FLOAT8E4M3FN) == (None, None)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_any_chain_can_be_undone(data):
    """What is stored for what was seen is what was stored; zeros are seen where zeros are stored, and nowhere else."""
    shape = tuple(data.draw(st.lists(st.integers(1, 4), min_size=1, max_size=4)))
    seed = data.draw(st.integers(0, 2**16))
    stored = np.random.default_rng(seed).integers(-100, 100, shape).astype(np.int8)
    steps, now = [Scaled(Grid("one", "", 0, 0, "d", INT8, FLOAT))], shape
    for _ in range(data.draw(st.integers(0, 4))):
        what = data.draw(st.sampled_from(["move", "shape", "pick"]))
        if what == "pick":
            places = np.arange(np.prod(now)).reshape(now)
            steps.append(Picked(now, np.random.default_rng(seed + 1).permuted(places)))
        elif what == "move":
            perm = tuple(data.draw(st.permutations(range(len(now)))))
            steps.append(Moved(perm))
            now = tuple(now[axis] for axis in perm)
        else:
            after = data.draw(st.sampled_from([(int(np.prod(now)),), (1, *now), (*now, 1)]))
            steps.append(Shaped(now, after))
            now = after
    steps.append(Typed(FLOAT, HALF))  # which holds quarters up to 25
    seen = see(tuple(steps), stored, read)
    assert seen.shape == now and seen.dtype == np.float16
    np.testing.assert_array_equal(store(tuple(steps), seen, read), stored)
    np.testing.assert_array_equal(store(layout(tuple(steps)), seen != 0, read), stored != 0)
