"""From a model and options to a copy of it in which every chosen layer keeps its share of the weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import AllocationError, ModelError
from onnxprune.graph import geometry, layers
from onnxprune.graph.gains import by_channel, scaled
from onnxprune.graph.mapped import is_mapped
from onnxprune.graph.tensors import Constants
from onnxprune.numerics import allocation, budget, masks
from onnxprune.numerics.allocation import Weight
from onnxprune.numerics.budget import Curve, Measured
from onnxprune.options import MEASURED, RESIDUAL, Options, fixed_sparsity, selected


@dataclass(frozen=True, eq=False)
class Masked:
    """A model with masks applied: what was found, what each layer keeps, and which layers were chosen."""

    model: onnx.ModelProto
    constants: Constants
    found: layers.Found
    chosen: tuple[bool, ...]
    keep: tuple[int, ...]
    unfolded: tuple[bool, ...]
    """Layers whose weights were ranked with a folded BatchNormalization's scale taken out."""
    left: Mapping[int, str]
    """Layers that could not take the n:m pattern, and why."""
    measured: Mapping[int, Measured]
    """The error curves or residual ratios of the layers, or why there is none."""

    @property
    def fewer(self) -> list[layers.Layer]:
        """The layers that lost weights."""
        return [layer for layer, keep in zip(self.found.layers, self.keep, strict=True) if keep < layer.size]


@dataclass(frozen=True, eq=False)
class Decided:
    """What each layer keeps, before anything is written: the fields of `Masked`, and by a layer's number its mask, True = kept."""

    found: layers.Found
    chosen: tuple[bool, ...]
    keep: tuple[int, ...]
    unfolded: tuple[bool, ...]
    left: Mapping[int, str]
    measured: Mapping[int, Measured]
    masks: Mapping[int, NDArray[np.bool_]]


def masked(model: onnx.ModelProto, decided: Decided) -> Masked:
    """A copy of the model in which every chosen layer keeps the weights that were decided on and the rest are zero."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    constants = Constants(copy)
    for number, mask in decided.masks.items():
        if decided.keep[number] < mask.size:
            constants.mask(decided.found.layers[number].seen, mask)
    return Masked(copy, constants, decided.found, decided.chosen, decided.keep, decided.unfolded, decided.left, decided.measured)


def decide(model: onnx.ModelProto, options: Options, measured: Mapping[str, Measured] = {}) -> Decided:
    """Which weights every chosen layer keeps.

    ``measured`` is what `budgeting.measure` gave, by a weight's name; without it an allocation that needs it gives the counts
    of the one beside it in MEASURED.

    Raises:
        ModelError: the model has no layer that can be pruned.
        AllocationError: the sparsity leaves fewer weights than there are layers.
    """
    found = layers.find(model, options.include)
    if not found.layers:
        why = f"; skipped {len(found.skipped)}, such as {found.skipped[0].name!r}: {found.skipped[0].reason}" if found.skipped else ""
        raise ModelError(f"nothing to prune: no Conv, ConvTranspose, Gemm or MatMul, nor another layer, with a constant weight{why}")
    chosen = selected(found.layers, options)
    fixed = fixed_sparsity(found.layers, chosen, options)
    constants = Constants(model)
    places = [number for number, take in enumerate(chosen) if take]
    weights = [_weight(found.layers[number], constants) for number in places]
    for number, weight in zip(places, weights, strict=True):
        if not np.isfinite(np.asarray(weight)).all():
            raise AllocationError(f"layer {found.layers[number].name!r} has NaN or infinite weights; the model is damaged")
    for number, value in fixed.items():
        try:
            allocation.keep_total([found.layers[number].size], value)
        except AllocationError as error:
            raise AllocationError(f"layer {found.layers[number].name!r}: {error}") from None
    folded = options.unfold and _folded(found, constants)
    scores = [_score(found.layers[number], weight, folded) for number, weight in zip(places, weights, strict=True)]
    left: dict[int, str] = {}
    if options.n_m is None:
        shares = {places.index(number): value for number, value in fixed.items()}
        if options.alloc in MEASURED:
            told = {place: measured.get(found.layers[number].weight) for place, number in enumerate(places)}
            curves = {place: curve for place, curve in told.items() if isinstance(curve, Curve)}
            ratios = {place: ratio for place, ratio in told.items() if isinstance(ratio, float)}
            if options.alloc == RESIDUAL:
                counts = budget.by_ratio(scores, ratios, options.sparsity, shares)
            else:
                counts = budget.by_error(scores, curves, options.sparsity, shares)
        else:
            counts = allocation.allocate(options.alloc, scores, options.sparsity, shares)
        kept = masks.Packed(
            (number, masks.top(np.asarray(score), count)) for number, score, count in zip(places, scores, counts, strict=True)
        )
    else:

        def pattern(n: int, m: int) -> Iterator[tuple[int, NDArray[np.bool_]]]:
            for number, score in zip(places, scores, strict=True):
                mask = _pattern_mask(constants, found.layers[number], np.asarray(score), n, m)
                left.update({number: mask} if isinstance(mask, str) else {})
                yield number, np.ones(score.shape, np.bool_) if isinstance(mask, str) else mask

        kept = masks.Packed(pattern(*options.n_m))
        if len(left) == len(places):
            raise AllocationError(f"--pattern {options.pattern} fits none of the {len(places)} layers: {left[places[0]]}")
    keep = [layer.size for layer in found.layers]
    for number, mask in kept.items():
        keep[number] = int(mask.sum())
    unfolded = tuple(folded and is_convolution(layer) for layer in found.layers)
    pruned = tuple(take and number not in left for number, take in enumerate(chosen))
    curved = {number: measured[layer.weight] for number, layer in enumerate(found.layers) if layer.weight in measured}
    return Decided(found, pruned, tuple(keep), unfolded, left, curved, kept)


def allocations(model: onnx.ModelProto, options: Options, sparsity: float) -> dict[str, tuple[int, ...]]:
    """Name of every allocation that needs no samples -> how many weights each layer keeps under it at that sparsity, by the same options.

    Empty with a pattern, which leaves nothing to share out.
    """
    if options.n_m is not None:
        return {}
    return {rule: decide(model, replace(options, alloc=rule, sparsity=sparsity)).keep for rule in allocation.ALLOCATIONS}


def _pattern_mask(constants: Constants, layer: layers.Layer, score: NDArray[Any], n: int, m: int) -> NDArray[np.bool_] | str:
    """The mask that keeps the n largest of every m weights along the input channels, or the reason why the layer is left dense."""
    use = layer.uses[0]
    if use.op not in geometry.KNOWN:
        return f"left dense: n:m patterns are not for {use.op}"
    shape = geometry.geometry(constants.scopes[use.scope].nodes[use.node], use, layer.shape)
    if isinstance(shape, str):
        return f"left dense: {shape}"
    matrix = np.abs(geometry.to_matrix(score, shape))
    inner = matrix.shape[1] // shape.taps
    if inner % m:
        return f"left dense: {m} does not divide its {inner} input channels"
    mask = masks.n_m(matrix.reshape(len(matrix), inner, shape.taps), n, m, 1).reshape(matrix.shape)
    return np.asarray(geometry.from_matrix(mask.astype(np.float64), shape, layer.shape) != 0)


def _folded(found: layers.Found, constants: Constants) -> bool:
    """True for a model whose BatchNormalization was folded into its convolutions, as far as a file can tell.

    There is none left in it, and every convolution has a bias, which a convolution before a BatchNormalization rarely has of its own.
    """
    convolutions = [layer for layer in found.layers if is_convolution(layer)]
    return (
        bool(convolutions)
        and not any(node.op_type == "BatchNormalization" for node in constants.model.graph.node)
        and all(use.bias is not None for layer in convolutions for use in layer.uses if not use.scope)
    )


def is_convolution(layer: layers.Layer) -> bool:
    """True for Conv and ConvTranspose."""
    return layer.op in ("Conv", "ConvTranspose")


def _weight(layer: layers.Layer, constants: Constants) -> Weight:
    """A layer's weight; one that lies in a file is read when its values are asked for."""
    if is_mapped(constants.held(layer.seen)[0]):
        return allocation.Unread(layer.shape, partial(constants.read, layer.seen))
    return constants.read(layer.seen)


def _score(layer: layers.Layer, weight: Weight, folded: bool) -> Weight:
    """What the weights are ranked by: their magnitude, with a folded BatchNormalization's scale taken out of a convolution's."""
    if not (folded and is_convolution(layer)):
        return weight
    if isinstance(weight, allocation.Unread):
        return allocation.Unread(weight.shape, lambda: _unfolded(layer, weight.read()))
    return _unfolded(layer, weight)


def _unfolded(layer: layers.Layer, weight: NDArray[Any]) -> NDArray[Any]:
    use = layer.uses[0]
    values = weight.astype(np.float64)
    squares, rest = by_channel(values**2, use)
    norms = np.sqrt(squares.sum(axis=rest)).ravel()
    return scaled(values, masks.balance(norms), use).astype(np.float32)
