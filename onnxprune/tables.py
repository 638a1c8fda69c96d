"""Layers as tables for a terminal of any width: where it is not WIDE, remarks follow the table, and what the shape tells is left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from onnxprune.report import LayerReport

WIDE = 130
# Notes that stand at most layers of a model, as the table says them; the report has them in full.
SHORT = {"repaired in its BatchNormalization": "in BatchNorm", "ranked unfolded": "unfolded"}
NAMED = 3
"""So many layers of a remark are named; of more, their number is given."""


def table(*titles: str, right: Iterable[str] = ()) -> Table:
    """An empty table without lines; the columns ``right`` hold numbers."""
    made = Table(box=None, pad_edge=False, header_style="bold")
    numbers = set(right)
    for title in titles:
        made.add_column(title, justify="right" if title in numbers else "left", overflow="fold", no_wrap=title in numbers)
    return made


def shape_of(shape: Sequence[int]) -> str:
    """A shape as 64x3x7x7."""
    return "x".join(map(str, shape))


def show_layers(console: Console, layers: Sequence[LayerReport]) -> None:
    """The table of layers, one row each, in the order in which they run; without repairs and errors where nothing was repaired."""
    wide = console.width >= WIDE
    repaired = any(entry.repair != "none" for entry in layers)
    errors = any(_error(entry) for entry in layers)
    total, kept = sum(entry.weights for entry in layers), sum(entry.kept for entry in layers)
    columns = {
        "layer": (f"{len(layers)} layers", [entry.name for entry in layers]),
        "op": ("", [entry.op for entry in layers]),
        "shape": ("", [shape_of(entry.shape) for entry in layers]),
        "weights": (f"{total:,}", [f"{entry.weights:,}" for entry in layers]),
        "kept": (f"{kept:,}", [f"{entry.kept:,}" for entry in layers]),
        "density": (f"{kept / total if total else 1:.4f}", [f"{entry.density:.4f}" for entry in layers]),
        "repair": ("", [entry.repair for entry in layers]),
        "error": ("", [_error(entry) for entry in layers]),
        "notes": ("", ["; ".join(_notes(entry)) for entry in layers]),
    }
    dropped = {"repair"} if not repaired else set()
    dropped |= {"error"} if not errors else set()
    dropped |= {"notes"} if not wide or not any(columns["notes"][1]) else set()
    if not wide:
        dropped |= {"repair"} if len({entry.repair for entry in layers if entry.repair != "none"}) < 2 else set()
        dropped |= {"op", "weights"} if console.width < 100 else set()
    made = Table(box=None, pad_edge=False, header_style="bold", show_footer=True)
    shown = [name for name in columns if name not in dropped]
    for title in shown:
        numbers = title in ("weights", "kept", "density")
        made.add_column(
            title,
            columns[title][0],
            justify="right" if numbers else "left",
            overflow="fold",
            no_wrap=title not in ("layer", "notes"),
        )
    for row in zip(*(columns[name][1] for name in shown), strict=True):
        made.add_row(*map(Text, row))
    console.print(made)
    if errors:
        what = "relative" if any(entry.relative_error_before is not None for entry in layers) else "variance"
        console.print(Text(f"error: {what} error of the layer's outputs, before and after its repair"))
    if not wide:
        for line in _remarks(layers):
            console.print(Text(line))


def _error(entry: LayerReport) -> str:
    """The error before and after the repair of a layer."""
    if entry.relative_error_before is not None and entry.relative_error_after is not None:
        return f"{entry.relative_error_before:.3f} -> {entry.relative_error_after:.3f}"
    if entry.variance_error_before is not None and entry.variance_error_after is not None:
        return f"{entry.variance_error_before:.2f} -> {entry.variance_error_after:.2f}"
    return ""


def _notes(entry: LayerReport) -> Iterator[str]:
    if entry.dead_channels:
        yield f"{entry.dead_channels} of {entry.channels} channels dead"
    yield from (SHORT.get(note, note) for note in entry.notes)


def _remarks(layers: Sequence[LayerReport]) -> Iterator[str]:
    """Every note once, with the layers that it holds for."""
    found: dict[str, list[str]] = {}
    for entry in layers:
        for note in _notes(entry):
            found.setdefault(note, []).append(entry.name)
    for note, names in found.items():
        yield f"{note}: {', '.join(names) if len(names) <= NAMED else f'{len(names)} layers'}"


def show_skipped(console: Console, rows: Sequence[tuple[str, str, str]]) -> None:
    """Name, operator and reason of every node with weights that was left as it was."""
    if not rows:
        return
    made = table("skipped", "op", "why")
    for name, op, why in rows:
        made.add_row(Text(name), op, Text(why))
    console.print(made)
