"""The reference models and data beside the project, for the scripts in this folder.

The folder is ONNXPRUNE_REFERENCE, else ../shared/reference beside the repository; its README says what is in it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

FOLDER = Path(os.environ.get("ONNXPRUNE_REFERENCE") or Path(__file__).resolve().parents[2] / "shared" / "reference")
# How the samples of a suite are read: the options of the command line.
CIFAR10 = ["--calib", "cifar10/calib.npz", "--layout", "nhwc", "--mean", "123.675,116.28,103.53", "--std", "58.395,57.12,57.375"]
IMAGENET = ["--calib", "imagenet/calib", "--mean", "127", "--std", "128"]


def suite(model: str) -> str:
    """ "cifar10" or "imagenet", from the folder of the model."""
    return model.split("/")[0]


def calib_options(model: str) -> list[str]:
    """The options that read the calibration samples of a model's suite."""
    flags = list(CIFAR10 if suite(model) == "cifar10" else IMAGENET)
    flags[1] = str(FOLDER / flags[1])
    return flags


def samples(model: str) -> Any:
    """All calibration samples of a suite in model units, (N, 3, H, W) float32; cifar10 only."""
    stored = np.load(FOLDER / "cifar10" / "calib.npz")["x"].astype(np.float32)
    mean = np.array([123.675, 116.28, 103.53], np.float32)
    std = np.array([58.395, 57.12, 57.375], np.float32)
    return np.ascontiguousarray(((stored - mean) / std).transpose(0, 3, 1, 2))


def top1(model: onnx.ModelProto | Path, name: str) -> float:
    """Top-1 accuracy on the suite's labelled samples, as evaluate.py of the reference folder computes it."""
    found, labels = outputs(model, name)
    return float((found.argmax(1) == labels).mean())


def outputs(model: onnx.ModelProto | Path, name: str) -> tuple[Any, Any]:
    """The first output on the suite's labelled samples, (N, classes), and the labels (N,)."""
    sys.path.insert(0, str(FOLDER))
    import evaluate  # the reference folder's own script

    sys.path.pop(0)
    images, labels = {"cifar10": evaluate.cifar10, "imagenet": evaluate.imagenet}[suite(name)]()
    source = str(model) if isinstance(model, Path) else model.SerializeToString()
    session = onnxruntime.InferenceSession(source, providers=["CPUExecutionProvider"])
    feed = session.get_inputs()[0].name
    step = 250 if suite(name) == "cifar10" else 32
    images = np.ascontiguousarray(images)
    found = [session.run(None, {feed: images[at : at + step]})[0] for at in range(0, len(images), step)]
    return np.concatenate(found), labels


def require() -> None:
    """Leave with a message when the reference folder is not there."""
    if not (FOLDER / "cifar10").is_dir():
        sys.exit(f"{FOLDER} holds no reference models; set ONNXPRUNE_REFERENCE to the folder that does")
