"""Samples as JSON lines: one sample a line, such as the token ids of one text, of any length.

A line is an object with one list for each input, ``{"input_ids": [101, 7, 102], "attention_mask": [1, 1, 1]}``, or, for a model with
one input, the bare list. Lists of the input's rank are a batch, one rank less is one sample, as for arrays. Numbers take the input's
dtype; one that it cannot hold is an error. Lines of equal shape form one Source, in the order in which the shapes come up.
"""

import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from onnxprune.errors import CalibrationError
from onnxprune.runtime.sources import Source, Stored, fitted, match, reading, rows_of

LINE_MAX = 2**24
"""Bytes of one line: a million token ids take half of it."""


def open_lines(file: Path, ranks: Mapping[str, int], dtypes: Mapping[str, np.dtype[Any]]) -> list[Source]:
    """Return the Sources of a .jsonl file, read whole; ``ranks`` counts the batch axis and ``dtypes`` is what comes out, by input.

    Raises CalibrationError, naming the line, for what is no JSON or no list of numbers, is longer than LINE_MAX, or does not fit.
    """
    found: dict[tuple[tuple[int, ...], ...], list[dict[str, NDArray[Any]]]] = {}
    unused: dict[str, None] = {}
    with reading(file), file.open("rb") as stream:
        for where, text in _lines(file, stream):
            given = _parsed(where, text)
            held = {key: given[key] for key in given if key in ranks} or given
            arrays = {key: _array(f"{where}, {key!r}" if key else where, value) for key, value in held.items()}
            taken = match(where, [*arrays, *(key for key in given if key not in arrays)], ranks, {})
            unused.update(dict.fromkeys(key for key in given if key not in taken.values()))
            sample = {name: _as_input(f"{where}, {name!r}", arrays[key], dtypes[name]) for name, key in taken.items()}
            headers = {name: (f"{where}, {name!r}", array.dtype, array.shape) for name, array in sample.items()}
            count, stored = fitted(where, headers, ranks)
            rows = {name: array.reshape(count, *stored[name].shape) for name, array in sample.items()}
            found.setdefault(tuple(one.shape for one in stored.values()), []).append(rows)
    if not found:
        raise CalibrationError(f"{file}: holds no line: write one sample a line")
    sources = []
    for number, rows_there in enumerate(found.values()):
        held = {name: np.concatenate([rows[name] for rows in rows_there]) for name in ranks}
        stored = {name: Stored(f"{file}: {name!r} of shape {a.shape[1:]}", a.dtype, a.shape[1:]) for name, a in held.items()}
        count = len(next(iter(held.values())))
        left = tuple(unused) if number == 0 else ()
        sources.append(Source(str(file), count, stored, left, partial(rows_of, partial(dict, held), stored, count)))
    return sources


def _lines(file: Path, stream: Any) -> Iterator[tuple[str, bytes]]:
    """Yield where each line that is not blank lies, and its bytes."""
    number = 0
    while line := stream.readline(LINE_MAX + 1):
        number += 1
        if len(line) > LINE_MAX:
            raise CalibrationError(f"{file}: line {number}: is longer than {LINE_MAX} bytes: write one sample a line")
        if line.strip():
            yield f"{file}: line {number}", line.removeprefix(b"\xef\xbb\xbf")


def _parsed(where: str, text: bytes) -> dict[str, Any]:
    """Return the lists of one line by key; the bare list has the key ""."""
    try:
        value = json.loads(text.decode(), parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise CalibrationError(f"{where}: is no JSON ({' '.join(str(error).split())}): write one JSON value a line") from error
    return value if isinstance(value, dict) else {"": value}


def _no_number(word: str) -> NoReturn:
    raise ValueError(f"{word} is no number")


def _array(where: str, value: Any) -> NDArray[Any]:
    """Return nested lists of numbers as an array; CalibrationError for lists of unequal length and for other values."""
    try:
        array = np.array(value)
    except (ValueError, OverflowError) as error:
        raise CalibrationError(f"{where}: is no array (lists of unequal length): write lists of numbers") from error
    if array.dtype.kind not in "biuf":
        raise CalibrationError(f"{where}: holds something that is no number of 64 bits: write lists of numbers")
    return array


def _as_input(where: str, array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """Return the array in the input's dtype; CalibrationError where that changes a whole number or overflows."""
    if dtype.kind in "biu" and array.size:
        if array.dtype.kind == "f":
            raise CalibrationError(f"{where}: holds fractions, the model input takes {dtype}: write whole numbers")
        low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
        if int(array.min()) < low or int(array.max()) > high:
            raise CalibrationError(f"{where}: has {int(array.min())} to {int(array.max())}, {dtype} holds {low} to {high}: correct it")
    with np.errstate(over="ignore"):
        out = array.astype(dtype)
    if dtype.kind == "f" and not np.isfinite(out).all():
        raise CalibrationError(f"{where}: exceeds {dtype}: correct it")
    return out
