"""Sessions of models whose values were left in files."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import mapped
from onnxprune.graph.mapped import covered, multiplied
from onnxprune.graph.model import load
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import open_session, run_session, session_of

RNG = np.random.default_rng(0)


def saved(folder: Path, kind: int) -> Path:
    """x (N, 6) times a weight of the type, cast to float32."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    weight = numpy_helper.from_array(RNG.integers(-8, 8, (6, 4)).astype(dtype), "w")
    nodes = [
        helper.make_node("Cast", ["w"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "c"], ["y"]),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(nodes, "net", [value("x", 1, ["N", 6])], [value("y", 1, ["N", 4])], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.save_model(model, str(folder / "net.onnx"), save_as_external_data=True, location="w.bin", size_threshold=0)
    return folder / "net.onnx"


@pytest.mark.parametrize("kind", ["FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "INT8"])
def test_it_computes_with_what_is_in_the_file_and_its_changes(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(mapped, "LARGE", 1)
    loaded = load(saved(tmp_path, TensorProto.DataType.Value(kind)), mapped=0)
    (tensor,) = loaded.model.graph.initializer
    assert covered([tensor], np.arange(24).reshape(6, 4) % 3 > 0)
    if kind != "INT8":
        assert multiplied([tensor], np.array([1.0, 2, -1, 0.5]), 1)
    before = loaded.model.SerializeToString(deterministic=True)
    x = RNG.integers(-3, 3, (5, 6)).astype(np.float32)
    expected = x @ mapped.values_of(tensor).astype(np.float32)  # small numbers: exact in every order
    with session_of(loaded.model, Device("cpu")) as session:
        np.testing.assert_array_equal(run_session(session, {"x": x}, ["y"])[0], expected)
    session = open_session(loaded.model, Device("cpu"), lean=True)
    np.testing.assert_array_equal(run_session(session, {"x": x}, ["y"])[0], expected)
    assert loaded.model.SerializeToString(deterministic=True) == before
