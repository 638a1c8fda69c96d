"""Normalisations as operators and as exporters' chains: scale and bias take the repair."""

import numpy as np
import pytest
from models import build, node, rand
from onnx import TensorProto, helper
from product import every_way, values

from onnxprune.graph.layers import find

RNG = np.random.default_rng(7)
C = 6


def layer_norm(kind):
    """The nodes of a LayerNorm or RMSNorm of h over its last axis, giving n, with scale g and bias b."""
    centre = [node("ReduceMean", ["h", "last"], ["mean"]), node("Sub", ["h", "mean"], ["d"])]
    square = node("Pow", ["d", "two"], ["sq"])
    divide = [node("Sqrt", ["ve"], ["std"]), node("Div", ["d", "std"], ["t"])]
    affine = [node("Mul", ["t", "g"], ["s"], name="scale"), node("Add", ["s", "b"], ["n"], name="shift")]
    source = "d"
    if kind == "d * d":
        square = node("Mul", ["d", "d"], ["sq"])
    if kind == "Reciprocal":
        divide = [node("Sqrt", ["ve"], ["std"]), node("Reciprocal", ["std"], ["inv"]), node("Mul", ["d", "inv"], ["t"])]
    if kind == "Pow -0.5":
        divide = [node("Pow", ["ve", "minus"], ["inv"]), node("Mul", ["d", "inv"], ["t"])]
    if kind == "swapped":
        affine = [node("Mul", ["g", "t"], ["s"], name="scale"), node("Add", ["b", "s"], ["n"], name="shift")]
    if kind.startswith("RMS"):
        centre, source = [], "h"
        square = node("Pow", ["h", "two"], ["sq"])
        divide = [node("Sqrt", ["ve"], ["std"]), node("Reciprocal", ["std"], ["inv"]), node("Mul", ["h", "inv"], ["t"])]
        if kind == "RMS Div":
            divide = [node("Sqrt", ["ve"], ["std"]), node("Div", ["one", "std"], ["inv"]), node("Mul", ["h", "inv"], ["t"])]
        affine = [node("Mul", ["g", "t"], ["n"], name="scale")]
    mean = [node("ReduceMean", ["sq", "last"], ["var"]), node("Add", ["var", "eps"], ["ve"])]
    assert source
    return [*centre, square, *mean, *divide, *affine]


SCALARS = {"two": np.float32(2), "minus": np.float32(-0.5), "one": np.float32(1), "eps": np.float32(1e-5), "last": np.array([-1])}


def block(norm, constants, *, ndim=3, **more):
    """x -> MatMul -> residual sum -> normalisation -> Relu -> MatMul -> y; a sum keeps the normalisation from being a layer's own."""
    nodes = [
        node("MatMul", ["x", "w1"], ["p"], name="first"),
        node("Add", ["p", "b1"], ["q"]),
        node("Add", ["q", "x"], ["h"]),
        *norm,
        node("Relu", ["n"], ["r"]),
        node("MatMul", ["r", "w2"], ["m"], name="second"),
        node("Add", ["m", "b2"], ["y"]),
    ]
    held = {"w1": rand(RNG, C, C), "b1": rand(RNG, C), "w2": rand(RNG, C, 4), "b2": rand(RNG, 4)} | constants
    return build(nodes, held, {"x": ["N", *[5] * (ndim - 2), C]}, ["y"], **more)


def samples(*shape):
    rng = np.random.default_rng(8)
    return {
        "x": (rng.normal(size=(24, *shape)) * np.linspace(0.2, 2, shape[-1]) + rng.normal(size=(24, *[1] * len(shape)))).astype(np.float32)
    }


def repaired(model, feed, name, changed, initializers=()):
    """Every repair but none and reconstruct's layers writes the normalisation, and brings its channels closer."""
    for repair, result in every_way(model, feed).items():
        if repair == "none":
            continue
        (norm,) = [entry for entry in result.report.norms if entry.name == name]
        assert norm.channels == C
        assert set(changed) <= set(result.report.changes.values), repair
        assert set(initializers) <= set(result.report.changes.initializers)
        if repair in ("channel", "reconstruct"):
            assert norm.variance_error_after < 1e-3 < norm.variance_error_before


@pytest.mark.parametrize("kind", ["Pow", "d * d", "Reciprocal", "Pow -0.5", "swapped"])
def test_layer_norm_chains(kind):
    needed = SCALARS | {"g": rand(RNG, C), "b": rand(RNG, C)}
    repaired(block(layer_norm(kind), needed), samples(5, C), "scale", ["g", "b"])


@pytest.mark.parametrize("kind", ["RMS", "RMS Div"])
def test_rms_norm_chains_get_a_bias(kind):
    repaired(block(layer_norm(kind), SCALARS | {"g": rand(RNG, C)}), samples(5, C), "scale", ["g"], ["scale.bias"])


def test_a_cast_on_the_way():
    norm = layer_norm("Pow")
    norm[-2] = node("Mul", ["tc", "g"], ["s"], name="scale")
    norm.insert(-2, node("Cast", ["t"], ["tc"], to=1))
    repaired(block(norm, SCALARS | {"g": rand(RNG, C), "b": rand(RNG, C)}), samples(5, C), "scale", ["g", "b"])


@pytest.mark.parametrize("bias", [True, False])
def test_layer_normalization(bias):
    norm = [node("LayerNormalization", ["h", "g", *(["b"] if bias else [])], ["n"], name="ln")]
    constants = {"g": rand(RNG, C)} | ({"b": rand(RNG, C)} if bias else {})
    repaired(block(norm, constants), samples(5, C), "ln", ["g"], [] if bias else ["ln.bias"])


def test_rms_normalization():
    norm = [node("RMSNormalization", ["h", "g"], ["n"], name="rms")]
    repaired(block(norm, {"g": rand(RNG, C)}, opset=23, ir_version=10), samples(5, C), "rms", ["g"], ["rms.bias"])


@pytest.mark.parametrize("bias", [True, False])
def test_skip_layer_normalization(bias):
    real = node("SkipLayerNormalization", ["h", "x", "g", *(["b"] if bias else [])], ["n"], name="skip", domain="com.microsoft")
    plain = node("LayerNormalization", ["h", "g"], ["n"], name="skip")  # the builder's shape inference does not know the other
    model = block([plain], {"g": rand(RNG, C)} | ({"b": rand(RNG, C)} if bias else {}))
    next(each for each in model.graph.node if each.name == "skip").CopyFrom(real)
    model.opset_import.add(domain="com.microsoft", version=1)
    repaired(model, samples(5, C), "skip", ["g"], [] if bias else ["skip.bias"])


def images(norm, constants):
    nodes = [
        node("Conv", ["x", "w1", "b1"], ["q"], name="first"),
        node("Add", ["q", "x"], ["h"]),
        *norm,
        node("Relu", ["n"], ["r"]),
        node("Conv", ["r", "w2", "b2"], ["y"], name="second"),
    ]
    held = {"w1": rand(RNG, C, C, 1, 1), "b1": rand(RNG, C), "w2": rand(RNG, 4, C, 1, 1), "b2": rand(RNG, 4)} | constants
    return build(nodes, held, {"x": ["N", C, 5, 5]}, ["y"])


def picture():
    rng = np.random.default_rng(9)
    return {
        "x": (rng.normal(size=(24, C, 5, 5)) * np.linspace(0.2, 2, C)[:, None, None] + rng.normal(size=(24, 1, 1, 1))).astype(np.float32)
    }


def test_group_norm_as_torch_exports_it():
    """Reshape, InstanceNormalization of the groups, Reshape, Mul, Add: only the last two take the repair."""
    norm = [
        node("Reshape", ["h", "groups"], ["hg"]),
        node("InstanceNormalization", ["hg", "ones", "zeros"], ["ig"], name="inner"),
        node("Shape", ["h"], ["size"]),
        node("Reshape", ["ig", "size"], ["t"]),
        node("Mul", ["t", "g"], ["s"], name="scale"),
        node("Add", ["s", "b"], ["n"]),
    ]
    constants = {"groups": np.array([0, 2, -1]), "ones": np.ones(2, np.float32), "zeros": np.zeros(2, np.float32)}
    model = images(norm, constants | {"g": rand(RNG, C, 1, 1), "b": rand(RNG, C, 1, 1)})
    assert [entry.name for entry in find(model).norms] == ["scale"]
    repaired(model, picture(), "scale", ["g", "b"])


def test_layer_norm_over_the_channels_of_images():
    """ConvNeXt's LayerNorm2d: the mean over axis 1."""
    norm = layer_norm("Pow")
    model = images(norm, SCALARS | {"last": np.array([1]), "g": rand(RNG, C, 1, 1), "b": rand(RNG, C, 1, 1)})
    repaired(model, picture(), "scale", ["g", "b"])


def test_group_normalization_and_instance_normalization():
    norm = [
        node("GroupNormalization", ["h", "g", "b"], ["i"], name="group", num_groups=2),
        node("InstanceNormalization", ["i", "g2", "b2n"], ["n"], name="instance"),
    ]
    model = images(norm, {"g": rand(RNG, C), "b": rand(RNG, C), "g2": rand(RNG, C), "b2n": rand(RNG, C)})
    model.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4, 5, 5]))
    for repair, result in every_way(model, picture()).items():
        if repair != "none":
            assert {entry.name for entry in result.report.norms} == {"group", "instance"}
            assert {"g", "b", "g2", "b2n"} <= set(result.report.changes.values)


def test_a_scale_over_several_axes_is_named():
    norm = layer_norm("Pow")
    model = block(norm, SCALARS | {"g": rand(RNG, 5, C), "b": rand(RNG, 5, C)})
    assert {entry.name: entry.reason for entry in find(model).skipped} == {"scale": "its scale and bias are not one number per channel"}


def test_a_mul_that_no_normalisation_precedes_is_none():
    model = block([node("Mul", ["h", "g"], ["s"]), node("Add", ["s", "b"], ["n"])], {"g": rand(RNG, C), "b": rand(RNG, C)})
    assert not find(model).norms and not find(model).skipped


def test_values_by_hand():
    """The chain gives gain * y + shift once scale and bias are gain * scale and gain * bias + shift."""
    model = block(layer_norm("Pow"), SCALARS | {"g": rand(RNG, C), "b": rand(RNG, C)})
    result = every_way(model, samples(5, C))["channel"]
    ratio = values(result.model, "g") / values(model, "g")
    assert (ratio > 0).all() and np.ptp(ratio) > 0.01
