"""A layer as a matrix: gathered input rows times the matrix give the output rows of ONNX Runtime.

All data are small whole numbers (and alpha a power of two), so that every float32 sum below 2^24 is exact in any order: the comparison
asks for equality.
"""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from models import build, node, run
from onnxruntime.capi import onnxruntime_pybind11_state as failures

from onnxprune.graph import layers
from onnxprune.graph.geometry import Geometry, from_matrix, geometry, last_axis, sources, to_matrix
from onnxprune.graph.tensors import Constants


def whole(rng, *shape):
    """Whole numbers from -3 to 3, none of them 0: a wrong place shows."""
    values = rng.integers(1, 4, shape) * rng.choice([-1, 1], shape)
    return values.astype(np.float32)


def rows_of(value, shape, index=None):
    """Rows of a tensor by numpy alone: channels last, a row of zeros behind the last, channel after channel the taps of each."""
    flat = value.transpose(last_axis(value.ndim, shape)).reshape(-1, value.shape[last_axis(value.ndim, shape)[-1]])
    if index is None:
        return flat
    padded = np.concatenate([flat, np.zeros((1, flat.shape[1]), flat.dtype)])
    return padded[index].transpose(0, 2, 1).reshape(len(index), -1)


def applied(x_rows, matrix, group):
    """Output rows: each group's matrix on its own inputs."""
    blocks = matrix.reshape(group, -1, matrix.shape[1])
    parts = x_rows.reshape(len(x_rows), group, -1)
    return np.concatenate([parts[:, g] @ blocks[g].T for g in range(group)], axis=1)


def check(op, weight, x, *, bias=None, left=False, **attributes):
    """The node as ONNX Runtime runs it, against rows and matrix, for all output rows and for a few in disorder.

    Returns the geometry, None for what ONNX Runtime does not take and for an empty output.
    """
    constants = {"w": weight} | ({} if bias is None else {"b": bias})
    inputs = (["w", "x"] if left else ["x", "w"]) + ([] if bias is None else ["b"])
    model = build([node(op, inputs, ["y"], "layer", **attributes)], constants, {"x": x.shape}, ["y"])
    try:
        (y,) = run(model, {"x": x})
    except (failures.Fail, failures.InvalidArgument, failures.NotImplemented, failures.RuntimeException):
        return None
    if y.size == 0:
        return None
    (layer,) = layers.find(model).layers
    shape = geometry(model.graph.node[0], layer.uses[0], layer.shape)
    assert isinstance(shape, Geometry)
    matrix = to_matrix(Constants(model).read("w"), shape)
    assert matrix.dtype == np.float64
    assert matrix.shape == (layer.uses[0].channels, weight.size // layer.uses[0].channels)
    wanted = rows_of(y, shape)
    rng = np.random.default_rng(0)
    for at in (np.arange(len(wanted)), rng.integers(0, len(wanted), 7)):
        index = sources(shape, x.shape, y.shape, at)
        assert index.dtype == np.int64
        assert index.shape == (len(at), shape.taps)
        got = applied(rows_of(x, shape, index).astype(np.float64), matrix, shape.group)
        np.testing.assert_array_equal(got + (0 if bias is None else bias.reshape(-1)), wanted[at])
    np.testing.assert_array_equal(from_matrix(matrix, shape, weight.shape), weight)
    return shape


# ---- by hand


def test_a_convolution_by_hand():
    """Kernel 3, stride 2, dilation 2, pads 1 and 2 on five inputs: output o reads 2o - 1, 2o + 1, 2o + 3; 5 stands for the padding."""
    model = build(
        [node("Conv", ["x", "w"], ["y"], strides=[2], dilations=[2], pads=[1, 2])],
        {"w": np.ones((1, 1, 3), np.float32)},
        {"x": [1, 1, 5]},
        ["y"],
    )
    use = layers.find(model).layers[0].uses[0]
    shape = geometry(model.graph.node[0], use, (1, 1, 3))
    assert isinstance(shape, Geometry)
    np.testing.assert_array_equal(sources(shape, (1, 1, 5), (1, 1, 2), np.arange(2)), [[5, 1, 3], [1, 3, 5]])
    # two samples: the second's rows follow the first's, and 10 is the padding
    np.testing.assert_array_equal(sources(shape, (2, 1, 5), (2, 1, 2), np.array([2, 3])), [[10, 6, 8], [6, 8, 10]])


def test_a_transposed_convolution_by_hand():
    """Kernel 3, stride 2, pad 1: input i adds to 2i - 1, 2i, 2i + 1, so output 0 reads tap 1 of 0, output 1 tap 2 of 0 and tap 0 of 1."""
    model = build(
        [node("ConvTranspose", ["x", "w"], ["y"], strides=[2], pads=[1, 1])], {"w": np.ones((1, 1, 3), np.float32)}, {"x": [1, 1, 3]}, ["y"]
    )
    use = layers.find(model).layers[0].uses[0]
    shape = geometry(model.graph.node[0], use, (1, 1, 3))
    assert isinstance(shape, Geometry)
    wanted = [[3, 0, 3], [1, 3, 0], [3, 1, 3], [2, 3, 1], [3, 2, 3]]
    np.testing.assert_array_equal(sources(shape, (1, 1, 3), (1, 1, 5), np.arange(5)), wanted)


def test_matrices_by_hand():
    def made(op, shape, **fields):
        given = {
            "group": 1,
            "kernel": (),
            "strides": (),
            "dilations": (),
            "pads": (),
            "auto_pad": "NOTSET",
            "extra": (),
            "transposed": False,
            "left": False,
            "alpha": 1.0,
        }
        return to_matrix(np.arange(np.prod(shape), dtype=np.float32).reshape(shape), Geometry(op, **(given | fields)))

    np.testing.assert_array_equal(made("Gemm", (2, 3), alpha=0.5), [[0, 0.5, 1], [1.5, 2, 2.5]])
    np.testing.assert_array_equal(made("Gemm", (2, 3), transposed=True), [[0, 3], [1, 4], [2, 5]])
    # Conv (outputs, inputs, taps) is flat already; ConvTranspose is (inputs, outputs of a group, taps), in groups of inputs
    np.testing.assert_array_equal(made("Conv", (2, 2, 2), kernel=(2,)), [[0, 1, 2, 3], [4, 5, 6, 7]])
    np.testing.assert_array_equal(made("ConvTranspose", (2, 2, 2), kernel=(2,)), [[0, 1, 4, 5], [2, 3, 6, 7]])
    np.testing.assert_array_equal(made("ConvTranspose", (2, 1, 2), kernel=(2,), group=2), [[0, 1], [2, 3]])


# ---- convolutions, one feature at a time

CONVS = {
    "1d": ((4, 3, 3), (2, 3, 9), {}),
    "1d strided, dilated, uneven pads": ((4, 3, 3), (2, 3, 9), {"strides": [2], "dilations": [2], "pads": [3, 1]}),
    "2d": ((4, 3, 3, 2), (2, 3, 6, 5), {}),
    "2d uneven": ((2, 3, 3, 2), (2, 3, 7, 6), {"strides": [2, 3], "dilations": [1, 2], "pads": [1, 0, 2, 3]}),
    "2d padded 1x1": ((4, 3, 1, 1), (2, 3, 3, 4), {"pads": [1, 0, 0, 2]}),
    "2d strided 1x1": ((4, 3, 1, 1), (2, 3, 5, 4), {"strides": [2, 2]}),
    "3d": ((2, 2, 2, 3, 2), (1, 2, 4, 5, 3), {"strides": [1, 2, 1], "dilations": [2, 1, 1], "pads": [0, 1, 2, 1, 0, 1]}),
    "groups": ((4, 2, 3, 3), (2, 4, 5, 5), {"group": 2, "pads": [1, 1, 1, 1]}),
    "depthwise": ((3, 1, 3, 3), (2, 3, 5, 5), {"group": 3, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "depthwise, two outputs each": ((6, 1, 3), (2, 3, 6), {"group": 3, "pads": [1, 1]}),
    "valid": ((2, 3, 3, 3), (2, 3, 6, 5), {"auto_pad": "VALID", "strides": [2, 1]}),
    "pads as large as the kernel": ((2, 2, 2), (1, 2, 1), {"pads": [3, 4]}),
}
AUTO = {  # ONNX Runtime takes no dilation here
    "even kernel": ((2, 3, 2, 4), (2, 3, 5, 6), {}),
    "odd total": ((2, 3, 3, 3), (2, 3, 6, 5), {"strides": [2, 2]}),
    "stride beyond the kernel": ((2, 3, 1, 2), (2, 3, 6, 5), {"strides": [3, 3]}),
    "3d": ((2, 2, 2, 3, 2), (1, 2, 4, 5, 3), {"strides": [1, 2, 2]}),
    "depthwise": ((3, 1, 2, 2), (2, 3, 5, 5), {"group": 3, "strides": [2, 1]}),
}


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", CONVS)
def test_conv(name, with_bias):
    weight, given, attributes = CONVS[name]
    rng = np.random.default_rng(1)
    bias = whole(rng, weight[0]) if with_bias else None
    assert check("Conv", whole(rng, *weight), whole(rng, *given), bias=bias, **attributes) is not None


@pytest.mark.parametrize("auto_pad", ["SAME_UPPER", "SAME_LOWER"])
@pytest.mark.parametrize("name", AUTO)
def test_conv_with_auto_pad(name, auto_pad):
    weight, given, attributes = AUTO[name]
    rng = np.random.default_rng(2)
    shape = check("Conv", whole(rng, *weight), whole(rng, *given), auto_pad=auto_pad, **attributes)
    assert shape is not None
    assert shape.pads is None


TRANSPOSED = {
    "1d": ((3, 4, 3), (2, 3, 5), {}),
    "1d strided": ((3, 4, 3), (2, 3, 5), {"strides": [2]}),
    "1d kernel 1, stride 2": ((3, 2, 1), (2, 3, 4), {"strides": [2]}),
    "2d uneven": ((3, 2, 3, 2), (2, 3, 4, 3), {"strides": [2, 3], "dilations": [1, 2], "pads": [1, 0, 2, 1]}),
    "output padding": ((3, 2, 3, 3), (2, 3, 4, 3), {"strides": [2, 3], "pads": [1, 1, 1, 1], "output_padding": [1, 2]}),
    "output shape": ((3, 2, 3, 3), (2, 3, 4, 3), {"strides": [2, 2], "output_shape": [8, 6]}),
    "output shape, odd rest": ((3, 2, 3, 3), (2, 3, 4, 3), {"strides": [2, 2], "output_shape": [8, 7]}),
    "output shape and padding": ((3, 2, 3, 3), (2, 3, 4, 3), {"strides": [2, 2], "output_shape": [8, 8], "output_padding": [1, 1]}),
    "output shape, upper": ((3, 2, 4, 3), (2, 3, 4, 3), {"strides": [2, 2], "output_shape": [7, 6], "auto_pad": "SAME_UPPER"}),
    "output shape, lower": ((3, 2, 4, 3), (2, 3, 4, 3), {"strides": [2, 2], "output_shape": [7, 6], "auto_pad": "SAME_LOWER"}),
    "groups": ((4, 3, 2, 2), (2, 4, 3, 3), {"group": 2, "strides": [2, 2]}),
    "depthwise": ((3, 1, 3, 3), (2, 3, 3, 3), {"group": 3, "strides": [2, 2], "pads": [1, 1, 1, 1]}),
    "3d": ((2, 2, 2, 3, 2), (1, 2, 3, 2, 3), {"strides": [1, 2, 1], "dilations": [2, 1, 1], "pads": [0, 1, 1, 1, 0, 0]}),
    "same upper": ((3, 2, 3, 4), (2, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_UPPER"}),
    "same lower": ((3, 2, 3, 4), (2, 3, 4, 3), {"strides": [2, 2], "auto_pad": "SAME_LOWER"}),
    "valid": ((3, 2, 3, 4), (2, 3, 4, 3), {"strides": [2, 1], "auto_pad": "VALID"}),
    "same upper, stride beyond the kernel": ((3, 2, 2), (2, 3, 4), {"strides": [3], "auto_pad": "SAME_UPPER"}),
    "same lower, stride beyond the kernel": ((3, 2, 2), (2, 3, 4), {"strides": [3], "auto_pad": "SAME_LOWER"}),
}


@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("name", TRANSPOSED)
def test_conv_transpose(name, with_bias):
    weight, given, attributes = TRANSPOSED[name]
    rng = np.random.default_rng(3)
    bias = whole(rng, weight[1] * attributes.get("group", 1)) if with_bias else None
    assert check("ConvTranspose", whole(rng, *weight), whole(rng, *given), bias=bias, **attributes) is not None


# ---- matrix products


@pytest.mark.parametrize("alpha", [1.0, 0.5, -4.0])
@pytest.mark.parametrize("trans", [0, 1])
def test_gemm(trans, alpha):
    rng = np.random.default_rng(4)
    weight = whole(rng, *((4, 3) if trans else (3, 4)))
    shape = check("Gemm", weight, whole(rng, 5, 3), bias=whole(rng, 4), transB=trans, alpha=alpha)
    assert shape is not None
    assert shape.alpha == alpha


def test_gemm_with_an_alpha_that_is_no_power_of_two_comes_back():
    """To float64 and back: a multiplication and a division, each rounded once, so within 2^-52."""
    weight = np.random.default_rng(5).normal(size=(3, 4))
    shape = Geometry("Gemm", 1, (), (), (), (), "NOTSET", (), True, False, 0.3)
    np.testing.assert_allclose(from_matrix(to_matrix(weight, shape), shape, (3, 4)), weight, rtol=4e-16)


@pytest.mark.parametrize("given", [(5, 3), (2, 5, 3), (2, 2, 4, 3)])
def test_matmul_on_the_right(given):
    rng = np.random.default_rng(6)
    shape = check("MatMul", whole(rng, 3, 4), whole(rng, *given))
    assert shape is not None
    assert (shape.transposed, shape.left) == (True, False)


@pytest.mark.parametrize("given", [(3, 5), (2, 3, 5), (2, 2, 3, 4)])
def test_matmul_on_the_left(given):
    rng = np.random.default_rng(7)
    shape = check("MatMul", whole(rng, 4, 3), whole(rng, *given), left=True)
    assert shape is not None
    assert (shape.transposed, shape.left) == (False, True)


# ---- what has no geometry


@pytest.mark.parametrize(
    ("op", "weight", "given", "attributes", "reason"),
    [
        ("MatMul", (2, 3, 4), (2, 5, 3), {}, "its weight is a batch of matrices"),
        ("Gemm", (3, 4), (3, 5), {"transA": 1}, "Gemm transposes its input"),
        ("Gemm", (3, 4), (5, 3), {"alpha": 0.0}, "Gemm multiplies it by 0"),
    ],
)
def test_reasons(op, weight, given, attributes, reason):
    model = build([node(op, ["x", "w"], ["y"], **attributes)], {"w": np.ones(weight, np.float32)}, {"x": given}, ["y"])
    (layer,) = layers.find(model).layers
    assert geometry(model.graph.node[0], layer.uses[0], layer.shape) == reason


# ---- any


@st.composite
def convolutions(draw, op):
    axes = draw(st.integers(1, 3))
    many = lambda low, high: draw(st.lists(st.integers(low, high), min_size=axes, max_size=axes))  # noqa: E731
    kernel, size = many(1, 3), many(1, 5)
    group, inner, outer = draw(st.integers(1, 3)), draw(st.integers(1, 2)), draw(st.integers(1, 2))
    attributes = {"strides": many(1, 3), "dilations": many(1, 2), "group": group}
    attributes["auto_pad"] = draw(st.sampled_from(["NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID"]))
    if attributes["auto_pad"] == "NOTSET":
        attributes["pads"] = many(0, 2) + many(0, 2)
    if op == "ConvTranspose" and draw(st.booleans()):
        top = zip(attributes["strides"], attributes["dilations"], strict=True)
        attributes["output_padding"] = [draw(st.integers(0, max(pair) - 1)) for pair in top]
    if op == "ConvTranspose" and draw(st.integers(0, 3)) == 0:
        pads = attributes.pop("pads", [0] * (2 * axes))
        attributes["output_shape"] = [
            max(1, (n - 1) * s + (k - 1) * d + 1 - pads[i] - pads[i + axes])
            for i, (n, s, k, d) in enumerate(zip(size, attributes["strides"], kernel, attributes["dilations"], strict=True))
        ]
    weight = (group * inner, outer, *kernel) if op == "ConvTranspose" else (group * outer, inner, *kernel)
    return weight, (draw(st.integers(1, 2)), group * inner, *size), attributes


@settings(max_examples=120, deadline=None, derandomize=True)
@given(convolutions("Conv"), st.integers(0, 2**32 - 1))
def test_any_conv(case, seed):
    weight, given_, attributes = case
    rng = np.random.default_rng(seed)
    assume(check("Conv", whole(rng, *weight), whole(rng, *given_), **attributes) is not None)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(convolutions("ConvTranspose"), st.integers(0, 2**32 - 1))
def test_any_conv_transpose(case, seed):
    weight, given_, attributes = case
    rng = np.random.default_rng(seed)
    assume(check("ConvTranspose", whole(rng, *weight), whole(rng, *given_), **attributes) is not None)
