"""auto: which allocation, which repair, or which sparsity suits a model, found by running the candidates on it.

Every candidate is pruned and repaired from the samples that repair, and compared with the dense model on half of the held-out ones. The
best is picked by agreement and, where that cannot tell, by the error of the outputs (picking). The other half of the held-out samples takes
no part in that: on it the agreement in the report is measured, which the choice therefore does not flatter.

An automatic sparsity is found by bisection over the multiples of `STEP`: the highest at which a candidate reaches the asked agreement. That
takes agreement to fall as sparsity grows. Where the half that did not choose disagrees with the outcome, the sparsity is lowered step by
step until both halves pass.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import onnx

from onnxprune.errors import GateError, OnnxpruneError, OutOfMemory, UsageError
from onnxprune.halving import smaller
from onnxprune.judging import Outputs, compare_outputs, score, scored
from onnxprune.masking import Decided
from onnxprune.options import AUTO, SEARCHED, Options
from onnxprune.picking import Rated, best, contenders
from onnxprune.report import CandidateReport, ChoiceReport, OutputAgreement
from onnxprune.running import Done, Tools, carried_out, decided

ALLOCS = ("erk", "lamp", "global", "error")
"""Allocations that auto tries: those that were best somewhere in the tables of the documents. uniform and rr were not."""
REPAIRS = ("bn", "channel", "asr", "reconstruct")
STEP = 0.005
"""The resolution of an automatic sparsity."""
HIGHEST = 199
"""The highest sparsity tried, in steps."""


@dataclass(frozen=True, eq=False)
class Trial:
    """A candidate that was run: its model, the agreement on the samples that choose and on those that judge, and its score there."""

    done: Done
    found: OutputAgreement
    judged: float


@dataclass(eq=False)
class Search:
    """A search under way: what it is about, what was tried so far, and what each layer keeps by the allocation tried last."""

    dense: onnx.ModelProto
    options: Options
    first: Outputs
    tools: Tools
    tried: list[CandidateReport] = field(default_factory=list)
    kept: list[tuple[Options, Decided]] = field(default_factory=list)

    def run(self, options: Options) -> Trial | None:
        """Run one candidate and note its figures; None where it cannot be run."""
        begin = time.perf_counter()
        self.tools.progress("candidates", len(self.tried), len(self.tried) + 1)
        alike = options.but(repair="none")
        trial, error = None, None
        try:
            if not self.kept or self.kept[0][0] != alike:
                self.kept[:] = [(alike, decided(self.dense, options, self.tools))]
            done = carried_out(self.dense, self.kept[0][1], options, self.tools)
            assert done.outputs is not None
            chosen, judged = (scored(compare_outputs(*parts)) for parts in halves(self.first, done.outputs))
            trial = Trial(done, chosen, score(judged))
        except OutOfMemory as caught:
            if smaller(self.tools.taken) is not None:
                raise  # all candidates are compared on the same batches
            error = str(caught)
        except OnnxpruneError as caught:
            error = str(caught)
        entry = CandidateReport(options.alloc, options.repair, options.sparsity, time.perf_counter() - begin, error=error)
        if trial is not None:
            entry = replace(entry, score=score(trial.found), kl=trial.found.kl, cosine=trial.found.cosine, sqnr_db=trial.found.sqnr_db)
        self.tried.append(entry)
        return trial


def choose(dense: onnx.ModelProto, options: Options, first: Outputs | None, tools: Tools) -> tuple[Done, ChoiceReport]:
    """The best candidate's model, and the report on all that were tried. ``first`` are the dense outputs on the held-out samples.

    Raises:
        UsageError: there are no held-out samples, or no float output, to compare on.
        GateError: no sparsity reaches the asked agreement.
        OnnxpruneError: what the first candidate failed by, where all failed.
    """
    if first is None or not any(value.size for value in first.values()):
        what = "the model has no float output to compare" if first is not None else "give --holdout above 0"
        raise UsageError(f"{'--' + options.auto[0]} auto compares candidates on held-out samples: {what}")
    search = Search(dense, options, first, tools)
    trial = _highest(search) if options.sparsity == SEARCHED else _best(search, candidates(options, options.sparsity))
    chosen = (trial.done.options.alloc, trial.done.options.repair, trial.done.options.sparsity)
    tried: list[CandidateReport] = []
    for entry in reversed(search.tried):  # at one sparsity a candidate may have been tried twice; the last one counts
        taken = (entry.alloc, entry.repair, entry.sparsity_asked) == chosen and not any(other.chosen for other in tried)
        tried.append(replace(entry, chosen=taken))
    judged = halves(first, first)[1][0]
    report = ChoiceReport(
        asked=options.auto,
        samples=trial.found.samples,
        judged=scored(compare_outputs(judged, judged)).samples,
        split=splits(first),
        resolution=STEP if options.sparsity == SEARCHED else None,
        candidates=tuple(reversed(tried)),
    )
    return trial.done, report


def candidates(options: Options, sparsity: float) -> list[Options]:
    """The options of every candidate at one sparsity, in the order in which they are tried."""
    allocs = ALLOCS if options.alloc == AUTO else (options.alloc,)
    repairs = REPAIRS if options.repair == AUTO else (options.repair,)
    return [options.but(alloc=alloc, repair=repair, sparsity=sparsity) for alloc in allocs for repair in repairs]


def splits(first: Outputs) -> bool:
    """True where the held-out samples can be told apart in the outputs, so that one half can choose and the other judge."""
    return all(len(value) > 1 for value in first.values() if value.size)


def halves(first: Outputs, other: Outputs) -> tuple[tuple[Outputs, Outputs], tuple[Outputs, Outputs]]:
    """Dense and other outputs on the samples that choose, and on those that judge: every second one. Where they cannot be told apart,
    both are all of them."""
    if not splits(first) or any(len(first[name]) != len(other[name]) for name in first):
        return (first, other), (first, other)
    parts = [tuple({name: value[at::2] for name, value in given.items()} for given in (first, other)) for at in (0, 1)]
    return (parts[0][0], parts[0][1]), (parts[1][0], parts[1][1])


def _best(search: Search, wanted: Sequence[Options]) -> Trial:
    left: list[Trial] = []  # a model each: those that cannot win any more are let go
    for options in wanted:
        trial = search.run(options)
        if trial is not None:
            left.append(trial)
            left = [left[place] for place in contenders(*_rated(left))]
    if not left:
        raise UsageError(f"no candidate could be run, the first because: {search.tried[0].error}")
    return left[best(*_rated(left))]


def _rated(trials: Sequence[Trial]) -> tuple[list[Rated], int | None]:
    found = trials[0].found
    return [Rated(score(trial.found), trial.found.sqnr_db) for trial in trials], None if found.top1 is None else found.samples


def _highest(search: Search) -> Trial:
    """The candidate of the highest sparsity that passes on both halves."""
    asked = search.options.min_agreement
    assert asked is not None
    highest: Trial | None = None

    def passing(level: int, *, both: bool) -> Trial | None:
        """The first candidate that passes at a sparsity; the one that passed last is tried first."""
        wanted = candidates(search.options, round(level * STEP, 3))
        if highest is not None:
            last = highest.done.options
            wanted.sort(key=lambda options: (options.alloc, options.repair) != (last.alloc, last.repair))
        for options in wanted:
            trial = search.run(options)
            if trial is not None and score(trial.found) >= asked and (trial.judged >= asked or not both):
                return trial
        return None

    low, high = 0, HIGHEST + 1
    while high - low > 1:
        middle = (low + high) // 2
        trial = passing(middle, both=False)
        low, high = (low, middle) if trial is None else (middle, high)
        highest = trial or highest
    while highest is not None and highest.judged < asked:
        low -= 1
        highest = passing(low, both=True) or highest if low else None
    if highest is None:
        raise GateError(
            f"no sparsity from {STEP} on keeps an agreement of {asked}; nothing was written; lower --min-agreement or try another --repair"
        )
    return highest
