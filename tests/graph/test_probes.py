"""A probe inside the runtime gives the moments that float64 numpy gives outside."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, node, rand, run
from onnx import TensorProto, helper

from onnxprune.graph.probes import Probe, probe_graph
from onnxprune.graph.stages import tapped
from onnxprune.numerics.moments import Moments

# Relative error of a centred float32 sum of squares of n numbers: at most n * 2^-24, in practice its root; 1e-4 is 1700 at worst.
VARIANCE = 1e-4
# Error of a float32 mean: relative 2^-24 of its size a rounding, some tens of them where rows are added one by one.
MEAN = 32 * 2.0**-24


def truth(x, axis):
    """Mean and variance per channel, float64, from all elements at once."""
    values = np.moveaxis(x.astype(np.float64), axis, 0).reshape(x.shape[axis], -1)
    return values.mean(axis=1), values.var(axis=1)


def probed(x, axis, opset=17, *, ir_version=8, one_node=False):
    """Mean and variance per channel from the probe's groups, put together as the formula of pooled variance says."""
    kind = helper.np_dtype_to_tensor_dtype(x.dtype)
    model = build([node("Identity", ["x"], ["y"])], {}, {"x": [None] * x.ndim}, ["y"], opset=opset, elem_type=kind)
    model.ir_version = ir_version
    probe = Probe("y", axis, x.shape[axis], kind)
    copy = tapped(model, [probe], one_node=one_node)
    assert [value.name for value in copy.graph.output] == ["y", *probe.outputs] and len(model.graph.output) == 1
    found = run(copy, {"x": x}, probe.outputs)
    assert found[2].dtype == np.int64 and tuple(found[2]) == x.shape
    assert found[0].dtype == found[1].dtype == (np.float64 if kind == TensorProto.DOUBLE else np.float32)
    size, mean, m2 = probe.read(*found)
    assert mean.shape == m2.shape and mean.shape[1] == x.shape[axis]
    assert size * mean.size == x.size
    mean, m2 = mean.astype(np.float64), m2.astype(np.float64)
    total = mean.mean(axis=0)
    return total, m2.sum(axis=0) / (size * len(m2)) + ((mean - total) ** 2).mean(axis=0)


def close(x, axis, **more):
    want_mean, want_variance = truth(x, axis)
    for one_node in (False, True):
        mean, variance = probed(x, axis, one_node=one_node, **more)
        np.testing.assert_allclose(mean, want_mean, rtol=MEAN, atol=MEAN)
        np.testing.assert_allclose(variance, want_variance, rtol=VARIANCE, atol=1e-12)


def test_by_hand():
    x = np.float32([[[1, 3], [5, 5]], [[1, 7], [5, 9]]])  # batch, channel, position
    mean, variance = probed(x, 1)
    np.testing.assert_array_equal(mean, [3, 6])
    np.testing.assert_array_equal(variance, [6, 3])
    mean, variance = probed(x, -1)
    np.testing.assert_array_equal(mean, [3, 6])
    np.testing.assert_array_equal(variance, [4, 5])
    mean, variance = probed(x, -2)
    np.testing.assert_array_equal(mean, [3, 6])
    np.testing.assert_array_equal(variance, [6, 3])


SHAPES = [
    ((7, 3), 1),
    ((4, 3, 5), 1),
    ((4, 3, 5, 6), 1),
    ((2, 3, 4, 5, 6), 1),
    ((1, 1, 1, 1), 1),
    ((7, 3), -1),
    ((4, 5, 3), -1),
    ((2, 4, 5, 3), -1),
    ((3, 5), -2),
    ((4, 3, 5), -2),
    ((2, 2, 3, 5), -2),
]


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("opset", [7, 11, 13, 17, 18, 21, 26])
def test_every_axis_in_every_opset(shape, axis, opset):
    close(rand(np.random.default_rng(1), *shape), axis, opset=opset)


@pytest.mark.parametrize(("shape", "axis"), SHAPES)
@pytest.mark.parametrize("kind", [np.float16, np.float64])
def test_other_types(shape, axis, kind):
    close(rand(np.random.default_rng(2), *shape, dtype=kind), axis)


@pytest.mark.parametrize(("shape", "axis"), [((4, 3, 32, 32), 1), ((16, 197, 8), -1), ((20000, 4), -1), ((4, 3, 1000), -2)])
@pytest.mark.parametrize("opset", [17, 18])
@pytest.mark.parametrize("one_node", [False, True])
def test_a_mean_of_300_deviations(shape, axis, opset, one_node):
    # the naive E[x^2] - E[x]^2 is 50 % off here
    rng = np.random.default_rng(3)
    x = (rng.normal(size=shape) + 300).astype(np.float32)
    mean, variance = probed(x, axis, opset=opset, one_node=one_node)
    want_mean, want_variance = truth(x, axis)
    # on axis -1 up to 20,000 rows are added one by one: the root of so many roundings of 2^-24 is 8e-6
    np.testing.assert_allclose(mean, want_mean, rtol=1e-5)
    np.testing.assert_allclose(variance, want_variance, rtol=VARIANCE)


def test_float16_sums_do_not_overflow():
    x = np.full((1, 2, 64, 64), 200, np.float16)  # the sum of squares alone is 1.6e8, float16 ends at 65504
    x[:, :, ::2] = -200
    for one_node in (False, True):
        mean, variance = probed(x, 1, one_node=one_node)
        np.testing.assert_array_equal(mean, [0, 0])
        np.testing.assert_array_equal(variance, [40000, 40000])


def test_a_constant_channel_has_no_variance():
    x = rand(np.random.default_rng(4), 3, 2, 5)
    x[:, 1] = 0.75  # exact in binary, so that the mean is too
    for one_node in (False, True):
        assert probed(x, 1, one_node=one_node)[1][1] == 0


@pytest.mark.parametrize("axis", [1, -1, -2])
def test_group_size(axis):
    probe = Probe("t", axis, {1: 3, -1: 5, -2: 4}[axis])
    assert probe.group_size((2, 3, 4, 5), {1: 2, -1: 1, -2: 6}[axis]) == {1: 20, -1: 24, -2: 5}[axis]
    assert probe.group_size((0, 3, 4, 5), 0) == 0


def test_one_node_for_the_batch_where_there_is_one():
    """BatchNormalization has a training form since opset 14, and channels on axis 1."""
    for axis, opset, one_node, batched in ((1, 13, True, False), (1, 14, True, True), (1, 21, False, False), (-1, 17, True, False)):
        made = probe_graph(Probe("t", axis, 4), opset, one_node=one_node)
        ops = [step.op_type for step in made.node]
        assert ("BatchNormalization" in ops) == batched
        assert ("Sub" in ops) != batched
        read = {name for step in made.node for name in step.input}
        assert not batched or read.isdisjoint(value.name for value in made.output)  # runs at the same time would share them


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("shape", [(0, 3, 4), (0, 3), (2, 3, 0), (0, 3, 4, 4)])
def test_no_values_are_no_groups(shape, kind):
    model = build(
        [node("Identity", ["x"], ["y"])], {}, {"x": [None] * len(shape)}, ["y"], elem_type=helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    )
    for one_node in (False, True):
        probe = Probe("y", 1, 3, helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
        found = run(tapped(model, [probe], one_node=one_node), {"x": np.zeros(shape, kind)}, probe.outputs)
        assert Moments.from_groups(*probe.read(*found)).count == 0


def test_what_overflows_is_infinite():
    x = np.full((2, 2, 3), 1e30, np.float32)
    x[:, 1, ::2] = -1e30
    for one_node in (False, True):
        variance = probed(x, 1, one_node=one_node)[1]
        assert not np.isfinite(variance[1])


def test_several_probes_at_once():
    rng = np.random.default_rng(5)
    model = build([node("Relu", ["x"], ["a/b:0"]), node("Neg", ["a/b:0"], ["ы"])], {}, {"x": [None] * 3}, ["ы"])
    probes = [Probe("a/b:0", 1, 3), Probe("ы", -1, 4), Probe("x", -2, 3)]
    x = rand(rng, 2, 3, 4)
    got = run(tapped(model, probes), {"x": x}, [name for probe in probes for name in probe.outputs])
    relu = np.maximum(x, 0)
    np.testing.assert_allclose(got[0], relu.mean(axis=2), rtol=MEAN, atol=MEAN)
    np.testing.assert_allclose(got[3], [-relu.mean(axis=(0, 1))], rtol=MEAN, atol=MEAN)
    np.testing.assert_allclose(got[6], x.mean(axis=2), rtol=MEAN, atol=MEAN)


@settings(max_examples=30, deadline=None)
@given(
    shape=st.lists(st.integers(1, 5), min_size=2, max_size=5),
    axis=st.sampled_from([1, -1, -2]),
    opset=st.sampled_from([13, 18]),
    offset=st.floats(-100, 100),
    seed=st.integers(0, 2**16),
)
def test_any_shape(shape, axis, opset, offset, seed):
    rng = np.random.default_rng(seed)
    close((rng.normal(size=shape) + offset).astype(np.float32), axis, opset=opset)
