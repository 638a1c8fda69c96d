"""Rows as stored become rows of the model input: what the user tells, and what is checked.

``Preprocess`` serves the input of a one-input model; in a model with several inputs it serves the floating-point inputs
of rank 3 or more, the others take their arrays as they are. Mean and std count in the units of the stored data, one
number or one a channel: ``x -> (x - mean) / std``, in float32 (float64 for float64 inputs) and rounded to the input's
dtype at the end. Channels are the last axis of data stored as "nhwc", else axis 1 of the batch. With a ``layout`` told,
arrays are transposed where the model's shape takes the other arrangement; where it takes both, channels come first, as
is ONNX's way.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.runtime.sources import Source, Stored

_MOVEAXIS = {"nhwc": (-1, 1), "nchw": (1, -1)}  # for rows stored so: how they become the other arrangement


_EXAMPLE = "ImageNet on 0..255: --mean 123.675,116.28,103.53 --std 58.395,57.12,57.375; only convert: --mean 0 --std 1"


@dataclass(frozen=True)
class InputSpec:
    """One model input; axis 0 is the batch, None is a free dimension. ``axis`` is where the model itself has the batch."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | None, ...]
    axis: int = 0


@dataclass(frozen=True)
class Preprocess:
    """What the user tells about the stored samples, None: nothing.

    ``resize`` is for images, ``layout`` for inputs of rank 4 and more.
    """

    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    layout: str | None = None
    resize: int | None = None


@dataclass(frozen=True)
class Recipe:
    """How the stored rows of one array become those of one input; ``shape`` is one sample of the input."""

    spec: InputSpec
    stored: Stored
    shape: tuple[int, ...]
    move: str | None
    mean: NDArray[Any] | None
    std: NDArray[Any] | None


def checked(specs: Sequence[InputSpec], told: Preprocess) -> dict[str, int]:
    """Return each input's rank; CalibrationError for inputs without a batch axis, options out of range or of no use."""
    if not specs:
        raise CalibrationError("the model has no inputs: there is nothing to calibrate")
    for spec in specs:
        if not spec.shape:
            raise CalibrationError(f"model input {spec.name!r} is a scalar, without a batch axis: make it a constant of the model")
        if spec.dtype.hasobject:
            raise CalibrationError(f"model input {spec.name!r} takes strings, which are not fed: cut the model behind its tokenizer")
    for flag, values in (("--mean", told.mean), ("--std", told.std)):
        if values is not None and (not values or not all(map(math.isfinite, values))):
            raise CalibrationError(f"{flag} {_commas(values)}: expected finite numbers: pass one, or one a channel")
    if told.std is not None and min(told.std) <= 0:
        raise CalibrationError(f"--std {_commas(told.std)}: expected numbers above 0: pass --std 1 to only subtract the mean")
    if told.layout not in (None, "nhwc", "nchw"):
        raise CalibrationError(f"--layout {told.layout}: expected the order of the stored axes: pass nhwc or nchw")
    if told.resize is not None and told.resize < 1:
        raise CalibrationError(f"--resize {told.resize}: expected the short side in pixels: pass --resize 1 or more")
    inputs = ", ".join(f"{spec.name} {spec.dtype} {_shown(spec.shape)}" for spec in specs)
    served = [_for_input(spec, specs, told) for spec in specs]
    if (told.mean or told.std) and not any(one.mean or one.std for one in served):
        raise CalibrationError(f"--mean and --std serve no input of this model ({inputs}), only floating-point ones: drop them")
    if told.layout and not any(one.layout for one in served):
        raise CalibrationError(f"--layout serves no input of this model ({inputs}), only those of rank 4 and more: drop it")
    return {spec.name: len(spec.shape) for spec in specs}


def _for_input(spec: InputSpec, specs: Sequence[InputSpec], told: Preprocess) -> Preprocess:
    """Return the part of what was told that serves this input."""
    floats = spec.dtype.kind == "f"
    if len(specs) > 1 and not (floats and len(spec.shape) >= 3):
        return Preprocess()
    mean, std = (told.mean, told.std) if floats else (None, None)
    return Preprocess(mean, std, told.layout if len(spec.shape) >= 4 else None, told.resize)


def working_types(specs: Sequence[InputSpec], told: Preprocess) -> dict[str, np.dtype[Any]]:
    """Return, by input, the dtype in which numbers without one (those of JSON) are stored: float64 where --mean or --std serve."""
    served = {spec.name: _for_input(spec, specs, told) for spec in specs}
    return {spec.name: np.dtype(np.float64) if served[spec.name].mean or served[spec.name].std else spec.dtype for spec in specs}


def recipes_of(source: Source, specs: Sequence[InputSpec], told: Preprocess) -> tuple[Recipe, ...]:
    out = []
    for spec in specs:
        stored, mine = source.stored[spec.name], _for_input(spec, specs, told)
        out.append(recipe_of(spec, stored, mine, _arrangement(spec, stored, mine.layout)))
    return tuple(out)


def recipe_of(spec: InputSpec, stored: Stored, told: Preprocess, move: str | None) -> Recipe:
    """Return the recipe that moves axes as ``move`` says; CalibrationError for dtypes or channels that do not fit."""
    shape = _moved(stored.shape, move)
    if told.mean is None and told.std is None:
        if stored.dtype.newbyteorder("=") != spec.dtype:
            helps = "convert the stored array"
            if spec.dtype.kind == "f" and stored.dtype.kind in "buif":
                helps = f"pass --mean and --std in stored units ({_EXAMPLE})"
            raise CalibrationError(f"{stored.label}: got {stored.dtype}, model input {spec.name!r} takes {spec.dtype}: {helps}")
        return Recipe(spec, stored, shape, move, None, None)
    if stored.dtype.kind not in "buif":
        raise CalibrationError(f"{stored.label}: got {stored.dtype}, --mean and --std need numbers: convert the stored array")
    rank = len(spec.shape)
    axis = 0 if rank == 1 else rank - 1 if told.layout == "nhwc" else 1
    work = np.float64 if spec.dtype == np.float64 else np.float32
    pair = []
    for flag, values in (("--mean", told.mean or (0.0,)), ("--std", told.std or (1.0,))):
        channels = stored.shape[axis - 1] if axis else 1
        if len(values) not in (1, channels):
            other = " or tell where channels lie with --layout" if rank >= 4 and told.layout is None else ""
            raise CalibrationError(
                f"{stored.label}: {flag} has {len(values)} values, samples of shape {stored.shape} have {channels} "
                f"channels: pass {flag} with 1 or {channels} values{other}"
            )
        pair.append(np.array(values, work).reshape(-1, *[1] * (rank - 1 - axis)))
    return Recipe(spec, stored, shape, move, pair[0], pair[1])


def _arrangement(spec: InputSpec, stored: Stored, layout: str | None) -> str | None:
    """Return None where the stored axes go in as they are, else the stored layout to turn into the other one."""

    def fits(move: str | None) -> bool:
        return all(want in (None, got) for want, got in zip(spec.shape[1:], _moved(stored.shape, move), strict=True))

    if layout is not None and fits(layout) and not (fits(None) and layout == "nchw"):
        return layout
    if fits(None):
        return None
    helps = "store samples of that shape"
    if len(spec.shape) >= 4:
        helps = next((f"pass --layout {key}" for key in _MOVEAXIS if key != layout and fits(key)), helps)
    batch = f" (its batch is on axis {spec.axis}; files have their samples on axis 0, whatever the model)" if spec.axis else ""
    raise CalibrationError(
        f"{stored.label}: samples have shape {stored.shape}, model input {spec.name!r} takes {_shown(spec.shape[1:])}{batch}: {helps}"
    )


def prepared(recipe: Recipe, rows: NDArray[Any], numbers: NDArray[np.intp]) -> NDArray[Any]:
    """Return stored rows as rows of the model input; ``numbers`` are the rows' numbers in their file, for errors."""
    _finite(recipe, rows, numbers, "holds NaN or infinity: repair or remove it")
    if recipe.mean is not None and recipe.std is not None:
        with np.errstate(over="ignore"):
            rows = rows.astype(recipe.mean.dtype)
            rows -= recipe.mean
            rows /= recipe.std
            rows = rows.astype(recipe.spec.dtype, copy=False)
        _finite(recipe, rows, numbers, f"exceeds {recipe.spec.dtype} after preprocessing: pass other --mean and --std")
    return rows if recipe.move is None else np.moveaxis(rows, *_MOVEAXIS[recipe.move])


def _finite(recipe: Recipe, rows: NDArray[Any], numbers: NDArray[np.intp], otherwise: str) -> None:
    if rows.dtype.kind == "f":
        good = np.isfinite(rows).all(axis=tuple(range(1, rows.ndim)))
        if not good.all():
            raise CalibrationError(f"{recipe.stored.label}: sample {numbers[np.argmin(good)]} {otherwise}")


def _moved(sample: tuple[int, ...], move: str | None) -> tuple[int, ...]:
    """Return the shape of one sample after its axes are moved from the layout ``move`` to the other one."""
    return (sample[-1], *sample[:-1]) if move == "nhwc" else (*sample[1:], sample[0]) if move == "nchw" else sample


def _shown(shape: Sequence[int | None]) -> str:
    return f"({', '.join('?' if d is None else str(d) for d in shape)})"


def _commas(values: Sequence[float]) -> str:
    return ",".join(f"{value:g}" for value in values)
