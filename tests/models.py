"""Builders of small ONNX models, and plain ONNX Runtime to look at any tensor in them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser, shape_inference

node = helper.make_node


def build(
    nodes: Sequence[onnx.NodeProto],
    constants: Mapping[str, Any],
    inputs: Mapping[str, Sequence[int | str | None]],
    outputs: Sequence[str],
    *,
    opset: int = 21,
    ir_version: int = 8,
    elem_type: int = TensorProto.FLOAT,
) -> onnx.ModelProto:
    """A model whose initializers are the given arrays; its outputs have the type that shape inference finds, if it finds one."""
    tensors = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    values = [helper.make_tensor_value_info(name, elem_type, list(shape)) for name, shape in inputs.items()]
    if ir_version < 4:  # where every initializer must be listed as an input too
        values += [helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)) for tensor in tensors]
    results = [onnx.ValueInfoProto(name=name) for name in outputs]
    graph = helper.make_graph(list(nodes), "g", values, results, tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir_version)
    inferred = shape_inference.infer_shapes(model).graph.output
    for value, found in zip(model.graph.output, inferred, strict=True):
        value.CopyFrom(found)
    return model


def parse(body: str, *, opset: int = 21, ir_version: int = 8) -> onnx.ModelProto:
    """A model from ONNX's textual form, without its header."""
    return parser.parse_model(f'<ir_version: {ir_version}, opset_import: ["" : {opset}]>\n{body}')


def rand(rng: np.random.Generator, *shape: int, dtype: Any = np.float32) -> NDArray[Any]:
    """Standard normal numbers."""
    return np.asarray(rng.normal(size=shape)).astype(dtype)


def run(model: onnx.ModelProto, feed: Mapping[str, NDArray[Any]], names: Sequence[str] = ()) -> list[NDArray[Any]]:
    """The named tensors of a model (its outputs when none are named), from one whole run of ONNX Runtime on the CPU.

    Graph optimisations are off, so that a tensor inside is what its node gives.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    known = {value.name for value in copy.graph.output}
    copy.graph.output.extend(onnx.ValueInfoProto(name=name) for name in dict.fromkeys(names) if name not in known)
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(copy.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return list(session.run(list(names) or None, dict(feed)))
