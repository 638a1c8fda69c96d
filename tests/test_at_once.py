"""Several runs at once: what they write is what each writes alone, and none of them runs more threads than it may."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import samples, twins
from zoo import SUBJECTS

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = [sys.executable, "-m", "onnxprune"]
QUIET = ("--sparsity", "0.9", "--device", "cpu", "--quiet", "--force")

BESIDE = 1.05, 0.3
"""CPU time that N threads may take: so many times N of the wall time, and seconds, for the threads of OpenBLAS spin a tenth of a second in
every process that loads it. A reconstruction of net.onnx that is free to use two cores takes 0.6 s more than its wall time; how busy the
machine is can only lower that."""

pytestmark = [pytest.mark.skipif(not hasattr(os, "wait4"), reason="needs wait4"), pytest.mark.cores]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C.UTF-8", **more}


def cores_of(words: Sequence[str], folder: Path, env: dict[str, str], threads: int) -> float:
    """The seconds of CPU time that a command and all that it starts take beyond what so many threads can in its wall time."""
    begin = time.perf_counter()
    with subprocess.Popen(words, cwd=folder, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        errors = process.stderr.read()
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, errors
    share, seconds = BESIDE
    return usage.ru_utime + usage.ru_stime - (time.perf_counter() - begin) * threads * share - seconds


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with net.onnx, x.npy, and odd.onnx, which runs in a child process first."""
    onnx.save(twins(6, 32)[0], str(tmp_path / "net.onnx"))
    np.save(tmp_path / "x.npy", samples(96))
    odd = SUBJECTS["einsum"]()
    onnx.save(odd.model, str(tmp_path / "odd.onnx"))
    np.savez(tmp_path / "odd.npz", **odd.samples)
    return tmp_path


@pytest.mark.parametrize(("limit", "env"), [(("--threads", "1"), {}), ((), {"ONNXPRUNE_THREADS": "1"})], ids=["threads", "environment"])
@pytest.mark.parametrize("model", ["net", "odd"])
def test_one_thread_is_one(place: Path, limit: tuple[str, ...], env: dict[str, str], model: str) -> None:
    """With one thread asked for, no two ever run: sessions, BLAS, our own, gzip, and the child that tries an odd model.

    OpenBLAS has its threads from when it is loaded; they sleep.
    """
    calib = {"net": "x.npy", "odd": "odd.npz"}[model]
    words = [*SCRIPT, f"{model}.onnx", "--calib", calib, *QUIET, "--repair", "reconstruct", *limit, "-o", "out.onnx"]
    assert cores_of(words, place, environment(**env), 1) <= 0


@pytest.mark.slow
def test_two_threads_are_two(place: Path) -> None:
    words = [*SCRIPT, "net.onnx", "--calib", "x.npy", *QUIET, "--repair", "reconstruct", "--threads", "2", "-o", "out.onnx"]
    assert cores_of(words, place, environment(), 2) <= 0


def test_two_repairs_at_once_on_one_target_write_what_one_writes(place: Path) -> None:
    """The same options: the file is that of a run alone, and the report belongs to it. Both spill to one folder."""
    words = [*SCRIPT, "net.onnx", "--calib", "x.npy", *QUIET, "--memory", "100KB", "--threads", "1"]
    files = ("-o", "out.onnx", "--report", "r.json", "--depfile", "d")
    runs = [subprocess.Popen([*words, *files], cwd=place, env=environment(TMPDIR=str(place))) for _ in range(2)]
    assert [run.wait(120) for run in runs] == [0, 0]
    subprocess.run([*words, "-o", "alone.onnx"], cwd=place, env=environment(TMPDIR=str(place)), check=True, timeout=120)
    written = (place / "out.onnx").read_bytes()
    assert written == (place / "alone.onnx").read_bytes()
    report = json.loads((place / "r.json").read_text())
    assert report["output"]["sha256"] == hashlib.sha256(written).hexdigest()
    assert report["memory"]["spilled"] > 0
    left = {path.name for path in place.iterdir()} - {".ses"}
    assert left == {"net.onnx", "x.npy", "odd.onnx", "odd.npz", "out.onnx", "r.json", "d", "alone.onnx"}


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_eight_jobs_of_make_on_two_cores(digits: Path, tmp_path: Path) -> None:
    """The example's Makefile with eight models: each file is that of a run alone."""
    shutil.copy(ROOT / "examples" / "04_makefile" / "Makefile", tmp_path)
    shutil.copy(digits / "calib.npz", tmp_path)
    (tmp_path / "models").mkdir()
    for number in range(4):
        for name in ("digits", "digits_folded"):
            shutil.copy(digits / f"{name}.onnx", tmp_path / "models" / f"{name}{number}.onnx")
    cores = sorted(os.sched_getaffinity(0))[:2]
    options = "OPTIONS=--sparsity 0.9 --samples 100 --device cpu"
    tool = f"ONNXPRUNE={sys.executable} -m onnxprune"
    words = ["taskset", "-c", ",".join(map(str, cores)), "make", "-j8", "MODELS=models", "CALIB=calib.npz", options, tool]
    subprocess.run(words, cwd=tmp_path, env=environment(), check=True, capture_output=True)
    for name in ("digits", "digits_folded"):
        alone = [*SCRIPT, f"models/{name}0.onnx", "--calib", "calib.npz", "--sparsity", "0.9", "--samples", "100", "--device", "cpu"]
        subprocess.run([*alone, "--quiet", "-o", f"{name}.alone.onnx"], cwd=tmp_path, env=environment(), check=True, timeout=120)
        wanted = (tmp_path / f"{name}.alone.onnx").read_bytes()
        for number in range(4):
            target = tmp_path / "build" / f"{name}{number}.pruned.onnx"
            assert target.read_bytes() == wanted
            report = json.loads(target.with_suffix(".json").read_text())
            assert report["output"]["sha256"] == hashlib.sha256(wanted).hexdigest()
    assert not list((tmp_path / "build").glob(".*"))
