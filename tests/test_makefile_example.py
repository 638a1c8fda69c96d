"""examples/04_makefile, run by make: what it builds, what it builds anew, and when it fails."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "04_makefile"

pytestmark = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")


@pytest.fixture
def place(digits: Path, tmp_path: Path) -> Path:
    """The example in a folder of its own, with two models and their samples; fewer samples and no repair, so that it is quick."""
    shutil.copy(EXAMPLE / "Makefile", tmp_path / "Makefile")
    (tmp_path / "models").mkdir()
    for name in ("digits.onnx", "digits_folded.onnx"):
        shutil.copy(digits / name, tmp_path / "models" / name)
    shutil.copy(digits / "calib.npz", tmp_path / "calib.npz")
    return tmp_path


def make(place: Path, *words: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8"}
    options = "OPTIONS=--sparsity $(SPARSITY) --samples 40 --holdout 0.5 --min-agreement $(AGREEMENT)"
    tool = f"ONNXPRUNE={sys.executable} -m onnxprune"
    return subprocess.run(
        ["make", "MODELS=models", "CALIB=calib.npz", options, tool, "AGREEMENT=0.2", *words],
        cwd=place, env=env, capture_output=True, text=True, timeout=120,
    )  # fmt: skip


def made(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The models that a run of make built."""
    words = [word for line in done.stdout.splitlines() if " prune " in line for word in line.split()]
    return sorted(word.removeprefix("models/").removesuffix(".onnx") for word in words if word.startswith("models/"))


def test_what_has_not_changed_is_not_built_again(place: Path) -> None:
    first = make(place, "-j2")
    assert first.returncode == 0, first.stderr
    assert made(first) == ["digits", "digits_folded"]
    built = sorted(path.name for path in (place / "build").iterdir())
    stems = ("digits.pruned", "digits_folded.pruned")
    assert built == sorted(["options", *(f"{stem}.{end}" for stem in stems for end in ("onnx", "json", "d"))])
    assert json.loads((place / "build" / "digits.pruned.json").read_text())["options"]["threads"] == 1
    bytes_of = {name: (place / "build" / name).read_bytes() for name in built if name.endswith(".onnx")}

    second = make(place, "-j2")
    assert (second.returncode, second.stdout) == (0, "")

    (place / "models" / "digits.onnx").touch()
    assert made(make(place, "-j2")) == ["digits"]
    assert {name: (place / "build" / name).read_bytes() for name in bytes_of} == bytes_of

    (place / "calib.npz").touch()
    assert made(make(place, "-j2")) == ["digits", "digits_folded"]

    assert made(make(place, "-j2", "SPARSITY=0.9")) == ["digits", "digits_folded"]
    assert made(make(place, "-j2", "SPARSITY=0.9")) == []


@pytest.mark.slow
def test_a_missed_gate_fails_and_leaves_no_model(place: Path) -> None:
    assert make(place, "-j2", "SPARSITY=0.5").returncode == 0
    missed = make(place, "-k", "SPARSITY=0.5", "AGREEMENT=1")
    assert missed.returncode == 0  # that is easily reached
    missed = make(place, "-k", "SPARSITY=0.995", "AGREEMENT=1")
    assert missed.returncode == 2
    assert missed.stderr.count("Error 3") == 2
    assert missed.stderr.count("below --min-agreement 1.0") == 2
    assert not list((place / "build").glob("*.onnx"))


def test_a_calibration_file_that_is_gone_is_told_by_onnxprune_and_not_by_make(place: Path) -> None:
    assert make(place).returncode == 0
    (place / "calib.npz").rename(place / "other.npz")
    done = make(place)
    assert done.returncode == 2
    assert "No rule to make target" not in done.stderr
    assert "calib.npz: no such file or folder" in done.stderr
