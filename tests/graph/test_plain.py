"""Which models are plain enough to run without a trial: by their operators, and by the sizes of their tensors."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import zoo_exports  # noqa: F401 - enters its subjects
from networks import model_of
from onnx import helper
from zoo import SUBJECTS, convnet, mlp

from onnxprune.graph import plain
from onnxprune.graph.plain import unusual


def chain(times: int) -> onnx.ModelProto:
    """x (n, 2), put beside itself again and again: 2 ** times as many columns."""
    nodes = [helper.make_node("Concat", [f"a{at}", f"a{at}"], [f"a{at + 1}"], axis=1) for at in range(times)]
    return model_of(nodes, {"a0": ("n", 2)}, {f"a{times}": ("n", 1)}, {})  # the declared shape is a lie


def test_usual_networks_are_plain() -> None:
    assert unusual(mlp(), {"x": (4, 8)}, 4) == ""
    assert unusual(convnet(), {"x": (4, 3, 8, 8)}, 4) == ""


@pytest.mark.parametrize("name", ["constant_node", "opset_7", "initializer_that_is_an_input", "lstm"])
def test_more_that_are(name: str) -> None:
    made = SUBJECTS[name]()
    feed = made.feed()
    assert unusual(made.model, {key: value.shape for key, value in feed.items()}, made.batch) == ""


@pytest.mark.parametrize(
    ("name", "word"), [("inside_loop", "Loop 'loop'"), ("einsum", "Einsum 'ein'"), ("fused_attention", "Attention 'att'")]
)
def test_operators_out_of_the_list_are_named(name: str, word: str) -> None:
    made = SUBJECTS[name]()
    assert unusual(made.model, {key: value.shape for key, value in made.feed().items()}, made.batch) == word


@pytest.mark.parametrize(("samples", "plainly"), [(1, True), (4, False)])
def test_sizes_are_summed_over_all_tensors(samples: int, plainly: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """4 + 8 + 16 = 28 elements a sample; a limit of 28 a sample of one, and 28 of a batch that counts as one, four times exceeded."""
    monkeypatch.setattr(plain, "LARGE", 28)
    assert (unusual(chain(3), {"a0": (samples, 2)}, 1) == "") is plainly
    assert unusual(chain(3), {"a0": (samples, 2)}, samples) == ""


def test_what_grows_faster_than_the_batch_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outer product of the samples: n * n elements."""
    nodes = [helper.make_node("Transpose", ["x"], ["t"]), helper.make_node("MatMul", ["x", "t"], ["y"])]
    model = model_of(nodes, {"x": ("n", 2)}, {"y": ("n", "n")}, {})
    monkeypatch.setattr(plain, "LARGE", 10)
    assert unusual(model, {"x": (8, 2)}, 8) == ""  # 16 + 64 = 80
    assert unusual(model, {"x": (9, 2)}, 9) == "the sizes of 'y' and of what is before it"  # 18 + 81 > 90


def test_a_large_tile_is_seen_and_a_small_one_is_plain() -> None:
    for times, why in ((3, ""), (2**40, "the sizes of 'y' and of what is before it")):
        nodes = [helper.make_node("Tile", ["x", "r"], ["y"])]
        model = model_of(nodes, {"x": ("n", 2)}, {"y": ("n", 1)}, {"r": np.array([1, times])})
        assert unusual(model, {"x": (1, 2)}, 1) == why


def test_a_size_that_the_values_decide_is_not_known() -> None:
    nodes = [helper.make_node("Reshape", ["x", "s"], ["y"])]
    model = model_of(nodes, {"x": ("n", 2), "s": (2,)}, {"y": ("n", "m")}, {})
    model.graph.input[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    assert unusual(model, {"x": (1, 2), "s": (2,)}, 1) == "the size of 'y', which is not known beforehand"


def test_an_input_that_is_left_out_of_a_sum() -> None:
    model = model_of([helper.make_node("Sum", ["x", ""], ["y"], "sum")], {"x": ("n", 2)}, {"y": ("n", 2)}, {})
    assert unusual(model, {"x": (1, 2)}, 1) == "Sum 'sum', one of whose inputs is left out"


def test_the_model_is_not_changed_and_its_weights_are_not_copied() -> None:
    model = mlp()
    before = model.SerializeToString()
    outline = plain._outline(model, {"x": (4, 8)})
    assert model.SerializeToString() == before
    assert outline.ByteSize() < len(before)


def test_very_many_nodes_are_tried_first() -> None:
    nodes = [helper.make_node("Relu", [f"a{at}"], [f"a{at + 1}"]) for at in range(plain.MANY + 1)]
    model = model_of(nodes, {"a0": ("n", 2)}, {f"a{len(nodes)}": ("n", 2)}, {})
    assert unusual(model, {"a0": (1, 2)}, 1) == "its 5,001 nodes"
