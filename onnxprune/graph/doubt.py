"""What onnx.checker holds against a model, and errors in terms of it.

ONNX Runtime takes many files that the checker refuses (an output without a shape is common), and so does onnxprune, with a note. But
where such a file breaks something on the way, the file is to blame, and the error says so.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import onnx

from onnxprune.errors import ModelError, OnnxpruneError
from onnxprune.graph.complete import PROTO_LIMIT, fits


def doubt_of(model: onnx.ModelProto | bytes | Path) -> str:
    """The checker's words on a model, its bytes or its file, in one line; empty when it has none, or the model is over 2 GiB.

    It takes about 7 ms a MB.
    """
    if isinstance(model, onnx.ModelProto):
        if not fits(model, PROTO_LIMIT + 1):
            return ""
        try:
            model = model.SerializeToString()
        except Exception as error:
            return " ".join(str(error).split())[:200]
    try:
        onnx.checker.check_model(str(model) if isinstance(model, Path) else model)
    except Exception as error:  # ValidationError, and whatever the binding raises on damage
        return " ".join(str(error).split())[:200]
    return ""


@contextlib.contextmanager
def blamed(doubt: str, proof: Callable[[], None] = lambda: None) -> Iterator[None]:
    """Turn any error in the block into a ModelError with the checker's words, if it has any.

    Without them, ``proof`` may raise one of its own (ONNX Runtime refuses what the checker lets pass); else the error is ours.
    """
    try:
        yield
    except (OnnxpruneError, OSError, MemoryError):
        raise
    except Exception as error:
        if not doubt:
            proof()
            raise
        raise ModelError(f"the model is no valid ONNX, onnx.checker says: {doubt}") from error


def note(doubt: str) -> list[str]:
    """What the report says of the checker's words."""
    return [f"onnx.checker refuses the model as it was given: {doubt}"] if doubt else []
