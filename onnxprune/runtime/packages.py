"""The packages that ONNX Runtime comes in."""

from __future__ import annotations

import contextlib
from importlib import metadata

RUNTIME_PACKAGES = ("onnxruntime", "onnxruntime-gpu")


def both_runtimes() -> str:
    """A warning when onnxruntime and onnxruntime-gpu are both installed, else an empty string."""
    found = []
    for name in RUNTIME_PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    if len(found) < 2:
        return ""
    return (
        f"{' and '.join(found)} are both installed and overwrite each other's files; the last one installed wins. "
        f"Uninstall both, then install only one"
    )
