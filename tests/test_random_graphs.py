"""Random networks of convolutions, norms, joins, pools, products and shared weights go through prune() and keep every invariant."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from invariants import check, check_identity, data, run, unmatched
from networks import model_of
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from onnxprune import Result, prune
from onnxprune.errors import AllocationError
from onnxprune.numerics.allocation import ALLOCATIONS
from onnxprune.options import REPAIRS

BATCH = 3


@dataclass
class Net:
    """A network that grows: nodes, weights, and the tensors that later nodes may read, with their shapes less the batch."""

    draw: Callable[[Any], Any]
    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, NDArray[Any]] = field(default_factory=dict)
    made: dict[str, tuple[int, ...]] = field(default_factory=dict)
    shared: list[tuple[str, tuple[Any, ...]]] = field(default_factory=list)

    def constant(self, array: Any, stem: str) -> str:
        """A weight under a new name, now and then in a Constant node."""
        name = f"{stem}{len(self.weights) + len(self.nodes)}"
        values = np.asarray(array)
        if self.draw(st.integers(0, 5)) == 0:
            value = numpy_helper.from_array(values, name)
            self.nodes.append(helper.make_node("Constant", [], [name], self.draw(st.sampled_from(["", f"const_{name}"])), value=value))
        else:
            self.weights[name] = values
        return name

    def normal(self, *shape: int, scale: float = 1.0) -> NDArray[np.float32]:
        return (scale * self.rng.normal(size=shape)).astype(np.float32)

    def emit(self, op: str, inputs: list[str], shape: tuple[int, ...], **attributes: Any) -> str:
        """A node, with or without a name, whose output may be read later."""
        number = len(self.nodes)
        name = self.draw(st.sampled_from([f"/net/{op}_{number}", f"{op}{number}", ""]))
        output = f"out{number}"
        self.nodes.append(helper.make_node(op, inputs, [output], name, **attributes))
        self.made[output] = shape
        return output

    def pick(self, rank: int) -> str:
        """A tensor of a rank made so far; recent ones more often."""
        names = [name for name, shape in self.made.items() if len(shape) == rank]
        return names[-1 - min(self.draw(st.integers(0, 5)) // 2, len(names) - 1)]


def convolution(net: Net, x: str) -> str:
    channels, height, width = net.made[x]
    kind = net.draw(st.sampled_from(["plain", "plain", "grouped", "depthwise", "pointwise", "transposed", "shared"]))
    kernel = 1 if kind == "pointwise" else net.draw(st.sampled_from([1, 2, 3]))
    group = {"grouped": 2 if channels % 2 == 0 else 1, "depthwise": channels}.get(kind, 1)
    wide = channels if kind == "depthwise" else group * net.draw(st.integers(1, 4))
    stride, dilation = net.draw(st.sampled_from([1, 1, 2])), net.draw(st.sampled_from([1, 1, 2]))
    bias = [net.constant(net.normal(wide, scale=0.3), "b")] if net.draw(st.booleans()) else []
    scale = float(np.sqrt(2 / (channels // group * kernel**2)))
    if kind == "transposed":
        if height * stride > 16:
            stride = 1
        weight = net.constant(net.normal(channels, wide, kernel, kernel, scale=scale), "w")
        grown = tuple((size - 1) * stride + kernel for size in (height, width))
        return net.emit("ConvTranspose", [x, weight, *bias], (wide, *grown), strides=[stride] * 2)
    if kind == "shared":
        fitting = [name for name, shape in net.shared if shape == (channels, channels)]
        if fitting:
            return net.emit("Conv", [x, fitting[0]], (channels, height, width), pads=[1] * 4)
        weight = net.constant(net.normal(channels, channels, 3, 3, scale=float(np.sqrt(2 / (channels * 9)))), "w")
        net.shared.append((weight, (channels, channels)))
        return net.emit("Conv", [x, weight], (channels, height, width), pads=[1] * 4)
    weight = net.constant(net.normal(wide, channels // group, kernel, kernel, scale=scale), "w")
    reach = dilation * (kernel - 1) + 1
    mode = net.draw(st.sampled_from(["SAME_UPPER", "SAME_LOWER", "pads"]))
    attributes: dict[str, Any] = {"strides": [stride] * 2, "group": group}
    if mode == "pads" or dilation > 1:  # ONNX Runtime's SAME with dilations is of no use to look at here
        pads = [net.draw(st.integers(0, 1)) + (reach // 2) for _ in range(4)]
        sizes = [(size + pads[axis] + pads[axis + 2] - reach) // stride + 1 for axis, size in enumerate((height, width))]
        attributes |= {"pads": pads, "dilations": [dilation] * 2}
    else:
        sizes = [-(-size // stride) for size in (height, width)]
        attributes["auto_pad"] = mode
    return net.emit("Conv", [x, weight, *bias], (wide, *sizes), **attributes)


def norm(net: Net, x: str) -> str:
    shape = net.made[x]
    channels = shape[0]
    kinds = ["BatchNormalization", "LayerNormalization"] + (["InstanceNormalization", "GroupNormalization"] if len(shape) == 3 else [])
    if len(shape) != 3:
        kinds = ["LayerNormalization"]
    kind = net.draw(st.sampled_from(kinds))
    width = shape[-1] if kind == "LayerNormalization" else channels
    scale = net.constant(net.rng.uniform(0.5, 1.5, width).astype(np.float32), "s")
    shift = net.constant(net.normal(width, scale=0.2), "t")
    if kind == "BatchNormalization":
        mean = net.constant(net.normal(width, scale=0.2), "m")
        return net.emit(kind, [x, scale, shift, mean, net.constant(net.rng.uniform(0.5, 1.5, width).astype(np.float32), "v")], shape)
    if kind == "GroupNormalization":
        return net.emit(kind, [x, scale, shift], shape, num_groups=2 if channels % 2 == 0 else 1)
    return net.emit(kind, [x, scale, shift], shape)


def activation(net: Net, x: str) -> str:
    op = net.draw(st.sampled_from(["Relu", "Sigmoid", "LeakyRelu", "Clip", "HardSwish", "Identity", "Tanh"]))
    if op == "Clip":
        return net.emit(op, [x, "", net.constant(np.float32(6), "c")], net.made[x])
    return net.emit(op, [x], net.made[x])


def join(net: Net, x: str) -> str:
    """Add to, multiply with, or stand beside another tensor that fits."""
    shape = net.made[x]
    same = [name for name, other in net.made.items() if other == shape and name != x]
    beside = [name for name, other in net.made.items() if other[1:] == shape[1:] and name != x and other[0] + shape[0] < 20]
    if same and net.draw(st.booleans()):
        return net.emit(net.draw(st.sampled_from(["Add", "Add", "Mul"])), [x, net.draw(st.sampled_from(same))], shape)
    if beside:
        other = net.draw(st.sampled_from(beside))
        return net.emit("Concat", [x, other], (shape[0] + net.made[other][0], *shape[1:]), axis=1)
    channels = shape[0]
    what = net.normal(*([channels, *[1] * (len(shape) - 1)] if len(shape) > 1 else [channels]))
    return net.emit(net.draw(st.sampled_from(["Add", "Mul"])), [x, net.constant(what, "a")], shape)


def pool(net: Net, x: str) -> str:
    channels, height, width = net.made[x]
    if height < 2 or width < 2:
        return net.emit("GlobalAveragePool", [x], (channels, 1, 1))
    sizes = (channels, (height - 2) // 2 + 1, (width - 2) // 2 + 1)
    return net.emit(net.draw(st.sampled_from(["MaxPool", "AveragePool"])), [x], sizes, kernel_shape=[2, 2], strides=[2, 2])


def product(net: Net, x: str) -> str:
    """MatMul or Gemm over the last axis, with or without a bias, in either orientation."""
    shape = net.made[x]
    inner, outer = shape[-1], net.draw(st.integers(1, 7))
    values = net.normal(inner, outer, scale=float(1 / np.sqrt(inner)))
    if len(shape) == 1 and net.draw(st.booleans()):
        bias = [net.constant(net.normal(outer, scale=0.3), "b")] if net.draw(st.booleans()) else []
        if net.draw(st.booleans()):
            return net.emit(
                "Gemm", [x, net.constant(values.T.copy(), "w"), *bias], (outer,), transB=1, alpha=net.draw(st.sampled_from([1.0, 0.5]))
            )
        return net.emit("Gemm", [x, net.constant(values, "w"), *bias], (outer,), beta=net.draw(st.sampled_from([1.0, 2.0])))
    out = net.emit("MatMul", [x, net.constant(values, "w")], (*shape[:-1], outer))
    if net.draw(st.booleans()):
        out = net.emit("Add", net.draw(st.permutations([out, net.constant(net.normal(outer, scale=0.3), "b")])), (*shape[:-1], outer))
    return out


def reshape(net: Net, x: str) -> str:
    shape = net.made[x]
    if len(shape) == 3 and net.draw(st.booleans()):
        return net.emit("Reshape", [x, net.constant(np.array([0, shape[0], -1]), "d")], (shape[0], shape[1] * shape[2]))
    if len(shape) == 2 and net.draw(st.booleans()):
        return net.emit("Transpose", [x], (shape[1], shape[0]), perm=[0, 2, 1])
    return net.emit("Flatten", [x], (int(np.prod(shape)),))


STEPS = {
    3: (convolution, convolution, norm, activation, join, pool, reshape, product),
    2: (product, norm, activation, join, reshape),
    1: (product, norm, activation, join),
}


@st.composite
def networks(draw: Callable[[Any], Any], depth: int = 8) -> onnx.ModelProto:
    """A network of at least one layer; every tensor that nothing reads is an output."""
    net = Net(draw, np.random.default_rng(draw(st.integers(0, 2**31))))
    channels, height, width = draw(st.integers(1, 5)), draw(st.integers(4, 8)), draw(st.integers(4, 8))
    net.made["x"] = (channels, height, width)
    for _ in range(draw(st.integers(2, depth))):
        rank = draw(st.sampled_from(sorted({len(shape) for shape in net.made.values()}, reverse=True)))
        x = net.pick(rank)
        if int(np.prod(net.made[x])) > 3000 and rank == 3:
            pool(net, x)
            continue
        draw(st.sampled_from(STEPS[rank]))(net, x)
    x = next(reversed(net.made))
    if len(net.made[x]) > 1:
        x = net.emit("Flatten", [x], (int(np.prod(net.made[x])),))
    product(net, x)
    read = {name for node in net.nodes for name in node.input}
    outputs: dict[str, tuple[Any, ...]] = {name: ("N", *shape) for name, shape in net.made.items() if name not in read}
    fixed = draw(st.sampled_from(["N", "N", BATCH]))
    outputs = {name: (fixed, *shape[1:]) for name, shape in outputs.items()}
    return model_of(net.nodes, {"x": (fixed, channels, height, width)}, outputs, net.weights, opset=21)


def goes_through(model: onnx.ModelProto, options: dict[str, Any], seed: int) -> None:
    """prune() on random samples keeps every invariant."""
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim][1:]
    samples = np.random.default_rng(seed).normal(size=(BATCH * 8, *shape)).astype(np.float32)
    run(model, {"x": samples[:BATCH]})  # the network itself is sound
    with contextlib.suppress(AllocationError):  # fewer weights are asked for than there are layers
        result = prune(model, samples, batch_size=BATCH, **options)
        holds(model, result, samples, options)


def holds(model: onnx.ModelProto, result: Result, samples: NDArray[np.float32], options: dict[str, Any]) -> None:
    """Every invariant, the identity, the same bytes again, and from outside what a channel repair gives back."""
    feed = {"x": samples[:BATCH]}
    check(model, result, feed, options)
    check_identity(model, lambda sparsity: prune(model, samples, batch_size=BATCH, **{**options, "sparsity": sparsity}))
    again = prune(model, samples, batch_size=BATCH, **options)
    assert data(again.model) == data(result.model)
    if options["repair"] == "channel":
        whole = prune(model, samples, batch_size=BATCH, **{**options, "holdout": 0})
        assert unmatched(model, whole, {"x": samples}, BATCH) == []


PLANS = st.fixed_dictionaries(
    {
        "alloc": st.sampled_from(list(ALLOCATIONS)),
        "repair": st.sampled_from(REPAIRS),
        "sparsity": st.sampled_from([0.1, 0.5, 0.7, 0.9]),
        "unfold": st.booleans(),
        "seed": st.integers(0, 3),
    }
)
QUIET = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]}


@settings(max_examples=15, derandomize=True, **QUIET)
@given(networks(), PLANS, st.integers(0, 2**31))
def test_random_networks_keep_every_invariant(model: onnx.ModelProto, options: dict[str, Any], seed: int) -> None:
    goes_through(model, options, seed)


@pytest.mark.slow
@pytest.mark.long
@settings(max_examples=600, **QUIET)
@given(networks(depth=24), PLANS, st.integers(0, 2**31))
def test_many_random_networks_keep_every_invariant(model: onnx.ModelProto, options: dict[str, Any], seed: int) -> None:
    goes_through(model, options, seed)
