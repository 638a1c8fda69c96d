"""Tables in terminals of several widths: no line is too long, no name is cut, and what is left out follows below."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import model_of
from onnx import helper
from rich.cells import cell_len
from rich.console import Console

from onnxprune import prune
from onnxprune.inspecting import find_in, report_of
from onnxprune.listing import show_found
from onnxprune.options import Options
from onnxprune.pipeline import plan
from onnxprune.report import to_json
from onnxprune.tables import show_layers
from onnxprune.terminal import show_plan

LAYERS = 300


@pytest.fixture(scope="module")
def deep(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 small layers with long names that are not ASCII, and a node that is skipped."""
    rng = np.random.default_rng(0)
    nodes, weights, last = [], {}, "x"
    for number in range(LAYERS):
        weights[f"w{number}"] = rng.normal(0, 0.3, (8, 8)).astype(np.float32)
        name = f"/编码器/schicht_ä{number}/attention/self/query/MatMul"
        nodes.append(helper.make_node("MatMul", [last, f"w{number}"], [f"h{number}"], name))
        last = f"h{number}"
    nodes.append(helper.make_node("MatMul", [last, "x"], ["y"], "/выход/MatMul"))
    path = tmp_path_factory.mktemp("deep") / "tief.onnx"
    onnx.save(model_of(nodes, {"x": (8, 8)}, {"y": (8, 8)}, weights), str(path))
    return path


def shown(width: int, show: object, *words: object) -> str:
    console = Console(file=io.StringIO(), width=width, highlight=False)
    show(console, *words)  # type: ignore[operator]
    return console.file.getvalue()  # type: ignore[attr-defined,no-any-return]


def cells(text: str) -> int:
    return max(cell_len(line) for line in text.splitlines())


@pytest.mark.parametrize("width", [60, 80, 120, 160])
def test_no_line_is_wider_than_the_terminal_and_every_name_is_whole(deep: Path, width: int) -> None:
    report = plan(deep, Options(sparsity=0.9, repair="none"))
    text = shown(width, lambda console: show_plan(console, deep, report))
    assert cells(text) <= width
    unfolded = "".join(line.split("  ")[0].strip() for line in text.splitlines())
    for number in (0, 150, 299):
        assert f"/编码器/schicht_ä{number}/attention/self/query/MatMul" in unfolded
    assert f"{LAYERS} layers" in text
    assert "computed at run time" in text.replace("\n", " ")


@pytest.mark.parametrize("width", [80, 120])
def test_inspect_without_a_sparsity_fits_too(deep: Path, width: int) -> None:
    found = find_in(deep)
    text = shown(width, lambda console: show_found(console, deep, found))
    assert cells(text) <= width
    assert f"{LAYERS} layers, 19,200 weights, 1 nodes skipped" in " ".join(text.split())
    assert len(report_of(found)["layers"]) == LAYERS
    assert "编码器" in to_json(report_of(found))


def test_a_layer_takes_one_line_at_80_columns_when_its_name_is_no_longer_than_30(digits: Path) -> None:
    report = prune(digits / "digits.onnx", digits / "calib.npz", sparsity=0.9, samples=40, device="cpu").report
    text = shown(80, lambda console: show_layers(console, report.layers))
    lines = text.splitlines()
    assert len(lines) == 1 + 9 + 1 + 2  # titles, layers, totals; what the error is, and the remark of seven layers
    assert lines[0].split() == ["layer", "shape", "kept", "density", "error"]
    assert lines[-1] == "in BatchNorm: 7 layers"


def test_a_wide_terminal_has_every_column_and_its_remarks_in_the_rows(digits: Path) -> None:
    report = prune(digits / "digits.onnx", digits / "calib.npz", sparsity=0.9, samples=40, device="cpu").report
    lines = shown(160, lambda console: show_layers(console, report.layers)).splitlines()
    assert lines[0].split() == ["layer", "op", "shape", "weights", "kept", "density", "repair", "error", "notes"]
    assert sum("in BatchNorm" in line for line in lines) == 7
