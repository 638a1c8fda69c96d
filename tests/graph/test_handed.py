"""A model without its large values, and these beside it: together they are what the model is."""

import math

import numpy as np
import onnx
import onnxruntime
import pytest
from networks import twins
from onnx import TensorProto, helper, numpy_helper

from onnxprune import prune
from onnxprune.graph.handed import ALIGNED, LEAST, TYPES, apart
from onnxprune.runtime import session
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import open_session, run_session

value = helper.make_tensor_value_info


def tensor(name: str, kind: int, *shape: int) -> TensorProto:
    """Random bytes as a tensor in raw form; numbers from -8 to 7 where the type has a NumPy dtype."""
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    numbers = np.random.default_rng(len(name)).integers(-8, 8, shape)
    return numpy_helper.from_array(np.abs(numbers).astype(dtype) if dtype.kind == "u" else numbers.astype(dtype), name)


def model_of(*initializers: TensorProto, fed: tuple[str, ...] = ()) -> onnx.ModelProto:
    """y = x, a node that reads all else, and all that a model may have beside its nodes."""
    inputs = [value("x", 1, ["N", 4]), *(value(t.name, t.data_type, list(t.dims)) for t in initializers if t.name in fed)]
    nodes = [helper.make_node("Identity", ["x"], ["y"]), helper.make_node("F", [entry.name for entry in initializers], [], domain="own")]
    graph = helper.make_graph(nodes, "net", inputs, [value("y", 1, ["N", 4])], list(initializers))
    graph.doc_string = "a graph"
    graph.value_info.append(value("z", 1, [3]))
    function = helper.make_function("own", "F", ["a"], ["b"], [helper.make_node("Relu", ["a"], ["b"])], [helper.make_opsetid("", 17)])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    made = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=8, producer_name="somebody")
    helper.set_model_props(made, {"key": "value"})
    return made


def together(slim: onnx.ModelProto, values: dict) -> bytes:
    """The model with its values back inside."""
    whole = onnx.ModelProto()
    whole.CopyFrom(slim)
    for held in whole.graph.initializer:
        if held.name in values:
            array, kind = values[held.name]
            assert (tuple(held.dims), held.data_type) == (array.shape, kind)
            held.CopyFrom(TensorProto(name=held.name, data_type=kind, dims=array.shape, raw_data=array.tobytes()))
    return whole.SerializeToString(deterministic=True)


LARGE = [tensor(f"w{kind}", kind, 2, LEAST // 2) for kind in TYPES]


def test_the_two_parts_are_the_model_which_stays_as_it_is():
    small = tensor("small", TensorProto.FLOAT, LEAST // 4 - 1)
    dims, words = tensor("dims", TensorProto.INT64, LEAST), helper.make_tensor("words", TensorProto.STRING, [1], [b"w" * LEAST])
    four = helper.make_tensor("four", TensorProto.INT4, [2 * LEAST], b"\x12" * LEAST, raw=True)
    fed, loose = tensor("fed", TensorProto.FLOAT, LEAST), helper.make_tensor("loose", TensorProto.FLOAT, [LEAST], np.ones(LEAST))
    model = model_of(*LARGE, small, dims, words, four, fed, loose, fed=("fed",))
    before = model.SerializeToString(deterministic=True)
    slim, values = apart(model)
    assert model.SerializeToString(deterministic=True) == before == together(slim, values)
    assert set(values) == {t.name for t in LARGE}  # those that may be large, and nothing else
    assert slim.ByteSize() < len(before) - sum(len(t.raw_data) for t in LARGE) + 100 * len(LARGE)


def test_values_lie_where_they_always_lie():
    _, values = apart(model_of(*LARGE))
    assert len(values) == len(TYPES)
    for array, _ in values.values():
        assert array.ctypes.data % ALIGNED == 0


def test_the_least_size_is_that_of_the_values():
    exact = tensor("exact", TensorProto.FLOAT, LEAST // 4)
    assert set(apart(model_of(exact, tensor("less", TensorProto.FLOAT16, LEAST // 2 - 1)))[1]) == {"exact"}


@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
def test_what_nothing_reads_is_left_out(repair):
    """The runtime takes a model with a large tensor that no node reads, so we do; the file that goes out still has it."""
    unread = tensor("unread", TensorProto.FLOAT, LEAST)
    slim, values = apart(model_of(unread, *LARGE))
    assert "unread" in {entry.name for entry in slim.graph.initializer} | set(values)  # the node reads it
    model, _ = twins()
    model.graph.initializer.append(unread)
    slim, values = apart(model)
    assert "unread" not in {entry.name for entry in slim.graph.initializer} | set(values)
    samples = np.random.default_rng(0).normal(size=(32, 3, 8, 8)).astype(np.float32)
    result = prune(model, samples, sparsity=0.5, repair=repair)
    assert result.model.graph.initializer[-1] == unread


@pytest.mark.parametrize("kind", TYPES)
def test_a_session_computes_with_them_bit_by_bit(kind, monkeypatch):
    """y = x W, and a convolution, whose weight the runtime lays out anew."""
    monkeypatch.setitem(session.HANDED, "cpu", 1)
    matrix, kernel = tensor("W", kind, 12, 6), tensor("K", TensorProto.FLOAT, 16, 16, 3, 3)
    nodes = [
        helper.make_node("Cast", ["W"], ["w"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Conv", ["p", "K"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c"], ["z"]),
    ]
    inputs = [value("x", 1, [5, 12]), value("p", 1, [1, 16, 8, 8])]
    graph = helper.make_graph(nodes, "net", inputs, [value("y", 1, [5, 6]), value("z", 1, [1, 16, 8, 8])], [matrix, kernel])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    rng = np.random.default_rng(0)
    feed = {name: rng.normal(size=shape).astype(np.float32) for name, shape in (("x", (5, 12)), ("p", (1, 16, 8, 8)))}
    plain = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(["y", "z"], feed)
    assert math.prod(matrix.dims) == 72
    assert set(apart(model, 1)[1]) == {"W", "K"}
    opened = open_session(model, Device("cpu"))
    del model, graph, matrix, kernel  # the session holds what it reads
    for expected, got in zip(plain, run_session(opened, feed, ["y", "z"]), strict=True):
        np.testing.assert_array_equal(got, expected)
