"""Masks on models whose large tensors stay in their files: the same bytes come out as when they are in memory, and memory stays small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import zoo
from conftest import Ran

from onnxprune import prune
from onnxprune.errors import OnnxpruneError
from onnxprune.graph import mapped
from onnxprune.job import Job, prune_file
from onnxprune.options import Options

Call = Callable[..., Ran]
ROOT = Path(__file__).resolve().parent.parent


def external(model: onnx.ModelProto, folder: Path) -> Path:
    """The model's file, every initializer of it in one file beside it."""
    path = folder / "model.onnx"
    onnx.save_model(model, str(path), save_as_external_data=True, location="model.bin", size_threshold=0)
    return path


def written(path: Path, target: Path, **options: Any) -> tuple[dict[str, bytes], dict[str, Any]] | str:
    """The files of a run without samples, by name, and its report without its times; or its error."""
    target.parent.mkdir()
    report = target.with_suffix(".json")
    try:
        prune_file(Job(path, target, (report,)), None, Options(repair="none", **options), lambda *told: None)
    except OnnxpruneError as error:
        return str(error)
    told = json.loads(report.read_text())
    del told["seconds"], told["output"]["path"], told["output"]["files"]
    return {file.name: file.read_bytes() for file in target.parent.iterdir() if file != report}, told


def both_ways(path: Path, monkeypatch: pytest.MonkeyPatch, **options: Any) -> tuple[Any, Any]:
    """What comes out with tensors in memory, and with those left in files."""
    found = []
    for name, large in (("memory", 1 << 60), ("files", 1)):
        monkeypatch.setattr(mapped, "LARGE", large)
        found.append(written(path, path.parent / name / "out.onnx", **options))
    return found[0], found[1]


FAST = list(zoo.SUBJECTS).index("bfloat16") + 1
"""The subjects up to there differ in where a weight lives; those behind it in what reads it."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if number >= FAST else []) for number, name in enumerate(zoo.SUBJECTS)]
)
def test_the_files_are_the_same(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subject = zoo.SUBJECTS[name]()
    options = {key: value for key, value in subject.options.items() if key in ("include", "exclude")}
    plain, left = both_ways(external(subject.model, tmp_path), monkeypatch, sparsity=0.5, alloc="lamp", **options)
    assert plain == left and not isinstance(plain, str)


@pytest.mark.parametrize(
    "options",
    [
        *({"alloc": alloc, "sparsity": 0.9} for alloc in ("uniform", "erk", "lamp", "global")),
        {"pattern": "2:4"},
        {"alloc": "lamp", "sparsity": 0.9, "sparse_initializers": True},
        {"alloc": "lamp", "sparsity": 0.9, "layer_sparsity": {"conv": 0.5}},
        {"alloc": "lamp", "sparsity": 0.99999},
    ],
)
@pytest.mark.parametrize("form", ["digits", "digits_folded"])
def test_the_files_are_the_same_by_every_rule(
    digits: Path, form: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, left = both_ways(external(onnx.load(str(digits / f"{form}.onnx")), tmp_path), monkeypatch, **options)
    assert plain == left


def test_a_model_in_python_has_its_values_in_memory(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mapped, "LARGE", 1)
    result = prune(external(onnx.load(str(digits / "digits.onnx")), tmp_path), sparsity=0.9, repair="none")
    shutil.rmtree(tmp_path)
    assert not any(map(mapped.is_mapped, result.model.graph.initializer))
    assert result.model.SerializeToString()


def test_a_data_file_that_goes_away_in_the_middle(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = external(onnx.load(str(digits / "digits.onnx")), tmp_path)
    monkeypatch.setattr(mapped, "LARGE", 1)
    target = tmp_path / "out.onnx"
    target.write_bytes(b"there before")
    plain, reads = mapped._read, []

    def vanishing(tensor: onnx.TensorProto) -> Any:
        reads.append(tensor.name)
        if len(reads) == 9:
            (tmp_path / "model.bin").unlink()
        return plain(tensor)

    monkeypatch.setattr(mapped, "_read", vanishing)
    with pytest.raises(OnnxpruneError, match=r"model\.bin: external data cannot be read: No such file"):
        prune_file(Job(path, target), None, Options(repair="none", sparsity=0.9), lambda *told: None)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["model.onnx", "out.onnx"]
    assert target.read_bytes() == b"there before"


def measured(folder: Path, *words: str) -> dict[str, Any]:
    """What tools/large_model.py tells of its run."""
    ran = subprocess.run([sys.executable, ROOT / "tools" / "large_model.py", folder, *words], capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("words", [("--width", "1472"), ("--width", "2080", "--dtype", "float16")])
def test_masks_take_a_fraction_of_the_model(tmp_path: Path, words: tuple[str, ...]) -> None:
    found = measured(tmp_path, "--blocks", "6", *words)
    assert found["gb"] == pytest.approx(0.62, abs=0.01)
    assert found["peak_gb"] < 0.4  # 0.1 is the program itself, and the largest tensor is 35 MB
