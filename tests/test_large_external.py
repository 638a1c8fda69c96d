"""Models with external data in several files, by the script that measures those over 2 GB (docs/models.md)."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnxprune.runtime.trial import available

ROOT = Path(__file__).resolve().parent.parent


def large(folder: Path, *words: str) -> list[dict[str, object]]:
    """What the script tells of every repair; it checks the result itself."""
    ran = subprocess.run(
        [sys.executable, ROOT / "tools" / "large_external.py", folder, *words], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr
    return [json.loads(line) for line in ran.stdout.splitlines()]


def test_a_small_share_of_it(tmp_path: Path) -> None:
    (found,) = large(tmp_path, "--layers", "4", "--width", "64", "--repairs", "channel")
    assert found["files"] == 3
    assert float(str(found["cosine"])) > 0.9


@pytest.mark.slow
def test_over_2_gb(tmp_path: Path) -> None:
    if available() < 14e9 or shutil.disk_usage(tmp_path).free < 8e9:
        pytest.skip("14 GB of free memory and 8 GB of disk are needed")
    (found,) = large(tmp_path, "--repairs", "none")
    assert found["files"] == 3
