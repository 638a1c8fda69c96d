"""Labels of samples: one class number a sample, in the order in which the samples' files are read.

They never take part in allocation or repair: they only measure the top-1 accuracy of models that are there.
"""

from __future__ import annotations

import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.runtime.sources import reading

NAMES = ("labels", "label", "y", "targets", "target")
"""What the array of an .npz with several may be called, the first that is there counts."""
TEXT = (".txt", ".csv", ".tsv", "")
LINE_MAX = 2**16


def read_labels(path: Path, count: int) -> NDArray[np.int64]:
    """The class number of each of ``count`` samples, int64 (count,), from a .npy, .npz or text file (one number a line).

    Raises:
        CalibrationError: the file is missing or damaged, holds no whole numbers from 0 on, or another number of them than ``count``.
    """
    if not path.exists():
        raise CalibrationError(f"{path}: no such file: --labels takes .npy, .npz or text with one class number a line")
    if not path.is_file():  # a pipe or a device may never end
        raise CalibrationError(f"{path}: is no regular file: --labels takes .npy, .npz or text with one class number a line")
    kind = path.suffix.lower()
    if kind not in (".npy", ".npz", *TEXT):
        raise CalibrationError(f"{path}: unknown suffix {kind!r}: --labels takes .npy, .npz or text with one class number a line")
    with reading(path):
        found = _text(path) if kind in TEXT else _array(path)
    if found.ndim == 2 and found.shape[1] == 1:
        found = found[:, 0]
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise CalibrationError(f"{path}: holds {found.dtype} {found.shape}, expected one whole number a sample: save the class numbers")
    if len(found) != count:
        raise CalibrationError(
            f"{path}: holds {len(found)} labels, there are {count} samples: give one label for each sample of --calib, in the same order"
        )
    if found.size and (int(found.min()) < 0 or int(found.max()) > np.iinfo(np.int64).max):
        at = int(np.flatnonzero(found == (found.min() if found.min() < 0 else found.max()))[0])
        raise CalibrationError(f"{path}: label {at} is {found[at]}, expected 0 or more: give class numbers as the model counts them")
    return found.astype(np.int64)


def _array(path: Path) -> NDArray[Any]:
    """The array of a .npy file, or the one of an .npz that holds labels; pickles are never loaded."""
    if path.suffix.lower() == ".npy":
        return np.asarray(np.load(path, allow_pickle=False))
    if not zipfile.is_zipfile(path):
        raise ValueError("it is no .npz archive")
    with np.load(path, allow_pickle=False) as archive:
        key = next((name for name in NAMES if name in archive.files), archive.files[0] if len(archive.files) == 1 else None)
        if key is None:
            raise CalibrationError(
                f"{path}: holds arrays {', '.join(archive.files) or 'of no name'}: call the one with the labels 'labels'"
            )
        return np.asarray(archive[key])


def _text(path: Path) -> NDArray[np.int64]:
    """The whole numbers of a text file, one a line; blank lines at the end are left aside."""
    with path.open("rb") as stream:
        lines = []
        while line := stream.readline(LINE_MAX):
            lines.append(line.strip())
    while lines and not lines[-1]:
        lines.pop()
    for number, line in enumerate(lines):
        text = line.removeprefix(b"\xef\xbb\xbf") if number == 0 else line
        if not re.fullmatch(rb"[+-]?[0-9]{1,18}", text):
            shown = text[:40].decode(errors="replace")
            raise CalibrationError(f"{path}: line {number + 1} is {shown!r}, expected one whole number: write one class number a line")
        lines[number] = text
    return np.array([int(line) for line in lines], np.int64)
