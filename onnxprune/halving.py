"""When memory runs out, everything is done again with half the batch.

Not the stage alone: moments are added up batch by batch, so that a run whose batches changed on the way would give other bytes than any
that can be asked for. What comes out is what --batch-size with the half would have given from the start.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from onnxprune.drawing import Taken
from onnxprune.errors import OutOfMemory
from onnxprune.runtime.shortage import short_of_memory

T = TypeVar("T")


def within_memory(taken: Taken, work: Callable[[Taken, list[str]], T]) -> T:
    """What ``work`` gives with the samples in batches that fit, and with a note on those that did not.

    Raises:
        OutOfMemory: the batch is one sample, or one that the model fixes, and does not fit.
    """
    failed: list[int] = []
    while True:
        try:
            return work(taken, notes_of(failed, taken.batch_size))
        except (OutOfMemory, MemoryError, OSError) as error:
            if not short_of_memory(error):
                raise
            fewer = smaller(taken)
            if fewer is None:
                raise OutOfMemory(f"{ended(taken)}: {error}; free some memory, or give a smaller --memory or fewer --samples") from error
        failed.append(taken.batch_size)
        taken = fewer
        gc.collect()  # here, where no traceback holds what the run had made


def smaller(taken: Taken) -> Taken | None:
    """The samples in batches of half the size; None where there is no smaller one.

    A batch size that no batch has, with fewer samples than that, is halved until it makes a difference.
    """
    if taken.least > 1 or taken.batch_size == 1:
        return None
    size, most = taken.batch_size // 2, taken.largest
    while size >= most > 1:
        size //= 2
    return replace(taken, batch_size=size, memory=None if taken.memory is None else {})


def notes_of(failed: list[int], size: int) -> list[str]:
    """What the report says of batches that did not fit."""
    if not failed:
        return []
    return [f"memory ran out with batches of {' and of '.join(map(str, failed))}: all was done again with batches of {size}"]


def ended(taken: Taken) -> str:
    """That there is no smaller batch, in words."""
    if taken.least > 1:
        return f"memory ran out with the batch of {taken.batch_size} samples that the model fixes"
    return "memory ran out with batches of one sample"
