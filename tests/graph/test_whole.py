"""Files that appear whole or not at all, and what dead writers leave."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from onnxprune.errors import ModelError
from onnxprune.graph import whole
from onnxprune.graph.whole import alone, replacing

pytestmark = pytest.mark.skipif(not whole.LOCKS, reason="no file locks here")

WRITER = """
import sys, time
from pathlib import Path
from onnxprune.graph.whole import replacing
with replacing(Path(sys.argv[1])) as handle:
    handle.write(b"half")
    handle.flush()
    print("here", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def writer(path: Path) -> subprocess.Popen[str]:
    """A process in the middle of writing the file."""
    child = subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    return child


def write(path: Path, data: bytes = b"new") -> None:
    with replacing(path) as handle:
        handle.write(data)


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    with writer(tmp_path / "m.onnx") as child:
        child.kill()
    (left,) = names(tmp_path)
    assert left.startswith(".m.onnx.")
    write(tmp_path / "other.onnx")
    assert left in names(tmp_path)  # another target's
    write(tmp_path / "m.onnx")
    assert names(tmp_path) == ["m.onnx", "other.onnx"]


def test_the_file_of_a_writer_that_lives_is_left(tmp_path: Path) -> None:
    with writer(tmp_path / "m.onnx") as child:
        write(tmp_path / "m.onnx")
        assert (tmp_path / "m.onnx").read_bytes() == b"new"
        assert len(names(tmp_path)) == 2
        child.kill()


def test_names_that_are_not_ours_are_left(tmp_path: Path) -> None:
    mine = [".m.onnx.tmp", ".m.onnx.abc.tmp", ".m.onnx.ABCDEFGH.tmp", ".m.onnx.abcdefgh.tmpx", "m.onnx.abcdefgh.tmp"]
    for name in mine:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".m.onnx.folder_1.tmp").mkdir()
    write(tmp_path / "m.onnx")
    assert names(tmp_path) == sorted([*mine, ".m.onnx.folder_1.tmp", "m.onnx"])


def test_a_file_that_is_taken_for_a_dead_ones_before_it_is_locked_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made, real = [], whole.tempfile.mkstemp

    def taken(**words: object) -> tuple[int, str]:
        descriptor, text = real(**words)
        made.append(text)
        if len(made) == 1:
            Path(text).unlink()
        return descriptor, text

    monkeypatch.setattr(whole.tempfile, "mkstemp", taken)
    write(tmp_path / "m.onnx")
    assert len(made) == 2
    assert names(tmp_path) == ["m.onnx"]


def test_one_at_a_time_in_a_folder(tmp_path: Path) -> None:
    inside, most = 0, 0

    def enter() -> None:
        nonlocal inside, most
        for _ in range(20):
            with alone(tmp_path):
                inside += 1
                most = max(most, inside)
                inside -= 1

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


def test_a_folder_that_is_gone_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="cannot be written: No such file or directory"):
        write(tmp_path / "none" / "m.onnx")
