"""How a node sees a stored tensor: the steps between the two, each of which can be undone.

    Moved      Transpose
    Shaped     Reshape, Squeeze, Unsqueeze, Flatten
    Picked     Concat of Slices that take every element once
    Typed      Cast from one float type to another
    Rounded    QuantizeLinear     q = round(x / scale) + zero, cut to the type's range
    Scaled     DequantizeLinear   x = (q - zero) * scale

Identity is no step at all. Values go back through the inverse of every step, rounded to what is stored there; zeros stay zeros.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import ModelError

Array = NDArray[Any]
Read = Callable[[str], Array]
FLOATS = (onnx.TensorProto.FLOAT, onnx.TensorProto.DOUBLE, onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


@dataclass(frozen=True)
class Moved:
    """A permutation of the axes."""

    perm: tuple[int, ...]


@dataclass(frozen=True)
class Shaped:
    """Another shape over the same order of elements."""

    before: tuple[int, ...]
    after: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Picked:
    """Another order of the elements: ``order`` has the flat place of each before, int64, in the shape that they have then."""

    before: tuple[int, ...]
    order: NDArray[np.int64]


@dataclass(frozen=True)
class Typed:
    """Another float type; both are onnx.TensorProto.DataType."""

    before: int
    after: int


@dataclass(frozen=True)
class Grid:
    """The numbers that a quantised tensor can hold: names of scale and zero point (may be empty), axis, and block size (0: none).

    ``output`` names the output of the node that has them, ``kind`` is the integer type. ``wide`` is the float type beside it.
    """

    scale: str
    zero: str
    axis: int
    block: int
    output: str
    kind: int
    wide: int


@dataclass(frozen=True)
class Rounded:
    """From floats to the integers of a grid."""

    grid: Grid


@dataclass(frozen=True)
class Scaled:
    """From the integers of a grid to floats."""

    grid: Grid


Step = Moved | Shaped | Picked | Typed | Rounded | Scaled


@dataclass(frozen=True)
class View:
    """A stored tensor ``holder`` behind ``steps``; ``shape`` and ``data_type`` are as the reader sees them."""

    holder: str
    steps: tuple[Step, ...]
    shape: tuple[int, ...]
    data_type: int

    @property
    def grid(self) -> Grid | None:
        """The grid of the integers that are stored, None where floats are."""
        return next((step.grid for step in self.steps if isinstance(step, Scaled)), None) if self.stores_integers else None

    @property
    def on_grid(self) -> bool:
        """True when the values seen can only be numbers of a grid."""
        return any(isinstance(step, (Rounded, Scaled)) for step in self.steps)

    @property
    def stores_integers(self) -> bool:
        """True when what is stored are the integers of the grid themselves."""
        return self.on_grid and not any(isinstance(step, Rounded) for step in self.steps)


def see(steps: tuple[Step, ...], values: Array, read: Read) -> Array:
    """What comes out of the steps for values as stored."""
    for step in steps:
        values = _forward(step, values, read)
    return values


def store(steps: tuple[Step, ...], values: Array, read: Read) -> Array:
    """The values to store so that ``values`` come out of the steps, up to rounding."""
    for step in reversed(steps):
        values = _backward(step, values, read)
    return values


def layout(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps that move elements, without those that change their values."""
    return tuple(step for step in steps if isinstance(step, (Moved, Shaped, Picked)))


def behind_grid(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    """The steps behind the one that scales integers."""
    at = max(number for number, step in enumerate(steps) if isinstance(step, Scaled))
    return steps[at + 1 :]


def zeros(steps: tuple[Step, ...], shape: tuple[int, ...], read: Read) -> Array:
    """What must be stored for zeros to be seen: the zero point where integers are stored, for every element of the stored ``shape``."""
    for number, step in enumerate(steps):
        if isinstance(step, Rounded):
            break
        if isinstance(step, Scaled) and step.grid.zero:
            inner = see(steps[:number], np.empty(shape, np.int8), read).shape
            return store(steps[:number], spread(read(step.grid.zero), step.grid, inner), read)
    return np.zeros(shape, np.int8)


def spread(values: Array, grid: Grid, shape: tuple[int, ...]) -> Array:
    """A scale or a zero point as one number per element of a tensor of the given shape."""
    if values.size == 1:
        return np.broadcast_to(values.reshape(()), shape)
    if values.ndim == len(shape) and not grid.block:
        return np.broadcast_to(values, shape)
    axis = grid.axis % len(shape)
    if not grid.block and values.size != shape[axis]:
        raise ModelError(f"a scale or zero point of {values.size} numbers does not fit axis {axis} of a weight of shape {shape}")
    if grid.block:
        return np.repeat(values, grid.block, axis)[tuple(slice(dim) for dim in shape)]
    return np.broadcast_to(values.reshape([-1 if number == axis else 1 for number in range(len(shape))]), shape)


def dtype_of(data_type: int) -> np.dtype[Any]:
    """The numpy dtype of an onnx.TensorProto.DataType."""
    return np.dtype(onnx.helper.tensor_dtype_to_np_dtype(data_type))


def _forward(step: Step, values: Array, read: Read) -> Array:
    match step:
        case Moved(perm):
            return values.transpose(perm)
        case Shaped(_, after):
            return values.reshape(after)
        case Picked(_, order):
            return values.reshape(-1)[order]
        case Typed(_, after):
            with np.errstate(over="ignore"):
                return values.astype(dtype_of(after))
        case Rounded(grid):
            return _to_grid(values, grid, read)
        case Scaled(grid):
            return _from_grid(values, grid, read).astype(dtype_of(grid.wide))


def _backward(step: Step, values: Array, read: Read) -> Array:
    match step:
        case Moved(perm):
            return values.transpose(np.argsort(perm))
        case Shaped(before, _):
            return values.reshape(before)
        case Picked(before, order):
            return values.reshape(-1)[np.argsort(order, axis=None)].reshape(before)
        case Typed(before, _):
            return values.astype(dtype_of(before))
        case Rounded(grid):
            return _from_grid(values, grid, read).astype(dtype_of(grid.wide))
        case Scaled(grid):
            return _to_grid(values, grid, read)


def _from_grid(values: Array, grid: Grid, read: Read) -> NDArray[np.float64]:
    scale, zero = _numbers(grid, values.shape, read)
    return np.asarray((values.astype(np.float64) - zero) * scale)


def _to_grid(values: Array, grid: Grid, read: Read) -> Array:
    scale, zero = _numbers(grid, values.shape, read)
    steps = np.divide(values.astype(np.float64), scale, out=np.zeros(values.shape), where=scale != 0)
    low, high = limits(grid.kind)
    if low is None:  # an 8-bit float
        return np.asarray(steps + zero).astype(dtype_of(grid.kind))
    return np.clip(np.rint(steps) + zero, low, high).astype(np.int64).astype(dtype_of(grid.kind))


def _numbers(grid: Grid, shape: tuple[int, ...], read: Read) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Scale and zero point of every element, float64."""
    scale = read(grid.scale) if grid.scale else np.ones(())
    zero = read(grid.zero) if grid.zero else np.zeros(())
    return spread(scale, grid, shape).astype(np.float64), spread(zero, grid, shape).astype(np.float64)


def limits(data_type: int) -> tuple[int, int] | tuple[None, None]:
    """The smallest and the largest number of an integer type, None for a float type."""
    found = {"INT": True, "UINT": False}
    name = onnx.TensorProto.DataType.Name(data_type)
    stem = name.rstrip("0123456789")
    if stem not in found:
        return None, None
    bits = int(name[len(stem) :])
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if found[stem] else (0, 2**bits - 1)
