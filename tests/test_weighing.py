"""How much a layer's channels are read: by hand, against impulses sent through ONNX Runtime, and what it changes in a layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from models import build, node
from numpy.typing import NDArray

from onnxprune.graph import layers
from onnxprune.graph.geometry import Geometry
from onnxprune.graph.points import points
from onnxprune.graph.tensors import Constants
from onnxprune.numerics.gram import Gram
from onnxprune.numerics.reconstruct import reconstruct
from onnxprune.numerics.targets import LEAST, importance
from onnxprune.reconstructing import shape_of
from onnxprune.weighing import weigh

Array = NDArray[Any]
RNG = np.random.default_rng(0)
FIRST = RNG.normal(size=(4, 2, 1, 1)).astype(np.float32)


def read_of(model: onnx.ModelProto) -> dict[str, Array]:
    """By a layer's name, how much its channels are read."""
    constants = Constants(model)
    found = [(point, shape_of(constants, point)) for point in points(layers.find(model))]
    places = {point.use.node: (point, shape) for point, shape in found if point.use and isinstance(shape, Geometry)}
    read = weigh(constants, constants, places)
    return {point.layer.weight: read[point.dense_tensor] for point, _ in places.values() if point.layer}


def model_of(nodes: list[onnx.NodeProto], output: str = "y", **held: Array) -> onnx.ModelProto:
    """A model of these nodes on x (N, 2, 3, 3)."""
    return build(nodes, {"w": FIRST} | held, {"x": ["N", 2, 3, 3]}, [output], opset=17)


def impulses(nodes: list[onnx.NodeProto], held: dict[str, Array], tensor: str, shape: tuple[int, ...]) -> Array:
    """What a unit in the middle of each channel of a tensor adds to y: sum of squares, mean 1. Only linear nodes behind the tensor."""
    later = [entry for entry in nodes if entry.output[0] != tensor and entry.input[0] != "x"]
    used = {name for entry in later for name in entry.input}
    model = build(later, {name: value for name, value in held.items() if name in used}, {tensor: list(shape)}, ["y"], opset=17)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    zero = session.run(None, {tensor: np.zeros(shape, np.float32)})[0]
    found = []
    for channel in range(shape[1]):
        impulse = np.zeros(shape, np.float32)
        impulse[0, channel, *[dim // 2 for dim in shape[2:]]] = 1
        found.append(float(((session.run(None, {tensor: impulse})[0].astype(np.float64) - zero) ** 2).sum()))
    return np.array(found) / np.mean(found)


LINEAR = {
    "a convolution": [node("Conv", ["h", "k"], ["y"], "k", pads=[1, 1, 1, 1])],
    "groups": [node("Conv", ["h", "g"], ["y"], "g", group=2)],
    "a transposed one": [node("ConvTranspose", ["h", "t"], ["y"], "t", group=2)],
    "a BatchNormalization behind it": [
        node("Conv", ["h", "k"], ["c"], "k", pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c", "scale", "bias", "mean", "variance"], ["y"]),
    ],
    "a BatchNormalization before it": [
        node("Identity", ["h"], ["i"]),  # so that it does not belong to the layer
        node("BatchNormalization", ["i", "scale4", "bias4", "mean4", "variance4"], ["n"]),
        node("Conv", ["n", "k"], ["y"], "k", pads=[1, 1, 1, 1]),
    ],
    "pooling and Flatten": [
        node("GlobalAveragePool", ["h"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "d"], ["y"], "d", transB=1),
    ],
    "a depthwise one, then another": [
        node("Conv", ["h", "dw"], ["m"], "dw", group=4, pads=[1, 1, 1, 1]),
        node("Conv", ["m", "one"], ["y"], "one"),
    ],
    "channels last": [
        node("Transpose", ["h"], ["l"], perm=[0, 2, 3, 1]),
        node("MatMul", ["l", "e"], ["y"], "e"),
    ],
}
HELD: dict[str, Array] = {
    "w": FIRST,
    **{
        name: RNG.normal(size=shape).astype(np.float32)
        for name, shape in {
            "k": (3, 4, 3, 3),
            "g": (6, 2, 1, 1),
            "t": (4, 3, 1, 1),
            "d": (5, 4),
            "dw": (4, 1, 3, 3),
            "one": (3, 4, 1, 1),
            "e": (4, 6),
        }.items()
    },
    **{name: RNG.uniform(0.2, 2, 3).astype(np.float32) for name in ("scale", "bias", "mean", "variance")},
    **{name: RNG.uniform(0.2, 2, 4).astype(np.float32) for name in ("scale4", "bias4", "mean4", "variance4")},
}


@pytest.mark.parametrize("kind", LINEAR)
def test_a_channel_is_read_as_much_as_an_impulse_on_it_moves_what_reads_it(kind: str) -> None:
    nodes = [node("Conv", ["x", "w"], ["h"], "w"), *LINEAR[kind]]
    used = {name for each in nodes for name in each.input}
    model = model_of(nodes, **{name: value for name, value in HELD.items() if name in used})
    wanted = impulses(nodes, HELD, "h", (1, 4, 3, 3))
    np.testing.assert_allclose(read_of(model)["w"], wanted, rtol=1e-5)  # impulses are float32 sums of at most 36 terms


def test_flattened_pixels_add_up_for_each_channel() -> None:
    d = RNG.normal(size=(5, 36)).astype(np.float32)
    model = model_of(
        [node("Conv", ["x", "w"], ["h"], "w"), node("Flatten", ["h"], ["f"]), node("Gemm", ["f", "d"], ["y"], "d", transB=1)], d=d
    )
    energy = (d.astype(np.float64) ** 2).sum(0).reshape(4, 9).sum(1)
    np.testing.assert_allclose(read_of(model)["w"], energy / energy.mean(), rtol=1e-12)


def test_both_readers_behind_a_sum_have_the_same_say() -> None:
    k, one = HELD["k"], HELD["one"] * 100
    nodes = [
        node("Conv", ["x", "w"], ["h"], "w"),
        node("Relu", ["h"], ["r"]),
        node("Conv", ["r", "k"], ["a"], "k", pads=[1, 1, 1, 1]),
        node("Conv", ["r", "one"], ["b"], "one"),
        node("Add", ["a", "b"], ["y"]),
    ]
    parts = [(v.astype(np.float64) ** 2).sum((0, 2, 3)) for v in (k, one)]
    wanted = sum(part / part.mean() for part in parts) / 2
    np.testing.assert_allclose(read_of(model_of(nodes, k=k, one=one))["w"], wanted, rtol=1e-12)


@pytest.mark.parametrize(
    "behind",
    [
        [node("Concat", ["h", "x"], ["c"], axis=1), node("Conv", ["c", "six"], ["y"], "six")],  # channels move
        [node("Softmax", ["h"], ["y"], axis=1)],  # no layer
        [node("MatMul", ["h", "three"], ["y"], "three")],  # reads the width, not the channels
    ],
    ids=["concat", "no layer", "another axis"],
)
def test_channels_whose_readers_are_not_known_count_alike(behind: list[onnx.NodeProto]) -> None:
    used = {name for each in behind for name in each.input}
    values = {"six": np.ones((2, 6, 1, 1), np.float32), "three": np.ones((3, 3), np.float32)}
    model = model_of([node("Conv", ["x", "w"], ["h"], "w"), *behind], **{name: value for name, value in values.items() if name in used})
    np.testing.assert_array_equal(read_of(model)["w"], 1.0)


def test_importance_by_hand() -> None:
    np.testing.assert_allclose(importance(np.array([1.0, 1.0, 2.0]), np.array([0.5, 1.0, 0.75])), np.array([0.5, 1.0, 1.5]))
    low = importance(np.array([0.0, 1.0]), np.array([1.0, 0.0]))  # nothing reads one, the other is always shut off
    np.testing.assert_allclose(low, [LEAST, 2.0])
    np.testing.assert_array_equal(importance(np.zeros(3), np.ones(3)), 1.0)


def problem(seed: int = 0) -> tuple[Gram, Array]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(600, 20)) @ (np.eye(20) + 0.3 * rng.normal(size=(20, 20)))
    w = rng.normal(size=(8, 20))
    return Gram.from_batch(x, x @ w.T), w


def test_what_counts_more_keeps_more_and_errs_less() -> None:
    gram, w = problem()
    counts = np.array([16.0, 1, 1, 1, 1, 1, 1, 1])
    even, uneven = (reconstruct(gram, None, w, 40, importance=given) for given in (None, counts))
    assert even.mask.sum() == uneven.mask.sum() == 40
    assert uneven.mask[0].sum() > even.mask[0].sum()

    def weighed(weight: Array) -> float:
        left = np.einsum("ck,kl,cl->c", weight - w, gram.xx[0], weight - w)
        return float(counts @ left)

    assert weighed(uneven.weight) < weighed(even.weight)


def test_equal_importance_changes_nothing() -> None:
    gram, w = problem(1)
    one, two = reconstruct(gram, None, w, 40), reconstruct(gram, None, w, 40, importance=np.ones(8))
    np.testing.assert_array_equal(one.weight, two.weight)
    three = reconstruct(gram, None, w, 40, importance=np.full(8, 4.0))  # a power of two scales without rounding
    np.testing.assert_array_equal(one.weight, three.weight)


def test_a_weight_on_a_given_support_does_not_depend_on_what_its_channel_counts() -> None:
    gram, w = problem(2)
    counts = np.random.default_rng(3).uniform(0.1, 4, 8)
    found = reconstruct(gram, None, w, w.size, importance=counts)
    np.testing.assert_allclose(found.weight, w, rtol=1e-9)
