"""A sweep as a person reads it: its rows, the best of each sparsity, the transition regimes; and what auto tried."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.report import ChoiceReport
from onnxprune.sweep_report import SweepReport


def show_sweep(console: Console, report: SweepReport) -> None:
    """The tables of a sweep."""
    labelled = report.labels is not None
    grid = _table("allocation", "sparsity", "repair", "agreement", "KL", "SQNR dB", *(["accuracy"] if labelled else []), "seconds", "")
    chosen = {(best.alloc, best.sparsity_asked, best.repair) for best in report.best}
    for row in report.rows:
        less = row.batch_size is not None and row.batch_size < report.calibration.batch_size
        mark = "best" if (row.alloc, row.sparsity_asked, row.repair) in chosen else ""
        cells = [row.alloc, f"{row.sparsity_asked:g}", row.repair, _number(row.score), _number(row.kl), _number(row.sqnr_db, 1)]
        cells += [_number(row.accuracy)] if labelled else []
        marks = [mark, f"in batches of {row.batch_size}, memory ran out" if less else ""]
        grid.add_row(*cells, f"{row.seconds:.1f}", Text(row.error or "; ".join(filter(None, marks))))
    console.print(grid)
    console.print()
    best = _table("sparsity", "best", "agreement", "KL", *(["accuracy"] if labelled else []))
    for entry in report.best:
        cells = [f"{entry.sparsity_asked:g}", f"{entry.alloc} + {entry.repair}", _number(entry.score), _number(entry.kl)]
        best.add_row(*cells, *([_number(entry.accuracy)] if labelled else []))
    console.print(best)
    console.print()
    for regime in report.regimes:
        told = f"transition regime of {regime.alloc} (bn below {regime.fallen:g}, a stronger repair at {regime.holds:g} or more): "
        points = (f"{point.sparsity_asked:g} ({point.repair} {point.score:.2f}, bn {point.bn:.2f})" for point in regime.points)
        console.print(Text(told + (", ".join(points) or "none of these sparsities")))
    used = report.calibration
    dense = "" if report.dense_accuracy is None else f"; the dense model's accuracy on them is {report.dense_accuracy:.4f}"
    console.print(
        Text(f"agreement: {report.measure} of {report.output!r} on {used.holdout} held-out samples, {used.repair} repaired{dense}")
    )
    failed = sum(row.error is not None for row in report.rows)
    if failed:
        console.print(Text(f"{failed} of {len(report.rows)} combinations failed"))
    for note in report.notes:
        console.print(Text(f"note: {note}"))


def _table(*titles: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in titles:
        words = title in ("allocation", "repair", "best", "")
        table.add_column(title, justify="left" if words else "right", no_wrap=bool(title))
    return table


def _number(value: float | None, digits: int = 4) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def choice_rows(choice: ChoiceReport) -> Iterator[tuple[str, str]]:
    """What auto tried, a line each; the chosen one is marked."""
    yield "candidates", f"on {choice.samples} held-out samples; {choice.judged if choice.split else 'the same'} gave the agreement above"
    for entry in choice.candidates:
        measures = [f"{name} {value:.4f}" for name, value in (("agreement", entry.score), ("KL", entry.kl)) if value is not None]
        figures = f"{', '.join(measures)}, {entry.seconds:.1f} s" if entry.error is None else entry.error
        yield "", f"{entry.sparsity_asked:g} {entry.alloc} + {entry.repair}: {figures}{'  <- chosen' if entry.chosen else ''}"
