"""The package's names, and how the command begins."""

from __future__ import annotations

import subprocess
import sys

import pytest

import onnxprune

HEAVY = ("rich", "PIL", "matplotlib", "jinja2", "onnxprune.page", "onnxprune.sweeping", "onnxprune.comparing", "onnx.reference")
"""What a quiet run on arrays has no need of."""


def ran(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_every_public_name_is_there_and_is_itself() -> None:
    for name in onnxprune.__all__:
        assert getattr(onnxprune, name) is getattr(onnxprune, name)
    assert {*onnxprune.__all__} <= {*dir(onnxprune)}
    assert onnxprune.Options.__module__ == "onnxprune.options"


def test_an_unknown_name_is_told() -> None:
    with pytest.raises(AttributeError, match="module 'onnxprune' has no attribute 'prunes'"):
        _ = onnxprune.prunes


def test_modules_are_there_without_an_import_of_their_own() -> None:
    code = "import onnxprune; print(onnxprune.errors.ModelError.__name__, onnxprune.report.to_json.__name__, hasattr(onnxprune, '_cli'))"
    assert ran(code) == "ModelError to_json False\n"


def test_a_library_that_a_module_lacks_is_named() -> None:
    code = (
        "import sys; sys.modules['rich.console'] = None; import onnxprune\ntry: onnxprune.terminal\nexcept ImportError as e: print(e.name)"
    )
    assert ran(code) == "rich.console\n"


def test_a_star_import_brings_all_names() -> None:
    assert ran("from onnxprune import *; print(prune.__name__, Options(sparsity=0.5).sparsity)") == "prune 0.5\n"


def test_the_package_alone_imports_no_library() -> None:
    assert ran("import onnxprune, sys; print([name for name in ('numpy', 'onnx') if name in sys.modules])") == "[]\n"


def test_the_command_line_imports_nothing_that_one_command_alone_needs() -> None:
    assert ran(f"import onnxprune.cli, sys; print([name for name in {HEAVY!r} if name in sys.modules])") == "[]\n"


def test_garbage_is_collected_again_once_the_command_has_begun() -> None:
    code = "import gc, sys; from onnxprune import __main__, cli; cli.main = lambda: print(gc.isenabled(), gc.get_freeze_count() > 10_000)"
    assert ran(f"{code}; __main__.script()") == "True True\n"
