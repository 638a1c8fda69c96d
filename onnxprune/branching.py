"""Which branch of an If the samples take, and the models in which it stands in the main graph, so that its layers can be repaired."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import onnx

from onnxprune.graph import layers
from onnxprune.graph.branches import conditions, spliced
from onnxprune.graph.tensors import Constants
from onnxprune.masking import Masked
from onnxprune.runtime.device import Device
from onnxprune.runtime.session import as_array
from onnxprune.runtime.spilling import Memory
from onnxprune.runtime.stream import Batch, Stream


def straightened(
    dense: onnx.ModelProto,
    pruned: Masked,
    include: Sequence[str],
    which: Callable[[onnx.ModelProto, Mapping[str, str]], Mapping[str, bool]],
) -> tuple[onnx.ModelProto, Masked] | None:
    """Copies of the dense and of the masked model with the branches that all samples take in their main graphs; None without any.

    An If in such a branch is asked for in turn. ``which`` tells the branches, True for then, of the dense model with the conditions
    given by the name of an If. ``include`` is as in layers.find.
    """
    keep = {layer.weight: kept for layer, kept in zip(pruned.found.layers, pruned.keep, strict=True)}
    taken: dict[str, bool] = {}
    here, fewer = dense, pruned.fewer
    while asked := {name: condition for name, condition in conditions(here, fewer).items() if name not in taken}:
        found = which(here, asked)
        if not found:
            break
        taken.update(found)
        here = spliced(dense, taken, bare=True)
        fewer = [layer for layer in layers.find(here, include).layers if keep.get(layer.weight, layer.size) < layer.size]
    if not taken:
        return None
    copy = spliced(pruned.model, taken)
    seen = layers.find(copy, include)
    counts = tuple(keep.get(layer.weight, layer.size) for layer in seen.layers)
    return here, replace(pruned, model=copy, constants=Constants(copy), found=seen, keep=counts)


def always(
    model: onnx.ModelProto, conditions: Mapping[str, str], batches: Iterable[Batch], device: Device, memory: Memory
) -> dict[str, bool | None]:
    """What every condition, by the name of an If, is on all batches: None where it changes, or is no single truth value."""
    names = list(dict.fromkeys(conditions.values()))
    seen: dict[str, set[bool | None]] = {name: set() for name in names}
    for made in Stream(model, batches, names, device, memory).values(names):
        for name in names:
            values = as_array(made[name].value())
            seen[name].add(bool(values.reshape(-1)[0]) if values.size == 1 else None)
    return {name: next(iter(seen[condition])) if len(seen[condition]) == 1 else None for name, condition in conditions.items()}
