"""Work for cores that would be idle: what a run needs only at its end is begun at its start, and done in the gaps.

A walk in stages leaves gaps: one core builds a session, or one thread waits for the other at the end of a stage. On Linux a thread can
be nicer than the others of its process: it gets a tenth of a core that another one wants, and all of one that nobody does. It is not
given idle cores alone (SCHED_IDLE): on a machine that is busy with something else, who waits for it would wait for long.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterable
from itertools import chain
from types import TracebackType
from typing import Generic, TypeVar

Made = TypeVar("Made")
Task = Callable[[], Made]

THERE = sys.platform == "linux"
"""Whether a thread has a niceness of its own."""
NICER, NICEST = 10, 19
"""How much nicer than the others it is: of a core that one of them wants too it gets a tenth. There is no more than 19."""


def yielding() -> bool:
    """Make the calling thread nicer than the others; False where that is not to be had."""
    try:
        me = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, me, min(os.getpriority(os.PRIO_PROCESS, me) + NICER, NICEST))
    except OSError:
        return False
    return True


class Gaps(Generic[Made]):
    """Tasks that one thread does in the gaps that others leave, one after the other, from ``with`` on; `finished` does the rest.

    The tasks are taken by any of the threads that do them, one at a time: an iterator may prepare them.
    """

    def __init__(self, tasks: Iterable[Task[Made]]) -> None:
        self._tasks = iter(tasks)
        self._begun = 0
        self._made: dict[int, Made] = {}
        self._errors: list[BaseException] = []
        self._over = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._idle)

    def __enter__(self) -> Gaps[Made]:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Begin nothing more, and wait for what was begun."""
        self._over = True
        self._thread.join()

    def finished(self, at_once: int, more: Iterable[Task[Made]] = (), tell: Callable[[int], None] = lambda done: None) -> list[Made]:
        """What the tasks gave, in their order, and then ``more`` of them; those that are left are done here, so many at a time.

        ``tell`` is called with the number of those that are done, in this thread. What a task raised is raised here, and nothing was begun
        after it.
        """
        with self._lock:
            self._tasks = chain(self._tasks, more)
        others = [threading.Thread(target=self._work) for _ in range(at_once - 1 - self._thread.is_alive())]
        for thread in others:
            thread.start()
        self._work(tell)
        for thread in (*others, self._thread):
            thread.join()
        if self._errors:
            raise self._errors[0]
        tell(len(self._made))
        return [self._made[number] for number in range(self._begun)]

    def _idle(self) -> None:
        if yielding():
            self._work()

    def _work(self, tell: Callable[[int], None] = lambda done: None) -> None:
        """Do the tasks that are left, until there are none, or one failed."""
        try:
            while True:
                with self._lock:
                    if self._over or (task := next(self._tasks, None)) is None:
                        return
                    number = self._begun
                    self._begun += 1
                self._made[number] = task()
                del task  # and with it what it held
                tell(len(self._made))
        except BaseException as error:  # raised in the thread that waits for it
            self._over = True
            self._errors.append(error)
