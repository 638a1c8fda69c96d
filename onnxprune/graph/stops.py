"""Where to cut a model whose large tensors were left in files, so that no stage needs many of them at a time."""

from __future__ import annotations

import onnx

from onnxprune.graph.complete import nbytes
from onnxprune.graph.mapped import is_mapped
from onnxprune.graph.planning import plan

STAGE = 1 << 27
"""Bytes of such tensors that a stage reads at most, if it has more than one node that reads any."""


def stops(model: onnx.ModelProto) -> list[int]:
    """The numbers of the nodes before which to cut, ascending; what nodes of constants hand on counts where it is used."""
    planned = plan(model)
    sizes = {tensor.name: nbytes(tensor) for tensor in model.graph.initializer if is_mapped(tensor)}
    found, held = [], 0
    for number, node in enumerate(model.graph.node):
        size = sum(sizes.get(name, 0) for name in planned.reads[number])
        if number in planned.constant:
            sizes.update(dict.fromkeys(node.output, size))
            continue
        if held and held + size > STAGE:
            found.append(number)
            held = 0
        held += size
    return found
