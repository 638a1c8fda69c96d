"""Models that are odd but legal: weights made in several steps, values in other fields, norms over other axes, odd biases."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper
from zoo import (
    MLP,
    Subject,
    behind,
    convnet,
    data,
    image,
    mlp,
    move,
    net,
    positive,
    row,
    single,
    subject,
    to_constants,
    values,
)

# ---- weights


@subject
def behind_quantize_and_dequantize() -> Subject:
    """Quantisation-aware training: the float weight goes through QuantizeLinear and DequantizeLinear."""
    model = convnet()
    stored = values(model, "w2")
    model.graph.initializer.extend([_tensor("sc", np.float32(np.abs(stored).max() / 127)), _tensor("zp", np.int8(0))])
    steps = ("QuantizeLinear", ("sc", "zp"), {}), ("DequantizeLinear", ("sc", "zp"), {})
    return Subject(behind(model, "w2", stored, *steps), image(), 3)


def _tensor(name: str, value: object) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(np.asarray(value), name)


@subject
def behind_blocked_int4() -> Subject:
    """Weights of language models: 4 bits, a scale for every block of 4."""
    model = mlp(opset=21, ir=10)
    whole = np.random.default_rng(3).integers(-7, 8, (8, 12))
    move(model, "w1")
    packed = helper.make_tensor("w1_stored", TensorProto.INT4, [8, 12], whole.ravel())
    model.graph.initializer.extend([packed, _tensor("sc", positive(4, 2, 12) / 20)])
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", ["w1_stored", "sc"], ["w1"], "dq", axis=0, block_size=4))
    return Subject(model, row(), 2)


@subject
def weights_out_of_one_tensor() -> Subject:
    """Query, key and value projections split out of one constant."""
    body = """
    g (float[N,8] x) => (float[N,12] y) {
      [split] w1, w2 = Split <axis=1, num_outputs=2> (both)
      [one] a = MatMul (x, w1)
      [two] b = MatMul (x, w2)
      [mul] c = Mul (a, b)
      [head] y = MatMul (c, w3)
    }"""
    model = net(body, {"both": (8, 12), "w3": (6, 12)})
    return Subject(model, row(), 1, ("made of constants", "made of constants"))


@subject
def weight_normalisation() -> Subject:
    """A weight as direction times length, both constants."""
    body = MLP.replace("[mm1]", "[wn] w1 = Mul (direction, length)\n  [mm1]")
    model = net(body, {"direction": (8, 12), "length": positive(1, 12), "b1": (12,), "w2": (12, 5), "b2": (5,)})
    return Subject(model, row(), 1, ("made of constants",))


@subject
def weight_computed_from_the_input() -> Subject:
    """A hypernetwork: the second layer's weight comes out of the first."""
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [mm1] a = MatMul (x, w1)
      [shape] w = Reshape (a, dims)
      [row] r = Reshape (x, one)
      [mm2] b = MatMul (r, w)
      [out] y = Reshape (b, five)
    }"""
    fixed = {"dims": np.array([-1, 8, 5]), "one": np.array([-1, 1, 8]), "five": np.array([-1, 5])}
    return Subject(net(body, {"w1": (8, 40), **fixed}), row(), 1)


@subject
def values_in_typed_fields() -> Subject:
    """float_data instead of raw bytes, as onnx.helper.make_tensor writes it."""
    model = mlp()
    for tensor in list(model.graph.initializer):
        array = values(model, tensor.name)
        move(model, tensor.name)
        model.graph.initializer.append(helper.make_tensor(tensor.name, TensorProto.FLOAT, array.shape, array.ravel()))
        assert not model.graph.initializer[-1].raw_data
    return Subject(model, row(), 2)


@subject
def half_in_typed_fields() -> Subject:
    """float16 in int32_data, and float32 at both ends: what float16 converters write."""
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [in] h = Cast <to=10> (x)
      [mm1] a = MatMul (h, w1)
      [add1] b = Add (a, b1)
      [act] c = Relu (b)
      [mm2] d = MatMul (c, w2)
      [add2] e = Add (d, b2)
      [out] y = Cast <to=1> (e)
    }"""
    model = net(body, {})
    source = mlp()
    for tensor in source.graph.initializer:
        array = values(source, tensor.name).astype(np.float16)
        model.graph.initializer.append(helper.make_tensor(tensor.name, TensorProto.FLOAT16, array.shape, array.ravel()))
    return Subject(model, row(), 2)


@subject
def constants_of_other_attributes() -> Subject:
    """A Constant node that holds its numbers as a list (value_floats)."""
    model = convnet()
    bias = values(model, "b1")
    move(model, "b1")
    model.graph.node.insert(0, helper.make_node("Constant", [], ["b1"], "bias", value_floats=bias.tolist()))
    return Subject(model, image(), 3)


@subject
def pruned_before() -> Subject:
    """Half of the weights are zero already."""
    model = mlp()
    for name in ("w1", "w2"):
        array = values(model, name)
        array = np.where(np.abs(array) > np.median(np.abs(array)), array, 0).astype(np.float32)
        move(model, name)
        model.graph.initializer.append(_tensor(name, array))
    return Subject(model, row(), 2)


@subject
def sparse_initializer() -> Subject:
    """A weight as a sparse tensor."""
    model = mlp()
    array = values(model, "w1")
    move(model, "w1")
    places = np.flatnonzero(np.abs(array) > np.median(np.abs(array)))
    sparse = onnx.SparseTensorProto(dims=array.shape)
    sparse.values.CopyFrom(_tensor("w1", array.ravel()[places]))
    sparse.indices.CopyFrom(_tensor("w1_indices", places.astype(np.int64)))
    model.graph.sparse_initializer.append(sparse)
    return Subject(model, row(), 2)


# ---- biases


@subject
def bias_computed_at_run_time() -> Subject:
    body = """
    g (float[N,3,8,8] x) => (float[N,5] y) {
      [mean] m = ReduceMean <keepdims=0> (x, axes)
      [max] top = ReduceMax (m)
      [wide] shift = Expand (top, eight)
      [conv] a = Conv (x, w1, shift)
      [relu] b = Relu (a)
      [gap] c = GlobalAveragePool (b)
      [flat] d = Flatten (c)
      [head] y = Gemm (d, w2, b2)
    }"""
    return Subject(
        net(body, {"w1": (8, 3, 3, 3), "w2": (8, 5), "b2": (1, 5), "axes": np.array([0, 2, 3]), "eight": np.array([8])}), image(), 2
    )


@subject
def bias_that_is_one_number() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [one] a = Gemm (x, w1, scalar)
      [act] b = Tanh (a)
      [two] c = MatMul (b, w2)
      [add] d = Add (scalar, c)
      [act2] e = Tanh (d)
      [three] y = Gemm <beta=0.0> (e, w3, b3)
    }"""
    weights = {"w1": (8, 12), "w2": (12, 6), "w3": (6, 5), "b3": (5,), "scalar": np.array([0.3], np.float32)}
    return Subject(net(body, weights), row(), 3)


@subject
def one_bias_of_two_layers() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,8] y) {
      [one] a = Gemm (x, w1, b)
      [act] c = Relu (a)
      [two] d = MatMul (c, w2)
      [add] y = Add (d, b)
    }"""
    return Subject(net(body, {"w1": (8, 8), "w2": (8, 8), "b": (8,)}), row(), 2)


# ---- norms


@subject
def norm_before_the_layer() -> Subject:
    """Pre-activation: BatchNormalization, Relu, Conv, twice, with a residual."""
    body = """
    g (float[N,4,8,8] x) => (float[N,5] y) {
      [bn1] a = BatchNormalization (x, s1, t1, m1, v1)
      [r1] b = Relu (a)
      [c1] c = Conv <pads=[1,1,1,1]> (b, w1)
      [bn2] d = BatchNormalization (c, s2, t2, m2, v2)
      [r2] e = Relu (d)
      [c2] f = Conv <pads=[1,1,1,1]> (e, w2)
      [res] h = Add (x, f)
      [gap] i = GlobalAveragePool (h)
      [flat] j = Flatten (i)
      [head] y = Gemm (j, w3)
    }"""
    weights = {"w1": (6, 4, 3, 3), "w2": (4, 6, 3, 3), "w3": (4, 5)}
    for number, width in ((1, 4), (2, 6)):
        weights |= {f"s{number}": positive(1, width), f"t{number}": (width,), f"m{number}": (width,), f"v{number}": positive(2, width)}
    return Subject(net(body, weights), {"x": data(4, 8, 8)}, 3)


@subject
def layer_norm_over_several_axes() -> Subject:
    text = "[conv] c = Conv (x, w)\n[ln] n = LayerNormalization <axis=1> (c, s, b)\n[relu] h = Relu (n)"
    weights = {"w": (8, 3, 3, 3), "s": positive(1, 8, 6, 6), "b": positive(2, 8, 6, 6)}
    return single(text, weights, data(3, 8, 8), width=8, skipped=("not one number per channel",))


@subject
def layer_norm_without_bias() -> Subject:
    text = "[mm] a = MatMul (x, w)\n[ln] n = LayerNormalization (a, s)\n[relu] h = Relu (n)"
    return single(text, {"w": (8, 12), "s": positive(1, 12)}, data(8), width=12, image=False)


@subject
def simplified_layer_norm() -> Subject:
    """ONNX Runtime's own RMSNorm, which its optimizer puts into ONNX's domain."""
    text = "[mm] a = MatMul (x, w)\n[ln] n = SimplifiedLayerNormalization <axis=-1, epsilon=0.00001> (a, s)\n[relu] h = Relu (n)"
    return single(text, {"w": (8, 12), "s": positive(1, 12)}, data(8), width=12, image=False)


@subject
def batch_norm_of_two_readers() -> Subject:
    """The convolution's output is read by the norm and by a residual."""
    text = "[conv] c = Conv (x, w)\n[bn] n = BatchNormalization (c, s, b, m, v)\n[relu] r = Relu (n)\n[res] h = Add (r, c)"
    weights = {"w": (8, 3, 3, 3), "s": positive(1, 8), "b": (8,), "m": (8,), "v": positive(2, 8)}
    return single(text, weights, data(3, 8, 8), width=8)


# ---- layers


@subject
def lstm_with_peepholes_and_lengths() -> Subject:
    body = """
    g (float[N,5,4] x, int32[N] lengths) => (float[N,3] y) {
      [t] s = Transpose <perm=[1,0,2]> (x)
      [lstm] o, hn, cn = LSTM <hidden_size=6> (s, w, r, b, lengths, , , p)
      [sq] h = Squeeze (hn, zero)
      [head] y = Gemm <transB=1> (h, wh, bh)
    }"""
    weights = {"w": (1, 24, 4), "r": (1, 24, 6), "b": (1, 48), "p": (1, 18), "zero": np.array([0]), "wh": (3, 6), "bh": (3,)}
    lengths = np.random.default_rng(2).integers(1, 6, 24).astype(np.int32)
    return Subject(net(body, weights), {"x": data(5, 4), "lengths": lengths}, 3, unrepaired=2)


@subject
def pixel_shuffle() -> Subject:
    body = """
    g (float[N,1,6,6] x) => (float[N,1,12,12] y) {
      [c1] a = Conv <pads=[2,2,2,2]> (x, w1, b1)
      [tanh] b = Tanh (a)
      [c2] c = Conv <pads=[1,1,1,1]> (b, w2, b2)
      [d2s] y = DepthToSpace <blocksize=2> (c)
    }"""
    return Subject(net(body, {"w1": (8, 1, 5, 5), "b1": (8,), "w2": (4, 8, 3, 3), "b2": (4,)}), {"x": data(1, 6, 6)}, 2)


@subject
def matmul_of_vectors() -> Subject:
    text = "[mm] a = MatMul (x, w)\n[dot] d = MatMul (a, v)\n[un] h = Unsqueeze (d, one)"
    return single(text, {"w": (8, 12), "v": (12,), "one": np.array([1])}, data(8), 2, width=1, image=False, skipped=("vector",))


@subject
def four_bit_matmul() -> Subject:
    """com.microsoft's MatMulNBits: packed weights are not pruned."""
    text = "[nb] a = com.microsoft.MatMulNBits <K=32, N=8, bits=4, block_size=16> (x, w, sc)\n[relu] h = Relu (a)"
    packed = np.random.default_rng(1).integers(0, 256, (8, 2, 8)).astype(np.uint8)
    weights = {"w": packed, "sc": positive(1, 16) / 10}
    return single(text, weights, data(32), 1, width=8, image=False, others=', "com.microsoft" : 1', skipped=("com.microsoft",))


# ---- graphs


@subject
def empty_tensors() -> Subject:
    """Resize with an empty roi, as exporters before opset 13 write it."""
    text = '[conv] a = Conv (x, w)\n[up] h = Resize <mode="nearest"> (a, roi, scales)'
    weights = {"w": (8, 3, 3, 3), "roi": np.zeros(0, np.float32), "scales": np.array([1, 1, 2, 2], np.float32)}
    return single(text, weights, data(3, 8, 8), width=8, opset=11)


@subject
def outputs_that_are_inputs_and_constants() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y, float[N,8] same, float[4] anchors) {
      [mm1] a = MatMul (x, w1)
      [relu] b = Relu (a)
      [mm2] y = MatMul (b, w2)
      [id] same = Identity (x)
    }"""
    return Subject(net(body, {"w1": (8, 12), "w2": (12, 5), "anchors": (4,)}), row(), 2)


@subject
def a_weight_that_is_an_output() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y, float[8,12] w1) {
      [mm1] a = MatMul (x, w1)
      [relu] b = Relu (a)
      [mm2] y = MatMul (b, w2)
    }"""
    return Subject(net(body, {"w1": (8, 12), "w2": (12, 5)}), row(), 1, ("output 'w1'",))


@subject
def dead_branch() -> Subject:
    """A layer that no output depends on, and an unused initializer."""
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [mm1] a = MatMul (x, w1)
      [relu] b = Relu (a)
      [dead] z = MatMul (x, w3)
      [mm2] y = MatMul (b, w2)
    }"""
    return Subject(net(body, {"w1": (8, 12), "w2": (12, 5), "w3": (8, 4), "unused": (3, 3)}), row(), 3, unrepaired=1)


@subject
def if_in_a_loop_in_a_function() -> Subject:
    body = """
    g (float[N,8] x) => (float[N,5] y) {
      [mm1] a = MatMul (x, w1)
      [call] b = local.steps (a, w2)
      [mm3] y = MatMul (b, w3)
    }
    <domain: "local", opset_import: ["" : 18]>
    steps (h, w) => (o) {
      [trips] n = Constant <value_int=2> ()
      [loop] o = Loop (n, , h) <body = step (int64 i, bool ok, float[N,8] s) => (bool again, float[N,8] t) {
        [again] again = Identity (ok)
        [zero] zero = Constant <value_int=0> ()
        [first] c = Equal (i, zero)
        [if] t = If (c) <
          then_branch = yes () => (float[N,8] p) { [inner] p0 = MatMul (s, w)  p = Tanh (p0) },
          else_branch = no () => (float[N,8] q) { q = Relu (s) }
        >
      }>
    }"""
    weights = {"w1": (8, 8), "w2": (8, 8), "w3": (8, 5)}
    return Subject(net(body, weights, others=', "local" : 1'), row(), 3, unrepaired=1)


@subject
def everything_in_constant_nodes_without_names() -> Subject:
    model = to_constants(convnet())
    for node in model.graph.node:
        node.name = ""
    return Subject(model, image(), 3)
