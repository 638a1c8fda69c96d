"""What inspect and compare found, as a person reads it."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.text import Text

from onnxprune.comparing import Comparison, Timing
from onnxprune.graph.layers import Found
from onnxprune.tables import shape_of, show_skipped, table
from onnxprune.terminal import describe, size_rows

NO_FASTER = "zeros do not make a model faster in ONNX Runtime: it computes with them as with any number"


def show_found(console: Console, path: Path, found: Found) -> None:
    """What inspect prints without a sparsity: layers, free-standing normalisations, skipped nodes."""
    rows = table("layer", "op", "shape", "weights", "bias", "norm", right=["weights"])
    for layer in found.layers:
        use = layer.uses[0]
        bias = "none" if use.bias is None else "own" if use.bias.node == use.node else "in the Add behind"
        norm = use.norm.op.removesuffix("alization") if use.norm is not None else ""
        rows.add_row(Text(layer.name), layer.op, shape_of(layer.shape), f"{layer.size:,}", bias, norm)
    console.print(rows)
    if found.norms:
        free = table("normalisation", "op", "channels")
        for entry in found.norms:
            free.add_row(Text(entry.name), entry.op, str(entry.channels))
        console.print(free)
    show_skipped(console, [(entry.name, entry.op, entry.reason) for entry in found.skipped])
    total = sum(layer.size for layer in found.layers)
    console.print(Text(f"{path}: {len(found.layers)} layers, {total:,} weights, {len(found.skipped)} nodes skipped"))


def show_comparison(console: Console, found: Comparison) -> None:
    """Sparsity of the layers, agreement of the outputs, and both models side by side."""
    rows = table("layer", "op", "shape", "weights", "dense", "pruned", right=["weights", "dense", "pruned"])
    for entry in found.layers:
        pruned = "gone" if entry.pruned is None else f"{1 - entry.pruned:.4f}"
        rows.add_row(Text(entry.name), entry.op, shape_of(entry.shape), f"{entry.weights:,}", f"{1 - entry.dense:.4f}", pruned)
    console.print("sparsity of the layers: the share of weights that are zero")
    console.print(rows)
    for output in found.outputs:
        console.print(Text(f"{output.output} on {output.samples} samples: {describe(output)}"))
    both = table("", "dense", "pruned", "", right=["dense", "pruned"])
    both.add_row("sparsity", f"{found.dense_sparsity:.4f}", f"{found.pruned_sparsity:.4f}")
    if found.accuracy is not None:
        right = found.accuracy
        both.add_row("top-1", f"{right.dense:.4f}", f"{right.pruned:.4f}", Text(f"{right.output}, {right.samples} labelled samples"))
    for name, before, after, ratio in size_rows(found.dense, found.pruned):
        both.add_row(name, before, after, ratio.strip(" ()"))
    took = found.latency
    runs = f"median of {took.runs} runs by turns, batch of {took.samples}, "
    runs += f"{took.threads} thread{'s' * (took.threads > 1)}" if took.threads else "all cores"
    both.add_row("latency", *map(_median, (took.dense, took.pruned)), runs)
    both.add_row("", *map(_spread, (took.dense, took.pruned)), "quartiles")
    console.print(both)
    console.print(NO_FASTER)
    console.print(f"ran on {found.provider}")
    for note in found.notes:
        console.print(Text(f"note: {note}"))


def _median(timing: Timing) -> str:
    return f"{timing.median_ms:.2f} ms"


def _spread(timing: Timing) -> str:
    return f"{timing.low_ms:.2f} - {timing.high_ms:.2f}"
