"""Progress bars on stderr."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from onnxprune.clock import Progress as Tell

PHASES = {
    "dense outputs": "dense model, held-out samples",
    "masked outputs": "masked model, held-out samples",
    "dense statistics": "dense statistics",
    "repair": "repair, layer by layer",
    "repaired outputs": "repaired model, held-out samples",
}


@contextlib.contextmanager
def progress(label: str, *, quiet: bool) -> Iterator[Tell]:
    """A progress callback that draws bars on stderr; it draws nothing off a terminal or when quiet."""
    console = Console(stderr=True)
    if quiet or not console.is_terminal:
        yield lambda phase, done, total: None
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bars:
        tasks = {}

        def tell(phase: str, done: int, total: int) -> None:
            if phase not in tasks:
                tasks[phase] = bars.add_task(f"{label}: {PHASES.get(phase, phase)}", total=total)
            bars.update(tasks[phase], completed=done)

        yield tell
