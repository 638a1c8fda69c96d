"""A seeded share of the fuzzer's cases (docs/fuzz.md): each ends in one line or in a valid model."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def fuzz(models: int, calib: int, seed: int) -> str:
    """The fuzzer's summary; it runs in a process of its own, because its workers are forks."""
    asked = ["--models", str(models), "--calib", str(calib), "--seed", str(seed)]
    ran = subprocess.run([sys.executable, ROOT / "tools" / "fuzz.py", *asked], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return ran.stdout


def test_a_few_damaged_files() -> None:
    told = fuzz(30, 11, seed=0)
    for words in ("models: 30 cases", "calib: 11 cases", " pruned", " refused"):
        assert words in told


@pytest.mark.slow
def test_many_damaged_files() -> None:
    fuzz(1500, 330, seed=0)
