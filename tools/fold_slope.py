"""How the norms of channels before and after folding BatchNorm go together, for models with BatchNorm.

    python tools/fold_slope.py MODEL...

Per layer: the slope of log |w_c| over log |w_c * gamma_c / sigma_c|, c the output channels; printed is its mean over the layers. It is
the reason for the exponent in onnxprune.numerics.masks.balance.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from onnxprune.graph import affine, layers
from onnxprune.graph.model import load
from onnxprune.graph.tensors import Constants


def slopes(path: Path) -> list[float]:
    """One slope for each layer with a BatchNormalization behind it."""
    model = load(path).model
    constants = Constants(model)
    found = []
    for layer in layers.find(model).layers:
        norm = layer.uses[0].norm
        if norm is None:
            continue
        weight = constants.read(layer.seen).astype(np.float64)
        gain, _ = affine.normalisation(constants, model.graph.node[norm.node], norm)
        explicit = np.log(np.linalg.norm(weight.reshape(len(weight), -1), axis=1) + 1e-9)
        folded = explicit + np.log(np.abs(gain) + 1e-9)
        alive = folded > folded.mean() - 5  # channels that training switched off say nothing
        found.append(float(np.polyfit(folded[alive], explicit[alive], 1)[0]))
    return found


def main() -> None:
    for name in sys.argv[1:]:
        found = slopes(Path(name))
        print(f"{np.mean(found):6.3f} mean slope over {len(found)} layers  {name}")


if __name__ == "__main__":
    main()
