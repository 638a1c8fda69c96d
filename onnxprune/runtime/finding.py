"""Which files and folders are calibration samples, by their names; nothing is opened.

A folder counts for its ONNX test data sets (folders of input_0.pb, input_1.pb, ...), or for its .npy and .npz files (not those in
sub-folders), or for its images (also those in sub-folders: class folders are usual), or for its .jsonl files. Hidden files, links to
folders and whatever is no regular file are left aside; other files are counted in a note.
"""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from onnxprune.errors import CalibrationError
from onnxprune.runtime import images

ARRAYS = (".npy", ".npz")
LINES = (".jsonl", ".ndjson")
ACCEPTED = f".npy, .npz, .jsonl, an image ({' '.join(images.SUFFIXES)}), an ONNX test data set, or a folder of one of these"

_SET = re.compile(r"input_(\d{1,6})\.pb")


def find(paths: Sequence[str | Path]) -> tuple[list[Path], list[str]]:
    """Return the files in reading order (a folder's by name) and notes on what was left aside; nothing is opened.

    A test data set is returned as its folder. Raises CalibrationError for a path that is missing or of no use, a folder with two
    kinds of samples, what is no regular file, and a file that comes up twice.
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
        elif not path.is_file():  # a pipe or a device may never end
            raise CalibrationError(f"{path}: is no regular file: --calib takes {ACCEPTED}")
        elif _SET.fullmatch(path.name):
            raise CalibrationError(f"{path}: is one tensor of a test data set: pass its folder {path.parent}")
        elif path.suffix.lower() not in ARRAYS + LINES + images.SUFFIXES:
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


def tensors_of(folder: Path) -> list[Path]:
    """Return the files input_0.pb, input_1.pb, ... of a test data set; CalibrationError where a number is left out."""
    found = {int(match[1]): folder / name for name in os.listdir(folder) if (match := _SET.fullmatch(name)) is not None}
    missing = next((number for number in range(len(found)) if number not in found), None)
    if missing is not None:
        raise CalibrationError(f"{folder}: input_{missing}.pb is missing among {len(found)} inputs: complete the test data set")
    return [found[number] for number in range(len(found))]


def _folder(folder: Path) -> tuple[list[Path], list[str]]:
    """Return the folder's usable files, sorted, and the names of the others."""
    files, others = list[Path](), list[str]()
    for root, below, names in os.walk(folder, onerror=_no_entry):  # does not follow links, so it cannot loop
        below[:] = [name for name in below if not name.startswith(".")]
        others += [f"link {name}" for name in below if os.path.islink(os.path.join(root, name))]
        there = [Path(root, name) for name in names if not name.startswith(".")]
        files += [file for file in there if file.is_file()]
        others += [f"{file.name}, no regular file" for file in there if not file.is_file()]
    files.sort(key=lambda file: file.relative_to(folder).as_posix())
    near = {file.parent for file in files if _SET.fullmatch(file.name) and folder in (file.parent, file.parent.parent)}
    kinds: dict[str, list[Path]] = {
        "test data sets": sorted(near, key=_natural),
        "arrays": [file for file in files if file.suffix.lower() in ARRAYS and file.parent == folder],
        "images": [file for file in files if file.suffix.lower() in images.SUFFIXES],
    }
    given = [kind for kind, found in kinds.items() if found]
    if len(given) > 1:
        both = " and ".join(f"{kind} ({kinds[kind][0].name})" for kind in given)
        raise CalibrationError(f"{folder}: holds {both}: keep one kind")
    # Beside images, JSON lines are usually their captions; so they count where there is nothing else.
    used = kinds[given[0]] if given else [file for file in files if file.suffix.lower() in LINES and file.parent == folder]
    if not used:
        deeper = any(file.suffix.lower() in ARRAYS + LINES for file in files)
        hint = "pass the sub-folder, arrays are read from the folder itself" if deeper else f"--calib takes {ACCEPTED}"
        raise CalibrationError(f"{folder}: nothing usable among its {len(files)} files: {hint}")
    taken = set(used)
    rest = [file for file in files if file not in taken and not (file.parent in taken and file.suffix == ".pb")]
    return used, others + [file.relative_to(folder).as_posix() for file in rest]


def _natural(path: Path) -> list[tuple[int, str]]:
    """Return a key that sorts test_data_set_2 before test_data_set_10."""
    return [(int(part), "") if odd % 2 else (-1, part) for odd, part in enumerate(re.split(r"([0-9]+)", path.name))]


def _no_entry(error: OSError) -> NoReturn:
    raise CalibrationError(f"{error.filename}: folder cannot be read ({error.strerror}): check its permissions")
