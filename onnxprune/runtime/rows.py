"""Rows of a layer's input and output, gathered where the activations are.

A graph of five nodes brings the channels to the end, adds a row of zeros for the padding, and gathers what the index asks for: what goes
on, or leaves the device, are the rows that were sampled, not the activations.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune.runtime.device import Device
from onnxprune.runtime.session import open_session, run_bound, to_device


def gather(value: Any, order: Sequence[int], index: NDArray[np.int64], device: Device) -> Any:
    """Rows of an OrtValue, float32 (R, channels * taps), as one on the same device: channel after channel, the taps of each together.

    Args:
        value: the activations.
        order: the permutation of its axes that brings the channels to the end.
        index: int64 (R, taps): rows of the permuted tensor; its number of rows stands for zeros.
    """
    channels = value.shape()[order[-1]]
    total = int(np.prod(value.shape(), dtype=np.int64)) // channels
    session = _session(tuple(order), channels, index.shape[1], bool((index == total).any()), value.element_type(), device)
    return run_bound(session, {"x": value, "index": to_device(index.ravel(), device)}, ["rows"], device)["rows"]


@functools.lru_cache(maxsize=16)
def _session(order: tuple[int, ...], channels: int, taps: int, padded: bool, elem_type: int, device: Device) -> Any:
    nodes = [helper.make_node("Cast", ["x"], ["x32"], to=onnx.TensorProto.FLOAT)]
    last = "x32"
    if list(order) != sorted(order):
        nodes.append(helper.make_node("Transpose", [last], ["moved"], perm=list(order)))
        last = "moved"
    initializers = [numpy_helper.from_array(np.array([-1, channels], np.int64), "flat")]
    nodes.append(helper.make_node("Reshape", [last, "flat"], ["all"]))
    table = "all"
    if padded:  # a kernel of one tap may have it too: with pads, or transposed with a stride
        initializers.append(numpy_helper.from_array(np.zeros((1, channels), np.float32), "zeros"))
        nodes.append(helper.make_node("Concat", ["all", "zeros"], ["padded"], axis=0))
        table = "padded"
    nodes.append(helper.make_node("Gather", [table, "index"], ["picked"], axis=0))
    if taps > 1:
        initializers.append(numpy_helper.from_array(np.array([-1, taps, channels], np.int64), "patches"))
        initializers.append(numpy_helper.from_array(np.array([-1, taps * channels], np.int64), "wide"))
        nodes.append(helper.make_node("Reshape", ["picked", "patches"], ["by_tap"]))
        nodes.append(helper.make_node("Transpose", ["by_tap"], ["by_channel"], perm=[0, 2, 1]))
        nodes.append(helper.make_node("Reshape", ["by_channel", "wide"], ["rows"]))
    else:
        nodes.append(helper.make_node("Identity", ["picked"], ["rows"]))
    inputs = [
        helper.make_tensor_value_info("x", elem_type, [f"d{axis}" for axis in range(len(order))]),
        helper.make_tensor_value_info("index", onnx.TensorProto.INT64, ["n"]),
    ]
    outputs = [helper.make_tensor_value_info("rows", onnx.TensorProto.FLOAT, None)]
    graph = helper.make_graph(nodes, "rows", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=7)
    return open_session(model.SerializeToString(), device, lean=True)
