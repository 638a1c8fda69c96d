"""Images and what may stand for others of them: mirror images and shifted ones, two or four times the samples for a repair.

Classifiers and detectors are trained with images turned left to right and moved at random, so such a sample is as good as another one.
Where that is not so (mirrored text and digits), it must not be asked for. What a shift uncovers at an edge is filled with what lies there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import UsageError
from onnxprune.runtime.preprocess import InputSpec
from onnxprune.runtime.stream import Batch

CHANNELS = (1, 3, 4)
Moves = NDArray[np.int64]
"""How far down and to the right each sample goes, in pixels, int64 (N, 2)."""


@dataclass(frozen=True, eq=False)
class Variants:
    """Which images are made of each: itself; ``mirror``: its mirror image; ``shift``: the same again, each shifted.

    axes: input -> the axes of its height and width; shift: pixels at most, 0 for none; seed draws them.
    """

    axes: Mapping[str, tuple[int, int]]
    mirror: bool
    shift: int
    seed: int

    @property
    def count(self) -> int:
        """How many images are made of one, itself among them."""
        return (1 + self.mirror) * (1 + bool(self.shift))

    def together(self, size: int) -> int:
        """How many of them stand in one batch of up to ``size``, the others in batches of their own."""
        return math.gcd(size, self.count)

    def moves(self, rows: int) -> NDArray[np.int64]:
        """How far each of so many samples goes in its shifted images, int64 (rows, images, 2)."""
        return np.random.default_rng([self.seed, self.shift]).integers(-self.shift, self.shift + 1, (rows, 1 + self.mirror, 2))

    def of(self, batch: Batch, moves: NDArray[np.int64]) -> Iterator[Batch]:
        """The batch and each variant of it; ``moves`` are those of its samples. Inputs that are no images stay as they are.

        Raises:
            UsageError: a shift would leave nothing of an image.
        """
        plain = [batch, self._each(batch, lambda value, axes: np.flip(value, axes[1]))] if self.mirror else [batch]
        yield from plain
        if self.shift:
            for number, images in enumerate(plain):
                yield self._each(images, partial(shifted, moves[:, number]))

    def _each(self, batch: Batch, change: Callable[[NDArray[Any], tuple[int, int]], NDArray[Any]]) -> Batch:
        made = {}
        for name, value in batch.items():
            axes = self.axes.get(name)
            if axes is not None and self.shift >= min(value.shape[axis] for axis in axes):
                height, width = (value.shape[axis] for axis in axes)
                raise UsageError(f"--shift {self.shift} leaves nothing of images of {height} x {width} in {name}: expected fewer pixels")
            made[name] = value if axes is None else change(value, axes)
        return made


def image_axes(specs: Sequence[InputSpec], flag: str) -> dict[str, tuple[int, int]]:
    """Input -> the axes of its images' height and width: the last two of (N, C, H, W), the middle two of (N, H, W, C).

    Raises:
        UsageError: no input takes images, four axes one of which has 1, 3 or 4 channels; ``flag`` asked for them.
    """
    axes = {}
    for spec in specs:
        if len(spec.shape) == 4 and spec.shape[1] in CHANNELS:
            axes[spec.name] = (2, 3)
        elif len(spec.shape) == 4 and spec.shape[3] in CHANNELS:
            axes[spec.name] = (1, 2)
    if not axes:
        told = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in specs)
        raise UsageError(f"{flag} is for images, (N, C, H, W) or (N, H, W, C) with 1, 3 or 4 channels; the model takes {told}")
    return axes


def shifted(moves: Moves, images: NDArray[Any], axes: tuple[int, int]) -> NDArray[Any]:
    """Each image moved down and to the right by its moves (N, 2); its first and last rows and columns fill what that uncovers."""
    made = np.empty_like(images)
    for image, move, out in zip(images, moves, made, strict=True):
        for axis, by in zip(axes, move, strict=True):
            length = image.shape[axis - 1]
            image = np.take(image, np.clip(np.arange(length) - by, 0, length - 1), axis - 1)
        out[:] = image
    return made


def augmented(batches: Iterable[tuple[Batch, NDArray[np.int64]]], variants: Variants, size: int) -> Iterator[Batch]:
    """Batches of up to ``size`` samples from batches of originals and their moves, each followed by its variants.

    A batch of originals has ``size`` over ``variants.together(size)`` samples.
    """
    together = variants.together(size)
    for batch, moves in batches:
        made = list(variants.of(batch, moves))
        for at in range(0, len(made), together):
            some = made[at : at + together]
            yield {name: np.concatenate([one[name] for one in some]) for name in batch} if together > 1 else _solid(some[0])


def _solid(batch: Batch) -> Batch:
    return {name: np.ascontiguousarray(value) for name, value in batch.items()}
