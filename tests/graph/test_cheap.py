"""Nodes that are run again: which they are, counted by hand, and that a repair does not depend on them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from models import build, node, rand, run
from numpy.typing import NDArray

from onnxprune import prune
from onnxprune.graph import cheap
from onnxprune.graph.planning import plan
from onnxprune.graph.probes import Probe
from onnxprune.numerics.moments import Moments
from onnxprune.runtime.device import Device
from onnxprune.runtime.stream import Stream

WIDE, NARROW = 24, 4


def inverted(*, norms: bool = True, stride: int = 2, computed: bool = False) -> onnx.ModelProto:
    """A stem, and a block that widens 6 times, convolves depthwise and narrows; with BatchNormalization, or with biases in its place.

    ``computed``: the widening convolution has a bias that is computed at run time.
    """
    rng = np.random.default_rng(0)
    constants: dict[str, NDArray[Any]] = {}
    nodes: list[onnx.NodeProto] = []

    def conv(name: str, source: str, shape: tuple[int, ...], act: bool, **attributes: Any) -> str:
        constants[f"{name}.w"] = rand(rng, *shape) / np.float32(np.sqrt(np.prod(shape[1:])))
        inputs = [source, f"{name}.w"]
        if name == "widen" and computed:
            inputs.append("bias")
        elif not norms:
            constants[f"{name}.b"] = rand(rng, shape[0])
            inputs.append(f"{name}.b")
        nodes.append(node("Conv", inputs, [name], name=name, **attributes))
        if norms:
            parameters = {"scale": 1 + rng.random(shape[0]), "shift": rng.normal(size=shape[0])}
            parameters |= {"mean": rng.normal(size=shape[0]) / 9, "var": 1 + rng.random(shape[0])}
            constants.update({f"{name}.{what}": value.astype(np.float32) for what, value in parameters.items()})
            nodes.append(node("BatchNormalization", [name, *(f"{name}.{what}" for what in parameters)], [f"{name}.n"]))
            name = f"{name}.n"
        if act:
            nodes.append(node("Clip", [name, "zero", "six"], [f"{name}.a"]))
        return f"{name}.a" if act else name

    constants |= {"zero": np.float32(0), "six": np.float32(6), "axes": np.array([0, 2, 3]), "flat": np.array([0, NARROW])}
    stem = conv("stem", "x", (NARROW, 3, 3, 3), True, pads=[1, 1, 1, 1])
    if computed:
        constants["long"] = np.zeros((WIDE, NARROW), np.float32) + 1
        nodes.append(node("ReduceMean", [stem, "axes"], ["pooled"], keepdims=0))
        nodes.append(node("MatMul", ["long", "pooled"], ["bias"]))
    wide = conv("widen", stem, (WIDE, NARROW, 1, 1), True)
    deep = conv("depth", wide, (WIDE, 1, 3, 3), True, group=WIDE, pads=[1, 1, 1, 1], strides=[stride, stride])
    narrow = conv("narrow", deep, (NARROW, WIDE, 1, 1), False)
    nodes.append(node("GlobalAveragePool", [narrow], ["pool"]))
    nodes.append(node("Reshape", ["pool", "flat"], ["y"]))
    return build(nodes, constants, {"x": ["N", 3, 8, 8]}, ["y"])


def names(model: onnx.ModelProto) -> list[str]:
    """What the cheap nodes give."""
    constant = plan(model).constant
    fixed = {tensor.name for tensor in model.graph.initializer} | {model.graph.node[at].output[0] for at in constant}
    return [model.graph.node[number].output[0] for number in sorted(cheap.cheap(model, fixed))]


def test_a_block_by_hand() -> None:
    """Widening: 4 multiplications, 4 of 24 elements. Depthwise, stride 2: 9 and 4 times those of the widening; 4 of 6 elements.

    Narrowing: 24 and 6 times 25, which is 174, but it reads 6 times 4/6 elements: 4. The stem reads 3 for 4.
    """
    block = ["widen", "widen.n", "widen.n.a", "depth", "depth.n", "depth.n.a"]
    assert names(inverted()) == block
    assert names(inverted(stride=1)) == block
    assert names(inverted(norms=False)) == ["widen", "widen.a", "depth", "depth.a"]


def test_limits_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for work, last in ((3.9, None), (4.0, "widen.n.a"), (24.9, "widen.n.a"), (25.0, "depth.n.a")):
        monkeypatch.setattr(cheap, "WORK", work)
        assert (names(inverted()) or [None])[-1] == last
    monkeypatch.setattr(cheap, "WORK", 200.0)
    for held, last in ((0.16, None), (0.17, "widen.n.a"), (0.66, "widen.n.a"), (0.67, "depth.n.a"), (0.75, "depth.n.a")):
        monkeypatch.setattr(cheap, "HELD", held)
        assert (names(inverted()) or [None])[-1] == last
    assert names(inverted())[0] == "stem"  # 3 for 4
    assert names(inverted(computed=True))[:3] == ["stem", "stem.n", "stem.n.a"]


def test_parameters_that_are_computed_are_not_cheap() -> None:
    """A repair puts a node of its own before such a bias once the walk is over; none of it is there on the way."""
    assert names(inverted(computed=True)) == []


@pytest.mark.parametrize("stride", [1, 2])
def test_cheap_tensors_are_not_kept(stride: int) -> None:
    model, x = inverted(stride=stride), rand(np.random.default_rng(1), 5, 3, 8, 8)
    walker = Stream(model, iter([{"x": x}]), ["widen", "depth", "narrow", "y"], Device("cpu", threads=1))
    for tensor, channels, live in (("widen", WIDE, "stem.n.a"), ("depth", WIDE, "stem.n.a"), ("narrow", NARROW, "narrow")):
        moments = Moments.empty(channels)
        for size, mean, m2 in walker.advance(Probe(tensor, 1, channels)):
            moments = moments.merge(Moments.from_groups(size, mean, m2))
        (values,) = run(model, {"x": x}, [tensor])
        want = Moments.from_batch(values, 1)
        np.testing.assert_allclose(moments.mean, want.mean, atol=1e-5)  # float32 sums of 320 numbers of size 1
        np.testing.assert_allclose(moments.variance, want.variance, rtol=1e-4)
        assert [list(batch) for batch in walker._live] == [[live]]


@pytest.mark.parametrize("norms", [True, False])
@pytest.mark.parametrize("repair", ["bn", "layer", "channel", "asr", "reconstruct"])
def test_a_repair_is_the_same_with_tensors_kept(norms: bool, repair: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a repaired layer gives is computed from its new parameters, or from what it gave with the old ones: the same number."""
    model, x = inverted(norms=norms), rand(np.random.default_rng(2), 40, 3, 8, 8)
    options: dict[str, Any] = {"sparsity": 0.5, "repair": repair, "device": "cpu", "holdout": 0.0, "batch_size": 8}
    again = prune(model, x, **options)
    monkeypatch.setattr(cheap, "WORK", 0.0)
    kept = prune(model, x, **options)
    assert names(model) == []
    one, other = (run(found.model, {"x": x})[0] for found in (again, kept))
    np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3 * np.abs(other).std())  # float32, fused in other ways, 4 layers
    masked = run(prune(model, x, **{**options, "repair": "none"}).model, {"x": x})[0]
    assert np.abs(masked - other).max() > 0.1 * other.std()  # the repair does something
