"""Progress bars on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from onnxprune.clock import Progress as Tell

if TYPE_CHECKING:
    from onnxprune.sweep_report import SweepRow

PHASES = {
    "dense outputs": "dense model, held-out samples",
    "candidates": "candidates of auto",
    "masked outputs": "masked model, held-out samples",
    "dense statistics": "dense statistics",
    "repair": "repair, layer by layer",
    "repaired outputs": "repaired model, held-out samples",
}


def silent(phase: str, done: int, total: int) -> None:
    """A progress callback that draws nothing, for work in another process."""


@contextlib.contextmanager
def progress(label: str, *, quiet: bool) -> Iterator[Tell]:
    """A progress callback that draws bars on stderr; it draws nothing off a terminal or when quiet."""
    console = None if quiet else _console()
    if console is None:
        yield silent
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(f"{label}: {PHASES.get(phase, phase)}", total=total)
            bars.update(tasks[phase], completed=done)

        yield tell


@contextlib.contextmanager
def rows(label: str, *, quiet: bool) -> Iterator[Callable[[SweepRow | None, int, int], None]]:
    """A callback for the rows of a sweep that draws one bar with the time left; it draws nothing off a terminal or when quiet."""
    console = None if quiet else _console()
    if console is None:
        yield lambda row, done, total: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("left"))
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as drawn:
        task = drawn.add_task(f"{label}: dense model", total=None)

        def tell(row: SweepRow | None, done: int, total: int) -> None:
            if row is None:  # rows that were there already take no time, and must not count in the speed
                drawn.reset(task, total=total, completed=done, description=f"{label}: {done} rows there")
            else:
                drawn.update(task, completed=done, description=f"{label}: {row.alloc} {row.sparsity_asked:g} {row.repair}")

        yield tell


def _console() -> Any:
    """The terminal behind stderr, None where there is none."""
    from rich.console import Console  # takes a while, and is for nothing in a quiet run

    console = Console(stderr=True)
    return console if console.is_terminal else None
