"""From a model and options to a copy of it in which every chosen layer keeps its share of the weights."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx

from onnxprune.errors import AllocationError, ModelError
from onnxprune.graph import layers
from onnxprune.graph.tensors import Constants
from onnxprune.numerics import allocation, masks
from onnxprune.options import Options, fixed_sparsity, selected


@dataclass(frozen=True, eq=False)
class Masked:
    """A model with masks applied: what was found, what each layer keeps, and which layers were chosen."""

    model: onnx.ModelProto
    constants: Constants
    found: layers.Found
    chosen: tuple[bool, ...]
    keep: tuple[int, ...]


def apply_masks(model: onnx.ModelProto, options: Options) -> Masked:
    """A copy of the model in which every chosen layer keeps its share of the weights and the rest are zero.

    Raises:
        ModelError: the model has no layer that can be pruned.
        AllocationError: the sparsity leaves fewer weights than there are layers.
    """
    found = layers.find(model)
    if not found.layers:
        why = (
            f"; skipped {len(found.skipped)}, such as {found.skipped[0].name!r}: {found.skipped[0].reason}" if found.skipped else ""
        )
        raise ModelError(f"nothing to prune: no Conv, ConvTranspose, Gemm or MatMul with a constant weight{why}")
    chosen = selected(found.layers, options)
    fixed = fixed_sparsity(found.layers, chosen, options)
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = Constants(copy)
    places = [number for number, take in enumerate(chosen) if take]
    weights = [constants.read(found.layers[number].weight) for number in places]
    for number, weight in zip(places, weights, strict=True):
        if not np.isfinite(weight).all():
            raise AllocationError(f"layer {found.layers[number].name!r} has NaN or infinite weights; the model is damaged")
    counts = allocation.allocate(
        options.alloc, weights, options.sparsity, {places.index(number): value for number, value in fixed.items()}
    )
    keep = [layer.size for layer in found.layers]
    for number, weight, count in zip(places, weights, counts, strict=True):
        keep[number] = count
        if count < weight.size:
            constants.write(found.layers[number].weight, np.where(masks.top(weight, count), weight, 0).astype(weight.dtype))
    return Masked(copy, constants, found, tuple(chosen), tuple(keep))
