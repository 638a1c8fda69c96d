"""Images and their mirror images: twice the samples for a repair, of the kind that the network was most likely trained on.

Classifiers and detectors are trained with images turned left to right at random, so a mirrored sample is as good as another one. Where
that is not so (text, digits), it must not be asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.runtime.preprocess import InputSpec

CHANNELS = (1, 3, 4)


def width_axes(specs: Sequence[InputSpec]) -> dict[str, int]:
    """Input -> the axis along which its images are mirrored: the last of (N, C, H, W), the last but one of (N, H, W, C).

    Raises:
        UsageError: no input takes images, four axes one of which has 1, 3 or 4 channels.
    """
    axes = {}
    for spec in specs:
        if len(spec.shape) == 4 and spec.shape[1] in CHANNELS:
            axes[spec.name] = 3
        elif len(spec.shape) == 4 and spec.shape[3] in CHANNELS:
            axes[spec.name] = 2
    if not axes:
        told = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        raise UsageError(f"--mirror is for images, (N, C, H, W) or (N, H, W, C) with 1, 3 or 4 channels; the model takes {told}")
    return axes


def mirrored(batches: Iterable[dict[str, NDArray[Any]]], axes: Mapping[str, int], size: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Batches of up to ``size`` samples, each followed by its mirror image; inputs that are not in ``axes`` are repeated.

    The batches must hold half as many samples, or, where ``size`` is odd, as many: their mirror images make a batch of their own then.
    """
    for batch in batches:
        turned = {name: np.flip(value, axes[name]) if name in axes else value for name, value in batch.items()}
        if size % 2:
            yield batch
            yield {name: np.ascontiguousarray(value) for name, value in turned.items()}
        else:
            yield {name: np.concatenate([value, turned[name]]) for name, value in batch.items()}
