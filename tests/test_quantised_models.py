"""Integer weights: QDQ models, and the QLinear and Integer operators. Zeros must be zeros after dequantisation."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from models import build, node, rand
from onnx import TensorProto, helper
from product import every_way, outputs, pruned, values

from onnxprune.graph.layers import find

RNG = np.random.default_rng(3)
SIZE = (3, 6, 6)


def samples(count=24):
    rng = np.random.default_rng(4)
    return (rng.normal(size=(count, *SIZE)) + rng.normal(size=(count, 1, 1, 1))).astype(np.float32)


def quantised(weight, axis, kind=np.int8, zero=0, reach=127):
    """Integers, scale and zero point of a weight, per tensor (axis None) or per channel; ``reach``: the largest int8."""
    low, high = (-127, 127) if kind == np.int8 else (0, 255)
    largest = np.abs(weight).max(axis=None if axis is None else tuple(i for i in range(weight.ndim) if i != axis))
    scale = np.asarray(largest / (reach if kind == np.int8 else 120), np.float32)
    wide = scale if axis is None else scale.reshape([-1 if i == axis else 1 for i in range(weight.ndim)])
    integers = np.clip(np.rint(weight / wide) + zero, low, high).astype(kind)
    return integers, scale, np.full(scale.shape, zero, kind)


def qdq(axis, kind=np.int8, zero=0, bias=True, opset=21, reach=127):
    """x -> Q DQ -> Conv with quantised weight and bias -> Q DQ -> y, as ONNX Runtime's static quantisation writes it."""
    weight = rand(RNG, 4, 3, 3, 3)
    integers, scale, zeros = quantised(weight, axis, kind, zero, reach)
    constants = {"w_q": integers, "w_s": scale, "w_z": zeros, "sx": np.float32(0.05), "zx": np.uint8(128)}
    constants |= {"sy": np.float32(0.3), "zy": np.uint8(128)}
    nodes = [
        node("QuantizeLinear", ["x", "sx", "zx"], ["x_q"]),
        node("DequantizeLinear", ["x_q", "sx", "zx"], ["x_d"]),
        node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w_d"], **({} if axis is None else {"axis": axis})),
    ]
    reads = ["x_d", "w_d"]
    if bias:
        steps = np.float32(0.05) * scale
        constants |= {"b_q": np.rint(rand(RNG, 4) / steps).astype(np.int32), "b_s": steps, "b_z": np.zeros(scale.shape, np.int32)}
        nodes.append(node("DequantizeLinear", ["b_q", "b_s", "b_z"], ["b_d"], **({} if axis is None else {"axis": 0})))
        reads.append("b_d")
    nodes += [
        node("Conv", reads, ["c"], name="conv", pads=[1, 1, 1, 1]),
        node("QuantizeLinear", ["c", "sy", "zy"], ["c_q"]),
        node("DequantizeLinear", ["c_q", "sy", "zy"], ["c_d"]),
        node("Relu", ["c_d"], ["y"]),
    ]
    return build(nodes, constants, {"x": ["N", *SIZE]}, ["y"], opset=opset)


@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("axis", [None, 0])
def test_qdq_convolution(axis, kind):
    zero = 0 if kind == np.int8 else 128
    model = qdq(axis, kind, zero)
    for repair, result in every_way(model, {"x": samples()}).items():
        (entry,) = result.report.layers
        assert entry.weight == "w_q" and entry.kept == 54
        old, new = values(model, "w_q"), values(result.model, "w_q")
        assert np.count_nonzero(new != zero) <= 54
        np.testing.assert_array_equal(new[new != zero], old[new != zero])  # a repair moves no integer
        changed = set(result.report.changes.values)
        if repair == "none":
            assert changed == {"w_q"}
        elif axis == 0:
            assert changed == {"w_q", "w_s", "b_q", "b_s"}
            assert repair in ("layer", "asr") or entry.variance_error_after < entry.variance_error_before
            np.testing.assert_allclose(values(result.model, "b_s"), values(result.model, "w_s") * np.float32(0.05), rtol=1e-6)
        elif repair != "layer":
            assert changed == {"w_q", "b_q"}
            assert "its channels share the scale of their weights, so only the shift is repaired" in entry.notes
        else:
            assert changed == {"w_q", "w_s", "b_q", "b_s"}


def test_the_runtime_that_fuses_sees_the_same_repair():
    """ONNX Runtime turns QDQ into QLinearConv and takes scale(x) * scale(w) for the bias: the same as without fusing.

    The weights have 7 bits: on a CPU with AVX2 and no VNNI its kernels cut the sum of two products of 8 bits at 32,767.
    """
    result = pruned(qdq(0, reach=63), {"x": samples()}, repair="channel")
    copy = onnx.ModelProto()
    copy.CopyFrom(result.model)
    copy.graph.output.append(onnx.ValueInfoProto(name="c"))  # read by others too, the convolution is not fused
    np.testing.assert_allclose(outputs(result.model, {"x": samples()})[0], outputs(copy, {"x": samples()})[0], atol=0.31)


def test_qdq_convolution_without_a_bias():
    for result in every_way(qdq(0, bias=False), {"x": samples()}).values():
        assert result.report.layers[0].kept == 54


@pytest.mark.parametrize("kind", [ml_dtypes.int4, ml_dtypes.uint4])
def test_blocks_of_four_bits(kind):
    """A MatMul with 4-bit weights and a scale for every 4 inputs of an output, behind a Transpose."""
    zero = 0 if kind == ml_dtypes.int4 else 8
    integers = RNG.integers(-7 + zero, 8 + zero, (6, 8)).astype(kind)
    scale = RNG.uniform(0.05, 0.2, (6, 2)).astype(np.float32)
    constants = {"w_q": integers, "w_s": scale, "w_z": np.full((6, 2), zero).astype(kind), "b": rand(RNG, 6)}
    nodes = [
        node("DequantizeLinear", ["w_q", "w_s", "w_z"], ["w_d"], axis=1, block_size=4),
        node("Transpose", ["w_d"], ["w"]),
        node("MatMul", ["x", "w"], ["m"], name="mm"),
        node("Add", ["m", "b"], ["h"]),
        node("Relu", ["h"], ["y"]),
    ]
    model = build(nodes, constants, {"x": ["N", 8]}, ["y"], ir_version=10)
    feed = {"x": np.random.default_rng(5).normal(1, 1, (24, 8)).astype(np.float32)}
    for repair, result in every_way(model, feed).items():
        (entry,) = result.report.layers
        old, new = (values(each, "w_q").astype(int) for each in (model, result.model))
        assert np.count_nonzero(new != zero) <= entry.kept == 24
        np.testing.assert_array_equal(new[new != zero], old[new != zero])
        if repair in ("channel", "reconstruct"):
            assert set(result.report.changes.values) == {"w_q", "w_s", "b"}
            ratio = values(result.model, "w_s") / scale
            np.testing.assert_allclose(ratio[:, 0], ratio[:, 1], rtol=1e-5)
            assert entry.variance_error_after < 1e-3


def test_eight_bit_floats():
    weight = rand(RNG, 8, 6).astype(ml_dtypes.float8_e4m3fn)
    nodes = [node("DequantizeLinear", ["w_q", "w_s"], ["w"], axis=1), node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["y"])]
    constants = {"w_q": weight, "w_s": RNG.uniform(0.5, 2, 6).astype(np.float32)}
    model = build(nodes, constants, {"x": ["N", 8]}, ["y"], ir_version=9, opset=19)
    feed = {"x": np.random.default_rng(5).normal(1, 1, (24, 8)).astype(np.float32)}
    for result in every_way(model, feed).values():
        old, new = (values(each, "w_q").astype(np.float32) for each in (model, result.model))
        assert np.count_nonzero(new) == 24
        np.testing.assert_array_equal(new[new != 0], old[new != 0])


def test_weights_that_pass_a_grid():
    """Quantisation-aware training leaves float weights behind QuantizeLinear and DequantizeLinear."""
    constants = {"w": rand(RNG, 8, 6), "s": np.float32(0.02), "z": np.int8(0), "b": rand(RNG, 6)}
    nodes = [
        node("QuantizeLinear", ["w", "s", "z"], ["q"]),
        node("DequantizeLinear", ["q", "s", "z"], ["d"]),
        node("MatMul", ["x", "d"], ["m"], name="mm"),
        node("Add", ["m", "b"], ["h"]),
        node("Relu", ["h"], ["y"]),
    ]
    model = build(nodes, constants, {"x": ["N", 8]}, ["y"])
    feed = {"x": np.random.default_rng(5).normal(1, 1, (24, 8)).astype(np.float32)}
    for repair, result in every_way(model, feed).items():
        new = values(result.model, "w")
        np.testing.assert_array_equal(new[new != 0], constants["w"][new != 0])
        assert np.count_nonzero(new) == 24
        if repair == "channel":
            assert "its weights are rounded to a fixed scale, so only the shift is repaired" in result.report.layers[0].notes


def qlinear(op):
    constants = {"sx": np.float32(0.05), "zx": np.uint8(128), "sy": np.float32(0.3), "zy": np.uint8(100)}
    first = node("QuantizeLinear", ["x", "sx", "zx"], ["x_q"])
    shape, given = ((4, 3, 3, 3), SIZE) if "Conv" in op else ((8, 6), (8,))
    zero = 3 if op in ("MatMulInteger", "ConvInteger", "QLinearMatMul") else 0
    kind = np.uint8 if op == "ConvInteger" else np.int8
    integers, scale, zeros = quantised(rand(RNG, *shape), 0 if op == "QLinearConv" else None, kind, zero)
    constants |= {"w": integers, "ws": scale, "wz": zeros}
    pads = {"pads": [1, 1, 1, 1]} if "Conv" in op else {}
    if op.startswith("QLinear"):
        made = node(op, ["x_q", "sx", "zx", "w", "ws", "wz", "sy", "zy"], ["h_q"], name="q", **pads)
        behind = [node("DequantizeLinear", ["h_q", "sy", "zy"], ["h"])]
    else:
        made = node(op, ["x_q", "w", "zx", "wz"], ["h_q"], name="q", **pads)
        behind = [node("Cast", ["h_q"], ["h"], to=TensorProto.FLOAT)]
    last = [node("GlobalAveragePool", ["h"], ["p"]), node("Flatten", ["p"], ["f"])] if "Conv" in op else [node("Relu", ["h"], ["f"])]
    constants |= {"w2": rand(RNG, 4 if "Conv" in op else 6, 5)}
    nodes = [first, made, *behind, *last, node("MatMul", ["f", "w2"], ["m"], name="second"), node("Relu", ["m"], ["y"])]
    return build(nodes, constants, {"x": ["N", *given]}, ["y"]), given, zero


@pytest.mark.parametrize("op", ["QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger"])
def test_integer_operators(op):
    model, given, zero = qlinear(op)
    feed = {"x": np.random.default_rng(6).normal(0.5, 1, (24, *given)).astype(np.float32)}
    for repair, result in every_way(model, feed, alloc="uniform").items():
        entry = next(entry for entry in result.report.layers if entry.name == "q")
        old, new = values(model, "w").astype(int), values(result.model, "w").astype(int)
        assert np.count_nonzero(new != zero) <= entry.kept == entry.weights // 2
        np.testing.assert_array_equal(new[new != zero], old[new != zero])
        if repair != "none":
            what = "quantised" if op.startswith("QLinear") else "in integers"
            assert f"pruned, not repaired: its output is {what}" in entry.notes and entry.repair == "none"
            assert next(entry for entry in result.report.layers if entry.name == "second").repair != "none"


def test_a_zero_point_computed_at_run_time_is_skipped():
    nodes = [node("MatMulInteger", ["x_q", "w", "", "z"], ["h"], name="q"), node("MatMul", ["f", "v"], ["y"], name="second")]
    model = build(nodes, {"w": np.ones((8, 6), np.int8), "v": rand(RNG, 4, 3)}, {"f": ["N", 4]}, ["y"])
    model.graph.input.append(helper.make_tensor_value_info("x_q", TensorProto.UINT8, ["N", 8]))
    model.graph.input.append(helper.make_tensor_value_info("z", TensorProto.INT8, [1]))
    assert {entry.name: entry.reason for entry in find(model).skipped} == {"q": "its zero point is computed at run time"}


def dynamic(op, scales):
    """Two layers with the same integers and other scales, as ONNX Runtime's quantize_dynamic writes them."""
    shape, given, pads = ((4, 3, 3, 3), SIZE, {"pads": [1, 1, 1, 1]}) if op == "ConvInteger" else ((8, 8), (8,), {})
    constants, nodes, inputs = {}, [], {}
    for name, scale in scales.items():
        constants |= {
            f"{name}w": np.arange(1, np.prod(shape) + 1).reshape(shape).astype(np.uint8),
            f"{name}s": scale,
            f"{name}z": np.uint8(0),
        }
        inputs[f"{name}x"] = ["N", *given]
        nodes += [
            node("DynamicQuantizeLinear", [f"{name}x"], [f"{name}q", f"{name}qs", f"{name}qz"]),
            node(op, [f"{name}q", f"{name}w", f"{name}qz", f"{name}z"], [f"{name}i"], name=name, **pads),
            node("Cast", [f"{name}i"], [f"{name}f"], to=TensorProto.FLOAT),
            node("Mul", [f"{name}qs", f"{name}s"], [f"{name}both"]),
            node("Mul", [f"{name}f", f"{name}both"], [f"{name}y"]),
        ]
    return build(nodes, constants, inputs, [f"{name}y" for name in scales])


@pytest.mark.parametrize("op", ["ConvInteger", "MatMulInteger"])
def test_dynamic_quantisation_is_ranked_by_its_floats(op):
    given = SIZE if op == "ConvInteger" else (8,)
    feed = {name: np.random.default_rng(6).normal(size=(8, *given)).astype(np.float32) for name in ("smallx", "largex")}
    model = dynamic(op, {"small": np.float32(0.01), "large": np.float32(1000)})
    small, large = pruned(model, feed, repair="channel", alloc="global").report.layers
    assert (small.name, small.kept, large.kept, large.density) == ("small", 0, large.weights, 1.0)
    assert not any("ranked by its integers" in note for entry in (small, large) for note in entry.notes)


def test_a_scale_for_every_column_of_a_matrix():
    scale = np.array([0.01] * 4 + [1000.0] * 4, np.float32)
    result = pruned(dynamic("MatMulInteger", {"mm": scale}), {"mmx": np.ones((8, 8), np.float32)}, repair="none")
    assert (values(result.model, "mmw")[:, :4] == 0).all() and (values(result.model, "mmw")[:, 4:] != 0).all()


def test_integers_whose_scale_is_not_found_are_ranked_as_they_are_and_say_so():
    model, given, _ = qlinear("MatMulInteger")
    feed = {"x": np.random.default_rng(6).normal(0.5, 1, (24, *given)).astype(np.float32)}
    for alloc, sparsity in (("global", 0.9), ("uniform", 0.5)):
        report = pruned(model, feed, repair="none", alloc=alloc, sparsity=sparsity).report
        told = {entry.name for entry in report.layers if "ranked by its integers: their scale was not found" in entry.notes}
        assert told == ({"q"} if alloc == "global" else set())
