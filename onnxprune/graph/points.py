"""The places of repair of a model: where statistics are taken, and whose parameters follow."""

from __future__ import annotations

from dataclasses import dataclass

from onnxprune.graph.layers import Found, Layer, Use
from onnxprune.graph.norms import Norm


@dataclass(frozen=True)
class Point:
    """A place of repair. Statistics are taken at ``tensor`` along ``axis``; ``dense_tensor`` is where the dense model shows
    the same.

    ``kind`` is "batchnorm" (measured at its input), "norm" (at its output) or "layer" (at its output).
    """

    name: str
    kind: str
    tensor: str
    dense_tensor: str
    axis: int
    channels: int
    node: int
    layer: Layer | None = None
    use: Use | None = None
    norm: Norm | None = None

    @property
    def shared(self) -> bool:
        """True when the weight is read by several nodes, so that no gain can be written."""
        return self.kind == "layer" and self.layer is not None and len(self.layer.uses) > 1


def points(found: Found) -> list[Point]:
    """The places of repair in execution order: one for every use of a layer, and one for every free-standing normalisation."""
    places = []
    for layer in found.layers:
        for number, use in enumerate(layer.uses):
            if use.unrepaired:
                continue
            name = layer.name if number == 0 else f"{layer.name} (use {number + 1})"
            if use.norm is not None:
                places.append(_batchnorm(name, use.norm, layer, use))
            else:
                node = use.node if use.bias is None else use.bias.node
                places.append(Point(name, "layer", use.output, use.output, use.axis, use.channels, node, layer, use))
    for norm in found.norms:
        if norm.op == "BatchNormalization":
            places.append(_batchnorm(norm.name, norm))
        else:
            places.append(Point(norm.name, "norm", norm.output, norm.output, norm.axis, norm.channels, norm.node, norm=norm))
    return sorted(places, key=lambda point: point.node)


def _batchnorm(name: str, norm: Norm, layer: Layer | None = None, use: Use | None = None) -> Point:
    return Point(name, "batchnorm", norm.input, norm.output, 1, norm.channels, norm.node, layer, use, norm)
