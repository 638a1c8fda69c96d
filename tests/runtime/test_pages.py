"""Where live tensors lie: at the address they are to have, and in memory that is theirs alone."""

import numpy as np
import onnx
import pytest

from onnxprune.memory import memory_for
from onnxprune.runtime import spilling
from onnxprune.runtime.device import Device
from onnxprune.runtime.pages import ALIGNED, in_heap, in_pages
from onnxprune.runtime.session import to_device

KIND = np.dtype(np.float32)


def address(array):
    return array.__array_interface__["data"][0]


@pytest.mark.parametrize("place", [in_heap, in_pages])
@pytest.mark.parametrize("skew", [0, 4, 36, 60])
@pytest.mark.parametrize("shape", [(), (8,), (3, 1, 5), (1 << 11, 1 << 10)])
def test_an_array_begins_where_it_is_told_to(place, skew, shape):
    array = place(shape, KIND, skew)
    assert (array.shape, array.dtype, array.flags.c_contiguous, array.flags.writeable) == (shape, KIND, True, True)
    assert address(array) % ALIGNED == skew


@pytest.mark.parametrize("place", [in_heap, in_pages])
def test_a_view_keeps_it(place):
    first = place((2, 1 << 20), KIND, 0)
    first[...] = 7
    row = first[1:].reshape(-1)
    del first
    others = [place((2, 1 << 20), KIND, 0) for _ in range(4)]
    for other in others:
        other[...] = 0
    np.testing.assert_array_equal(row, 7)


@pytest.mark.parametrize(("asked", "place"), [(None, "in_heap"), (10**9, "in_pages")])
def test_tensors_have_pages_of_their_own_where_memory_was_asked_for(asked, place, monkeypatch):
    used = []
    for name, given in (("in_heap", in_heap), ("in_pages", in_pages)):
        monkeypatch.setattr(spilling, name, lambda *of, name=name, given=given: used.append(name) or given(*of))
    held = memory_for(asked, Device("cpu"))
    values = np.arange(1 << 16, dtype=np.float32)
    live = held.hold(to_device(values, Device("cpu")), Device("cpu"))
    assert used == [place]
    assert held.roomy is (asked is None)
    assert (held.room((1 << 16,), onnx.TensorProto.FLOAT, Device("cpu")) is None) is (asked is not None)
    np.testing.assert_array_equal(live.numpy(), values)
