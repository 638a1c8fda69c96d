"""What can be pruned in a model file."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from onnxprune.graph import layers
from onnxprune.graph import model as files
from onnxprune.graph.doubt import blamed
from onnxprune.graph.inlining import inlined
from onnxprune.opening import proof


def find_in(path: Path) -> layers.Found:
    """What can be pruned in a file."""
    given = files.load(path, mapped=0)
    with blamed(given.doubt, lambda: proof(given.model)):
        return layers.find(inlined(given.model))


def report_of(found: layers.Found) -> dict[str, Any]:
    """What was found in a model, as a plain structure for JSON."""
    return {
        "schema": 1,
        "layers": [
            {
                "name": layer.name,
                "op": layer.op,
                "weight": layer.weight,
                "shape": layer.shape,
                "weights": layer.size,
                "nodes": len(layer.uses),
            }
            for layer in found.layers
        ],
        "norms": [{"name": norm.name, "op": norm.op, "channels": norm.channels} for norm in found.norms],
        "skipped": [asdict(entry) for entry in found.skipped],
    }
