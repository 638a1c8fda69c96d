"""Small tensors that a graph computes from constants alone: the shapes, paddings and slices that exporters write out node by node.

onnx's shape inference follows a part of that arithmetic; PyTorch's paddings and strided slices are beyond it.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping
from math import prod
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from onnxprune.graph.walk import CORE

MOST = 256
"""Elements of the largest tensor that is computed: what is larger is no shape."""
_NAMES = """
Add Cast Concat ConstantOfShape Div Equal Gather Identity Mul Range Reshape Shape Slice Squeeze Sub Transpose Unsqueeze Where
"""
KNOWN = frozenset(_NAMES.split())
"""Operators that give no more than the product of what they read, but for ConstantOfShape and Range, whose sizes are looked at first."""


def computed(node: onnx.NodeProto, known: Mapping[str, NDArray[Any]], opset: int) -> NDArray[Any] | None:
    """What a node of one output gives, where its inputs are known, small, and their arithmetic is plain; None where they are not.

    ``known``: tensor -> its values, of `MOST` elements at most, any dtype.
    """
    if node.op_type == "Constant":
        found = next((numpy_helper.to_array(entry.t) for entry in node.attribute if entry.name == "value"), None)
    elif node.op_type in KNOWN and node.domain in CORE and len(node.output) == 1 and all(name in known for name in node.input if name):
        given = [known[name] if name else None for name in node.input]
        # Where weights are shared, exporters write Identity and nothing else: no need to import the rest for it.
        found = given[0] if node.op_type == "Identity" and len(given) == 1 else _run(node, given, opset)
    else:
        return None
    return found if found is not None and found.size <= MOST else None


def _run(node: onnx.NodeProto, given: list[NDArray[Any] | None], opset: int) -> NDArray[Any] | None:
    """The node's output by onnx's reference implementation; None where it would be large, or fails."""
    if node.op_type == "ConstantOfShape" and (given[0] is None or not 0 <= prod(int(dim) for dim in given[0].ravel()) <= MOST):
        return None
    if node.op_type == "Range" and not _short(given):
        return None
    bare = onnx.NodeProto(op_type=node.op_type, attribute=node.attribute)
    bare.input.extend(f"i{place}" if value is not None else "" for place, value in enumerate(given))
    values = tuple(None if value is None else (value.dtype, value.shape, value.tobytes()) for value in given)
    return _evaluated(bare.SerializeToString(deterministic=True), values, opset)


@functools.lru_cache(4096)
def _evaluated(data: bytes, values: tuple[tuple[np.dtype[Any], tuple[int, ...], bytes] | None, ...], opset: int) -> NDArray[Any] | None:
    """What a serialized node gives for such inputs, not to be changed; an exporter writes the same ones at every layer."""
    from onnx.reference import ReferenceEvaluator  # takes longer to import than most models need it

    with contextlib.suppress(Exception), np.errstate(all="ignore"):  # whatever is wrong with it, the runtime will say so
        node = onnx.NodeProto.FromString(data)
        node.output.append("y")
        graph = onnx.helper.make_graph([node], "one", [onnx.ValueInfoProto(name=name) for name in node.input if name], [])
        graph.output.add(name="y")
        model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", opset)])
        told = zip(node.input, values, strict=True)
        feed = {name: np.frombuffer(value[2], value[0]).reshape(value[1]) for name, value in told if value is not None}
        outputs: list[Any] = list(ReferenceEvaluator(model).run(None, feed))
        return np.asarray(outputs[0])
    return None


def _short(given: list[NDArray[Any] | None]) -> bool:
    """True for a Range of `MOST` elements at most."""
    start, limit, delta = (np.inf if value is None or value.size != 1 else float(value.ravel()[0]) for value in given)
    return bool(delta) and abs(limit - start) / abs(delta) <= MOST
