"""Fixtures for the tests of the top level: the example, the reference subjects, and the command line run in this process."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Under `make test` a make that a test starts would take itself for a part of that one, and print its folder.
for name in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
    os.environ.pop(name, None)


@dataclass(frozen=True)
class Ran:
    """What a command line gave back."""

    code: int
    out: str
    err: str


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked long come first."""
    items.sort(key=lambda item: item.get_closest_marker("long") is None)


def pytest_collection_finish() -> None:
    """What the collection made stays: the garbage collector need not look through it again, thousands of times."""
    gc.freeze()


@pytest.fixture(autouse=True)
def _all_cores(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing limits the threads of tests marked cores, nor those of what they start."""
    if request.node.get_closest_marker("cores"):
        from onnxprune.numerics.threads import LIMIT

        monkeypatch.delenv(LIMIT, raising=False)


@pytest.fixture(scope="session")
def digits() -> Path:
    """The folder of the example."""
    return ROOT / "examples" / "01_digits"


@pytest.fixture(scope="session")
def reference() -> Path:
    """The folder of the reference subjects; the test is skipped where there is none."""
    folder = Path(os.environ.get("ONNXPRUNE_REFERENCE") or ROOT.parent / "shared" / "reference")
    if not folder.is_dir():
        pytest.skip(f"no reference subjects in {folder}; set ONNXPRUNE_REFERENCE")
    return folder


@pytest.fixture
def onnxprune(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Ran]:
    """onnxprune("inspect", path, ...) runs the console script's function and gives its exit code, stdout and stderr.

    A comparison takes no more runs for the latency than it must.
    """
    from onnxprune.cli import main
    from onnxprune.runtime import latency

    monkeypatch.setattr(latency, "SECONDS", 0.0)

    def call(*args: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["onnxprune", *map(str, args)])
        capsys.readouterr()
        code = 0
        try:
            main()
        except SystemExit as error:
            code = error.code if isinstance(error.code, int) else int(error.code is not None)
        out, err = capsys.readouterr()
        return Ran(code, out, err)

    return call
