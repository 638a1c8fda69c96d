"""Small models of every kind: where a weight lives, which operator reads it, what normalises it, what the graph is like.

``SUBJECTS`` maps a name to a builder; a builder gives a Subject. Models are written as ONNX text, weights beside it by name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper, parser

COUNT = 24
"""How many samples a subject brings."""

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model, samples for it, and what has to come out.

    ``layers`` is how many weights are pruned; ``skipped`` holds words of the reasons for which nodes are left, one entry a node.
    ``opened`` are those of them that a repair reaches all the same, in a branch that all samples take. ``batch`` is what one run takes.
    ``unrepaired`` layers keep their masks and the report says why.
    """

    model: onnx.ModelProto
    samples: Mapping[str, Array]
    layers: int
    skipped: tuple[str, ...] = ()
    unrepaired: int = 0
    opened: tuple[str, ...] = ()
    batch: int = 8
    options: Mapping[str, Any] = field(default_factory=dict)

    def feed(self, count: int = 0) -> dict[str, Array]:
        """One batch of the samples."""
        return batch_of(self.samples, 0, count or self.batch)


def batch_of(samples: Mapping[str, Array], start: int, stop: int, count: int = COUNT) -> dict[str, Array]:
    """The samples from ``start`` to ``stop``, along the first axis that has as many as there are; an input without one as it is."""
    out = {}
    for name, array in samples.items():
        axis = next((number for number, size in enumerate(array.shape) if size == count), None)
        out[name] = array if axis is None else array[(slice(None),) * axis + (slice(start, stop),)]
    return out


SUBJECTS: dict[str, Callable[[], Subject]] = {}


def subject(build: Callable[[], Subject]) -> Callable[[], Subject]:
    """Enter a builder under its name."""
    SUBJECTS[build.__name__.strip("_")] = build
    return build


# ---- tools


def net(body: str, weights: Mapping[str, Any], *, opset: int = 18, ir: int = 9, others: str = "", seed: int = 0) -> onnx.ModelProto:
    """A model from the text of its graph (and functions) and its weights: arrays, or shapes that random numbers fill."""
    imports = f'"" : {opset}' + others
    model = parser.parse_model(f"<ir_version: {ir}, opset_import: [{imports}]>\n{body}")
    rng = np.random.default_rng(seed)
    for name, value in weights.items():
        array = value if isinstance(value, np.ndarray) else rand(rng, *value)
        model.graph.initializer.append(numpy_helper.from_array(array, name))
    return model


def rand(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Normal numbers, scaled so that a sum over all axes but the first keeps its size."""
    fan = max(1, int(np.prod(shape[1:]))) if len(shape) > 1 else 25
    return rng.normal(0, 1 / np.sqrt(fan), shape).astype(np.float32)


def positive(seed: int, *shape: int) -> NDArray[np.float32]:
    """Numbers around 1, for scales and variances."""
    return np.random.default_rng(seed).uniform(0.5, 1.5, shape).astype(np.float32)


def data(*shape: int, seed: int = 7, count: int = COUNT) -> NDArray[np.float32]:
    """Samples with a level of their own."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, *shape)) + rng.normal(size=(count, *[1] * len(shape)))).astype(np.float32)


def tokens(*shape: int, high: int, seed: int = 7, dtype: Any = np.int64) -> Array:
    """Samples of whole numbers below ``high``."""
    return np.random.default_rng(seed).integers(0, high, (COUNT, *shape)).astype(dtype)


def move(model: onnx.ModelProto, name: str) -> onnx.TensorProto:
    """Take an initializer out of the graph."""
    found = next(entry for entry in model.graph.initializer if entry.name == name)
    copy = onnx.TensorProto()
    copy.CopyFrom(found)
    model.graph.initializer.remove(found)
    return copy


def as_constant(model: onnx.ModelProto, name: str) -> onnx.NodeProto:
    """An initializer, taken out of the graph, as a Constant node."""
    return helper.make_node("Constant", [], [name], f"const_{name}", value=move(model, name))


def to_constants(model: onnx.ModelProto) -> onnx.ModelProto:
    """Every initializer as a Constant node at the top of the graph, as PaddlePaddle's exporter writes them."""
    for name in [entry.name for entry in model.graph.initializer][::-1]:
        model.graph.node.insert(0, as_constant(model, name))
    return model


def behind(model: onnx.ModelProto, name: str, array: Array, *steps: tuple[str, tuple[str, ...], dict[str, Any]]) -> onnx.ModelProto:
    """``name`` made from ``array`` by a chain of nodes: (operator, further inputs, attributes), first to last."""
    move(model, name)
    model.graph.initializer.append(numpy_helper.from_array(array, f"{name}_stored"))
    source = f"{name}_stored"
    for number, (op, more, attributes) in enumerate(steps):
        target = name if number == len(steps) - 1 else f"{name}_{number}"
        model.graph.node.insert(number, helper.make_node(op, [source, *more], [target], f"{name}_{op}_{number}", **attributes))
        source = target
    return model


def add(model: onnx.ModelProto, **arrays: Array) -> onnx.ModelProto:
    """Further initializers."""
    model.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in arrays.items())
    return model


def values(model: onnx.ModelProto, name: str) -> Array:
    """The values of an initializer."""
    return np.asarray(numpy_helper.to_array(next(entry for entry in model.graph.initializer if entry.name == name)))


CONVNET = """
g (float[N,3,8,8] x) => (float[N,5] y) {
  [conv1] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
  [relu1] b = Relu (a)
  [conv2] c = Conv <pads=[1,1,1,1], strides=[2,2]> (b, w2)
  [bn] d = BatchNormalization (c, s, t, m, v)
  [relu2] e = Relu (d)
  [pool] f = GlobalAveragePool (e)
  [flat] h = Flatten (f)
  [fc] y = Gemm <transB=1> (h, w3, b3)
}
"""


def convnet(**options: Any) -> onnx.ModelProto:
    """Conv Relu Conv BatchNormalization Relu pool Gemm."""
    shapes = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (10, 8, 3, 3), "t": (10,), "m": (10,), "w3": (5, 10), "b3": (5,)}
    return net(CONVNET, shapes | {"s": positive(1, 10), "v": positive(2, 10)}, **options)


MLP = """
g (float[N,8] x) => (float[N,5] y) {
  [mm1] a = MatMul (x, w1)
  [add1] b = Add (a, b1)
  [act] c = Relu (b)
  [mm2] d = MatMul (c, w2)
  [add2] y = Add (d, b2)
}
"""


def mlp(**options: Any) -> onnx.ModelProto:
    """MatMul Add Relu MatMul Add."""
    return net(MLP, {"w1": (8, 12), "b1": (12,), "w2": (12, 5), "b2": (5,)}, **options)


def image() -> dict[str, Array]:
    return {"x": data(3, 8, 8)}


def row() -> dict[str, Array]:
    return {"x": data(8)}


# ---- where a weight lives


@subject
def initializer() -> Subject:
    return Subject(convnet(), image(), 3)


@subject
def constant_node() -> Subject:
    return Subject(to_constants(convnet()), image(), 3)


@subject
def constant_node_mlp() -> Subject:
    return Subject(to_constants(mlp()), row(), 2)


@subject
def behind_identity() -> Subject:
    model = mlp()
    return Subject(behind(model, "w1", values(model, "w1"), ("Identity", (), {})), row(), 2)


@subject
def behind_transpose() -> Subject:
    model = mlp()
    return Subject(behind(model, "w1", np.ascontiguousarray(values(model, "w1").T), ("Transpose", (), {"perm": [1, 0]})), row(), 2)


@subject
def behind_transpose_of_a_convolution() -> Subject:
    """tf2onnx: the kernel lies as height, width, in, out."""
    model = convnet()
    array = np.ascontiguousarray(values(model, "w2").transpose(2, 3, 1, 0))
    return Subject(behind(model, "w2", array, ("Transpose", (), {"perm": [3, 2, 0, 1]})), image(), 3)


@subject
def behind_cast() -> Subject:
    model = mlp()
    return Subject(behind(model, "w1", values(model, "w1").astype(np.float16), ("Cast", (), {"to": TensorProto.FLOAT})), row(), 2)


@subject
def behind_reshape() -> Subject:
    model = add(convnet(), shape=np.array([10, 8, 3, 3]))
    return Subject(behind(model, "w2", values(model, "w2").reshape(10, 72), ("Reshape", ("shape",), {})), image(), 3)


@subject
def behind_flat_reshape() -> Subject:
    model = add(mlp(), shape=np.array([8, 12]))
    return Subject(behind(model, "w1", values(model, "w1").ravel(), ("Reshape", ("shape",), {})), row(), 2)


@subject
def behind_unsqueeze() -> Subject:
    model = add(convnet(), axes=np.array([2, 3]), w4=rand(np.random.default_rng(3), 8, 3, 1, 1))
    model.graph.node[0].input[1] = "w4"
    del model.graph.node[0].attribute[:]
    move(model, "w1")
    return Subject(behind(model, "w4", values(model, "w4").reshape(8, 3), ("Unsqueeze", ("axes",), {})), image(), 3)


@subject
def behind_cast_and_transpose() -> Subject:
    model = mlp()
    half = np.ascontiguousarray(values(model, "w1").T.astype(np.float16))
    steps = ("Cast", (), {"to": TensorProto.FLOAT}), ("Transpose", (), {"perm": [1, 0]})
    return Subject(behind(model, "w1", half, *steps), row(), 2)


@subject
def behind_transpose_as_constant_node() -> Subject:
    model = mlp()
    return Subject(to_constants(behind(model, "w1", np.ascontiguousarray(values(model, "w1").T), ("Transpose", (), {}))), row(), 2)


def _integers(array: Array, axis: int | None = None, zero: int = 0, dtype: Any = np.int8) -> tuple[Array, Array, Array]:
    """Whole numbers, scale and zero point of a weight, for the tensor or along an axis."""
    rest = tuple(number for number in range(array.ndim) if number != axis) if axis is not None else None
    peak = np.abs(array).max(axis=rest)
    scale = (peak / 127).astype(np.float32)
    shape = [1] * array.ndim
    if axis is not None:
        shape[axis] = -1
    whole = np.round(array / scale.reshape(shape if axis is not None else ())) + zero
    return whole.astype(dtype), np.asarray(scale), np.full(scale.shape, zero, dtype)


@subject
def behind_dequantize() -> Subject:
    model = mlp()
    whole, scale, zero = _integers(values(model, "w1"))
    return Subject(behind(add(model, sc=scale, zp=zero), "w1", whole, ("DequantizeLinear", ("sc", "zp"), {})), row(), 2)


@subject
def behind_dequantize_uint8() -> Subject:
    model = mlp()
    whole, scale, zero = _integers(values(model, "w1"), None, 128, np.uint8)
    return Subject(behind(add(model, sc=scale, zp=zero), "w1", whole, ("DequantizeLinear", ("sc", "zp"), {})), row(), 2)


@subject
def behind_dequantize_by_channel() -> Subject:
    model = convnet()
    whole, scale, zero = _integers(values(model, "w2"), 0)
    return Subject(behind(add(model, sc=scale, zp=zero), "w2", whole, ("DequantizeLinear", ("sc", "zp"), {"axis": 0})), image(), 3)


@subject
def behind_dequantize_without_zero_point() -> Subject:
    model = convnet()
    whole, scale, _ = _integers(values(model, "w2"))
    return Subject(behind(add(model, sc=scale), "w2", whole, ("DequantizeLinear", ("sc",), {})), image(), 3)


@subject
def outer_scope_of_a_body() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [mm1] a = MatMul (x, w1)
      [act] b = Relu (a)
      [sum] s = ReduceSum <keepdims=0> (b)
      [test] c = Greater (s, zero)
      [if] y = If (c) <
        then_branch = yes () => (float[N,5] p) { [inner1] p = MatMul (b, w2) },
        else_branch = no () => (float[N,5] q) { [inner2] q = MatMul (b, w3) }
      >
    }"""
    model = net(body, {"w1": (8, 12), "w2": (12, 5), "w3": (12, 5), "zero": np.zeros((), np.float32)})
    return Subject(model, row(), 3, unrepaired=2)


@subject
def inside_if() -> Subject:
    """The branches hold their weights themselves, one as an initializer, one as a Constant node."""
    model = outer_scope_of_a_body().model
    branches = {entry.name: entry.g for entry in model.graph.node[-1].attribute}
    branches["then_branch"].initializer.append(move(model, "w2"))
    branches["else_branch"].node.insert(0, as_constant(model, "w3"))
    return Subject(model, row(), 3, unrepaired=2)


@subject
def inside_if_convolution() -> Subject:
    """Conv with a bias, BatchNormalization, and MatMul with an Add inside a branch, as silero's detector has them."""
    body = """
    g (float[N,3,8,8] x, bool wide) => (float[N,5] y) {
      [stem] a = Conv <pads=[1,1,1,1]> (x, w1, b1)
      [if] y = If (wide) <
        then_branch = yes () => (float[N,5] p) {
          [inner1] c = Conv (a, w2, b2)
          [innerbn] d = BatchNormalization (c, s, t, m, v)
          [innergap] e = GlobalAveragePool (d)
          [innerflat] f = Flatten (e)
          [inner2] h = MatMul (f, w3)
          [inneradd] p = Add (h, b3)
        },
        else_branch = no () => (float[N,5] q) {
          [othergap] i = GlobalAveragePool (a)
          [otherflat] j = Flatten (i)
          [other] q = Gemm <transB=1> (j, w4, b4)
        }
      >
    }"""
    weights = {
        "w1": (8, 3, 3, 3),
        "b1": (8,),
        "w2": (6, 8, 3, 3),
        "b2": (6,),
        "s": positive(1, 6),
        "t": (6,),
        "m": (6,),
        "v": positive(2, 6),
    }
    model = net(body, weights | {"w3": (6, 5), "b3": (5,), "w4": (5, 8), "b4": (5,)})
    branches = {entry.name: entry.g for entry in model.graph.node[-1].attribute}
    branches["then_branch"].initializer.extend(move(model, name) for name in ("w2", "b2", "s", "t", "m", "v", "w3", "b3"))
    branches["else_branch"].initializer.extend(move(model, name) for name in ("w4", "b4"))
    inside = ("inside the then branch",)
    return Subject(model, {"x": data(3, 8, 8), "wide": np.array(True)}, 4, inside, unrepaired=1, opened=inside)


@subject
def inside_loop() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [mm1] a = MatMul (x, w1)
      [loop] l = Loop (trips, , a) <body = step (int64 i, bool ok, float[N,8] h) => (bool again, float[N,8] t) {
        [again] again = Identity (ok)
        [inner] u = MatMul (h, w2)
        [tanh] t = Tanh (u)
      }>
      [mm3] y = MatMul (l, w3)
    }"""
    model = net(body, {"w1": (8, 8), "w2": (8, 8), "w3": (8, 5), "trips": np.array(3)})
    model.graph.node[1].attribute[0].g.initializer.append(move(model, "w2"))
    return Subject(model, row(), 3, unrepaired=1)


@subject
def inside_scan() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [start] h0 = Slice (zeros, from, to)
      [scan] l, s = Scan (h0, x) <num_scan_inputs=1, body = step (float[1,8] h, float[8] r) => (float[1,8] n, float[8] o) {
        [inner] u = MatMul (r, w2)
        [n] n = Add (h, u)
        [o] o = Tanh (u)
      }>
      [mm3] y = MatMul (s, w3)
    }"""
    weights = {"w2": (8, 8), "w3": (8, 5), "zeros": np.zeros((1, 8), np.float32), "from": np.array([0]), "to": np.array([1])}
    model = net(body, weights)
    scan = model.graph.node[1]
    next(entry for entry in scan.attribute if entry.name == "body").g.initializer.append(move(model, "w2"))
    return Subject(model, row(), 2, unrepaired=1)


@subject
def local_function() -> Subject:
    """As torch's dynamo exporter writes them: the weights go in as inputs."""
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [block] a = local.linear (x, w1, b1)
      [relu] b = Relu (a)
      [head] y = local.linear (b, w2, b2)
    }
    <domain: "local", opset_import: ["" : 18]>
    linear (i, w, b) => (o) {
      [mm] m = MatMul (i, w)
      [plus] o = Add (m, b)
    }"""
    model = net(body, {"w1": (8, 12), "b1": (12,), "w2": (12, 5), "b2": (5,)}, others=', "local" : 1')
    return Subject(model, row(), 2)


@subject
def local_function_with_constants() -> Subject:
    """A function that holds its own weight, called once."""
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [block] a = local.inner (x)
      [relu] b = Relu (a)
      [head] y = MatMul (b, w2)
    }
    <domain: "local", opset_import: ["" : 18]>
    inner (i) => (o) {
      [mm] o = MatMul (i, w)
    }"""
    model = net(body, {"w2": (12, 5), "w": (8, 12)}, others=', "local" : 1')
    model.functions[0].node.insert(0, as_constant(model, "w"))
    return Subject(model, row(), 2, unrepaired=1)


@subject
def local_function_called_twice() -> Subject:
    """A function that holds its own weight, called twice: one weight, two uses."""
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [one] a = local.inner (x)
      [relu] b = Relu (a)
      [two] c = local.inner (b)
      [head] y = MatMul (c, w2)
    }
    <domain: "local", opset_import: ["" : 18]>
    inner (i) => (o) {
      [mm] o = MatMul (i, w)
    }"""
    model = net(body, {"w2": (8, 5), "w": (8, 8)}, others=', "local" : 1')
    model.functions[0].node.insert(0, as_constant(model, "w"))
    return Subject(model, row(), 2, unrepaired=1)


@subject
def nested_functions() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [block] y = local.block (x, w1, w2)
    }
    <domain: "local", opset_import: ["" : 18, "local" : 1]>
    block (i, w, v) => (o) {
      [first] a = local.linear (i, w)
      [relu] b = Relu (a)
      [second] o = local.linear (b, v)
    }
    <domain: "local", opset_import: ["" : 18]>
    linear (i, w) => (o) {
      [mm] o = MatMul (i, w)
    }"""
    return Subject(net(body, {"w1": (8, 12), "w2": (12, 5)}, others=', "local" : 1'), row(), 2, unrepaired=2)


@subject
def initializer_that_is_an_input() -> Subject:
    """IR version 3 asks for it; later it says that the caller may feed another weight."""
    model = mlp(opset=8, ir=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return Subject(model, row(), 2)


@subject
def default_of_an_input() -> Subject:
    model = mlp()
    model.graph.input.append(helper.make_tensor_value_info("w1", TensorProto.FLOAT, [8, 12]))
    return Subject(model, row(), 2)


@subject
def one_weight_of_two_nodes() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,8] y) {
      [one] a = MatMul (x, w)
      [relu] b = Relu (a)
      [two] y = MatMul (b, w)
    }"""
    return Subject(net(body, {"w": (8, 8)}), row(), 1)


@subject
def one_weight_in_two_orientations() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,8] y) {
      [one] a = Gemm (x, w)
      [relu] b = Relu (a)
      [two] y = Gemm <transB=1> (b, w)
    }"""
    return Subject(net(body, {"w": (8, 12)}), row(), 1)


@subject
def one_weight_once_behind_transpose() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,8] y) {
      [one] a = MatMul (x, w)
      [relu] b = Relu (a)
      [t] wt = Transpose <perm=[1,0]> (w)
      [two] y = MatMul (b, wt)
    }"""
    return Subject(net(body, {"w": (8, 12)}), row(), 1)


@subject
def tied_embedding() -> Subject:
    """The embedding table is the head's weight behind Transpose."""
    body = """
    g (int64[N,6] ids) => (float[N,6,20] y) {
      [embed] a = Gather (w, ids)
      [mm] b = MatMul (a, v)
      [act] c = Relu (b)
      [t] wt = Transpose <perm=[1,0]> (w)
      [head] y = MatMul (c, wt)
    }"""
    samples = {"ids": tokens(6, high=20)}
    return Subject(net(body, {"w": (20, 8), "v": (8, 8)}), samples, 1, ("also read by", "embedding"))


@subject
def half() -> Subject:
    return Subject(_typed(np.float16, "float16"), {"x": data(8).astype(np.float16)}, 2)


@subject
def double() -> Subject:
    return Subject(_typed(np.float64, "double"), {"x": data(8).astype(np.float64)}, 2)


def _typed(dtype: Any, word: str) -> onnx.ModelProto:
    model = mlp()
    arrays = {entry.name: numpy_helper.to_array(entry).astype(dtype) for entry in model.graph.initializer}
    return net(MLP.replace("float[", f"{word}["), arrays)


@subject
def bfloat16() -> Subject:
    """bfloat16 weights behind Cast, since ONNX Runtime's CPU provider has no bfloat16 MatMul."""
    model = mlp()
    stored = helper.make_tensor("w1_stored", TensorProto.BFLOAT16, [8, 12], values(model, "w1").ravel())
    move(model, "w1")
    model.graph.initializer.append(stored)
    model.graph.node.insert(0, helper.make_node("Cast", ["w1_stored"], ["w1"], "cast", to=TensorProto.FLOAT))
    return Subject(model, row(), 2)


# ---- layers


def single(text: str, weights: Mapping[str, Any], x: Array, layers: int = 2, **more: Any) -> Subject:
    """x -> the text's nodes, which make h -> a global mean and a Gemm, so that something follows."""
    opset, others, seed = more.pop("opset", 18), more.pop("others", ""), more.pop("seed", 0)
    inner = "".join(f",{dim}" for dim in x.shape[1:])
    kind = {"float32": "float", "int64": "int64"}[x.dtype.name]
    width = more.pop("width")
    tail = "[gap] pooled = GlobalAveragePool (h)\n[flat] row = Flatten (pooled)" if more.pop("image", True) else "[flat] row = Flatten (h)"
    body = f"g ({kind}[N{inner}] x) => (float[N,5] y) {{ {text}\n{tail}\n[head] y = Gemm <transB=1> (row, wh, bh) }}"
    model = net(body, {**weights, "wh": (5, width), "bh": (5,)}, opset=opset, others=others, seed=seed)
    return Subject(model, {"x": x}, layers, **more)


@subject
def conv_1d() -> Subject:
    return single("[conv] c = Conv <pads=[2,2], dilations=[2]> (x, w)\n[relu] h = Relu (c)", {"w": (8, 3, 3)}, data(3, 16), width=8)


@subject
def conv_3d() -> Subject:
    return single("[conv] c = Conv (x, w, b)\n[relu] h = Relu (c)", {"w": (6, 2, 2, 2, 2), "b": (6,)}, data(2, 4, 4, 4), width=6)


@subject
def conv_grouped() -> Subject:
    return single("[conv] h = Conv <group=2, strides=[2,2]> (x, w, b)", {"w": (8, 2, 3, 3), "b": (8,)}, data(4, 9, 9), width=8)


@subject
def conv_depthwise() -> Subject:
    text = '[dw] a = Conv <group=4, auto_pad="SAME_UPPER"> (x, w)\n[relu] b = Relu (a)\n[pw] h = Conv (b, v)'
    return single(text, {"w": (4, 1, 3, 3), "v": (8, 4, 1, 1)}, data(4, 8, 8), 3, width=8)


@subject
def conv_transpose() -> Subject:
    text = "[up] a = ConvTranspose <strides=[2,2], output_padding=[1,1]> (x, w, b)\n[relu] h = Relu (a)"
    return single(text, {"w": (4, 6, 3, 3), "b": (6,)}, data(4, 5, 5), width=6)


@subject
def conv_transpose_grouped() -> Subject:
    return single("[up] h = ConvTranspose <group=2, strides=[2,2]> (x, w)", {"w": (4, 3, 2, 2)}, data(4, 5, 5), width=6)


@subject
def gemm_alpha_beta() -> Subject:
    text = "[gemm] a = Gemm <alpha=0.5, beta=2.0> (x, w, b)\n[relu] h = Relu (a)"
    return single(text, {"w": (8, 12), "b": (12,)}, data(8), width=12, image=False)


@subject
def gemm_transposed_input() -> Subject:
    text = "[t] xt = Transpose (x)\n[gemm] a = Gemm <transA=1, transB=1> (xt, w)\n[relu] h = Relu (a)"
    return single(text, {"w": (12, 8)}, data(8), width=12, image=False)


@subject
def gemm_constant_on_the_left() -> Subject:
    text = "[t] xt = Transpose (x)\n[gemm] a = Gemm (w, xt)\n[back] h = Transpose (a)"
    return single(text, {"w": (12, 8)}, data(8), width=12, image=False)


@subject
def matmul_constant_on_the_left() -> Subject:
    return single("[mm] a = MatMul (w, x)\n[relu] h = Relu (a)", {"w": (12, 6)}, data(6, 4), width=48, image=False)


@subject
def matmul_of_a_batch_of_weights() -> Subject:
    return single("[mm] a = MatMul (x, w)\n[relu] h = Relu (a)", {"w": (3, 6, 4)}, data(3, 5, 6), width=60, image=False)


@subject
def lstm() -> Subject:
    """Sequence first, as ONNX has it, behind a Transpose."""
    text = "[t] s = Transpose <perm=[1,0,2]> (x)\n[lstm] o, hn, cn = LSTM <hidden_size=6> (s, w, r, b)\n[sq] h = Squeeze (hn, zero)"
    weights = {"w": (1, 24, 4), "r": (1, 24, 6), "b": (1, 48), "zero": np.array([0])}
    return single(text, weights, data(5, 4), 3, unrepaired=2, width=6, image=False)


@subject
def lstm_both_directions_with_state() -> Subject:
    text = """[t] s = Transpose <perm=[1,0,2]> (x)
    [shape] sh = Shape <start=0, end=1> (x)
    [dims] d = Concat <axis=0> (two, sh, six)
    [zeros] z = Expand (nought, d)
    [lstm] o, hn, cn = LSTM <hidden_size=6, direction="bidirectional"> (s, w, r, b, , z, z)
    [back] h = Transpose <perm=[1,0,2]> (hn)"""
    weights = {
        "w": (2, 24, 4),
        "r": (2, 24, 6),
        "b": (2, 48),
        "two": np.array([2]),
        "six": np.array([6]),
        "nought": np.zeros((), np.float32),
    }
    return single(text, weights, data(5, 4), 3, unrepaired=2, width=12, image=False)


@subject
def gru() -> Subject:
    text = """[t] s = Transpose <perm=[1,0,2]> (x)
    [gru] o, hn = GRU <hidden_size=6, linear_before_reset=1> (s, w, r, b)
    [sq] h = Squeeze (hn, zero)"""
    weights = {"w": (1, 18, 4), "r": (1, 18, 6), "b": (1, 36), "zero": np.array([0])}
    return single(text, weights, data(5, 4), 3, unrepaired=2, width=6, image=False)


@subject
def rnn_without_bias() -> Subject:
    text = "[t] s = Transpose <perm=[1,0,2]> (x)\n[rnn] o, hn = RNN <hidden_size=6> (s, w, r)\n[sq] h = Squeeze (hn, zero)"
    return single(text, {"w": (1, 6, 4), "r": (1, 6, 6), "zero": np.array([0])}, data(5, 4), 3, unrepaired=2, width=6, image=False)


@subject
def einsum() -> Subject:
    text = '[ein] a = Einsum <equation="bij,jk->bik"> (x, w)\n[relu] h = Relu (a)'
    return single(text, {"w": (6, 4)}, data(5, 6), width=20, image=False)


@subject
def einsum_heads() -> Subject:
    """A projection into heads, as JAX and Keras attention layers write it."""
    text = '[ein] a = Einsum <equation="abc,cde->abde"> (x, w)\n[relu] h = Relu (a)'
    return single(text, {"w": (6, 2, 3)}, data(4, 6), width=24, image=False, unrepaired=1)


@subject
def einsum_constant_first() -> Subject:
    text = '[ein] a = Einsum <equation="oi,bip->bop"> (w, x)\n[relu] h = Relu (a)'
    return single(text, {"w": (6, 4)}, data(4, 5), width=30, image=False, unrepaired=1)


@subject
def einsum_of_three() -> Subject:
    """The weight is the third operand."""
    text = '[sq] q = Mul (x, x)\n[ein] a = Einsum <equation="btc,btc,cd->btd"> (x, q, w)\n[relu] h = Relu (a)'
    return single(text, {"w": (6, 4)}, data(4, 6), width=16, image=False)


@subject
def embedding_stays_dense() -> Subject:
    text = "[embed] a = Gather (table, x)\n[mm] b = MatMul (a, w)\n[relu] h = Relu (b)"
    weights = {"table": (30, 6), "w": (6, 4)}
    return single(text, weights, tokens(5, high=30), width=20, image=False, skipped=("embedding",))


@subject
def qlinear_conv() -> Subject:
    rng = np.random.default_rng(4)
    whole, scale, zero = _integers(rand(rng, 8, 3, 3, 3), 0)
    text = """[q] xq = QuantizeLinear (x, xs, xz)
    [qc] cq = QLinearConv <pads=[1,1,1,1]> (xq, xs, xz, w, ws, wz, ys, yz, bias)
    [dq] h = DequantizeLinear (cq, ys, yz)"""
    scalars = {
        "xs": np.array(0.04, np.float32),
        "xz": np.array(128, np.uint8),
        "ys": np.array(0.05, np.float32),
        "yz": np.array(128, np.uint8),
    }
    bias = rng.integers(-50, 50, 8).astype(np.int32)
    return single(text, {"w": whole, "ws": scale, "wz": zero, "bias": bias, **scalars}, data(3, 8, 8), width=8, unrepaired=1)


@subject
def qlinear_matmul() -> Subject:
    whole, scale, zero = _integers(rand(np.random.default_rng(4), 8, 12), None, 120, np.uint8)
    text = """[q] xq = QuantizeLinear (x, xs, xz)
    [qm] cq = QLinearMatMul (xq, xs, xz, w, ws, wz, ys, yz)
    [dq] h = DequantizeLinear (cq, ys, yz)"""
    scalars = {
        "xs": np.array(0.04, np.float32),
        "xz": np.array(128, np.uint8),
        "ys": np.array(0.05, np.float32),
        "yz": np.array(128, np.uint8),
    }
    return single(text, {"w": np.clip(whole, 0, 255), "ws": scale, "wz": zero, **scalars}, data(8), width=12, unrepaired=1, image=False)


@subject
def matmul_integer() -> Subject:
    """What quantize_dynamic writes."""
    whole, scale, zero = _integers(rand(np.random.default_rng(4), 8, 12), None, 128, np.uint8)
    text = """[dq] xq, xs, xz = DynamicQuantizeLinear (x)
    [mi] m = MatMulInteger (xq, w, xz, wz)
    [cast] f1 = Cast <to=1> (m)
    [sc] s = Mul (xs, ws)
    [out] h = Mul (f1, s)"""
    return single(text, {"w": whole, "ws": scale, "wz": zero}, data(8), width=12, unrepaired=1, image=False)


@subject
def conv_integer() -> Subject:
    whole, scale, zero = _integers(rand(np.random.default_rng(4), 8, 3, 3, 3), None, 128, np.uint8)
    text = """[dq] xq, xs, xz = DynamicQuantizeLinear (x)
    [ci] m = ConvInteger (xq, w, xz, wz)
    [cast] f1 = Cast <to=1> (m)
    [sc] s = Mul (xs, ws)
    [out] h = Mul (f1, s)"""
    return single(text, {"w": whole, "ws": scale, "wz": zero}, data(3, 8, 8), width=8, unrepaired=1)


@subject
def deform_conv() -> Subject:
    text = "[off] o = Conv <pads=[1,1,1,1]> (x, wo)\n[dc] h = DeformConv <pads=[1,1,1,1]> (x, w, o)"
    return single(text, {"wo": (18, 3, 3, 3), "w": (8, 3, 3, 3)}, data(3, 6, 6), 3, width=8, opset=19)


# ---- normalisations


@subject
def batch_norm() -> Subject:
    text = "[conv] c = Conv (x, w)\n[bn] n = BatchNormalization (c, s, b, m, v)\n[relu] h = Relu (n)"
    weights = {"w": (8, 3, 3, 3), "s": positive(1, 8), "b": (8,), "m": (8,), "v": positive(2, 8)}
    return single(text, weights, data(3, 8, 8), width=8)


@subject
def batch_norm_as_mul_and_add() -> Subject:
    """What Keras exports become when the statistics are folded into a Mul and an Add."""
    text = "[conv] c = Conv (x, w)\n[mul] p = Mul (c, s)\n[add] n = Add (p, b)\n[relu] h = Relu (n)"
    weights = {"w": (8, 3, 3, 3), "s": positive(1, 1, 8, 1, 1), "b": rand(np.random.default_rng(1), 1, 8, 1, 1)}
    return single(text, weights, data(3, 8, 8), width=8)


@subject
def layer_norm() -> Subject:
    text = "[mm] a = MatMul (x, w)\n[ln] n = LayerNormalization (a, s, b)\n[relu] h = Relu (n)"
    return single(text, {"w": (8, 12), "s": positive(1, 12), "b": (12,)}, data(8), width=12, image=False)


LN_CHAIN = """[mean] mu = ReduceMean <axes=[-1]> (a)
    [sub] d = Sub (a, mu)
    [pow] sq = Pow (d, two)
    [var] va = ReduceMean <axes=[-1]> (sq)
    [eps] ve = Add (va, tiny)
    [sqrt] sd = Sqrt (ve)
    [div] z = Div (d, sd)
    [mul] p = Mul (z, s)
    [add] n = Add (p, b)
"""


@subject
def layer_norm_chain() -> Subject:
    text = f"[mm] a = MatMul (x, w)\n{LN_CHAIN}\n[relu] h = Relu (n)"
    weights = {"w": (8, 12), "s": positive(1, 12), "b": (12,), "two": np.array(2, np.float32), "tiny": np.array(1e-5, np.float32)}
    return single(text, weights, data(8), width=12, image=False, opset=14)


@subject
def rms_norm_chain() -> Subject:
    text = """[mm] a = MatMul (x, w)
    [pow] sq = Pow (a, two)
    [ms] va = ReduceMean <axes=[-1]> (sq)
    [eps] ve = Add (va, tiny)
    [sqrt] sd = Sqrt (ve)
    [rec] rs = Reciprocal (sd)
    [norm] z = Mul (a, rs)
    [mul] n = Mul (z, s)
    [relu] h = Relu (n)"""
    weights = {"w": (8, 12), "s": positive(1, 12), "two": np.array(2, np.float32), "tiny": np.array(1e-5, np.float32)}
    return single(text, weights, data(8), width=12, image=False, opset=14)


@subject
def rms_norm() -> Subject:
    text = "[mm] a = MatMul (x, w)\n[rms] n = RMSNormalization (a, s)\n[relu] h = Relu (n)"
    return single(text, {"w": (8, 12), "s": positive(1, 12)}, data(8), width=12, image=False, opset=23)


@subject
def group_norm() -> Subject:
    text = "[conv] c = Conv (x, w)\n[gn] n = GroupNormalization <num_groups=2> (c, s, b)\n[relu] h = Relu (n)"
    return single(text, {"w": (8, 3, 3, 3), "s": positive(1, 8), "b": (8,)}, data(3, 8, 8), width=8, opset=21)


@subject
def group_norm_of_opset_18() -> Subject:
    text = "[conv] c = Conv (x, w)\n[gn] n = GroupNormalization <num_groups=2> (c, s, b)\n[relu] h = Relu (n)"
    return single(text, {"w": (8, 3, 3, 3), "s": positive(1, 2), "b": (2,)}, data(3, 8, 8), width=8, skipped=("one number per group",))


@subject
def group_norm_as_instance_norm() -> Subject:
    """torch's TorchScript exporter: Reshape, InstanceNormalization with ones and zeros, Reshape, Mul, Add."""
    text = """[conv] c = Conv (x, w)
    [shape] sh = Shape (c)
    [split] r = Reshape (c, groups)
    [in] i = InstanceNormalization (r, ones, zeros)
    [join] j = Reshape (i, sh)
    [mul] p = Mul (j, s)
    [add] n = Add (p, b)
    [relu] h = Relu (n)"""
    weights = {"w": (8, 3, 3, 3), "groups": np.array([0, 2, -1]), "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32)}
    scale = {"s": positive(1, 8, 1, 1), "b": rand(np.random.default_rng(1), 8, 1, 1)}
    return single(text, weights | scale, data(3, 8, 8), width=8)


@subject
def instance_norm() -> Subject:
    text = "[conv] c = Conv (x, w, cb)\n[in] n = InstanceNormalization (c, s, b)\n[relu] h = Relu (n)"
    return single(text, {"w": (8, 3, 3, 3), "cb": (8,), "s": positive(1, 8), "b": (8,)}, data(3, 8, 8), width=8)


@subject
def no_normalisation_no_bias() -> Subject:
    text = "[conv1] a = Conv (x, w1)\n[leaky] b = LeakyRelu (a)\n[conv2] c = Conv (b, w2)\n[clip] h = Clip (c, , six)"
    return single(text, {"w1": (8, 3, 3, 3), "w2": (6, 8, 3, 3), "six": np.array(6, np.float32)}, data(3, 8, 8), 3, width=6)


# ---- graphs


@subject
def several_inputs_and_outputs() -> Subject:
    body = """
    g (float[N,3,8,8] image, float[N,8] meta, int64[N] kind) => (float[N,5] y, float[N,12] features, int64[N] best) {
      [conv] a = Conv (image, w1)
      [gap] b = GlobalAveragePool (a)
      [flat] c = Flatten (b)
      [mm] d = MatMul (meta, w2)
      [embed] e = Gather (table, kind)
      [cat] f = Concat <axis=1> (c, d, e)
      [fc1] features = Gemm <transB=1> (f, w3, b3)
      [relu] r = Relu (features)
      [fc2] y = Gemm <transB=1> (r, w4)
      [arg] best = ArgMax <axis=1, keepdims=0> (y)
    }"""
    weights = {"w1": (6, 3, 3, 3), "w2": (8, 4), "table": (9, 3), "w3": (12, 13), "b3": (12,), "w4": (5, 12)}
    samples = {"image": data(3, 8, 8), "meta": data(8), "kind": tokens(high=9)}
    return Subject(net(body, weights), samples, 4, ("embedding",))


@subject
def optional_inputs_left_empty() -> Subject:
    text = """[conv] a = Conv (x, w)
    [clip] b = Clip (a, low)
    [up] c = Resize <mode="nearest"> (b, , scales)
    [drop] h = Dropout (c)"""
    weights = {"w": (8, 3, 3, 3), "low": np.array(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    return single(text, weights, data(3, 8, 8), width=8)


@subject
def fixed_batch_of_one() -> Subject:
    model = convnet()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 1
    return Subject(model, image(), 3, batch=1)


@subject
def fixed_batch_of_four() -> Subject:
    model = convnet()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    return Subject(model, image(), 3, batch=4)


@subject
def nodes_without_names() -> Subject:
    model = convnet()
    for node in model.graph.node:
        node.name = ""
    return Subject(model, image(), 3)


@subject
def odd_names() -> Subject:
    """Slashes, spaces, colons, percent signs and letters beyond ASCII."""
    model = convnet()
    names = {"x": "input:0", "w1": "модель/卷积 1::weight%", "b1": "/b/1", "a": "a//b", "y": "résultat [0]"}
    for node in model.graph.node:
        node.name = f"/層/{node.name} é:0"
        for places in (node.input, node.output):
            places[:] = [names.get(name, name) for name in places]
    for entry in (*model.graph.initializer, *model.graph.input, *model.graph.output):
        entry.name = names.get(entry.name, entry.name)
    return Subject(model, {"input:0": data(3, 8, 8)}, 3)


def _of_opset(version: int) -> Callable[[], Subject]:
    def build() -> Subject:
        return Subject(convnet(opset=version, ir=3 if version < 9 else 8 if version < 23 else 10), image(), 3)

    return build


for _version in (7, 8, 9, 11, 13, 15, 19, 21, 23, 24, 25):
    SUBJECTS[f"opset_{_version}"] = _of_opset(_version)
# An initializer of IR version 3 must be an input too.


def _listed(build: Callable[[], Subject]) -> Callable[[], Subject]:
    def listed() -> Subject:
        made = build()
        for tensor in made.model.graph.initializer:
            made.model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
        return made

    return listed


for _version in (7, 8):
    SUBJECTS[f"opset_{_version}"] = _listed(SUBJECTS[f"opset_{_version}"])


@subject
def ml_operators_beside() -> Subject:
    """A scikit-learn pipeline: Scaler, an MLP of MatMul and Add, ArgMax, ZipMap to a sequence of maps."""
    body = """
    g (float[N,8] x) => (int64[N] label) {
      [scaler] s = ai.onnx.ml.Scaler <offset=[0.1,0.1,0.1,0.1,0.1,0.1,0.1,0.1], scale=[1.0,1.0,1.0,1.0,1.0,1.0,1.0,1.0]> (x)
      [mm1] a = MatMul (s, w1)
      [add1] b = Add (a, b1)
      [relu] c = Relu (b)
      [mm2] d = MatMul (c, w2)
      [add2] e = Add (d, b2)
      [soft] probabilities = Softmax (e)
      [arg] label = ArgMax <axis=1, keepdims=0> (probabilities)
      [zip] maps = ai.onnx.ml.ZipMap <classlabels_int64s=[0,1,2,3,4]> (probabilities)
    }"""
    model = net(body, {"w1": (8, 12), "b1": (1, 12), "w2": (12, 5), "b2": (1, 5)}, others=', "ai.onnx.ml" : 1')
    entry = helper.make_map_type_proto(TensorProto.INT64, helper.make_tensor_type_proto(TensorProto.FLOAT, []))
    model.graph.output.append(helper.make_value_info("maps", helper.make_sequence_type_proto(entry)))
    return Subject(model, row(), 2)


@subject
def layers_below_a_sequence() -> Subject:
    text = """[conv] c = Conv <pads=[1,1,1,1]> (x, w)
    [cut] parts = SplitToSequence <axis=1> (c, four)
    [first] p = SequenceAt (parts, one)
    [last] q = SequenceAt (parts, nought)
    [cat] h = Concat <axis=1> (p, q)"""
    weights = {"w": (8, 3, 3, 3), "four": np.array([4, 4]), "one": np.array(1), "nought": np.array(0)}
    return single(text, weights, data(3, 8, 8), width=8)


@subject
def scalar_input() -> Subject:
    """A temperature that is one number for the whole batch."""
    body = """
    g (float[N,8] x, float temperature) => (float[N,5] y) {
      [mm1] a = MatMul (x, w1)
      [act] b = Relu (a)
      [mm2] c = MatMul (b, w2)
      [div] d = Div (c, temperature)
      [soft] y = Softmax <axis=-1> (d)
    }"""
    return Subject(net(body, {"w1": (8, 12), "w2": (12, 5)}), {"x": data(8), "temperature": np.array(0.5, np.float32)}, 2)


@subject
def state_with_the_batch_on_axis_1() -> Subject:
    """silero's detector: samples on axis 0 of one input, on axis 1 of the recurrent state."""
    body = """
    g (float[N,8] x, float[2,N,6] state) => (float[N,3] y, float[2,N,6] next) {
      [mm1] a = MatMul (x, w1)
      [relu] b = Relu (a)
      [seq] s = Unsqueeze (b, zero)
      [split] h0, c0 = Split <axis=0, num_outputs=2> (state)
      [lstm] o, hn, cn = LSTM <hidden_size=6> (s, w, r, lb, , h0, c0)
      [next] next = Concat <axis=0> (hn, cn)
      [sq] h = Squeeze (hn, zero)
      [head] y = Gemm <transB=1> (h, wh, bh)
    }"""
    weights = {"w1": (8, 4), "w": (1, 24, 4), "r": (1, 24, 6), "lb": (1, 48), "zero": np.array([0]), "wh": (3, 6), "bh": (3,)}
    state = np.ascontiguousarray(0.1 * data(2, 6).transpose(1, 0, 2))
    return Subject(net(body, weights), {"x": data(8), "state": state}, 4, unrepaired=2)


@subject
def state_whose_axes_have_no_names() -> Subject:
    """The same with free dimensions that nobody named."""
    made = state_with_the_batch_on_axis_1()
    for value in (*made.model.graph.input, *made.model.graph.output):
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.Clear()
    return made


@subject
def state_of_fixed_size() -> Subject:
    """Rows are steps of a sequence; the state beside them is one for all, and prescribes a batch of one."""
    body = """
    g (float[N,8] x, float[1,1,6] h) => (float[N,3] y) {
      [mm1] a = MatMul (x, w1)
      [relu] b = Relu (a)
      [seq] s = Unsqueeze (b, one)
      [gru] o, hn = GRU <hidden_size=6> (s, w, r, gb, , h)
      [sq] p = Squeeze (o, axes)
      [head] y = Gemm <transB=1> (p, wh, bh)
    }"""
    weights = {
        "w1": (8, 4),
        "w": (1, 18, 4),
        "r": (1, 18, 6),
        "gb": (1, 36),
        "one": np.array([1]),
        "axes": np.array([1, 2]),
        "wh": (3, 6),
        "bh": (3,),
    }
    return Subject(net(body, weights), {"x": data(8), "h": np.full((1, 1, 6), 0.1, np.float32)}, 4, unrepaired=2, batch=1)


@subject
def batch_on_axis_1() -> Subject:
    """A recurrent net that takes (time, batch, features)."""
    body = """
    g (float[5,N,4] x) => (float[N,3] y) {
      [lstm] o, hn, cn = LSTM <hidden_size=6> (x, w, r, b)
      [sq] h = Squeeze (hn, zero)
      [head] y = Gemm <transB=1> (h, wh, bh)
    }"""
    weights = {"w": (1, 24, 4), "r": (1, 24, 6), "b": (1, 48), "zero": np.array([0]), "wh": (3, 6), "bh": (3,)}
    return Subject(net(body, weights), {"x": np.ascontiguousarray(data(5, 4).transpose(1, 0, 2))}, 3, unrepaired=2)
