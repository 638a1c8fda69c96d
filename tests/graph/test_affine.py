"""Every place of repair: the model with gain and shift written gives gain * y + shift where the dense model gives y."""

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, node, rand, run
from onnx import TensorProto, helper

from onnxprune.graph import layers
from onnxprune.graph.affine import insert, normalisation, write_affine, write_statistics
from onnxprune.graph.gains import channel_of, highest, scaled
from onnxprune.graph.points import Point, points
from onnxprune.graph.tensors import Constants
from onnxprune.graph.uses import Use

# float32 sums of up to some 50 products of size ~1, times a gain of up to ~3: 50 * 3 * 2^-24 ~ 1e-5, with room for the BatchNorms'
# division. The reference multiplies after rounding, the model before.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def copied(model):
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def bent(array, point, gain, shift):
    """gain * array + shift along the point's channel axis, float64."""
    shape = [1] * array.ndim
    shape[point.axis] = -1
    return array.astype(np.float64) * gain.reshape(shape) + shift.reshape(shape)


def written(model, point, gain, shift):
    """A checked copy of the model with gain and shift written at the point, and what was changed."""
    copy = copied(model)
    constants = Constants(copy)
    insert(copy, write_affine(constants, point, gain, shift))
    onnx.checker.check_model(copy)
    return copy, constants.changes


def check(model, feed, *, count=1, seed=0, tolerance=CLOSE, gains=True):
    """Every point on its own: its tensor is bent, what does not depend on it is as it was; then all changes are accounted for."""
    rng = np.random.default_rng(seed)
    before = model.SerializeToString()
    places = points(layers.find(model))
    assert len(places) == count, places
    results = []
    for point in places:
        gain = rng.uniform(0.3, 3, point.channels) * rng.choice([-1, 1], point.channels)
        shift = rng.normal(0, 2, point.channels)
        if point.channels > 2:
            gain[0] = 0
        if point.shared or not gains:
            gain = np.ones(point.channels)
        new, changes = written(model, point, gain, shift)
        free = independent(model, point.dense_tensor)
        names = [point.dense_tensor, *free]
        old, got = run(model, feed, names), run(new, feed, names)
        assert np.ptp(old[0]) > 0
        np.testing.assert_allclose(got[0], bent(old[0], point, gain, shift), **tolerance)
        for name, one, other in zip(free, old[1:], got[1:], strict=True):
            np.testing.assert_array_equal(other, one, err_msg=name)
        assert model.SerializeToString() == before
        accounted(model, new, changes)
        results.append((point, new, changes))
    return results


def independent(model, tensor):
    """The tensors that do not depend on the one given, nor it on them through a node that a point may own."""
    reached = {tensor}
    for each in reversed(model.graph.node):  # the nodes a point is made of: a layer, or a layer and its Add
        if each.output[0] in reached and each.op_type == "Add":
            reached.update(name for name in each.input if name)
    for each in model.graph.node:
        if reached & set(each.input):
            reached.update(each.output)
    return [name for each in model.graph.node for name in each.output if name and name not in reached]


def accounted(old, new, changes):
    """Every difference between the two models is among the changes, and nothing else is."""
    before = {tensor.name: tensor for tensor in old.graph.initializer}
    after = {tensor.name: tensor for tensor in new.graph.initializer}
    assert set(after) - set(before) == changes.initializers
    assert {name for name in before if before[name] != after[name]} == changes.values - changes.initializers
    label = {each.name or each.output[0]: each for each in old.graph.node}
    added = {each.name for each in new.graph.node} - {each.name for each in old.graph.node}
    assert added == changes.nodes
    for each in new.graph.node:
        name = each.name or each.output[0]
        if name not in changes.nodes and name in label and label[name].input != each.input:
            assert name in changes.inputs


@pytest.mark.parametrize("spatial", [1, 2, 3])
@pytest.mark.parametrize("group", [1, 2, 4])
@pytest.mark.parametrize("bias", ["none", "empty", "own", "add"])
def test_conv(spatial, group, bias):
    rng = np.random.default_rng(spatial)
    constants = {"w": rand(rng, 8, 4 // group, *[2] * spatial)}
    names = ["x", "w", *{"own": ["b"], "empty": [""]}.get(bias, [])]
    nodes = [node("Conv", names, ["y"], group=group)]
    if bias == "own":
        constants["b"] = rand(rng, 8)
    if bias == "add":
        nodes = [node("Conv", names, ["h"], group=group), node("Add", ["b", "h"], ["y"])]
        constants["b"] = rand(rng, 8, *[1] * spatial)
    model = build(nodes, constants, {"x": ["N", 4, *[4] * spatial]}, ["y"])
    check(model, {"x": rand(rng, 3, 4, *[4] * spatial)})


@pytest.mark.parametrize("spatial", [1, 2])
@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("bias", [False, True])
def test_conv_transpose(spatial, group, bias):
    rng = np.random.default_rng(spatial)
    constants = {"w": rand(rng, 4, 3, *[2] * spatial)} | ({"b": rand(rng, 3 * group)} if bias else {})
    made = node("ConvTranspose", ["x", *constants], ["y"], group=group, strides=[2] * spatial)
    check(build([made], constants, {"x": ["N", 4, *[3] * spatial]}, ["y"]), {"x": rand(rng, 2, 4, *[3] * spatial)})


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("shape", [None, (), (1,), (3,), (1, 3), (1, 1), (2, 3), (2, 1), (3, 3)])
@pytest.mark.parametrize(("alpha", "beta"), [(1.0, 1.0), (0.5, -2.0), (2.0, 0.0)])
@pytest.mark.parametrize("constant", [True, False])
def test_gemm(transposed, shape, alpha, beta, constant):
    rng = np.random.default_rng(5)
    constants = {"w": rand(rng, *((3, 5) if transposed else (5, 3)))}
    rows = 3 if shape == (3, 3) else 2
    inputs, feed = {"x": [5, rows]}, {"x": rand(rng, 5, rows)}
    if shape is not None and constant:
        constants["c"] = rand(rng, *shape)
    elif shape is not None:
        inputs["c"] = shape
        feed["c"] = rand(rng, *shape)
    names = ["x", "w"] if shape is None else ["x", "w", "c"]
    made = node("Gemm", names, ["y"], transA=1, transB=transposed, alpha=alpha, beta=beta)
    check(build([made], constants, inputs, ["y"]), feed)


def test_gemm_of_as_many_rows_as_channels_with_a_bias_per_row():
    rng = np.random.default_rng(5)
    model = build([node("Gemm", ["x", "w", "c"], ["y"])], {"w": rand(rng, 5, 3), "c": rand(rng, 3, 1)}, {"x": [3, 5]}, ["y"])
    check(model, {"x": rand(rng, 3, 5)})


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("rank", [2, 3, 4])
@pytest.mark.parametrize("bias", ["none", "add", "tensor"])
def test_matmul(side, batched, rank, bias):
    rng = np.random.default_rng(6)
    weight = rand(rng, *([2] if batched else []), *((5, 3) if side == "right" else (3, 5)))
    shape = [*[2, 2][: rank - 2], 4, 5] if side == "right" else [*[2, 2][: rank - 2], 5, 4]
    names = ["x", "w"] if side == "right" else ["w", "x"]
    constants = {"w": weight}
    nodes = [node("MatMul", names, ["y" if bias == "none" else "h"])]
    inputs, feed = {"x": shape}, {"x": rand(rng, *shape)}
    if bias == "add":
        constants["b"] = rand(rng, *([3] if side == "right" else [3, 1]))
        nodes.append(node("Add", ["h", "b"], ["y"]))
    elif bias == "tensor":  # a residual: no bias, so a new Add comes between
        inputs["r"], feed["r"] = [1], rand(rng, 1)
        nodes.append(node("Add", ["h", "r"], ["y"]))
    ((_, new, changes),) = check(build(nodes, constants, inputs, ["y"]), feed)
    assert len(changes.nodes) == (0 if bias == "add" else 1)
    assert [value.name for value in new.graph.output] == ["y"]


def test_a_new_add_takes_over_the_name_of_the_output():
    rng = np.random.default_rng(7)
    nodes = [node("MatMul", ["x", "w"], ["y"], name="fc"), node("Relu", ["y"], ["z"])]
    model = build(nodes, {"w": rand(rng, 5, 3)}, {"x": ["N", 5]}, ["z", "y"])
    ((_, new, changes),) = check(model, {"x": rand(rng, 4, 5)})
    assert [(each.op_type, list(each.input), list(each.output)) for each in new.graph.node] == [
        ("MatMul", ["x", "w"], ["y.without_bias"]),
        ("Add", ["y.without_bias", "fc.bias"], ["y"]),
        ("Relu", ["y"], ["z"]),
    ]
    assert changes.nodes == {"fc.add_bias"} and changes.initializers == {"fc.bias"}


def test_no_shift_needs_no_bias():
    rng = np.random.default_rng(7)
    model = build([node("MatMul", ["x", "w"], ["y"])], {"w": rand(rng, 5, 3)}, {"x": ["N", 5]}, ["y"])
    (point,) = points(layers.find(model))
    new, changes = written(model, point, np.array([1.0, 2, 3]), np.zeros(3))
    assert len(new.graph.node) == 1 and len(new.graph.initializer) == 1 and changes.values == {"w"}


@pytest.mark.parametrize("op", ["Conv", "ConvTranspose", "Gemm"])
@pytest.mark.parametrize("with_add", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_a_bias_computed_at_run_time_is_scaled_too(op, with_add, first):
    rng = np.random.default_rng(8)
    tail = [] if op == "Gemm" else [2, 2]
    constants = {"w": rand(rng, 3, 3, *[1 for _ in tail])}
    nodes = [] if first else [node("Tanh", ["given"], ["b"])]
    nodes.append(node(op, ["x", "w", "given" if first else "b"], ["h" if with_add else "y"], name="layer"))
    if with_add:
        constants["c"] = rand(rng, 3, *[1 for _ in tail])
        nodes.append(node("Add", ["h", "c"], ["y"]))
    model = build(nodes, constants, {"x": [2, 3, *tail], "given": [3]}, ["y"])
    ((_, _, changes),) = check(model, {"x": rand(rng, 2, 3, *tail), "given": rand(rng, 3)})
    assert "layer.scale_bias" in changes.nodes and "layer" in changes.inputs


def test_a_bias_made_by_the_node_before_reads_that_nodes_new_add():
    """Two nodes to insert at one place: the Add that takes over a bias' name goes before the Mul that reads it."""
    rng = np.random.default_rng(9)
    nodes = [node("MatMul", ["z", "v"], ["b"], name="first"), node("Gemm", ["x", "w", "b"], ["y"], name="second")]
    model = build(nodes, {"v": rand(rng, 4, 3), "w": rand(rng, 5, 3)}, {"z": [1, 4], "x": [2, 5]}, ["y"])
    feed = {"z": rand(rng, 1, 4), "x": rand(rng, 2, 5)}
    b, gemm = run(model, feed, ["b", "y"])
    g1, s1, g2, s2 = (rng.normal(size=3) for _ in range(4))
    constants = Constants(model)
    one, two = points(layers.find(model))
    added = [*write_affine(constants, one, g1, s1), *write_affine(constants, two, g2, s2)]
    insert(model, added)
    onnx.checker.check_model(model)
    new_b = g1 * b + s1
    got_b, got = run(model, feed, ["b", "y"])
    np.testing.assert_allclose(got_b, new_b, **CLOSE)
    np.testing.assert_allclose(got, g2 * (gemm - b + new_b) + s2, **CLOSE)


def test_a_following_batchnorm_takes_gain_and_shift():
    rng = np.random.default_rng(10)
    nodes = [node("Conv", ["x", "w"], ["h"]), node("BatchNormalization", ["h", *"sbmv"], ["y"], epsilon=1e-2)]
    constants = {"w": rand(rng, 4, 3, 1, 1), "v": rng.uniform(0.5, 2, 4).astype(np.float32)} | {c: rand(rng, 4) for c in "sbm"}
    model = build(nodes, constants, {"x": ["N", 3, 2, 2]}, ["y"])
    ((point, _, changes),) = check(model, {"x": rand(rng, 5, 3, 2, 2)})
    assert (point.kind, point.tensor, point.dense_tensor, point.node) == ("batchnorm", "h", "y", 1)
    assert changes.values == {"s", "b"}


@pytest.mark.parametrize("op", ["BatchNormalization", "InstanceNormalization", "GroupNormalization", "LayerNormalization"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("same", [False, True])
def test_free_normalisations(op, bias, same):
    if not bias and op != "LayerNormalization":
        return  # the others need one
    rng = np.random.default_rng(11)
    channels = 6 if op == "LayerNormalization" else 4
    constants = {"s": rand(rng, channels)}
    if bias and not same:
        constants["b"] = rand(rng, channels)
    names = ["x", "s"] + (["s" if same else "b"] if bias else [])
    if op == "BatchNormalization":
        constants |= {"m": rand(rng, channels), "v": rng.uniform(0.5, 2, channels).astype(np.float32)}
        names += ["m", "v"]
    made = node(op, names, ["y"], **({"num_groups": 2} if op == "GroupNormalization" else {}))
    model = build([made], constants, {"x": ["N", 4, 5, 6]}, ["y"])
    model.graph.output[0].type.CopyFrom(model.graph.input[0].type)  # shape inference passes GroupNormalization over
    ((point, _, changes),) = check(model, {"x": rand(rng, 3, 4, 5, 6)})
    assert point.kind == ("batchnorm" if op == "BatchNormalization" else "norm") and point.layer is None
    assert len(changes.initializers) == (1 if same or not bias else 0)


def test_two_norms_that_share_scale_and_bias():
    rng = np.random.default_rng(12)
    nodes = [node("LayerNormalization", [x, "s", "b"], [y]) for x, y in (("x", "y"), ("x2", "z"))]
    model = build(nodes, {"s": rand(rng, 6), "b": rand(rng, 6)}, {"x": ["N", 6], "x2": ["N", 6]}, ["y", "z"])
    check(model, {"x": rand(rng, 3, 6), "x2": rand(rng, 3, 6)}, count=2)


@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Conv"])
def test_two_nodes_that_share_one_zero_bias(op):
    rng = np.random.default_rng(13)
    tail = [1, 1] if op == "Conv" else []
    constants = {"w": rand(rng, 3, 3, *tail), "v": rand(rng, 3, 3, *tail), "zero": np.zeros(3, np.float32)}
    nodes = []
    for weight, out in (("w", "y"), ("v", "z")):
        if op == "MatMul":
            nodes += [node(op, ["x", weight], [f"{out}h"]), node("Add", [f"{out}h", "zero"], [out])]
        else:
            nodes.append(node(op, ["x", weight, "zero"], [out]))
    model = build(nodes, constants, {"x": [2, 3, *tail]}, ["y", "z"])
    feed = {"x": rand(rng, 2, 3, *tail)}
    check(model, feed, count=2)
    # and both at once
    old = run(model, feed)
    copy = copied(model)
    constants = Constants(copy)
    places = points(layers.find(model))
    for number, point in enumerate(places):
        write_affine(constants, point, np.full(3, 2.0 + number), np.full(3, 1.0 - 3 * number))
    got = run(copy, feed)
    np.testing.assert_allclose(got[0], 2 * old[0] + 1, **CLOSE)
    np.testing.assert_allclose(got[1], 3 * old[1] - 2, **CLOSE)


@pytest.mark.parametrize("op", ["Gemm", "MatMul", "Conv"])
def test_a_shared_weight_takes_a_shift_at_each_use(op):
    rng = np.random.default_rng(14)
    tail = [1, 1] if op == "Conv" else []
    nodes = [node(op, ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node(op, ["r", "w"], ["y"])]
    model = build(nodes, {"w": rand(rng, 3, 3, *tail)}, {"x": [2, 3, *tail]}, ["y"])
    for point, _, changes in check(model, {"x": rand(rng, 2, 3, *tail)}, count=2):
        assert point.shared and "w" not in changes.values
    assert [point.name for point in points(layers.find(model))] == ["h", "h (use 2)"]


@pytest.mark.parametrize(("kind", "tolerance"), [(TensorProto.DOUBLE, 1e-12), (TensorProto.FLOAT16, 3e-2)])
def test_other_types(kind, tolerance):
    # float16: 3 roundings of 2^-11 on values of up to ~10; double: sums of 5 products
    dtype = helper.tensor_dtype_to_np_dtype(kind)
    rng = np.random.default_rng(15)
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("Gemm", ["r", "v", "b"], ["y"])]
    constants = {"w": rand(rng, 5, 3, dtype=dtype), "v": rand(rng, 3, 4, dtype=dtype), "b": rand(rng, 4, dtype=dtype)}
    model = build(nodes, constants, {"x": [2, 5]}, ["y"], elem_type=kind)
    for _, new, _ in check(model, {"x": rand(rng, 2, 5, dtype=dtype)}, count=2, tolerance={"rtol": tolerance, "atol": tolerance}):
        assert {tensor.data_type for tensor in new.graph.initializer} == {kind}


@pytest.mark.parametrize("ir_version", [3, 4, 8])
@pytest.mark.parametrize("opset", [7, 9, 13])
def test_old_versions(ir_version, opset):
    rng = np.random.default_rng(16)
    nodes = [
        node("Conv", ["x", "w"], ["c"]),
        node("BatchNormalization", ["c", *"sbmv"], ["n"]),
        node("GlobalAveragePool", ["n"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "fc"], ["y"]),
    ]
    constants = {"w": rand(rng, 4, 3, 2, 2), "fc": rand(rng, 4, 3)} | {c: rng.uniform(0.5, 2, 4).astype(np.float32) for c in "sbmv"}
    model = build(nodes, constants, {"x": ["N", 3, 3, 3]}, ["y"], opset=opset, ir_version=ir_version)
    onnx.checker.check_model(model)
    check(model, {"x": rand(rng, 5, 3, 3, 3)}, count=2)


def test_strange_names():
    rng = np.random.default_rng(17)
    nodes = [
        node("MatMul", ["入力/x:0", "/層/w"], ["/層/MatMul_output_0"], name="/層/MatMul"),
        node("MatMul", ["/層/MatMul_output_0", "v"], ["выход y"]),
        node("Relu", ["入力/x:0"], ["/層/MatMul.bias"]),  # the name a new bias would have had
    ]
    model = build(nodes, {"/層/w": rand(rng, 5, 3), "v": rand(rng, 3, 2)}, {"入力/x:0": [2, 5]}, ["выход y", "/層/MatMul.bias"])
    (_, _, changes), _ = check(model, {"入力/x:0": rand(rng, 2, 5)}, count=2)
    assert changes.initializers == {"/層/MatMul.bias_2"}


def test_normalisation_by_hand():
    model = build(
        [node("BatchNormalization", ["x", *"sbmv"], ["y"], epsilon=0.25)],
        {"s": np.float32([3, 4]), "b": np.float32([1, 2]), "m": np.float32([10, 0]), "v": np.float32([2, 3.75])},
        {"x": ["N", 2]},
        ["y"],
    )
    (norm,) = layers.find(model).norms
    constants = Constants(model)
    gain, shift = normalisation(constants, model.graph.node[0], norm)
    np.testing.assert_allclose(gain, [2, 2], rtol=1e-15)  # 3 / 1.5, 4 / 2
    np.testing.assert_allclose(shift, [-19, 2], rtol=1e-15)
    write_statistics(constants, model.graph.node[0], np.array([1.0, 2]), np.array([0.75, 8.75]))
    gain, shift = normalisation(constants, model.graph.node[0], norm)
    np.testing.assert_allclose(gain, [3, 4 / 3], rtol=1e-15)
    np.testing.assert_allclose(shift, [-2, 2 - 8 / 3], rtol=1e-15)
    assert constants.changes.values == {"m", "v"}
    np.testing.assert_allclose(run(model, {"x": np.float32([[1, 2]])})[0], [[1, 2]], rtol=1e-6)


def test_scaled_by_hand():
    def use(op, axis, group=1):
        return layers.Use(0, op, "y", 1, 4, axis, group)

    gain = np.array([1.0, 2, 3, 4])
    np.testing.assert_array_equal(scaled(np.ones((4, 1)), gain, use("Conv", 0)), [[1], [2], [3], [4]])
    np.testing.assert_array_equal(scaled(np.ones((2, 4)), gain, use("Gemm", 1)), [[1, 2, 3, 4]] * 2)
    # two groups of two channels: the first half of the input axis belongs to channels 0 and 1, the second to 2 and 3
    np.testing.assert_array_equal(scaled(np.ones((2, 2, 1)), gain, use("ConvTranspose", 1, 2))[..., 0], [[1, 2], [3, 4]])


def test_points_come_in_execution_order():
    rng = np.random.default_rng(18)
    nodes = [
        node("Conv", ["x", "w1"], ["one"], name="c1"),
        node("Conv", ["x", "w2"], ["two"], name="c2"),
        node("BatchNormalization", ["two", *"sbmv"], ["n2"]),
        node("BatchNormalization", ["one", *"sbmv"], ["n1"]),
        node("Add", ["n1", "n2"], ["sum"]),
        node("InstanceNormalization", ["sum", "s", "b"], ["i"], name="in"),
        node("Conv", ["i", "w3"], ["y"], name="c3"),
    ]
    constants = {f"w{number}": rand(rng, 3, 3, 1, 1) for number in (1, 2, 3)} | {c: np.ones(3, np.float32) for c in "sbmv"}
    model = build(nodes, constants, {"x": ["N", 3, 2, 2]}, ["y"])
    assert [(point.name, point.kind, point.tensor, point.node) for point in points(layers.find(model))] == [
        ("c2", "batchnorm", "two", 2),
        ("c1", "batchnorm", "one", 3),
        ("in", "norm", "i", 5),
        ("c3", "layer", "y", 6),
    ]


def test_insert_takes_a_mapping_or_pairs_and_keeps_the_order_of_equals():
    model = build([node("Relu", ["x"], ["a"]), node("Relu", ["a"], ["y"])], {}, {"x": [1]}, ["y"])
    new = [node("Abs", ["x"], [name], name=name) for name in "pqr"]
    insert(model, [(-1, new[0]), (0, new[1]), (0, new[2])])
    assert [each.output[0] for each in model.graph.node] == ["p", "a", "q", "r", "y"]
    insert(model, [(4, node("Abs", ["x"], ["last"]))])
    assert model.graph.node[5].output[0] == "last"


def test_shared_is_only_for_layers():
    layer = layers.Layer("l", "Conv", "w", (1, 1), (None, None), "w")
    assert Point("p", "layer", "t", "t", 1, 1, 0, layer).shared
    assert not Point("p", "batchnorm", "t", "t", 1, 1, 0, layer).shared
    assert not Point("p", "norm", "t", "t", 1, 1, 0).shared


@settings(max_examples=40, deadline=None)
@given(
    op=st.sampled_from(["Conv", "ConvTranspose", "Gemm", "MatMul", "Left"]),
    group=st.integers(1, 3),
    ins=st.integers(1, 3),
    outs=st.integers(1, 3),
    size=st.integers(1, 3),
    batch=st.integers(1, 3),
    bias=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_any_layer(op, group, ins, outs, size, batch, bias, seed):
    rng = np.random.default_rng(seed)
    names = ["x", "w", "b"] if bias else ["x", "w"]
    if op in ("Conv", "ConvTranspose"):
        shape = (outs * group, ins, size) if op == "Conv" else (ins * group, outs, size)
        constants = {"w": rand(rng, *shape)} | ({"b": rand(rng, outs * group)} if bias else {})
        nodes, feed = [node(op, names, ["y"], group=group)], rand(rng, batch, ins * group, 4)
    elif op == "Gemm":
        constants = {"w": rand(rng, ins, outs)} | ({"b": rand(rng, outs)} if bias else {})
        nodes, feed = [node(op, names, ["y"])], rand(rng, batch, ins)
    else:
        left = op == "Left"
        constants = {"w": rand(rng, *((outs, ins) if left else (ins, outs)))}
        nodes = [node("MatMul", ["w", "x"] if left else ["x", "w"], ["h" if bias else "y"])]
        if bias:
            constants["b"] = rand(rng, outs, 1) if left else rand(rng, outs)
            nodes.append(node("Add", ["h", "b"], ["y"]))
        feed = rand(rng, batch, ins, size) if left else rand(rng, batch, size, ins)
    model = build(nodes, constants, {"x": list(feed.shape)}, ["y"])
    (point,) = points(layers.find(model))
    gain, shift = rng.normal(0, 2, point.channels), rng.normal(0, 2, point.channels)
    new, _ = written(model, point, gain, shift)
    (old,), (got,) = run(model, {"x": feed}), run(new, {"x": feed})
    np.testing.assert_allclose(got, bent(old, point, gain, shift), **CLOSE)


@pytest.mark.parametrize("dtype", ["float16", "float32", "bfloat16"])
@pytest.mark.parametrize(
    ("op", "shape", "axis", "group", "channels"),
    [
        ("Conv", (6, 2, 3, 3), 0, 3, 6),
        ("ConvTranspose", (6, 2, 3), 1, 3, 6),
        ("ConvTranspose", (4, 5, 3, 3), 1, 1, 5),
        ("MatMul", (7, 4), -1, 1, 4),
        ("Gemm", (4, 7), 0, 1, 4),
        ("MatMul", (2, 7, 4), -1, 1, 4),
        ("MatMul", (0, 4), -1, 1, 4),
    ],
)
def test_the_highest_gain_is_the_one_that_the_largest_weight_of_the_channel_bears(op, shape, axis, group, channels, dtype):
    """Element by element; channel 1 has no weight left, and bears any."""
    kind = helper.tensor_dtype_to_np_dtype(TensorProto.DataType.Value(dtype.upper().replace("FLOAT32", "FLOAT")))
    use = Use(0, op, "y", 1, channels, axis, group)
    owner = channel_of(use, shape)
    weight = np.random.default_rng(0).normal(size=shape)
    weight[owner == 1] = 0
    weight = weight.astype(kind)
    found = highest(weight, use)
    limit = {"float16": 65504.0, "float32": float(np.finfo(np.float32).max), "bfloat16": 3.3895313892515355e38}[dtype]
    for channel in range(channels):
        most = max((abs(float(value)) for value, place in zip(weight.ravel(), owner.ravel(), strict=True) if place == channel), default=0)
        with np.errstate(over="ignore"):
            assert found[channel] == (np.float64(limit) / most if most else np.inf)
