"""Layers in a branch of an If that all samples take are repaired as if they stood in the main graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from invariants import check
from networks import twins
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxprune import Result, prune, running
from onnxprune.graph.tensors import Constants
from onnxprune.report import Report

REPAIRS = ["bn", "layer", "channel", "asr", "reconstruct"]
SAMPLES = np.random.default_rng(3).normal(size=(48, 3, 8, 8)).astype(np.float32)


def values(model: onnx.ModelProto) -> dict[str, NDArray[Any]]:
    """Every stored float tensor by its name in Constants."""
    constants = Constants(model)
    found = {scope.prefix + tensor.name for scope in constants.scopes for tensor in scope.graph.initializer}
    found |= {
        scope.prefix + node.output[0]
        for scope in constants.scopes
        for node in scope.nodes
        if node.op_type == "Constant" and any(entry.name == "value" for entry in node.attribute)
    }
    return {name: constants.read(name) for name in found}


def short(name: str) -> str:
    return name.rsplit("/", 1)[-1]


def wrapped(model: onnx.ModelProto, first: str, last: str, name: str, condition: str, *, then: bool = True) -> onnx.ModelProto:
    """The model with its nodes from ``first`` to ``last`` in a branch of an If; the other branch has a convolution of its own.

    Initializers that these nodes alone read go into the branch with them.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    graph = copy.graph
    names = [node.name for node in graph.node]
    at, end = names.index(first), names.index(last) + 1
    inner = list(graph.node[at:end])
    out = inner[-1].output[0]
    others = {read for number, node in enumerate(graph.node) if not at <= number < end for read in node.input}
    own = [tensor for tensor in graph.initializer if tensor.name not in others]
    typed = helper.make_tensor_value_info(out, TensorProto.FLOAT, None)
    taken = helper.make_graph(inner, "taken", [], [typed], own)
    source = inner[0].input[0]
    width = [tensor.dims[0] for tensor in own if len(tensor.dims) == 4][-1]
    channels = next(tensor.dims[1] for tensor in own if len(tensor.dims) == 4)
    other = numpy_helper.from_array(np.random.default_rng(9).normal(size=(width, channels, 3, 3)).astype(np.float32), "other")
    conv = helper.make_node("Conv", [source, "other"], [f"{out}.other"], "conv.other", pads=[1, 1, 1, 1])
    typed = helper.make_tensor_value_info(f"{out}.other", TensorProto.FLOAT, None)
    left = helper.make_graph([conv], "left", [], [typed], [other])
    sides = (taken, left) if then else (left, taken)
    chosen = helper.make_node("If", [condition], [out], name, then_branch=sides[0], else_branch=sides[1])
    nodes = [*graph.node[:at], chosen, *graph.node[end:]]
    kept = [tensor for tensor in graph.initializer if tensor.name in others]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(kept)
    return copy


def sized(model: onnx.ModelProto, condition: str, *, more_than: int) -> onnx.ModelProto:
    """The model with a condition on the width of its input's images, put first."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    feed = copy.graph.input[0].name
    extra = [
        helper.make_node("Shape", [feed], [f"{condition}.shape"]),
        helper.make_node("Gather", [f"{condition}.shape", f"{condition}.at"], [f"{condition}.width"]),
        helper.make_node("Greater", [f"{condition}.width", f"{condition}.bound"], [condition]),
    ]
    nodes = [*extra, *copy.graph.node]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    for name, number in (("at", 3), ("bound", more_than)):
        copy.graph.initializer.append(numpy_helper.from_array(np.array(number), f"{condition}.{name}"))
    return copy


def with_if(model: onnx.ModelProto, *, then: bool = True, deep: bool = False) -> onnx.ModelProto:
    """Most of the model in a branch that all samples take, and with ``deep`` a part of that in a branch of another If."""
    if deep:
        model = sized(wrapped(model, "conv2", "relu2", "inner", "small", then=False), "small", more_than=100)
    return sized(wrapped(model, "conv1", "relu4", "outer", "wide", then=then), "wide", more_than=1 if then else 100)


def repaired(model: onnx.ModelProto, repair: str, **options: Any) -> tuple[onnx.ModelProto, Report]:
    result = prune(model, SAMPLES, sparsity=0.625, alloc="uniform", repair=repair, **options)
    onnx.checker.check_model(result.model, full_check=True)
    return result.model, result.report


@pytest.mark.parametrize("repair", [pytest.param(how, marks=pytest.mark.slow) if how in ("layer", "asr") else how for how in REPAIRS])
@pytest.mark.parametrize("deep", [False, True], ids=["", "deep"])
@pytest.mark.parametrize("form", [0, 1], ids=["explicit", "folded"])
@pytest.mark.parametrize("then", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["then", "else"])
def test_the_parameters_are_those_of_the_flat_model(repair: str, *, deep: bool, form: int, then: bool) -> None:
    flat = twins()[form]
    model = with_if(flat, then=then, deep=deep)
    before = model.SerializeToString(deterministic=True)
    (wanted, told), (made, report) = repaired(flat, repair), repaired(model, repair)
    assert model.SerializeToString(deterministic=True) == before
    new = {short(name): array for name, array in values(made).items()}
    for name, array in values(wanted).items():
        np.testing.assert_array_equal(new[name], array, err_msg=name)
    by = {entry.name: entry for entry in report.layers}
    for entry in told.layers:
        assert (by[entry.name].repair, by[entry.name].notes) == (entry.repair, entry.notes)
        assert by[entry.name].kept == entry.kept == by[entry.name].nonzero
    assert {short(name) for name in report.changes.values} == {*told.changes.values, "other"}
    assert any(node.op_type == "If" for node in made.graph.node)


def parsed(text: str, weights: dict[str, tuple[int, ...]], seed: int = 0) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18, "local" : 1]> {text}')
    rng = np.random.default_rng(seed)
    for name, shape in weights.items():
        model.graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    return model


ROWS = np.random.default_rng(5).normal(size=(160, 8)).astype(np.float32) + 0.3
TWO = """g (float[N,8] x, bool way) => (float[N,5] y) {
  [first] a = Gemm <transB=1> (x, w1, b1)
  h = Relu (a)
  [if] r = If (way) <
    then_branch = yes () => (float[N,6] p) { [inner1] p = Gemm <transB=1> (h, w2, b2) },
    else_branch = no () => (float[N,6] q) { [inner2] q = Gemm <transB=1> (h, w3, b3) }
  >
  [last] y = MatMul (r, w4)
}"""
SIZES = {"w1": (12, 8), "b1": (12,), "w2": (6, 12), "b2": (6,), "w3": (6, 12), "b3": (6,), "w4": (6, 5)}


def pruned(model: onnx.ModelProto, feed: dict[str, NDArray[Any]], **options: Any) -> Result:
    options = {"sparsity": 0.5, **options}
    result = prune(model, feed, batch_size=4, trial_seconds=0, **options)
    check(model, result, {name: array[:4] if array.ndim else array for name, array in feed.items()}, options)
    return result


@pytest.mark.parametrize("repair", ["channel", "reconstruct"])
@pytest.mark.parametrize("way", [True, False])
def test_an_input_that_is_the_same_for_all_samples_decides(repair: str, *, way: bool) -> None:
    """The weights may stand outside; a new bias behind the If goes into the model that comes out."""
    model = parsed(TWO, SIZES)
    feed = {"x": ROWS, "way": np.array(way)}
    report = (found := pruned(model, feed, repair=repair, alloc="uniform")).report
    by = {entry.name: entry for entry in report.layers}
    taken, left, side = ("inner1", "inner2", "else") if way else ("inner2", "inner1", "then")
    assert by[taken].repair == repair
    assert by[left].notes == (f"pruned, not repaired: it is inside the {side} branch of If 'if', which no sample takes",)
    assert by["last"].repair == repair
    assert [node.op_type for node in found.model.graph.node] == ["Gemm", "Relu", "If", "MatMul", "Add"]
    untouched = "b3" if way else "b2"
    assert untouched not in report.changes.values


def test_samples_that_take_both_branches_leave_them_alone() -> None:
    """The condition is the sign of a batch's sum, which no layer has a part in."""
    text = TWO.replace("g (float[N,8] x, bool way)", "g (float[N,8] x)").replace(
        "[if] r", "s = ReduceSum <keepdims=0> (x)\n  way = Greater (s, zero)\n  [if] r"
    )
    model = parsed(text, SIZES)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    both = np.where(np.arange(160)[:, None] % 8 < 4, 1, -1).astype(np.float32) * np.abs(ROWS)  # batches of 4
    by = {entry.name: entry for entry in pruned(model, {"x": both}, repair="channel").report.layers}
    for name, side in (("inner1", "then"), ("inner2", "else")):
        assert by[name].notes == (f"pruned, not repaired: it is inside the {side} branch of If 'if'",)
    assert by["first"].repair == by["last"].repair == "channel"
    one = {entry.name: entry for entry in pruned(model, {"x": np.abs(ROWS)}, repair="channel").report.layers}
    assert one["inner1"].repair == "channel" and one["inner2"].repair == "none"


def test_a_condition_that_hangs_on_pruned_weights_is_not_relied_on() -> None:
    text = TWO.replace("g (float[N,8] x, bool way)", "g (float[N,8] x)").replace(
        "[if] r", "s = ReduceSum <keepdims=0> (h)\n  way = Greater (s, zero)\n  [if] r"
    )
    model = parsed(text, SIZES)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.float32), "zero"))
    by = {entry.name: entry for entry in pruned(model, {"x": ROWS}, repair="channel").report.layers}
    assert by["inner1"].notes == ("pruned, not repaired: it is inside the then branch of If 'if'",)
    shape = text.replace("s = ReduceSum <keepdims=0> (h)", "s = Size (h)")  # how large a tensor is hangs on no weight
    model = parsed(shape, SIZES)
    model.graph.initializer.append(numpy_helper.from_array(np.zeros((), np.int64), "zero"))
    by = {entry.name: entry for entry in pruned(model, {"x": ROWS}, repair="channel").report.layers}
    assert by["inner1"].repair == "channel"


def test_what_the_other_branch_reads_too_is_left_alone() -> None:
    """A shared bias stays as it is, a shared weight is pruned once, and neither is scaled."""
    model = parsed(TWO.replace("(h, w3, b3)", "(h, w2, b2)"), {name: size for name, size in SIZES.items() if name not in ("w3", "b3")})
    found = pruned(model, {"x": ROWS, "way": np.array(True)}, repair="channel")
    by = {entry.name: entry for entry in found.report.layers}
    assert by["inner1"].notes == (
        "weight of 2 nodes",
        "pruned, not repaired: its bias is shared, inside the then branch of If 'if'",
        "pruned, not repaired: it is inside the else branch of If 'if', which no sample takes",
    )
    assert "b2" not in found.report.changes.values
    weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in found.model.graph.initializer}
    given = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    np.testing.assert_array_equal(weights["w2"], np.where(weights["w2"] != 0, given["w2"], 0))


def test_names_that_another_tensor_has_later() -> None:
    """ONNX lets a body make a name that the main graph makes behind it: such a model runs as before."""
    text = TWO.replace("[last] y = MatMul (r, w4)", "[last] q = MatMul (r, w4)\n  y = Relu (q)")
    by = {entry.name: entry for entry in pruned(parsed(text, SIZES), {"x": ROWS, "way": np.array(True)}, repair="bn").report.layers}
    assert by["inner1"].repair == "bn (folded)"


def test_a_branch_whose_outputs_no_node_makes_for_them() -> None:
    """Outputs of a branch may be initializers and Constants; ONNX Runtime takes none of the outer scope, and none twice."""
    text = """g (float[N,8] x, bool way) => (float[N,6] y) {
      [first] a = Gemm <transB=1> (x, w1, b1)
      [if] r, same, k, c = If (way) <
        then_branch = yes () => (float[N,6] p, float[N,6] i, float[6] own, float[6] con) <float[6] own = {1,2,3,4,5,6}> {
          i = Identity (a)
          [inner] p = Gemm <transB=1> (a, w2, b2)
          con = Constant <value = float[6] {6,5,4,3,2,1}> ()
        },
        else_branch = no () => (float[N,6] q, float[N,6] j, float[6] e, float[6] f) {
          j = Identity (a)
          q = Neg (a)
          e = Constant <value = float[6] {1,1,1,1,1,1}> ()
          f = Constant <value = float[6] {1,1,1,1,1,1}> ()
        }
      >
      s = Add (r, same)
      u = Mul (s, k)
      y = Mul (u, c)
    }"""
    model = parsed(text, {"w1": (6, 8), "b1": (6,), "w2": (6, 6), "b2": (6,)})
    found = pruned(model, {"x": ROWS, "way": np.array(True)}, repair="channel")
    assert {entry.name: entry.repair for entry in found.report.layers} == {"first": "channel", "inner": "channel"}


def test_auto_asks_for_the_branches_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    always = running.always
    monkeypatch.setattr(running, "always", lambda *args: calls.append(args[1]) or always(*args))
    feed = {"x": ROWS, "way": np.array(True)}
    result = prune(parsed(TWO, SIZES), feed, sparsity=0.5, repair="auto", batch_size=4, trial_seconds=0)
    assert [dict(names) for names in calls] == [{"if": "way"}]
    assert result.report.choice is not None and len(result.report.choice.candidates) == 4
