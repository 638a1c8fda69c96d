"""Local functions that would be written out to more nodes than there is memory for are refused beforehand."""

from __future__ import annotations

import time

import onnx
import pytest
from onnx import helper

from onnxprune.errors import ModelError
from onnxprune.graph import calls
from onnxprune.graph.calls import refuse_explosion


def tower(levels: int, times: int) -> onnx.ModelProto:
    """f0 is a node; every further function calls the one before it ``times`` times."""
    imports = [helper.make_opsetid("", 18), helper.make_opsetid("local", 1)]
    functions = [helper.make_function("local", "f0", ["a0"], [f"a{times}"], [helper.make_node("Relu", ["a0"], [f"a{times}"])], imports)]
    for level in range(1, levels + 1):
        nodes = [helper.make_node(f"f{level - 1}", [f"a{at}"], [f"a{at + 1}"], domain="local") for at in range(times)]
        functions.append(helper.make_function("local", f"f{level}", ["a0"], [f"a{times}"], nodes, imports))
    x, y = (helper.make_tensor_value_info(name, 1, [2]) for name in "xy")
    graph = helper.make_graph([helper.make_node(f"f{levels}", ["x"], ["y"], domain="local")], "g", [x], [y])
    return helper.make_model(graph, functions=functions, opset_imports=imports)


def test_the_nodes_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "NODES_MAX", 8)
    refuse_explosion(tower(3, 2))  # 2 ** 3
    with pytest.raises(ModelError, match=r"they make 9 nodes, over 8"):
        refuse_explosion(tower(2, 3))


def test_a_thousand_million_nodes_are_refused_at_once() -> None:
    start = time.perf_counter()
    with pytest.raises(ModelError, match=r"they make 1,073,741,824 nodes, over 50,000"):
        refuse_explosion(tower(30, 2))
    assert time.perf_counter() - start < 1


def test_a_tower_that_is_too_high() -> None:
    refuse_explosion(tower(99, 1))
    with pytest.raises(ModelError, match="they make 5001 levels, over 100"):
        refuse_explosion(tower(5000, 1))


def test_a_ring_is_named() -> None:
    model = tower(2, 1)
    model.functions[0].node[0].op_type, model.functions[0].node[0].domain = "f2", "local"
    with pytest.raises(ModelError, match="calls itself through"):
        refuse_explosion(model)
