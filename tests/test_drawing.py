"""How many samples a batch has where nobody says."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from models import build, node

from onnxprune import prune
from onnxprune.drawing import MOST, Taken, draw
from onnxprune.options import Options


def pointwise(side: int, batch: int | str = "N") -> onnx.ModelProto:
    """A 1x1 convolution of 3 to 16 channels; a run on one sample reads 3 side^2 elements and gives 16."""
    return build([node("Conv", ["x", "w"], ["y"])], {"w": np.ones((16, 3, 1, 1), np.float32)}, {"x": [batch, 3, side, side]}, ["y"])


def taken(side: int, kind: str = "cpu", batch: int | str = "N", size: int | None = None) -> Taken:
    samples = np.zeros((4, 3, side, side), np.float32)
    return draw(samples, pointwise(side, batch), Options(sparsity=0.5, batch_size=size), kind, holdout=0.0)


@pytest.mark.parametrize(
    ("side", "elements", "size"),
    [
        (10, 2 * 19 * 100, 32),  # 15 kB a sample
        (250, 2 * 19 * 62_500, 8),  # 9.5 MB: 80 hold 8
        (500, 2 * 19 * 250_000, 2),  # 38 MB
        (800, 2 * 19 * 640_000, 1),  # 97 MB: one is the least
    ],
)
def test_large_samples_run_few_at_a_time(side: int, elements: int, size: int) -> None:
    drawn = taken(side)
    assert (drawn.elements, drawn.batch_size) == (elements, size)


def test_what_is_asked_for_is_taken() -> None:
    assert taken(500, size=3).batch_size == 3
    assert taken(500, batch=4).batch_size == 4  # the model fixes it


def test_a_device_takes_all() -> None:
    assert taken(500, "cuda").batch_size == MOST


def test_the_report_says_how_many() -> None:
    report = prune(pointwise(500), np.zeros((4, 3, 500, 500), np.float32), sparsity=0.5, device="cpu", holdout=0.0).report
    assert report.calibration is not None and report.calibration.batch_size == 2
    assert report.options["batch_size"] is None
