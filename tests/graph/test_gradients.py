"""Gradients that a graph of the runtime gives, against differences of what the model gives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from models import build, node
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune.graph import layers
from onnxprune.graph.adjoints import RULES
from onnxprune.graph.building import Builder
from onnxprune.graph.gradients import backwards
from onnxprune.graph.points import points as points_of
from onnxprune.graph.tensors import Constants
from onnxprune.metrics import gradient_moments, metrics, shapes_of
from onnxprune.runtime.device import Device

RNG = np.random.default_rng(0)
IMAGE, ROWS = (2, 4, 7, 6), (3, 5, 6)
CPU = Device("cpu")


def weight(*shape: int) -> NDArray[np.float32]:
    return RNG.normal(size=shape).astype(np.float32)


SLICED = {"from": np.array([0, 1]), "to": np.array([7, 6]), "axes": np.array([2, 3]), "by": np.array([2, 3])}
NORMED = {name: np.abs(weight(4)) + 0.1 for name in "sbmv"}
CASES: dict[str, tuple[tuple[int, ...], onnx.NodeProto, dict[str, NDArray[Any]]]] = {
    **{op: (IMAGE, node(op, ["x"], ["y"]), {}) for op in ("Relu", "Sigmoid", "Tanh", "HardSwish", "Elu", "Softplus", "Exp", "Abs")},
    "Clip": (IMAGE, node("Clip", ["x", "low", "high"], ["y"]), {"low": np.float32(-0.5), "high": np.float32(0.5)}),
    "LeakyRelu": (IMAGE, node("LeakyRelu", ["x"], ["y"], alpha=0.2), {}),
    "Identity": (IMAGE, node("Identity", ["x"], ["y"]), {}),
    "Slice": (IMAGE, node("Slice", ["x", "from", "to", "axes", "by"], ["y"]), SLICED),
    "Pad": (IMAGE, node("Pad", ["x", "pads", "with"], ["y"]), {"pads": np.array([0, 1, 0, 2, 0, 1, 3, 0]), "with": np.float32(2)}),
    "Pad that cuts off": (IMAGE, node("Pad", ["x", "pads"], ["y"]), {"pads": np.array([0, 0, -2, 1, 0, 0, 3, -1])}),
    "Pad of axes": (IMAGE, node("Pad", ["x", "pads", "", "axes"], ["y"]), {"pads": np.array([1, 0, 2, -1]), "axes": np.array([3, 1])}),
    "Pad by reflection": (IMAGE, node("Pad", ["x", "pads"], ["y"], mode="reflect"), {"pads": np.array([0, 0, 2, 1, 0, 0, 1, 2])}),
    "Gather": (ROWS, node("Gather", ["x", "which"], ["y"], axis=1), {"which": np.array([[4, 0], [4, 2]])}),
    "Expand": ((1, 4, 1, 3), node("Expand", ["x", "shape"], ["y"]), {"shape": np.array([2, 4, 5, 3])}),
    "Reshape": (IMAGE, node("Reshape", ["x", "shape"], ["y"]), {"shape": np.array([0, -1])}),
    "Flatten": (IMAGE, node("Flatten", ["x"], ["y"]), {}),
    "Transpose": (IMAGE, node("Transpose", ["x"], ["y"], perm=[0, 2, 3, 1]), {}),
    "Transpose without order": (ROWS, node("Transpose", ["x"], ["y"]), {}),
    "Concat": (ROWS, node("Concat", ["k", "x", "x"], ["y"], axis=-1), {"k": weight(3, 5, 2)}),
    "Add": (IMAGE, node("Add", ["x", "k"], ["y"]), {"k": weight(4, 1, 1)}),
    "Add that spreads": ((2, 4, 1, 6), node("Add", ["k", "x"], ["y"]), {"k": weight(2, 4, 7, 6)}),
    "Add to itself": (ROWS, node("Add", ["x", "x"], ["y"]), {}),
    "Sub": (ROWS, node("Sub", ["k", "x"], ["y"]), {"k": weight(5, 6)}),
    "Mul": (IMAGE, node("Mul", ["x", "k"], ["y"]), {"k": weight(2, 4, 1, 1)}),
    "Mul that spreads": ((2, 4, 1, 1), node("Mul", ["k", "x"], ["y"]), {"k": weight(*IMAGE)}),
    "Mul by itself": (ROWS, node("Mul", ["x", "x"], ["y"]), {}),
    "Div": (ROWS, node("Div", ["x", "k"], ["y"]), {"k": weight(6) + 3}),
    "GlobalAveragePool": (IMAGE, node("GlobalAveragePool", ["x"], ["y"]), {}),
    "ReduceMean": (IMAGE, node("ReduceMean", ["x"], ["y"], axes=[2, 3], keepdims=0), {}),
    "ReduceSum": (IMAGE, node("ReduceSum", ["x", "axes"], ["y"]), {"axes": np.array([1])}),
    "BatchNormalization": (IMAGE, node("BatchNormalization", ["x", "s", "b", "m", "v"], ["y"], epsilon=0.1), NORMED),
    "Gemm": ((5, 6), node("Gemm", ["x", "w", "b"], ["y"], transB=1, alpha=0.5), {"w": weight(4, 6), "b": weight(4)}),
    "Gemm not turned": ((5, 6), node("Gemm", ["x", "w"], ["y"]), {"w": weight(6, 4)}),
    "MatMul": (ROWS, node("MatMul", ["x", "w"], ["y"]), {"w": weight(6, 4)}),
    "MatMul of two": (ROWS, node("MatMul", ["k", "x"], ["y"]), {"k": weight(3, 2, 5)}),
    "Softmax": (ROWS, node("Softmax", ["x"], ["y"], axis=1), {}),
    "Conv": (IMAGE, node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1]), {"w": weight(3, 4, 3, 3)}),
    "Conv of strides": (IMAGE, node("Conv", ["x", "w"], ["y"], strides=[2, 3], pads=[1, 0, 0, 2]), {"w": weight(3, 4, 3, 2)}),
    "Conv of groups": (IMAGE, node("Conv", ["x", "w"], ["y"], group=2, dilations=[2, 1]), {"w": weight(6, 2, 3, 3)}),
    "Conv that pads itself": (IMAGE, node("Conv", ["x", "w"], ["y"], auto_pad="SAME_UPPER", strides=[2, 2]), {"w": weight(3, 4, 3, 3)}),
    "Conv in one dimension": ((2, 4, 9), node("Conv", ["x", "w"], ["y"], strides=[2]), {"w": weight(3, 4, 4)}),
    "AveragePool": (IMAGE, node("AveragePool", ["x"], ["y"], kernel_shape=[2, 3], strides=[2, 2]), {}),
    "MaxPool": (IMAGE, node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1]), {}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_what_differences_give(name: str) -> None:
    """Float32 differences over .02 in the middle of straight pieces: x keeps .03 from the corners at 0 and at .5."""
    shape, asked, weights = CASES[name]
    rng = np.random.default_rng(len(name))
    x = rng.permutation(np.arange(np.prod(shape)) * 0.07 - 0.07 * np.prod(shape) // 2 + 0.035).reshape(shape).astype(np.float32)
    x = (x * min(1, 4 / np.abs(x).max()) if asked.op_type in ("Exp", "Softmax", "Mul") else x).astype(np.float32)
    graph = helper.make_graph(
        [asked], "g", [helper.make_tensor_value_info("x", 1, list(shape))], [helper.make_tensor_value_info("y", 1, None)],
        [numpy_helper.from_array(values, key) for key, values in weights.items()],
    )  # fmt: skip
    opset = 18 if name == "Pad of axes" else 17
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    shapes = shapes_of(model, {"x": x}, CPU)
    gradient = rng.normal(size=shapes["y"]).astype(np.float32)
    build = Builder(Constants(model), shapes)
    found = RULES[asked.op_type](build, asked, "gradient")
    assert found is not None
    with_it = onnx.ModelProto()
    with_it.CopyFrom(model)
    with_it.graph.node.extend([*build.nodes, helper.make_node("Identity", [found["x"]], ["came"])])
    with_it.graph.initializer.extend(build.stored)
    with_it.graph.input.append(helper.make_tensor_value_info("gradient", 1, list(gradient.shape)))
    with_it.graph.output.append(helper.make_tensor_value_info("came", 1, None))
    session = onnxruntime.InferenceSession(with_it.SerializeToString())
    (came,) = session.run(["came"], {"x": x, "gradient": gradient})

    def value(at: int, step: float) -> float:
        moved = x.copy()
        moved.reshape(-1)[at] += step
        (y,) = session.run(["y"], {"x": moved, "gradient": gradient})
        return float((y.astype(np.float64) * gradient).sum())

    wanted = np.array([(value(at, 0.01) - value(at, -0.01)) / 0.02 for at in range(x.size)]).reshape(shape)
    np.testing.assert_allclose(came, wanted, rtol=5e-3, atol=5e-3 * np.abs(wanted).max())


def two_layers(*, op: str = "Identity", opset: int = 17) -> onnx.ModelProto:
    nodes = [
        node("Gemm", ["x", "w1", "b1"], ["a"], name="one", transB=1),
        node(op, ["a"], ["h"]),
        node("Gemm", ["h", "w2", "b2"], ["y"], name="two", transB=1),
    ]
    rng = np.random.default_rng(4)
    weights = {
        name: rng.normal(size=size).astype(np.float32) for name, size in (("w1", (6, 8)), ("b1", (6,)), ("w2", (3, 6)), ("b2", (3,)))
    }
    return build(nodes, weights, {"x": ["N", 8]}, ["y"], opset=opset)


def batches(count: int = 40, size: int = 50) -> list[dict[str, NDArray[Any]]]:
    rng = np.random.default_rng(6)
    return [{"x": rng.normal(size=(size, 8)).astype(np.float32)} for _ in range(count)]


def test_the_moments_are_those_of_the_jacobian() -> None:
    """Without an activation J is w2: J'J = w2'w2. Of 1,000 random gradients the mean is within 15 % of it (chi squared)."""
    model = two_layers()
    found = gradient_moments(model, points_of(layers.find(model)), batches(), 0, CPU)
    w2 = numpy_helper.to_array(next(tensor for tensor in model.graph.initializer if tensor.name == "w2")).astype(np.float64)
    wanted = w2.T @ w2
    assert found["a"].shape == (2, *wanted.shape)
    both = found["a"].sum(0)
    wanted *= np.trace(both) / np.trace(wanted)
    np.testing.assert_allclose(both, wanted, atol=0.15 * np.abs(wanted).max())


def test_every_other_batch_is_of_the_other_half() -> None:
    """Three batches: the first and the third are in one half, the second in the other; one batch alone leaves that empty."""
    model = two_layers()
    points = points_of(layers.find(model))
    given = batches(3)
    one, two, three = (gradient_moments(model, points, given[:count], 0, CPU)["a"] for count in (1, 2, 3))
    assert not one[1].any()
    np.testing.assert_array_equal(two[0], one[0])
    np.testing.assert_array_equal(three[1], two[1])
    assert np.trace(three[0]) > np.trace(two[0])


def test_the_same_seed_gives_the_same_and_another_another() -> None:
    model = two_layers(op="Relu")
    points = points_of(layers.find(model))
    one, two, three = (gradient_moments(model, points, batches(), seed, CPU)["a"] for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, two)
    assert not np.array_equal(one, three)


@pytest.mark.parametrize(("op", "opset", "known"), [("Relu", 17, {"a", "y"}), ("Ceil", 17, {"y"}), ("Relu", 15, set())])
def test_what_is_behind_no_rule_is_not_known(op: str, opset: int, known: set[str]) -> None:
    model = two_layers(op=op, opset=opset)
    assert set(gradient_moments(model, points_of(layers.find(model)), batches(2), 0, CPU)) == known


def test_what_is_known_is_not_measured_again() -> None:
    """Only what is missing is: not even a sample is asked for where nothing is; and what cannot be known is not asked for again."""
    model = two_layers(op="Ceil")
    points = points_of(layers.find(model))
    first = metrics(model, points, batches(4), 0, CPU, {})
    assert first["a"] is None
    assert first["y"] is not None

    def refused() -> Iterator[dict[str, NDArray[Any]]]:
        raise AssertionError("asked for samples")
        yield

    assert metrics(model, points, refused(), 0, CPU, dict(first)) == first
    again = metrics(model, points, batches(4), 0, CPU, {"a": None})
    assert again["y"] is not None
    np.testing.assert_array_equal(again["y"].along, first["y"].along)


def test_shapes_that_the_model_computes_with_are_no_way_back() -> None:
    """As torch writes view(x.size(0), -1): the Reshape reads a shape that hangs on the layer, through which no gradient comes."""
    nodes = [
        node("Conv", ["x", "w"], ["a"], name="one"),
        node("Shape", ["a"], ["s"]),
        node("Gather", ["s", "zero"], ["n"]),
        node("Concat", ["n", "rest"], ["to"], axis=0),
        node("Reshape", ["a", "to"], ["h"]),
        node("Gemm", ["h", "w2"], ["y"], name="two"),
    ]
    weights = {"w": weight(4, 3, 3, 3), "w2": weight(64, 5), "zero": np.array([0]), "rest": np.array([-1])}
    model = build(nodes, weights, {"x": ["N", 3, 6, 6]}, ["y"], opset=17)
    found = gradient_moments(model, points_of(layers.find(model)), [{"x": weight(8, 3, 6, 6)}], 0, CPU)
    assert set(found) == {"a", "y"}


def test_the_model_is_not_changed() -> None:
    model = two_layers()
    before = model.SerializeToString(deterministic=True)
    assert backwards(model, points_of(layers.find(model)), shapes_of(model, batches(1)[0], CPU), 0) is not None
    assert model.SerializeToString(deterministic=True) == before
    assert model.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
