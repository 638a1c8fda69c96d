"""Two models side by side: how near their outputs are on samples, how dense their layers are, how large their files."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnxprune.clock import Progress, ticker
from onnxprune.drawing import Calib, draw
from onnxprune.errors import ModelError
from onnxprune.feeding import input_specs
from onnxprune.graph import layers
from onnxprune.graph import model as files
from onnxprune.graph.doubt import blamed
from onnxprune.graph.inlining import inlined
from onnxprune.graph.tensors import Constants
from onnxprune.judging import collect, compare_outputs
from onnxprune.options import Options
from onnxprune.pipeline import proof
from onnxprune.report import FileReport, OutputAgreement
from onnxprune.runtime.session import choose_device, session_of
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
class Comparison:
    """The pruned model against the dense one."""

    dense: FileReport
    pruned: FileReport
    provider: str
    samples: int
    outputs: tuple[OutputAgreement, ...]
    layers: tuple[LayerDensity, ...]
    notes: tuple[str, ...]
    schema: int = 1


def compare_files(dense: Path, pruned: Path, calib: Calib, options: Options, progress: Progress) -> Comparison:
    """The comparison of two models with the same inputs and outputs, on the samples that the options draw.

    Raises:
        ModelError: the two models do not have the same inputs or float outputs.
        CalibrationError: the samples do not fit.
    """
    first, second = files.load(dense), files.load(pruned)
    with blamed(first.doubt or second.doubt, lambda: proof(second.model)):
        return _compare(dense, pruned, first, second, calib, options, progress)


def _compare(
    dense: Path, pruned: Path, first: files.Loaded, second: files.Loaded, calib: Calib, options: Options, progress: Progress
) -> Comparison:
    if input_specs(first.model) != input_specs(second.model):
        raise ModelError(f"{pruned}: its inputs are not those of {dense}; compare takes a model and its pruned version")
    _same_outputs(first.model, dense, second.model, pruned)
    device = choose_device(options.device)
    taken = draw(calib, first.model, options, holdout=0.0)
    outputs = []
    for name, loaded in (("dense outputs", first), ("pruned outputs", second)):
        tick = ticker(progress, name, taken.count(taken.split.repair))
        with session_of(loaded.model, device) as session:
            outputs.append(collect(session, taken.batches(taken.split.repair), taken.axes, tick))
    return Comparison(
        dense=describe(dense, first.files, first.files),
        pruned=describe(pruned, second.files, second.files),
        provider=device.provider,
        samples=len(taken.split.repair),
        outputs=compare_outputs(*outputs),
        layers=tuple(_densities(first, second)),
        notes=(*([device.note] if device.note else []), *taken.samples.notes, *taken.split.notes),
    )


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


def find_in(path: Path) -> layers.Found:
    """What can be pruned in a file."""
    given = files.load(path)
    with blamed(given.doubt, lambda: proof(given.model)):
        return layers.find(inlined(given.model))


def report_of(found: layers.Found) -> dict[str, Any]:
    """What was found in a model, as a plain structure for JSON."""
    return {
        "schema": 1,
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "weight": layer.weight,
                "shape": layer.shape,
                "weights": layer.size,
                "nodes": len(layer.uses),
            }
            for layer in found.layers
        ],
        "norms": [{"name": norm.name, "op": norm.op, "channels": norm.channels} for norm in found.norms],
        "skipped": [asdict(entry) for entry in found.skipped],
    }
