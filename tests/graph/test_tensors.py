import ml_dtypes
import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, node, parse, run
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph.tensors import Constants
from onnxprune.graph.walk import bodies, stored

TYPES = {
    TensorProto.FLOAT: np.float32,
    TensorProto.DOUBLE: np.float64,
    TensorProto.FLOAT16: np.float16,
    TensorProto.BFLOAT16: ml_dtypes.bfloat16,
}
HOLDERS = """g (float[N,2] x) => (float[N,2] y) <float[2] a = {1.0, 2.0}> {
  c = Constant<value = float[2] {3.0, 4.0}>()
  a1 = Identity(a)
  a2 = Identity(a1)
  c1 = Identity(c)
  x1 = Add(x, a2)
  x2 = Add(x1, c1)
  y = Identity(x2)
}"""


def adder(*, readers=1, fed=False, ir_version=8, tensor=None):
    """y0 = x + b, y1 = x + b, ..."""
    nodes = [node("Add", ["x", "b"], [f"y{number}"], name=f"add{number}") for number in range(readers)]
    outputs = [f"y{number}" for number in range(readers)]
    model = build(nodes, {"b": np.array([1, 2], np.float32)}, {"x": ["N", 2]}, outputs, ir_version=ir_version)
    if tensor is not None:
        model.graph.initializer[0].CopyFrom(tensor)
    if fed:
        model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
    return model


@pytest.mark.parametrize(
    ("name", "holder"),
    [
        ("a", "a"),
        ("a1", "a"),
        ("a2", "a"),
        ("c", "c"),
        ("c1", "c"),
        ("x", None),
        ("x1", None),
        ("y", None),
        ("?", None),
        ("", None),
    ],
)
def test_resolve_follows_identities(name, holder):
    constants = Constants(parse(HOLDERS))
    assert constants.resolve(name) == holder
    if holder is None:
        for ask in (constants.read, constants.shape, constants.data_type):
            with pytest.raises(KeyError, match="not a constant"):
                ask(name)
    else:
        np.testing.assert_array_equal(constants.read(name), [1, 2] if holder == "a" else [3, 4])
        assert constants.shape(name) == (2,)
        assert constants.data_type(name) == TensorProto.FLOAT


def test_identities_in_a_ring_end():
    model = onnx.ModelProto(ir_version=8)
    model.graph.node.extend([node("Identity", ["a"], ["b"]), node("Identity", ["b"], ["a"])])
    assert Constants(model).resolve("a") is None


def test_an_identity_of_another_domain_is_no_alias():
    model = build([node("Identity", ["b"], ["c"])], {"b": np.ones(2, np.float32)}, {"x": [2]}, ["c"])
    assert Constants(model).resolve("c") == "b"
    model.graph.node[0].domain = "mine"
    assert Constants(model).resolve("c") is None


def test_read_is_a_copy():
    constants = Constants(adder())
    constants.read("b")[:] = 7
    np.testing.assert_array_equal(constants.read("b"), [1, 2])


@pytest.mark.parametrize("name", ["a", "a2", "c", "c1"])
def test_write_changes_the_holder_where_it_lives(name):
    model = parse(HOLDERS)
    before = len(model.graph.node), len(model.graph.initializer)
    constants = Constants(model)
    constants.write(name, np.array([5, 6], np.float32))
    assert constants.changes.values == {name[0]}
    assert not constants.changes.initializers and not constants.changes.nodes and not constants.changes.inputs
    assert (len(model.graph.node), len(model.graph.initializer)) == before
    other = [3, 4] if name[0] == "a" else [1, 2]
    np.testing.assert_array_equal(run(model, {"x": np.zeros((1, 2), np.float32)})[0], np.add([[5, 6]], other))


def test_write_refuses_another_shape():
    with pytest.raises(ValueError, match=r"b: has shape \(2,\), got values of shape \(1, 2\)"):
        Constants(adder()).write("b", np.ones((1, 2), np.float32))


def test_write_of_something_computed():
    with pytest.raises(KeyError, match="x1: not a constant"):
        Constants(parse(HOLDERS)).write("x1", np.ones(2, np.float32))


floats = st.floats(-60000, 60000, width=16)  # what every one of the types holds, bfloat16 rounded


@settings(max_examples=40, deadline=None)
@given(kind=st.sampled_from(sorted(TYPES)), values=st.lists(floats, min_size=0, max_size=5), raw=st.booleans())
def test_what_is_written_is_read(kind, values, raw):
    dtype = TYPES[kind]
    old = np.zeros(len(values), dtype)
    # make_tensor without raw stores in float_data, double_data, or int32_data for the two 16-bit types
    tensor = numpy_helper.from_array(old, "b") if raw else helper.make_tensor("b", kind, old.shape, old.astype(np.float64))
    constants = Constants(adder(tensor=tensor))
    want = np.array(values).astype(dtype)
    constants.write("b", want)
    got = constants.read("b")
    assert got.dtype == dtype and constants.data_type("b") == kind
    np.testing.assert_array_equal(got.view(np.uint8), want.view(np.uint8))
    held = constants.model.graph.initializer[0]
    assert len(held.raw_data) == want.nbytes
    assert not held.float_data and not held.double_data and not held.int32_data


def test_float_data_is_read():
    tensor = helper.make_tensor("b", TensorProto.FLOAT, [2], [1.5, -2.5])
    assert tensor.float_data
    np.testing.assert_array_equal(Constants(adder(tensor=tensor)).read("b"), np.array([1.5, -2.5], np.float32))


@pytest.mark.parametrize(
    ("kind", "want"),
    # 1 + 2^-9 lies between two bfloat16 (steps of 2^-7 there, ties to even: down) and is exact in the others
    [
        (TensorProto.BFLOAT16, 1.0),
        (TensorProto.FLOAT16, 1 + 2**-9),
        (TensorProto.FLOAT, 1 + 2**-9),
        (TensorProto.DOUBLE, 1 + 2**-9),
    ],
)
def test_write_rounds_once_to_the_tensors_type(kind, want):
    constants = Constants(adder(tensor=helper.make_tensor("b", kind, [], [0.0])))
    constants.write("b", np.array(1 + 2**-9))
    assert constants.read("b").shape == ()
    assert float(constants.read("b")) == want


def test_write_input_changes_in_place_what_one_node_reads():
    model = adder()
    constants = Constants(model)
    constants.write_input(model.graph.node[0], 1, np.array([5, 6]), TensorProto.FLOAT, "stem")
    assert list(model.graph.node[0].input) == ["x", "b"] and len(model.graph.initializer) == 1
    assert constants.changes.values == {"b"} and not constants.changes.initializers and not constants.changes.inputs
    np.testing.assert_array_equal(constants.read("b"), [5, 6])


def test_write_input_gives_one_of_two_readers_a_copy_and_the_last_keeps_the_original():
    model = adder(readers=2)
    constants = Constants(model)
    constants.write_input(model.graph.node[0], 1, np.array([5, 6]), TensorProto.FLOAT, "add0.bias")
    assert list(model.graph.node[0].input) == ["x", "add0.bias"]
    assert constants.changes.initializers == {"add0.bias"} and constants.changes.inputs == {"add0"}
    assert not constants.changes.values
    y0, y1 = run(model, {"x": np.zeros((1, 2), np.float32)})
    np.testing.assert_array_equal(y0, [[5, 6]])
    np.testing.assert_array_equal(y1, [[1, 2]])
    assert constants.readers("b") == 1 and constants.readers("add0.bias") == 1
    constants.write_input(model.graph.node[0], 1, np.array([7, 8]), TensorProto.FLOAT, "add0.bias")  # its own by now
    constants.write_input(model.graph.node[1], 1, np.array([9, 9]), TensorProto.FLOAT, "add1.bias")
    assert [tensor.name for tensor in model.graph.initializer] == ["b", "add0.bias"]
    y0, y1 = run(model, {"x": np.zeros((1, 2), np.float32)})
    np.testing.assert_array_equal(y0, [[7, 8]])
    np.testing.assert_array_equal(y1, [[9, 9]])


def test_write_input_goes_through_the_steps_that_one_node_reads():
    model = parse(
        """g (float[N,2] x) => (float[N,2] y) <float[2] a = {1.0, 2.0}> {
          b = Identity(a)
          y = Add(x, b)
        }"""
    )
    Constants(model).write_input(model.graph.node[1], 1, np.array([5, 6]), TensorProto.FLOAT, "new")
    assert list(model.graph.node[1].input) == ["x", "b"]
    np.testing.assert_array_equal(numpy_helper.to_array(model.graph.initializer[0]), [5, 6])


@pytest.mark.parametrize("case", ["identity", "graph output", "graph input", "body", "other shape"])
def test_write_input_copies_what_others_can_see(case):
    values = np.array([5, 6])
    if case == "identity":
        text = "<float[2] a = {1.0, 2.0}> { b = Identity(a) y = Add(x, b) z = Add(x, b) }"
        model = parse(f"g (float[N,2] x) => (float[N,2] y, float[N,2] z) {text}")
        reader = model.graph.node[1]
    elif case == "body":
        model = parse(
            """g (float[N,2] x, bool c) => (float[N,2] y, float[2] z) <float[2] b = {1.0, 2.0}> {
              y = Add(x, b)
              z = If(c) <then_branch = t () => (float[2] u) { u = Neg(b) }, else_branch = e () => (float[2] v) { v = Abs(b) }>
            }"""
        )
        reader = model.graph.node[0]
    else:
        model = adder(fed=case == "graph input")
        reader = model.graph.node[0]
        if case == "graph output":
            model.graph.output.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [2]))
        if case == "other shape":
            values = np.array([[5, 6]])
    held = model.graph.initializer[0].name
    constants = Constants(model)
    constants.write_input(reader, 1, values, TensorProto.FLOAT, "new")
    assert list(reader.input) == ["x", "new"]
    np.testing.assert_array_equal(constants.read(held), [1, 2])
    np.testing.assert_array_equal(constants.read("new"), values)


def test_before_ir_version_4_an_initializer_is_listed_and_still_the_nodes_own():
    model = adder(ir_version=3)
    assert [value.name for value in model.graph.input] == ["x", "b"]
    constants = Constants(model)
    constants.write_input(model.graph.node[0], 1, np.array([5, 6]), TensorProto.FLOAT, "new")
    assert constants.changes.values == {"b"} and len(model.graph.initializer) == 1


def test_before_ir_version_4_a_new_initializer_is_listed_too():
    model = adder(ir_version=3, readers=2)
    Constants(model).write_input(model.graph.node[0], 1, np.array([5, 6]), TensorProto.FLOAT, "new")
    assert [value.name for value in model.graph.input] == ["x", "b", "new"]
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(run(model, {"x": np.zeros((1, 2), np.float32)})[0], [[5, 6]])


@pytest.mark.parametrize("given", [["x", "w"], ["x", "w", ""]])
def test_write_input_adds_an_absent_input(given):
    model = build([node("Gemm", given, ["y"])], {"w": np.eye(2, dtype=np.float32)}, {"x": ["N", 2]}, ["y"])
    constants = Constants(model)
    constants.write_input(model.graph.node[0], 2, np.array([5, 6]), TensorProto.FLOAT, "y.bias")
    assert list(model.graph.node[0].input) == ["x", "w", "y.bias"]
    assert constants.changes.inputs == {"y"}  # a node without a name goes by its output
    np.testing.assert_array_equal(run(model, {"x": np.zeros((1, 2), np.float32)})[0], [[5, 6]])


def test_fresh_names_collide_with_nothing():
    model = parse(
        """g (float[N,2] x, bool c) => (float[2] y) <float[2] b = {1.0, 2.0}> {
          h = Add(x, b)
          y = If(c) <then_branch = t () => (float[2] u) { u = Neg(b) }, else_branch = e () => (float[2] v) { v = Abs(b) }>
        }"""
    )
    constants = Constants(model)
    for name in ("x", "b", "h", "y", "c"):
        assert constants.fresh(name) == f"{name}_2"
        assert constants.fresh(name) == f"{name}_3"
    assert constants.fresh("new") == "new"
    assert constants.fresh("new") == "new_2"


def test_readers_count_every_reading():
    model = parse(
        """g (float[N,2] x, bool c) => (float[N,2] y, float[2] z) <float[2] b = {1.0, 2.0}> {
          b2 = Add(b, b)
          y = Add(x, b)
          z = If(c) <then_branch = t () => (float[2] u) { u = Neg(b) }, else_branch = e () => (float[2] v) { v = Neg(b) }>
        }"""
    )
    constants = Constants(model)
    assert constants.readers("b") == 5
    assert constants.readers("y") == 1  # the graph's output
    assert constants.readers("nothing") == 0


def test_stored_and_bodies_reach_everywhere():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 21, "mine" : 1]>
        g (bool c) => (float[1] y) <float[1] a = {1.0}> {
          k = Constant<value = float[1] {2.0}>()
          y = If(c) <
            then_branch = t () => (float[1] u) <float[1] i = {3.0}> { q = Constant<value = float[1] {4.0}>() u = Add(i, q) },
            else_branch = e () => (float[1] v) { v = Constant<value = float[1] {5.0}>() }>
        }
        <domain: "mine", opset_import: ["" : 21]> f (z) => (w) { s = Constant<value = float[1] {6.0}>() w = Add(z, s) }"""
    )
    assert sorted(float(numpy_helper.to_array(tensor)[0]) for tensor in stored(model)) == [1, 2, 3, 4, 5, 6]
    assert sorted(body.name for body in bodies(model.graph.node[1])) == ["e", "t"]
