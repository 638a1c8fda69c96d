"""Sizes and hashes of model files."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path

import zstandard

from onnxprune.report import FileReport

BLOCK = 1 << 22
# What the gzip and zstd commands do when they are told nothing.
GZIP_LEVEL = 6
ZSTD_LEVEL = 3


def describe(
    path: Path, names: Iterable[Path], files: Iterable[Path], stop: Callable[[], bool] = lambda: False, *, saved: int = 0
) -> FileReport:
    """Bytes, packed bytes and SHA-256 of a model over its files in order: the model first, then its external data.

    ``names`` are what the files are, or will be, called; ``files`` are where they lie now. ``stop`` is asked between blocks
    and ends the work early, for a run that has failed by then. ``saved`` is what sparse initializers would save of the bytes.
    """
    digest = hashlib.sha256()
    deflate = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, 31)
    standard = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compressobj()
    total = gzip = zstd = 0
    for file in files:
        with file.open("rb") as handle:
            while not stop() and (block := handle.read(BLOCK)):
                total += len(block)
                digest.update(block)
                gzip += len(deflate.compress(block))
                zstd += len(standard.compress(block))
    gzip += len(deflate.flush())
    zstd += len(standard.flush())
    return FileReport(str(path), tuple(str(name) for name in names), total, gzip, zstd, total - saved, digest.hexdigest())


def readable(size: int) -> str:
    """A number of bytes with its unit, such as 175.03 kB."""
    for unit, step in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if size >= step:
            return f"{size / step:.2f} {unit}"
    return f"{size} B"
