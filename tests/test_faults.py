"""What goes wrong around a run: a full disk, a folder that takes no file, samples that change or go away. One line, and nothing is left."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import Ran

from onnxprune.errors import CalibrationError, ModelError
from onnxprune.job import Job, prune_file
from onnxprune.options import Options

pytestmark = pytest.mark.cores  # what goes on beside the repair reads files too
SCRIPT = [sys.executable, "-m", "onnxprune"]
LIMITED = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[1]), int(sys.argv[1])))
sys.argv = ["onnxprune", *sys.argv[2:]]
from onnxprune.cli import main
main()
"""


@pytest.fixture
def folder(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """model.onnx and a folder of samples, each in a file of its own, and an old target; the current folder."""
    shutil.copy(digits / "digits.onnx", tmp_path / "model.onnx")
    (tmp_path / "samples").mkdir()
    for number, image in enumerate(np.load(digits / "calib.npz")["image"][:40]):
        np.save(tmp_path / "samples" / f"{number:02}.npy", image)
    (tmp_path / "out.onnx").write_bytes(b"old")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.skipif(sys.platform == "win32", reason="no RLIMIT_FSIZE there")
@pytest.mark.parametrize("room", [100_000, 2_400_000])
def test_a_full_disk_is_one_line_and_nothing_is_left(folder: Path, room: int) -> None:
    """A limit on the size of files: one in the middle, one near the end of the model's 2.42 MB."""
    before = snapshot(folder)
    words = ["model.onnx", "--sparsity", "0.9", "--repair", "none", "-o", "out.onnx", "--report", "r.json", "--depfile", "d", "--force"]
    done = subprocess.run([sys.executable, "-c", LIMITED, str(room), *words], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("onnxprune: error: out.onnx: cannot be written: ")
    assert snapshot(folder) == before


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no file from anybody")
@pytest.mark.parametrize("flag", ["-o", "--report", "--depfile"])
def test_a_folder_that_takes_no_file_is_told_before_the_work(folder: Path, onnxprune: Callable[..., Ran], flag: str) -> None:
    before = snapshot(folder)
    ran = onnxprune("model.onnx", "--sparsity", 0.9, "--repair", "none", flag, "/proc/new")
    assert ran.code == 1
    (line,) = ran.err.splitlines()
    assert line.startswith("onnxprune: error: /proc/new: cannot be written: ")
    assert snapshot(folder) == before


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(folder: Path) -> None:
    locked = folder / "locked"
    locked.mkdir(mode=0o555)
    with pytest.raises(ModelError, match="cannot be written: Permission denied"):
        prune_file(Job(folder / "model.onnx", locked / "out.onnx"), None, Options(sparsity=0.9, repair="none"), lambda *told: None)


def gone(path: Path) -> None:
    path.unlink()


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def other_shape(path: Path) -> None:
    np.save(path, np.zeros((1, 9, 9), np.float32))


def other_values(path: Path) -> None:
    stamp = path.stat().st_mtime_ns
    np.save(path, np.ones((1, 8, 8), np.float32))
    os.utime(path, ns=(stamp + 1, stamp + 1))


def no_number(path: Path) -> None:
    np.save(path, np.full((1, 8, 8), np.nan, np.float32))


@pytest.mark.parametrize("phase", ["dense outputs", "dense statistics", "repaired outputs"])
@pytest.mark.parametrize("what", [gone, cut, other_shape, other_values, no_number])
def test_samples_that_change_in_the_middle_are_named_and_nothing_is_written(folder: Path, phase: str, what: Callable[[Path], None]) -> None:
    before = snapshot(folder)

    def tell(now: str, done: int, total: int) -> None:
        if now == phase and done == 0:
            for path in (folder / "samples").iterdir():
                if path.exists():
                    what(path)

    job = Job(folder / "model.onnx", folder / "out.onnx", (folder / "r.json",), folder / "d")
    with pytest.raises(CalibrationError, match=r"samples/\d\d\.npy: ") as caught:
        prune_file(job, folder / "samples", Options(sparsity=0.9, batch_size=10, device="cpu"), tell)
    assert len(str(caught.value).splitlines()) == 1
    after = snapshot(folder)
    assert {name: data for name, data in after.items() if "samples" not in name} == {
        name: data for name, data in before.items() if "samples" not in name
    }


def test_two_runs_at_once_on_one_target_leave_one_of_the_two(folder: Path) -> None:
    """Model, report and dependency file are those of one run; here both runs have options of their own."""
    words = [*SCRIPT, "model.onnx", "--repair", "none", "--force", "-q", "-o", "out.onnx", "--report", "r.json", "--depfile", "d"]
    runs = [subprocess.Popen([*words, "--sparsity", each]) for each in ("0.9", "0.7")]
    assert [run.wait(60) for run in runs] == [0, 0]

    report = json.loads((folder / "r.json").read_text())
    assert report["output"]["sha256"] == hashlib.sha256((folder / "out.onnx").read_bytes()).hexdigest()
    assert not list(folder.glob(".*"))
