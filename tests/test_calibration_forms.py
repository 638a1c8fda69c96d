"""Samples of several lengths and samples from an iterator, through the whole run."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from networks import model_of
from onnx import helper

from onnxprune import OnnxpruneError, prune


def conv_1d(classes: bool = True) -> onnx.ModelProto:
    """x (n, 4, t) -> Conv Relu Conv -> (n, 6, t), or with a pool and a MatMul -> (n, 5)."""
    rng = np.random.default_rng(0)
    weights = {"w0": (8, 4, 3), "w1": (6, 8, 3), "w2": (6, 5)}
    values = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in weights.items()}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["a"], "c0", pads=[1, 1]),
        helper.make_node("Relu", ["a"], ["h"]),
        helper.make_node("Conv", ["h", "w1"], ["y"], "c1", pads=[1, 1]),
    ]
    if not classes:
        del values["w2"]
        return model_of(nodes, {"x": ("n", 4, "t")}, {"y": ("n", 6, "t")}, values)
    nodes += [helper.make_node("ReduceMean", ["y"], ["p"], axes=[2], keepdims=0), helper.make_node("MatMul", ["p", "w2"], ["z"], "fc")]
    return model_of(nodes, {"x": ("n", 4, "t")}, {"z": ("n", 5)}, values)


def items() -> Iterator[np.ndarray]:
    """36 samples of four lengths: six batches of six."""
    rng = np.random.default_rng(1)
    for length in (5, 7, 5, 9, 7, 6):
        yield rng.normal(size=(6, 4, length)).astype(np.float32)


@pytest.mark.parametrize("repair", ["channel", "reconstruct", "asr", "bn"])
@pytest.mark.parametrize("classes", [True, False])
def test_lengths_differ_through_the_whole_run(repair: str, classes: bool) -> None:
    report = prune(conv_1d(classes), items, sparsity=0.5, repair=repair, batch_size=4, device="cpu").report
    assert report.calibration is not None
    assert (report.calibration.available, report.calibration.repair, report.calibration.holdout) == (36, 29, 7)
    assert "samples of 4 shapes: those of one shape run together, nothing is padded" in report.notes
    assert report.agreement is not None
    assert report.agreement.samples == 7  # one a sample, also where outputs have several lengths


def test_files_of_several_lengths_are_the_same_samples(tmp_path: Path) -> None:
    for number, item in enumerate(items()):
        np.save(tmp_path / f"{number}.npy", item)
    one = prune(conv_1d(), tmp_path, sparsity=0.5, device="cpu").model
    other = prune(conv_1d(), items, sparsity=0.5, device="cpu").model
    assert one.SerializeToString() == other.SerializeToString()


def test_an_endless_iterator_is_taken_as_far_as_needed_and_copied() -> None:
    taken = []

    def endless() -> Iterator[np.ndarray]:
        buffer = np.zeros((4, 6), np.float32)
        rng = np.random.default_rng(3)
        while True:
            buffer[:] = rng.normal(size=buffer.shape)  # the same array again and again
            taken.append(buffer.copy())
            yield buffer

    result = prune(conv_1d(), endless, sparsity=0.5, samples=20, device="cpu")
    assert len(taken) == 20
    assert "the first 20 samples of the iterator were taken, as --samples 20 asks" in result.report.notes
    whole = prune(conv_1d(), np.stack(taken), sparsity=0.5, samples=20, device="cpu")
    assert result.model.SerializeToString() == whole.model.SerializeToString()


@pytest.mark.parametrize(
    ("calib", "words"),
    [
        (lambda: iter(()), "gave nothing"),
        (lambda: 7, "returned int"),
        (lambda: [[1, 2]], "item 0: calibration array 'array': got list"),
        (lambda: [np.zeros((4, 6))], "got float64"),
        (lambda: [np.zeros((4, 6), np.float32), np.zeros(3, np.float32)], "item 1: "),
        (lambda: [{"y": np.zeros((4, 6), np.float32), "z": np.zeros(1)}], "arrays y, z; model inputs: x"),
    ],
)
def test_items_that_are_no_samples(calib: Any, words: str) -> None:
    with pytest.raises(OnnxpruneError) as error:
        prune(conv_1d(), calib, sparsity=0.5, device="cpu")
    assert words in str(error.value)
