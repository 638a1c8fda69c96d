"""Calibration samples as model inputs: opened by header, loaded and checked batch by batch.

Samples may differ in length along the axes that the model leaves free. Those of one shape run together; nothing is padded.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.runtime import finding, images, sources
from onnxprune.runtime.datasets import open_set
from onnxprune.runtime.lines import open_lines
from onnxprune.runtime.preprocess import InputSpec, Preprocess, Recipe, checked, prepared, recipe_of, recipes_of, working_types
from onnxprune.runtime.sources import Source, Stored
from onnxprune.runtime.splitting import Split, split

__all__ = [
    "InputSpec",
    "Preprocess",
    "Samples",
    "Split",
    "from_arrays",
    "from_items",
    "open_samples",
    "runs",
    "split",
]


@dataclass(frozen=True, eq=False)
class Samples:
    """Calibration samples on disk or in memory.

    ``count`` of them, ``notes`` for the user, ``paths`` of the files, ``shapes``: every shape that a sample has, by input name, and
    ``kinds``, intp (count,): which of them each sample has.
    """

    count: int
    notes: tuple[str, ...]
    paths: tuple[str, ...]
    shapes: tuple[Mapping[str, tuple[int, ...]], ...]
    kinds: NDArray[np.intp]
    _parts: tuple[tuple[Source, tuple[Recipe, ...]], ...] = field(repr=False)
    _ends: NDArray[np.intp] = field(repr=False)

    def take(self, indices: NDArray[np.intp]) -> dict[str, NDArray[Any]]:
        """Return the samples at ``indices``, in that order, as model inputs by name.

        Stacked on axis 0, C-contiguous, of the inputs' dtypes.

        Each file is visited once. Raises CalibrationError for unreadable files, wrong image sizes, NaN and infinity,
        naming the file; IndexError for an index outside 0 to count - 1; ValueError for samples of several shapes.
        """
        indices = np.asarray(indices, dtype=np.intp)
        if indices.size and not (indices.min() >= 0 and indices.max() < self.count):
            raise IndexError(f"sample indices must be in 0..{self.count - 1}, got {indices.min()}..{indices.max()}")
        kinds = np.unique(self.kinds[indices])
        if kinds.size > 1:
            raise ValueError(f"samples of {kinds.size} shapes do not stack; take those of one kind")
        shapes = self.shapes[kinds[0] if kinds.size else 0]
        out = {r.spec.name: np.empty((len(indices), *shapes[r.spec.name]), r.spec.dtype) for r in self._parts[0][1]}
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


def open_samples(
    paths: Sequence[str | Path],
    specs: Sequence[InputSpec],
    preprocess: Preprocess,
    axes: Mapping[str, int | None] | None = None,
    kept: int = images.KEPT,
) -> Samples:
    """Return the samples of all ``paths`` in order, reading headers only (and no more than one image's).

    Up to ``kept`` bytes of decoded images stay in memory once they are read.

    ``axes`` says on which axis the model has the batch of each input (0 otherwise), for test data sets, which are laid out as the
    model is; all other files have their samples on axis 0.

    Raises CalibrationError for whatever headers can tell: files, dtypes, shapes and options that do not fit the model's
    inputs.
    """
    ranks = checked(specs, preprocess)
    files, notes = finding.find(paths)
    arrays = [file for file in files if file.suffix.lower() in finding.ARRAYS]
    pictures = [file for file in files if file.suffix.lower() in images.SUFFIXES]
    parts: dict[Path, list[tuple[Source, tuple[Recipe, ...]]]] = {}
    shown = set(pictures)
    unscaled = [file for file in files if file not in shown]
    if unscaled and preprocess.resize is not None:
        raise CalibrationError(f"{unscaled[0]}: --resize is for images: drop --resize, or resize the stored arrays")
    for file, source in zip(arrays, sources.open_files(arrays, ranks), strict=True):
        parts[file] = [(source, recipes_of(source, specs, preprocess))]
    for file in unscaled:
        if file not in parts:
            lines = file.suffix.lower() in finding.LINES and not file.is_dir()
            opened = open_lines(file, ranks, working_types(specs, preprocess)) if lines else [open_set(file, ranks, axes or {})]
            parts[file] = [(source, recipes_of(source, specs, preprocess)) for source in opened]
    if arrays:
        notes += [
            f"model input {spec.name!r} has its batch on axis {spec.axis}; the array files were read with their samples on axis 0"
            for spec in specs
            if spec.axis
        ]
    if pictures:
        if len(specs) != 1:
            raise CalibrationError(f"{pictures[0]}: images serve a model with one input, this one has {', '.join(ranks)}: save an .npz")
        (spec,) = specs
        frame = images.plan(spec.name, spec.shape, preprocess.layout, preprocess.resize, pictures[0])
        stored = Stored(str(pictures[0]), np.dtype(np.uint8), (frame.height, frame.width, frame.channels))
        told = replace(preprocess, layout="nhwc")
        recipes = (recipe_of(spec, stored, told, "nhwc" if frame.channels_first else None),)
        read = images.remembering(frame, kept)
        for file in pictures:

            def rows(wanted: NDArray[np.intp], file: Path = file) -> dict[str, NDArray[Any]]:
                return {spec.name: read(file)[None][wanted]}

            parts[file] = [(Source(str(file), 1, {spec.name: stored}, (), rows), recipes)]
    return _samples([part for file in files for part in parts[file]], notes, tuple(map(str, files)))


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


def from_items(
    items: Iterable[Any],
    specs: Sequence[InputSpec],
    preprocess: Preprocess,
    limit: int,
    gathered: Callable[[dict[str, Any]], Any] = dict,
) -> Samples:
    """Return the samples of an iterable, taken until there are ``limit`` of them and copied.

    Each item is what from_arrays takes: an array of the input's rank is a batch, one rank less is one sample; objects that NumPy can
    convert, such as tensors of torch on the CPU, count as arrays. ``gathered`` brings the samples of an item
    to axis 0. Raises CalibrationError as open_samples does.
    """
    ranks = checked(specs, preprocess)
    if preprocess.resize is not None:
        raise CalibrationError("calibration items: --resize is for images: drop resize, or resize the arrays")
    parts, count = list[tuple[Source, tuple[Recipe, ...]]](), 0
    for number, item in enumerate(items):
        given = item if isinstance(item, Mapping) else {"array": item}
        arrays = {str(key): np.array(value) if hasattr(value, "__array__") else value for key, value in given.items()}
        if all(isinstance(value, np.ndarray) for value in arrays.values()):
            arrays = dict(gathered(arrays if isinstance(item, Mapping) or len(specs) > 1 else {specs[0].name: arrays["array"]}))
        source = sources.from_memory(arrays, ranks, f"item {number}: ")
        parts.append((source, recipes_of(source, specs, preprocess)))
        count += source.count
        if count >= limit:
            break
    if not parts:
        raise CalibrationError("the calibration iterator gave nothing: give an array, or a mapping of arrays by input name, an item")
    notes = [f"the first {count} samples of the iterator were taken, as --samples {limit} asks"] if count >= limit else []
    return _samples(parts, notes, ())


def runs(samples: Samples, indices: NDArray[np.intp], batch_size: int, *, fixed: bool = False) -> list[NDArray[np.intp]]:
    """Return the indices of every batch: up to ``batch_size`` samples of one shape at a time.

    The batches of one shape differ by one sample at most, and there are two or four times so many of them where that leaves them large
    enough, so that those that run at once end at once. ``fixed``: all have ``batch_size`` samples, and the last of each shape the
    rest. Shapes come in the order in which ``indices`` first has them.
    """
    kinds = samples.kinds[indices]
    alike = [indices[kinds == kind] for kind in dict.fromkeys(kinds.tolist())]
    if fixed:
        return [rows[start : start + batch_size] for rows in alike for start in range(0, len(rows), batch_size)]
    return [run for rows in alike for run in np.array_split(rows, _number(len(rows), batch_size))]


def _number(count: int, batch_size: int) -> int:
    """How many batches so many samples make."""
    least = -(-count // batch_size)
    for multiple, smaller in ((4, 2), (2, 4)):
        number = -(-least // multiple) * multiple
        if count >= number * max(4, batch_size / smaller):
            return number
    return least


def _samples(parts: list[tuple[Source, tuple[Recipe, ...]]], notes: list[str], paths: tuple[str, ...]) -> Samples:
    unused: dict[str, dict[str, None]] = {}
    placed: dict[str, dict[str, None]] = {}
    found: dict[tuple[tuple[str, tuple[int, ...]], ...], int] = {}
    kinds = []
    for source, recipes in parts:
        kinds.append(found.setdefault(tuple((recipe.spec.name, recipe.shape) for recipe in recipes), len(found)))
        for key in source.unused:
            unused.setdefault(key, {})[source.path] = None
        if source.by_position:
            placed.setdefault(source.by_position, {})[source.path] = None
    notes += [f"{_where(files)}: array {key!r} not used, no model input has its name" for key, files in unused.items()]
    notes += [f"{_where(files)}: arrays serve inputs by position: {what}" for what, files in placed.items()]
    if len(found) > 1:
        notes.append(f"samples of {len(found)} shapes: those of one shape run together, nothing is padded")
    counts = [source.count for source, _ in parts]
    ends = np.cumsum(counts, dtype=np.intp)
    of_each = np.repeat(np.array(kinds, np.intp), counts)
    return Samples(int(ends[-1]), tuple(notes), paths, tuple(map(dict, found)), of_each, tuple(parts), ends)


def _where(files: Mapping[str, None]) -> str:
    first, *others = files
    return f"{first} and {len(others)} more" if others else first
