"""prune(): the one place where graph, numerics and runtime meet.

Load, find the layers, share out the sparsity, mask, then judge and repair with the calibration samples. The given model is never
changed; the repaired one is a copy of it in which named tensors have new values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx
from threadpoolctl import threadpool_limits

from onnxprune.budgeting import NO_SAMPLES
from onnxprune.choosing import candidates, choose, halves
from onnxprune.clock import Clock, Progress
from onnxprune.drawing import Calib, Taken, draw
from onnxprune.errors import GateError, UsageError
from onnxprune.graph import model as files
from onnxprune.graph.complete import PROTO_LIMIT
from onnxprune.graph.doubt import blamed, note
from onnxprune.graph.inlining import inlined, restored
from onnxprune.halving import within_memory
from onnxprune.judging import Outputs, judge, unknown
from onnxprune.masking import Decided, allocations, decide, masked
from onnxprune.meanwhile import repaired
from onnxprune.memory import memory_for
from onnxprune.numerics.threads import bound
from onnxprune.opening import device_of, opened, proof, tried
from onnxprune.options import SEARCHED, Options
from onnxprune.report import AgreementReport, ChoiceReport, Report
from onnxprune.reporting import build
from onnxprune.running import Done, Tools, beside, by_error, carried_out, outputs, pruned_as
from onnxprune.runtime.heap import heap
from onnxprune.runtime.packages import both_runtimes
from onnxprune.storing import stored

STAGED = PROTO_LIMIT
"""Bytes from which on large tensors stay in their files also where the model runs, which it then does in stages."""


@dataclass(frozen=True, eq=False)
class Result:
    """A pruned model and the report on it. ``external`` says whether the input kept tensors in other files, ``places`` which in which.

    ``saved``: how many bytes sparse initializers would save in the model that came in and in this one, beyond those that it has.
    ``allocations`` is what masking.allocations gave, empty where it was not asked for.
    """

    model: onnx.ModelProto
    report: Report
    external: bool = False
    places: Mapping[str, str] = field(default_factory=dict)
    saved: tuple[int, int] = (0, 0)
    allocations: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

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
    if options.auto:
        raise UsageError(f"--{options.auto[0]} auto runs the model to choose, it has no allocation to show before; leave --dry-run out")
    if options.measured and calib is None:
        raise UsageError(NO_SAMPLES.format(options.alloc))
    with clock.phase("load"):
        given = opened(model, mapped=0 if calib is None else None)
    with threadpool_limits(bound(options.threads), "blas"), blamed(given.doubt, lambda: proof(given.model)):
        with clock.phase("allocation"):
            dense = inlined(given.model)
            kept = decide(dense, options)
        if not options.measured or calib is None:
            return build(masked(dense, kept), options, [], None, None, None, clock.seconds, note(given.doubt))

        def measured(taken: Taken, told: list[str]) -> Report:
            tried(dense, taken, options)
            memory = memory_for(options.memory, device)
            found = by_error(dense, kept, options, Tools(device, taken, clock, lambda *told: None, memory=memory))
            notes = note(given.doubt) + told
            return build(masked(dense, found), options, [], None, taken.report, None, clock.seconds, notes, memory=memory)

        device = device_of(options)
        return within_memory(draw(calib, dense, options, device.kind, holdout=options.holdout), measured)


def run(
    model: str | Path | onnx.ModelProto,
    calib: Calib | None,
    options: Options,
    progress: Progress,
    *,
    others: bool = False,
    mapped: bool = False,
) -> Result:
    """prune() with its options in one piece; ``others``: also tell what the other allocations would keep.

    ``mapped``: large tensors with external data may stay in their files, and the result refer to them; see onnxprune.graph.mapped.
    """
    clock = Clock()
    notes = [text for text in (both_runtimes(),) if text]
    if calib is None and (options.repair != "none" or options.min_agreement is not None):
        what = f"--repair {options.repair}" if options.repair != "none" else "--min-agreement"
        raise UsageError(f"{what} needs calibration samples; give --calib PATH, or --repair none for masks alone")
    if calib is None and options.auto:
        raise UsageError(f"--{options.auto[0]} auto compares candidates on calibration samples; give --calib PATH")
    if calib is None and options.measured:
        raise UsageError(NO_SAMPLES.format(options.alloc))
    with threadpool_limits(bound(options.threads), "blas"), heap(bounded=options.memory is not None):
        with clock.phase("load"):
            given = opened(model, mapped=None if not mapped else 0 if calib is None else STAGED)
        with blamed(given.doubt, lambda: proof(given.model)):
            result = _run(given, calib, options, progress, clock, notes + note(given.doubt))
            if not others:
                return result
            return replace(result, allocations=allocations(inlined(given.model), options, result.report.sparsity_asked))


def _run(given: files.Loaded, calib: Calib | None, options: Options, progress: Progress, clock: Clock, notes: list[str]) -> Result:
    with clock.phase("allocation"):
        dense = inlined(given.model)  # what cannot be pruned is refused before a sample is read
        least = 0.0 if options.sparsity == SEARCHED else options.sparsity
        kept = decide(dense, candidates(options, least)[0] if options.auto else options)
    if calib is None:
        return _result(given, Done(options, kept, masked(dense, kept), [], None), None, None, clock, notes)
    device = device_of(options)
    drawn = draw(calib, dense, options, device.kind, holdout=options.holdout)
    notes += [*([device.note] if device.note else []), *drawn.samples.notes, *drawn.split.notes]

    def sampled(taken: Taken, told: list[str]) -> Result:
        with clock.phase("load"):
            tried(dense, taken, options)
        tools = Tools(beside(device, taken, options), taken, clock, progress, memory=memory_for(options.memory, device))
        return _with_samples(given, dense, kept, options, tools, notes + told)

    return within_memory(drawn, sampled)


def _with_samples(given: files.Loaded, dense: onnx.ModelProto, kept: Decided, options: Options, tools: Tools, notes: list[str]) -> Result:
    """All that comes once the samples are drawn; what it was given stays as it was."""
    if options.measured:
        kept = by_error(dense, kept, options, tools)
    choice: ChoiceReport | None = None
    alone: Outputs | None = None
    if options.auto:
        first = outputs(dense, "dense outputs", tools)
        tools = replace(tools, taken=replace(tools.taken, memory={}))
        done, choice = choose(dense, options, first, tools)
        if not choice.split:
            notes.append("the agreement is measured on the samples that chose, and so a little too high: they cannot be told apart")
        if options.repair != "none":
            alone = outputs(pruned_as(dense, done.kept, tools).model, "masked outputs", tools)
    elif options.repair != "none":
        done, first, alone = repaired(dense, kept, options, tools)
    else:
        first, done = outputs(dense, "dense outputs", tools), carried_out(dense, kept, options, tools)
    agreement: AgreementReport | None = None
    tools.taken.refuse_changes()
    if first is not None and done.outputs is not None:
        notes += unknown(first)
        before = alone or done.outputs
        if choice is None:
            agreement = judge(first, before, done.outputs)
        else:
            (_, (ours, last)), (_, (_, before)) = halves(first, done.outputs), halves(first, before)
            agreement = judge(ours, before, last)
    return _result(given, done, agreement, tools, tools.clock, notes, choice)


def _result(
    given: files.Loaded,
    done: Done,
    agreement: AgreementReport | None,
    tools: Tools | None,
    clock: Clock,
    notes: list[str],
    choice: ChoiceReport | None = None,
) -> Result:
    """The model that goes out, if its agreement is high enough, and the report.

    Raises:
        GateError: the agreement with the dense model is below --min-agreement.
    """
    used, ran, memory = (None, None, None) if tools is None else (tools.taken.report, tools.device, tools.memory)
    report = build(done.masked, done.options, done.outcomes, agreement, used, ran, clock.seconds, notes, choice, memory)
    _gate(done.options, agreement)
    constants = done.masked.constants
    added = constants.changes.initializers | constants.changes.nodes
    product = restored(given.model, done.masked.model, constants.changed(), added)
    trial = tools.taken.trial if tools is not None else lambda: None
    product, report, sizes = stored(given, product, report, done.options, clock, trial)
    return Result(product, report, given.external, given.places, sizes)


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
