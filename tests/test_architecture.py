"""The rules of the house about who imports whom, read from the source."""

import ast
import functools
from pathlib import Path

import pytest

import onnxprune

ROOT = Path(onnxprune.__file__).parent
MODULES = {".".join(path.relative_to(ROOT.parent).with_suffix("").parts): path for path in sorted(ROOT.rglob("*.py"))}
ONNX = ("onnx", "onnxruntime", "onnx_graphsurgeon")
FORBIDDEN = {
    "onnxprune.numerics": (*ONNX, "onnxprune.graph", "onnxprune.runtime"),
    "onnxprune.graph": ("onnxruntime", "onnxprune.numerics", "onnxprune.runtime"),
    "onnxprune.runtime": ("onnxprune.numerics",),
}
WINGS = tuple(FORBIDDEN)
parsed = functools.cache(ast.parse)


def imports(source, module):
    """Every module that the source imports, at any depth, as absolute names; ``from a import b`` counts as a and a.b."""
    package = module.split(".")[:-1]
    for node in ast.walk(parsed(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            origin = ".".join([*above, *([node.module] if node.module else [])])
            yield origin
            yield from (f"{origin}.{alias.name}" for alias in node.names)


def inside(name, package):
    return name == package or name.startswith(f"{package}.")


def offenders(allowed, wanted):
    """Modules that import one of the wanted packages although they are not allowed to."""
    return {
        (module, name)
        for module, path in MODULES.items()
        for name in imports(path.read_text(), module)
        if any(inside(name, package) for package in wanted) and not allowed(module)
    }


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import onnx.helper as h", {"onnx.helper"}),
        ("def f():\n    from onnxprune import graph, errors", {"onnxprune", "onnxprune.graph", "onnxprune.errors"}),
        ("from ..runtime import session", {"onnxprune.runtime", "onnxprune.runtime.session"}),
        ("from . import masks", {"onnxprune.numerics", "onnxprune.numerics.masks"}),
        ("from .masks import top", {"onnxprune.numerics.masks", "onnxprune.numerics.masks.top"}),
        ("try:\n    import a, b\nexcept ImportError:\n    pass", {"a", "b"}),
    ],
)
def test_imports_by_hand(source, found):
    assert set(imports(source, "onnxprune.numerics.repair")) == found


def test_all_modules_are_seen():
    assert {"onnxprune.cli", "onnxprune.graph.layers", "onnxprune.numerics.repair", "onnxprune.runtime.session"} <= set(MODULES)


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_imports_no_other(wing):
    assert not offenders(lambda module: not inside(module, wing), FORBIDDEN[wing])


@pytest.mark.parametrize("wing", WINGS)
def test_a_wing_knows_nothing_of_what_is_above_it(wing):
    below = {"errors", *(name.rsplit(".", 1)[1] for name in WINGS)}
    above = [name for name in MODULES if name.count(".") == 1 and name.split(".")[1] not in below]
    assert "onnxprune.pipeline" in above
    assert not offenders(lambda module: not inside(module, wing), above)


def test_graphsurgeon_builds_what_runs_beside_the_model_alone():
    """Its export loses metadata and unused initializers: a product that came through it would not be the model that went in."""
    builders = ("onnxprune.graph.probes", "onnxprune.graph.wide", "onnxprune.runtime.grams")
    assert {module for module, _ in offenders(lambda name: False, ["onnx_graphsurgeon"])} == set(builders)


def test_runtime_reads_the_graph():
    """The one way that is open, so that the tests above do not pass on an empty list."""
    assert offenders(lambda module: not inside(module, "onnxprune.runtime"), ["onnxprune.graph"])


CHILD = "onnxprune.runtime.child"
"""Runs in a process of its own, started by its path: it imports onnxruntime itself, because the rest would take longer than its work."""


@pytest.mark.parametrize(
    ("package", "modules"),
    [
        ("click", {"onnxprune.cli", "onnxprune.cli_sweep", "onnxprune.flags"}),  # the commands, and the options that they share
        ("click_default_group", {"onnxprune.cli"}),
        ("jinja2", {"onnxprune.page"}),
        ("matplotlib", {"onnxprune.svg", "onnxprune.plots"}),
        ("onnxruntime", {"onnxprune.runtime.session", CHILD}),
    ],
)
def test_these_modules_alone_import(package, modules):
    assert {module for module, _ in offenders(lambda name: False, [package])} == modules


def test_the_child_process_imports_nothing_of_the_package_and_nothing_imports_it():
    assert not offenders(lambda name: name != CHILD, ["onnxprune"])
    assert not offenders(lambda name: False, [CHILD])


@pytest.mark.parametrize("module", MODULES)
def test_a_module_holds_one_idea(module):
    lines = len(MODULES[module].read_text().splitlines())
    assert lines <= 250, f"{lines} lines: two ideas; split by idea"


def test_no_module_is_named_after_nothing():
    assert not {name for name in MODULES if name.rsplit(".", 1)[-1] in ("utils", "common", "helpers", "base", "core")}


def test_only_the_command_line_prints():
    found = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(parsed(path.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    }
    assert found <= {"onnxprune.cli", "onnxprune.terminal", CHILD}  # what the child prints goes into a pipe
