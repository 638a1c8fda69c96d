"""Small tensors that come from constants: what is computed, and what is left alone."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from onnxprune.graph.arithmetic import MOST, computed
from onnxprune.graph.plain import held, unusual

LONG = np.int64


def constant(name: str, values: object) -> onnx.NodeProto:
    return helper.make_node("Constant", [], [name], value=numpy_helper.from_array(np.array(values), name))


@pytest.mark.parametrize(
    ("op", "given", "words", "found"),
    [
        ("Unsqueeze", [2, [0]], {}, [2]),
        ("Sub", [[8, 1], [3]], {}, [5, -2]),
        ("Slice", [[[0, 1], [2, 3]], [-1], [-9223372036854775807], [0], [-1]], {}, [[2, 3], [0, 1]]),
        ("Transpose", [[[0, 1], [2, 3]]], {"perm": [1, 0]}, [[0, 2], [1, 3]]),
        ("Concat", [[1], [2, 3]], {"axis": 0}, [1, 2, 3]),
        ("Gather", [[4, 5, 6], [2]], {"axis": 0}, [6]),
        ("Shape", [[[1, 2, 3]]], {}, [1, 3]),
        ("Range", [0, 6, 2], {}, [0, 2, 4]),
        ("Identity", [[7, 8]], {}, [7, 8]),
    ],
)
def test_by_hand(op: str, given: list[object], words: dict[str, object], found: object) -> None:
    names = [f"i{at}" for at in range(len(given))]
    known = {name: np.array(values, LONG) for name, values in zip(names, given, strict=True)}
    made = computed(helper.make_node(op, names, ["y"], **words), known, 17)
    assert made is not None
    assert made.dtype == LONG
    np.testing.assert_array_equal(made, found)


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("ConstantOfShape", [[2**40]]),
        ("ConstantOfShape", [[-1]]),
        ("Range", [0, 2**40, 1]),
        ("Range", [0, 1, 0]),
        ("Relu", [[1]]),
        ("Add", [np.ones((MOST, 1)), np.ones((1, 2))]),
        ("Reshape", [[1, 2], [3]]),
    ],
)
def test_what_is_large_fails_or_is_no_arithmetic_is_left_alone(op: str, given: list[object]) -> None:
    names = [f"i{at}" for at in range(len(given))]
    known = {name: np.array(values, LONG) for name, values in zip(names, given, strict=True)}
    assert computed(helper.make_node(op, names, ["y"]), known, 17) is None


def test_an_identity_without_its_input_is_left_alone() -> None:
    assert computed(helper.make_node("Identity", [""], ["y"]), {}, 17) is None
    assert computed(helper.make_node("Identity", [], ["y"]), {}, 17) is None


def test_what_the_input_decides_is_left_alone() -> None:
    assert computed(helper.make_node("Shape", ["x"], ["y"]), {}, 17) is None
    assert computed(helper.make_node("Add", ["a", "b"], ["y"], domain="mine"), {"a": np.ones(1), "b": np.ones(1)}, 17) is None


def test_a_strided_slice_as_pytorch_writes_it_is_plain() -> None:
    """onnx's own inference gives no shape here; (4, 8) by every second column is (4, 4)."""
    nodes = [constant("axis", [0]), *(constant(f"c{at}", value) for at, value in enumerate((0, 2**63 - 1, 1, 2)))]
    nodes += [helper.make_node("Unsqueeze", [f"c{at}", "axis"], [f"u{at}"]) for at in range(4)]
    nodes.append(helper.make_node("Slice", ["x", "u0", "u1", "u2", "u3"], ["y"]))
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, dims) for name, dims in (("x", ["n", 8]), ("y", None))]
    model = helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:]), opset_imports=[helper.make_opsetid("", 17)])
    assert unusual(model, {"x": (4, 8)}, 4) == ""
    assert held(model, {"x": (4, 8)}) == 2 * (32 + 16 + 4)
