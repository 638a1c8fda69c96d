"""A repair, and beside it what its agreement is measured by: the outputs of the dense model and of the one with masks alone.

Both are needed only at the end, so they are made in the gaps that the repair leaves (runtime.idle), and what is left of them behind it,
together with those of the repaired model. That takes a thread and a batch more than the repair alone: where threads are counted or
memory is bounded, the outputs are made before it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, islice
from typing import Any

import onnx
from numpy.typing import NDArray

from onnxprune.clock import ticker
from onnxprune.graph.mapped import has_mapped
from onnxprune.judging import Outputs, float_outputs, size_of, stacked
from onnxprune.masking import Decided
from onnxprune.options import Options
from onnxprune.running import Done, Tools, carried_out, outputs, pruned_as, repair
from onnxprune.runtime.idle import Gaps, Task
from onnxprune.runtime.session import run_session, session_of
from onnxprune.runtime.stream import Batch

PHASES = ("masked outputs", "dense outputs", "repaired outputs")
Ran = tuple[list[str], int, Sequence[NDArray[Any]]]
"""The names of a model's float outputs, how many samples a batch has, and the outputs for it."""


def repaired(dense: onnx.ModelProto, kept: Decided, options: Options, tools: Tools) -> tuple[Done, Outputs | None, Outputs | None]:
    """The model pruned as decided and repaired, and the outputs of the dense model and of masks alone on the held-out samples."""
    if not tools.device.gaps or not len(tools.taken.split.holdout) or has_mapped(dense):
        first = outputs(dense, "dense outputs", tools)
        pruned = pruned_as(dense, kept, tools)
        alone = outputs(pruned.model, "masked outputs", tools)
        return carried_out(dense, kept, options, tools, pruned), first, alone
    pruned = pruned_as(dense, kept, tools)
    with tools.clock.phase("agreement"):
        batches = list(tools.taken.batches(tools.taken.split.holdout))  # here: to map a file that is cut off meanwhile ends the process
        masks = _tasks(pruned.model, batches, tools)
        ready = iter(list(islice(masks, 1)))  # with a session, which the repair does not change, and which nobody holds behind it
    with Gaps(chain(ready, masks, _tasks(dense, batches, tools))) as gaps:
        pruned, outcomes = repair(dense, pruned, options, tools)
        with tools.clock.phase("agreement"):
            made = gaps.finished(tools.device.at_once, _tasks(pruned.model, batches, tools), _told(tools))
    third = len(made) // len(PHASES)
    alone, first, last = (_joined(made[start : start + third], tools) for start in (0, third, 2 * third))
    return Done(options, kept, pruned, outcomes, last), first, alone


def _tasks(model: onnx.ModelProto, batches: Sequence[Batch], tools: Tools) -> Iterator[Task[Ran]]:
    """The runs of a model on the held-out batches; its session is there from the first of them to the last."""
    device = tools.device
    with session_of(model, device, lean=True, arena=True) as session:
        names = float_outputs(session)
        for batch in batches if names else ():
            yield partial(_run, session, batch, names, tools)


def _run(session: Any, batch: Batch, names: list[str], tools: Tools) -> Ran:
    return names, size_of(batch, tools.taken.axes), run_session(session, batch, names)


def _joined(made: Sequence[Ran], tools: Tools) -> Outputs:
    """The outputs over all batches, none where the model has no float output."""
    return stacked(made[0][0], ((size, values) for _, size, values in made), tools.taken.axes) if made else {}


def _told(tools: Tools) -> Callable[[int], None]:
    """What tells the progress when so many runs are done."""
    known, count = 0, tools.taken.count(tools.taken.split.holdout)

    def steps() -> Iterator[int]:
        for phase in PHASES:
            tick = ticker(tools.progress, phase, count)
            for _ in range(count):
                tick()
                yield 1

    going = steps()

    def tell(done: int) -> None:
        nonlocal known
        known += sum(islice(going, done - known))

    return tell
