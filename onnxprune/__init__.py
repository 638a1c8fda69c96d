"""onnxprune: prune an ONNX model to high sparsity and repair it from unlabelled samples, without retraining."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from onnxprune.errors import OnnxpruneError
    from onnxprune.options import Options
    from onnxprune.pipeline import Result, prune
    from onnxprune.report import Report
    from onnxprune.runtime.calibration import Preprocess

__version__ = "0.1.0"
__all__ = ["OnnxpruneError", "Options", "Preprocess", "Report", "Result", "__version__", "prune"]
PLACES = {
    "OnnxpruneError": "onnxprune.errors",
    "Options": "onnxprune.options",
    "Preprocess": "onnxprune.runtime.calibration",
    "Report": "onnxprune.report",
    "Result": "onnxprune.pipeline",
    "prune": "onnxprune.pipeline",
}
"""Where the names are that are imported when they are first asked for: the command line begins before that (__main__)."""


def __getattr__(name: str) -> Any:
    if name in PLACES:
        return globals().setdefault(name, getattr(import_module(PLACES[name]), name))
    whole = f"{__name__}.{name}"
    if not name.startswith("_"):
        try:
            return import_module(whole)  # onnxprune.report needs no import of its own
        except ModuleNotFoundError as error:
            if error.name != whole:
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
