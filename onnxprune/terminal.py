"""The report as a person reads it: tables and a summary on stdout, progress on stderr."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.comparing import Comparison
from onnxprune.graph.layers import Found
from onnxprune.report import AgreementReport, FileReport, LayerReport, OutputAgreement, Report
from onnxprune.sweep_tables import choice_rows

# Where no terminal says how wide it is (a pipe, a log), lines are not wrapped at 80.
PIPE_WIDTH = 160
# Notes that stand at most layers of a model, as the table says them; the report has them in full.
SHORT = {"repaired in its BatchNormalization": "in BatchNorm", "ranked unfolded": "unfolded"}


def stdout() -> Console:
    """The console for results."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=PIPE_WIDTH)


def show_layers(console: Console, layers: Sequence[LayerReport]) -> None:
    """The table of layers, one row each, in the order in which they run."""
    table = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    total, kept = sum(entry.weights for entry in layers), sum(entry.kept for entry in layers)
    table.add_column("layer", f"{len(layers)} layers", overflow="fold", ratio=3)
    table.add_column("op", no_wrap=True)
    table.add_column("shape", no_wrap=True)
    table.add_column("weights", f"{total:,}", justify="right", no_wrap=True)
    table.add_column("kept", f"{kept:,}", justify="right", no_wrap=True)
    table.add_column("density", f"{kept / total if total else 1:.4f}", justify="right", no_wrap=True)
    table.add_column("repair", no_wrap=True)
    table.add_column("notes", overflow="fold", ratio=2)
    for entry in layers:
        table.add_row(
            Text(entry.name),
            entry.op,
            "x".join(map(str, entry.shape)),
            f"{entry.weights:,}",
            f"{entry.kept:,}",
            f"{entry.density:.4f}",
            entry.repair,
            Text("; ".join(_notes(entry))),
        )
    console.print(table)


def _notes(entry: LayerReport) -> Iterator[str]:
    if entry.relative_error_before is not None and entry.relative_error_after is not None:
        yield f"relative error {entry.relative_error_before:.3f} -> {entry.relative_error_after:.3f}"
    elif entry.variance_error_before is not None and entry.variance_error_after is not None:
        yield f"variance error {entry.variance_error_before:.2f} -> {entry.variance_error_after:.2f}"
    if entry.dead_channels:
        yield f"{entry.dead_channels} of {entry.channels} channels dead"
    yield from (SHORT.get(note, note) for note in entry.notes)


def show_skipped(console: Console, rows: Sequence[tuple[str, str, str]]) -> None:
    """Name, operator and reason of every node with weights that was left as it was."""
    if not rows:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("skipped", "op", "why"):
        table.add_column(title, overflow="fold")
    for name, op, why in rows:
        table.add_row(Text(name), op, Text(why))
    console.print(table)


def show_summary(console: Console, report: Report) -> None:
    """Everything about a run that is not one layer's."""
    rows = [
        (
            "sparsity",
            f"{report.sparsity:.6f} ({report.kept:,} of {report.weights:,} weights kept{_others(report)}), asked {report.sparsity_asked:g}",
        )
    ]
    rows += list(_agreement_rows(report.agreement)) if report.agreement is not None else [("agreement", _not_measured(report))]
    if report.choice is not None:
        rows += list(choice_rows(report.choice))
    rows.append(("dead channels", f"{report.dead_channels}"))
    if report.calibration is not None:
        used = report.calibration
        rows.append(
            (
                "samples",
                f"{used.repair} for the repair, {used.holdout} held out, of {used.available}; batches of {used.batch_size}",
            )
        )
    if report.input is not None and report.output is not None:
        rows.append(("file size", f"{_bytes(report.input, 'bytes')} -> {_bytes(report.output, 'bytes')}"))
        ratio = report.input.gzip_bytes / report.output.gzip_bytes
        rows.append(
            (
                "gzip size",
                f"{_bytes(report.input, 'gzip_bytes')} -> {_bytes(report.output, 'gzip_bytes')} ({ratio:.1f}x smaller)",
            )
        )
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


def _others(report: Report) -> str:
    """How many layers the sparsity does not count, if any."""
    dense = sum(not entry.pruned for entry in report.layers)
    return f"; {dense} layers left out" if dense else ""


def _not_measured(report: Report) -> str:
    if report.calibration is None:
        return "not measured: no calibration samples"
    return "not measured: no samples were held out" if not report.calibration.holdout else "not measured: no float output"


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


def _bytes(file: FileReport, what: str) -> str:
    value = int(getattr(file, what))
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if value >= size:
            return f"{value / size:.2f} {unit}"
    return f"{value} B"


def show_found(console: Console, path: Path, found: Found) -> None:
    """What inspect prints without a sparsity: layers, free-standing normalisations, skipped nodes."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title in ("layer", "op", "shape", "weights", "bias", "normalisation"):
        table.add_column(title, overflow="fold", justify="right" if title == "weights" else "left")
    for layer in found.layers:
        use = layer.uses[0]
        bias = "none" if use.bias is None else "own" if use.bias.node == use.node else "in the Add behind"
        norm = use.norm.op if use.norm is not None else ""
        table.add_row(Text(layer.name), layer.op, "x".join(map(str, layer.shape)), f"{layer.size:,}", bias, norm)
    console.print(table)
    if found.norms:
        free = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("normalisation", "op", "channels"):
            free.add_column(title, overflow="fold")
        for entry in found.norms:
            free.add_row(Text(entry.name), entry.op, str(entry.channels))
        console.print(free)
    show_skipped(console, [(entry.name, entry.op, entry.reason) for entry in found.skipped])
    total = sum(layer.size for layer in found.layers)
    console.print(Text(f"{path}: {len(found.layers)} layers, {total:,} weights, {len(found.skipped)} nodes skipped"))


def show(console: Console, report: Report, *, verbose: bool) -> None:
    """A finished run: layers, what was skipped, summary; with ``verbose`` also every change in the file."""
    show_layers(console, report.layers)
    if report.norms:
        table = Table(box=None, pad_edge=False, header_style="bold")
        for title in ("normalisation", "op", "channels", "repair"):
            table.add_column(title, overflow="fold")
        for norm in report.norms:
            table.add_row(Text(norm.name), norm.op, str(norm.channels), norm.repair)
        console.print(table)
    if verbose:
        show_skipped(console, [(entry.name, entry.op, entry.reason) for entry in report.skipped])
        for what in ("values", "initializers", "nodes", "rewired"):
            for name in getattr(report.changes, what):
                console.print(Text(f"changed {what}: {name}"))
    elif report.skipped:
        console.print(f"{len(report.skipped)} nodes with weights were skipped; -v tells why")
    show_summary(console, report)


def show_plan(console: Console, path: Path, report: Report, *, quiet: bool) -> None:
    """The allocation of a dry run."""
    if quiet:
        return
    show_layers(console, report.layers)
    show_skipped(console, [(entry.name, entry.op, entry.reason) for entry in report.skipped])
    console.print(Text(f"{path}: sparsity {report.sparsity:.6f}, {report.kept:,} of {report.weights:,} weights kept; nothing was written"))


def show_comparison(console: Console, found: Comparison) -> None:
    """Agreement of the outputs, densities of the layers, sizes of the files."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for title, justify in (
        ("layer", "left"),
        ("op", "left"),
        ("shape", "left"),
        ("weights", "right"),
        ("dense", "right"),
        ("pruned", "right"),
    ):
        table.add_column(title, justify=justify, overflow="fold")  # type: ignore[arg-type]
    for entry in found.layers:
        pruned = "gone" if entry.pruned is None else f"{entry.pruned:.4f}"
        shape = "x".join(map(str, entry.shape))
        table.add_row(Text(entry.name), entry.op, shape, f"{entry.weights:,}", f"{entry.dense:.4f}", pruned)
    console.print(table)
    for output in found.outputs:
        console.print(Text(f"{output.output} on {output.samples} samples: {describe(output)}"))
    console.print(f"file size {_bytes(found.dense, 'bytes')} -> {_bytes(found.pruned, 'bytes')}")
    console.print(f"gzip size {_bytes(found.dense, 'gzip_bytes')} -> {_bytes(found.pruned, 'gzip_bytes')}")
    console.print(f"ran on {found.provider}")
    for note in found.notes:
        console.print(Text(f"note: {note}"))
