"""Where independent pieces of work run: in this process, in processes beside it, or on a Dask cluster.

All of them are executors of concurrent.futures. The cores are divided among the processes, so that there are never more threads at
work than cores; on a cluster every piece has one thread, as Dask counts.
"""

from __future__ import annotations

import contextlib
import importlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, as_completed
from typing import Any, TypeVar
from weakref import WeakSet

from threadpoolctl import threadpool_limits

from onnxprune.errors import OnnxpruneError, RuntimeFailure, UsageError
from onnxprune.numerics.threads import LIMIT, allowed
from onnxprune.runtime.session import choose_device

T = TypeVar("T")
MOST = 8
"""Processes that are begun unasked: each holds the model and the samples, so memory is short before cores are."""
REACH = 15
"""Seconds to wait for a scheduler to answer."""
STOPS = (signal.SIGINT, signal.SIGTERM)
AGAIN = 0.02  # seconds after which a process whose end was lost leaves again
MASKED = hasattr(signal, "pthread_sigmask")
"""Whether signals can be blocked: not on Windows."""
OWN: WeakSet[Executor] = WeakSet()
"""Pools of `executor_of`: they end their processes, and Python's pool prints a traceback where a piece was called off before that."""


@contextlib.contextmanager
def executor_of(jobs: int, scheduler: str | None) -> Iterator[Executor | None]:
    """The executor of ``jobs`` local processes, or of the Dask cluster at ``scheduler``; None stands for this process.

    Raises:
        UsageError: Dask is not installed, or the address is not one.
        RuntimeFailure: no scheduler answers there.
    """
    if scheduler is not None:
        with _cluster(scheduler) as client:
            yield client.get_executor(pure=False)
    elif jobs > 1:
        before = set(multiprocessing.active_children())
        context = multiprocessing.get_context("spawn")  # a fork would take locks of the runtime's threads along
        pool = ProcessPoolExecutor(jobs, context, _begin, (max(1, allowed() // jobs),))
        OWN.add(pool)
        try:
            yield pool
        except BaseException:
            for child in set(multiprocessing.active_children()) - before:
                child.terminate()  # a reconstruction at work would go on for minutes; it leaves no temporary file, see _ended_well
            pool.shutdown(cancel_futures=True)
            raise
        pool.shutdown()
    else:
        yield None


def jobs_for(asked: int | None, scheduler: str | None, device: str, pieces: int) -> int:
    """How many local processes work on so many pieces: as many as asked, else one a core up to `MOST`, and one where CUDA runs.

    Raises:
        UsageError: processes were asked for beside a cluster.
    """
    if scheduler is not None and asked is not None:
        raise UsageError("--jobs counts processes on this machine, --scheduler runs on a cluster; give one of them")
    if asked is None:
        asked = 1 if device != "cpu" and choose_device(device).kind == "cuda" else min(allowed(), MOST)
    return max(1, min(asked, pieces))


def each(work: Callable[..., T], pieces: Sequence[tuple[Any, ...]], executor: Executor | None) -> Iterator[tuple[int, T]]:
    """The number of every piece and what ``work(*piece)`` gives, as they are done.

    Raises:
        OnnxpruneError: what the work raised, or RuntimeFailure where its process ended. What was begun is called off.
    """
    if executor is None:
        for number, piece in enumerate(pieces):
            yield number, work(*piece)
        return
    call = (alone if type(executor).__module__.startswith("distributed") else _ended_well, work)
    with _later():  # a process begins with the signals that are held back here, until it can answer them
        numbers = {executor.submit(*call, *piece): number for number, piece in enumerate(pieces)}
    try:
        for future in as_completed(numbers):
            try:
                yield numbers[future], future.result()
            except OnnxpruneError:
                raise
            except BrokenExecutor as error:
                raise RuntimeFailure("a worker process ended before its work did; memory may be short: give fewer --jobs") from error
            except Exception as error:
                if type(error).__module__.split(".")[0] != "distributed":
                    raise
                raise RuntimeFailure(f"the cluster gave a piece of work up: {error}") from error
    finally:
        for future in numbers if executor not in OWN else ():
            future.cancel()


def alone(work: Callable[..., T], *arguments: Any) -> T:
    """``work(*arguments)`` with one thread, for a worker of a cluster."""
    limit(1)
    return work(*arguments)


def limit(threads: int) -> None:
    """Let this process compute with so many threads, unless its environment says how many already."""
    os.environ.setdefault(LIMIT, str(threads))
    threadpool_limits(allowed(), "blas")


def _begin(threads: int) -> None:
    """What a local worker process does first; before its first work and between two, a signal ends it at once."""
    _answer(_gone)
    limit(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)  # a parent that was killed cannot tell its children

    threading.Thread(target=follow, daemon=True).start()
    if MASKED:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)


def _ended_well(work: Callable[..., T], *arguments: Any) -> T:
    """``work(*arguments)``; in a process of `_begin` a signal ends it as a return would: no traceback, no temporary files left."""
    if signal.getsignal(signal.SIGTERM) is not _gone:
        return work(*arguments)

    def leave(*_: Any) -> None:
        _answer(lambda *_: None)  # one is enough: the next must not stop what clears up
        raise SystemExit

    def lost(caught: Any) -> None:
        """What is raised where an object is finalized is lost there: the process leaves once that is over."""
        if not isinstance(caught.exc_value, SystemExit):
            hook(caught)
            return
        _answer(leave)
        if MASKED:  # to this thread, which may wait for something
            threading.Timer(AGAIN, signal.pthread_kill, (threading.get_ident(), signal.SIGTERM)).start()
        else:
            threading.Timer(AGAIN, signal.raise_signal, (signal.SIGTERM,)).start()

    hook, sys.unraisablehook = sys.unraisablehook, lost
    try:
        _answer(leave)
        return work(*arguments)
    except SystemExit:
        os._exit(130)
    finally:
        _answer(_gone)
        sys.unraisablehook = hook


def _gone(*_: Any) -> None:
    os._exit(130)


def _answer(handler: Callable[..., Any]) -> None:
    for number in STOPS:
        signal.signal(number, handler)


@contextlib.contextmanager
def _later() -> Iterator[None]:
    """Hold back the signals that end a process until the block is done, here and in the processes that begin in it.

    A blocked signal goes to another thread of the process, and Python answers it in the main one all the same: so its answer waits too.
    """
    came: list[int] = []
    main = threading.current_thread() is threading.main_thread()
    answers = {number: answer for number in STOPS if main and (answer := signal.getsignal(number)) not in (None, signal.SIG_IGN)}
    for number in answers:
        signal.signal(number, lambda number, _: came.append(number))
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOPS) if MASKED else ()
    try:
        yield
    finally:
        if MASKED:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        for number, answer in answers.items():
            signal.signal(number, answer)
        for late in dict.fromkeys(came):
            signal.raise_signal(late)


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    try:
        client_of = importlib.import_module("distributed").Client
    except ImportError:
        raise UsageError("--scheduler needs Dask, which is not installed; pip install 'onnxprune[dask]'") from None
    try:
        client = client_of(address, timeout=REACH, set_as_default=False)
    except ValueError as error:
        raise UsageError(f"--scheduler {address!r} is not an address such as tcp://host:8786: {error}") from None
    except (OSError, TimeoutError) as error:
        raise RuntimeFailure(f"--scheduler {address}: no Dask scheduler answers there: {error}") from None
    with client:
        yield client
