"""What a model must be fed: its inputs, on which axis of each the batch is, and the batch size that they prescribe.

The batch is on axis 0 unless the model says otherwise: by the name of a dimension that all inputs have, such as N or batch, or, with
several inputs, by the only name that all have, or by the only free dimension of an input whose axis 0 is fixed. A scalar input has no
batch; it takes one number for all samples of a batch. An input whose dimensions are all fixed may be given once for all samples.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError, ModelError
from onnxprune.runtime.calibration import InputSpec

Arrays = NDArray[Any] | Mapping[str, NDArray[Any]]
BATCH = re.compile(r"n|b|bs|batch.*|.*batch(_?size)?|num_?samples", re.IGNORECASE)


@dataclass(frozen=True)
class Axes:
    """The axis of the batch of every input (None for a scalar) and of every output, by name."""

    inputs: Mapping[str, int | None]
    outputs: Mapping[str, int]
    fixed: frozenset[str] = frozenset()
    """Inputs without a free dimension."""

    def gathered(self, arrays: Arrays) -> Arrays:
        """Arrays laid out as the model takes them, with their samples on axis 0; a number for a scalar input is repeated."""
        if not isinstance(arrays, Mapping):
            axis = next(iter(self.inputs.values()))
            return np.moveaxis(arrays, axis, 0) if axis and arrays.ndim > axis else arrays
        moved = {
            name: np.moveaxis(value, self.inputs.get(name) or 0, 0) if np.ndim(value) > (self.inputs.get(name) or 0) else value
            for name, value in arrays.items()
        }
        whole = {name: np.reshape(value, 1) if np.ndim(value) == 0 else value for name, value in moved.items()}
        count = max((len(value) for value in whole.values()), default=0)
        return {name: self._repeated(name, value, count) for name, value in whole.items()}

    def _repeated(self, name: str, value: NDArray[Any], count: int) -> NDArray[Any]:
        """The array as often as it takes to have ``count`` samples, if it may be given once for all."""
        alone = name in self.inputs and (self.inputs[name] is None or name in self.fixed)
        if not alone or not 0 < len(value) < count or count % len(value):
            return value
        return np.resize(value, (count, *value.shape[1:]))

    def laid_out(self, batches: Iterable[dict[str, NDArray[Any]]]) -> Iterator[dict[str, NDArray[Any]]]:
        """Batches with the samples on axis 0 as the model takes them.

        Raises:
            CalibrationError: the samples of one batch have different numbers for a scalar input.
        """
        for batch in batches:
            yield {name: self._input(name, value) for name, value in batch.items()}

    def _input(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        axis = self.inputs[name]
        if axis is None:
            if len(value) and (value != value[0]).any():
                raise CalibrationError(f"input {name!r} is one number for a whole batch, the samples have several; give them one by one")
            return np.asarray(value[0])
        return np.ascontiguousarray(np.moveaxis(value, 0, axis)) if axis else value

    def output(self, name: str, value: NDArray[Any]) -> NDArray[Any]:
        """An output with its samples on axis 0."""
        axis = self.outputs.get(name, 0)
        return np.moveaxis(value, axis, 0) if axis and value.ndim > axis else value


def axes_of(model: onnx.ModelProto) -> Axes:
    """The axes of the batch in a model."""
    inputs = {value.name: value.type.tensor_type.shape.dim for value in _fed(model)}
    named = {name: [dim.dim_param for dim in dims] for name, dims in inputs.items() if len(dims)}
    common = [mark for mark in next(iter(named.values()), []) if mark and all(dims.count(mark) == 1 for dims in named.values())]
    pick = next((mark for mark in common if BATCH.fullmatch(mark)), "")
    if not pick and len(common) == 1 and len(named) > 1:
        pick = common[0]
    axes = {name: named[name].index(pick) if pick else 0 for name in named}
    free = {name: [at for at, dim in enumerate(dims) if dim.dim_value <= 0] for name, dims in inputs.items()}
    if not pick and any(0 in places for places in free.values()):
        axes |= {name: places[0] for name, places in free.items() if len(places) == 1 and inputs[name][0].dim_value > 1}
    outputs = {value.name: [dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in model.graph.output}
    return Axes(
        {name: axes.get(name) for name in inputs},
        {name: dims.index(pick) if pick and dims.count(pick) == 1 else 0 for name, dims in outputs.items()},
        frozenset(name for name, places in free.items() if not places),
    )


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """Name, dtype and shape of every input that must be fed, its batch on axis 0; a scalar is a batch of numbers.

    Raises:
        ModelError: an input is not a tensor.
    """
    axes = axes_of(model)
    specs = []
    for value in _fed(model):
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise ModelError(f"input {value.name!r} is not a tensor of known rank; such models cannot be fed from calibration files")
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        except KeyError:
            raise ModelError(f"input {value.name!r} has no element type that can be fed ({kind.elem_type})") from None
        dims = [dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim]
        axis = axes.inputs[value.name]
        dims = [None] if axis is None else [dims[axis], *dims[:axis], *dims[axis + 1 :]]
        specs.append(InputSpec(value.name, dtype, tuple(dims), axis or 0))
    if not specs:
        raise ModelError("the model has no input to feed")
    return specs


def _fed(model: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The inputs that have no value of their own."""
    initial = {tensor.name for tensor in model.graph.initializer} | {tensor.values.name for tensor in model.graph.sparse_initializer}
    return [value for value in model.graph.input if value.name not in initial]


def fixed_batch(specs: list[InputSpec]) -> int | None:
    """The batch size that the inputs prescribe, None when all leave it free.

    Raises:
        ModelError: two inputs prescribe different ones.
    """
    fixed = {spec.name: spec.shape[0] for spec in specs if spec.shape and spec.shape[0] is not None}
    if len(set(fixed.values())) > 1:
        told = ", ".join(f"{name} {size}" for name, size in fixed.items())
        raise ModelError(f"the inputs have different batch sizes on axis 0: {told}; such models cannot be fed batch by batch")
    return next(iter(fixed.values()), None)
