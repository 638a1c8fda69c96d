"""Models as a stranger may bring them: layers that no value reaches, rows that the values choose, numbers at the end of their type."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto, helper
from zoo import Subject, image, mlp, net, positive, rand, row, subject, values

# ---- rows that the values choose

BOXES = """
g (float[N,3,8,8] x) => (float[K,5,8,8] y) {
  [conv1] a = Conv <pads=[1,1,1,1]> (x, w1)
  [relu] b = Relu (a)
  [most] c = ReduceMax <keepdims=0> (b, axes)
  [found] d = Greater (c, limit)
  [take] e = Compress <axis=0> (b, d)
  [conv2] y = Conv <pads=[1,1,1,1]> (e, w2, b2)
}"""


def boxes(limit: float) -> Subject:
    weights = {"w1": (8, 3, 3, 3), "w2": (5, 8, 3, 3), "b2": (5,), "axes": np.array([1, 2, 3]), "limit": np.array(limit, np.float32)}
    return Subject(net(BOXES, weights), image(), 2, unrepaired=1)


@subject
def a_head_without_boxes() -> Subject:
    """A detector that finds nothing on any sample: its head has no statistics."""
    return boxes(1e9)


@subject
def a_head_with_some_boxes() -> Subject:
    """The pruned model finds others than the dense one."""
    return boxes(2.2)


@subject
def norms_without_values() -> Subject:
    body = """
    g (float[N,8] x) => (float[K,5] y) {
      [gemm1] a = Gemm (x, w1)
      [relu] b = Relu (a)
      [most] c = ReduceMax <keepdims=0> (b, axes)
      [found] d = Greater (c, limit)
      [take] e = Compress <axis=0> (b, d)
      [gemm2] f = Gemm (e, w2, b2)
      [bn] h = BatchNormalization (f, s, t, m, v)
      [ln] i = LayerNormalization (h, s, t)
      [gemm3] y = Gemm (i, w3)
    }"""
    weights = {"w1": (8, 8), "w2": (8, 5), "b2": (5,), "w3": (5, 5), "s": positive(1, 5), "t": (5,), "m": (5,), "v": positive(2, 5)}
    model = net(body, weights | {"axes": np.array([1]), "limit": np.array(1e9, np.float32)})
    return Subject(model, row(), 3, unrepaired=2)


@subject
def rows_that_are_not_zero() -> Subject:
    """NonZero and GatherND: the last layer has a row for every number above 0."""
    body = """
    g (float[N,8] x) => (float[K,5] y) {
      [mm1] a = MatMul (x, w1)
      [relu] b = Relu (a)
      [where] c = NonZero (b)
      [turn] d = Transpose (c)
      [take] e = GatherND (b, d)
      [col] f = Unsqueeze (e, axes)
      [mm2] y = MatMul (f, w2)
    }"""
    return Subject(net(body, {"w1": (8, 12), "w2": (1, 5), "axes": np.array([1])}), row(), 2, unrepaired=1)


# ---- numbers


@subject
def numbers_at_the_end_of_float32() -> Subject:
    """Outputs of 1e30, whose squares are none any more; the next layer brings them back."""
    model = mlp()
    for name, factor in (("w1", 1e30), ("w2", 1e-30)):
        tensor = next(entry for entry in model.graph.initializer if entry.name == name)
        tensor.raw_data = (values(model, name) * np.float32(factor)).tobytes()
    return Subject(model, row(), 2, unrepaired=2)


@subject
def half_with_a_norm_in_single() -> Subject:
    """Opset 15 lets BatchNormalization have its numbers in another type than its input."""
    body = """
    g (float16[N,3,8,8] x) => (float16[N,5,8,8] y) {
      [conv] c = Conv <pads=[1,1,1,1]> (x, w)
      [bn] d = BatchNormalization (c, s, t, m, v)
      [relu] y = Relu (d)
    }"""
    weights = {"w": rand(np.random.default_rng(0), 5, 3, 3, 3).astype(np.float16), "s": positive(1, 5), "t": (5,), "m": (5,)}
    return Subject(net(body, weights | {"v": positive(2, 5)}, opset=15), {"x": image()["x"].astype(np.float16)}, 1)


# ---- outputs that are no tensors, and what else a file may hold


@subject
def outputs_of_every_kind() -> Subject:
    """A sequence, an optional, and strings beside the scores."""
    model = mlp()
    model.opset_import.append(helper.make_opsetid("ai.onnx.ml", 3))
    labels = {"keys_int64s": [0, 1, 2], "values_strings": ["a", "b", "c"]}
    model.graph.node.extend(
        [
            helper.make_node("SequenceConstruct", ["c", "d"], ["both"], "seq"),
            helper.make_node("Optional", ["c"], ["maybe"], "opt"),
            helper.make_node("ArgMax", ["d"], ["best"], "arg", axis=1),
            helper.make_node("LabelEncoder", ["best"], ["label"], "le", domain="ai.onnx.ml", **labels),
        ]
    )
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, None)
    model.graph.output.extend(
        [
            helper.make_tensor_sequence_value_info("both", TensorProto.FLOAT, None),
            helper.make_value_info("maybe", helper.make_optional_type_proto(tensor)),
            helper.make_tensor_value_info("label", TensorProto.STRING, ["N", 1]),
        ]
    )
    return Subject(model, row(), 2)


@subject
def convolution_in_a_loop_of_outer_weights() -> Subject:
    body = """
    g (float[N,3,8,8] x) => (float[N,3,8,8] y) {
      trips = Constant <value = int64 {2}> ()
      go = Constant <value = bool {1}> ()
      [loop] y = Loop (trips, go, x) <body = step (int64 i, bool ok, float[N,3,8,8] h) => (bool again, float[N,3,8,8] t) {
        [again] again = Identity (ok)
        [inner] u = Conv <pads=[1,1,1,1]> (h, w, b)
        [relu] t = Relu (u)
      }>
    }"""
    return Subject(net(body, {"w": (3, 3, 3, 3), "b": (3,)}), image(), 1, unrepaired=1)


@subject
def training_graphs_and_annotations() -> Subject:
    """What a file may carry beside its graph stays as it is."""
    model = mlp(ir=11)
    info = model.training_info.add()
    info.algorithm.name, info.initialization.name = "step", "start"
    info.algorithm.node.append(helper.make_node("Identity", ["w1"], ["next"]))
    info.algorithm.output.append(helper.make_tensor_value_info("next", TensorProto.FLOAT, [8, 12]))
    info.update_binding.add(key="w1", value="next")
    note = model.graph.quantization_annotation.add(tensor_name="w1")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b1")
    return Subject(model, row(), 2)


@subject
def a_function_with_a_default() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y) { [f] y = local.f (x, w1, w2) }
    <domain: "local", opset_import: ["" : 18]>
    f <slope: float = 0.25> (i, w, v) => (o) {
      [mm1] a = MatMul (i, w)
      [leak] b = LeakyRelu <alpha: float = @slope> (a)
      [mm2] o = MatMul (b, v)
    }"""
    return Subject(net(body, {"w1": (8, 12), "w2": (12, 5)}, others=', "local" : 1'), row(), 2, unrepaired=2)


@subject
def a_function_of_another_opset() -> Subject:
    """Its operators are the same in both, so that its calls can be written out."""
    body = """
    g (float[N,8] x) => (float[N,5] y) { [f] y = local.f (x, w1, b1, w2) }
    <domain: "local", opset_import: ["" : 15]>
    f (i, w, s, v) => (o) {
      [mm1] a = MatMul (i, w)
      [add] b = Add (a, s)
      [relu] c = Relu (b)
      [mm2] o = MatMul (c, v)
    }"""
    return Subject(net(body, {"w1": (8, 12), "b1": (12,), "w2": (12, 5)}, others=', "local" : 1'), row(), 2, unrepaired=1)


@subject
def scores_that_are_masked() -> Subject:
    """Minus infinity where a class may not be chosen, and a logarithm of numbers below 0."""
    body = """
    g (float[N,8] x) => (float[N,5] y, float[N,5] z) {
      [mm1] a = MatMul (x, w1)
      [relu] b = Relu (a)
      [mm2] c = MatMul (b, w2)
      [mask] y = Add (c, m)
      [log] z = Log (c)
    }"""
    mask = np.array([0, 0, -np.inf, 0, 0], np.float32)
    return Subject(net(body, {"w1": (8, 12), "w2": (12, 5), "m": mask}), row(), 2)
