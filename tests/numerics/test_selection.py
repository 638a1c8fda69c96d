"""The selection by bracket against one that holds and sorts every score."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnxprune.numerics import selection
from onnxprune.numerics.allocation import Unread
from onnxprune.numerics.masks import magnitude
from onnxprune.numerics.selection import largest


def lamp_scores(values):
    """LAMP scores of ascending ``|w|``, a layer in one piece, float64."""
    squares = values.astype(np.float64)
    if not squares.size or squares[-1] == 0:
        return squares
    if values.dtype == np.float64:
        np.ldexp(squares, -np.frexp(squares[-1])[1], out=squares)
    squares *= squares
    return squares / np.cumsum(squares[::-1])[::-1]


def in_one_piece(weights, total, lamp):
    """Oracle: every score of every layer in one array, sorted; of equal ones those of the earlier layer first."""
    rows = [np.sort(magnitude(weight)) for weight in weights]
    scores = [lamp_scores(row) if lamp else row.astype(np.float64) for row in rows]
    owner = np.repeat(np.arange(len(rows)), [row.size for row in rows])
    order = np.lexsort((owner, -np.concatenate(scores)))[:total]
    return tuple(np.bincount(owner[order], minlength=len(rows)).tolist())


def drawn(seed, dtype, kind, size):
    """A layer of ``size`` weights: without ties, with many, with zeros, over all of the type's exponents, or the same number throughout."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal(size)
    made = {
        "plain": values,
        "tied": np.round(values * 3) / 3,
        "sparse": np.where(rng.random(size) < 0.7, 0.0, values),
        "wide": values * 2.0 ** rng.integers(-12, 12, size),
        "same": np.full(size, values[0] if size else 0.0),
        "zeros": np.zeros(size),
        "near": 1 + rng.integers(0, 4, size) * np.finfo(np.float64).eps,
    }
    return made[kind].astype(dtype)


LAYERS = st.lists(
    st.tuples(
        st.integers(0, 2**32),
        st.sampled_from([np.float16, np.float32, np.float64]),
        st.sampled_from(["plain", "tied", "sparse", "wide", "same", "zeros", "near"]),
        st.integers(0, 70),
    ),
    min_size=1,
    max_size=6,
)


@given(LAYERS, st.booleans(), st.sampled_from([1, 2, 3, 7, 64]), st.data())
@settings(max_examples=400, deadline=None)
def test_the_counts_are_those_of_one_piece(told, lamp, step, data):
    weights = [drawn(*entry) for entry in told]
    total = data.draw(st.integers(0, sum(weight.size for weight in weights)))
    assert largest(weights, total, lamp=lamp, step=step) == in_one_piece(weights, total, lamp)


@pytest.mark.parametrize("lamp", [True, False])
@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("share", [0.001, 0.1, 0.5, 0.9, 1.0])
def test_layers_over_several_blocks(lamp, dtype, share):
    rng = np.random.default_rng(1)
    sizes = (3 * selection.BLOCK * selection.STEP + 5, selection.BLOCK * selection.STEP, selection.STEP + 1, 100)
    weights = [(rng.standard_normal(size) * rng.uniform(0.1, 3)).astype(dtype) for size in sizes]
    total = round(share * sum(sizes))
    assert largest(weights, total, lamp=lamp) == in_one_piece(weights, total, lamp)


@pytest.mark.parametrize("lamp", [True, False])
def test_a_layer_is_read_twice_and_not_kept(lamp):
    reads, alive = [], []

    class Told(np.ndarray):
        def __del__(self):
            alive.remove(1)

    def reader(number):
        def read():
            assert len(alive) == 0, "another layer is still in memory"
            reads.append(number)
            alive.append(1)
            return np.random.default_rng(number).standard_normal((50, 20)).astype(np.float16).view(Told)

        return read

    weights = [Unread((50, 20), reader(number)) for number in range(4)]
    held = [np.random.default_rng(number).standard_normal((50, 20)).astype(np.float16) for number in range(4)]
    assert largest(weights, 700, lamp=lamp) == largest(held, 700, lamp=lamp)
    assert sorted(reads) == [0, 0, 1, 1, 2, 2, 3, 3]
