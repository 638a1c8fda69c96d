"""Models as exporters and converters write them: detectors, transformers, speech, Keras, PaddlePaddle, quantised and fused graphs."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
from zoo import Subject, convnet, data, image, mlp, net, positive, row, subject, to_constants, tokens


@subject
def yolo_like() -> Subject:
    """SiLU, a split and concat stage, an upsampling path and two heads that are flattened and joined."""
    body = """
    g (float[N,3,16,16] images) => (float[N,D,80] output0) {
      [c1] a0 = Conv <pads=[1,1,1,1], strides=[2,2]> (images, w1, b1)
      [s1] a1 = Sigmoid (a0)
      [m1] a = Mul (a0, a1)
      [split] p, q = Split <axis=1, num_outputs=2> (a)
      [c2] q0 = Conv <pads=[1,1,1,1]> (q, w2, b2)
      [s2] q1 = Sigmoid (q0)
      [m2] q2 = Mul (q0, q1)
      [skip] q3 = Add (q, q2)
      [cat] b = Concat <axis=1> (p, q, q3)
      [pool] c = MaxPool <kernel_shape=[5,5], pads=[2,2,2,2], strides=[1,1]> (b)
      [down] d = Conv <pads=[1,1,1,1], strides=[2,2]> (c, w3, b3)
      [up] e = Resize <mode="nearest", coordinate_transformation_mode="asymmetric"> (d, , scales)
      [cat2] f = Concat <axis=1> (b, e)
      [h1] o1 = Conv (f, w4, b4)
      [h2] o2 = Conv (d, w5, b5)
      [r1] t1 = Reshape (o1, flat)
      [r2] t2 = Reshape (o2, flat)
      [cat3] t = Concat <axis=2> (t1, t2)
      [cut] box, cls = Split <axis=1> (t, sizes)
      [sig] score = Sigmoid (cls)
      [stride] boxes = Mul (box, eight)
      [out] output0 = Concat <axis=1> (boxes, score)
    }"""
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (4, 4, 3, 3), "b2": (4,), "w3": (12, 12, 3, 3), "b3": (12,)}
    weights |= {"w4": (9, 24, 1, 1), "b4": (9,), "w5": (9, 12, 1, 1), "b5": (9,)}
    fixed = {"scales": np.array([1, 1, 2, 2], np.float32), "flat": np.array([0, 9, -1]), "sizes": np.array([4, 5])}
    return Subject(net(body, weights | fixed | {"eight": np.array(8, np.float32)}), {"images": data(3, 16, 16)}, 5)


ATTENTION = """
  [{p}q] {p}q0 = MatMul ({x}, {p}wq)
  [{p}k] {p}k0 = MatMul ({y}, {p}wk)
  [{p}v] {p}v0 = MatMul ({y}, {p}wv)
  [{p}qb] {p}q1 = Add ({p}bq, {p}q0)
  [{p}qr] {p}q2 = Reshape ({p}q1, heads)
  [{p}kr] {p}k2 = Reshape ({p}k0, heads)
  [{p}vr] {p}v2 = Reshape ({p}v0, heads)
  [{p}qt] {p}q3 = Transpose <perm=[0,2,1,3]> ({p}q2)
  [{p}kt] {p}k3 = Transpose <perm=[0,2,3,1]> ({p}k2)
  [{p}vt] {p}v3 = Transpose <perm=[0,2,1,3]> ({p}v2)
  [{p}qk] {p}s0 = MatMul ({p}q3, {p}k3)
  [{p}soft] {p}s1 = Softmax <axis=-1> ({p}s0)
  [{p}av] {p}a0 = MatMul ({p}s1, {p}v3)
  [{p}at] {p}a1 = Transpose <perm=[0,2,1,3]> ({p}a0)
  [{p}ar] {p}a2 = Reshape ({p}a1, joined)
  [{p}o] {p}o0 = MatMul ({p}a2, {p}wo)
  [{p}ob] {p}o1 = Add ({p}o0, {p}bo)
  [{p}res] {p}r = Add ({x}, {p}o1)
  [{p}ln] {p}out = LayerNormalization ({p}r, {p}s, {p}t)
"""
WIDE = {"heads": np.array([0, -1, 2, 4]), "joined": np.array([0, -1, 8])}


def attention(prefix: str, x: str, y: str) -> str:
    """Attention of x to y with residual and LayerNormalization; the result is called PREFIXout."""
    return ATTENTION.format(p=prefix, x=x, y=y)


def attention_weights(prefix: str, seed: int) -> dict[str, object]:
    rng = np.random.default_rng(seed)
    square = {name: rng.normal(0, 0.35, (8, 8)).astype(np.float32) for name in ("wq", "wk", "wv", "wo")}
    vectors = {name: rng.normal(0, 0.2, 8).astype(np.float32) for name in ("bq", "bo", "t")}
    return {f"{prefix}{name}": value for name, value in (square | vectors | {"s": positive(seed, 8)}).items()}


@subject
def vit_like() -> Subject:
    """Patches by a convolution, a class token, learned positions, attention, an MLP with Erf-GELU."""
    body = f"""
    g (float[N,3,8,8] x) => (float[N,5] y) {{
      [patch] e0 = Conv <strides=[4,4]> (x, wp, bp)
      [er] e1 = Reshape (e0, flat)
      [et] e2 = Transpose <perm=[0,2,1]> (e1)
      [sh] n = Shape <start=0, end=1> (x)
      [dims] d = Concat <axis=0> (n, one, eight)
      [cls] c = Expand (token, d)
      [cat] e3 = Concat <axis=1> (c, e2)
      [pos] e = Add (e3, positions)
      {attention("a", "e", "e")}
      [fc1] f0 = MatMul (aout, w1)
      [fb1] f1 = Add (f0, b1)
      [gd] g0 = Div (f1, root)
      [ge] g1 = Erf (g0)
      [ga] g2 = Add (g1, unit)
      [gm] g3 = Mul (f1, g2)
      [gh] g4 = Mul (g3, half)
      [fc2] h0 = MatMul (g4, w2)
      [fb2] h1 = Add (h0, b2)
      [res] h2 = Add (aout, h1)
      [first] h3 = Gather <axis=1> (h2, nought)
      [head] y = Gemm <transB=1> (h3, wh, bh)
    }}"""
    weights = {"wp": (8, 3, 4, 4), "bp": (8,), "positions": (1, 5, 8), "w1": (8, 16), "b1": (16,), "w2": (16, 8), "b2": (8,), "wh": (5, 8)}
    fixed = {"flat": np.array([0, 8, -1]), "one": np.array([1]), "eight": np.array([8]), "nought": np.array(0), "bh": (5,)}
    scalars = {"root": np.array(1.4142135, np.float32), "unit": np.array(1, np.float32), "half": np.array(0.5, np.float32)}
    token = {"token": data(1, 8, count=1)}
    return Subject(net(body, {**weights, **fixed, **scalars, **token, **WIDE, **attention_weights("a", 3)}), image(), 8)


@subject
def whisper_like() -> Subject:
    """An encoder of 1-D convolutions and attention, a decoder of tokens with a causal mask and cross attention, a tied head."""
    body = f"""
    g (float[N,6,16] mel, int64[N,T] tokens) => (float[N,T,30] logits, float[N,8,8] audio) {{
      [c1] m0 = Conv <pads=[1,1]> (mel, w1, b1)
      [r1] m1 = Relu (m0)
      [c2] m2 = Conv <pads=[1,1], strides=[2]> (m1, w2, b2)
      [mt] m3 = Transpose <perm=[0,2,1]> (m2)
      {attention("e", "m3", "m3")}
      [id] audio = Identity (eout)
      [embed] t0 = Gather (table, tokens)
      {attention("d", "t0", "t0")}
      {attention("x", "dout", "eout")}
      [tt] tablet = Transpose <perm=[1,0]> (table)
      [head] logits = MatMul (xout, tablet)
    }}"""
    weights = {"w1": (8, 6, 3), "b1": (8,), "w2": (8, 8, 3), "b2": (8,), "table": (30, 8), **WIDE}
    parts = attention_weights("e", 3) | attention_weights("d", 4) | attention_weights("x", 5)
    samples = {"mel": data(6, 16), "tokens": tokens(5, high=30)}
    return Subject(net(body, {**weights, **parts}), samples, 14, ("also read by", "embedding"))


@subject
def tts_like() -> Subject:
    """Token embedding, 1-D convolutions with InstanceNormalization, a bidirectional LSTM, and ConvTranspose to a waveform."""
    body = """
    g (int64[N,6] ids, float[N,4] style) => (float[N,1,24] wave) {
      [embed] a0 = Gather (table, ids)
      [at] a = Transpose <perm=[0,2,1]> (a0)
      [c1] b = Conv <pads=[1,1]> (a, w1)
      [in] c = InstanceNormalization (b, s, t)
      [fc] g0 = Gemm <transB=1> (style, wg, bg)
      [un] g1 = Unsqueeze (g0, two)
      [ada] d = Mul (c, g1)
      [act] e = LeakyRelu <alpha=0.2> (d)
      [ft] f0 = Transpose <perm=[2,0,1]> (e)
      [lstm] f1, hn, cn = LSTM <hidden_size=5, direction="bidirectional"> (f0, lw, lr, lb)
      [f3] f3 = Transpose <perm=[2,1,3,0]> (f1)
      [f4] f4 = Reshape (f3, joined)
      [up] u = ConvTranspose <strides=[2], pads=[1,1], kernel_shape=[4]> (f4, wu, bu)
      [up2] v = ConvTranspose <strides=[2], pads=[1,1], kernel_shape=[4]> (u, wv, bv)
      [tanh] wave = Tanh (v)
    }"""
    weights = {"table": (20, 8), "w1": (8, 8, 3), "s": positive(1, 8), "t": (8,), "wg": (8, 4), "bg": (8,), "two": np.array([2])}
    weights |= {"lw": (2, 20, 8), "lr": (2, 20, 5), "lb": (2, 40), "joined": np.array([0, 10, -1])}
    weights |= {"wu": (10, 6, 4), "bu": (6,), "wv": (6, 1, 4), "bv": (1,)}
    return Subject(net(body, weights), {"ids": tokens(6, high=20), "style": data(4)}, 6, ("embedding",), unrepaired=2)


@subject
def channels_last() -> Subject:
    """tf2onnx: NHWC in and out, a Transpose around every Conv, kernels as HWIO behind Transpose, a bias behind Reshape."""
    body = """
    g (float[N,8,8,3] x) => (float[N,5] y) {
      [k1] w1 = Transpose <perm=[3,2,0,1]> (hwio1)
      [in] a0 = Transpose <perm=[0,3,1,2]> (x)
      [c1] a1 = Conv <auto_pad="SAME_UPPER", strides=[2,2]> (a0, w1)
      [out] a2 = Transpose <perm=[0,2,3,1]> (a1)
      [bias] a3 = Add (a2, b1)
      [relu] a4 = Relu (a3)
      [in2] b0 = Transpose <perm=[0,3,1,2]> (a4)
      [c2] c0 = Conv <auto_pad="SAME_LOWER", group=8> (b0, w2)
      [out2] c1 = Transpose <perm=[0,2,3,1]> (c0)
      [mul] c2 = Mul (c1, s2)
      [add] c3 = Add (c2, b2)
      [relu6] c4 = Clip (c3, zero, six)
      [mean] d = ReduceMean <keepdims=0> (c4, axes)
      [fc] e = MatMul (d, w3)
      [biasadd] f = Add (e, b3)
      [soft] y = Softmax <axis=-1> (f)
    }"""
    weights = {"hwio1": (3, 3, 3, 8), "b1": (8,), "w2": (8, 1, 3, 3), "s2": positive(1, 8), "b2": (8,), "w3": (8, 5), "b3": (5,)}
    fixed = {"axes": np.array([1, 2]), "zero": np.array(0, np.float32), "six": np.array(6, np.float32)}
    return Subject(net(body, weights | fixed), {"x": data(8, 8, 3)}, 3)


@subject
def keras_dense_as_tensordot() -> Subject:
    """A Dense layer on sequences in tf2onnx: the input is flattened, multiplied and given its shape back."""
    body = """
    g (float[N,4,8] x) => (float[N,4,5] y) {
      [flat] a = Reshape (x, rows)
      [mm] b = MatMul (a, w1)
      [shape] c = Reshape (b, back)
      [bias] d = Add (c, b1)
      [gelu] e = Relu (d)
      [flat2] f = Reshape (e, rows2)
      [mm2] g1 = MatMul (f, w2)
      [shape2] h = Reshape (g1, back2)
      [bias2] y = Add (h, b2)
    }"""
    fixed = {"rows": np.array([-1, 8]), "back": np.array([-1, 4, 12]), "rows2": np.array([-1, 12]), "back2": np.array([-1, 4, 5])}
    return Subject(net(body, {"w1": (8, 12), "b1": (12,), "w2": (12, 5), "b2": (5,), **fixed}), {"x": data(4, 8)}, 2)


@subject
def paddle_like() -> Subject:
    """Everything in Constant nodes, the bias as Reshape and Add behind the Conv, squeeze and excitation with HardSigmoid."""
    body = """
    g (float[N,3,8,8] x) => (float[N,2] y) {
      [Conv_0] a0 = Conv <pads=[1,1,1,1], strides=[2,2]> (x, w1)
      [BatchNormalization_0] a1 = BatchNormalization (a0, s, t, m, v)
      [hs] a2 = Add (a1, three)
      [clip] a3 = Clip (a2, zero, six)
      [div] a4 = Div (a3, sixf)
      [swish] a = Mul (a1, a4)
      [GlobalAveragePool_0] b0 = GlobalAveragePool (a)
      [Conv_1] b1 = Conv (b0, w2)
      [Reshape_0] br = Reshape (bias, shape)
      [Add_0] b2 = Add (b1, br)
      [Relu_0] b3 = Relu (b2)
      [Conv_2] b4 = Conv (b3, w3)
      [HardSigmoid_0] b5 = HardSigmoid <alpha=0.2, beta=0.5> (b4)
      [Mul_0] c = Mul (a, b5)
      [pool] d = GlobalAveragePool (c)
      [Reshape_1] e = Reshape (d, flat)
      [MatMul_0] f = MatMul (e, w4)
      [Add_1] g1 = Add (f, b4b)
      [Softmax_0] y = Softmax <axis=-1> (g1)
    }"""
    weights = {"w1": (8, 3, 3, 3), "s": positive(1, 8), "t": (8,), "m": (8,), "v": positive(2, 8), "w2": (4, 8, 1, 1), "bias": (4,)}
    weights |= {"w3": (8, 4, 1, 1), "w4": (8, 2), "b4b": (2,), "shape": np.array([1, 4, 1, 1]), "flat": np.array([-1, 8])}
    scalars = {"three": 3, "zero": 0, "six": 6, "sixf": 6}
    weights |= {name: np.array(value, np.float32) for name, value in scalars.items()}
    model = net(body, weights, opset=12)
    for node in model.graph.node:
        node.name = node.name.replace("_", ".")
    return Subject(to_constants(model), image(), 4)


@subject
def convnext_like() -> Subject:
    """Depthwise 7x7, channels last by Transpose, LayerNormalization, two Dense, a layer scale, a residual."""
    body = """
    g (float[N,3,8,8] x) => (float[N,5] y) {
      [stem] a = Conv <strides=[2,2]> (x, w0, b0)
      [dw] b = Conv <group=8, pads=[3,3,3,3]> (a, w1, b1)
      [nhwc] c = Transpose <perm=[0,2,3,1]> (b)
      [ln] d = LayerNormalization <epsilon=0.000001> (c, s, t)
      [pw1] e = MatMul (d, w2)
      [pb1] f = Add (e, b2)
      [gelu] g1 = Gelu (f)
      [pw2] h = MatMul (g1, w3)
      [pb2] i = Add (h, b3)
      [scale] j = Mul (gamma, i)
      [nchw] k = Transpose <perm=[0,3,1,2]> (j)
      [res] l = Add (a, k)
      [gap] m = GlobalAveragePool (l)
      [flat] n = Flatten (m)
      [head] y = Gemm <transB=1> (n, w4, b4)
    }"""
    weights = {"w0": (8, 3, 2, 2), "b0": (8,), "w1": (8, 1, 7, 7), "b1": (8,), "s": positive(1, 8), "t": (8,), "w2": (8, 32), "b2": (32,)}
    weights |= {"w3": (32, 8), "b3": (8,), "gamma": positive(2, 8), "w4": (5, 8), "b4": (5,)}
    return Subject(net(body, weights, opset=20), image(), 5)


# ---- made by ONNX Runtime's own tools


def _quantized(model: onnx.ModelProto, samples: dict[str, np.ndarray], *, form: str, by_channel: bool) -> onnx.ModelProto:
    from onnxruntime import quantization as tools

    class Reader(tools.CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self.batches = iter([{name: values[start : start + 8] for name, values in samples.items()} for start in (0, 8, 16)])

        def get_next(self) -> dict[str, np.ndarray] | None:
            return next(self.batches, None)

    with TemporaryDirectory() as folder:
        source, target = Path(folder, "in.onnx"), Path(folder, "out.onnx")
        onnx.save(model, source)
        if form == "dynamic":
            tools.quantize_dynamic(source, target, per_channel=by_channel)
        else:
            kind = {"qdq": tools.QuantFormat.QDQ, "qoperator": tools.QuantFormat.QOperator}[form]
            tools.quantize_static(source, target, Reader(), quant_format=kind, per_channel=by_channel)
        return onnx.load(str(target))


@subject
def quantized_qdq() -> Subject:
    return Subject(_quantized(convnet(), image(), form="qdq", by_channel=False), image(), 3)


@subject
def quantized_qdq_by_channel() -> Subject:
    return Subject(_quantized(convnet(), image(), form="qdq", by_channel=True), image(), 3)


@subject
def quantized_operators() -> Subject:
    """QLinearConv and com.microsoft's QGemm."""
    return Subject(_quantized(convnet(), image(), form="qoperator", by_channel=False), image(), 2, ("com.microsoft",), unrepaired=2)


@subject
def quantized_dynamic() -> Subject:
    return Subject(_quantized(mlp(), row(), form="dynamic", by_channel=False), row(), 2, unrepaired=2)


@subject
def fused_operators() -> Subject:
    """What ONNX Runtime saves after its extended optimisations: FusedConv, FusedGemm, FusedMatMul, SkipLayerNormalization."""
    body = """
    g (float[N,3,8,8] x) => (float[N,5] y) {
      [conv] a = com.microsoft.FusedConv <activation="Relu", pads=[1,1,1,1]> (x, w1, b1)
      [conv2] b = Conv (a, w2)
      [gap] c = GlobalAveragePool (b)
      [flat] d = Flatten (c)
      [fm] e = com.microsoft.FusedMatMul <transB=1, alpha=0.5> (d, w3)
      [skip] f = com.microsoft.SkipLayerNormalization (e, d, s, t)
      [fg] h = com.microsoft.FusedGemm <activation="Relu", transB=1> (f, w4, b4)
      [head] y = MatMul (h, w5)
    }"""
    weights = {"w1": (8, 3, 3, 3), "b1": (8,), "w2": (8, 8, 3, 3), "w3": (8, 8), "s": positive(1, 8), "t": (8,), "w4": (6, 8), "b4": (6,)}
    weights |= {"w5": (6, 5)}
    model = net(body, weights, others=', "com.microsoft" : 1')
    return Subject(model, image(), 2, ("com.microsoft", "com.microsoft", "com.microsoft"))


@subject
def fused_attention() -> Subject:
    body = """
    g (float[N,4,8] x) => (float[N,4,8] y) {
      [att] a = com.microsoft.Attention <num_heads=2> (x, w, b)
      [mm] c = MatMul (a, wo)
      [gelu] d = com.microsoft.BiasGelu (c, bo)
      [skip] y = com.microsoft.SkipLayerNormalization (d, x, s, t)
    }"""
    weights = {"w": (8, 24), "b": (24,), "wo": (8, 8), "bo": (8,), "s": positive(1, 8), "t": (8,)}
    return Subject(net(body, weights, others=', "com.microsoft" : 1'), {"x": data(4, 8)}, 1, ("com.microsoft",))
