"""Masks on models whose large tensors stay in their files: the same bytes come out as when they are in memory, and memory stays small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import zoo
from conftest import Ran

from onnxprune import pipeline, prune
from onnxprune.errors import OnnxpruneError
from onnxprune.graph import mapped, stops
from onnxprune.job import Job, prune_file
from onnxprune.options import Options
from onnxprune.runtime import session

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


@pytest.fixture
def staged(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Leaves tensors in their files where a model runs too, and cuts it before every node that reads one; or does not."""
    monkeypatch.setattr(mapped, "LARGE", 64)  # what ONNX Runtime must see while it loads the model is smaller
    monkeypatch.setattr(stops, "STAGE", 1)
    return lambda on: monkeypatch.setattr(pipeline, "STAGED", 0 if on else 1 << 60)


REPAIRED = ("half", "behind_transpose", "one_weight_of_two_nodes", "local_function_called_twice", "layer_norm", "qlinear_matmul")


@pytest.mark.parametrize(
    ("name", "repair"),
    [
        *((name, repair) for name in REPAIRED for repair in ("none", "channel", "bn", "reconstruct")),
        *(pytest.param(name, "channel", marks=pytest.mark.slow) for name in zoo.SUBJECTS if name not in REPAIRED),
    ],
)
def test_a_repair_in_stages_gives_the_same_model(name: str, repair: str, tmp_path: Path, staged: Callable[[bool], None]) -> None:
    subject = zoo.SUBJECTS[name]()
    path = external(subject.model, tmp_path)
    options = Options(sparsity=0.5, repair=repair, batch_size=subject.batch, device="cpu", **subject.options)
    found = []
    for on in (False, True):
        staged(on)
        target = tmp_path / f"{on}" / "out.onnx"
        target.parent.mkdir()
        report = prune_file(Job(path, target), dict(subject.samples), options, lambda *told: None)
        found.append((report, onnx.load(str(target))))
    (plain, before), (walked, after) = found
    assert walked.changes == plain.changes
    assert [(one.kept, one.nonzero, one.repair, one.notes) for one in walked.layers] == [
        (one.kept, one.nonzero, one.repair, one.notes) for one in plain.layers
    ]
    # The statistics are those of other sessions, which round otherwise: by a unit of the last place of what is stored.
    for one, other in zip(before.graph.initializer, after.graph.initializer, strict=True):
        values = onnx.numpy_helper.to_array(one).astype(np.float64)
        share = 1e-3 if name in ("half", "bfloat16") else 1e-5
        wide = share * np.abs(values[np.isfinite(values)]).max(initial=0)
        np.testing.assert_allclose(onnx.numpy_helper.to_array(other).astype(np.float64), values, rtol=share, atol=wide)
    if plain.agreement is not None:
        assert walked.agreement is not None and walked.agreement.score == pytest.approx(plain.agreement.score, abs=1e-3)


def test_outputs_and_statistics_never_hold_two_weights(digits: Path, tmp_path: Path, staged: Callable[[bool], None], monkeypatch) -> None:
    """Every session of a run reads at most the weights of one layer."""
    staged(True)
    plain, read = session._handed, []

    def counted(model: onnx.ModelProto, least: int) -> Any:
        read.append([tensor.name for tensor in model.graph.initializer if mapped.is_mapped(tensor) and len(tensor.dims) > 1])
        return plain(model, least)

    monkeypatch.setattr(session, "_handed", counted)
    path = external(onnx.load(str(digits / "digits_folded.onnx")), tmp_path)
    target = tmp_path / "out.onnx"
    prune_file(
        Job(path, target), str(digits / "calib.npz"), Options(sparsity=0.9, repair="channel", samples=40, device="cpu"), lambda *told: None
    )
    layers = {name for names in read for name in names}
    assert len(layers) > 5
    # Convolutions and the shortcuts beside them may lie between two places of repair.
    assert max(map(len, read)) <= 2


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
    assert found["peak_gb"] < 0.45  # 0.1 is the program itself, and the largest tensor 35 MB; in memory it takes three models
