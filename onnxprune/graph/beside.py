"""External data: tensors whose values lie in other files, which must be in the model's folder.

A model file names those files, and it may come from anywhere. So a name that leads out of the folder, by "..", as an absolute path or
through a link, is refused, and so is whatever is no regular file; nothing is read before its place and size are known to be sound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath

from google.protobuf.message import Message
from onnx import TensorProto

from onnxprune.errors import ModelError
from onnxprune.graph.complete import fault, nbytes

SHARED_MAX = 16
"""All tensors together may read their files this many times over: some writers store tied weights once, none stores them so often."""


def locations(tensors: Iterable[TensorProto], path: Path) -> list[str]:
    """The files that hold external data of the model at ``path``, relative to its folder, in order of first use.

    Raises:
        ModelError: a file is not in the model's folder, is missing, or is no regular file.
    """
    names = dict.fromkeys(_entries(tensor, path)["location"] for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL)
    for name in names:
        _safe(name, path)
    return list(names)


def read_in(
    tensors: Iterable[TensorProto], path: Path, left: Callable[[TensorProto], bool] = lambda tensor: False
) -> tuple[list[str], list[tuple[TensorProto, str, int]]]:
    """Put the external data of the tensors into them, and return the files it came from, as `locations` does.

    Those that are to be ``left`` stay without values, and come back with their file and their first byte there.

    Raises:
        ModelError: as `locations` does, and where a tensor's data does not lie in its file.
    """
    outside = [tensor for tensor in tensors if tensor.data_location == TensorProto.EXTERNAL]
    names = locations(outside, path)
    sizes = {name: (path.parent / name).stat().st_size for name in names}
    places: list[tuple[TensorProto, str, int, int]] = []
    for tensor in outside:
        why = fault(tensor)
        if why or tensor.data_type == TensorProto.STRING:
            raise ModelError(f"{path}: tensor {tensor.name!r} cannot be read: {why or 'external data holds no strings'}")
        entries = _entries(tensor, path)
        start, size = (_whole(entries, key, tensor, path) for key in ("offset", "length"))
        needed, name = nbytes(tensor), entries["location"]
        if size is None:
            size = needed
        if size != needed or (start or 0) + size > sizes[name]:
            raise ModelError(
                f"{path}: external data cannot be loaded: tensor {tensor.name!r} takes {needed} bytes, it has {size} from byte "
                f"{start or 0} of {name}, which has {sizes[name]}; is the file complete?"
            )
        places.append((tensor, name, start or 0, size))
    if sum(size for *_, size in places) > SHARED_MAX * sum(sizes.values()):
        raise ModelError(f"{path}: external data cannot be loaded: its tensors read the same bytes more than {SHARED_MAX} times over")
    for tensor, name, start, size in places:
        tensor.ClearField("data_location")
        del tensor.external_data[:]
        if left(tensor):
            continue
        try:
            with (path.parent / name).open("rb") as handle:
                handle.seek(start)
                tensor.raw_data = handle.read(size)
        except OSError as error:
            raise ModelError(f"{path}: external data cannot be loaded: {name}: {error.strerror or error}") from None
    return names, [(tensor, name, start) for tensor, name, start, _ in places if left(tensor)]


def refuse_rest(message: Message, path: Path) -> None:
    """Raises ModelError when a tensor anywhere in the message (a sparse one's values, a default of a function) still lies in a file.

    ONNX Runtime would look for it in the current folder.
    """
    todo = [message]
    while todo:
        one = todo.pop()
        if isinstance(one, TensorProto):  # not listed field by field, which would copy its values
            if one.data_location == TensorProto.EXTERNAL:
                raise ModelError(f"{path}: tensor {one.name!r} lies in another file at a place where that is not read")
            continue
        for field, value in one.ListFields():
            if field.message_type is not None:
                todo.extend([value] if isinstance(value, Message) else value)


def _safe(name: str, path: Path) -> None:
    """Raises ModelError for a file that is not a regular one in the model's folder."""
    refused = f"{path}: external data cannot be loaded: {name[:200]!r}"
    windows = PureWindowsPath(name)
    if not name or "\0" in name or PurePosixPath(name).is_absolute() or windows.drive or windows.root or ".." in windows.parts:
        raise ModelError(f"{refused} leads out of the model's folder; keep the data files beside the model")
    place = path.parent / name
    try:
        if not place.exists():
            raise ModelError(f"{refused} is missing; keep the data files beside the model")
        if not place.resolve().is_relative_to(path.parent.resolve()):
            raise ModelError(f"{refused} is a link out of the model's folder; copy the data files there")
        if not place.is_file():
            raise ModelError(f"{refused} is no regular file; keep the data files beside the model")
    except (OSError, ValueError, RuntimeError) as error:  # a name that is too long, a loop of links
        raise ModelError(f"{refused}: {getattr(error, 'strerror', None) or error}; keep the data files beside the model") from None


def _entries(tensor: TensorProto, path: Path) -> dict[str, str]:
    entries = {entry.key: entry.value for entry in tensor.external_data}
    if not all(isinstance(text, str) for pair in entries.items() for text in pair):
        raise ModelError(f"{path}: external data cannot be loaded: tensor {tensor.name!r} has entries that are no UTF-8")
    if "location" not in entries:
        raise ModelError(f"{path}: external data cannot be loaded: tensor {tensor.name!r} names no file; is the file complete?")
    return entries


def _whole(entries: dict[str, str], key: str, tensor: TensorProto, path: Path) -> int | None:
    """The number under a key, None without one."""
    if key not in entries:
        return None
    if not re.fullmatch(r"[0-9]{1,18}", entries[key]):
        raise ModelError(f"{path}: external data cannot be loaded: tensor {tensor.name!r} has the {key} {entries[key][:40]!r}")
    return int(entries[key])
