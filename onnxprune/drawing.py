"""The samples of a run: opened from what the caller gives, split, and batched as the model wants."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from onnxprune.augmenting import Variants, augmented, image_axes
from onnxprune.errors import CalibrationError
from onnxprune.feeding import Axes, axes_of, fixed_batch, input_specs
from onnxprune.graph.plain import held
from onnxprune.options import Options
from onnxprune.report import CalibrationReport
from onnxprune.runtime import calibration, images
from onnxprune.runtime.calibration import Samples, Split
from onnxprune.runtime.finding import tensors_of
from onnxprune.runtime.stream import Batch

Items = Callable[[], Iterable[Any]] | Iterator[Any]
MOST = 32
"""Samples in a batch at most, where nobody says; fewer"""
CACHED = 80_000_000
"""where a run would hold more bytes than this at once: large tensors are read from memory, small ones from the cache that they are in."""
KEPT = 1 << 30
"""Bytes of samples that are kept in memory at most, where several passes go over them."""
Calib = str | Path | Sequence[str | Path] | NDArray[Any] | Mapping[str, NDArray[Any]] | Items


@dataclass(frozen=True, eq=False)
class Taken:
    """The samples of a run, and how they are split and batched."""

    samples: Samples
    split: Split
    batch_size: int
    axes: Axes
    variants: Variants
    """What is made of each image for the repair: nothing without --mirror and --shift."""
    stamps: Mapping[Path, tuple[int, int]]
    """Time (ns) and size of every file when the samples were drawn."""

    def refuse_changes(self) -> None:
        """Raises CalibrationError when a file has another time or size than when the samples were drawn, or is gone.

        What was read before and after may then be of two kinds, which nothing else would tell.
        """
        for path, stamp in self.stamps.items():
            if _stamp(path) != stamp:
                raise CalibrationError(f"{path}: changed while in use: run again")

    memory: dict[bytes, dict[str, NDArray[Any]]] | None = None
    """Batches that were read, by their rows, where several passes go over them; None where they are read anew."""
    least: int = 1
    """The fewest samples that the model takes at once."""
    elements: int | None = None
    """The elements that a run of ``least`` samples holds at once (graph.plain.held); None where they are not known."""

    def batches(self, rows: NDArray[np.intp]) -> Iterator[Batch]:
        """The samples at ``rows``, batch by batch, as the model takes them."""
        return self.axes.laid_out(self._read(rows, self.batch_size))

    def _read(self, rows: NDArray[np.intp], size: int) -> Iterator[dict[str, NDArray[Any]]]:
        """The samples as they are stored, from memory where they are kept there; up to `KEPT` bytes are."""
        if self.memory is None:
            yield from map(self.samples.take, self._runs(rows, size))
            return
        for run in self._runs(rows, size):
            batch = self.memory.get(run.tobytes())
            if batch is None:
                batch = self.samples.take(run)
                if sum(value.nbytes for held in self.memory.values() for value in held.values()) < KEPT:
                    self.memory[run.tobytes()] = batch
            yield batch

    def _runs(self, rows: NDArray[np.intp], size: int) -> list[NDArray[np.intp]]:
        return calibration.runs(self.samples, rows, size, fixed=self.least > 1)

    def first(self) -> Batch:
        """As few samples as the model takes, as it takes them."""
        rows = self.split.repair if len(self.split.repair) else self.split.holdout
        return next(self.batches(rows[: self.least]))

    def count(self, rows: NDArray[np.intp]) -> int:
        """How many batches the samples at ``rows`` make."""
        return len(self._runs(rows, self.batch_size))

    def whole(self, rows: NDArray[np.intp]) -> Batch:
        """As many of the samples at ``rows`` as a batch may have."""
        run = calibration.runs(self.samples, rows, self.batch_size, fixed=True)[0]
        return next(self.axes.laid_out([self.samples.take(run)]))

    def trial(self) -> Batch:
        """One batch, held out where one is."""
        return next(self.batches(self.split.holdout if len(self.split.holdout) else self.split.repair))

    def order(self, rows: NDArray[np.intp]) -> NDArray[np.intp]:
        """The numbers of the samples at ``rows`` in the order in which their batches have them: those of one shape stand together."""
        return np.concatenate(self._runs(rows, self.batch_size))

    def repairing(self) -> Iterator[Batch]:
        """The batches of the repair, with what was asked for to be made of their images."""
        rows, variants = self.split.repair, self.variants
        if variants.count == 1:
            return self.batches(rows)
        moves = variants.moves(len(rows))
        each = (moves[np.searchsorted(rows, run)] for run in self._runs(rows, self._originals))
        given = zip(self._read(rows, self._originals), each, strict=True)
        return self.axes.laid_out(augmented(given, variants, self.batch_size))

    @property
    def largest(self) -> int:
        """How many samples the largest batch has, those made of others among them."""
        repair = self._runs(self.split.repair, self._originals)
        held = self._runs(self.split.holdout, self.batch_size)
        return max([self._together * max(map(len, repair), default=0), *map(len, held)])

    @property
    def repairs(self) -> int:
        """How many batches the repair has."""
        given = len(self._runs(self.split.repair, self._originals))
        return given * self.variants.count // self._together

    @property
    def _together(self) -> int:
        """How many images made of one stand in a batch."""
        return self.variants.together(self.batch_size)

    @property
    def _originals(self) -> int:
        """How many samples a batch of the repair takes, beside those made of them."""
        return self.batch_size // self._together

    @property
    def report(self) -> CalibrationReport:
        """The numbers for the report."""
        repair, holdout = len(self.split.repair), len(self.split.holdout)
        found, made = self.samples, self.variants
        return CalibrationReport(found.paths, found.count, repair, holdout, self.batch_size, made.mirror, made.shift)


def draw(calib: Calib, model: onnx.ModelProto, options: Options, kind: str, *, holdout: float) -> Taken:
    """The calibration samples behind paths or arrays, split and batched as the options and the model's batch axis say.

    ``kind`` is that of the device that they run on.

    Raises:
        CalibrationError: the samples are missing, do not fit the inputs, or are too few.
    """
    axes, specs = axes_of(model), input_specs(model)
    if isinstance(calib, (np.ndarray, Mapping)):
        samples = calibration.from_arrays(axes.gathered(calib), specs, options.preprocess)
    elif callable(calib) or isinstance(calib, Iterator):
        items = calib() if callable(calib) else calib
        if not isinstance(items, Iterable):
            raise CalibrationError(f"the calibration callable returned {type(items).__name__}, expected an iterable of arrays")
        samples = calibration.from_items(items, specs, options.preprocess, options.samples, axes.gathered)
    else:
        paths = [calib] if isinstance(calib, (str, Path)) else list(calib)
        kept = images.KEPT if options.memory is None else 0
        samples = calibration.open_samples(paths, specs, options.preprocess, axes.inputs, kept)
    fixed = fixed_batch(specs)
    split = calibration.split(
        samples.count, limit=options.samples, holdout=holdout, seed=options.seed, fixed_batch=fixed, kinds=samples.kinds
    )
    asked = "--mirror" if options.mirror else "--shift" if options.shift else None
    variants = Variants(image_axes(specs, asked) if asked else {}, options.mirror, options.shift, options.seed)
    stamps = {path: _stamp(path) for path in files_of(samples)}
    taken = Taken(samples, split, fixed or options.batch_size or MOST, axes, variants, stamps, least=fixed or 1)
    elements = held(model, {name: value.shape for name, value in taken.first().items()}) if kind == "cpu" else None
    most = min(MOST, max(1, CACHED // (4 * elements))) if elements else MOST
    return replace(taken, elements=elements, batch_size=fixed or options.batch_size or most)


def files_of(samples: Samples) -> list[Path]:
    """Every file behind the samples; a test data set is a folder, and its tensors count."""
    return [file for path in map(Path, samples.paths) for file in (tensors_of(path) if path.is_dir() else [path])]


def _stamp(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except OSError:
        return (0, -1)
    return (found.st_mtime_ns, found.st_size)
