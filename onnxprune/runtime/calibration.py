"""Calibration samples as model inputs: opened by header, loaded and checked batch by batch, split into two sides."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.runtime import images, sources
from onnxprune.runtime.preprocess import InputSpec, Preprocess, Recipe, checked, prepared, recipe_of, recipes_of
from onnxprune.runtime.sources import Source, Stored

__all__ = ["InputSpec", "Preprocess", "Samples", "Split", "batches", "from_arrays", "open_samples", "split"]


@dataclass(frozen=True, eq=False)
class Samples:
    """Calibration samples on disk or in memory.

    ``count`` of them, ``notes`` for the user, ``paths`` of the files, ``shapes`` of one sample by input name.
    """

    count: int
    notes: tuple[str, ...]
    paths: tuple[str, ...]
    shapes: Mapping[str, tuple[int, ...]]
    _parts: tuple[tuple[Source, tuple[Recipe, ...]], ...] = field(repr=False)
    _ends: NDArray[np.intp] = field(repr=False)

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Return the samples at ``indices``, in that order, as model inputs by name.

        Stacked on axis 0, C-contiguous, of the inputs' dtypes.

        Each file is visited once. Raises CalibrationError for unreadable files, wrong image sizes, NaN and infinity,
        naming the file; IndexError for an index outside 0 to count - 1.
        """
        indices = np.asarray(indices, dtype=np.intp)
        if indices.size and not (indices.min() >= 0 and indices.max() < self.count):
            raise IndexError(f"sample indices must be in 0..{self.count - 1}, got {indices.min()}..{indices.max()}")
        recipes = self._parts[0][1]
        out = {r.spec.name: np.empty((len(indices), *r.shape), r.spec.dtype) for r in recipes}
        owner = np.searchsorted(self._ends, indices, side="right")
        order = np.argsort(owner, kind="stable")
        for at in np.split(order, np.flatnonzero(np.diff(owner[order])) + 1):
            if at.size:
                source, recipes = self._parts[owner[at[0]]]
                rows = indices[at] - (self._ends[owner[at[0]]] - source.count)
                arrays = source.rows(rows)
                for recipe in recipes:
                    out[recipe.spec.name][at] = prepared(recipe, arrays[recipe.spec.name], rows)
        return out


@dataclass(frozen=True)
class Split:
    """Sample indices, ascending, of the repair and the holdout side, and notes for the user."""

    repair: NDArray[np.intp]
    holdout: NDArray[np.intp]
    notes: tuple[str, ...]


def open_samples(paths: Sequence[str | Path], specs: Sequence[InputSpec], preprocess: Preprocess) -> Samples:
    """Return the samples of all ``paths`` in order, reading headers only (and no more than one image's).

    Raises CalibrationError for whatever headers can tell: files, dtypes, shapes and options that do not fit the model's
    inputs.
    """
    ranks = checked(specs, preprocess)
    files, notes = sources.find(paths)
    arrays = [file for file in files if file.suffix.lower() in sources.ARRAYS]
    pictures = [file for file in files if file.suffix.lower() in images.SUFFIXES]
    parts: dict[Path, tuple[Source, tuple[Recipe, ...]]] = {}
    if arrays and preprocess.resize is not None:
        raise CalibrationError(f"{arrays[0]}: --resize is for images: drop --resize, or resize the stored arrays")
    for file, source in zip(arrays, sources.open_files(arrays, ranks), strict=True):
        parts[file] = (source, recipes_of(source, specs, preprocess))
    if pictures:
        if len(specs) != 1:
            raise CalibrationError(f"{pictures[0]}: images serve a model with one input, this one has {', '.join(ranks)}: save an .npz")
        (spec,) = specs
        frame = images.plan(spec.name, spec.shape, preprocess.layout, preprocess.resize, pictures[0])
        stored = Stored(str(pictures[0]), np.dtype(np.uint8), (frame.height, frame.width, frame.channels))
        told = replace(preprocess, layout="nhwc")
        recipes = (recipe_of(spec, stored, told, "nhwc" if frame.channels_first else None),)
        for file in pictures:

            def rows(wanted: NDArray[np.intp], file: Path = file) -> dict[str, NDArray[Any]]:
                return {spec.name: images.read(file, frame)[None][wanted]}

            parts[file] = (Source(str(file), 1, {spec.name: stored}, (), rows), recipes)
    return _samples([parts[file] for file in files], notes, tuple(map(str, files)))


def from_arrays(arrays: NDArray[Any] | Mapping[str, NDArray[Any]], specs: Sequence[InputSpec], preprocess: Preprocess) -> Samples:
    """Return the samples of arrays in memory, keyed by input name; one array serves a one-input model.

    They are not copied, so leave them be.

    Raises CalibrationError as open_samples does.
    """
    ranks = checked(specs, preprocess)
    if preprocess.resize is not None:
        raise CalibrationError("calibration arrays: --resize is for images: drop resize, or resize the arrays")
    source = sources.from_memory(arrays if isinstance(arrays, Mapping) else {"array": arrays}, ranks)
    return _samples([(source, recipes_of(source, specs, preprocess))], [], ())


def split(count: int, *, limit: int, holdout: float, seed: int, fixed_batch: int | None) -> Split:
    """Return ``n = min(limit, count)`` sample indices drawn by ``seed``, ``round(holdout * n)`` of them held out.

    intp indices, disjoint. With a fixed batch both sides are cut to multiples of it. Raises CalibrationError where a
    side asked for would be empty, and for a limit below 1 or a holdout outside 0 <= holdout < 1.
    """
    if limit < 1:
        raise CalibrationError(f"--samples {limit}: expected 1 or more: pass the number of samples to use")
    if not 0 <= holdout < 1:
        raise CalibrationError(f"--holdout {holdout:g}: expected a share, 0 <= share < 1: pass for example --holdout 0.1")
    batch = fixed_batch or 1
    n = min(limit, count)
    drawn = np.random.default_rng(seed).permutation(count)[:n].astype(np.intp)
    held, rest = drawn[: round(holdout * n)], drawn[round(holdout * n) :]
    held, rest = held[: held.size - held.size % batch], rest[: rest.size - rest.size % batch]
    if rest.size == 0 or (holdout > 0 and held.size == 0):
        # round(share * n) >= batch above n = (batch - 1/2) / share; a little more, as 1 - holdout is rounded
        least = max((batch - 0.5) / share for share in (holdout, 1 - holdout) if share > 0) * (1 + 1e-9)
        needed = math.floor(min(least, 1e15)) + 1
        side = "the repair side" if rest.size == 0 else f"the holdout (share {holdout:g})"
        steps = (("more samples", count < needed), (f"--samples {needed}", limit < needed))
        more = " and ".join(step for step, short in steps if short)
        fixed = f" in batches of {batch}" if batch > 1 else ""
        other = " or pass --holdout 0" if holdout > 0 else ""
        raise CalibrationError(
            f"{n} of {count} calibration samples{fixed} leave nothing for {side}, {needed} are needed: give {more}{other}"
        )
    dropped = n - held.size - rest.size
    note = f"{dropped} of {n} samples dropped: the model takes batches of {batch}"
    return Split(np.sort(rest), np.sort(held), (note,) if dropped else ())


def batches(samples: Samples, indices: NDArray[np.intp], batch_size: int) -> Iterator[dict[str, NDArray[Any]]]:
    """Yield the samples at ``indices`` as model inputs, ``batch_size`` at a time; the last batch may be shorter."""
    for start in range(0, len(indices), batch_size):
        yield samples.take(indices[start : start + batch_size])


def _samples(parts: list[tuple[Source, tuple[Recipe, ...]]], notes: list[str], paths: tuple[str, ...]) -> Samples:
    first = {recipe.spec.name: recipe for recipe in parts[0][1]}
    unused: dict[str, list[str]] = {}
    for source, recipes in parts:
        for recipe in recipes:
            other = first[recipe.spec.name]
            if recipe.shape != other.shape:
                raise CalibrationError(
                    f"{recipe.stored.label}: samples of shape {recipe.shape}, {other.stored.label}: {other.shape}, "
                    f"for model input {recipe.spec.name!r}: bring all samples to one shape"
                )
        for key in source.unused:
            unused.setdefault(key, []).append(source.path)
    for key, where in unused.items():
        more = f" and {len(where) - 1} more" if len(where) > 1 else ""
        notes.append(f"{where[0]}{more}: array {key!r} not used, no model input has its name")
    ends = np.cumsum([source.count for source, _ in parts], dtype=np.intp)
    return Samples(int(ends[-1]), tuple(notes), paths, {name: r.shape for name, r in first.items()}, tuple(parts), ends)
