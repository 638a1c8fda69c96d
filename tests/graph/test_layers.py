import numpy as np
import onnx
import pytest
from models import build, node, parse, rand
from onnx import TensorProto, helper, numpy_helper, parser

from onnxprune.graph.layers import Bias, Found, Skipped, find

RNG = np.random.default_rng(0)


def one(nodes, constants, inputs, outputs=("y",), **more):
    """The only layer of a model and its only use."""
    found = find(build(nodes, constants, inputs, outputs, **more))
    assert not found.skipped and len(found.layers) == 1, found
    (layer,) = found.layers
    (use,) = layer.uses
    return layer, use


def reasons(model):
    return {entry.name: entry.reason for entry in find(model).skipped}


def norm_constants(channels=4, prefix=""):
    return {f"{prefix}{name}": np.ones(channels, np.float32) for name in "sbmv"}


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", [False, True])
def test_conv(spatial, group, bias):
    weight = rand(RNG, 8, 4 // group, *[3] * spatial)
    constants = {"w": weight} | ({"b": rand(RNG, 8)} if bias else {})
    layer, use = one([node("Conv", ["x", *constants], ["y"], name="c", group=group)], constants, {"x": [1, 4, *[5] * spatial]})
    assert (layer.name, layer.op, layer.weight, layer.shape) == ("c", "Conv", "w", weight.shape)
    assert layer.size == weight.size
    assert (use.node, use.op, use.output, use.axis, use.weight_axis, use.group) == (0, "Conv", "y", 1, 0, group)
    assert use.channels == 8 and use.bias_index == 2
    assert use.bias == (Bias(0, 2) if bias else None)


def test_depthwise_conv():
    _, use = one([node("Conv", ["x", "w"], ["y"], group=4)], {"w": rand(RNG, 4, 1, 3, 3)}, {"x": [1, 4, 5, 5]})
    assert use.channels == 4 and use.group == 4


@pytest.mark.parametrize("group", [1, 2])
def test_conv_transpose_counts_the_channels_of_all_groups(group):
    layer, use = one([node("ConvTranspose", ["x", "w"], ["y"], group=group)], {"w": rand(RNG, 4, 3, 2, 2)}, {"x": [1, 4, 5, 5]})
    assert layer.op == "ConvTranspose" and use.weight_axis == 1 and use.channels == 3 * group and use.axis == 1


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [None, (), (1,), (3,), (1, 3), (1, 1), (2, 3), (2, 1)])
@pytest.mark.parametrize("beta", [1.0, 0.5, 0.0])
def test_gemm(transposed, shape, beta):
    constants = {"w": rand(RNG, *((3, 5) if transposed else (5, 3)))} | ({} if shape is None else {"c": rand(RNG, *shape)})
    made = node("Gemm", ["x", *constants], ["y"], transB=transposed, transA=1, alpha=2.0, beta=beta)
    layer, use = one([made], constants, {"x": [5, 2]})
    assert use.axis == 1 and use.channels == 3 and use.weight_axis == 1 - transposed
    assert layer.name == "y"  # a node without a name goes by its output
    per_channel = shape not in (None, (2, 3), (2, 1))
    assert use.bias == (Bias(0, 2, beta) if per_channel and beta else None)
    assert use.bias_index == (2 if beta and (per_channel or shape is None) else None)


@pytest.mark.parametrize(
    ("inputs", "shape", "axis", "weight_axis", "channels"),
    [
        (["x", "w"], (5, 3), -1, 1, 3),
        (["w", "x"], (5, 3), -2, 0, 5),
        (["x", "w"], (2, 5, 3), -1, 2, 3),
        (["w", "x"], (2, 5, 3), -2, 1, 5),
    ],
)
def test_matmul(inputs, shape, axis, weight_axis, channels):
    layer, use = one([node("MatMul", inputs, ["y"])], {"w": rand(RNG, *shape)}, {"x": [2, shape[-2 if axis == -2 else -1], None]})
    assert layer.weight == "w" and layer.shape == shape
    assert (use.axis, use.weight_axis, use.channels, use.bias, use.bias_index) == (axis, weight_axis, channels, None, None)


ADDS = [
    # operator, the constant's shape, and whether it is a bias (None: of a layer with 4 channels)
    ("MatMul", (3,), True),
    ("MatMul", (1, 3), True),
    ("MatMul", (1, 1, 3), True),
    ("MatMul", (1,), False),
    ("MatMul", (), False),
    ("MatMul", (2, 3), False),
    ("MatMul", (3, 1), False),
    ("MatMul", (4,), None),
    ("Gemm", (3,), True),
    ("Gemm", (1, 3), True),
    ("Gemm", (1,), False),
    ("Gemm", (3, 1), False),
    ("Left", (3, 1), True),
    ("Left", (1, 3, 1), True),
    ("Left", (3,), False),
    ("Left", (3, 3), False),
    ("Conv2", (3, 1, 1), True),
    ("Conv2", (1, 3, 1, 1), True),
    ("Conv2", (3, 1), False),  # along the height
    ("Conv2", (3,), False),  # along the width
    ("Conv2", (1, 3, 3, 1), False),
    ("Conv2", (3, 1, 1, 1), False),  # along the batch
    ("Conv2", (1, 1, 3, 1, 1), False),  # makes the output a rank higher
    ("Conv2", (1, 1, 1), False),
    ("Conv1", (3, 1), True),
    ("Conv1", (1, 3, 1), True),
    ("Conv1", (3, 1, 1), False),
    ("Conv3", (3, 1, 1, 1), True),
    ("Conv3", (3, 1, 1), False),
]


@pytest.mark.parametrize(("kind", "shape", "is_bias"), ADDS)
@pytest.mark.parametrize("swapped", [False, True])
def test_a_bias_in_the_add_behind(kind, shape, is_bias, swapped):
    if kind.startswith("Conv"):
        rank = int(kind[-1])
        first, weight, inputs = node("Conv", ["x", "w"], ["h"]), rand(RNG, 3, 3, *[1] * rank), {"x": [3, 3, *[3] * rank]}
    elif kind == "Left":
        first, weight, inputs = node("MatMul", ["w", "x"], ["h"]), rand(RNG, 3, 3), {"x": [2, 3, 3]}
    else:
        first, weight, inputs = node(kind, ["x", "w"], ["h"]), rand(RNG, 3, 3), {"x": [3, 3] if kind == "Gemm" else [2, 3, 3]}
    if is_bias is None:
        shape, is_bias, weight, inputs = (4,), True, rand(RNG, 3, 4), {"x": [2, 3, 3]}
    second = node("Add", ["c", "h"] if swapped else ["h", "c"], ["y"])
    _, use = one([first, second], {"w": weight, "c": rand(RNG, *shape)}, inputs)
    assert use.bias == (Bias(1, 0 if swapped else 1) if is_bias else None)
    assert use.output == ("y" if is_bias else "h")


def test_an_add_of_another_tensor_is_no_bias():
    _, use = one([node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "x"], ["y"])], {"w": rand(RNG, 3, 3)}, {"x": [2, 3]})
    assert use.bias is None and use.output == "h"


def test_an_add_of_the_tensor_to_itself_is_no_bias():
    _, use = one([node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "h"], ["y"])], {"w": rand(RNG, 3, 3)}, {"x": [2, 3]})
    assert use.bias is None and use.output == "h"


@pytest.mark.parametrize("case", ["two readers", "graph output", "captured"])
def test_an_add_that_is_not_the_only_reader_is_no_bias(case):
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Add", ["h", "c"], ["y"])]
    outputs = ["y"]
    if case == "two readers":
        nodes.append(node("Relu", ["h"], ["z"]))
        outputs.append("z")
    elif case == "graph output":
        outputs.append("h")
    else:
        bodies = [helper.make_graph([node(op, ["h"], [op])], op, [], [onnx.ValueInfoProto(name=op)]) for op in ("Neg", "Abs")]
        nodes.append(node("If", ["yes"], ["z"], then_branch=bodies[0], else_branch=bodies[1]))
        outputs.append("z")
    _, use = one(nodes, {"w": rand(RNG, 3, 3), "c": rand(RNG, 3), "yes": np.array(True)}, {"x": [2, 3]}, outputs)
    assert use.bias is None and use.output == "h"


def test_a_node_with_a_bias_of_its_own_takes_none_from_an_add():
    nodes = [node("Conv", ["x", "w", "b"], ["h"]), node("Add", ["h", "c"], ["y"])]
    constants = {"w": rand(RNG, 3, 3, 1, 1), "b": rand(RNG, 3), "c": rand(RNG, 3, 1, 1)}
    _, use = one(nodes, constants, {"x": [1, 3, 2, 2]})
    assert use.bias == Bias(0, 2) and use.output == "h"


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
def test_a_bias_computed_at_run_time(op):
    shape = (3, 3) if op == "Gemm" else (3, 3, 1, 1)
    inputs = {"x": [1, 3] if op == "Gemm" else [1, 3, 2, 2], "b": [3]}
    _, use = one([node(op, ["x", "w", "b"], ["y"])], {"w": rand(RNG, *shape)}, inputs)
    assert use.bias is None and use.bias_index is None


def bn(inputs, output, **attributes):
    return node("BatchNormalization", inputs, [output], **attributes)


def conv_bn(*extra, outputs=("y",), **attributes):
    nodes = [node("Conv", ["x", "w"], ["h"], name="c"), bn(["h", *"sbmv"], "y", name="n", **attributes), *extra]
    return find(build(nodes, {"w": rand(RNG, 4, 3, 1, 1)} | norm_constants(), {"x": [1, 3, 2, 2]}, outputs))


def test_a_batchnorm_behind_a_layer_is_the_layers():
    found = conv_bn(epsilon=1e-3)
    (layer,) = found.layers
    norm = layer.uses[0].norm
    assert norm is not None and not found.norms
    assert (norm.name, norm.op, norm.node, norm.input, norm.output) == ("n", "BatchNormalization", 1, "h", "y")
    assert (norm.axis, norm.channels, norm.scale, norm.bias) == (1, 4, 1, 2)
    assert norm.epsilon == pytest.approx(1e-3, rel=1e-6)  # a float32 attribute


def test_a_batchnorm_behind_the_add_with_the_bias_is_the_layers():
    nodes = [node("Conv", ["x", "w"], ["h"]), node("Add", ["h", "c"], ["a"]), bn(["a", *"sbmv"], "y")]
    constants = {"w": rand(RNG, 4, 3, 1, 1), "c": rand(RNG, 4, 1, 1)} | norm_constants()
    _, use = one(nodes, constants, {"x": [1, 3, 2, 2]})
    assert use.norm is not None and use.norm.input == "a" and use.bias == Bias(1, 1)


def test_a_batchnorm_behind_a_gemm_is_the_layers():
    nodes = [node("Gemm", ["x", "w"], ["h"]), bn(["h", *"sbmv"], "y")]
    _, use = one(nodes, {"w": rand(RNG, 3, 4)} | norm_constants(), {"x": [2, 3]})
    assert use.norm is not None and use.axis == 1


@pytest.mark.parametrize("case", ["two batchnorms", "another reader", "graph output", "behind Relu"])
def test_a_batchnorm_that_is_not_the_layers_stands_for_itself(case):
    if case == "two batchnorms":
        found = conv_bn(bn(["h", *"sbmv"], "z"), outputs=("y", "z"))
    elif case == "another reader":
        found = conv_bn(node("Relu", ["h"], ["z"]), outputs=("y", "z"))
    elif case == "graph output":
        found = conv_bn(outputs=("y", "h"))
    else:
        nodes = [node("Conv", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), bn(["r", *"sbmv"], "y")]
        found = find(build(nodes, {"w": rand(RNG, 4, 3, 1, 1)} | norm_constants(), {"x": [1, 3, 2, 2]}, ["y"]))
    assert found.layers[0].uses[0].norm is None
    assert len(found.norms) == (2 if case == "two batchnorms" else 1)


@pytest.mark.parametrize("how", ["attribute", "outputs"])
def test_a_batchnorm_in_training_mode_is_skipped(how):
    if how == "attribute":
        found = conv_bn(training_mode=1)
    else:  # before opset 14 more outputs meant training
        made = node("BatchNormalization", ["h", *"sbmv"], ["y", "m2", "v2", "m3", "v3"], name="n")
        nodes = [node("Conv", ["x", "w"], ["h"]), made]
        found = find(build(nodes, {"w": rand(RNG, 4, 3, 1, 1)} | norm_constants(), {"x": [1, 3, 2, 2]}, ["y"], opset=9))
    assert found.layers[0].uses[0].norm is None and not found.norms
    assert [(entry.name, entry.reason) for entry in found.skipped] == [("n", "it is in training mode")]


def test_norms():
    nodes = [
        node("InstanceNormalization", ["x", "s", "b"], ["i"]),
        node("GroupNormalization", ["i", "s", "b"], ["g"], num_groups=2),
        node("LayerNormalization", ["g", "s2", "b2"], ["l"]),
        node("LayerNormalization", ["l", "s2"], ["l2"]),
        node("LayerNormalization", ["l2", "s3", "s3"], ["y"], axis=2, name="wide"),
    ]
    constants = norm_constants() | {"s2": np.ones(5, np.float32), "b2": np.ones(5, np.float32), "s3": np.ones((6, 5), np.float32)}
    model = build(nodes, constants, {"x": [1, 4, 6, 5]}, ["y"])
    found = find(model)
    assert [(norm.op, norm.axis, norm.channels) for norm in found.norms] == [
        ("InstanceNormalization", 1, 4),
        ("GroupNormalization", 1, 4),
        ("LayerNormalization", -1, 5),
        ("LayerNormalization", -1, 5),
    ]
    assert reasons(model) == {"wide": "its scale and bias are not one number per channel"}


def test_norms_that_cannot_be_repaired():
    nodes = [
        node("GroupNormalization", ["x", "s", "b"], ["g"], num_groups=4, name="g"),
        node("InstanceNormalization", ["g", "given", "b"], ["y"], name="i"),
    ]
    model = build(nodes, norm_constants(), {"x": [1, 4, 6], "given": [4]}, ["y"], opset=18)
    assert reasons(model) == {
        "g": "its scale and bias are one number per group (before opset 21)",
        "i": "its scale and bias are not constants",
    }
    assert not find(model).norms


@pytest.mark.parametrize("through", ["name", "Identity", "Constant"])
def test_two_nodes_that_share_a_weight_are_one_layer(through):
    value = rand(RNG, 3, 3)
    nodes = [node("MatMul", ["x", "w"], ["h"], name="a"), node("Relu", ["h"], ["r"])]
    nodes.append(node("MatMul", ["r", "w2" if through == "Identity" else "w"], ["y"], name="b"))
    constants = {"w": value}
    if through == "Identity":
        nodes.insert(0, node("Identity", ["w"], ["w2"]))
    if through == "Constant":
        nodes.insert(0, node("Constant", [], ["w"], value=numpy_helper.from_array(value)))
        constants = {}
    found = find(build(nodes, constants, {"x": [2, 3]}, ["y"]))
    (layer,) = found.layers
    assert layer.name == "a" and layer.weight == "w" and layer.size == 9
    first = 0 if through == "name" else 1
    assert [(use.node, use.output) for use in layer.uses] == [(first, "h"), (first + 2, "y")]


@pytest.mark.parametrize("case", ["embedding", "output", "body", "shape"])
def test_a_weight_that_others_read_too(case):
    nodes = [node("MatMul", ["x", "w"], ["y"], name="head")]
    inputs = {"x": [2, 3]}
    outputs = ["y"]
    if case == "embedding":
        nodes.insert(0, node("Gather", ["w", "ids"], ["e"], name="table"))
        nodes.insert(1, node("Identity", ["w"], ["w2"]))
        nodes[2].input[1] = "w2"
    elif case == "output":
        nodes.append(node("Identity", ["w"], ["z"]))
        outputs.append("z")
    elif case == "shape":
        nodes.append(node("Shape", ["w"], ["z"]))
        outputs.append("z")
    else:
        bodies = [helper.make_graph([node(op, ["w"], [op])], op, [], [onnx.ValueInfoProto(name=op)]) for op in ("Neg", "Abs")]
        nodes.append(node("If", ["yes"], ["z"], name="if", then_branch=bodies[0], else_branch=bodies[1]))
        outputs.append("z")
    constants = {"w": rand(RNG, 3, 3), "yes": np.array(True), "ids": np.array([0])}
    model = build(nodes, constants, inputs, [*outputs, "e"] if case == "embedding" else outputs)
    if case == "shape":
        assert len(find(model).layers) == 1 and not reasons(model)
        return
    what = {"embedding": "Gather 'table'", "output": "the graph's output 'z'", "body": "Abs 'Abs' in the else branch of If 'if'"}[case]
    assert not find(model).layers
    assert reasons(model)["head"] == f"its weight is also read by {what}"


def test_weights_that_are_none():
    nodes = [
        node("MatMul", ["x", "x2"], ["a"], name="computed"),
        node("MatMul", ["w", "w"], ["b"], name="both"),
        node("MatMul", ["x", "vector"], ["c"], name="vector"),
        node("Gemm", ["w", "w"], ["d"], name="constant"),
        node("Gemm", ["x", "x2"], ["e"], name="gemm"),
        node("Neg", ["w"], ["negative"]),
        node("MatMul", ["x", "negative"], ["f"], name="behind Neg"),
        node("Einsum", ["x", "x2"], ["g"], equation="ij,jk->ik", name="ein"),
        node("LSTM", ["x3", "x4", "lr"], ["", "h"], hidden_size=2, name="lstm"),
    ]
    constants = {"w": rand(RNG, 3, 3), "vector": rand(RNG, 3), "lr": rand(RNG, 1, 8, 2)}
    inputs = {"x": [3, 3], "x2": [3, 3], "x3": [5, 1, 3], "x4": [1, 8, 3]}
    model = build(nodes, constants, inputs, [*"abcdefgh"])
    found = find(model)
    assert [layer.name for layer in found.layers] == ["lstm:R"]
    assert reasons(model) == {
        "computed": "both sides are computed at run time",
        "both": "both sides are constants",
        "vector": "the weight is a vector",
        "constant": "both sides are constants",
        "gemm": "the weight is computed at run time",
        "behind Neg": "the weight is made of constants by Neg; fold them first",
        "ein": "all sides are computed at run time",
        "lstm": "W: the weight is computed at run time",
    }


def test_a_sparse_initializer_is_named():
    model = build([node("MatMul", ["x", "w"], ["y"], name="mm")], {}, {"x": ["N", 3]}, ["y"])
    dense = onnx.helper.make_tensor("w", TensorProto.FLOAT, [2], [1.0, 2.0])
    places = onnx.helper.make_tensor("", TensorProto.INT64, [2], [0, 4])
    model.graph.sparse_initializer.append(onnx.helper.make_sparse_tensor(dense, places, [3, 2]))
    assert reasons(model) == {"mm": "the weight is a sparse initializer; store it dense to prune it"}


def test_weights_of_other_types():
    nodes = [node("MatMul", ["x", "w"], ["a"], name="integer")]
    model = build(nodes, {"w": np.ones((3, 3), np.int32)}, {"x": [3, 3]}, [])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT32
    assert reasons(model) == {"integer": "the weight is of type INT32"}


def test_embeddings_are_layers_where_they_are_included():
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="emb"),
        node("Gather", ["ids", "ids"], ["i"], name="indices"),
    ]
    model = build(nodes, {"table": rand(RNG, 4, 3), "ids": np.array([1, 2])}, {}, ["e", "i"])
    assert reasons(model) == {"emb": "embedding tables stay dense unless --include names them"}
    (layer,) = find(model, ["em"]).layers
    assert layer.name == "emb" and layer.uses[0].unrepaired == "it is an embedding"


def test_nodes_in_bodies_are_layers_that_are_not_repaired():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 21]>
        g (float[2,3] x, bool c) => (float[2,3] y) <float[3,3] w = {1.0,2.0,3.0,4.0,5.0,6.0,7.0,8.0,9.0}> {
          y = If(c) <
            then_branch = t () => (float[2,3] u) {
              u = If(c) <
                then_branch = tt () => (float[2,3] p) { p = MatMul(x, w) },
                else_branch = te () => (float[2,3] q) { q = Relu(x) }>
            },
            else_branch = e () => (float[2,3] v) { v = Gemm(x, w) }>
        }"""
    )
    found = find(model)
    (layer,) = found.layers
    assert not found.skipped and layer.weight == "w"
    assert {(use.op, use.outer, use.unrepaired) for use in layer.uses} == {
        ("MatMul", 0, "it is inside the then branch of If 'u'"),
        ("Gemm", 0, "it is inside the else branch of If 'y'"),
    }


def test_nodes_of_other_domains_are_skipped_when_they_hold_weights():
    model = parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 21, "com.microsoft" : 1]>
        g (float[2,2] x) => (float[2,2] y) <float[2,2] w = {1.0, 2.0, 3.0, 4.0}> { y = com.microsoft.MatMul(x, w) }"""
    )
    assert find(model) == Found((), (), (Skipped("y", "MatMul", "operators of the domain 'com.microsoft' are not pruned"),))


def test_layers_come_in_execution_order_under_distinct_names():
    nodes = [
        node("MatMul", ["x", "w1"], ["a"], name="same"),
        node("MatMul", ["a", "w2"], ["b"], name="same"),
        node("MatMul", ["b", "w3"], ["y"]),
    ]
    constants = {name: rand(RNG, 3, 3) for name in ("w3", "w2", "w1")}
    found = find(build(nodes, constants, {"x": [2, 3]}, ["y"]))
    assert [layer.name for layer in found.layers] == ["same", "same:b", "y"]


@pytest.mark.parametrize("kind", [TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16, TensorProto.BFLOAT16])
def test_every_float_type_is_prunable(kind):
    tensor = helper.make_tensor("w", kind, [3, 3], np.ones(9))
    model = build([node("MatMul", ["x", "w"], ["y"])], {}, {"x": [2, 3]}, [], elem_type=kind)
    model.graph.initializer.append(tensor)
    assert find(model).layers[0].size == 9


def test_names_with_slashes_and_other_letters():
    nodes = [
        node("Conv", ["入力/x:0", "層/重み"], ["/h/Conv_output_0"], name="/features/0/Conv"),
        bn(["/h/Conv_output_0", *"sbmv"], "выход y"),
    ]
    layer, use = one(nodes, {"層/重み": rand(RNG, 4, 3, 1, 1)} | norm_constants(), {"入力/x:0": [1, 3, 2, 2]}, ["выход y"])
    assert layer.name == "/features/0/Conv" and layer.weight == "層/重み" and use.norm.output == "выход y"


def test_find_does_not_change_the_model():
    model = parse(
        """g (float[N,2] x, bool c) => (float[N,2] y, float[2] z) <float[2] b = {1.0, 2.0}> {
          w = Constant<value = float[2,2] {1.0,2.0,3.0,4.0}>()
          h = MatMul(x, w)
          y = Add(h, b)
          z = If(c) <then_branch = t () => (float[2] u) { u = Neg(b) }, else_branch = e () => (float[2] v) { v = Abs(b) }>
        }"""
    )
    model.metadata_props.add(key="a", value="b")
    model.graph.doc_string = "doc"
    before = model.SerializeToString(deterministic=True)
    assert len(find(model).layers) == 1
    assert model.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("opset", range(7, 27))
def test_every_operator_set(opset):
    nodes = [
        node("Conv", ["x", "w", ""], ["h"]),
        bn(["h", *"sbmv"], "n"),
        node("Relu", ["n"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "fc", "fb"], ["y"]),
    ]
    constants = {"w": rand(RNG, 4, 3, 1, 1), "fc": rand(RNG, 4, 5), "fb": rand(RNG, 5)} | norm_constants()
    model = build(nodes, constants, {"x": [1, 3, 2, 2]}, ["y"], opset=opset, ir_version=3 if opset < 9 else 8)
    found = find(model)
    assert [layer.op for layer in found.layers] == ["Conv", "Gemm"] and not found.skipped and not found.norms
    assert found.layers[0].uses[0].norm is not None and found.layers[0].uses[0].bias is None


def test_attributes_of_every_kind_are_read(capfd):
    """Sparse and list constants, sequences, Loop and Scan, optional inputs left out: find neither raises nor prints."""
    model = parse(
        """g (float[N,2] x, int64 n, bool c) => (float[N,2] y, float[N,2] z) {
          few = Constant<value_floats = [1.0, 2.0]>()
          number = Constant<value_float = 2.0>()
          word = Constant<value_string = "a">()
          low = Clip(x, , number)
          y = Loop(n, c, low) <body = b (int64 i, bool go, float[N,2] s) => (bool go2, float[N,2] s2) {
            go2 = Identity(go)
            s2 = Add(s, few)
          }>
          both = SequenceConstruct(x, y)
          zero = Constant<value_int = 0>()
          z = SequenceAt(both, zero)
        }"""
    )
    sparse = onnx.SparseTensorProto(dims=[4])
    sparse.values.CopyFrom(numpy_helper.from_array(np.ones(1, np.float32), "few values"))
    sparse.indices.CopyFrom(numpy_helper.from_array(np.array([2])))
    model.graph.node.append(node("Constant", [], ["thin"], sparse_value=sparse))
    thin = model.graph.sparse_initializer.add()
    thin.CopyFrom(sparse)
    kind = helper.make_tensor_type_proto(TensorProto.FLOAT, [1])
    model.graph.node.append(node("Optional", [], ["opt"], type=kind))
    assert find(model) == Found((), (), ())
    assert capfd.readouterr() == ("", "")
