"""Calibration files, opened by their headers: which array serves which model input, and how to read some rows.

A folder counts for its .npy and .npz files (not those in sub-folders), or for its images (also those in sub-folders:
class folders are usual). Hidden files are skipped; other files are counted in a note. An array of the input's rank is a
batch along axis 0; one rank less is one sample. .npy files are mapped; of the .npz files, the one used last stays
decompressed.
"""

import math
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import IO, Any, NoReturn

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.runtime import images

ARRAYS = (".npy", ".npz")
ACCEPTED = f".npy, .npz, an image ({' '.join(images.SUFFIXES)}) or a folder of one of these"

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


def find(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Return the files in reading order (a folder's by name) and notes on what was left aside; nothing is opened.

    Raises CalibrationError for a path that is missing or of no use, a folder with arrays and images, and a file that
    comes up twice.
    """
    if not paths:
        raise CalibrationError(f"no calibration samples: pass --calib PATH ({ACCEPTED})")
    files, notes = list[Path](), list[str]()
    for path in map(Path, paths):
        if path.is_dir():
            inside, others = _folder(path)
            files += inside
            if others:
                shown = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
                notes.append(f"{path}: {len(others)} other file{'s' * (len(others) > 1)} ignored ({shown})")
        elif not path.exists():
            raise CalibrationError(f"{path}: no such file or folder: --calib takes {ACCEPTED}")
        elif path.suffix.lower() not in ARRAYS + images.SUFFIXES:
            raise CalibrationError(f"{path}: unknown suffix {path.suffix!r}: --calib takes {ACCEPTED}")
        else:
            files.append(path)
    seen: set[str] = set()
    for file in files:
        place = os.path.abspath(file)
        if place in seen:  # the same sample could be repaired on and held out
            raise CalibrationError(f"{file}: given twice: pass each file to --calib once")
        seen.add(place)
    return files, notes


def open_files(files: Sequence[Path], ranks: Mapping[str, int]) -> Iterator[Source]:
    """Yield a Source for each .npy or .npz file, reading headers only; ``ranks`` counts the batch axis, by input.

    Raises CalibrationError for damaged or pickled files, empty arrays, arrays missing for an input, and unequal numbers
    of samples.
    """
    load = lru_cache(maxsize=1)(_load_npz)
    for file in files:
        yield _open_npy(file, ranks) if file.suffix.lower() == ".npy" else _open_npz(file, ranks, load)


def from_memory(arrays: Mapping[str, NDArray[Any]], ranks: Mapping[str, int]) -> Source:
    """Return the Source of arrays in memory (not copied), keyed by input name; a lone one serves a lone input."""
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray) or array.dtype.hasobject:
            kind = "objects" if isinstance(array, np.ndarray) else type(array).__name__
            raise CalibrationError(f"calibration array {name!r}: got {kind}, expected a numpy array: convert it")
    taken = _match("calibration arrays", list(arrays), list(ranks))
    held = {name: arrays[key] for name, key in taken.items()}
    headers = {name: (f"calibration array {taken[name]!r}", a.dtype, a.shape) for name, a in held.items()}
    count, stored = _samples("calibration arrays", headers, ranks)
    unused = tuple(key for key in arrays if key not in taken.values())
    return Source("calibration arrays", count, stored, unused, partial(_rows, lambda: held, stored, count))


def _folder(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the folder's usable files, sorted, and the names of the others."""
    files, linked = list[Path](), list[str]()
    for root, below, names in os.walk(folder, onerror=_no_entry):  # does not follow links, so it cannot loop
        below[:] = [name for name in below if not name.startswith(".")]
        linked += [f"link {name}" for name in below if os.path.islink(os.path.join(root, name))]
        files += [Path(root, name) for name in names if not name.startswith(".")]
    files.sort(key=lambda file: file.relative_to(folder).as_posix())
    arrays = [file for file in files if file.suffix.lower() in ARRAYS and file.parent == folder]
    pictures = [file for file in files if file.suffix.lower() in images.SUFFIXES]
    if arrays and pictures:
        both = f"arrays ({arrays[0].name}) and images ({pictures[0].name})"
        raise CalibrationError(f"{folder}: holds {both}: keep one kind")
    if not arrays and not pictures:
        deeper = any(file.suffix.lower() in ARRAYS for file in files)
        hint = "pass the sub-folder, arrays are read from the folder itself" if deeper else f"--calib takes {ACCEPTED}"
        raise CalibrationError(f"{folder}: nothing usable among its {len(files)} files: {hint}")
    used = set(arrays or pictures)
    return arrays or pictures, linked + [file.relative_to(folder).as_posix() for file in files if file not in used]


def _no_entry(error: OSError) -> NoReturn:
    raise CalibrationError(f"{error.filename}: folder cannot be read ({error.strerror}): check its permissions")


def _open_npy(file: Path, ranks: Mapping[str, int]) -> Source:
    if len(ranks) != 1:
        names = ", ".join(ranks)
        raise CalibrationError(f"{file}: a .npy serves one input, this model has {names}: save an .npz with these names")
    (name,) = ranks
    with _reading(file), file.open("rb") as stream:
        dtype, shape = _header(stream, file.stat().st_size)
    count, stored = _samples(str(file), {name: (str(file), dtype, shape)}, ranks)

    def load() -> _Arrays:
        with _reading(file):
            return {name: np.load(file, mmap_mode="r", allow_pickle=False)}

    return Source(str(file), count, stored, (), partial(_rows, load, stored, count))


def _open_npz(file: Path, ranks: Mapping[str, int], load: Callable[[Path, tuple[str, ...]], _Arrays]) -> Source:
    with _reading(file), zipfile.ZipFile(file) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename.endswith(".npy")}
        taken = _match(str(file), list(members), list(ranks))
        headers = {}
        for name, key in taken.items():
            with archive.open(members[key]) as stream:
                headers[name] = (f"{file}: array {key!r}", *_header(stream, members[key].file_size))
    count, stored = _samples(str(file), headers, ranks)
    keys = tuple(dict.fromkeys(taken.values()))
    unused = tuple(key for key in members if key not in keys)

    def arrays() -> _Arrays:
        held = load(file, keys)
        return {name: held[key] for name, key in taken.items()}

    return Source(str(file), count, stored, unused, partial(_rows, arrays, stored, count))


def _load_npz(file: Path, keys: tuple[str, ...]) -> _Arrays:
    with _reading(file), np.load(file, allow_pickle=False) as archive:
        return {key: archive[key] for key in keys}


def _header(stream: IO[bytes], size: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Return dtype and shape from an .npy header; ValueError unless header and data come to ``size`` bytes."""
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
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


def _match(where: str, keys: list[str], inputs: list[str]) -> dict[str, str]:
    """Return which array serves which input: the one of its name, or a lone array for a lone input."""
    if len(keys) == len(inputs) == 1:
        return {inputs[0]: keys[0]}
    if any(name not in keys for name in inputs):
        have = f"arrays {', '.join(keys)}" if keys else "no arrays"
        raise CalibrationError(f"{where}: {have}; model inputs: {', '.join(inputs)}: name each array after its input")
    return {name: name for name in inputs}


def _samples(
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


def _rows(load: Callable[[], _Arrays], stored: Mapping[str, Stored], count: int, rows: NDArray[np.intp]) -> _Arrays:
    """Return the given rows of the loaded arrays, copied; checks that they still are what the headers said."""
    out: _Arrays = {}
    for name, array in load().items():
        was = stored[name]
        if (array.dtype, array.shape) not in ((was.dtype, (count, *was.shape)), (was.dtype, was.shape)):
            raise CalibrationError(f"{was.label}: changed while in use: run again")
        out[name] = np.asarray((array if array.ndim > len(was.shape) else array[None])[rows])
    return out


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turn whatever numpy and zipfile raise on a damaged file into one CalibrationError that names it."""
    try:
        yield
    except CalibrationError:
        raise
    except Exception as error:
        why = " ".join(str(error).split()) or type(error).__name__
        raise CalibrationError(f"{file}: cannot be read ({why}): replace the file") from error
