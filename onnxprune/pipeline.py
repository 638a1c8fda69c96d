"""prune(): the one place where graph, numerics and runtime meet.

Load, find the layers, share out the sparsity, mask, then judge and repair with the calibration samples. The given model is never
changed; the repaired one is a copy of it in which named tensors have new values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.budgeting import NO_SAMPLES, chosen_samples, measure
from onnxprune.clock import Clock, Progress, ticker
from onnxprune.errors import GateError, UsageError
from onnxprune.feeding import Axes, axes_of, fixed_batch, input_specs
from onnxprune.graph import model as files
from onnxprune.graph.inlining import inlined, restored
from onnxprune.graph.points import points as points_of
from onnxprune.judging import Outputs, collect, judge
from onnxprune.masking import Masked, apply_masks
from onnxprune.mirroring import mirrored, width_axes
from onnxprune.options import Options
from onnxprune.reconstructing import reconstruct_in_order
from onnxprune.report import AgreementReport, CalibrationReport, Report
from onnxprune.reporting import build
from onnxprune.runtime import calibration
from onnxprune.runtime.calibration import Samples, Split
from onnxprune.runtime.session import Device, both_runtimes, choose_device, session_of
from onnxprune.runtime.stream import Batch
from onnxprune.sequential import Outcome, dense_moments, repair_in_order, touched

Calib = str | Path | Sequence[str | Path] | NDArray[Any] | Mapping[str, NDArray[Any]]


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
        calib: files or folders of unlabelled samples, or arrays (one, or one an input by name). Not needed for repair="none".
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
        dense = inlined(model if isinstance(model, onnx.ModelProto) else files.load(Path(model)).model)
    with clock.phase("allocation"):
        masked = apply_masks(dense, options)
    taken = None
    if options.measured and calib is not None:
        taken = draw(calib, dense, options, holdout=options.holdout)
        masked = _by_error(dense, masked, options, Tools(choose_device(options.device), taken, clock, lambda *told: None))
    return build(masked, options, [], None, None if taken is None else taken.report, None, clock.seconds, [])


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
        loaded = None if isinstance(model, onnx.ModelProto) else files.load(Path(model))
        given = loaded.model if loaded is not None else model
        assert isinstance(given, onnx.ModelProto)
        dense = inlined(given)
    with clock.phase("allocation"):
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
    product = restored(given, masked.model, masked.constants.changed(), changes.initializers | changes.nodes)
    kept = files.Loaded(given, ()) if loaded is None else loaded
    return Result(product, report, kept.external, kept.places)


@dataclass(frozen=True, eq=False)
class Taken:
    """The samples of a run, and how they are split and batched."""

    samples: Samples
    split: Split
    batch_size: int
    axes: Axes
    widths: Mapping[str, int]
    """The axes along which images are mirrored for the repair; none without --mirror."""

    def batches(self, rows: NDArray[np.intp]) -> Iterator[Batch]:
        """The samples at ``rows``, batch by batch, as the model takes them."""
        return self.axes.laid_out(calibration.batches(self.samples, rows, self.batch_size))

    def repairing(self) -> Iterator[Batch]:
        """The batches of the repair, with mirror images if they were asked for."""
        if not self.widths:
            return self.batches(self.split.repair)
        size = self.batch_size // 2 if self.batch_size % 2 == 0 else self.batch_size
        return self.axes.laid_out(mirrored(calibration.batches(self.samples, self.split.repair, size), self.widths, self.batch_size))

    @property
    def report(self) -> CalibrationReport:
        """The numbers for the report."""
        repair, holdout = len(self.split.repair), len(self.split.holdout)
        return CalibrationReport(self.samples.paths, self.samples.count, repair, holdout, self.batch_size, bool(self.widths))


@dataclass(frozen=True, eq=False)
class Tools:
    """What every pass over the samples needs."""

    device: Device
    taken: Taken
    clock: Clock
    progress: Progress


def draw(calib: Calib, model: onnx.ModelProto, options: Options, *, holdout: float) -> Taken:
    """The calibration samples behind paths or arrays, split and batched as the options and the model's batch axis say.

    Raises:
        CalibrationError: the samples are missing, do not fit the inputs, or are too few.
    """
    axes, specs = axes_of(model), input_specs(model)
    if isinstance(calib, (np.ndarray, Mapping)):
        samples = calibration.from_arrays(axes.gathered(calib), specs, options.preprocess)
    else:
        paths = [calib] if isinstance(calib, (str, Path)) else list(calib)
        samples = calibration.open_samples(paths, specs, options.preprocess)
    fixed = fixed_batch(specs)
    split = calibration.split(samples.count, limit=options.samples, holdout=holdout, seed=options.seed, fixed_batch=fixed)
    return Taken(samples, split, fixed or options.batch_size, axes, width_axes(specs) if options.mirror else {})


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
    size = tools.taken.batch_size
    with tools.clock.phase("agreement"), session_of(model, tools.device) as session:
        tick = ticker(tools.progress, phase, -(-len(held) // size))
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
        passes = 2 if options.mirror else 1
        tick = ticker(tools.progress, "dense statistics", -(-passes * len(tools.taken.split.repair) // tools.taken.batch_size))
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
