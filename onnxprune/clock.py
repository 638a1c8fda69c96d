"""Time by phase, and progress told to whoever listens."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Progress = Callable[[str, int, int], None]
"""Called with the phase, the steps done and the steps in all."""


@dataclass
class Clock:
    """Wall time by phase, in seconds."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def ticker(progress: Progress, phase: str, total: int) -> Callable[[], None]:
    """A function that reports one step more of a phase each time it is called."""
    done = 0
    progress(phase, 0, total)

    def tick() -> None:
        nonlocal done
        done += 1
        progress(phase, done, total)

    return tick
