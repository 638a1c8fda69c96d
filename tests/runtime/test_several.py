"""Several batches at once: their order, how many, and what happens when one fails."""

import os
import threading

import pytest

from onnxprune.runtime.several import several


@pytest.mark.parametrize("at_once", [1, 2, 3, 20])
def test_what_is_made_comes_in_the_order_of_the_items(at_once):
    """The first of each pair waits for the second, where two run at once."""
    gates = [threading.Event() for _ in range(10)]

    def work(number):
        if at_once > 1 and number % 2 == 0:
            assert gates[number + 1].wait(10)
        gates[number].set()
        return number * number

    assert list(several(work, iter(range(10)), at_once)) == [number**2 for number in range(10)]


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_no_more_than_so_many_run_and_one_more_is_taken(at_once):
    running, most, taken, lock = 0, 0, 0, threading.Lock()

    def items():
        nonlocal taken
        for number in range(20):
            taken += 1
            yield number

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        with lock:
            running -= 1
        return number

    for done, number in enumerate(several(work, items(), at_once)):
        assert number == done
        assert taken <= done + 1 + at_once
    assert most <= at_once


@pytest.mark.parametrize("at_once", [1, 3])
def test_an_error_of_the_work_or_of_the_items_ends_it(at_once):
    begun = []

    def work(number):
        begun.append(number)
        if number == 2:
            raise ValueError("two")
        return number

    with pytest.raises(ValueError, match="two"):
        list(several(work, range(1000), at_once))
    assert len(begun) <= 2 + 2 * at_once

    def items():
        yield 1
        raise OSError("gone")

    with pytest.raises(OSError, match="gone"):
        list(several(int, items(), at_once))


def test_one_at_a_time_stays_in_its_thread():
    assert set(several(lambda _: threading.get_ident(), range(3), 1)) == {threading.get_ident()}
    assert threading.get_ident() not in set(several(lambda _: threading.get_ident(), range(3), 2))


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system does not tell")
def test_each_thread_has_a_core_of_its_own_where_there_are_as_many(monkeypatch):
    there = os.sched_getaffinity(0)
    told = []
    monkeypatch.setattr(os, "sched_setaffinity", lambda pid, cores: told.append((pid, *cores)))
    both = threading.Barrier(len(there))  # so that every thread is begun
    list(several(lambda _: both.wait(10), range(len(there)), len(there)))
    assert sorted(told) == ([(0, core) for core in sorted(there)] if len(there) > 1 else [])
    told.clear()
    list(several(int, range(9), len(there) + 1))
    assert told == []
    assert os.sched_getaffinity(0) == there
