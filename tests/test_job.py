"""Files: written whole or not at all, with the sizes and hashes that the report tells."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from networks import differences, mlp, samples, tensors, unnamed_changes

from onnxprune import job as job_module
from onnxprune import prune
from onnxprune.errors import ModelError, OnnxpruneError, UsageError
from onnxprune.graph import model as files
from onnxprune.graph.model import load
from onnxprune.job import Job, plan_jobs, prune_file
from onnxprune.options import Options
from onnxprune.report import ChangesReport, FileReport, Report

OPTIONS = Options(sparsity=0.9, samples=40, batch_size=20)


def silent(phase: str, done: int, total: int) -> None:
    pass


@pytest.fixture
def folder(digits: Path, tmp_path: Path) -> Path:
    """A folder with one model in both ways of storing it, and targets that exist already."""
    model = onnx.load(str(digits / "digits.onnx"))
    onnx.save(model, str(tmp_path / "inside.onnx"))
    onnx.save(model, str(tmp_path / "beside.onnx"), save_as_external_data=True, location="weights.bin", size_threshold=0)
    for name in ("out.onnx", "out.json"):
        (tmp_path / name).write_bytes(b"what was there before")
    return tmp_path


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def job_of(folder: Path, source: str = "inside.onnx") -> Job:
    return Job(folder / source, folder / "out.onnx", (folder / "out.json",))


# ---- all or nothing


class Stop(Exception):
    """Something that nobody foresaw."""


Spoil = Callable[[pytest.MonkeyPatch], None]


def full_disk(*_: object, **__: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def unforeseen(*_: object, **__: object) -> None:
    raise Stop


def pressed(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize("source", ["inside.onnx", "beside.onnx"])
@pytest.mark.parametrize("what", [full_disk, unforeseen, pressed])
@pytest.mark.parametrize(
    "place",
    [
        (job_module, "describe"),  # the model lies complete under its temporary name
        (job_module, "to_json"),  # the report is about to be written
        (os, "fsync"),  # the report's bytes go to the disk
        (Path, "replace"),  # the first rename
        (tempfile, "mkstemp"),  # no file can be made
    ],
    ids=["sizes", "report", "fsync", "rename", "create"],
)
def test_a_failure_in_the_middle_of_the_writing_changes_nothing(
    folder: Path,
    digits: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: tuple[object, str],
    what: Callable[..., None],
    source: str,
) -> None:
    before = snapshot(folder)
    monkeypatch.setattr(*place, what)
    with pytest.raises((OnnxpruneError, Stop, KeyboardInterrupt, OSError)):
        prune_file(job_of(folder, source), digits / "calib.npz", OPTIONS, silent)
    monkeypatch.undo()
    assert snapshot(folder) == before


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_disk_that_is_full_at_any_file_is_a_model_error(folder: Path, digits: Path, monkeypatch: pytest.MonkeyPatch, nth: int) -> None:
    """With external data three files are synced: the data, the report, the model."""
    before, count = snapshot(folder), 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count == nth:
            full_disk()

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(ModelError, match="cannot be written: No space left on device"):
        prune_file(job_of(folder, "beside.onnx"), digits / "calib.npz", OPTIONS, silent)
    assert snapshot(folder) == before


def test_a_failure_of_the_run_changes_nothing(folder: Path, digits: Path) -> None:
    before = snapshot(folder)
    strict = Options(sparsity=0.95, repair="none", min_agreement=0.99)
    with pytest.raises(OnnxpruneError, match="nothing was written"):
        prune_file(job_of(folder), digits / "calib.npz", strict, silent)
    assert snapshot(folder) == before


def test_no_temporary_file_stays_and_the_mode_is_that_of_a_new_file(folder: Path, digits: Path) -> None:
    before = set(snapshot(folder))
    (folder / "plain").write_text("")
    prune_file(job_of(folder), digits / "calib.npz", OPTIONS, silent)
    assert set(snapshot(folder)) == before | {"plain"}
    for name in ("out.onnx", "out.json"):
        assert (folder / name).stat().st_mode == (folder / "plain").stat().st_mode


# ---- external data


def test_external_data_in_external_data_out(folder: Path, digits: Path) -> None:
    report = prune_file(job_of(folder, "beside.onnx"), digits / "calib.npz", OPTIONS, silent)
    assert report.output is not None
    assert report.input is not None
    model, data = (Path(name) for name in report.output.files)
    assert model == folder / "out.onnx"
    assert data.parent == folder
    assert report.input.files == (str(folder / "beside.onnx"), str(folder / "weights.bin"))
    assert 50 * model.stat().st_size < data.stat().st_size
    inside = prune(folder / "inside.onnx", digits / "calib.npz", sparsity=0.9, samples=40, batch_size=20)
    back = load(folder / "out.onnx")
    assert back.external
    for name, values in tensors(inside.model).items():
        np.testing.assert_array_equal(tensors(back.model)[name], values)
    files.onnx.checker.check_model(str(folder / "out.onnx"))


def test_a_second_run_leaves_no_old_data_file(folder: Path, digits: Path) -> None:
    for sparsity in (0.9, 0.8):
        options = Options(sparsity=sparsity, samples=40, batch_size=20)
        report = prune_file(job_of(folder, "beside.onnx"), digits / "calib.npz", options, silent)
    assert report.output is not None
    data = {path.name for path in folder.iterdir() if path.suffix == ".data"}
    assert data == {Path(report.output.files[1]).name}


def test_a_model_inside_one_file_stays_in_one(folder: Path, digits: Path) -> None:
    report = prune_file(job_of(folder), digits / "calib.npz", OPTIONS, silent)
    assert report.output is not None
    assert report.output.files == (str(folder / "out.onnx"),)


# ---- what the report says about the files


def gzip_size(paths: tuple[str, ...]) -> int:
    """Bytes of `cat FILES | gzip -6 -n -c`."""
    data = b"".join(Path(path).read_bytes() for path in paths)
    return len(subprocess.run(["gzip", "-6", "-n", "-c"], input=data, capture_output=True, check=True).stdout)


def check_file(report: FileReport | None) -> None:
    assert report is not None
    data = b"".join(Path(name).read_bytes() for name in report.files)
    assert report.bytes == len(data)
    assert report.sha256 == hashlib.sha256(data).hexdigest()
    # zlib and the gzip command end their deflate blocks at other places, which moved 0.8 % at most on such files
    assert report.gzip_bytes == pytest.approx(gzip_size(report.files), rel=0.01, abs=32)


@pytest.mark.parametrize("source", ["inside.onnx", "beside.onnx"])
def test_sizes_and_hashes_are_those_of_the_files(folder: Path, digits: Path, source: str) -> None:
    report = prune_file(job_of(folder, source), digits / "calib.npz", OPTIONS, silent)
    check_file(report.input)
    check_file(report.output)
    assert report.input is not None
    assert report.output is not None
    assert report.input.gzip_bytes > 5 * report.output.gzip_bytes
    written = json.loads((folder / "out.json").read_text())
    assert written["output"]["sha256"] == report.output.sha256
    assert written["input"] == {**written["input"], "bytes": report.input.bytes, "gzip_bytes": report.input.gzip_bytes}


def test_the_model_is_what_prune_gives_and_only_named_tensors_differ(folder: Path, digits: Path) -> None:
    report = prune_file(job_of(folder), digits / "calib.npz", OPTIONS, silent)
    before, after = load(folder / "inside.onnx").model, load(folder / "out.onnx").model
    assert unnamed_changes(before, after, report.changes) == []
    written = json.loads((folder / "out.json").read_text())["changes"]
    assert unnamed_changes(before, after, ChangesReport(**{key: tuple(names) for key, names in written.items()})) == []
    again = prune(folder / "inside.onnx", digits / "calib.npz", sparsity=0.9, samples=40, batch_size=20)
    assert list(differences(again.model, after)) == []


def test_sparsity_0_writes_the_input_again(folder: Path, digits: Path) -> None:
    prune_file(job_of(folder), digits / "calib.npz", Options(sparsity=0, samples=40), silent)
    assert (folder / "out.onnx").read_bytes() == (folder / "inside.onnx").read_bytes()


def test_without_a_report_only_the_model_is_written(folder: Path) -> None:
    before = snapshot(folder)
    report = prune_file(Job(folder / "inside.onnx", folder / "new.onnx"), None, Options(sparsity=0.5, repair="none"), silent)
    assert isinstance(report, Report)
    assert set(snapshot(folder)) - set(before) == {"new.onnx"}


def test_a_name_that_is_not_utf8_is_written_and_reported(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9")
    try:
        (tmp_path / f"{name}.onnx").write_bytes(mlp().SerializeToString())
    except (OSError, UnicodeError):
        pytest.skip("this file system takes UTF-8 names only")
    job = Job(tmp_path / f"{name}.onnx", tmp_path / f"{name}.pruned.onnx", (tmp_path / "r.json",))
    prune_file(job, samples(40, (8,)), Options(sparsity=0.5), silent)
    written = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert written["output"]["path"] == str(job.target)
    assert job.target.exists()


# ---- where things go


def test_the_default_target_is_beside_the_input(tmp_path: Path) -> None:
    sources = [tmp_path / "a.onnx", tmp_path / "sub" / "b.v2.onnx"]
    (tmp_path / "sub").mkdir()
    jobs = plan_jobs(sources, None, None, force=False)
    assert [job.target for job in jobs] == [tmp_path / "a.pruned.onnx", tmp_path / "sub" / "b.v2.pruned.onnx"]
    jobs = plan_jobs(sources, None, tmp_path, force=False)
    assert [job.target for job in jobs] == [tmp_path / "a.pruned.onnx", tmp_path / "b.v2.pruned.onnx"]
    (job,) = plan_jobs(sources[:1], tmp_path / "x", None, [tmp_path / "r.json"], force=False)
    assert (job.target, job.reports) == (tmp_path / "x", (tmp_path / "r.json",))


def test_a_hard_link_to_the_input_is_a_file_of_its_own(folder: Path, digits: Path) -> None:
    """A rename replaces the name, not what the input's name points to."""
    before = (folder / "inside.onnx").read_bytes()
    (folder / "out.onnx").unlink()
    os.link(folder / "inside.onnx", folder / "out.onnx")
    prune_file(job_of(folder), digits / "calib.npz", OPTIONS, silent)
    assert (folder / "inside.onnx").read_bytes() == before
    assert (folder / "out.onnx").read_bytes() != before


def test_data_that_the_input_shares_with_an_older_target_is_not_removed(folder: Path, digits: Path) -> None:
    """A copy of the .onnx file alone still reads the data file named after the first one."""
    prune_file(job_of(folder, "beside.onnx"), digits / "calib.npz", OPTIONS, silent)
    (folder / "copy.onnx").write_bytes((folder / "out.onnx").read_bytes())
    before = snapshot(folder)
    with pytest.raises(UsageError, match=r"out\.onnx\.\w+\.data holds data of the input"):
        prune_file(Job(folder / "copy.onnx", folder / "out.onnx"), digits / "calib.npz", Options(sparsity=0.95), silent)
    assert snapshot(folder) == before


def test_the_data_file_of_the_input_is_never_replaced(folder: Path, digits: Path) -> None:
    before = snapshot(folder)
    for target, reports in ((folder / "weights.bin", ()), (folder / "new.onnx", (folder / "weights.bin",))):
        with pytest.raises(UsageError, match=r"weights\.bin holds data of the input"):
            prune_file(Job(folder / "beside.onnx", target, reports), digits / "calib.npz", OPTIONS, silent)
        assert snapshot(folder) == before
