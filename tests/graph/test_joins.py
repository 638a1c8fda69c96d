"""What follows a layer's output: the Add that joins it with another branch, and the flat sides of the activation behind."""

import math

import numpy as np
import onnx
import pytest
from models import build, node, parse
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import layers
from onnxprune.graph.joins import Join, join_of
from onnxprune.graph.points import points
from onnxprune.graph.tensors import Constants
from onnxprune.graph.walk import readers

WEIGHTS = {name: np.ones((2, 2, 1, 1), np.float32) for name in ("w", "v")} | {"b": np.ones((2, 1, 1), np.float32)}


def conv(output, weight="w", source="x"):
    return node("Conv", [source, weight], [output], weight)


def model_of(nodes, *outputs, opset=21, **constants):
    """A model of these nodes on x (N, 2, 3, 3)."""
    used = {name for each in nodes for name in each.input}
    held = {name: value for name, value in (WEIGHTS | constants).items() if name in used}
    return build(nodes, held, {"x": ["N", 2, 3, 3]}, outputs or [nodes[-1].output[0]], opset=opset)


def join(model, layer="w"):
    """The join at a layer's point of repair."""
    point = next(point for point in points(layers.find(model)) if point.name == layer)
    return join_of(model, Constants(model), readers(model), point.dense_tensor, point.use.node)


# ---- the Add


@pytest.mark.parametrize("order", [["y", "o"], ["o", "y"]])
def test_the_other_branch_made_before(order):
    assert join(model_of([node("Tanh", ["x"], ["o"]), conv("y"), node("Add", order, ["s"])])) == Join("s", "o")


@pytest.mark.parametrize("order", [["y", "o"], ["o", "y"]])
def test_the_other_branch_made_after_does_not_count(order):
    nodes = [conv("y"), node("Tanh", ["x"], ["o"]), node("Add", order, ["s"]), node("Relu", ["s"], ["r"])]
    assert join(model_of(nodes)) == Join("y")


def test_of_two_layers_in_a_sum_the_last_one_makes_up_for_the_first():
    model = model_of([conv("y"), conv("z", "v"), node("Add", ["y", "z"], ["s"]), node("Relu", ["s"], ["r"])])
    assert (join(model, "w"), join(model, "v")) == (Join("y"), Join("s", "y", 0.0))


def test_the_bias_is_no_join():
    """The layer's output is behind that Add already; what counts is what follows it."""
    model = model_of([conv("y"), node("Add", ["y", "b"], ["s"]), node("Relu", ["s"], ["r"])])
    assert join(model) == Join("s", None, 0.0)


@pytest.mark.parametrize("shape", [(2, 3, 3), (3,), (1, 2, 3, 1)])
def test_a_constant_that_is_no_bias_is_no_join_either(shape):
    model = model_of([conv("y"), node("Add", ["y", "c"], ["s"]), node("Relu", ["s"], ["r"])], c=np.ones(shape, np.float32))
    assert join(model) == Join("y")


@pytest.mark.parametrize("alias", [False, True])
def test_a_constant_that_a_node_makes_is_none_either(alias):
    made = node("Constant", [], ["o"], value=numpy_helper.from_array(np.ones((2, 3, 3), np.float32)))
    first = [node("Identity", ["c"], ["o"])] if alias else [made]
    model = model_of([*first, conv("y"), node("Add", ["y", "o"], ["s"])], c=np.ones((2, 3, 3), np.float32))
    assert join(model) == Join("y")


def test_an_output_added_to_itself():
    assert join(model_of([conv("y"), node("Add", ["y", "y"], ["s"])])) == Join("y")


def test_a_join_behind_a_bias():
    sums = [node("Add", ["b", "y"], ["z"]), node("Add", ["o", "z"], ["s"])]
    nodes = [node("Tanh", ["x"], ["o"]), conv("y"), *sums, node("Relu", ["s"], ["r"])]
    assert join(model_of(nodes)) == Join("s", "o", 0.0)


def test_a_join_behind_a_batchnorm():
    constants = {name: np.ones(2, np.float32) for name in ("scale", "bias", "mean", "var")}
    nodes = [
        node("Tanh", ["x"], ["o"]),
        conv("y"),
        node("BatchNormalization", ["y", *constants], ["z"]),
        node("Add", ["o", "z"], ["s"]),
        node("Clip", ["s", "low", "high"], ["r"]),
    ]
    model = model_of(nodes, **constants, low=np.float32(-1), high=np.float32(6))
    assert join(model) == Join("s", "o", -1.0, 6.0)


@pytest.mark.parametrize("op", ["Sub", "Mul", "Sum"])
def test_only_an_add_joins(op):
    assert join(model_of([node("Tanh", ["x"], ["o"]), conv("y"), node(op, ["y", "o"], ["s"])])) == Join("y")


# ---- several readers


def test_an_output_read_twice():
    nodes = [node("Tanh", ["x"], ["o"]), conv("y"), node("Add", ["y", "o"], ["s"]), node("Relu", ["y"], ["r"])]
    assert join(model_of(nodes, "s", "r")) == Join("y")


def test_a_sum_read_twice_has_no_activation():
    nodes = [node("Tanh", ["x"], ["o"]), conv("y"), node("Add", ["y", "o"], ["s"]), node("Relu", ["s"], ["r"]), node("Exp", ["s"], ["e"])]
    assert join(model_of(nodes, "r", "e")) == Join("s", "o")


def test_a_graph_output_is_a_reader():
    nodes = [node("Tanh", ["x"], ["o"]), conv("y"), node("Add", ["y", "o"], ["s"]), node("Relu", ["s"], ["r"])]
    assert join(model_of(nodes, "r", "y")) == Join("y")
    assert join(model_of(nodes, "r", "s")) == Join("s", "o")
    assert join(model_of([conv("y"), node("Relu", ["y"], ["r"])], "r", "y")) == Join("y")


def with_if(reads):
    """The nodes of a model in which the branches of an If read a tensor from outside."""
    value = helper.make_tensor_value_info("made", TensorProto.FLOAT, None)
    bodies = {
        name: helper.make_graph([helper.make_node(op, [reads], ["made"])], name, [], [value])
        for name, op in (("then_branch", "Neg"), ("else_branch", "Exp"))
    }
    return node("If", ["flag"], ["out"], **bodies)


def test_a_body_is_a_reader():
    nodes = [node("Tanh", ["x"], ["o"]), conv("y"), node("Add", ["y", "o"], ["s"]), node("Relu", ["s"], ["r"])]
    for reads, found in (("y", Join("y")), ("s", Join("s", "o")), ("r", Join("s", "o", 0.0))):
        assert join(model_of([*nodes, with_if(reads)], "r", "out", flag=np.array(True))) == found


def test_readers_by_hand():
    nodes = [conv("y"), node("Add", ["y", "y"], ["s"]), node("Relu", ["s"], ["r"]), with_if("s")]
    found = readers(model_of(nodes, "r", "out", "s", flag=np.array(True)))
    assert {name: sorted(numbers) for name, numbers in found.items()} == {
        "x": [0], "w": [0], "y": [1, 1], "s": [-1, -1, -1, 2], "flag": [3], "r": [-1], "out": [-1], "made": [-1, -1]
    }  # fmt: skip


# ---- the activation


@pytest.mark.parametrize("op", ["Tanh", "LeakyRelu", "HardSigmoid", "Identity"])
def test_no_flat_side(op):
    assert join(model_of([conv("y"), node(op, ["y"], ["r"])])) == Join("y", None, -math.inf, math.inf)


def test_relu():
    assert join(model_of([conv("y"), node("Relu", ["y"], ["r"])])) == Join("y", None, 0.0, math.inf)


@pytest.mark.parametrize(
    ("attributes", "bounds"),
    [({}, (-math.inf, math.inf)), ({"min": 0.0}, (0, math.inf)), ({"max": 6.0}, (-math.inf, 6)), ({"min": -0.5, "max": 6.0}, (-0.5, 6))],
)
def test_clip_by_attributes(attributes, bounds):
    assert join(model_of([conv("y"), node("Clip", ["y"], ["r"], **attributes)], opset=10)) == Join("y", None, *bounds)


@pytest.mark.parametrize(
    ("names", "bounds"),
    [
        ([], (-math.inf, math.inf)),
        (["low"], (0, math.inf)),
        (["", "high"], (-math.inf, 6)),
        (["low", "high"], (0, 6)),
        (["low", "vector"], (0, 6)),
    ],
)
@pytest.mark.parametrize("kind", ["initializer", "constant", "alias"])
def test_clip_by_inputs(names, bounds, kind):
    values = {"low": np.float32(0), "high": np.float32(6), "vector": np.array([6], np.float32)}
    nodes = [conv("y"), node("Clip", ["y", *names], ["r"])]
    if kind == "constant":
        made = [node("Constant", [], [name], value=numpy_helper.from_array(np.asarray(values[name]))) for name in names if name]
        assert join(model_of([*made, *nodes], "r")) == Join("y", None, *bounds)
    elif kind == "alias":
        renamed = [node("Identity", [f"{name}_held"], [name]) for name in names if name]
        held = {f"{name}_held": values[name] for name in names if name}
        assert join(model_of([*renamed, *nodes], "r", **held)) == Join("y", None, *bounds)
    else:
        assert join(model_of(nodes, **values)) == Join("y", None, *bounds)


def test_a_bound_computed_at_run_time_is_none():
    nodes = [node("ReduceMax", ["x"], ["top"], keepdims=0), conv("y"), node("Clip", ["y", "low", "top"], ["r"])]
    assert join(model_of(nodes, low=np.float32(0))) == Join("y", None, 0.0, math.inf)


def test_a_layer_that_is_the_bound_of_a_clip_has_no_activation():
    model = parse("""
        agraph (float[1, 1, 1, 1] x, float[2, 3] z) => (float[2, 3] r) <float[1, 1, 1, 1] w = {2.0}, float low = {0.0}> {
            y = Conv(x, w)
            r = Clip(z, low, y)
        }""")
    point = points(layers.find(model))[0]
    assert join_of(model, Constants(model), readers(model), point.dense_tensor, point.use.node) == Join("y")


def test_other_domains_are_other_operators():
    """A function or a custom operator may be called Add or Relu and do something else."""
    nodes = [node("Tanh", ["x"], ["o"]), conv("y"), node("Add", ["y", "o"], ["s"], domain="mine")]
    model = model_of([conv("y")])
    model.opset_import.append(helper.make_opsetid("mine", 1))
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    model.graph.output[0].CopyFrom(onnx.ValueInfoProto(name="s"))
    assert join(model) == Join("y")
    model.graph.node[2].CopyFrom(node("Relu", ["y"], ["s"], domain="mine"))
    assert join(model) == Join("y")
