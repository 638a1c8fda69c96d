"""A sweep from the command line's paths to its files: targets checked first, rows kept as they come, both files whole or not there."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import io
import os
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from onnxprune.errors import UsageError
from onnxprune.graph.whole import replacing
from onnxprune.job import check_target, is_page
from onnxprune.page import sweep_page
from onnxprune.report import to_json
from onnxprune.resuming import keeping, known_rows, state_of
from onnxprune.sweep_report import SweepReport, SweepRow
from onnxprune.sweeping import Sweep, sweep


def check_targets(asked: Sweep, output: Path | None, table: Path | None, page: Path | None, *, force: bool) -> None:
    """Refuse what cannot be written before anything runs.

    Raises:
        UsageError: a target is an input, exists without --force, or is named twice.
        ModelError: its folder is missing or cannot be written to.
    """
    if page is not None and not is_page(page):
        raise UsageError(f"--report {page} is no page; give it a name that ends in .html, and -o for JSON")
    for flag, path, kind in (("-o", output, "JSON"), ("--csv", table, "CSV")):
        if path is not None and is_page(path):
            raise UsageError(f"{flag} {path} would be {kind} in the name of a page; give another name, and --report for a page")
    inputs = {path.resolve() for path in (asked.model, *asked.calib, *([asked.labels] if asked.labels else []))}
    targets = [path for path in (output, table, page) if path is not None]
    for path in targets:
        check_target(path, inputs, "-o, --csv or --report", force=force)
    if len({path.resolve() for path in targets}) < len(targets):
        raise UsageError(f"{targets[-1]} would be written twice; give -o, --csv and --report different names")


def sweep_to_files(
    asked: Sweep,
    output: Path | None,
    table: Path | None,
    executor: Executor | None,
    told: Callable[[SweepRow | None, int, int], None],
    page: Path | None = None,
    command: str = "",
) -> SweepReport:
    """The report of a sweep, written as JSON to ``output``, as CSV to ``table`` and as a page that shows ``command`` to ``page``.

    Rows are kept beside the first of the three until all are written. ``told`` is also called once at the start, with None and the number
    of rows that were kept there.

    Raises:
        OnnxpruneError: no file was written; the rows that were made are kept.
    """
    target = output or table or page
    if target is None:
        told(None, 0, len(asked.rows()))
        return sweep(asked, executor, {}, told)
    state = state_of(target)
    known = known_rows(state)
    with keeping(state) as keep:

        def made(row: SweepRow, done: int, total: int) -> None:
            keep(row)
            told(row, done, total)

        report = sweep(asked, executor, known, made, lambda done, total: told(None, done, total))
    with contextlib.ExitStack() as stack:  # all are complete on the disk before any takes its name
        for path, made_of in ((output, to_json), (table, to_csv), (page, partial(sweep_page, command=command))):
            if path is not None:
                handle = stack.enter_context(replacing(path))
                handle.write(made_of(report).encode())
                handle.flush()
                os.fsync(handle.fileno())
    state.unlink(missing_ok=True)
    return report


def to_csv(report: SweepReport) -> str:
    """The rows as CSV, one a line under the names of their fields; what was not measured is empty."""
    text = io.StringIO()
    names = [field.name for field in dataclasses.fields(SweepRow)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([getattr(row, name) for name in names] for row in report.rows)
    return text.getvalue()
