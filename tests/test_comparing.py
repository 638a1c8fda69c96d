"""onnxprune compare: labels in step with the samples, latency by turns, sparsities."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Ran
from networks import run

from onnxprune import prune
from onnxprune.runtime import latency

Call = Callable[..., Ran]


@pytest.fixture
def folder(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.onnx, masked.onnx, and test.npz with its labels; the current folder."""
    shutil.copy(digits / "digits.onnx", tmp_path / "model.onnx")
    shutil.copy(digits / "test.npz", tmp_path / "test.npz")
    prune(tmp_path / "model.onnx", sparsity=0.8, repair="none").save(tmp_path / "masked.onnx")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def compared(onnxprune: Call, *words: object) -> dict:
    ran = onnxprune("compare", "model.onnx", "masked.onnx", "--device", "cpu", "--json", *words)
    assert (ran.code, ran.err) == (0, "")
    return json.loads(ran.out)


def right(folder: Path, name: str, rows: np.ndarray) -> float:
    test = np.load(folder / "test.npz")
    logits = run(onnx.load(str(folder / name)), {"image": test["image"][rows]})["logits"]
    return float(np.mean(logits.argmax(1) == test["labels"][rows]))


def test_labels_give_the_accuracy_of_both_on_all_samples(folder: Path, onnxprune: Call) -> None:
    found = compared(onnxprune, "--calib", "test.npz", "--labels", "test.npz", "--samples", 600)["accuracy"]
    rows = np.arange(600)
    assert found["samples"] == 600
    assert found["output"] == "logits"
    assert found["dense"] == pytest.approx(right(folder, "model.onnx", rows), abs=1e-9)
    assert found["pruned"] == pytest.approx(right(folder, "masked.onnx", rows), abs=1e-9)
    assert found["pruned"] < found["dense"]


def test_labels_are_drawn_in_step_with_the_samples(folder: Path, onnxprune: Call) -> None:
    test = np.load(folder / "test.npz")
    (folder / "images").mkdir()
    for number in range(60):
        np.save(folder / "images" / f"{number:02}.npy", test["image"][number])
    (folder / "labels.txt").write_text("\n".join(map(str, test["labels"][:60])))
    found = compared(onnxprune, "--calib", "images", "--labels", "labels.txt", "--samples", 25, "--seed", 3)["accuracy"]
    rows = np.sort(np.random.default_rng(3).permutation(60)[:25])
    assert found["samples"] == 25
    assert found["dense"] == pytest.approx(right(folder, "model.onnx", rows), abs=1e-9)
    assert found["pruned"] == pytest.approx(right(folder, "masked.onnx", rows), abs=1e-9)


def test_labels_that_do_not_fit_are_one_line(folder: Path, onnxprune: Call) -> None:
    np.save(folder / "few.npy", np.zeros(10, np.int64))
    np.save(folder / "large.npy", np.full(600, 10))
    for name, said in (
        ("few.npy", "holds 10 labels, there are 600 samples"),
        ("large.npy", "label 10, output 'logits' has classes 0 to 9"),
    ):
        ran = onnxprune("compare", "model.onnx", "masked.onnx", "--calib", "test.npz", "--labels", name, "--samples", 50)
        assert ran.code == 1
        (line,) = ran.err.splitlines()
        assert said in line


def test_without_labels_there_is_no_accuracy(folder: Path, onnxprune: Call) -> None:
    found = compared(onnxprune, "--calib", "test.npz", "--samples", 20)
    assert found["accuracy"] is None
    assert found["dense_sparsity"] == pytest.approx(0, abs=1e-6)
    assert found["pruned_sparsity"] == pytest.approx(0.8, abs=1e-5)
    took = found["latency"]
    assert took["runs"] == latency.LEAST
    assert took["samples"] == 20
    for side in ("dense", "pruned"):
        assert 0 < took[side]["low_ms"] <= took[side]["median_ms"] <= took[side]["high_ms"]


def test_the_table_says_that_zeros_do_not_make_it_faster(folder: Path, onnxprune: Call) -> None:
    ran = onnxprune("compare", "model.onnx", "masked.onnx", "--calib", "test.npz", "--labels", "test.npz", "--samples", 20)
    assert ran.code == 0
    for word in ("top-1", "gzip size", "zstd size", "as sparse", "latency", "quartiles", "zeros do not make a model faster"):
        assert word in ran.out


def test_the_models_take_turns_and_every_second_round_is_turned_round(monkeypatch: pytest.MonkeyPatch) -> None:
    class Session:
        def get_outputs(self) -> list:
            return []

    one, other, seen = Session(), Session(), []
    monkeypatch.setattr(latency, "run_session", lambda session, feed, names: seen.append("a" if session is one else "b"))
    monkeypatch.setattr(latency, "SECONDS", 0.0)
    seconds = latency.race([one, other], {})
    assert seconds.shape == (2, latency.LEAST)
    measured = "".join(seen[2 * latency.WARM_UP :])
    assert measured == ("abba" * latency.LEAST)[: 2 * latency.LEAST]
