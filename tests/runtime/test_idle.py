"""Tasks in the gaps: all are done, in their order, by a thread that leaves the cores to others, and by who waits for them."""

import os
import threading
import time

import pytest

from onnxprune.runtime import idle
from onnxprune.runtime.idle import THERE, Gaps

needs_idle = pytest.mark.skipif(not THERE, reason="threads have no niceness of their own")


def numbered(count, work=lambda number: number):
    return (lambda number=number: work(number) for number in range(count))


@pytest.mark.parametrize("at_once", [1, 2, 3, 20])
@pytest.mark.parametrize("pause", [0, 0.01])
def test_all_is_done_in_order_and_more_behind_it(at_once, pause):
    def work(number):
        time.sleep(pause * (number % 3))
        return number

    with Gaps(numbered(10, work)) as gaps:
        time.sleep(2 * pause)
        assert gaps.finished(at_once, (lambda number=number: work(number) for number in range(10, 14))) == list(range(14))


def test_nothing_to_do_is_done():
    with Gaps(iter(())) as gaps:
        assert gaps.finished(2) == []


@needs_idle
def test_the_thread_is_nicer_than_the_others():
    def policy():
        return threading.get_ident(), os.getpriority(os.PRIO_PROCESS, threading.get_native_id())

    usual = policy()[1]

    first = threading.Event()

    def work(number):
        first.set()
        return policy()

    with Gaps(numbered(1, work)) as gaps:
        assert first.wait(10)
        found = gaps.finished(2, numbered(3, work))
    assert found[0][0] != threading.get_ident()
    assert found[0][1] == min(usual + 10, 19)
    assert {how for who, how in found if who != found[0][0]} <= {usual}
    assert policy()[1] == usual


def test_where_there_is_no_such_thread_all_is_done_at_the_end(monkeypatch):
    def refused(*told):
        raise PermissionError(1, "no")

    monkeypatch.setattr(idle.os, "setpriority", refused, raising=False)
    begun = []
    with Gaps(numbered(4, begun.append)) as gaps:
        gaps._thread.join(10)
        assert begun == []
        gaps.finished(2)
    assert sorted(begun) == [0, 1, 2, 3]


@pytest.mark.parametrize("at_once", [1, 2, 4])
def test_no_more_than_so_many_run(at_once):
    running, most, lock = 0, 0, threading.Lock()

    def work(number):
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        time.sleep(0.002)
        with lock:
            running -= 1

    with Gaps(numbered(30, work)) as gaps:
        gaps.finished(at_once)
    assert most <= max(at_once, 2)  # with one at a time, the thread and who waits for it


@pytest.mark.parametrize("there", [True, False])
def test_an_error_of_a_task_is_raised_at_the_end_and_nothing_is_begun_after_it(there, monkeypatch):
    if not there:
        monkeypatch.setattr(Gaps, "_idle", lambda gaps: None)
    begun = []

    def work(number):
        begun.append(number)
        if number == 2:
            raise ValueError("two")

    with Gaps(numbered(100, work)) as gaps:
        if there and THERE:
            gaps._thread.join(10)
            assert begun == [0, 1, 2]
        with pytest.raises(ValueError, match="two"):
            gaps.finished(2)
    assert set(begun) <= {0, 1, 2, 3}


def test_an_error_of_what_prepares_the_tasks_is_raised_at_the_end():
    def tasks():
        yield lambda: 1
        raise ValueError("no more")

    with Gaps(tasks()) as gaps, pytest.raises(ValueError, match="no more"):
        gaps.finished(2)


def test_an_error_outside_ends_it_and_what_was_begun_is_waited_for():
    begun, ended = threading.Event(), []

    def work(number):
        begun.set()
        time.sleep(0.05)
        ended.append(number)

    gaps = Gaps(numbered(100, work))
    gaps.__enter__()
    assert not THERE or begun.wait(10)
    gaps.__exit__(KeyError, KeyError("outside"), None)
    count = len(ended)
    assert count <= 2
    time.sleep(0.1)
    assert len(ended) == count


def test_progress_is_told_to_who_waits():
    told = []
    with Gaps(numbered(5)) as gaps:
        gaps.finished(2, numbered(4), lambda done: told.append((threading.get_ident(), done)))
    assert {who for who, _ in told} == {threading.get_ident()}
    assert [done for _, done in told] == sorted(done for _, done in told)
    assert told[-1][1] == 9


def test_a_task_that_is_done_is_let_go_of_before_the_next_is_prepared():
    """Its session is as large as the model."""
    gone, seen = [], []

    class Large:
        def __call__(self):
            return None

        def __del__(self):
            gone.append(1)

    def tasks():
        for _ in range(3):
            yield Large()
            seen.append(len(gone))

    gaps = Gaps(tasks())
    gaps._work()
    assert seen == [1, 2, 3]
