"""Pages that are used again: never while somebody reads them, and never too many."""

import numpy as np

from onnxprune.memory import memory_for
from onnxprune.runtime.device import Device
from onnxprune.runtime.pages import SPARE, Pages

KIND = np.dtype(np.float32)


def address(array):
    return array.__array_interface__["data"][0]


def test_the_pages_of_what_is_gone_serve_what_comes():
    pages = Pages()
    first = pages.array((4, 256), KIND, 0)
    first[...] = 1
    where = address(first)
    del first
    assert pages.spare == 4096
    second = pages.array((1024,), KIND, 0)  # another shape of the same length
    assert (address(second), pages.spare) == (where, 0)
    assert pages.array((1025,), KIND, 0).shape == (1025,)


def test_a_smaller_tensor_takes_the_least_of_what_lies_spare_up_to_four_times_as_long():
    pages = Pages()
    held = [pages.array((1024 * size,), KIND, 0) for size in (8, 4, 9)]
    where = [address(array) for array in held]
    del held
    assert pages.spare == 21 * 4096
    small = pages.array((2 * 1024,), KIND, 0)
    assert (address(small), small.shape, pages.spare) == (where[1], (2048,), 17 * 4096)
    more = pages.array((2 * 1024,), KIND, 0)
    assert (address(more), pages.spare) == (where[0], 9 * 4096)
    assert address(pages.array((9 * 256,), KIND, 0)) == where[2]  # which is free again at once
    other = pages.array((2 * 1024,), KIND, 0)  # 9 is more than 4 times 2
    assert (address(other) in where, pages.spare) == (False, 9 * 4096)
    del small, more
    assert pages.spare == 21 * 4096  # whole, not what was asked of them


def test_a_view_keeps_them():
    pages = Pages()
    first = pages.array((2, 512), KIND, 0)
    first[...] = 7
    row = first[1:].reshape(-1)
    del first
    assert pages.spare == 0
    other = pages.array((2, 512), KIND, 0)
    other[...] = 0
    np.testing.assert_array_equal(row, 7)
    del row
    assert pages.spare == 4096


def test_an_array_begins_where_it_is_told_to():
    assert address(Pages().array((8,), KIND, 36)) % 4096 == 36


def test_no_more_than_so_much_is_kept_and_what_is_used_stays():
    pages = Pages(3 * 4096)
    held = [pages.array((1024 * size,), KIND, 0) for size in (1, 2, 1)]
    held.pop()  # 1 page
    held.pop()  # 2 pages
    assert pages.spare == 3 * 4096
    held.append(pages.array((1024,), KIND, 0))
    held.clear()  # two pieces of one page come back, and those of two pages were used longest ago
    assert pages.spare == 2 * 4096
    pages.shrink(4095)
    assert pages.spare == 0
    pages.shrink(-1)


def test_a_memory_that_was_asked_for_keeps_none():
    for asked, most in ((None, SPARE), (10**9, 0)):
        assert memory_for(asked, Device("cpu"))._pages._most == most
