"""Two models side by side: how near their outputs are on samples, how dense their layers are, how large their files."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from onnxprune.clock import Progress, ticker
from onnxprune.drawing import Calib, Taken, draw
from onnxprune.errors import CalibrationError, ModelError
from onnxprune.feeding import input_specs
from onnxprune.graph import layers, sparse
from onnxprune.graph import model as files
from onnxprune.graph.doubt import blamed
from onnxprune.graph.inlining import inlined
from onnxprune.graph.tensors import Constants
from onnxprune.halving import within_memory
from onnxprune.judging import Outputs, collect, compare_outputs, size_of, unknown
from onnxprune.numerics.agreement import accuracy
from onnxprune.numerics.threads import bound
from onnxprune.opening import device_of, proof, tried
from onnxprune.options import Options
from onnxprune.report import FileReport, OutputAgreement
from onnxprune.runtime.device import Device
from onnxprune.runtime.labels import read_labels
from onnxprune.runtime.latency import race
from onnxprune.runtime.session import session_of
from onnxprune.sizes import describe


@dataclass(frozen=True)
class LayerDensity:
    """Share of non-zero weights of one layer in both models; None where the pruned model has no layer of that weight."""

    name: str
    op: str
    shape: tuple[int, ...]
    weights: int
    dense: float
    pruned: float | None


@dataclass(frozen=True)
class Accuracy:
    """Top-1 accuracy of both models against labels, 0..1, on the output that has classes."""

    output: str
    samples: int
    dense: float
    pruned: float


@dataclass(frozen=True)
class Timing:
    """Milliseconds of one model on one batch: the median, and the quartiles of all runs."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Latency:
    """How long both models take on one batch of ``samples``, by turns in one process, ``runs`` times each. ``threads`` 0: all cores."""

    dense: Timing
    pruned: Timing
    runs: int
    samples: int
    threads: int


@dataclass(frozen=True)
class Comparison:
    """The pruned model against the dense one. The sparsities are the share of zeros over all layers that both models have."""

    dense: FileReport
    pruned: FileReport
    provider: str
    samples: int
    outputs: tuple[OutputAgreement, ...]
    accuracy: Accuracy | None
    latency: Latency
    dense_sparsity: float
    pruned_sparsity: float
    layers: tuple[LayerDensity, ...]
    notes: tuple[str, ...]
    schema: int = 1


def compare_files(dense: Path, pruned: Path, calib: Calib, options: Options, progress: Progress, labels: Path | None = None) -> Comparison:
    """The comparison of two models with the same inputs and outputs, on the samples that the options draw.

    ``labels`` is a file with the class of each of the samples, drawn or not; see runtime.labels.

    Raises:
        ModelError: the two models do not have the same inputs or float outputs.
        CalibrationError: the samples do not fit, or the labels do not fit the samples or the outputs.
    """
    first, second = files.load(dense), files.load(pruned)
    with threadpool_limits(bound(options.threads), "blas"), blamed(first.doubt or second.doubt, lambda: proof(second.model)):
        return _compare(dense, pruned, first, second, calib, options, progress, labels)


def _compare(
    dense: Path,
    pruned: Path,
    first: files.Loaded,
    second: files.Loaded,
    calib: Calib,
    options: Options,
    progress: Progress,
    labels: Path | None,
) -> Comparison:
    if input_specs(first.model) != input_specs(second.model):
        raise ModelError(f"{pruned}: its inputs are not those of {dense}; compare takes a model and its pruned version")
    _same_outputs(first.model, dense, second.model, pruned)
    device = device_of(options)
    drawn = draw(calib, first.model, options, device.kind, holdout=0.0)
    rows = drawn.split.repair
    classes = None if labels is None else read_labels(labels, drawn.samples.count)[drawn.order(rows)]

    def ran(taken: Taken, told: list[str]) -> tuple[list[Outputs], Accuracy | None, Latency, list[str]]:
        for loaded in (first, second):
            tried(inlined(loaded.model), taken, options)
        found = []
        with session_of(first.model, device, turns=True) as one, session_of(second.model, device, turns=True) as other:
            for name, session in (("dense outputs", one), ("pruned outputs", other)):
                tick = ticker(progress, name, taken.count(rows))
                found.append(collect(session, taken.batches(rows), taken.axes, tick))
            right = None if labels is None or classes is None else _accuracy(labels, classes, *found)
            batch = taken.whole(rows)
            return found, right, _latency(race([one, other], batch), size_of(batch, taken.axes), device), told

    outputs, right, latency, told = within_memory(drawn, ran)
    densities = _densities(first, second)
    return Comparison(
        dense=describe(dense, first.files, first.files, saved=sparse.saved(first.model, first.sparse)),
        pruned=describe(pruned, second.files, second.files, saved=sparse.saved(second.model, second.sparse)),
        provider=device.provider,
        samples=len(rows),
        outputs=compare_outputs(*outputs),
        accuracy=right,
        latency=latency,
        dense_sparsity=_sparsity([(entry.weights, entry.dense) for entry in densities if entry.pruned is not None]),
        pruned_sparsity=_sparsity([(entry.weights, entry.pruned) for entry in densities if entry.pruned is not None]),
        layers=tuple(densities),
        notes=(*([device.note] if device.note else []), *drawn.samples.notes, *drawn.split.notes, *told, *unknown(outputs[0])),
    )


def _accuracy(labels: Path, classes: NDArray[np.int64], dense: Outputs, pruned: Outputs) -> Accuracy:
    """The accuracy of both models on the first output that has classes.

    Raises:
        CalibrationError: no output has classes, or a label is none of them.
    """
    name = next((name for name, value in dense.items() if value.ndim == 2 and value.shape[1] > 1 and len(value) == len(classes)), None)
    if name is None:
        raise CalibrationError(f"{labels}: no float output of the models has the shape (samples, classes): leave --labels out")
    most = int(classes.max())
    if most >= dense[name].shape[1]:
        raise CalibrationError(f"{labels}: holds the label {most}, output {name!r} has classes 0 to {dense[name].shape[1] - 1}")
    return Accuracy(name, len(classes), accuracy(dense[name], classes), accuracy(pruned[name], classes))


def _latency(seconds: NDArray[np.float64], samples: int, device: Device) -> Latency:
    """Quartiles of the runs of both models, (2, runs) in seconds."""
    dense, pruned = (Timing(*(float(np.percentile(runs, share) * 1e3) for share in (50, 25, 75))) for runs in seconds)
    return Latency(dense, pruned, seconds.shape[1], samples, device.threads)


def _sparsity(parts: list[tuple[int, float]]) -> float:
    """The share of zeros over layers, from their weights and densities."""
    weights = sum(size for size, _ in parts)
    return 1 - sum(size * density for size, density in parts) / weights if weights else 0.0


def _same_outputs(first: onnx.ModelProto, dense: Path, second: onnx.ModelProto, pruned: Path) -> None:
    """Raises ModelError when names, element types, ranks or known dimensions of the outputs differ."""
    ours, theirs = ({value.name: value.type.tensor_type for value in model.graph.output} for model in (first, second))
    fits = ours.keys() == theirs.keys()
    for name in ours if fits else ():
        one, other = ours[name], theirs[name]
        fits &= one.elem_type == other.elem_type
        if one.HasField("shape") and other.HasField("shape"):
            pairs = list(zip_longest((dim.dim_value for dim in one.shape.dim), (dim.dim_value for dim in other.shape.dim)))
            fits &= all(a == b or (a == 0 and b is not None) or (b == 0 and a is not None) for a, b in pairs)
    if not fits:
        raise ModelError(f"{pruned}: its outputs {_shown(second)} are not those of {dense}: {_shown(first)}")


def _shown(model: onnx.ModelProto) -> str:
    """The outputs with their shapes, ? for a free dimension."""
    parts = []
    for value in model.graph.output:
        dims = [str(dim.dim_value or "?") for dim in value.type.tensor_type.shape.dim]
        parts.append(f"{value.name} ({', '.join(dims)})")
    return ", ".join(parts)


def _densities(first: files.Loaded, second: files.Loaded) -> list[LayerDensity]:
    model = inlined(first.model)
    dense, pruned = Constants(model), Constants(inlined(second.model))
    rows = []
    for layer in layers.find(model).layers:
        other = None
        if pruned.resolve(layer.seen) is not None and pruned.shape(layer.seen) == layer.shape:
            other = _density(pruned, layer.seen)
        rows.append(LayerDensity(layer.name, layer.op, layer.shape, layer.size, _density(dense, layer.seen), other))
    return rows


def _density(constants: Constants, weight: str) -> float:
    values = constants.read(weight)
    return float(np.count_nonzero(values) / values.size)
