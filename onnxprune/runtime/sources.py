"""Calibration files, opened by their headers: which array serves which model input, and how to read some rows.

An array of the input's rank is a batch along axis 0; one rank less is one sample. .npy files are mapped; of the .npz files, the one
used last stays decompressed. Nothing is read before its size is known from a header that is bounded itself.
"""

import io
import itertools
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError

HEADER_MAX = 2**14
"""Bytes in which an .npy header must lie; NumPy's own take up to 10,000."""
UNPACKED_MAX = 2**30
RATIO_MAX = 200
"""An array of an .npz that is over UNPACKED_MAX bytes and this many times its compressed size is taken for a decompression bomb."""

_Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Stored:
    """One array as it lies in a file: the shape of one sample, its dtype, and what errors call it."""

    label: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Source:
    """One file: its number of samples, what it stores for each input, and the arrays that no input takes.

    ``rows(indices)`` gives arrays as stored, samples on axis 0, keyed by input name; it raises CalibrationError on
    damaged data.
    """

    path: str
    count: int
    stored: Mapping[str, Stored]
    unused: tuple[str, ...]
    rows: Callable[[NDArray[np.intp]], _Arrays]
    by_position: str = ""
    """What was matched by position, for a note."""


def open_files(files: Sequence[Path], ranks: Mapping[str, int]) -> Iterator[Source]:
    """Yield a Source for each .npy or .npz file, reading headers only; ``ranks`` counts the batch axis, by input.

    Raises CalibrationError for damaged or pickled files, empty arrays, arrays missing for an input, and unequal numbers
    of samples.
    """
    load = lru_cache(maxsize=1)(_load_npz)
    for file in files:
        yield _open_npy(file, ranks) if file.suffix.lower() == ".npy" else _open_npz(file, ranks, load)


def from_memory(arrays: Mapping[str, NDArray[Any]], ranks: Mapping[str, int], where: str = "") -> Source:
    """Return the Source of arrays in memory (not copied), keyed by input name; a lone one serves a lone input."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            kind = "objects" if isinstance(array, np.ndarray) else type(array).__name__
            raise CalibrationError(f"{where}calibration array {name!r}: got {kind}, expected a numpy array: convert it")
    taken = match(f"{where}calibration arrays", list(arrays), ranks, {key: array.shape for key, array in arrays.items()})
    held = {name: arrays[key] for name, key in taken.items()}
    headers = {name: (f"{where}calibration array {taken[name]!r}", a.dtype, a.shape) for name, a in held.items()}
    count, stored = fitted(f"{where}calibration arrays", headers, ranks)
    unused = tuple(key for key in arrays if key not in taken.values())
    return Source("calibration arrays", count, stored, unused, partial(rows_of, lambda: held, stored, count), renamed(taken))


def _open_npy(file: Path, ranks: Mapping[str, int]) -> Source:
    if len(ranks) != 1:
        names = ", ".join(ranks)
        raise CalibrationError(f"{file}: a .npy serves one input, this model has {names}: save an .npz with these names")
    (name,) = ranks
    with reading(file), file.open("rb") as stream:
        dtype, shape = _header(stream, file.stat().st_size)
    count, stored = fitted(str(file), {name: (str(file), dtype, shape)}, ranks)

    def load() -> _Arrays:
        with reading(file):
            return {name: np.load(file, mmap_mode="r", allow_pickle=False)}

    return Source(str(file), count, stored, (), partial(rows_of, load, stored, count))


def _open_npz(file: Path, ranks: Mapping[str, int], load: Callable[[Path, tuple[str, ...]], _Arrays]) -> Source:
    with reading(file), zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
        shapes = {}
        for key in members if _by_position(list(members), list(ranks)) else ():
            with archive.open(members[key]) as stream:
                shapes[key] = _header(stream, members[key].file_size)[1]
        taken = match(str(file), list(members), ranks, shapes)
        headers = {}
        for name, key in taken.items():
            with archive.open(members[key]) as stream:
                headers[name] = (f"{file}: array {key!r}", *_header(stream, members[key].file_size))
            size, packed = members[key].file_size, members[key].compress_size
            if size > max(UNPACKED_MAX, RATIO_MAX * packed):
                raise ValueError(f"array {key!r} would unpack {packed} bytes to {size}, a decompression bomb, save it with np.savez")
    count, stored = fitted(str(file), headers, ranks)
    keys = tuple(dict.fromkeys(taken.values()))
    unused = tuple(key for key in members if key not in keys)

    def arrays() -> _Arrays:
        held = load(file, keys)
        return {name: held[key] for name, key in taken.items()}

    return Source(str(file), count, stored, unused, partial(rows_of, arrays, stored, count), renamed(taken))


def _load_npz(file: Path, keys: tuple[str, ...]) -> _Arrays:
    with reading(file), np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in keys}


def _header(stream: IO[bytes], size: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape from an .npy header; ValueError unless header and data come to ``size`` bytes."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    stream = io.BytesIO(stream.read(HEADER_MAX))
    version = npy.read_magic(stream)
    if version not in readers:
        raise ValueError(f".npy version {version[0]}.{version[1]} is not read, save a plain array")
    shape, _, dtype = readers[version](stream)
    if dtype.hasobject:
        raise ValueError("it holds pickled Python objects, which are never loaded, save a plain array")
    promised = stream.tell() + math.prod(shape) * dtype.itemsize
    if min(shape, default=0) < 0 or promised != size:
        raise ValueError(f"its header promises shape {shape}, {promised} bytes, it has {size}")
    return dtype, shape


def match(where: str, keys: Sequence[str], ranks: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return which array serves which input: the one of its name, or a lone array for a lone input.

    As many arrays as inputs, none with an input's name, go by position where they are called arr_0, arr_1, ... (as NumPy calls arrays
    without a name), or where their ranks leave no other choice; ``shapes`` tells the ranks.
    """
    inputs = list(ranks)
    if len(keys) == len(inputs) == 1:
        return {inputs[0]: keys[0]}
    if _by_position(keys, inputs):
        numbered = [f"arr_{number}" for number in range(len(inputs))]
        if set(keys) == set(numbered):
            return dict(zip(inputs, numbered, strict=True))
        if len(inputs) <= 6 and set(keys) <= set(shapes):
            orders = [
                order
                for order in itertools.permutations(keys)
                if all(len(shapes[key]) in (ranks[name], ranks[name] - 1) for name, key in zip(inputs, order, strict=True))
            ]
            if orders == [tuple(keys)]:
                return dict(zip(inputs, keys, strict=True))
    if any(name not in keys for name in inputs):
        have = f"arrays {', '.join(keys)}" if keys else "no arrays"
        raise CalibrationError(f"{where}: {have}; model inputs: {', '.join(inputs)}: name each array after its input")
    return {name: name for name in inputs}


def _by_position(keys: Sequence[str], inputs: Sequence[str]) -> bool:
    """Return whether arrays may go by position: as many as inputs, and none has an input's name."""
    return len(keys) == len(inputs) > 1 and not set(keys) & set(inputs)


def renamed(taken: Mapping[str, str]) -> str:
    """Return what was matched by position, for a note; empty where names or a lone input decided."""
    moved = [f"{key!r} -> {name!r}" for name, key in taken.items() if key != name]
    return ", ".join(moved) if len(taken) > 1 else ""


def fitted(
    where: str, headers: Mapping[str, tuple[str, np.dtype[Any], tuple[int, ...]]], ranks: Mapping[str, int]
) -> tuple[int, dict[str, Stored]]:
    """Return the number of samples and each input's Stored, from (label, dtype, shape) by input."""
    counts, stored = dict[str, int](), dict[str, Stored]()
    for name, (label, dtype, shape) in headers.items():
        rank = ranks[name]
        if len(shape) not in (rank, rank - 1):
            raise CalibrationError(
                f"{label}: has rank {len(shape)}, shape {shape}, model input {name!r} has rank {rank}: "
                f"store a batch (rank {rank}, samples on axis 0) or one sample (rank {rank - 1})"
            )
        if 0 in shape:
            raise CalibrationError(f"{label}: is empty, shape {shape}: give at least one sample")
        batch = len(shape) == rank
        counts[name] = shape[0] if batch else 1
        stored[name] = Stored(label, dtype, shape[1:] if batch else shape)
    if len(set(counts.values())) > 1:
        each = ", ".join(f"{name} {count}" for name, count in counts.items())
        raise CalibrationError(f"{where}: different numbers of samples ({each}): store the same number for every input")
    return next(iter(counts.values())), stored


def rows_of(load: Callable[[], _Arrays], stored: Mapping[str, Stored], count: int, rows: NDArray[np.intp]) -> _Arrays:
    """Return the given rows of the loaded arrays, copied; checks that they still are what the headers said."""
    out: _Arrays = {}
    for name, array in load().items():
        was = stored[name]
        if (array.dtype, array.shape) not in ((was.dtype, (count, *was.shape)), (was.dtype, was.shape)):
            raise CalibrationError(f"{was.label}: changed while in use: run again")
        out[name] = np.asarray((array if array.ndim > len(was.shape) else array[None])[rows])
    return out


@contextmanager
def reading(file: Path) -> Iterator[None]:
    """Turn whatever numpy and zipfile raise on a damaged file into one CalibrationError that names it."""
    try:
        yield
    except CalibrationError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise CalibrationError(f"{file}: cannot be read ({why}): replace the file") from error
