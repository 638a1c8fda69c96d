"""Load and save ONNX files: one line when a file is not what it should be, and never half a file.

A file is written under a temporary name beside its target and renamed. A model with external data becomes two files: the data
file carries the hash of its content in its name, so the old model and its data stay whole until the new model is in place.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from onnxprune.errors import ModelError
from onnxprune.graph import beside
from onnxprune.graph.complete import PROTO_LIMIT, fault, fits, nbytes
from onnxprune.graph.doubt import doubt_of
from onnxprune.graph.external import groups_of, places_of
from onnxprune.graph.mapped import has_mapped, leave, may_stay, raw_of, refer
from onnxprune.graph.sparse import densify
from onnxprune.graph.walk import bodies, stored
from onnxprune.graph.whole import replacing

BLOCK = 1 << 20
"""Bytes that are read at a time where a file is looked through."""


@dataclass(frozen=True, eq=False)
class Loaded:
    """A model with its external data in memory, or left in its files (mapped), and the files it came from, the .onnx file first."""

    model: onnx.ModelProto
    files: tuple[Path, ...]
    places: Mapping[str, str] = field(default_factory=dict)
    """Initializer -> the file that it came from, for those that are not in the model file."""
    sparse: Mapping[str, onnx.SparseTensorProto] = field(default_factory=dict)
    """The main graph's sparse initializers as they came; the model has them dense."""
    doubt: str = ""
    """What onnx.checker holds against the file."""

    @property
    def external(self) -> bool:
        """True when the file keeps some of its tensors in other files."""
        return len(self.files) > 1


def load(path: Path, *, mapped: int | None = None) -> Loaded:
    """The model of an ONNX file with its external data, and with its sparse initializers made dense.

    ``mapped``: large initializers with external data that have so many bytes or more together, if a number is given, stay in their files
    until they are asked for, see onnxprune.graph.mapped.

    Raises:
        ModelError: the file is missing, is not ONNX, is cut off, or its external data is missing or too short.
    """
    model, data = _parsed(path)
    places = places_of(model)
    # By identity, which protobuf's objects have while they are held.
    large = {id(tensor): tensor for tensor in model.graph.initializer if mapped is not None and may_stay(tensor)}
    if sum(map(nbytes, large.values())) < (mapped or 0):
        large.clear()
    names, left = beside.read_in(stored(model), path, lambda tensor: id(tensor) in large)
    beside.refuse_rest(model, path)
    for tensor, name, start in left:
        leave(tensor, path.parent / name, start)
    for tensor in stored(model):
        check_complete(tensor, path)
    sparse = densify(model, str(path))
    return Loaded(model, (path, *(path.parent / name for name in names)), places, sparse, doubt_of(path if names else data))


def _parsed(path: Path) -> tuple[onnx.ModelProto, bytes]:
    """The model of a file without its external data, and the file's bytes."""
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; give the .onnx file inside it")
    try:
        if path.exists() and not path.is_file():  # a pipe or a device may never end
            raise ModelError(f"{path}: is no regular file; give an .onnx file")
        data = path.read_bytes()
    except FileNotFoundError:
        raise ModelError(f"{path}: no such file") from None
    except OSError as error:
        raise ModelError(f"{path}: cannot be read: {error.strerror}") from None
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError:
        raise ModelError(f"{path}: not an ONNX file, or cut off ({len(data)} bytes do not parse)") from None
    if not model.graph.node or not model.opset_import:
        raise ModelError(f"{path}: not an ONNX model ({len(data)} bytes hold no graph); is the file complete?")
    _strings(model, path)
    return model, data


def _strings(model: onnx.ModelProto, path: Path) -> None:
    """Raises ModelError when a name is no UTF-8: protobuf gives bytes for it."""
    names = [tensor.name for tensor in stored(model)]
    names += [entry.domain for entry in model.opset_import] + [function.name for function in model.functions]
    values = (*model.graph.input, *model.graph.output, *model.graph.value_info)
    names += [text for value in values for text in (value.name, *(dim.dim_param for dim in value.type.tensor_type.shape.dim))]
    todo = list(model.graph.node) + [node for function in model.functions for node in function.node]
    while todo:
        node = todo.pop()
        names += [node.name, node.op_type, node.domain, *node.input, *node.output, *(entry.name for entry in node.attribute)]
        for body in bodies(node):
            todo.extend(body.node)
            names += [value.name for value in (*body.input, *body.output)]
    bad = next((name for name in names if not isinstance(name, str)), None)
    if bad is not None:
        raise ModelError(f"{path}: the name {bad!r} is no UTF-8; is the file complete?")


def files_of(path: Path) -> tuple[Path, ...]:
    """The model file and the files of its external data; raises ModelError as load does where there are some."""
    if path.is_file() and not _mentions(path, b"location"):  # every such tensor has an entry of that name, and parsing takes a while
        return (path,)
    return (path, *(path.parent / name for name in beside.locations(stored(_parsed(path)[0]), path)))


def _mentions(path: Path, word: bytes) -> bool:
    """Whether the word is anywhere in the file; True also where it cannot be read."""
    try:
        with path.open("rb") as handle:
            end = b""
            while block := handle.read(BLOCK):
                if word in block or word in end + block[: len(word)]:
                    return True
                end = block[-len(word) :]
    except OSError:
        return True
    return False


def check_model(model: onnx.ModelProto) -> None:
    """Raises ModelError when a model in memory keeps tensors in files, which are not looked for, or holds damaged ones."""
    for tensor in stored(model):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            raise ModelError(f"tensor {tensor.name!r} lies in another file; load the model with its external data, or give its path")
        check_complete(tensor, Path("the model"))


def check_complete(tensor: onnx.TensorProto, path: Path) -> None:
    """Raises ModelError when a tensor has more or fewer values than its shape needs, or a shape that cannot be."""
    if why := fault(tensor):
        raise ModelError(f"{path}: tensor {tensor.name!r} cannot be read: {why}; is the file complete?")


def save(
    model: onnx.ModelProto,
    path: Path,
    *,
    external: bool,
    places: Mapping[str, str] | None = None,
    sealed: Callable[[tuple[Path, ...]], None] = lambda files: None,
) -> tuple[Path, ...]:
    """The files written: the model and, with external data, its data file. The target changes in one rename.

    External data is also used when the model is over protobuf's 2 GiB. ``places`` (Loaded.places) keeps what was in one file together, and
    the rest in the model; without it, or where the rest is too large, there is one data file. ``sealed`` is called with the complete
    files, the model's still under its temporary name, right before that rename; what it raises leaves the target as it was.

    Raises:
        ModelError: the folder is missing or not writable, or the disk is full; nothing is left behind.
    """
    external = external or has_mapped(model) or not fits(model, PROTO_LIMIT + 1)
    old_data = own_data_files(path)
    written: tuple[Path, ...] = (path,)
    groups = groups_of(model, places or {}) if external else []
    slim = model
    try:
        if groups:
            slim = onnx.ModelProto()
            slim.CopyFrom(model)
        for group in groups:
            data_path = _write_data([slim.graph.initializer[number] for number in group], path)
            written = (*written, *([data_path] if data_path not in written else []))
        payload = _payload(slim)
        with replacing(path) as handle:
            handle.write(payload)
            handle.flush()
            sealed((Path(handle.name), *written[1:]))
    except BaseException:
        for extra in written[1:]:
            if extra not in old_data:
                extra.unlink(missing_ok=True)
        raise
    for stale in old_data.difference(written):
        stale.unlink(missing_ok=True)
    return written


def _payload(model: onnx.ModelProto) -> bytes:
    """The bytes of a model, the same for the same model."""
    return bytes(model.SerializeToString(deterministic=True))


def own_data_files(path: Path) -> set[Path]:
    """Data files that an earlier save of the same target left beside it."""
    pattern = re.compile(re.escape(path.name) + r"\.[0-9a-f]{12}\.data")
    try:
        return {entry for entry in path.parent.iterdir() if pattern.fullmatch(entry.name)}
    except OSError:
        return set()


def _write_data(tensors: Sequence[onnx.TensorProto], path: Path) -> Path:
    """The path of the data file with the tensors' values; the tensors refer to it from now on."""
    places: list[tuple[onnx.TensorProto, int, int]] = []
    digest = hashlib.sha256()
    offset = 0

    def name() -> Path:
        return path.with_name(f"{path.name}.{digest.hexdigest()[:12]}.data")

    with replacing(path, name) as handle:
        for tensor in tensors:
            pad = b"\0" * (-offset % 4096)  # aligned, so that runtimes can map it
            for piece in chain([pad], raw_of(tensor)):
                handle.write(piece)
                digest.update(piece)
            places.append((tensor, offset + len(pad), nbytes(tensor)))
            offset += len(pad) + nbytes(tensor)
    for tensor, start, length in places:
        refer(tensor, location=name().name, offset=start, length=length)
    return name()
