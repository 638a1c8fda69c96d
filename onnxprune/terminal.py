"""The report as a person reads it: tables and a summary on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.report import AgreementReport, CalibrationReport, FileReport, OutputAgreement, Report, not_judged
from onnxprune.sizes import readable
from onnxprune.sweep_tables import choice_rows
from onnxprune.tables import show_layers, show_skipped, table

# Where no terminal says how wide it is (a pipe, a log), lines are not wrapped at 80.
PIPE_WIDTH = 160


def stdout() -> Console:
    """The console for results."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def show_summary(console: Console, report: Report) -> None:
    """Everything about a run that is not one layer's."""
    rows = [
        (
            "sparsity",
            f"{report.sparsity:.6f} ({report.kept:,} of {report.weights:,} weights kept{_others(report)}), asked {report.sparsity_asked:g}",
        )
    ]
    rows += list(_agreement_rows(report.agreement)) if report.agreement is not None else [("agreement", not_judged(report))]
    if report.choice is not None:
        rows += list(choice_rows(report.choice))
    rows.append(("dead channels", f"{report.dead_channels}"))
    if report.calibration is not None:
        rows.append(("samples", samples_used(report.calibration)))
    if report.input is not None and report.output is not None:
        rows += [(name, f"{before} -> {after}{ratio}") for name, before, after, ratio in size_rows(report.input, report.output)]
    if report.provider is not None:
        rows.append(("ran on", report.provider))
    rows.append(("seconds", ", ".join(f"{phase} {value:.2f}" for phase, value in report.seconds.items())))
    if report.output is not None:
        rows.append(("written", ", ".join(report.output.files)))
    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold", no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(value))
    console.print(grid)
    for note in report.notes:
        console.print(Text(f"note: {note}"))


def samples_used(used: CalibrationReport) -> str:
    """How many samples repaired and judged, and what was made of the first, in words."""
    made = ["mirrored"] * used.mirrored + [f"shifted by up to {used.shifted} px"] * bool(used.shifted)
    more = f" (also {' and '.join(made)})" if made else ""
    return f"{used.repair} for the repair{more}, {used.holdout} held out, of {used.available}; batches of up to {used.batch_size}"


def _others(report: Report) -> str:
    """How many layers the sparsity does not count, if any."""
    dense = sum(not entry.pruned for entry in report.layers)
    return f"; {dense} layers left out" if dense else ""


def _agreement_rows(agreement: AgreementReport) -> Iterator[tuple[str, str]]:
    for number, (before, after) in enumerate(zip(agreement.masked, agreement.repaired, strict=True)):
        for label, entry in (("masks alone", before), ("repaired", after)):
            what = f"{entry.output}, {label}" if len(agreement.repaired) > 1 else label
            yield ("agreement" if number == 0 and label == "masks alone" else "", f"{what}: {describe(entry)}")


def describe(entry: OutputAgreement) -> str:
    """The measures of one output on one line."""
    parts = [f"cosine {entry.cosine:.4f}", f"SQNR {entry.sqnr_db:.1f} dB"]
    if entry.kl is not None:
        parts.insert(0, f"KL {entry.kl:.4f}")
    if entry.top1 is not None:
        parts.insert(0, f"top-1 {entry.top1:.4f}")
    return ", ".join(parts)


SIZES = {"file size": "bytes", "gzip size": "gzip_bytes", "zstd size": "zstd_bytes", "as sparse": "sparse_bytes"}


def size_rows(before: FileReport, after: FileReport) -> Iterator[tuple[str, str, str, str]]:
    """What is measured, its size before and after, and the ratio in brackets where the file got smaller."""
    for name, what in SIZES.items():
        old, new = int(getattr(before, what)), int(getattr(after, what))
        yield name, readable(old), readable(new), f" ({old / new:.1f}x smaller)" if old > 1.05 * new else ""


def show(console: Console, report: Report, *, verbose: bool) -> None:
    """A finished run: layers, what was skipped, summary; with ``verbose`` also every change in the file."""
    show_layers(console, report.layers)
    if report.norms:
        norms = table("normalisation", "op", "channels", "repair")
        for norm in report.norms:
            norms.add_row(Text(norm.name), norm.op, str(norm.channels), norm.repair)
        console.print(norms)
    if verbose:
        show_skipped(console, [(entry.name, entry.op, entry.reason) for entry in report.skipped])
        for what in ("values", "initializers", "nodes", "rewired", "sparse"):
            for name in getattr(report.changes, what):
                console.print(Text(f"changed {what}: {name}"))
    elif report.skipped:
        console.print(f"{len(report.skipped)} nodes with weights were skipped; -v tells why")
    show_summary(console, report)


def show_plan(console: Console, path: Path, report: Report) -> None:
    """The allocation of a dry run."""
    show_layers(console, report.layers)
    show_skipped(console, [(entry.name, entry.op, entry.reason) for entry in report.skipped])
    console.print(Text(f"{path}: sparsity {report.sparsity:.6f}, {report.kept:,} of {report.weights:,} weights kept; nothing was written"))
