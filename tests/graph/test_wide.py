"""Convolutions whose statistics follow from what they read: which they are, and that the statistics are the same."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from models import build, node, rand, run
from test_cheap import inverted

from onnxprune import prune
from onnxprune.graph import layers, wide
from onnxprune.graph.planning import plan
from onnxprune.graph.points import points
from onnxprune.graph.stages import tapped
from onnxprune.graph.tensors import Constants
from onnxprune.numerics.moments import Moments
from onnxprune.numerics.products import Products
from onnxprune.runtime import stream
from onnxprune.runtime.device import Device
from onnxprune.statistics import dense_moments


def found_in(model: onnx.ModelProto) -> list[wide.Wide]:
    constants, known = Constants(model), plan(model)
    return [found for point in points(layers.find(model)) if (found := wide.wide(constants, known, point)) is not None]


def widening(
    channels: int = 6, inputs: int = 3, rank: int = 4, *, bias: bool = False, kind: Any = np.float32, opset: int = 21, **attributes: Any
) -> onnx.ModelProto:
    """y = Conv(Sigmoid(x)) with a kernel of size 1."""
    rng = np.random.default_rng(0)
    group = attributes.get("group", 1)
    constants = {"w": rand(rng, channels, inputs // group, *[1] * (rank - 2), dtype=kind)}
    constants |= {"b": rand(rng, channels, dtype=kind)} if bias else {}
    nodes = [node("Sigmoid", ["x"], ["a"]), node("Conv", ["a", *constants], ["y"], **attributes)]
    elem_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return build(nodes, constants, {"x": ["N", inputs, *[5] * (rank - 2)]}, ["y"], opset=opset, elem_type=elem_type)


def test_which_they_are() -> None:
    assert found_in(widening()) == [wide.Wide("a", 3, 4, "y", "w", "")]
    assert found_in(widening(bias=True, rank=3)) == [wide.Wide("a", 3, 3, "y", "w", "b")]
    assert [found.target for found in found_in(inverted())] == ["widen"]
    assert [found.target for found in found_in(inverted(norms=False))] == ["widen"]
    explicit = {"kernel_shape": [1, 1], "strides": [1, 1], "pads": [0, 0, 0, 0], "dilations": [1, 1], "group": 1}
    assert len(found_in(widening(**explicit))) == len(found_in(widening(auto_pad="SAME_UPPER"))) == 1
    assert len(found_in(widening(channels=100, inputs=50))) == 1
    for other in (
        widening(channels=5),
        widening(channels=402, inputs=201),  # 2 x 201 x 201 multiplications for 402 elements are more than 200 an element
        widening(strides=[2, 2]),
        widening(pads=[1, 1, 1, 1]),
        widening(channels=9, group=3),
        widening(kind=np.float16),
        widening(kind=np.float64),
        widening(opset=12),
        inverted(computed=True),
    ):
        assert found_in(other) == []
    assert len(found_in(widening(channels=400, inputs=200))) == len(found_in(widening(opset=13))) == 1


@pytest.mark.parametrize("opset", [13, 17, 18, 21, 26])
@pytest.mark.parametrize("rank", [3, 4, 5])
def test_the_sums_of_a_batch(rank: int, opset: int) -> None:
    model = widening(rank=rank, opset=opset, bias=True)
    (found,) = found_in(model)
    x = rand(np.random.default_rng(1), 4, 3, *[5] * (rank - 2)) * 3 + 100
    copy = tapped(model, [found])
    assert [value.name for value in copy.graph.output] == ["y", *found.outputs]
    got = Products(*found.read(*run(copy, {"x": x}, found.outputs)))
    (a,) = run(model, {"x": x}, ["a"])
    rows = np.moveaxis(a, 1, -1).reshape(-1, 3).astype(np.float64)
    assert got.count == len(rows) and got.products.dtype == got.sums.dtype == np.float64
    np.testing.assert_allclose(got.sums, rows.sum(0), rtol=1e-12)  # sums of doubles
    np.testing.assert_allclose(got.products, rows.T @ rows, rtol=1e-12)
    moments = got.moments(*found.parameters(Constants(model)))
    (y,) = run(model, {"x": x}, ["y"])
    want = Moments.from_batch(y, 1)
    np.testing.assert_allclose(moments.mean, want.mean, rtol=1e-5, atol=1e-5)  # y is rounded to float32
    np.testing.assert_allclose(moments.variance, want.variance, rtol=1e-3, atol=1e-13)  # of a that is next to 1, rounded to 2^-24


def test_a_batch_of_nothing() -> None:
    model = widening()
    (found,) = found_in(model)
    got = Products(*found.read(*run(tapped(model, [found]), {"x": np.zeros((0, 3, 5, 5), np.float32)}, found.outputs)))
    assert got.count == 0 and not got.sums.any() and not got.products.any()
    assert got.moments(*found.parameters(Constants(model))).count == 0


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("at_once", [1, 2])
def test_the_dense_statistics(norms: bool, at_once: int) -> None:
    """Of batches of several sizes; behind the BatchNormalization where there is one."""
    model, x = inverted(norms=norms), rand(np.random.default_rng(3), 20, 3, 8, 8)
    places = points(layers.find(model))
    batches = [{"x": part} for part in np.split(x, [7, 14, 17])]
    got = dense_moments(model, places, batches, Device("cpu", threads=1, at_once=at_once), lambda: None)
    for point, moments in zip(places, got, strict=True):
        want = Moments.from_batch(run(model, {"x": x}, [point.dense_tensor])[0], point.axis)
        assert moments.count == want.count
        np.testing.assert_allclose(moments.mean, want.mean, rtol=1e-4, atol=1e-5)  # float32, up to five layers
        np.testing.assert_allclose(moments.variance, want.variance, rtol=1e-4, atol=1e-12)  # some channels are cut to a constant


def residual(*, norms: bool) -> onnx.ModelProto:
    """Two bottlenecks of 4 in 24 channels: what a wide convolution makes is read by two later layers, over several stages."""
    rng = np.random.default_rng(4)
    constants: dict[str, Any] = {}
    nodes: list[onnx.NodeProto] = []

    def conv(name: str, source: str, *shape: int) -> str:
        constants[f"{name}.w"] = rand(rng, *shape) / np.float32(np.sqrt(np.prod(shape[1:])))
        pads = [shape[-1] // 2] * 4
        nodes.append(node("Conv", [source, f"{name}.w"], [name], name=name, pads=pads))
        if not norms:
            constants[f"{name}.b"] = rand(rng, shape[0])
            nodes[-1].input.append(f"{name}.b")
            return name
        parameters = (1 + rng.random(shape[0]), rng.normal(size=shape[0]), rng.normal(size=shape[0]) / 9, 1 + rng.random(shape[0]))
        names = [f"{name}.{letter}" for letter in "sbmv"]
        constants.update(zip(names, (value.astype(np.float32) for value in parameters), strict=True))
        nodes.append(node("BatchNormalization", [name, *names], [f"{name}.n"]))
        return f"{name}.n"

    def act(op: str, *sources: str) -> str:
        nodes.append(node(op, sources, [f"{sources[0]}.{op}"]))
        return f"{sources[0]}.{op}"

    wide = act("Relu", conv("stem", "x", 24, 3, 3, 3))
    for block in "ab":
        narrow = act("Relu", conv(f"{block}1", wide, 4, 24, 1, 1))
        narrow = act("Relu", conv(f"{block}2", narrow, 4, 4, 3, 3))
        wide = act("Relu", act("Add", conv(f"{block}3", narrow, 24, 4, 1, 1), wide))
    nodes.append(node("GlobalAveragePool", [wide], ["y"]))
    return build(nodes, constants, {"x": ["N", 3, 8, 8]}, ["y"])


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize(
    "repair", ["bn", "channel", "reconstruct", *(pytest.param(how, marks=pytest.mark.slow) for how in ("layer", "asr"))]
)
def test_a_repair_is_the_same_as_with_statistics_of_what_is_made(
    norms: bool, repair: str, kept: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``kept``: ONNX Runtime keeps what a wide convolution makes for the next stage, it does not run it again."""
    asked: list[str] = []
    sums = stream.Stream.sums

    def spy(self: stream.Stream, found: wide.Wide) -> Any:
        asked.append(found.target)
        return sums(self, found)

    if kept:
        monkeypatch.setattr("onnxprune.graph.cheap.WORK", 0.0)
    monkeypatch.setattr(stream.Stream, "sums", spy)
    for model in (inverted(norms=norms), residual(norms=norms)):
        x = rand(np.random.default_rng(5), 40, 3, 8, 8)
        options: dict[str, Any] = {"sparsity": 0.5, "repair": repair, "device": "cpu", "holdout": 0.0, "batch_size": 8}
        asked.clear()
        one = run(prune(model, x, **options).model, {"x": x})[0]
        assert asked == ([] if repair == "reconstruct" else ["widen"] if "widen" in str(model.graph.node) else ["a3", "b3"])
        with monkeypatch.context() as context:
            context.setattr(wide, "FACTOR", 10**9)
            asked.clear()
            other = run(prune(model, x, **options).model, {"x": x})[0]
            assert asked == []
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).std())  # float32 statistics, up to 8 layers
