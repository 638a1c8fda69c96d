"""The command line: how words become a run, what is printed where, exit codes, and that nothing is left when a run is cut off."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from conftest import Ran
from networks import mlp, model_of, samples, tensors, twins
from onnx import helper
from rich.console import Console

from onnxprune import __version__, bars, prune
from onnxprune.graph.model import load

Call = Callable[..., Ran]
QUICK = ("--samples", "40", "--batch-size", "20")
SCRIPT = [sys.executable, "-m", "onnxprune"]


@pytest.fixture
def folder(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with model.onnx, folded.onnx and calib.npz; the current one."""
    shutil.copy(digits / "digits.onnx", tmp_path / "model.onnx")
    shutil.copy(digits / "digits_folded.onnx", tmp_path / "folded.onnx")
    shutil.copy(digits / "calib.npz", tmp_path / "calib.npz")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def fails(ran: Ran, code: int, *words: str) -> None:
    """The run failed with one line on stderr that holds the words, and printed nothing."""
    assert ran.code == code, ran
    assert ran.out == ""
    (line,) = ran.err.splitlines()
    assert line.startswith("onnxprune: error: "), line
    for word in words:
        assert word in line, line


# ---- the default command


def test_the_word_prune_may_be_left_out(folder: Path, onnxprune: Call) -> None:
    assert onnxprune("model.onnx", "--sparsity", 0.9, "--calib", "calib.npz", *QUICK).code == 0
    first = (folder / "model.pruned.onnx").read_bytes()
    assert onnxprune("prune", "model.onnx", "--sparsity", 0.9, "--calib", "calib.npz", *QUICK, "--force").code == 0
    assert (folder / "model.pruned.onnx").read_bytes() == first


@pytest.mark.parametrize(
    "words",
    [
        ("--sparsity", "0.9", "--repair", "none", "model.onnx"),
        ("--sparsity=0.9", "model.onnx", "--repair=none"),
        ("-q", "--repair", "none", "--sparsity", "0.9", "model.onnx"),
        ("-qv", "--repair", "none", "--sparsity", "0.9", "--", "model.onnx"),
        ("-o", "model.pruned.onnx", "--repair", "none", "model.onnx", "--sparsity", "0.9"),
        ("./model.onnx", "--sparsity", "0.9", "--repair", "none"),
    ],
)
def test_options_may_stand_before_the_model(folder: Path, onnxprune: Call, words: tuple[str, ...]) -> None:
    ran = onnxprune(*words)
    assert (ran.code, ran.err) == (0, "")
    assert (folder / "model.pruned.onnx").exists()


@pytest.mark.parametrize("name", ["inspect", "compare", "prune"])
def test_a_model_called_like_a_command_is_reachable(folder: Path, onnxprune: Call, name: str) -> None:
    (folder / "model.onnx").rename(folder / name)
    assert onnxprune("prune", name, "--sparsity", 0.9, "--repair", "none").code == 0
    assert (folder / f"{name}.pruned.onnx").exists()
    assert "9 layers" in onnxprune("inspect", name).out


def test_without_words_the_help_is_shown(onnxprune: Call) -> None:
    ran = onnxprune()
    assert (ran.code, ran.err) == (0, "")
    assert "onnxprune MODEL..." in ran.out


@pytest.mark.parametrize("words", [("--help",), ("-h",), ("prune", "-h"), ("inspect", "-h"), ("compare", "-h"), ("m.onnx", "-h")])
def test_help(onnxprune: Call, words: tuple[str, ...]) -> None:
    ran = onnxprune(*words)
    assert (ran.code, ran.err) == (0, "")
    assert "Usage: onnxprune" in ran.out


def test_version(onnxprune: Call) -> None:
    ran = onnxprune("--version")
    assert (ran.code, ran.out, ran.err) == (0, f"onnxprune, version {__version__}\n", "")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("model.onnx",), "Missing option '--sparsity'"),
        (("model.onnx", "--sparsity", "half"), "'half' is not a valid float"),
        (("model.onnx", "--sparsity", "0.9", "--bogus"), "'--bogus'"),
        (("--bogus",), "'--bogus'"),
        (("--sparsity", "0.9"), "'MODEL...'"),
        (("inspect",), "'MODEL'"),
        (("compare", "model.onnx"), "'PRUNED'"),
        (("model.onnx", "--sparsity", "0.9", "--alloc", "best"), "'best'"),
        (("model.onnx", "--sparsity", "0.9", "--repair", "best"), "'best'"),
        (("model.onnx", "--sparsity", "0.9", "--mean", "a,b"), "'a,b' is not a number or A,B,C"),
        (("model.onnx", "--sparsity", "0.9", "--resize", "0"), "--resize"),
        (("model.onnx", "--sparsity", "0.9", "--layer-sparsity", "fc"), "'fc' is not NAME=S"),
        (("model.onnx", "--sparsity", "0.9", "--layer-sparsity", "=0.5"), "'=0.5' is not NAME=S"),
        (("model.onnx", "--sparsity", "0.9", "--layer-sparsity", "fc=much"), "'fc=much' is not NAME=S"),
        (("model.onnx", "--sparsity", "0.9", "--samples", "few"), "'few'"),
        (("model.onnx", "--sparsity", "0.9"), "--repair channel needs calibration samples"),
        (("compare", "model.onnx", "folded.onnx"), "compare needs samples"),
        (("inspect", "model.onnx", "--include", "stem"), "--include says what is kept at a sparsity"),
        (("inspect", "model.onnx", "--layer-sparsity", "stem=0.5"), "--layer-sparsity says"),
        (("model.onnx", "folded.onnx", "--sparsity", "0.9", "-o", "out.onnx"), "-o takes one file, but 2 models"),
        (("model.onnx", "folded.onnx", "--sparsity", "0.9", "--report", "out.json"), "--report takes one file, but 2 models"),
        (("model.onnx", "--sparsity", "0.9", "-o", "a.onnx", "--out-dir", "."), "exclude each other"),
        (("model.onnx", "--sparsity", "0.9", "-o", "a.onnx", "--report", "a.onnx"), "would be written twice"),
        (("model.onnx", "./model.onnx", "--sparsity", "0.9"), "would be written twice"),
        (("model.onnx", "--sparsity", "0.9", "--repair", "none", "--device", "tpu"), "--device 'tpu' is not known"),
    ],
)
def test_wrong_words_are_one_line_and_2(folder: Path, onnxprune: Call, words: tuple[str, ...], said: str) -> None:
    before = names(folder)
    fails(onnxprune(*words), 2, said)
    assert names(folder) == before


def test_a_layers_name_may_hold_an_equals_sign(folder: Path, onnxprune: Call) -> None:
    model = mlp()
    model.graph.node[0].name = "a=1/mm"
    onnx.save(model, "net.onnx")
    words = ("inspect", "net.onnx", "--sparsity", 0.5, "--layer-sparsity", "a=1/mm=0.75", "--json")
    assert json.loads(onnxprune(*words).out)["layers"][0]["kept"] == 24


# ---- where things are written


def test_several_models_go_into_a_folder(folder: Path, onnxprune: Call) -> None:
    (folder / "out").mkdir()
    words = ("--sparsity", 0.9, "--calib", "calib.npz", *QUICK)
    ran = onnxprune("model.onnx", "folded.onnx", "--out-dir", "out", *words)
    assert ran.code == 0
    assert names(folder / "out") == ["folded.pruned.onnx", "model.pruned.onnx"]
    assert ran.out.count("sparsity ") >= 2
    for name in ("model", "folded"):
        alone = prune(folder / f"{name}.onnx", folder / "calib.npz", sparsity=0.9, samples=40, batch_size=20).model
        assert load(folder / "out" / f"{name}.pruned.onnx").model == alone


def test_two_models_of_one_name_need_two_folders(folder: Path, onnxprune: Call) -> None:
    (folder / "other").mkdir()
    shutil.copy(folder / "folded.onnx", folder / "other" / "model.onnx")
    words = ("model.onnx", "other/model.onnx", "--sparsity", 0.9, "--repair", "none")
    fails(onnxprune(*words, "--out-dir", "."), 2, "would be written twice")
    assert onnxprune(*words).code == 0
    assert (folder / "other" / "model.pruned.onnx").exists()


@pytest.mark.parametrize("target", ["model.onnx", "./model.onnx", "link.onnx", "sub/../model.onnx", "{}/model.onnx"])
@pytest.mark.parametrize("flag", ["-o", "--report"])
def test_the_input_is_never_the_output(folder: Path, onnxprune: Call, target: str, flag: str) -> None:
    (folder / "link.onnx").symlink_to("model.onnx")
    (folder / "sub").mkdir()
    before = (folder / "model.onnx").read_bytes()
    words = ("--sparsity", 0.9, "--repair", "none", "--force")
    fails(onnxprune("model.onnx", flag, target.format(folder), *words), 2, "is an input")
    fails(onnxprune("link.onnx", flag, target.format(folder), *words), 2, "is an input")
    assert (folder / "model.onnx").read_bytes() == before
    assert "model.pruned.onnx" not in names(folder)


def test_one_models_output_is_not_anothers_input(folder: Path, onnxprune: Call) -> None:
    shutil.copy(folder / "folded.onnx", folder / "model.pruned.onnx")
    ran = onnxprune("model.onnx", "model.pruned.onnx", "--sparsity", 0.9, "--repair", "none", "--force")
    fails(ran, 2, "model.pruned.onnx is an input")


def test_a_file_that_exists_needs_force(folder: Path, onnxprune: Call) -> None:
    for name in ("out.onnx", "out.json"):
        (folder / name).write_text("mine")
    words = ("model.onnx", "--sparsity", 0.9, "--repair", "none")
    fails(onnxprune(*words, "-o", "out.onnx"), 2, "out.onnx exists; give --force")
    fails(onnxprune(*words, "-o", "new.onnx", "--report", "out.json"), 2, "out.json exists; give --force")
    assert {(folder / name).read_text() for name in ("out.onnx", "out.json")} == {"mine"}
    assert "new.onnx" not in names(folder)
    assert onnxprune(*words, "-o", "out.onnx", "--report", "out.json", "--force").code == 0
    load(folder / "out.onnx")
    assert json.loads((folder / "out.json").read_text())["schema"] == 1


def test_the_target_is_checked_before_the_work(folder: Path, onnxprune: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    def not_reached(*_: object) -> None:
        raise AssertionError("the run began")

    monkeypatch.setattr("onnxprune.job.run", not_reached)
    fails(onnxprune("model.onnx", "--sparsity", 0.9, "--repair", "none", "-o", "none/out.onnx"), 1, "none does not exist")


# ---- what is printed


def test_the_result_is_on_stdout_and_stderr_is_silent_off_a_terminal(folder: Path, onnxprune: Call) -> None:
    ran = onnxprune("model.onnx", "--sparsity", 0.95, "--calib", "calib.npz", "--report", "r.json")
    assert (ran.code, ran.err) == (0, "")
    report = json.loads((folder / "r.json").read_text())
    for entry in report["layers"]:
        row = next(line for line in ran.out.splitlines() if line.startswith(entry["name"]))
        for cell in (entry["op"], "x".join(map(str, entry["shape"])), f"{entry['weights']:,}", f"{entry['kept']:,}"):
            assert cell in row.split(), row
        assert f"{entry['density']:.4f}" in row
    assert f"{report['kept']:,} of 599,872 weights kept), asked 0.95" in ran.out
    assert "masks alone: top-1" in ran.out
    assert f"repaired: top-1 {report['agreement']['score']:.4f}" in ran.out
    assert "dead channels" in ran.out
    assert report["provider"] in ran.out
    assert "gzip size" in ran.out
    assert "x smaller" in ran.out
    assert "model.pruned.onnx" in ran.out
    for phase in report["seconds"]:
        assert phase in ran.out


def test_quiet_prints_nothing(folder: Path, onnxprune: Call) -> None:
    ran = onnxprune("model.onnx", "--sparsity", 0.9, "--calib", "calib.npz", "-q", *QUICK)
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    assert (folder / "model.pruned.onnx").exists()
    ran = onnxprune("model.onnx", "--sparsity", 0.9, "--dry-run", "-q")
    assert (ran.code, ran.out, ran.err) == (0, "", "")
    fails(onnxprune("gone.onnx", "--sparsity", 0.9, "--repair", "none", "-q"), 1, "no such file")


def with_skipped() -> onnx.ModelProto:
    """A network with a product of two computed sides, and layers whose names look like markup."""
    wide = mlp()
    for node, name in zip(wide.graph.node, ("[red]first[/red]", "plus0", "relu", "block[0]/mm:1", "plus1"), strict=True):
        node.name = name
    nodes = [
        *wide.graph.node,
        helper.make_node("Transpose", ["logits"], ["turned"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["logits", "turned"], ["gram"], "[bold]gram[/bold]"),
    ]
    return model_of(nodes, {"x": ("batch", 8)}, {"logits": ("batch", 5), "gram": ("batch", "batch")}, tensors(wide))


def test_verbose_lists_what_was_skipped_and_what_changed(folder: Path, onnxprune: Call) -> None:
    onnx.save(with_skipped(), str(folder / "net.onnx"))
    np.save(folder / "x.npy", samples(40, (8,)))
    words = ("net.onnx", "--sparsity", 0.5, "--calib", "x.npy", "--force")
    plain, verbose = onnxprune(*words), onnxprune(*words, "-v")
    assert plain.code == verbose.code == 0
    assert "1 nodes with weights were skipped; -v tells why" in plain.out
    assert "changed values" not in plain.out
    (row,) = (line for line in verbose.out.splitlines() if "gram[/bold]" in line)
    assert row.split(maxsplit=2) == ["[bold]gram[/bold]", "MatMul", "both sides are computed at run time"]
    for name in ("w0", "w1", "b0", "b1"):
        assert f"changed values: {name}" in verbose.out


def test_names_with_brackets_show_as_they_are(folder: Path, onnxprune: Call) -> None:
    onnx.save(with_skipped(), str(folder / "net[bold].onnx"))
    np.save(folder / "x.npy", samples(40, (8,)))
    for words in (
        ("net[bold].onnx", "--sparsity", 0.5, "--calib", "x.npy"),
        ("net[bold].onnx", "--sparsity", 0.5, "--dry-run"),
        ("inspect", "net[bold].onnx"),
        ("inspect", "net[bold].onnx", "--sparsity", 0.5),
        ("compare", "net[bold].onnx", "net[bold].pruned.onnx", "--calib", "x.npy"),
    ):
        ran = onnxprune(*words)
        assert ran.code == 0, ran
        assert "[red]first[/red]" in ran.out
        assert "block[0]/mm:1" in ran.out
        if words[0] != "compare":
            assert "net[bold]" in ran.out
    fails(onnxprune("prune", "net[bold].onnx", "--sparsity", 0.5, "--include", "[x]{9}", "--dry-run"), 2, "'[x]{9}'", "[red]first")


def test_a_terminal_gets_progress_on_stderr(folder: Path, onnxprune: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    screen = io.StringIO()
    monkeypatch.setattr(bars, "_console", lambda: Console(file=screen, force_terminal=True, width=200, color_system=None))
    shutil.copy("model.onnx", "a[bold]b.onnx")
    words = ("a[bold]b.onnx", "--sparsity", 0.9, "--calib", "calib.npz", "--force", *QUICK)
    assert onnxprune(*words).err == ""
    text = screen.getvalue()
    assert "a[bold]b.onnx: repair, layer by layer" in text
    assert "8/8" in text  # the stem stays dense, and nothing pruned lies before it
    size = len(text)
    assert onnxprune(*words, "-q").code == 0
    assert len(screen.getvalue()) == size


# ---- dry run, inspect, compare


def test_a_dry_run_writes_nothing_and_needs_no_samples(folder: Path, onnxprune: Call) -> None:
    before = names(folder)
    ran = onnxprune("model.onnx", "folded.onnx", "--sparsity", 0.9, "--alloc", "lamp", "--dry-run", "--report", "r.json")
    assert (ran.code, ran.err) == (0, "")
    assert ran.out.count("59,987 of 599,872 weights kept; nothing was written") == 2
    assert names(folder) == before
    report = prune(folder / "model.onnx", sparsity=0.9, alloc="lamp", repair="none").report
    for entry in report.layers:
        assert any(line.startswith(entry.name) and f"{entry.kept:,}" in line.split() for line in ran.out.splitlines())


def test_inspect_tells_layers_norms_and_what_was_skipped(folder: Path, onnxprune: Call) -> None:
    ran = onnxprune("inspect", "model.onnx")
    assert (ran.code, ran.err) == (0, "")
    assert "model.onnx: 9 layers, 599,872 weights, 0 nodes skipped" in ran.out
    assert ran.out.count("BatchNorm") == 8
    assert onnxprune("inspect", "folded.onnx").out.count(" own") == 9
    onnx.save(with_skipped(), str(folder / "net.onnx"))
    ran = onnxprune("inspect", "net.onnx")
    assert ran.out.count("in the Add behind") == 2
    assert "both sides are computed at run time" in ran.out


def test_inspect_as_json(folder: Path, onnxprune: Call) -> None:
    onnx.save(with_skipped(), str(folder / "net.onnx"))
    found = json.loads(onnxprune("inspect", "net.onnx", "--json").out)
    assert found["schema"] == 1
    assert [(entry["name"], entry["op"], entry["shape"], entry["weights"]) for entry in found["layers"]] == [
        ("[red]first[/red]", "MatMul", [8, 12], 96),
        ("block[0]/mm:1", "MatMul", [12, 5], 60),
    ]
    assert found["skipped"] == [{"name": "[bold]gram[/bold]", "op": "MatMul", "reason": "both sides are computed at run time"}]
    assert found["norms"] == []


def test_inspect_with_a_sparsity_is_the_dry_run(folder: Path, onnxprune: Call) -> None:
    dry = onnxprune("model.onnx", "--sparsity", 0.9, "--dry-run", "--exclude", "stem").out
    assert onnxprune("inspect", "model.onnx", "--sparsity", 0.9, "--exclude", "stem").out == dry
    found = json.loads(onnxprune("inspect", "model.onnx", "--sparsity", 0.9, "--json").out)
    assert (found["schema"], found["kept"], found["weights"]) == (1, 59_987, 599_872)
    assert found["output"] is None


def test_compare_measures_what_the_run_reported(folder: Path, onnxprune: Call) -> None:
    onnxprune("model.onnx", "--sparsity", 0.9, "--calib", "calib.npz", "--report", "r.json")
    ran = onnxprune("compare", "model.onnx", "model.pruned.onnx", "--calib", "calib.npz")
    assert (ran.code, ran.err) == (0, "")
    assert "logits on 512 samples: top-1 " in ran.out
    ran = onnxprune("compare", "model.onnx", "model.pruned.onnx", "--calib", "calib.npz", "--samples", 100, "--json")
    found, report = json.loads(ran.out), json.loads((folder / "r.json").read_text())
    assert ran.err == ""
    assert found["schema"] == 1
    assert found["samples"] == 100
    assert found["outputs"][0]["top1"] > 0.9
    assert [entry["pruned"] for entry in found["layers"]] == [entry["density"] for entry in report["layers"]]
    assert {entry["dense"] for entry in found["layers"]} == {1.0}
    assert found["dense"]["sha256"] == report["input"]["sha256"]
    assert found["pruned"]["gzip_bytes"] == report["output"]["gzip_bytes"]


def test_compare_of_a_model_with_itself_is_one(folder: Path, onnxprune: Call) -> None:
    found = json.loads(onnxprune("compare", "model.onnx", "model.onnx", "--calib", "calib.npz", "--json").out)
    (output,) = found["outputs"]
    assert (output["top1"], output["kl"], output["cosine"], output["sqnr_db"]) == (1.0, 0.0, 1.0, None)


def test_compare_refuses_models_that_are_no_pair(folder: Path, onnxprune: Call) -> None:
    np.save(folder / "x.npy", samples(40, (8,)))
    onnx.save(mlp(), str(folder / "five.onnx"))
    other = mlp()
    other.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 4
    for tensor in other.graph.initializer:
        if tensor.name in ("w1", "b1"):
            values = tensors(other)[tensor.name][..., :4]
            tensor.CopyFrom(onnx.numpy_helper.from_array(np.ascontiguousarray(values), tensor.name))
    onnx.save(other, str(folder / "four.onnx"))
    fails(onnxprune("compare", "five.onnx", "model.onnx", "--calib", "x.npy"), 1, "its inputs are not those of")
    ran = onnxprune("compare", "five.onnx", "four.onnx", "--calib", "x.npy")
    fails(ran, 1, "its outputs logits (?, 4) are not those of five.onnx: logits (?, 5)")


# ---- exit codes and interruptions


def test_a_missed_gate_exits_with_3_and_writes_nothing(folder: Path, onnxprune: Call) -> None:
    before = names(folder)
    words = ("model.onnx", "--sparsity", 0.95, "--calib", "calib.npz", "--repair", "none", "--report", "r.json")
    fails(onnxprune(*words, "--min-agreement", 0.9), 3, "below --min-agreement 0.9; nothing was written")
    assert names(folder) == before
    ran = onnxprune("model.onnx", "--sparsity", 0.95, "--calib", "calib.npz", "--min-agreement", 0.9, "-q")
    assert ran.code == 0


@pytest.mark.parametrize("words", [("inspect", "model.onnx"), ("inspect", "model.onnx", "--json")])
def test_a_reader_that_goes_away_is_no_traceback(folder: Path, words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with subprocess.Popen([*SCRIPT, *words], stdout=writer, stderr=subprocess.PIPE, text=True) as child:
        os.close(writer)
        _, err = child.communicate(timeout=60)
    assert (child.returncode, err) == (1, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
@pytest.mark.parametrize("words", [("inspect", "model.onnx"), ("inspect", "model.onnx", "--json")])
def test_a_full_disk_behind_stdout_is_one_line(folder: Path, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([*SCRIPT, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert done.stderr == "onnxprune: error: the system: No space left on device\n"


def test_python_m_onnxprune(folder: Path) -> None:
    done = subprocess.run([*SCRIPT, "inspect", "model.onnx"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "9 layers" in done.stdout
    done = subprocess.run([*SCRIPT, "gone.onnx", "--sparsity", "2"], capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == ("onnxprune: error: --sparsity: sparsity 2.0 is not in 0 <= S < 1; 0.95 removes 95 % of the weights\n")


def test_a_terminal_that_cannot_show_a_name_gets_its_escape(folder: Path) -> None:
    model = mlp()
    model.graph.node[0].name = "schicht_\u5c42"
    onnx.save(model, str(folder / "net.onnx"))
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([*SCRIPT, "inspect", "net.onnx"], capture_output=True, text=True, env=environment, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert r"schicht_\u5c42" in done.stdout


# Waits in the middle of the repair, or in the middle of the writing, until the parent has sent its signal.
WAITING = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background starts with it ignored
import onnxprune.bars, onnxprune.cli, os
from contextlib import contextmanager

def wait():
    print("here", flush=True)
    time.sleep(60)

@contextmanager
def progress(label, *, quiet):
    yield lambda phase, done, total: wait() if (phase, done) == ("repair", 4) and {where!r} == "repair" else None

onnxprune.cli.bars.progress = progress
if {where!r} == "writing":
    os.fsync = lambda descriptor: wait()
sys.argv = ["onnxprune", "model.onnx", "--sparsity", "0.9", "--calib", "calib.npz"]
sys.argv += ["-o", "out.onnx", "--report", "r.json", "--force"]
onnxprune.cli.main()
"""


def interrupted(where: str, number: signal.Signals) -> tuple[int, str]:
    """The exit code and stderr of a run that was sent a signal at that place."""
    words = [sys.executable, "-c", WAITING.format(where=where)]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "here\n"
        child.send_signal(number)
        _, err = child.communicate(timeout=60)
    return child.returncode, err


@pytest.mark.parametrize("where", ["repair", "writing"])
def test_ctrl_c_leaves_no_file_and_no_traceback(folder: Path, where: str) -> None:
    (folder / "out.onnx").write_bytes(b"mine")
    before = names(folder)
    code, err = interrupted(where, signal.SIGINT)
    assert code == 130
    assert err.split("\n", 1)[-1 if err.startswith("\n") else 0].strip().startswith("onnxprune: error: interrupted")
    assert "Traceback" not in err
    assert names(folder) == before
    assert (folder / "out.onnx").read_bytes() == b"mine"


@pytest.mark.parametrize("where", ["repair", "writing"])
def test_a_killed_run_leaves_the_old_target_whole(folder: Path, where: str) -> None:
    (folder / "out.onnx").write_bytes(b"mine")
    (folder / "r.json").write_bytes(b"mine too")
    code, _ = interrupted(where, signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert (folder / "out.onnx").read_bytes() == b"mine"
    assert (folder / "r.json").read_bytes() == b"mine too"
    assert all(name.endswith(".tmp") for name in set(names(folder)) - {"calib.npz", "folded.onnx", "model.onnx", "out.onnx", "r.json"})


def test_several_models_keep_what_was_finished_before_the_error(folder: Path, onnxprune: Call) -> None:
    onnx.save(twins(depth=2)[0], str(folder / "other.onnx"))
    ran = onnxprune("model.onnx", "other.onnx", "--sparsity", 0.9, "--calib", "calib.npz", *QUICK)
    assert ran.code == 1
    assert len(ran.err.splitlines()) == 1
    assert "model.pruned.onnx" in names(folder)
    assert "other.pruned.onnx" not in names(folder)


def test_the_process_ends_with_all_that_was_printed_and_its_code(folder: Path) -> None:
    """The console script does not take the interpreter down: what is in the buffers goes out before, and what cannot go is an error."""
    words = [sys.executable, "-m", "onnxprune", "inspect", "model.onnx"]
    told = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert (told.returncode, told.stderr) == (0, "")
    assert "weights" in told.stdout.splitlines()[0]
    assert told.stdout.endswith("\n")
    missing = subprocess.run([*words[:-1], "nowhere.onnx"], capture_output=True, text=True, timeout=60)
    assert (missing.returncode, missing.stdout) == (1, "")
    assert missing.stderr.startswith("onnxprune: error: nowhere.onnx")
    closed = subprocess.run(["sh", "-c", 'exec "$@" >&-', "sh", *words], capture_output=True, text=True, timeout=60)
    assert (closed.returncode, closed.stdout, closed.stderr) == (0, "", "")
    if Path("/dev/full").exists():
        with Path("/dev/full").open("w") as full:
            assert subprocess.run(words, stdout=full, stderr=subprocess.PIPE, timeout=60).returncode == 1
