"""Sizes and hashes of model files."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

from onnxprune.report import FileReport

BLOCK = 1 << 22
GZIP_LEVEL = 6  # what the gzip command does when it is told nothing


def describe(path: Path, names: Iterable[Path], files: Iterable[Path], stop: Callable[[], bool] = lambda: False) -> FileReport:
    """Bytes, gzip bytes and SHA-256 of a model over its files in order: the model first, then its external data.

    ``names`` are what the files are, or will be, called; ``files`` are where they lie now. ``stop`` is asked between blocks
    and ends the work early, for a run that has failed by then.
    """
    digest = hashlib.sha256()
    squeeze = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    total = packed = 0
    for file in files:
        with file.open("rb") as handle:
            while not stop() and (block := handle.read(BLOCK)):
                total += len(block)
                digest.update(block)
                packed += len(squeeze.compress(block))
    packed += len(squeeze.flush())
    return FileReport(str(path), tuple(str(name) for name in names), total, packed, digest.hexdigest())
