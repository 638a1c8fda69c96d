"""examples/01_digits: what the README promises, on the labels that the tool never sees."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Ran
from networks import run

from onnxprune import prune


def accuracy(model: onnx.ModelProto, digits: Path) -> float:
    test = np.load(digits / "test.npz")
    return float(np.mean(run(model, {"image": test["image"]})["logits"].argmax(axis=1) == test["labels"]))


@pytest.mark.parametrize("form", ["digits.onnx", "digits_folded.onnx"])
def test_95_percent_of_the_weights_go_and_the_accuracy_comes_back(
    digits: Path, form: str, tmp_path: Path, onnxprune: Callable[..., Ran]
) -> None:
    words = ("--alloc", "erk", "--sparsity", "0.95", "--out-dir", tmp_path)
    assert onnxprune(digits / form, *words, "--calib", digits / "calib.npz", "-q").code == 0
    repaired = onnx.load(str(tmp_path / form.replace(".onnx", ".pruned.onnx")))
    masked = prune(digits / form, sparsity=0.95, alloc="erk", repair="none").model
    assert accuracy(onnx.load(str(digits / form)), digits) > 0.99
    assert accuracy(masked, digits) < 0.5
    assert accuracy(repaired, digits) >= 0.95


@pytest.mark.parametrize("repair", [*(pytest.param(name, marks=pytest.mark.slow) for name in ("bn", "layer", "asr")), "channel"])
def test_the_twins_come_out_alike(digits: Path, repair: str) -> None:
    """Top-1 of the two forms within 1 point; the masks differ, for folding scales the channels."""
    found = [
        accuracy(prune(digits / form, digits / "calib.npz", sparsity=0.9, repair=repair).model, digits)
        for form in ("digits.onnx", "digits_folded.onnx")
    ]
    assert abs(found[0] - found[1]) <= 0.01, found


def test_the_calibration_samples_carry_no_labels_and_are_not_the_test(digits: Path) -> None:
    calib, test = np.load(digits / "calib.npz"), np.load(digits / "test.npz")
    assert calib.files == ["image"]
    seen = {image.tobytes() for image in calib["image"]}
    assert not any(image.tobytes() in seen for image in test["image"])
