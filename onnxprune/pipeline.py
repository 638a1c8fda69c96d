"""prune(): the one place where graph, numerics and runtime meet.

Load, find the layers, share out the sparsity, mask, then judge and repair with the calibration samples. The given model is never
changed; the repaired one is a copy of it in which named tensors have new values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import onnx

from onnxprune.budgeting import NO_SAMPLES, chosen_samples, measure
from onnxprune.clock import Clock, Progress, ticker
from onnxprune.drawing import Calib, Taken, draw
from onnxprune.errors import GateError, UsageError
from onnxprune.graph import model as files
from onnxprune.graph.doubt import blamed, doubt_of, note
from onnxprune.graph.inlining import inlined, restored
from onnxprune.graph.points import points as points_of
from onnxprune.judging import Outputs, collect, judge
from onnxprune.masking import Masked, apply_masks
from onnxprune.options import Options
from onnxprune.reconstructing import reconstruct_in_order
from onnxprune.report import AgreementReport, Report
from onnxprune.reporting import build
from onnxprune.runtime.session import Device, both_runtimes, choose_device, session_of
from onnxprune.sequential import Outcome, dense_moments, repair_in_order, touched


@dataclass(frozen=True, eq=False)
class Result:
    """A pruned model and the report on it. ``external`` says whether the input kept tensors in other files, ``places`` which in which."""

    model: onnx.ModelProto
    report: Report
    external: bool = False
    places: Mapping[str, str] = field(default_factory=dict)

    def save(self, path: str | Path) -> tuple[Path, ...]:
        """Write the model in one rename and return the files; see onnxprune.graph.model.save."""
        return files.save(self.model, Path(path), external=self.external, places=self.places)


def prune(
    model: str | Path | onnx.ModelProto,
    calib: Calib | None = None,
    *,
    progress: Progress = lambda phase, done, total: None,
    **options: Any,
) -> Result:
    """The pruned and repaired model, and the report on it; nothing is written.

    Args:
        model: an ONNX file, or a model in memory, which is not changed.
        calib: files or folders of unlabelled samples, or arrays (one, or one an input by name), or a callable that returns an iterable of
            arrays or of such mappings. An array of the input's rank is a batch, one rank less is one sample. The callable is called
            once, and its items are taken until there are as many samples as ``samples`` says. Not needed for repair="none".
        progress: called as progress(phase, done, total) along the way.
        **options: the fields of onnxprune.Options; ``sparsity`` or ``pattern`` is required.

    Raises:
        OnnxpruneError: one of its children, with one line that says what to do.
    """
    return run(model, calib, Options(**options), progress)


def plan(model: str | Path | onnx.ModelProto, options: Options, calib: Calib | None = None) -> Report:
    """The report of a run that stops after the allocation: what each layer would keep. Only the allocation "error" reads samples."""
    clock = Clock()
    if options.measured and calib is None:
        raise UsageError(NO_SAMPLES)
    with clock.phase("load"):
        given = _given(model)
    with blamed(given.doubt, lambda: proof(given.model)):
        with clock.phase("allocation"):
            dense = inlined(given.model)
            masked = apply_masks(dense, options)
        taken = None
        if options.measured and calib is not None:
            taken = draw(calib, dense, options, holdout=options.holdout)
            masked = _by_error(dense, masked, options, Tools(choose_device(options.device), taken, clock, lambda *told: None))
        return build(masked, options, [], None, None if taken is None else taken.report, None, clock.seconds, note(given.doubt))


def run(model: str | Path | onnx.ModelProto, calib: Calib | None, options: Options, progress: Progress) -> Result:
    """prune() with its options in one piece."""
    clock = Clock()
    notes = [text for text in (both_runtimes(),) if text]
    if calib is None and (options.repair != "none" or options.min_agreement is not None):
        what = f"--repair {options.repair}" if options.repair != "none" else "--min-agreement"
        raise UsageError(f"{what} needs calibration samples; give --calib PATH, or --repair none for masks alone")
    if calib is None and options.measured:
        raise UsageError(NO_SAMPLES)
    with clock.phase("load"):
        given = _given(model)
    with blamed(given.doubt, lambda: proof(given.model)):
        return _run(given, calib, options, progress, clock, notes + note(given.doubt))


def proof(model: onnx.ModelProto) -> None:
    """Raises ModelError when ONNX Runtime does not take the model."""
    with session_of(model, Device("cpu")):
        pass


def _given(model: str | Path | onnx.ModelProto) -> files.Loaded:
    """The model with what the checker holds against it.

    Raises:
        ModelError: the file is damaged, or the model in memory was loaded without its external data.
    """
    if not isinstance(model, onnx.ModelProto):
        return files.load(Path(model))
    files.check_model(model)
    return files.Loaded(model, (), {}, doubt_of(model))


def _run(given: files.Loaded, calib: Calib | None, options: Options, progress: Progress, clock: Clock, notes: list[str]) -> Result:
    with clock.phase("allocation"):
        dense = inlined(given.model)
        masked = apply_masks(dense, options)
    outcomes: list[Outcome] = []
    agreement: AgreementReport | None = None
    tools: Tools | None = None
    if calib is not None:
        device, taken = choose_device(options.device), draw(calib, dense, options, holdout=options.holdout)
        notes += [*([device.note] if device.note else []), *taken.samples.notes, *taken.split.notes]
        tools = Tools(device, taken, clock, progress)
        if options.measured:
            masked = _by_error(dense, masked, options, tools)
        first = _outputs(dense, "dense outputs", tools)
        masks_alone = _outputs(masked.model, "masked outputs", tools) if options.repair != "none" else None
        outcomes = _repair(dense, masked, options, tools)
        last = _outputs(masked.model, "repaired outputs", tools)
        if first is not None and last is not None:
            agreement = judge(first, masks_alone or last, last)
    used, ran = (None, None) if tools is None else (tools.taken.report, tools.device)
    report = build(masked, options, outcomes, agreement, used, ran, clock.seconds, notes)
    _gate(options, agreement)
    changes = masked.constants.changes
    product = restored(given.model, masked.model, masked.constants.changed(), changes.initializers | changes.nodes)
    return Result(product, report, given.external, given.places)


@dataclass(frozen=True, eq=False)
class Tools:
    """What every pass over the samples needs."""

    device: Device
    taken: Taken
    clock: Clock
    progress: Progress


def _by_error(dense: onnx.ModelProto, masked: Masked, options: Options, tools: Tools) -> Masked:
    """The model masked anew, by curves measured on samples that repair."""
    taken = tools.taken
    rows = chosen_samples(taken.split.repair, taken.batch_size)
    with tools.clock.phase("error curves"):
        told = partial(ticker, tools.progress, "error curves")
        measured = measure(dense, masked, options, lambda: taken.batches(rows), taken.axes, tools.device, told)
    with tools.clock.phase("allocation"):
        return apply_masks(dense, options, measured)


def _outputs(model: onnx.ModelProto, phase: str, tools: Tools) -> Outputs | None:
    """The model's outputs on the held-out samples, None when none are held out."""
    held = tools.taken.split.holdout
    if not len(held):
        return None
    with tools.clock.phase("agreement"), session_of(model, tools.device) as session:
        tick = ticker(tools.progress, phase, tools.taken.count(held))
        return collect(session, tools.taken.batches(held), tools.taken.axes, tick)


def _repair(dense: onnx.ModelProto, masked: Masked, options: Options, tools: Tools) -> list[Outcome]:
    """Repair the masked model in place, where anything that was pruned reaches.

    bn makes every BatchNormalization's statistics those of the calibration samples, also before the first pruned layer.
    """
    pruned = [layer for layer, keep in zip(masked.found.layers, masked.keep, strict=True) if keep < layer.size]
    if options.repair == "none" or not pruned:
        return []
    reached = touched(masked.model, pruned)
    points = [
        point
        for point in points_of(masked.found)
        if point.dense_tensor in reached or (options.repair == "bn" and point.kind == "batchnorm")
    ]
    if not points:
        return []
    batches = tools.taken.repairing
    if options.repair == "reconstruct":
        keep = {layer.weight: count for layer, count in zip(masked.found.layers, masked.keep, strict=True)}
        with tools.clock.phase("repair"):
            tick = ticker(tools.progress, "repair", len(points))
            return reconstruct_in_order(
                dense, masked.constants, keep, batches, reached, options.n_m, options.include, options.seed, tools.device, tick
            )
    with tools.clock.phase("dense statistics"):
        tick = ticker(tools.progress, "dense statistics", tools.taken.repairs)
        moments = dense_moments(dense, points, batches(), tools.device, tick)
    with tools.clock.phase("repair"):
        tick = ticker(tools.progress, "repair", len(points))
        return repair_in_order(masked.constants, points, moments, options.repair, batches(), tools.device, tick)


def _gate(options: Options, agreement: AgreementReport | None) -> None:
    """Raises GateError when the agreement with the dense model is below --min-agreement."""
    if options.min_agreement is None:
        return
    if agreement is None:
        raise UsageError("--min-agreement: the model has no float output to compare")
    if agreement.score < options.min_agreement:
        raise GateError(
            f"agreement with the dense model is {agreement.score:.4f} ({agreement.measure}, {agreement.samples} held-out samples), "
            f"below --min-agreement {options.min_agreement}; nothing was written; "
            f"lower --sparsity or try another --alloc or --repair"
        )
