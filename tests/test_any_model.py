"""Where a weight lives, and which layers take one: each form through prune() with every repair."""

import numpy as np
import onnx
import pytest
import zoo_strange
from models import build, node, parse, rand
from onnx import TensorProto, helper, numpy_helper
from product import every_way, outputs, pruned, values

from onnxprune import OnnxpruneError, prune
from onnxprune.graph import layers

RNG = np.random.default_rng(0)
COUNT = 24


def rows(*shape, count=COUNT, seed=1):
    """Samples with a level of their own, so that the channels' means matter."""
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(count, *shape)) + rng.normal(size=(count, *[1] * len(shape)))).astype(np.float32)


def tail(source="h"):
    """A second layer, so that the first is not the last."""
    return [node("Relu", [source], ["r"]), node("MatMul", ["r", "w2"], ["p"], name="second"), node("Add", ["p", "b2"], ["y"])]


def second(width):
    return {"w2": rand(RNG, width, 5), "b2": rand(RNG, 5)}


def layer_of(result, name):
    (entry,) = [entry for entry in result.report.layers if entry.name == name]
    return entry


CHAINS = {
    "Transpose": ((6, 8), [node("Transpose", ["s"], ["w"])], {}),
    "Transpose and Identity": ((6, 8), [node("Identity", ["s"], ["i"]), node("Transpose", ["i"], ["w"], perm=[1, 0])], {}),
    "Cast": ((8, 6), [node("Cast", ["s"], ["w"], to=TensorProto.FLOAT)], {}),
    "Reshape": ((2, 4, 6), [node("Reshape", ["s", "shape"], ["w"])], {"shape": np.array([-1, 6])}),
    "Unsqueeze and Squeeze": (
        (8, 6),
        [node("Unsqueeze", ["s", "one"], ["u"]), node("Squeeze", ["u", "one"], ["w"])],
        {"one": np.array([1])},
    ),
    "Flatten": ((8, 2, 3), [node("Flatten", ["s"], ["w"])], {}),
    "all of them": (
        (3, 1, 2, 8),
        [
            node("Cast", ["s"], ["c"], to=TensorProto.FLOAT),
            node("Squeeze", ["c", "one"], ["q"]),
            node("Transpose", ["q"], ["t"], perm=[2, 0, 1]),
            node("Flatten", ["t"], ["w"], axis=1),
        ],
        {"one": np.array([1])},
    ),
}


@pytest.mark.parametrize("held", ["initializer", "Constant"])
@pytest.mark.parametrize("chain", CHAINS)
def test_a_weight_behind_a_chain(chain, held):
    shape, steps, more = CHAINS[chain]
    stored = rand(RNG, *shape).astype(np.float16 if "Cast" in [step.op_type for step in steps] else np.float32)
    constants = more | {"b": rand(RNG, 6)} | second(6)
    nodes = [*steps, node("MatMul", ["x", "w"], ["m"], name="first"), node("Add", ["m", "b"], ["h"]), *tail()]
    if held == "initializer":
        constants["s"] = stored
    else:
        nodes.insert(0, node("Constant", [], ["s"], value=numpy_helper.from_array(stored)))
    model = build(nodes, constants, {"x": ["N", 8]}, ["y"])
    for repair, result in every_way(model, {"x": rows(8)}).items():
        entry = layer_of(result, "first")
        assert entry.weight == "s" and entry.shape == (8, 6) and entry.pruned
        assert np.count_nonzero(values(result.model, "s")) == entry.kept
        assert repair in ("none",) or entry.repair != "none"
        if repair == "none":  # what is kept has not moved, in the stored type
            new = values(result.model, "s")
            np.testing.assert_array_equal(new[new != 0], stored[new != 0])
        if repair in ("channel", "reconstruct"):
            assert "s" in result.report.changes.values and entry.variance_error_after < entry.variance_error_before


def test_masks_of_a_cast_weight_keep_its_digits():
    """float32 behind a Cast to float16: the mask leaves the digits that the Cast drops."""
    model = parse(
        """g (float16[N,4] x) => (float16[N,2] y) <float[4,2] s = {0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8}> {
          w = Cast<to = 10>(s)
          y = MatMul(x, w)
        }"""
    )
    result = pruned(model, {"x": rows(4).astype(np.float16)}, repair="none")
    np.testing.assert_array_equal(values(result.model, "s").ravel(), np.array([0, 0, 0, 0, 0.5, 0.6, 0.7, 0.8], np.float32))


def test_one_weight_in_two_orientations():
    """An autoencoder with tied weights: masked once, no gain, a shift at each use."""
    constants = {"w": rand(RNG, 8, 6), "b1": rand(RNG, 6), "b2": rand(RNG, 8)}
    nodes = [
        node("Gemm", ["x", "w", "b1"], ["h"], name="encoder"),
        node("Relu", ["h"], ["r"]),
        node("Transpose", ["w"], ["wt"]),
        node("MatMul", ["r", "wt"], ["m"], name="decoder"),
        node("Add", ["m", "b2"], ["y"]),
    ]
    model = build(nodes, constants, {"x": ["N", 8]}, ["y"])
    for repair, result in every_way(model, {"x": rows(8)}).items():
        (entry,) = result.report.layers
        assert entry.name == "encoder" and "weight of 2 nodes" in entry.notes
        if repair != "none":
            assert set(result.report.changes.values) == {"w", "b1", "b2"}
            kept = values(result.model, "w")
            np.testing.assert_array_equal(kept[kept != 0], constants["w"][kept != 0])


def gpt(head="MatMul"):
    """Token ids -> embedding -> hidden -> the same table as the head."""
    nodes = [
        node("Gather", ["table", "ids"], ["e"], name="embedding"),
        node("MatMul", ["e", "w1"], ["m"], name="hidden"),
        node("Add", ["m", "b1"], ["h"]),
        node("Relu", ["h"], ["r"]),
        node("Transpose", ["table"], ["head"]),
        node("MatMul", ["r", "head"], ["y"], name="head"),
    ]
    constants = {"table": rand(RNG, 20, 6), "w1": rand(RNG, 6, 6), "b1": rand(RNG, 6)}
    model = build(nodes, constants, {"ids": ["N", 7]}, ["y"])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    return model


def test_embeddings_stay_dense_unless_included():
    ids = {"ids": np.random.default_rng(2).integers(0, 20, (COUNT, 7))}
    for result in every_way(gpt(), ids).values():
        assert [entry.name for entry in result.report.layers] == ["hidden"]
        assert {entry.name: entry.reason for entry in result.report.skipped} == {
            "embedding": "embedding tables stay dense unless --include names them",
            "head": "its weight is also read by Gather 'embedding'",
        }
    for result in (pruned(gpt(), ids, repair=repair, include=(".",)) for repair in ("none", "channel", "reconstruct")):
        assert [entry.name for entry in result.report.layers] == ["embedding", "hidden"]
        assert layer_of(result, "embedding").pruned
    assert "pruned, not repaired: it is an embedding" in layer_of(result, "embedding").notes


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
def test_recurrent_layers(op):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    constants = {"w": rand(RNG, 2, gates * 5, 4), "u": rand(RNG, 2, gates * 5, 5), "b": rand(RNG, 2, gates * 10), "axes": np.array([1])}
    nodes = [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node(op, ["t", "w", "u", "b"], ["all", "last"], name="rnn", hidden_size=5, direction="bidirectional"),
        node("Transpose", ["last"], ["l"], perm=[1, 0, 2]),
        node("Flatten", ["l"], ["h"]),
        *tail(),
    ]
    model = build(nodes, constants | second(10), {"x": ["N", 6, 4]}, ["y"])
    for repair, result in every_way(model, {"x": rows(6, 4)}, alloc="uniform").items():
        for part, weight in (("W", "w"), ("R", "u")):
            entry = layer_of(result, f"rnn:{part}")
            assert entry.kept == entry.weights // 2 and entry.repair == "none" and entry.weight == weight
            assert repair == "none" or "pruned, not repaired: recurrent layers are not repaired" in entry.notes
        assert repair == "none" or layer_of(result, "second").repair != "none"


def reordered(name, pieces, *, opset=17):
    """Slices of the rows of a constant, one for each (start, end, step), and their Concat: constants and nodes."""
    constants, nodes = {"rows": np.array([0])}, []
    for number, piece in enumerate(pieces):
        if opset < 10:
            nodes.append(node("Slice", [name], [f"{name}:{number}"], starts=[piece[0]], ends=[piece[1]], axes=[0]))
            continue
        constants |= {f"{name}:{number}:{what}": np.array([value]) for what, value in zip(("start", "end", "step"), piece, strict=True)}
        reads = [f"{name}:{number}:start", f"{name}:{number}:end", "rows", f"{name}:{number}:step"]
        nodes.append(node("Slice", [name, *reads], [f"{name}:{number}"]))
    return constants, [*nodes, node("Concat", [f"{name}:{number}" for number in range(len(pieces))], [f"{name}:joined"], axis=0)]


GATES = [(0, 5, 1), (15, 20, 1), (5, 15, 1)]
LONG = 2**62


def test_gates_in_another_order():
    """As torch exports an LSTM without folding: what is stored is in torch's order of gates, the node sees ONNX's."""
    constants, nodes = {"w": rand(RNG, 20, 4), "u": rand(RNG, 20, 5), "one": np.array([0])}, []
    for name in ("w", "u"):
        more, made = reordered(name, GATES)
        constants |= more
        nodes += [*made, node("Unsqueeze", [f"{name}:joined", "one"], [f"{name}:seen"])]
    nodes += [
        node("Transpose", ["x"], ["t"], perm=[1, 0, 2]),
        node("LSTM", ["t", "w:seen", "u:seen"], ["", "last"], name="rnn", hidden_size=5),
        node("Squeeze", ["last", "one"], ["h"]),
        *tail(),
    ]
    model = build(nodes, constants | second(5), {"x": ["N", 6, 4]}, ["y"])
    for result in every_way(model, {"x": rows(6, 4)}, alloc="uniform").values():
        for part, weight in (("W", "w"), ("R", "u")):
            entry = layer_of(result, f"rnn:{part}")
            assert entry.weight == weight and entry.kept == entry.weights // 2
            old, new = values(model, weight), values(result.model, weight)
            smallest = np.sort(np.abs(old), axis=None)[: old.size // 2]
            np.testing.assert_array_equal(new == 0, np.isin(np.abs(old), smallest))


@pytest.mark.parametrize("opset", [9, 17])
def test_a_weight_in_pieces_is_pruned_and_repaired(opset):
    pieces = [(2, 4, 1), (4, LONG, 1), (0, 2, 1)] if opset < 10 else [(2, 4, 1), (-1, 3, -1), (1, -LONG, -1)]
    more, nodes = reordered("w", pieces, opset=opset)
    nodes += [node("MatMul", ["x", "w:joined"], ["m"], name="mm"), node("Add", ["m", "b"], ["h"]), node("Relu", ["h"], ["y"])]
    model = build(nodes, more | {"w": rand(RNG, 8, 6), "b": rand(RNG, 6)}, {"x": ["N", 8]}, ["y"], opset=opset)
    for repair, result in every_way(model, {"x": rows(8)}).items():
        entry = layer_of(result, "mm")
        assert entry.kept == 24 and entry.weight == "w"
        assert repair != "channel" or entry.variance_error_after < 1e-3


@pytest.mark.parametrize("pieces", [[(0, 4, 1), (4, 7, 1), (0, 1, 1)], [(0, 4, 1)], [(0, 4, 1), (4, 8, 1), (4, 8, 1)]])
def test_pieces_that_are_not_the_whole_are_named(pieces):
    more, nodes = reordered("w", pieces)
    model = build([*nodes, node("MatMul", ["x", "w:joined"], ["y"], name="mm")], more | {"w": rand(RNG, 8, 6)}, {"x": ["N", None]}, ["y"])
    assert [entry.reason for entry in layers.find(model).skipped] == ["the weight is made of constants by Concat; fold them first"]


def test_a_piece_that_others_read_too_is_left():
    more, nodes = reordered("w", [(4, 8, 1), (0, 4, 1)])
    nodes += [node("MatMul", ["x", "w:joined"], ["y"], name="mm"), node("Neg", ["w:0"], ["z"])]
    model = build(nodes, more | {"w": rand(RNG, 8, 6)}, {"x": ["N", 8]}, ["y", "z"])
    assert [entry.reason for entry in layers.find(model).skipped] == ["the weight is made of constants by Concat; fold them first"]
    more, nodes = reordered("w", [(4, 8, 1), (0, 4, 1)])
    nodes += [node("MatMul", ["x", "w:joined"], ["y"], name="mm"), node("Neg", ["w"], ["z"])]
    model = build(nodes, more | {"w": rand(RNG, 8, 6)}, {"x": ["N", 8]}, ["y", "z"])
    assert [entry.reason for entry in layers.find(model).skipped] == ["its weight is also read by Neg 'z'"]


EINSUMS = {
    "ij,jk->ik": ((8,), (8, 6), True),
    "ij,kj->ik": ((8,), (6, 8), True),
    "bij,jk->bik": ((3, 8), (8, 6), True),
    "bij,jkl->bikl": ((3, 8), (8, 2, 3), False),
    "bij,kj->bki": ((3, 8), (6, 8), False),
}


@pytest.mark.parametrize("equation", EINSUMS)
def test_einsum(equation):
    given, shape, repaired = EINSUMS[equation]
    nodes = [node("Einsum", ["x", "w"], ["h"], equation=equation, name="ein"), node("Relu", ["h"], ["y"])]
    model = build(nodes, {"w": rand(RNG, *shape)}, {"x": ["N", *given]}, ["y"])
    for repair, result in every_way(model, {"x": rows(*given)}).items():
        entry = layer_of(result, "ein")
        assert entry.kept == entry.weights // 2
        if repair != "none":
            assert (entry.repair != "none") == repaired
            assert any("has no one axis of output channels" in note for note in entry.notes) == (not repaired)


def test_the_constant_on_the_left_side_of_gemm():
    constants = {"w": rand(RNG, 6, 8), "c": rand(RNG, 6, 1)} | second(6)
    for bias in ([], ["c"]):
        nodes = [
            node("Transpose", ["x"], ["xt"]),
            node("Gemm", ["w", "xt", *bias], ["g"], name="left"),
            node("Transpose", ["g"], ["h"]),
            *tail(),
        ]
        held = constants if bias else {name: value for name, value in constants.items() if name != "c"}
        model = build(nodes, held, {"x": ["N", 8]}, ["y"])
        for repair, result in every_way(model, {"x": rows(8)}).items():
            entry = layer_of(result, "left")
            assert entry.channels == 6
            if repair == "channel":
                assert entry.variance_error_after < 0.1 < entry.variance_error_before


def test_a_batch_of_matrices():
    nodes = [node("MatMul", ["x", "w"], ["h"], name="batched"), node("Relu", ["h"], ["y"])]
    model = build(nodes, {"w": rand(RNG, 3, 8, 6)}, {"x": ["N", 3, 5, 8]}, ["y"])
    for repair, result in every_way(model, {"x": rows(3, 5, 8)}).items():
        assert layer_of(result, "batched").repair != "none" or repair == "none"


def test_a_matrix_times_a_vector():
    """The output is a vector: its channels are its only axis."""
    nodes = [
        node("MatMul", ["x", "w1"], ["a"], name="first"),
        node("ReduceMean", ["a", "zero"], ["mean"], keepdims=0),
        node("MatMul", ["w3", "mean"], ["v"], name="left"),
        node("Add", ["a", "v"], ["h"]),
        *tail(),
    ]
    constants = {"w1": rand(RNG, 8, 6), "w3": rand(RNG, 6, 6), "zero": np.array([0])} | second(6)
    model = build(nodes, constants, {"x": ["N", 8]}, ["y"])
    for repair, result in every_way(model, {"x": rows(8)}).items():
        entry = layer_of(result, "left")
        assert entry.channels == 6 and (entry.repair != "none" or repair == "none")


def test_a_function_in_a_body_and_a_body_in_a_function():
    model = onnx.parser.parse_model(
        """<ir_version: 10, opset_import: ["" : 20, "loc" : 1]>
        g (float[N,4] x) => (float[N,3] y) <float[4,3] w2 = {1,-2,3,4,-5,6,7,8,-9,10,-11,12}, bool c = {1}> {
          a = If(c) <
            then_branch = t () => (float[N,4] u) { u = loc.f(x) },
            else_branch = e () => (float[N,4] v) { v = loc.g(x, c) }>
          y = MatMul(a, w2)
        }
        <domain: "loc", opset_import: ["" : 20]> f (a) => (d) {
          k = Constant<value = float[4,4] {1,2,-3,4,-5,6,7,8,9,-1,2,3,4,5,-6,7}>()
          d = MatMul(a, k)
        }
        <domain: "loc", opset_import: ["" : 20]> g (x, c) => (a) {
          a = If(c) <
            then_branch = t () => (float[N,4] u) {
              k = Constant<value = float[4,4] {1,2,-3,4,-5,6,7,8,9,-1,2,3,4,5,-6,7}>()
              u = MatMul(x, k)
            },
            else_branch = e () => (float[N,4] v) <float[4,4] q = {1,2,3,4,5,6,7,8,-9,10,-11,12,13,-14,15,16}> {
              k = Constant<value = float[4,4] {4,2,-3,4,-5,6,7,8,9,-1,2,3,4,5,-6,9}>()
              p = MatMul(x, k)
              v = MatMul(p, q)
            }>
        }"""
    )
    for repair, result in every_way(model, {"x": rows(4)}, alloc="uniform").items():
        held = {entry.weight: entry for entry in result.report.layers}
        assert set(held) == {"loc.f/k", "loc.g/a.then_branch/k", "loc.g/a.else_branch/k", "loc.g/a.else_branch/q", "w2"}, repair
        assert all(entry.kept == entry.weights // 2 for entry in held.values())


def test_deform_conv():
    constants = {"w": rand(RNG, 6, 4, 3, 3), "o": rand(RNG, 18, 4, 3, 3) * 0.1, "ob": rand(RNG, 18), "b": rand(RNG, 6)}
    nodes = [
        node("Conv", ["x", "o", "ob"], ["off"], name="offsets", pads=[1, 1, 1, 1]),
        node("DeformConv", ["x", "w", "off", "b"], ["h"], name="deform", pads=[1, 1, 1, 1]),
        node("Relu", ["h"], ["y"]),
    ]
    model = build(nodes, constants, {"x": ["N", 4, 6, 6]}, ["y"])
    try:
        outputs(model, {"x": rows(4, 6, 6, count=1)})
    except Exception:
        pytest.skip("this ONNX Runtime has no DeformConv")
    for repair, result in every_way(model, {"x": rows(4, 6, 6)}).items():
        assert repair == "none" or layer_of(result, "deform").repair != "none"


@pytest.mark.parametrize("ir_version", [3, 8])
def test_an_initializer_that_is_an_input_too(ir_version):
    nodes = [node("Gemm", ["x", "w", "b"], ["h"], name="first"), *tail()]
    model = build(nodes, {"w": rand(RNG, 8, 6), "b": rand(RNG, 6)} | second(6), {"x": ["N", 8]}, ["y"], ir_version=ir_version, opset=11)
    if ir_version == 8:
        model.graph.input.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [8, 6]))
    for result in every_way(model, {"x": rows(8)}).values():
        assert layer_of(result, "first").pruned and any(value.name == "w" for value in result.model.graph.input)


def control(kind):
    """A layer in the main graph, one or more inside a body with weights of its own and of the outer scope, and one behind."""
    if kind == "If":
        inside = """h = If(yes) <
            then_branch = t () => (float[N,4] u) <float[4,4] own = {1,-2,3,4,5,6,-7,8,9,1,2,-3,4,5,6,7}> { u = MatMul(m, own) },
            else_branch = e () => (float[N,4] v) {
              k = Constant<value = float[4,4] {1,2,-3,4,-5,6,7,8,9,-1,2,3,4,5,-6,7}>()
              p = MatMul(m, k)
              v = MatMul(p, w)
            }>"""
    elif kind == "Loop":
        inside = """h = Loop(three, yes, m) <body = b (int64 i, bool go, float[N,4] s) => (bool go2, float[N,4] s2)
            <float[4,4] own = {0.1,-0.2,0.3,0.4,0.5,0.1,-0.2,0.3,0.2,0.1,0.2,-0.3,0.4,0.5,0.3,0.2}> {
              go2 = Identity(go)
              s2 = MatMul(s, own)
            }>"""
    else:
        inside = """wide = Unsqueeze(m, one)
          last, all = Scan<num_scan_inputs = 1>(m, wide)
            <body = b (float[N,4] s, float[N,4] each) => (float[N,4] s2, float[N,4] out)
              <float[4,4] own = {0.1,-0.2,0.3,0.4,0.5,0.1,-0.2,0.3,0.2,0.1,0.2,-0.3,0.4,0.5,0.3,0.2}> {
                t = MatMul(s, own)
                s2 = Add(t, each)
                out = Identity(t)
              }>
          h = Identity(last)"""
        inside = inside.replace("Scan<num_scan_inputs = 1>(m, wide)\n            <body", "Scan(m, wide) <num_scan_inputs = 1, body")
    return parse(
        f"""g (float[N,4] x) => (float[N,3] y) <
          float[4,4] w = {{1,2,3,4,5,6,7,8,-9,10,-11,12,13,-14,15,16}}, bool yes = {{1}}, int64 three = {{3}}, int64[1] one = {{0}},
          float[4,3] w2 = {{1,-2,3,4,-5,6,7,8,-9,10,-11,12}}, float[3] b2 = {{1,2,3}}> {{
          m = MatMul(x, w)
          {inside}
          p = MatMul(h, w2)
          y = Add(p, b2)
        }}"""
    )


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_layers_in_bodies(kind):
    model = control(kind)
    inside = {
        "If": {
            "h.then_branch/own": "it has no bias, inside the then branch of If 'h'",
            "h.else_branch/k": "it is inside the else branch of If 'h', which no sample takes",
        },
        "Loop": {"h.body/own": "it is inside the body of Loop 'h'"},
        "Scan": {"last.body/own": "it is inside the body of Scan 'last'"},
    }[kind]
    for repair, result in every_way(model, {"x": rows(4)}, alloc="uniform").items():
        held = {entry.weight: entry for entry in result.report.layers}
        assert set(held) == {"w", "w2", *inside}
        for name, why in inside.items():
            assert held[name].pruned and held[name].kept == 8 == np.count_nonzero(values(result.model, name))
            assert repair == "none" or f"pruned, not repaired: {why}" in held[name].notes
        assert len(result.report.skipped) == 0 and (repair == "none" or held["w2"].repair != "none")


FUNCTIONS = """<ir_version: 10, opset_import: ["" : 20, "loc" : 1]>
g (float[N,4] x) => (float[N,3] y) <
  float[4,4] w = {1,2,3,4,5,6,7,8,-9,10,-11,12,13,-14,15,16}, float[4] b = {1,2,3,4}, float[4,4] w1 = {1,-2,3,4,5,6,-7,8,9,1,2,-3,4,5,6,7},
  float[4] b1 = {1,0,1,0}, float[4,3] w2 = {1,-2,3,4,-5,6,7,8,-9,10,-11,12}> {
  h0 = loc.linear(x, w, b)
  r0 = Relu(h0)
  h1 = loc.deep(r0, w1, b1)
  h2 = loc.own(h1)
  h3 = loc.twice(h2)
  h4 = loc.twice(h3)
  y = MatMul(h4, w2)
}
<domain: "loc", opset_import: ["" : 20]> linear (a, k, c) => (d) { m = MatMul(a, k) d = Add(m, c) }
<domain: "loc", opset_import: ["" : 20, "loc" : 1]> deep (a, k, c) => (d) { e = loc.linear(a, k, c) d = Relu(e) }
<domain: "loc", opset_import: ["" : 20]> own (a) => (d) {
  k = Constant<value = float[4,4] {1,2,-3,4,-5,6,7,8,9,-1,2,3,4,5,-6,7}>()
  c = Constant<value = float[4] {1,2,3,4}>()
  m = MatMul(a, k)
  d = Add(m, c)
}
<domain: "loc", opset_import: ["" : 20]> twice (a) => (d) {
  k = Constant<value = float[4,4] {0.1,0.2,-0.3,0.4,-0.5,0.6,0.7,0.8,0.9,-0.1,0.2,0.3,0.4,0.5,-0.6,0.7}>()
  d = MatMul(a, k)
}"""


def test_local_functions():
    """Weights from outside are repaired as ever, a function's own when it is called once; the functions stay."""
    model = onnx.parser.parse_model(FUNCTIONS)
    for repair, result in every_way(model, {"x": rows(4)}, alloc="uniform").items():
        held = {entry.weight: entry for entry in result.report.layers}
        assert set(held) == {"w", "w1", "w2", "loc.own/k", "loc.twice/k"}
        assert [function.name for function in result.model.functions] == ["linear", "deep", "own", "twice"]
        for name, entry in held.items():
            assert np.count_nonzero(values(result.model, name)) == entry.kept
        if repair == "none":
            continue
        assert all(held[name].repair != "none" for name in ("w", "w1", "w2", "loc.own/k"))
        assert "loc.own/c" in result.report.changes.values
        assert "pruned, not repaired: it has no bias, inside the local function 'twice'" in held["loc.twice/k"].notes
        assert result.model.graph.node[-1].op_type == "Add"  # w2 had no bias


def test_a_function_that_gives_what_a_new_node_reads():
    """A Gemm's bias that a call makes is scaled by a new Mul, which stands behind the call."""
    model = onnx.parser.parse_model("""<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
    g (float[N,8] x) => (float[N,5] y) {
      [call] c = local.level (x)
      [last] y = Gemm <transB=1> (x, w, c)
    }
    <domain: "local", opset_import: ["" : 18]>
    level (i) => (o) { m = ReduceMean <keepdims=1> (i)  z = Sub (m, m)  o = Exp (z) }""")
    model.graph.initializer.append(numpy_helper.from_array(rand(np.random.default_rng(0), 5, 8), "w"))
    result = pruned(model, {"x": rows(8)}, repair="channel")
    assert [entry.op_type for entry in result.model.graph.node][:3] == ["level", "Mul", "Gemm"]


def test_a_gain_that_float16_cannot_hold_is_cut():
    w = np.full((4, 2), 6e4, np.float16)
    w[1:] = np.float16(5e4) * np.array([[1], [-1], [1]], np.float16)
    model = build([node("MatMul", ["x", "w"], ["y"], name="big")], {"w": w}, {"x": ["N", 4]}, ["y"], elem_type=TensorProto.FLOAT16)
    samples = (rows(4) * 1e-3).astype(np.float16)
    result = pruned(model, {"x": samples}, repair="channel", sparsity=0.75)
    assert np.isfinite(values(result.model, "w")).all()


def test_a_solution_that_float16_cannot_hold_is_not_written():
    """Small inputs, and weights at the end of their type: solved again, or scaled, they would be over 65,504."""
    rng = np.random.default_rng(0)
    w1, w2 = (rng.normal(size=(8, 12)) * 1e-5).astype(np.float16), (rng.normal(size=(12, 5)) * 6e4).clip(-65000, 65000).astype(np.float16)
    nodes = [node("MatMul", ["x", "w1"], ["a"], name="one"), node("Relu", ["a"], ["b"]), node("MatMul", ["b", "w2"], ["y"], name="two")]
    model = build(nodes, {"w1": w1, "w2": w2}, {"x": ["N", 8]}, ["y"], elem_type=TensorProto.FLOAT16)
    result = pruned(model, {"x": rows(8).astype(np.float16)}, repair="reconstruct")
    assert np.isfinite(values(result.model, "w2")).all()
    assert "pruned, not repaired: no solution fits the type of its weights" in result.report.layers[1].notes


@pytest.mark.parametrize("options", [{}, {"repair": "reconstruct"}, {"repair": "reconstruct", "alloc": "error"}], ids=str)
def test_a_layer_that_no_value_reaches_says_so(options):
    made = zoo_strange.boxes(1e9)
    result = prune(made.model, dict(made.samples), sparsity=0.5, **options)
    first, second = result.report.layers
    assert first.repair in ("channel", "reconstruct")
    assert second.repair == "none" and "pruned, not repaired: no value reaches it on the samples" in second.notes


def test_rows_that_the_values_choose_are_not_paired():
    made = zoo_strange.rows_that_are_not_zero()
    result = prune(made.model, dict(made.samples), sparsity=0.5, repair="reconstruct")
    (note,) = [note for note in result.report.layers[1].notes if "not repaired" in note]
    assert note == "pruned, not repaired: the values decide which rows it has, and the pruned model has others than the dense one"


def test_a_function_whose_operators_are_others_in_the_models_opset():
    """ReduceMean took its axes in another way before opset 18: the call stays, and says so."""
    text = """<ir_version: 9, opset_import: ["" : 18, "local" : 1]>
    g (float[N,8] x) => (float[N,5] y) { [head] a = MatMul (x, w)  [f] y = local.f (a) }
    <domain: "local", opset_import: ["" : 17]>
    f (i) => (o) {
      m = ReduceMean <axes = [1]> (i)
      v = Constant <value = float[5,5] {%s}> ()
      [inside] s = MatMul (i, v)
      o = Sub (s, m)
    }"""
    model = onnx.parser.parse_model(text % ", ".join(["0.5"] * 25))
    model.graph.initializer.append(numpy_helper.from_array(rand(np.random.default_rng(0), 8, 5), "w"))
    result = prune(model, sparsity=0.5, repair="none")  # ONNX Runtime writes the call out all the same, and refuses what comes of it
    assert [entry.name for entry in result.report.layers] == ["head"]
    assert ("inside", "it is inside the local function 'f'") in [(entry.name, entry.reason) for entry in result.report.skipped]
    assert list(result.model.functions) == list(model.functions)


def test_what_is_infinite_in_the_dense_outputs_is_not_compared():
    """One class of five is masked with minus infinity: the agreement is that of the same model without the mask."""
    made = zoo_strange.scores_that_are_masked()
    report = prune(made.model, dict(made.samples), sparsity=0.3, holdout=0.5).report
    assert "output 'y': 12 of 60 numbers of the dense model are NaN or infinite and are not compared" in report.notes
    first = report.agreement.repaired[0]
    assert (first.output, report.agreement.measure) == ("y", "top1")
    assert 0.5 < first.cosine < 1 and np.isfinite([first.kl, first.sqnr_db]).all()
    model = onnx.ModelProto()
    model.CopyFrom(made.model)
    model.graph.initializer[2].raw_data = np.zeros(5, np.float32).tobytes()
    plain = prune(model, dict(made.samples), sparsity=0.3, holdout=0.5).report.agreement.repaired[0]
    assert abs(plain.cosine - first.cosine) < 0.2


def test_nothing_but_infinity_cannot_be_compared():
    nodes = [node("MatMul", ["x", "w"], ["a"]), node("Div", ["a", "nought"], ["y"])]
    model = build(nodes, {"w": rand(np.random.default_rng(0), 8, 5), "nought": np.zeros(5, np.float32)}, {"x": ["N", 8]}, ["y"])
    with pytest.raises(OnnxpruneError, match="output 'y' of the dense model has NaN or infinity alone"):
        prune(model, {"x": rows(8)}, sparsity=0.5)
