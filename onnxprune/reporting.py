"""From what a run found and did to its Report."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import math
import platform
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from types import MappingProxyType
from typing import Any

import numpy as np

from onnxprune.masking import Masked
from onnxprune.numerics.budget import Curve
from onnxprune.options import MEASURED, Options
from onnxprune.report import (
    AgreementReport,
    CalibrationReport,
    ChangesReport,
    ChoiceReport,
    LayerReport,
    MemoryReport,
    NormReport,
    Report,
    SkippedReport,
)
from onnxprune.runtime.device import Device
from onnxprune.runtime.spilling import Memory
from onnxprune.sequential import Outcome
from onnxprune.sizes import readable


def build(
    masked: Masked,
    options: Options,
    outcomes: Sequence[Outcome],
    agreement: AgreementReport | None,
    calibration: CalibrationReport | None,
    device: Device | None,
    seconds: Mapping[str, float],
    notes: Sequence[str],
    choice: ChoiceReport | None = None,
    memory: Memory | None = None,
) -> Report:
    """The report of a run, without its files."""
    by_layer: dict[str, list[Outcome]] = defaultdict(list)
    for outcome in outcomes:
        if outcome.point.layer is not None:
            by_layer[outcome.point.layer.weight].append(outcome)
    layers = tuple(_layer(masked, number, options, by_layer[layer.weight]) for number, layer in enumerate(masked.found.layers))
    pruned = [entry for entry in layers if entry.pruned]
    weights, kept = sum(entry.weights for entry in pruned), sum(entry.kept for entry in pruned)
    changes = masked.constants.changes
    live = MemoryReport(int(memory.budget), memory.peak, memory.spilled) if memory is not None and memory.peak else None
    spilled = [f"{readable(live.spilled)} of live tensors went through a temporary file"] if live is not None and live.spilled else []
    return Report(
        options=dataclasses.asdict(options),
        versions=versions(),
        input=None,
        output=None,
        provider=None if device is None else device.provider,
        sparsity_asked=options.sparsity,
        sparsity=1 - kept / weights if weights else 0.0,
        weights=weights,
        kept=kept,
        layers=layers,
        norms=tuple(_norm(outcome) for outcome in outcomes if outcome.point.layer is None),
        skipped=tuple(SkippedReport(entry.name, entry.op, entry.reason) for entry in masked.found.skipped),
        calibration=calibration,
        agreement=agreement,
        choice=choice,
        changes=ChangesReport(*(tuple(sorted(names)) for names in (changes.values, changes.initializers, changes.nodes, changes.inputs))),
        seconds=dict(seconds),
        notes=(*notes, *spilled),
        memory=live,
    )


def _layer(masked: Masked, number: int, options: Options, outcomes: Sequence[Outcome]) -> LayerReport:
    """The row of one layer; a weight with several uses adds their channels and takes the worst of their errors."""
    layer, keep, taken = masked.found.layers[number], masked.keep[number], masked.chosen[number]
    notes = []
    if masked.unfolded[number] and keep < layer.size:
        notes.append("ranked unfolded")
    view = masked.constants.view(layer.seen)
    if keep < layer.size and options.alloc == "global" and not options.pattern and view is not None and view.grid and not view.grid.scale:
        notes.append("ranked by its integers: their scale was not found")
    if number in masked.left:
        notes.append(masked.left[number])
    elif not taken:
        notes.append("left dense by --include or --exclude")
    curve = masked.measured.get(number)
    if isinstance(curve, str):
        notes.append(f"counted by {MEASURED[options.alloc]}: {curve}")
    if isinstance(curve, float):
        notes.append(f"residual ratio {curve:.3f}")
    if keep == 0 and layer.size:
        notes.append("keeps no weight: the layer is cut")
    if len(layer.uses) > 1:
        notes.append(f"weight of {len(layer.uses)} nodes")
    if keep < layer.size and options.repair != "none":
        notes += [f"pruned, not repaired: {use.unrepaired}" for use in layer.uses if use.unrepaired]
    if any(outcome.point.norm is not None and outcome.rule != "none" for outcome in outcomes):
        notes.append("repaired in its BatchNormalization")
    notes += [note for outcome in outcomes for note in outcome.notes]
    first = outcomes[0] if outcomes else None
    gains = [outcome.gain for outcome in outcomes if outcome.gain is not None]
    return LayerReport(
        name=layer.name,
        op=layer.op,
        weight=layer.weight,
        shape=layer.shape,
        weights=layer.size,
        kept=keep,
        nonzero=int(np.count_nonzero(masked.constants.read(layer.seen))),
        density=keep / layer.size if layer.size else 1.0,
        importance=curve.importance if isinstance(curve, Curve) else None,
        pruned=taken,
        repair=outcomes[0].rule if outcomes else "none",
        channels=layer.uses[0].channels,
        dead_channels=sum(outcome.dead for outcome in outcomes),
        gain_min=min((gain[0] for gain in gains), default=None),
        gain_max=max((gain[1] for gain in gains), default=None),
        variance_error_before=_worst(outcome.error_before for outcome in outcomes),
        variance_error_after=_worst(outcome.error_after for outcome in outcomes),
        variance_ratio_before=farthest(outcome.ratio_before for outcome in outcomes),
        variance_ratio_after=farthest(outcome.ratio_after for outcome in outcomes),
        relative_error_before=first.relative_error[0] if first and first.relative_error else None,
        relative_error_after=first.relative_error[1] if first and first.relative_error else None,
        ridge=first.ridge if first else None,
        steps=first.steps if first else (),
        notes=tuple(dict.fromkeys(notes)),
    )


def _worst(values: Any) -> float | None:
    return max((value for value in values if value is not None), default=None)


def farthest(ratios: Iterable[float | None]) -> float | None:
    """The ratio that is farthest from 1, as a factor."""
    return max((ratio for ratio in ratios if ratio), key=lambda ratio: abs(math.log(ratio)), default=None)


def _norm(outcome: Outcome) -> NormReport:
    assert outcome.point.norm is not None
    return NormReport(
        name=outcome.point.name,
        op=outcome.point.norm.op,
        repair=outcome.rule,
        channels=outcome.point.channels,
        dead_channels=outcome.dead,
        variance_error_before=outcome.error_before,
        variance_error_after=outcome.error_after,
        variance_ratio_before=outcome.ratio_before,
        variance_ratio_after=outcome.ratio_after,
    )


def versions() -> dict[str, str]:
    """The versions that a result depends on."""
    from onnxprune import __version__  # at call time: the package imports this module

    return {"onnxprune": __version__, "python": platform.python_version(), **installed()}


@functools.cache
def installed() -> Mapping[str, str]:
    """The versions of the packages that are there: each takes a look at every folder of the path, and they stay."""
    found = {}
    for name in ("numpy", "onnx", "onnx-graphsurgeon", "onnxruntime-gpu", "onnxruntime"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return MappingProxyType(found)
