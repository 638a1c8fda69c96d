"""Cutting: a Stream that runs a model stage by stage sees what one run of the whole model gives."""

from itertools import chain
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from models import build, node, parse, rand, run
from onnx import TensorProto, helper

from onnxprune.graph import affine, cheap, layers, stages
from onnxprune.graph.planning import Plan, plan
from onnxprune.graph.points import points
from onnxprune.graph.probes import Probe
from onnxprune.graph.tensors import Constants
from onnxprune.numerics.moments import Moments
from onnxprune.runtime import stream
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import run_bound
from onnxprune.runtime.spilling import LEAST
from onnxprune.runtime.stream import Stream, one_pass
from onnxprune.statistics import current_moments

CPU = Device("cpu", threads=1)
# Float32 sums of at most some thousand numbers of size ~1 (relative 2^-24 = 6e-8 each); stages may fuse nodes otherwise than the
# whole model, which moves the last bits of a tensor.
CLOSE = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture
def ran(monkeypatch):
    """The nodes of every stage that is opened, by their first output."""
    found = []
    plain = stream.open_session

    def spy(stage, device, **more):
        graph = stage.graph
        found.append([each.output[0] for each in graph.node if "::" not in "".join([*each.input, *each.output])])
        return plain(stage, device, **more)

    monkeypatch.setattr(stream, "open_session", spy)
    return found


def slices(feed, sizes):
    ends = np.cumsum(sizes)
    assert ends[-1] == len(next(iter(feed.values())))
    return [{name: value[end - size : end] for name, value in feed.items()} for size, end in zip(sizes, ends, strict=True)]


def folded(entries, channels):
    moments = Moments.empty(channels)
    for size, mean, m2 in entries:
        moments = moments.merge(Moments.from_groups(size, mean, m2))
    return moments


def same(got, values, axis, **tolerance):
    """The moments are those of the arrays, one a batch."""
    want = Moments.empty(values[0].shape[axis])
    for value in values:
        want = want.merge(Moments.from_batch(value, axis))
    assert got.count == want.count
    np.testing.assert_allclose(got.mean, want.mean, **(tolerance or CLOSE))
    np.testing.assert_allclose(got.variance, want.variance, **(tolerance or CLOSE))


def whole(model, batches, names):
    """Name -> its values in every batch, from whole runs."""
    rows = [run(model, batch, names) for batch in batches]
    return {name: [row[number] for row in rows] for number, name in enumerate(names)}


def walk(model, batches, targets, *, kind=TensorProto.FLOAT, device=CPU):
    """targets: [(tensor, axis)]. Advances to each and compares; gives the stream back."""
    names = [name for name, _ in targets]
    values = whole(model, batches, names)
    walker = Stream(model, iter(batches), names, device)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if kind == TensorProto.FLOAT16 else {}  # 2^-11 a node, some of them in a row
    for name, axis in targets:
        channels = values[name][0].shape[axis]
        same(folded(walker.advance(Probe(name, axis, channels, kind)), channels), values[name], axis, **tolerance)
    return walker


def residual(seed=0, width=4, *, kind=np.float32):
    """Convolutions with two skips, one of them with a convolution of its own, then a classifier."""
    rng = np.random.default_rng(seed)
    nodes = [
        node("Conv", ["x", "w0"], ["c0"], pads=[1, 1, 1, 1]),
        node("Relu", ["c0"], ["r0"]),
        node("Conv", ["r0", "w1", "b1"], ["c1"], pads=[1, 1, 1, 1]),
        node("Relu", ["c1"], ["r1"]),
        node("Conv", ["r1", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        node("Add", ["c2", "r0"], ["s2"]),
        node("Relu", ["s2"], ["r2"]),
        node("Conv", ["r2", "w3"], ["c3"], strides=[2, 2]),
        node("Conv", ["r2", "w4"], ["c4"], strides=[2, 2]),
        node("Add", ["c3", "c4"], ["s4"]),
        node("GlobalAveragePool", ["s4"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("Gemm", ["f", "fc", "fb"], ["y"]),
    ]
    shapes = {"w0": (width, 3, 3, 3), "w1": (width, width, 3, 3), "w2": (width, width, 3, 3)}
    shapes |= {"w3": (width, width, 1, 1), "w4": (width, width, 1, 1), "b1": (width,), "fc": (width, 5), "fb": (5,)}
    constants = {name: (rand(rng, *shape) / 3).astype(kind) for name, shape in shapes.items()}
    elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    return build(nodes, constants, {"x": ["N", 3, 6, 6]}, ["y"], elem_type=elem_type)


ALL = [(name, 1) for name in ("c0", "r0", "c1", "r1", "c2", "s2", "r2", "c3", "c4", "s4", "p", "f", "y")]


def images(count=7, kind=np.float32):
    return {"x": rand(np.random.default_rng(9), count, 3, 6, 6, dtype=kind)}


@pytest.mark.parametrize("sizes", [[7], [3, 3, 1], [1, 6]])
def test_a_stop_at_every_tensor(sizes, ran):
    walker = walk(residual(), slices(images(), sizes), ALL)
    assert walker.stages_run == len(ALL) == len(ran)
    assert ran == [[name] for name, _ in ALL]  # every node once, each in its own stage
    assert walker._live == [{} for _ in sizes]


@pytest.mark.parametrize("at", range(len(ALL)))
def test_a_stop_at_one_tensor_and_the_end(at, ran):
    walk(residual(), slices(images(), [4, 3]), [ALL[at]] if at == len(ALL) - 1 else [ALL[at], ALL[-1]])
    assert sorted(chain.from_iterable(ran)) == sorted(name for name, _ in ALL)


def test_what_nothing_needs_is_neither_run_nor_kept(ran):
    walker = walk(residual(), slices(images(), [4, 3]), [("c1", 1), ("c3", 1)])
    assert ran == [["c0", "r0", "c1"], ["r1", "c2", "s2", "r2", "c3"]]
    walker = Stream(residual(), slices(images(), [7]), ["c1", "c3"], CPU)
    walker.advance(Probe("c1", 1, 4))
    assert set(walker._live[0]) == {"r0", "c1"}  # the skip, and where to go on; not the input


def test_float16(ran):
    walk(residual(kind=np.float16), slices(images(kind=np.float16), [4, 3]), ALL, kind=TensorProto.FLOAT16)
    assert ran == [[name] for name, _ in ALL]


def test_a_target_that_was_not_announced():
    walker = Stream(residual(), slices(images(), [7]), ["c1", "c3"], CPU)
    with pytest.raises(ValueError, match="c2: was not announced as a target"):
        walker.advance(Probe("c2", 1, 4))
    walker.advance(Probe("c3", 1, 4))  # a target may be passed over
    with pytest.raises(ValueError, match="c1: was not announced"):
        walker.advance(Probe("c1", 1, 4))


def test_the_input_is_a_target_too():
    walk(residual(), slices(images(), [4, 3]), [("x", 1), ("c0", 1), ("y", 1)])


def test_a_target_asked_for_twice():
    walk(residual(), slices(images(), [4, 3]), [("c1", 1), ("c1", 1), ("y", 1)])


def test_targets_against_the_order_of_the_file(ran):
    """As in conv1, conv2, norm2, norm1: the walk goes on from where it is, and nothing runs twice."""
    walk(residual(), slices(images(), [4, 3]), [("c1", 1), ("c4", 1), ("c3", 1), ("y", 1)])
    assert sorted(chain.from_iterable(ran)) == sorted(name for name, _ in ALL)
    ran.clear()
    walk(residual(), slices(images(), [4, 3]), [("c4", 1), ("c1", 1), ("r0", 1), ("y", 1)])
    assert sorted(chain.from_iterable(ran)) == sorted(name for name, _ in ALL)


def test_parameters_ahead_of_the_walk_may_change():
    model = residual()
    walker = Stream(model, slices(images(), [4, 3]), ["c1", "c2", "y"], CPU)
    walker.advance(Probe("c1", 1, 4))
    constants = Constants(model)
    constants.write("w2", constants.read("w2") * 3)
    constants.write_input(model.graph.node[12], 2, np.arange(5), TensorProto.FLOAT, "another bias")
    values = whole(model, slices(images(), [4, 3]), ["c2", "y"])
    same(folded(walker.advance(Probe("c2", 1, 4)), 4), values["c2"], 1)
    same(folded(walker.advance(Probe("y", 1, 5)), 5), values["y"], 1)


def repair_all(model, batches, rng, *, kind=TensorProto.FLOAT):
    """Bend every point of a model as the sequential repair does; the model at the end, run whole, has what the walk has seen."""
    found = points(layers.find(model))
    constants = Constants(model)
    walker = Stream(model, batches, [point.tensor for point in found], CPU)
    seen, added = [], []
    for point in found:
        moments = current_moments(walker, point, constants)
        gain, shift = rng.uniform(0.5, 1.5, point.channels), rng.normal(0, 0.5, point.channels)
        if point.shared:
            gain = np.ones(point.channels)
        added += affine.write_affine(constants, point, gain, shift)
        if point.kind == "batchnorm":
            written = affine.normalisation(constants, model.graph.node[point.node], point.norm)
            walker.adjust(point.dense_tensor, *written, 1, source=point.tensor)
            seen.append((point, moments))
        else:
            walker.adjust(point.tensor, gain, shift, point.axis)
            seen.append((point, moments.affine(gain, shift)))
    affine.insert(model, added)
    onnx.checker.check_model(model)
    values = whole(model, batches, [point.tensor for point in found])
    # every tensor is checked through all the bent ones before it: fp16 keeps 11 bits, and some ten nodes lie in a row
    tolerance = {"rtol": 2e-2, "atol": 5e-2} if kind == TensorProto.FLOAT16 else {"rtol": 1e-3, "atol": 1e-4}
    for point, moments in seen:
        same(moments, values[point.tensor], point.axis, **tolerance)
    return walker


def test_adjust_acts_as_if_the_layers_had_been_repaired(ran):
    model = residual()
    before = [each.output[0] for each in model.graph.node]
    repair_all(model, slices(images(), [4, 3]), np.random.default_rng(2))
    assert len([each for stage in ran for each in stage]) <= len(before)  # adjusted tensors are not made anew


def test_adjust_in_float16():
    repair_all(residual(kind=np.float16), slices(images(kind=np.float16), [4, 3]), np.random.default_rng(2), kind=TensorProto.FLOAT16)


def normed(order, *, free=False, channels=4):
    """Two branches with BatchNormalization whose nodes stand in the given order, added and convolved."""
    rng = np.random.default_rng(4)
    norm = [(rng.uniform(0.5, 2, channels) if c in "sv" else rng.normal(size=channels)).astype(np.float32) for c in "sbmv"]
    made = {
        "c1": node("Conv", ["x", "w1"], ["c1"]),
        "c2": node("Conv", ["x", "w2"], ["c2"]),
        "n1": node("BatchNormalization", ["c1", *"sbmv"], ["n1"]),
        "n2": node("BatchNormalization", ["c1" if free else "c2", *"sbmv"], ["n2"]),
    }
    nodes = [made[name] for name in order]
    nodes += [node("Add", ["n1", "n2"], ["a"]), node("Relu", ["a"], ["r"]), node("Conv", ["r", "w3"], ["c3"])]
    nodes += [node("Add", ["c3", "c2" if free else "a"], ["y"])]
    shapes = {"w1": (channels, 3, 1, 1), "w2": (channels, 3, 1, 1), "w3": (channels, channels, 1, 1)}
    constants = {name: rand(rng, *shape) for name, shape in shapes.items()}
    return build(nodes, constants | dict(zip("sbmv", norm, strict=True)), {"x": ["N", 3, 6, 6]}, ["y"])


@pytest.mark.parametrize(("channels", "again"), [(4, 0.0), (6, 0.0), (6, 200.0)])
@pytest.mark.parametrize("free", [False, True])
@pytest.mark.parametrize("order", ["c1 c2 n1 n2", "c1 c2 n2 n1", "c1 n1 c2 n2", "c2 c1 n1 n2", "c1 n2 c2 n1", "c1 n1 n2 c2"])
def test_batchnorms_in_any_order(order, free, channels, again, ran, monkeypatch):
    """With ``free`` both normalise c1, so that three points measure one tensor: c1's own and both norms'.

    With 6 channels of 3 the statistics of c1 and c2 come from what they read, where they have not run yet; they may be run again.
    """
    monkeypatch.setattr(cheap, "WORK", again)
    if not free and order.index("n2") < order.index("c2"):
        return  # n2 reads c2 here
    repair_all(normed(order.split(), free=free, channels=channels), slices(images(), [4, 3]), np.random.default_rng(5))
    convolutions = [name for stage in ran for name in stage if name.startswith("c")]
    unread = ["c2"] if free and channels == 6 else []  # what it gives is asked for by no later point
    assert again or sorted(convolutions + unread) == ["c1", "c2", "c3"]  # each once


def test_a_wide_convolution_that_has_run_before_its_turn(monkeypatch):
    """c1 makes 9 channels of 3, which are gone when its BatchNormalization is measured behind that of c2."""
    monkeypatch.setattr(cheap, "WORK", 0.0)
    rng = np.random.default_rng(6)
    norm = [(rng.uniform(0.5, 2, 9) if c in "sv" else rng.normal(size=9)).astype(np.float32) for c in "sbmv"]
    nodes = [
        node("Sigmoid", ["x"], ["a"]),
        node("Conv", ["a", "w1"], ["c1"]),
        node("Conv", ["x", "w2"], ["c2"], pads=[1, 1, 1, 1]),
        node("BatchNormalization", ["c2", *"sbmv"], ["n2"]),
        node("BatchNormalization", ["c1", *"sbmv"], ["n1"]),
        node("Add", ["n1", "n2"], ["y"]),
    ]
    constants = {"w1": rand(rng, 9, 3, 1, 1), "w2": rand(rng, 9, 3, 3, 3)} | dict(zip("sbmv", norm, strict=True))
    repair_all(build(nodes, constants, {"x": ["N", 3, 6, 6]}, ["y"]), slices(images(), [4, 3]), rng)


def test_layers_of_a_transformer_block():
    rng = np.random.default_rng(6)
    nodes = [
        node("LayerNormalization", ["x", "s", "b"], ["l1"]),
        node("MatMul", ["l1", "wq"], ["q0"]),
        node("Add", ["q0", "bq"], ["q"]),
        node("MatMul", ["l1", "wk"], ["k"]),
        node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["qk"]),
        node("Softmax", ["qk"], ["p"]),
        node("MatMul", ["p", "l1"], ["o"]),
        node("MatMul", ["o", "wo"], ["o2"]),
        node("Add", ["o2", "x"], ["h"]),
        node("LayerNormalization", ["h", "s"], ["l2"]),
        node("MatMul", ["l2", "wm"], ["m"]),
        node("Gelu", ["m"], ["g"]),
        node("MatMul", ["g", "wm2"], ["m2"]),
        node("Add", ["m2", "h"], ["y"]),
    ]
    shapes = {"s": (6,), "b": (6,), "wq": (6, 6), "wk": (6, 6), "bq": (6,), "wo": (6, 6), "wm": (6, 8), "wm2": (8, 6)}
    model = build(nodes, {name: rand(rng, *shape) / 2 for name, shape in shapes.items()}, {"x": ["N", 5, 6]}, ["y"])
    batches = slices({"x": rand(rng, 7, 5, 6)}, [3, 3, 1])
    walk(model, batches, [(each.output[0], -1) for each in model.graph.node if each.output[0] not in ("kt", "qk", "p")])
    repair_all(model, batches, rng)


def test_left_matmuls():
    rng = np.random.default_rng(7)
    nodes = [node("MatMul", ["w", "x"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["v", "r"], ["z"])]
    model = build(nodes, {"w": rand(rng, 4, 5), "v": rand(rng, 3, 4)}, {"x": ["N", 5, 6]}, ["z"])
    batches = slices({"x": rand(rng, 5, 5, 6)}, [4, 1])
    walk(model, batches, [("h", -2), ("r", -2), ("z", -2)])
    repair_all(model, batches, rng)


def test_matmuls_on_rank_4():
    """Four axes as in images, but the channels come last: adjusting them is no convolution."""
    rng = np.random.default_rng(20)
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["z"])]
    model = build(nodes, {"w": rand(rng, 4, 4), "v": rand(rng, 4, 4)}, {"x": ["N", 4, 4, 4]}, ["z"])
    repair_all(model, slices({"x": rand(rng, 5, 4, 4, 4)}, [4, 1]), rng)


def test_a_weight_used_twice():
    rng = np.random.default_rng(8)
    nodes = [node("Gemm", ["x", "w"], ["h"]), node("Tanh", ["h"], ["t"]), node("Gemm", ["t", "w"], ["y"])]
    repair_all(build(nodes, {"w": rand(rng, 4, 4)}, {"x": ["N", 4]}, ["y"]), slices({"x": rand(rng, 7, 4)}, [4, 3]), rng)


def test_a_layer_on_a_constant():
    """As in Swin's position bias: a network over constants, which no repair may turn back when a stage brings it again."""
    rng = np.random.default_rng(10)
    nodes = [
        node("Relu", ["table"], ["t0"]),
        node("MatMul", ["t0", "w1"], ["t1"]),
        node("Tanh", ["t1"], ["t2"]),
        node("Gemm", ["t2", "w2"], ["t3"]),
        node("MatMul", ["x", "w3"], ["h"]),
        node("Add", ["h", "t3"], ["s"]),
        node("MatMul", ["s", "w4"], ["y0"]),
        node("Add", ["y0", "t3"], ["y"]),
        node("MatMul", ["y", "w4"], ["end"]),
    ]
    constants = {"table": rand(rng, 5, 3), "w1": rand(rng, 3, 4), "w2": rand(rng, 4, 4)}
    constants |= {"w3": rand(rng, 4, 4), "w4": rand(rng, 4, 4)}
    model = build(nodes, constants, {"x": ["N", 5, 4]}, ["end"])
    repair_all(model, slices({"x": rand(rng, 7, 5, 4)}, [4, 3]), rng)


IF = """g (float[N,4] x, bool c) => (float[N,4] y)
<float[4,4] w = {1.0,2.0,0.5,1.0, 0.0,1.0,2.0,-1.0, 1.0,-1.0,0.5,1.0, 2.0,1.0,0.0,1.0}, float[4] b = {1.0, 2.0, 3.0, 4.0}> {
  h = MatMul(x, w)
  o = Relu(x)
  i = If(c) <
    then_branch = t () => (float[N,4] u) {
      k = Constant<value = float[4] {1.0, 0.0, 1.0, 0.0}>()
      u0 = Add(o, k)
      u = If(c) <
        then_branch = tt () => (float[N,4] p) { p = Mul(u0, b) },
        else_branch = te () => (float[N,4] q) { q = Identity(h) }>
    },
    else_branch = e () => (float[N,4] v) { v = Sub(h, o) }>
  m = MatMul(i, w)
  y = Add(m, o)
}"""


@pytest.mark.parametrize("value", [False, True])
def test_if_is_atomic_and_what_it_captures_stays_alive(value, ran):
    model = parse(IF)
    assert plan(model).reads[2] == {"c", "h", "o", "b"}
    batches = [batch | {"c": np.array(value)} for batch in slices({"x": rand(np.random.default_rng(11), 7, 4)}, [4, 3])]
    walk(model, batches, [(name, -1) for name in ("h", "o", "i", "m", "y")])
    assert ran == [["h"], ["o"], ["i"], ["m"], ["y"]]
    walker = Stream(model, batches, ["h", "y"], CPU)
    walker.advance(Probe("h", -1, 4))
    assert set(walker._live[0]) == {"x", "c", "h"}
    ran.clear()
    walk(model, batches, [("o", -1), ("y", -1)])
    assert ran == [["h", "o"], ["i", "m", "y"]]  # i will read h, made before the stop


def test_loop_and_scan():
    model = parse(
        """g (float[N,4] x) => (float[N,4] y) <float[4] b = {1.0, 2.0, 3.0, 4.0}, int64 n = {3}, bool go = {1}> {
          o = Relu(x)
          l = Loop(n, go, x) <body = step (int64 i, bool c, float[N,4] s) => (bool c2, float[N,4] s2) {
            c2 = Identity(c)
            s1 = Add(s, b)
            s2 = Mul(s1, o)
          }>
          a, d = Scan(l, o) <num_scan_inputs = 1, body = each (float[N,4] t, float[4] r) => (float[N,4] t2, float[4] r2) {
            t2 = Sub(t, r)
            r2 = Add(r, b)
          }>
          y = Add(a, d)
        }"""
    )
    batches = slices({"x": rand(np.random.default_rng(12), 7, 4)}, [4, 3])
    walk(model, batches, [(name, -1) for name in ("o", "l", "a", "d", "y")])


def test_constants_belong_to_no_stage_and_shapes_are_live():
    model = parse(
        """g (float[N,2,6] x) => (float[M,4] y) <int64[1] two = {2}, int64[1] four = {4}> {
          s = Shape(x)
          n = Slice(s, z, one)
          z0 = Constant<value = int64[1] {0}>()
          rows = Constant<value = int64[1] {-1}>()
          to = Concat<axis = 0>(rows, four)
          r = Reshape(x, to)
          t = Relu(r)
          u = Mul(t, t)
          back = Shape(x)
          v = Reshape(u, back)
          y = Reshape(v, to)
        }"""
    )
    del model.graph.node[1:3]
    fixed = plan(model).constant
    assert [model.graph.node[number].output[0] for number in sorted(fixed)] == ["rows", "to"]
    batches = slices({"x": rand(np.random.default_rng(13), 6, 2, 6)}, [4, 2])
    walk(model, batches, [("r", -1), ("t", -1), ("u", -1), ("v", -1), ("y", -1)])
    walker = Stream(model, batches, ["t", "y"], CPU)
    walker.advance(Probe("t", -1, 4))
    assert set(walker._live[0]) == {"t", "x"}  # Shape(x) runs later, and reads x


def test_random_numbers_are_no_constants():
    model = build([node("RandomNormal", [], ["r"], shape=[2]), node("Add", ["x", "r"], ["y"])], {}, {"x": [2]}, ["y"])
    assert not plan(model).constant
    assert plan(build([node("Relu", ["c"], ["r"])], {"c": np.ones(2, np.float32)}, {"x": [2]}, ["r"])).constant == {0}


def test_moving_tensors_are_no_constants():
    nodes = [node("Relu", ["c"], ["a"]), node("Relu", ["a"], ["b"]), node("Relu", ["b"], ["y"])]
    model = build(nodes, {"c": np.ones(2, np.float32)}, {"x": [2]}, ["y"])
    assert plan(model).constant == {0, 1, 2}
    assert plan(model, ["b"]).constant == {0}


def test_live_by_hand():
    model = residual()
    made = plan(model)
    assert made.inputs == ("x",)
    ends = made.ends(["c3", "y"])
    assert {name: ends[name] for name in ("x", "r0", "c2", "c3", "r2")} == {"x": 0, "r0": 5, "c2": 5, "c3": 9, "r2": 8}
    assert "y" not in ends  # nothing reads it
    assert made.live(0, ["c3", "y"], ends) == {"x"}
    assert made.live(2, ["c3", "y"], ends) == {"r0"}
    assert made.live(5, ["c3", "y"], ends) == {"c2", "r0"}
    assert made.live(8, ["y"], ends) == {"c3", "r2"}
    assert made.live(13, ["y"], ends) == {"y"}
    assert made.live(8, ["c3"], made.ends(["c3"])) == {"c3"}
    assert made.live(5, [], made.ends([])) == set()


def searched(plan: Plan, stop: int, targets: list[str]) -> set[str]:
    """What live gives, by a search from the targets back."""
    needed, seen, todo = set(), set(), list(targets)
    while todo:
        name = todo.pop()
        at = plan.producer.get(name)
        if at is None:
            needed |= {name} & set(plan.inputs)
        elif at in plan.constant:
            continue
        elif at < stop and at not in plan.again:
            needed.add(name)
        elif at not in seen:
            seen.add(at)
            todo.extend(plan.reads[at])
    return needed


@st.composite
def plans(draw):
    """A random graph: every node reads some of the input, an initializer and what earlier nodes give; some are run again."""
    count = draw(st.integers(1, 12))
    names, reads, producer = ["x", "w"], [], {}
    for number in range(count):
        reads.append(frozenset(draw(st.lists(st.sampled_from(names), min_size=1, max_size=3))))
        made = [f"t{number}.{at}" for at in range(draw(st.integers(1, 2)))]
        producer.update(dict.fromkeys(made, number))
        names += made
    fixed, constant = {"w"}, set()
    for number in range(count):
        if reads[number] <= fixed:
            constant.add(number)
            fixed |= {name for name, at in producer.items() if at == number}
    again = frozenset(draw(st.sets(st.integers(0, count - 1)))) - constant
    targets = draw(st.lists(st.sampled_from(names), max_size=4, unique=True))
    return Plan(producer, reads, frozenset(constant), ("x",), again, {"w": 0}), targets


@given(plans(), st.data())
@settings(max_examples=300, deadline=None)
def test_live_is_what_a_search_finds(case, data):
    """Also once those targets are dropped that are made, in whatever order they are asked for."""
    made, targets = case
    ends = made.ends(targets)
    for stop in range(len(made.reads) + 1):
        over = [name for name in targets if made.producer.get(name, -1) < stop]
        dropped = data.draw(st.sets(st.sampled_from(over))) if over else set()
        left = [name for name in targets if name not in dropped]
        assert made.live(stop, left, ends) == searched(made, stop, left)


@pytest.mark.parametrize("ir_version", [3, 4, 8])
def test_initializers_listed_as_inputs_are_not_fed(ir_version):
    rng = np.random.default_rng(14)
    model = build([node("MatMul", ["x", "w"], ["y"])], {"w": rand(rng, 3, 4)}, {"x": ["N", 3]}, ["y"], ir_version=ir_version, opset=9)
    if ir_version > 3:
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [3, 4]))
    assert plan(model).inputs == ("x",)
    walk(model, slices({"x": rand(rng, 5, 3)}, [3, 2]), [("y", -1)])


def test_functions_and_other_domains():
    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["" : 21, "mine" : 1, "com.microsoft" : 1]>
        g (float[N,4] x) => (float[N,4] y) <float[4,4] w = {1.0,2.0,0.5,1.0,0.0,1.0,2.0,-1.0,1.0,-1.0,0.5,1.0,2.0,1.0,0.0,1.0}> {
          a = mine.block(x, w)
          g1 = com.microsoft.Gelu(a)
          y = mine.block(g1, w)
        }
        <domain: "mine", opset_import: ["" : 21]> block (p, q) => (s) { r = MatMul(p, q) s = Relu(r) }"""
    )
    walk(model, slices({"x": rand(np.random.default_rng(15), 5, 4)}, [3, 2]), [("a", -1), ("g1", -1), ("y", -1)])


def test_several_outputs_and_inputs_left_out():
    model = parse(
        """g (float[N,6] x, float[N,6] x2) => (float[N,2] y) <float high = {0.5}> {
          a, b, c = Split<axis = 1, num_outputs = 3>(x)
          d = Clip(a, , high)
          v, i = TopK<axis = 1>(x2, two)
          e = Add(d, v)
          y = Mul(e, c)
        }"""
    )
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([2]), "two"))
    rng = np.random.default_rng(16)
    batches = slices({"x": rand(rng, 5, 6), "x2": rand(rng, 5, 6)}, [3, 2])
    walk(model, batches, [(name, -1) for name in ("a", "d", "v", "e", "y")])


def test_sequences_are_packed_anew():
    model = parse(
        """g (float[N,4] x) => (float[N,4] y) <int64 one = {1}> {
          a = Relu(x)
          s0 = SplitToSequence<axis = 1>(x)
          s = SequenceInsert(s0, x)
          b = Neg(a)
          c = SequenceAt(s, one)
          d = Mul(b, c)
          e = ConcatFromSequence<axis = 1>(s)
          f = Tanh(d)
          y = Concat<axis = 1>(f, e)
        }"""
    )
    batches = slices({"x": rand(np.random.default_rng(19), 5, 4)}, [3, 2])
    walk(model, batches, [(name, -1) for name in "abcdefy"])
    walk(model, batches, [("b", -1), ("d", -1), ("y", -1)])


def test_strange_names():
    nodes = [node("Relu", ["入力/x:0"], ["/層/Relu 0"]), node("Neg", ["/層/Relu 0"], ["выход"])]
    model = build(nodes, {}, {"入力/x:0": ["N", 3]}, ["выход"])
    walk(model, slices({"入力/x:0": rand(np.random.default_rng(17), 5, 3)}, [3, 2]), [("/層/Relu 0", 1), ("выход", 1)])


@pytest.mark.parametrize("opset", range(7, 27))
def test_every_operator_set(opset):
    rng = np.random.default_rng(18)
    nodes = [
        node("Conv", ["x", "w"], ["h"]),
        node("BatchNormalization", ["h", *"sbmv"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("GlobalAveragePool", ["r"], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "fc"], ["y"]),
    ]
    constants = {"w": rand(rng, 4, 3, 2, 2), "fc": rand(rng, 4, 5)} | {c: rng.uniform(0.5, 2, 4).astype(np.float32) for c in "sbmv"}
    model = build(nodes, constants, {"x": ["N", 3, 6, 6]}, ["y"], opset=opset, ir_version=3 if opset < 9 else 8)
    batches = slices(images(5), [3, 2])
    walk(model, batches, [("h", 1), ("n", 1), ("r", 1), ("y", -1)])
    repair_all(model, batches, rng)


def test_one_pass_gives_the_same_as_the_walk():
    model = residual()
    before = model.SerializeToString()
    batches = slices(images(), [4, 3])
    values = whole(model, batches, [name for name, _ in ALL])
    probes = [Probe(name, 1, values[name][0].shape[1]) for name, _ in ALL]
    groups = list(one_pass(model, probes, batches, CPU))
    assert len(groups) == 2 and model.SerializeToString() == before
    for number, probe in enumerate(probes):
        same(folded([batch[number] for batch in groups], probe.channels), values[probe.tensor], 1)


@pytest.mark.parametrize("at_once", [1, 2])
def test_shapes_that_depend_on_values(at_once):
    """A run that was told where to write what it gives gives something of another shape."""
    rng = np.random.default_rng(0)
    weight = rand(rng, 64, 64)
    model = build(
        [
            node("MatMul", ["x", "w"], ["h"]),
            node("NonZero", ["x"], ["some"]),
            node("Gather", ["some", "zero"], ["rows"]),
            node("Gather", ["h", "rows"], ["picked"]),
            node("Relu", ["picked"], ["r"]),
            node("MatMul", ["r", "w"], ["y"]),
        ],
        {"w": weight, "zero": np.array(0)},
        {"x": [None, 64]},
        ["y"],
    )
    batches = [{"x": rand(rng, 40, 64) * (rng.random((40, 64)) < share)} for share in (0.5, 0.5, 0.9, 0.9, 0.2, 0.5)]
    values = whole(model, batches, ["h", "picked", "y"])
    assert len({value.shape for value in values["picked"]}) > 2 and values["picked"][0].nbytes > LEAST
    walk(model, batches, [("h", -1), ("picked", -1), ("y", -1)], device=Device("cpu", threads=1, at_once=at_once))


def test_a_run_is_told_where_to_write_once_the_shapes_are_known(monkeypatch):
    told = []

    def spy(session, feed, names, device, host=(), into=MappingProxyType({})):
        made = run_bound(session, feed, names, device, host, into)
        told.append(sorted(into))
        assert all(made[name] is into[name] for name in into)
        return made

    monkeypatch.setattr(stream, "run_bound", spy)
    model = residual(width=32)
    batches = slices(images(11), [3, 3, 2, 3])
    walk(model, batches, [("c1", 1), ("c2", 1)])
    assert told[:4] == [[], ["c1"], [], ["c1"]]


def test_cut_refuses_what_is_not_yet_made():
    model = residual()
    with pytest.raises(ValueError, match="c2: made by node 4, which is not before the cut at 3"):
        stages.cut(model, plan(model), 3, {"x": (TensorProto.FLOAT, (None,) * 4)}, ["c2"])


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_graph_cut_anywhere(data):
    """Random graphs over tensors of shape (N, 4), any targets in any order, ragged batches."""
    rng = np.random.default_rng(data.draw(st.integers(0, 2**16)))
    tensors, nodes, constants = ["x"], [], {"k": rand(rng, 1, 4)}
    for number in range(data.draw(st.integers(1, 9))):
        pick = st.sampled_from([*tensors, "k"])
        op = data.draw(st.sampled_from(["Tanh", "Neg", "Add", "Sub", "MatMul", "Gemm"]))
        names = [data.draw(pick)]
        if op in ("Add", "Sub"):
            names.append(data.draw(pick))
        elif op in ("MatMul", "Gemm"):
            constants[f"w{number}"] = rand(rng, 4, 4) / 2
            names.append(f"w{number}")
        nodes.append(node(op, names, [f"t{number}"]))
        tensors.append(f"t{number}")
    model = build(nodes, constants, {"x": ["N", 4]}, [tensors[-1]])
    targets = data.draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=6))
    batches = slices({"x": rand(rng, 6, 4)}, data.draw(st.sampled_from([[6], [3, 3], [4, 2], [5, 1]])))
    walk(model, batches, [(name, -1) for name in targets])
    repair_all(model, batches, rng)
