"""What a model must be fed: its inputs, and the batch size that they prescribe."""

from __future__ import annotations

import numpy as np
import onnx

from onnxprune.errors import ModelError
from onnxprune.runtime.calibration import InputSpec


def input_specs(model: onnx.ModelProto) -> list[InputSpec]:
    """Name, dtype and shape of every input that must be fed.

    Raises:
        ModelError: an input is not a tensor.
    """
    initial = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in initial:
            continue
        kind = value.type.tensor_type
        if not value.type.HasField("tensor_type") or not kind.HasField("shape"):
            raise ModelError(f"input {value.name!r} is not a tensor of known rank; such models cannot be fed from calibration files")
        try:
            dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        except KeyError:
            raise ModelError(f"input {value.name!r} has no element type that can be fed ({kind.elem_type})") from None
        dims = tuple(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None for dim in kind.shape.dim)
        specs.append(InputSpec(value.name, dtype, dims))
    if not specs:
        raise ModelError("the model has no input to feed")
    return specs


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
