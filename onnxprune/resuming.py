"""The rows of a sweep that is not finished, beside where it will be written: one line of JSON a row, each on the disk before the next.

A line that was cut off, by a full disk or a lost machine, is left aside and its row is made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from onnxprune.sweep_report import SweepRow

FIELDS = {field.name for field in dataclasses.fields(SweepRow)}


def state_of(target: Path) -> Path:
    """The file that holds the rows of the sweep that will be at ``target``."""
    return target.with_name(f"{target.name}.rows")


def known_rows(state: Path) -> dict[str, SweepRow]:
    """The rows in the file by their key; none where there is no such file."""
    found = {}
    with contextlib.suppress(FileNotFoundError):
        for line in state.read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                told = json.loads(line)
                if isinstance(told, dict) and set(told) == FIELDS and not told["error"]:  # what failed is tried again
                    found[str(told["key"])] = SweepRow(**told)
    return found


@contextlib.contextmanager
def keeping(state: Path) -> Iterator[Callable[[SweepRow], None]]:
    """A function that adds a row to the file; the file is there from the first row on."""
    with contextlib.ExitStack() as stack:
        handles: list[int] = []

        def add(row: SweepRow) -> None:
            if not handles:
                handle = os.open(state, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666)
                stack.callback(os.close, handle)
                handles.append(handle)
                if os.fstat(handle).st_size:
                    os.write(handle, b"\n")  # behind a line that may have been cut off
            os.write(handles[0], (json.dumps(dataclasses.asdict(row)) + "\n").encode())
            os.fsync(handles[0])

        yield add
