"""onnxprune: prune an ONNX model to high sparsity and repair it from unlabelled samples, without retraining."""

__version__ = "0.1.0"

from onnxprune.errors import OnnxpruneError
from onnxprune.options import Options
from onnxprune.pipeline import Result, prune
from onnxprune.report import Report
from onnxprune.runtime.calibration import Preprocess

__all__ = ["OnnxpruneError", "Options", "Preprocess", "Report", "Result", "__version__", "prune"]
