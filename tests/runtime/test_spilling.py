"""Live tensors within a budget: what stays, what goes to the file, that places are used again, and that nothing is left."""

import errno
import os
import tempfile
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto

from onnxprune.errors import RuntimeFailure
from onnxprune.runtime import spilling
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import to_device
from onnxprune.runtime.spilling import LEAST, Memory

CPU = Device("cpu", threads=1)


def tensor(count=LEAST // 4, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).integers(0, 2 if dtype == np.bool_ else 100, count).astype(dtype)


def take(memory, array):
    return memory.hold(to_device(array, CPU), CPU)


def test_what_came_first_stays_and_the_rest_goes_to_the_file():
    memory = Memory(2 * LEAST)
    held = [take(memory, tensor(seed=seed)) for seed in range(4)]
    assert (memory.peak, memory.spilled) == (2 * LEAST + 2 * memory_of(held[2]), 2 * LEAST)
    for seed, live in enumerate(held):
        np.testing.assert_array_equal(live.numpy(), tensor(seed=seed))
        assert (live.shape(), live.element_type()) == ([LEAST // 4], 1)
    del held[0]
    held.append(take(memory, tensor(seed=9)))  # there is room again
    assert memory.spilled == 2 * LEAST


def memory_of(live):
    """Bytes in the file: whole pages, one more where the address was not at the beginning of one."""
    return LEAST * (2 if live._place[1] else 1)


@pytest.mark.parametrize("dtype", [np.float64, np.float16, np.int8, np.uint64, np.bool_])
def test_every_type_comes_back_as_it_was_at_an_address_like_its_own(dtype):
    array = tensor(3 * LEAST, dtype).reshape(3, 1, LEAST)
    value = to_device(array, CPU)
    lives = Memory(1).hold(value, CPU), Memory().hold(value, CPU)
    assert [live._place is None for live in lives] == [False, True]
    for live in lives:
        found = live.value()
        assert found.data_ptr() % spilling.ALIGNED == value.data_ptr() % spilling.ALIGNED
        assert found.numpy().dtype == dtype
        np.testing.assert_array_equal(found.numpy(), array)


def test_small_and_empty_tensors_stay():
    memory = Memory(1)
    lives = [take(memory, array) for array in (np.arange(5.0), np.zeros((0, 3), np.float32), np.array(7.0))]
    assert [live.value().shape() for live in lives] == [[5], [0, 3], []]
    assert (memory.spilled, memory.peak) == (0, 48)


def test_a_place_is_not_given_away_while_its_tensor_is_read():
    memory = Memory(1)
    first, last = take(memory, tensor(seed=1)), take(memory, tensor(seed=5))
    value = first.value()
    del first
    take(memory, tensor(seed=2))
    np.testing.assert_array_equal(value.numpy(), tensor(seed=1))
    np.testing.assert_array_equal(last.numpy(), tensor(seed=5))


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(1, 6), st.booleans(), st.integers(0, 10)), max_size=40), st.integers(0, 8))
def test_any_order_of_coming_and_going_keeps_every_value_and_leaves_no_file(steps, budget):
    memory = Memory(budget * LEAST or 1)
    there = []
    for number, (pages, goes, which) in enumerate(steps):
        if goes and there:
            there.pop(which % len(there))
        else:
            array = tensor(pages * LEAST // 4, seed=number)
            there.append((take(memory, array), array))
        for live, array in there:
            np.testing.assert_array_equal(live.numpy(), array)
        places = sorted((live._place[0], -(-(live._place[1] + array.nbytes) // LEAST) * LEAST) for live, array in there if live._place)
        parts = sorted([*places, *memory._parts])
        assert all(start + length == after for (start, length), (after, _) in pairwise(parts))
        assert sum(length for _, length in parts) == memory._end
        live = array = places = None
    there.clear()
    assert (memory._held, memory._filed, memory._end, memory._file) == (0, 0, 0, None)


def test_the_file_has_no_name(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    memory = Memory(1)
    live = take(memory, tensor())
    assert memory.spilled
    assert not list(tmp_path.iterdir())
    place = os.readlink(f"/proc/self/fd/{memory._file.fileno()}")
    assert place.startswith(str(tmp_path))
    assert place.endswith("(deleted)")
    del live


def test_a_folder_that_takes_no_file_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path / "none"))
    memory = Memory(1)
    with pytest.raises(RuntimeFailure, match=r"none: no place for the live tensors beyond --memory: No such file.*; set TMPDIR"):
        take(memory, tensor())
    assert (memory._filed, memory._end) == (0, 0)


def test_a_full_folder_is_one_line_and_the_place_is_free_again(monkeypatch):
    memory = Memory(1)
    first = take(memory, tensor())

    class Full:
        def __init__(self, file):
            self.file = file

        def __getattr__(self, name):
            return getattr(self.file, name)

        def write(self, data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    before, memory._file = memory._filed, Full(memory._file)
    with pytest.raises(RuntimeFailure, match=rf"{tempfile.gettempdir()}: .*No space left on device; .*fewer --samples"):
        take(memory, tensor())
    assert memory._filed == before
    np.testing.assert_array_equal(first.numpy(), tensor())


def test_what_is_held_does_not_keep_what_came_out_beside_it():
    """ONNX Runtime keeps all outputs of a run while one OrtValue of them lives; 40 runs of 64 MB would stay."""
    from models import parse

    from onnxprune.runtime.session import open_session, run_bound

    model = parse("net (float[n] x) => (float[n] y, float[m] z) <int64[1] s = {16777216}> { y = Relu(x)\n z = Expand(x, s) }")
    session = open_session(model.SerializeToString(), CPU, lean=True)
    memory, held, before = Memory(), [], resident()
    for _ in range(40):
        made = run_bound(session, {"x": to_device(np.ones(1, np.float32), CPU)}, ["y", "z"], CPU)
        held.append(memory.hold(made.pop("y"), CPU))
    del made
    assert resident() - before < 300 << 20


def test_what_was_given_room_stays_where_it_was_written():
    memory = Memory()
    place = memory.room([3, LEAST], TensorProto.FLOAT, CPU)
    assert (place.shape(), place.element_type(), memory.peak) == ([3, LEAST], TensorProto.FLOAT, 0)
    where = place.data_ptr()
    live = memory.hold(place, CPU, placed=True)
    assert (live.value().data_ptr(), memory.peak) == (where, 12 * LEAST)
    assert memory.hold(live.value(), CPU).value().data_ptr() != where  # anything else is copied


@pytest.mark.parametrize(
    ("memory", "count", "kind", "device"),
    [
        (Memory(10**9, roomy=False), LEAST, TensorProto.FLOAT, CPU),  # bounded
        (Memory(4 * LEAST - 1), LEAST, TensorProto.FLOAT, CPU),  # no room
        (Memory(), LEAST // 4 - 1, TensorProto.FLOAT, CPU),  # small
        (Memory(), LEAST, TensorProto.STRING, CPU),
        (Memory(), LEAST, TensorProto.FLOAT, Device("cuda")),
    ],
)
def test_no_room_beforehand(memory, count, kind, device):
    assert memory.room([count], kind, device) is None


def resident():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) << 10 for line in status if line.startswith("VmRSS"))
