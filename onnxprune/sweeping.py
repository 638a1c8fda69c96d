"""Every combination of allocations, sparsities and repairs on one model, what can be shared made once a process.

The rows of a sweep do not depend on each other or on their order, so they may run anywhere, and a sweep that was interrupted goes on
with the rows that are missing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_limits

from onnxprune.bench import Bench, accuracy, classes_of, dense_outputs, dense_statistics, open_bench
from onnxprune.drawing import Taken
from onnxprune.errors import ModelError, OnnxpruneError, OutOfMemory, UsageError
from onnxprune.executing import each
from onnxprune.graph.doubt import blamed
from onnxprune.halving import within_memory
from onnxprune.judging import Outputs, compare_outputs, score, scored
from onnxprune.masking import Decided
from onnxprune.numerics.threads import bound
from onnxprune.opening import proof
from onnxprune.options import ALLOCS, MEASURED, REPAIRS, Options
from onnxprune.regimes import FALLEN, HOLDS, best_of, regimes_of
from onnxprune.reporting import versions
from onnxprune.running import Done, Tools, carried_out, decided
from onnxprune.runtime.heap import heap
from onnxprune.sweep_report import SweepReport, SweepRow

STATISTIC = ("bn", "layer", "channel", "asr")
"""The repairs that need the dense model's statistics."""


@dataclass(frozen=True)
class Sweep:
    """What is asked for. ``options`` says all but the allocation, the sparsity and the repair, which it holds any of.

    Raises:
        UsageError: a list is empty, or a word or a number is not one that a run takes.
    """

    model: Path
    calib: tuple[Path, ...]
    allocs: tuple[str, ...]
    sparsities: tuple[float, ...]
    repairs: tuple[str, ...]
    options: Options
    labels: Path | None = None
    fallen: float = FALLEN
    holds: float = HOLDS

    def __post_init__(self) -> None:
        for flag, words, choices in (("--alloc", self.allocs, ALLOCS), ("--repair", self.repairs, REPAIRS)):
            for word in words:
                if word not in choices:
                    raise UsageError(f"{flag} {word!r} is not known; choose from {', '.join(choices)}")
        for flag, values in (("--alloc", self.allocs), ("--sparsity", self.sparsities), ("--repair", self.repairs)):
            if not values or len(set(values)) < len(values):
                raise UsageError(f"{flag}: expected one value or more, each once; got {', '.join(map(str, values)) or 'none'}")
        for sparsity in self.sparsities:
            replace(self.options, sparsity=sparsity)
        for flag, value in (("--fallen", self.fallen), ("--holds", self.holds)):
            if not 0 <= value <= 1:
                raise UsageError(f"{flag} {value} is not in 0 <= A <= 1; it is a share of the samples")
        if not self.calib:
            raise UsageError("a sweep needs calibration samples to compare the combinations on; give --calib PATH")

    def rows(self) -> list[Options]:
        """The options of every row, by allocation, sparsity and repair."""
        return [
            replace(self.options, alloc=alloc, sparsity=sparsity, repair=repair)
            for alloc in self.allocs
            for sparsity in self.sparsities
            for repair in self.repairs
        ]


def sweep(
    asked: Sweep,
    executor: Executor | None = None,
    known: Mapping[str, SweepRow] = {},
    told: Callable[[SweepRow, int, int], None] = lambda row, done, total: None,
    begun: Callable[[int, int], None] = lambda done, total: None,
) -> SweepReport:
    """The report of a sweep.

    Args:
        asked: what is swept over.
        executor: where the rows run, as onnxprune.executing.each takes it; None for this process.
        known: rows that are there already, by their key.
        told: called with every new row, the number of rows that are there by then, and how many there will be.
        begun: called with the last two before the first row runs.

    Raises:
        OnnxpruneError: nothing can run, or no row could.
    """
    bench = open_bench(asked.model, asked.calib, asked.options, asked.labels)
    first = dense_outputs(bench)
    wanted = asked.rows()
    keys = [_key(bench, options) for options in wanted]
    found = {key: known[key] for key in keys if key in known}
    begun(len(found), len(keys))
    tasks: dict[Any, list[int]] = {}
    for number, (options, key) in enumerate(zip(wanted, keys, strict=True)):
        if key not in found:  # what was measured of the layers serves all repairs
            tasks.setdefault((options.alloc, options.sparsity) if options.alloc in MEASURED else number, []).append(number)
    pieces = [(asked, bench.identity, tuple((keys[number], wanted[number]) for number in numbers)) for numbers in tasks.values()]
    if executor is None and pieces:
        _keep(asked, bench, first)
    for _, made in each(_run, pieces, executor):
        for row in made:
            found[row.key] = row
            told(row, len(found), len(keys))
    rows = tuple(found[key] for key in keys)
    if all(row.error for row in rows):
        raise ModelError(f"no combination could be run, the first because: {rows[0].error}")
    entry = scored(compare_outputs(first, first))
    return SweepReport(
        model=str(asked.model),
        sha256=bench.sha256,
        options=_told(asked),
        versions=versions(),
        provider=bench.tools.device.provider,
        calibration=bench.tools.taken.report,
        labels=None if asked.labels is None else str(asked.labels),
        measure="cosine" if entry.top1 is None else "top1",
        output=entry.output,
        dense_accuracy=None if asked.labels is None else accuracy(bench, first, classes_of(first)),
        rows=rows,
        best=best_of(rows, None if entry.top1 is None else entry.samples),
        regimes=regimes_of(rows, asked.fallen, asked.holds),
        seconds=sum(row.seconds for row in rows),
        notes=bench.notes,
    )


def _told(asked: Sweep) -> dict[str, Any]:
    """The options as the report has them: lists in place of the one allocation, sparsity and repair of a run."""
    several = {"alloc": asked.allocs, "sparsity": asked.sparsities, "repair": asked.repairs}
    return {**dataclasses.asdict(asked.options), **several, "pattern": None, "fallen": asked.fallen, "holds": asked.holds}


def _key(bench: Bench, options: Options) -> str:
    """The SHA-256 of all that a row depends on."""
    told = {**dataclasses.asdict(options), "min_agreement": None, "memory": None}
    return hashlib.sha256(json.dumps([bench.identity, versions(), told], sort_keys=True, default=str).encode()).hexdigest()


_opened: list[tuple[Sweep, Bench, Outputs]] = []  # the last one of this process
_decided: list[tuple[str, Options, Decided]] = []
_lock = threading.RLock()


def _keep(asked: Sweep, bench: Bench, first: Outputs) -> None:
    if any(repair in STATISTIC for repair in asked.repairs):
        with contextlib.suppress(OutOfMemory, MemoryError):  # each row makes its own then, in batches that fit
            dense_statistics(bench, asked.options)
    _opened[:] = [(asked, bench, first)]


def _bench(asked: Sweep, identity: str) -> tuple[Bench, Outputs]:
    """The bench of this process; a cluster's worker opens it anew, and must find the same files.

    Raises:
        ModelError: the files here are not those that the sweep was begun with.
    """
    with _lock:
        if not _opened or _opened[0][0] != asked or _opened[0][1].identity != identity:
            bench = open_bench(asked.model, asked.calib, asked.options, asked.labels)
            if bench.identity != identity:
                raise ModelError(f"{asked.model}: the worker finds other files or another device than the sweep began with")
            _keep(asked, bench, dense_outputs(bench))
        return _opened[0][1:]


def _run(asked: Sweep, identity: str, rows: Sequence[tuple[str, Options]]) -> list[SweepRow]:
    """The rows of one task: options of one allocation and sparsity, with their keys."""
    bench, first = _bench(asked, identity)
    with threadpool_limits(bound(rows[0][1].threads), "blas"), heap(bounded=rows[0][1].memory is not None):
        return [_row(bench, first, key, options) for key, options in rows]


def _row(bench: Bench, first: Outputs, key: str, options: Options) -> SweepRow:
    begin = time.perf_counter()
    row = SweepRow(key, options.alloc, options.sparsity, options.repair)

    def carried(taken: Taken, told: list[str]) -> tuple[Done, int]:
        tools = replace(bench.tools, taken=taken, moments={}) if told else bench.tools
        return carried_out(bench.dense, _kept(bench, options, tools), options, tools), taken.batch_size

    try:
        with blamed(bench.doubt, lambda: proof(bench.dense)):
            done, batch_size = within_memory(bench.tools.taken, carried)
        assert done.outputs is not None
        entry = scored(compare_outputs(first, done.outputs))
        right = None if bench.labels is None else accuracy(bench, done.outputs, classes_of(first))
    except OnnxpruneError as error:
        return replace(row, seconds=time.perf_counter() - begin, error=str(error))
    layers = [layer.size for layer, chosen in zip(done.masked.found.layers, done.masked.chosen, strict=True) if chosen]
    kept = [keep for keep, chosen in zip(done.masked.keep, done.masked.chosen, strict=True) if chosen]
    return replace(
        row,
        sparsity=1 - sum(kept) / sum(layers),
        weights=sum(layers),
        kept=sum(kept),
        dead_channels=sum(outcome.dead for outcome in done.outcomes),
        score=score(entry),
        kl=_finite(entry.kl),
        cosine=_finite(entry.cosine),
        sqnr_db=_finite(entry.sqnr_db),
        accuracy=right,
        batch_size=batch_size,
        seconds=time.perf_counter() - begin,
    )


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _kept(bench: Bench, options: Options, tools: Tools) -> Decided:
    """What each layer keeps, as it was last decided here if that was for another repair alone."""
    wanted = replace(options, repair="none", batch_size=tools.taken.batch_size)
    with _lock:
        if not _decided or _decided[0][:2] != (bench.identity, wanted):
            _decided[:] = [(bench.identity, wanted, decided(bench.dense, options, tools))]
        return _decided[0][2]
