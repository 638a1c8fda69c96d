"""Store weights sparse, and prove that ONNX Runtime reads what was dense."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.clock import Clock
from onnxprune.errors import ModelError
from onnxprune.graph import sparse
from onnxprune.graph.model import Loaded
from onnxprune.options import Options
from onnxprune.report import Report
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import run_session, session_of
from onnxprune.runtime.stream import Batch


def stored(
    given: Loaded, product: onnx.ModelProto, report: Report, options: Options, clock: Clock, batch: Callable[[], Batch | None]
) -> tuple[onnx.ModelProto, Report, tuple[int, int]]:
    """The product with its initializers stored as they came, or sparse if that is asked for, and the report on it.

    The two numbers are the bytes that sparse initializers would save in the model that was given and in the product, beyond those that
    each has. Works on the product in place.

    Raises:
        ModelError: as store_sparse does.
    """
    saved = (sparse.saved(given.model, given.sparse), sparse.saved(product, given.sparse))
    sparse.restore(product, given.sparse)
    if not options.sparse_initializers:
        return product, report, saved
    with clock.phase("sparse initializers"):
        names = store_sparse(product, batch(), options.threads)
    notes = (*report.notes, sparse.NOTE) if names else report.notes
    changes = replace(report.changes, sparse=names)
    return product, replace(report, changes=changes, notes=notes, seconds=dict(clock.seconds)), (saved[0], 0)


def store_sparse(model: onnx.ModelProto, batch: Batch | None, threads: int = 0) -> tuple[str, ...]:
    """Move the model's initializers to sparse ones, in place, wherever that takes fewer bytes; gives back their names.

    ONNX Runtime must then read every one of them bit by bit as it was and, on the batch, give bit by bit the outputs that it gave before.

    Raises:
        ModelError: it does not, or the model cannot hold sparse initializers.
    """
    device = Device("cpu", threads=threads)
    before = None if batch is None else _outputs(model, batch, device)
    names = sparse.move(model)
    if not names:
        return ()
    moved = set(names)
    _same_values([entry for entry in model.graph.sparse_initializer if entry.values.name in moved], device)
    if batch is not None and before is not None:
        for name, value in _outputs(model, batch, device).items():
            if value.tobytes() != before[name].tobytes():
                raise ModelError(f"with sparse initializers, ONNX Runtime gives another output {name!r}; leave --sparse-initializers out")
    return names


def _outputs(model: onnx.ModelProto, batch: Batch, device: Device) -> dict[str, NDArray[np.generic]]:
    """The outputs that are tensors of numbers, by name."""
    with session_of(model, device) as session:
        names = [value.name for value in session.get_outputs() if value.type.startswith("tensor(") and value.type != "tensor(string)"]
        return dict(zip(names, run_session(session, batch, names), strict=True)) if names else {}


def _same_values(stored: list[onnx.SparseTensorProto], device: Device) -> None:
    """Raises ModelError when ONNX Runtime reads a sparse initializer as other values than ours."""
    graph = onnx.GraphProto(name="sparse", sparse_initializer=stored)
    for number, entry in enumerate(graph.sparse_initializer):  # copies, under names that no output has
        entry.values.name = f"stored_{number}"
        # NumPy has no bfloat16, and every one of them is a float.
        kind = TensorProto.FLOAT if entry.values.data_type == TensorProto.BFLOAT16 else entry.values.data_type
        graph.node.append(helper.make_node("Cast", [entry.values.name], [f"read_{number}"], to=kind))
        graph.output.append(helper.make_tensor_value_info(f"read_{number}", kind, entry.dims))
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    with session_of(model, device) as session:
        for number, entry in enumerate(stored):
            (value,) = run_session(session, {}, [f"read_{number}"])
            ours = numpy_helper.to_array(sparse.dense(entry)).astype(value.dtype)
            if value.shape != ours.shape or value.tobytes() != ours.tobytes():
                raise ModelError(
                    f"ONNX Runtime reads the sparse initializer {entry.values.name!r} as other values; leave --sparse-initializers out"
                )
