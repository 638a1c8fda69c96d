"""What the report says that gzip makes of a file, against gzip."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest

from onnxprune.sizes import BLOCK, describe, readable


def weights(share: float, kind: str) -> bytes:
    """A third of a megabyte of normally distributed numbers, the smallest of them zero."""
    values = np.random.default_rng(3).normal(size=333_336 // np.dtype(kind).itemsize)
    values = np.where(np.abs(values) < np.quantile(np.abs(values), share), 0, values * (20 if kind == "i1" else 1))
    return values.astype(kind).tobytes()


CONTENT = {f"{kind} {share}": weights(share, kind) for kind in ("f4", "f2", "i1") for share in (0.0, 0.05, 0.1, 0.3, 0.9, 0.95)}
CONTENT |= {"nothing": b"", "one": b"x", "zeros": bytes(2 * BLOCK), "text": Path(__file__).read_bytes()}
CONTENT["half and half"] = 12 * weights(0.0, "f4") + bytes(BLOCK)


@pytest.mark.parametrize("name", CONTENT)
def test_gzip_bytes_are_those_of_gzip(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").write_bytes(CONTENT[name])
    found = describe(tmp_path / "file", [tmp_path / "file"], [tmp_path / "file"])
    real = len(subprocess.run(["gzip", "-6", "-n", "-c"], input=CONTENT[name], capture_output=True, check=True).stdout)
    # Blocks are packed one by one, and where deflate ends a block of its own is a matter of the implementation.
    assert found.gzip_bytes == pytest.approx(real, rel=0.01, abs=40)
    assert found.bytes == len(CONTENT[name])


def test_sizes_are_readable() -> None:
    assert [readable(size) for size in (0, 999, 1000, 175_030, 2_230_000, 10**9)] == [
        "0 B",
        "999 B",
        "1.00 kB",
        "175.03 kB",
        "2.23 MB",
        "1.00 GB",
    ]
