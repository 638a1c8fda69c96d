"""Files that appear whole or not at all: written under a temporary name beside the target, and renamed.

A run that is killed cannot remove its temporary files; the next one that writes the same target does. A writer holds a lock on its
file, which ends with its process, so a file that can be locked has lost its writer.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

from onnxprune.errors import ModelError

LOCKS = sys.platform != "win32"
if LOCKS:
    import fcntl


@contextlib.contextmanager
def replacing(path: Path, name: Callable[[], Path] | None = None) -> Iterator[IO[bytes]]:
    """A binary file that takes the place of ``path`` (or of ``name()``, asked at the end) only when the block ends well.

    What killed writers of ``path`` left is removed.

    Raises:
        ModelError: the folder is missing or not writable, or the disk is full.
    """
    temporary: Path | None = None
    with contextlib.ExitStack() as held:
        try:
            _remove_stale(path)
            temporary = held.enter_context(_made(path))
            with temporary.open("wb") as handle:
                yield handle
                handle.flush()
                os.fsync(handle.fileno())
            mask = os.umask(0)
            os.umask(mask)
            temporary.chmod(0o666 & ~mask)
            target = path if name is None else name()
            if target.is_dir():
                raise ModelError(f"{target}: cannot be written: it is a folder")
            temporary.replace(target)
            temporary = None
        except OSError as error:
            raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from error
        finally:
            if temporary is not None:
                temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def _made(path: Path) -> Iterator[Path]:
    """A new temporary file for a target, locked by this process during the block."""
    while True:
        descriptor, text = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        if not LOCKS:  # an open file cannot be renamed there
            os.close(descriptor)
            yield Path(text)
            return
        try:
            with contextlib.suppress(OSError):  # a file system without locks: then nobody can take this file for a dead one's
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if not os.path.exists(text):  # taken for a dead one's before it was locked
                continue
            yield Path(text)
            return
        finally:
            os.close(descriptor)


def _remove_stale(path: Path) -> None:
    """Remove the temporary files of a target whose writers are dead."""
    if not LOCKS:
        return
    pattern = re.compile(rf"\.{re.escape(path.name)}\.[a-z0-9_]{{8}}\.tmp")
    entries: list[os.DirEntry[str]] = []
    with contextlib.suppress(OSError):  # what cannot be listed may still be written to
        entries = list(os.scandir(path.parent))
    for entry in entries:
        if not pattern.fullmatch(entry.name) or not entry.is_file(follow_symlinks=False):
            continue
        with contextlib.suppress(OSError):  # it is locked, somebody else's, or gone by now
            descriptor = os.open(entry.path, os.O_RDWR)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                os.unlink(entry.path)
            finally:
                os.close(descriptor)


@contextlib.contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Nobody else in such a block for the same folder; others wait. Without a lock where the file system has none."""
    if not LOCKS:
        yield
        return
    descriptor = None
    try:
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


def check_writable(path: Path) -> None:
    """Raises ModelError when no file can be made beside the path."""
    try:
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ModelError(f"{path}: cannot be written: {error.strerror or error}") from None
    if path.is_dir():
        raise ModelError(f"{path}: cannot be written: it is a folder")
