"""The scale of an integer weight that stands behind its node: ConvInteger and MatMulInteger give integers, and floats come of them later.

    ConvInteger or MatMulInteger -> Cast -> Mul by (scale of the inputs * scale of the weight)

as ONNX Runtime's dynamic quantisation writes it: the former is computed at run time, the latter is a constant.
"""

from __future__ import annotations

from collections.abc import Iterable

import onnx

from onnxprune.graph.steps import INTEGERS, Reader, scaled_name
from onnxprune.graph.walk import CORE, Scope


def scales_behind(scopes: Iterable[Scope], constants: Reader) -> dict[str, str]:
    """The names under which Constants gives the floats of such weights, and the constants that are their scales, where they are found.

    A scale is one number, or one for every column of a MatMulInteger's right side.
    """
    found = {}
    for scope in scopes:
        nodes = [node for node in scope.nodes if node.op_type in ("ConvInteger", "MatMulInteger") and node.domain in CORE]
        if not nodes:
            continue
        makers = {name: node for node in scope.nodes for name in node.output if name}
        readers: dict[str, list[onnx.NodeProto]] = {}
        for node in scope.nodes:
            for name in node.input:
                readers.setdefault(name, []).append(node)
        for node in nodes:
            for name in _factors(node, makers, readers):
                view = constants.view(scope.key(name))
                if view is None:
                    continue
                for weight, _, _ in INTEGERS[node.op_type]:
                    columns = node.op_type == "MatMulInteger" and weight == 1 and len(view.shape) == 1
                    if columns or all(dim == 1 for dim in view.shape):
                        found[scope.prefix + scaled_name(node, weight)] = scope.key(name)
    return found


def _factors(node: onnx.NodeProto, makers: dict[str, onnx.NodeProto], readers: dict[str, list[onnx.NodeProto]]) -> list[str]:
    """What the scale behind a node is the product of; nothing where there is no such scale, or other nodes read the integers too."""
    name = node.output[0]
    for wanted in ("Cast", "Mul"):
        behind = readers.get(name, [])
        if len(behind) != 1 or behind[0].op_type != wanted:
            return []
        last, source, name = behind[0], name, behind[0].output[0]
    scale = makers.get(last.input[1] if last.input[0] == source else last.input[0])
    return list(scale.input) if scale is not None and scale.op_type == "Mul" else []
