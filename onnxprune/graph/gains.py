"""Write a gain per output channel into a weight: into the values themselves, or into the scales of integers.

Integers stay as they are, so that the zeros among them stay zeros. Their scales can take a gain when each belongs to one output channel,
or when all channels have the same gain. A bias in integers goes along: runtimes that fuse the operator take scale(x) * scale(weight) for
the scale of its bias.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.graph.inlining import called_from
from onnxprune.graph.layers import Layer, Use
from onnxprune.graph.mapped import multiplied
from onnxprune.graph.tensors import Constants
from onnxprune.graph.views import Grid, View, behind_grid, spread, store

Vector = NDArray[np.float64]


def scaled(weight: NDArray[Any], gain: Vector, use: Use) -> NDArray[np.float64]:
    """The weight times one gain per output channel, float64, in the layout of the use."""
    if use.op == "ConvTranspose":
        blocks = weight.reshape(use.group, weight.shape[0] // use.group, *weight.shape[1:]).astype(np.float64)
        per_block = gain.reshape(use.group, 1, weight.shape[1], *[1] * (weight.ndim - 2))
        return (blocks * per_block).reshape(weight.shape)
    shape = [1] * weight.ndim
    shape[use.weight_axis] = -1
    return weight.astype(np.float64) * gain.reshape(shape)


def channel_of(use: Use, shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The output channel of every element of a weight, int64, of the weight's shape."""
    return scaled(np.ones(shape), np.arange(use.channels, dtype=np.float64), use).astype(np.int64)


def refusal(constants: Constants, layer: Layer, use: Use, gain: Vector) -> str:
    """Why the weight takes no such gain, empty when it does."""
    if len(layer.uses) > 1:
        return "its weight is shared, so only the shift is repaired"
    view = constants.view(layer.seen)
    if view is None or not view.on_grid or np.all(gain == 1):
        return ""
    grid = view.grid
    if grid is None:
        return "its weights are rounded to a fixed scale, so only the shift is repaired"
    node = _node_of(constants, grid)
    if node is None or called_from(node):
        return "the scale of its weights is not its own, so only the shift is repaired"
    if not (gain > 0).all():
        return "a scale cannot be 0, so only the shift is repaired"
    if np.ptp(gain) > 0 and _owners(constants, view, grid, use) is None:
        return "its channels share the scale of their weights, so only the shift is repaired"
    return ""


def scale_weight(constants: Constants, layer: Layer, use: Use, gain: Vector) -> None:
    """Write a gain that was not refused."""
    view = constants.view(layer.seen)
    assert view is not None
    plain = not view.steps and use.op != "ConvTranspose"
    if plain and multiplied(constants.held(layer.seen), gain, use.weight_axis):
        constants.changes.tell(view.holder)
        return
    if not view.on_grid:
        weight = constants.read(layer.seen)
        constants.write(layer.seen, scaled(weight, gain, use).astype(weight.dtype))
        return
    if np.all(gain == 1):
        return
    assert view.grid is not None
    owners = _owners(constants, view, view.grid, use)
    _scale_grid(constants, view.grid, gain[0] if owners is None else gain[owners])
    if use.bias is None:
        return
    bias = constants.view(constants.model.graph.node[use.bias.node].input[use.bias.index])
    if bias is not None and bias.grid is not None:
        size = constants.read(bias.grid.scale).size
        if np.ptp(gain) == 0 or size == use.channels:
            _scale_grid(constants, bias.grid, gain[0] if size == 1 else gain)


def highest(weight: NDArray[Any], use: Use) -> Vector:
    """The largest gain per channel that keeps the weights within their type, float64 (C,)."""
    most = peaks(weight, use)
    with np.errstate(over="ignore"):
        limits: Vector = np.divide(largest(weight.dtype), most, out=np.full(use.channels, np.inf), where=most > 0)
    return limits


def peaks(weight: NDArray[Any], use: Use) -> Vector:
    """The largest magnitude of each output channel, float64 (C,)."""
    values, rest = by_channel(weight if weight.dtype.kind == "f" else weight.astype(np.float64), use)
    most = np.maximum(values.max(axis=rest, initial=0), -values.min(axis=rest, initial=0))
    return np.asarray(most.ravel(), np.float64)


def by_channel(weight: NDArray[Any], use: Use) -> tuple[NDArray[Any], tuple[int, ...]]:
    """The weight in a shape whose output channels are all of some axes, in order, and the axes that are not."""
    if use.op == "ConvTranspose":
        blocks = weight.reshape(use.group, weight.shape[0] // use.group, *weight.shape[1:])
        return blocks, (1, *range(3, blocks.ndim))
    return weight, tuple(axis for axis in range(weight.ndim) if axis != use.weight_axis % weight.ndim)


def largest(dtype: np.dtype[Any]) -> float:
    """The largest finite number of a float type."""
    try:
        return float(np.finfo(dtype).max)
    except ValueError:  # bfloat16, which has float32's exponents and 8 bits
        return 3.3895313892515355e38


def _scale_grid(constants: Constants, grid: Grid, gain: NDArray[np.float64] | np.float64) -> None:
    node = _node_of(constants, grid)
    scale = constants.read(grid.scale)
    if node is None or called_from(node):
        return
    values = scale.astype(np.float64) * (gain if np.ndim(gain) == 0 else np.reshape(gain, scale.shape))
    constants.write_input(node, 1, values, constants.data_type(grid.scale), f"{node.name or node.output[0]}.scale")


def _node_of(constants: Constants, grid: Grid) -> onnx.NodeProto | None:
    """The DequantizeLinear of the main graph that has the grid."""
    return next((node for node in constants.model.graph.node if grid.output and grid.output in node.output), None)


def _owners(constants: Constants, view: View, grid: Grid, use: Use) -> NDArray[np.int64] | None:
    """The output channel of every scale, in the shape of the scales; None when one belongs to several channels."""
    channels = store(behind_grid(view.steps), channel_of(use, view.shape), constants.read)
    scale = constants.read(grid.scale)
    if scale.size == 1 and use.channels > 1:
        return None
    place = spread(np.arange(scale.size).reshape(scale.shape), grid, channels.shape)
    low, high = np.full(scale.size, use.channels), np.full(scale.size, -1)
    np.minimum.at(low, place, channels)
    np.maximum.at(high, place, channels)
    return low.reshape(scale.shape) if np.array_equal(low, high) else None
