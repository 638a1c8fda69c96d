"""One model, its samples and what the dense model gives on them, opened once for many runs."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.clock import Clock
from onnxprune.drawing import Calib, Taken, draw
from onnxprune.errors import CalibrationError, UsageError
from onnxprune.graph import layers
from onnxprune.graph import model as files
from onnxprune.graph.doubt import blamed, note
from onnxprune.graph.inlining import inlined
from onnxprune.graph.points import points
from onnxprune.halving import within_memory
from onnxprune.judging import Outputs, compare_outputs, scored
from onnxprune.masking import decide
from onnxprune.memory import memory_for
from onnxprune.numerics.agreement import accuracy as share_right
from onnxprune.opening import device_of, proof, tried
from onnxprune.options import Options
from onnxprune.running import Tools, outputs, statistics
from onnxprune.runtime.labels import read_labels
from onnxprune.runtime.packages import both_runtimes
from onnxprune.sizes import BLOCK

Labels = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Bench:
    """A model ready for runs. ``sha256`` is that of its files, ``identity`` of all of model, samples, labels and device."""

    dense: onnx.ModelProto
    tools: Tools
    labels: Labels | None
    sha256: str
    identity: str
    notes: tuple[str, ...]
    doubt: str
    """What onnx.checker holds against the file."""


def open_bench(model: Path, calib: Calib, options: Options, labels: Path | None) -> Bench:
    """The bench of a model file; nothing runs yet.

    Raises:
        OnnxpruneError: the model, the samples or the labels cannot be read, or do not fit each other.
    """
    given = files.load(model)
    with blamed(given.doubt, lambda: proof(given.model)):
        return _opened(given, calib, options, labels)


def _opened(given: files.Loaded, calib: Calib, options: Options, labels: Path | None) -> Bench:
    dense = inlined(given.model)
    decide(dense, options)  # refuses what cannot be pruned before a sample is read
    device = device_of(options)
    taken = draw(calib, dense, options, device.kind, holdout=options.holdout)
    if not len(taken.split.holdout):
        raise UsageError("combinations are compared on held-out samples; give --holdout above 0")
    within_memory(taken, lambda less, told: tried(dense, less, options))
    taken = replace(taken, memory={})
    read = None if labels is None else read_labels(labels, taken.samples.count)
    digest, whole = hashlib.sha256(), hashlib.sha256()
    for path in given.files:
        with path.open("rb") as handle:
            while block := handle.read(BLOCK):
                digest.update(block)
    whole.update(digest.digest())
    for batches in (taken.repairing(), taken.batches(taken.split.holdout)):
        for batch in batches:
            for name, value in batch.items():
                whole.update(f"{name} {value.dtype} {value.shape}".encode())
                whole.update(value.tobytes())
    whole.update(device.provider.encode() + (b"" if read is None else read.tobytes()))
    notes = [*note(given.doubt), both_runtimes(), device.note, *taken.samples.notes, *taken.split.notes]
    tools = Tools(device, taken, Clock(), lambda phase, done, total: None, memory=memory_for(options.memory, device))
    return Bench(dense, tools, read, digest.hexdigest(), whole.hexdigest(), tuple(text for text in notes if text), given.doubt)


def dense_outputs(bench: Bench) -> Outputs:
    """The dense model's outputs on the held-out samples.

    Raises:
        UsageError: there is no float output to compare, or none with classes for the labels.
        CalibrationError: a label is no class of the output.
    """

    def made(taken: Taken, told: list[str]) -> Outputs:
        return outputs(bench.dense, "dense outputs", replace(bench.tools, taken=taken)) or {}

    with blamed(bench.doubt, lambda: proof(bench.dense)):
        first = within_memory(bench.tools.taken, made)
    if not any(value.size for value in first.values()):
        raise UsageError("the model has no float output to compare with")
    if bench.labels is not None:
        width = first[classes_of(first)].shape[1]
        worst = int(bench.labels.max(initial=0))
        if worst >= width:
            raise CalibrationError(f"--labels has the label {worst}, but output {classes_of(first)!r} has the classes 0 to {width - 1}")
    return first


def dense_statistics(bench: Bench, options: Options) -> None:
    """Make the dense model's statistics at all places of repair, in one pass; later runs find them in the tools."""
    statistics(bench.dense, points(layers.find(bench.dense, options.include)), bench.tools)


def classes_of(first: Outputs) -> str:
    """The name of the output that labels are held against.

    Raises:
        UsageError: no output has classes.
    """
    entry = scored(compare_outputs(first, first))
    if entry.top1 is None:
        raise UsageError("--labels needs an output with classes, rank 2 and two columns or more; the model has none")
    return entry.output


def accuracy(bench: Bench, found: Mapping[str, NDArray[Any]], name: str) -> float | None:
    """The share of held-out samples whose largest output is that of their label, None without labels."""
    if bench.labels is None:
        return None
    held: Taken = bench.tools.taken
    return share_right(found[name], bench.labels[held.order(held.split.holdout)])
