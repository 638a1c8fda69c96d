"""The dependency file, read by make itself."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnxprune.depfile import UNWRITABLE, escaped, rules
from onnxprune.errors import UsageError

needs_make = pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
# The characters that mean something to make or to its wildcards, and some that do not.
NAMES = st.text(st.sampled_from(" $#:\\*?[]{}()!'\"`~^,<>@&+-.abÄ"), min_size=1, max_size=8).map("n".__add__)
writable = NAMES.filter(lambda name: not UNWRITABLE.search(name))


def make(folder: Path, goal: str) -> str:
    """What make says and does; no built-in rules."""
    words = ["make", "-r", "-f", "Makefile", "--", goal]
    done = subprocess.run(words, cwd=folder, env={**os.environ, "LC_ALL": "C"}, capture_output=True, text=True)
    return done.stdout + done.stderr


def stamp(path: Path, seconds: int) -> None:
    path.touch()
    os.utime(path, (seconds, seconds))


def test_by_hand() -> None:
    text = rules("out.onnx", ["a b.onnx", "c#1.npy", "d$e.npy", "c#1.npy"])
    assert text == "out.onnx: \\\n  a\\ b.onnx \\\n  c\\#1.npy \\\n  d$$e.npy\n\nc\\#1.npy:\n\nd$$e.npy:\n"


@pytest.mark.parametrize(
    ("name", "written"),
    [("a:b", "a\\:b"), ("a\\b", "a\\b"), ("a\\ b", "a\\\\\\ b"), ("C:\\d", "C\\:\\d"), ("a*?[b]", "a\\*\\?\\[b]"), ("$(x)y", "$$(x)y")],
)
def test_escapes_by_hand(name: str, written: str) -> None:
    assert escaped(name) == written


@needs_make
@given(writable, writable)
@settings(max_examples=25, deadline=None)
@example("nm (1).onnx.out", "na b#$:d*?[e]")
@example("n\\\\ \\:x", "n\\ \\\\#")
@example("n$(shell touch bad)x", "n`touch bad`")
def test_make_builds_when_a_file_changes_and_when_it_is_gone_and_else_not(
    tmp_path_factory: pytest.TempPathFactory, target: str, sample: str
) -> None:
    folder = tmp_path_factory.mktemp("make")
    if len({target, sample, "model", "Makefile"}) < 4:
        return
    (folder / "Makefile").write_text(rules(target, ["model", sample]) + f"{escaped(target)}:\n\t@echo BUILT\n", encoding="utf-8")
    for name, seconds in ((target, 1_500_000_000), ("model", 1_400_000_000), (sample, 1_400_000_000)):
        stamp(folder / name, seconds)
    before = sorted(folder.iterdir())
    assert "up to date" in make(folder, target)
    stamp(folder / sample, 1_600_000_000)
    assert make(folder, target) == "BUILT\n"
    (folder / sample).unlink()
    assert make(folder, target) == "BUILT\n"
    (folder / sample).touch()
    assert sorted(folder.iterdir()) == before  # no name was run as a command
    (folder / "model").unlink()
    assert "No rule to make target 'model'" in make(folder, target)


@pytest.mark.parametrize("name", ["a\nb", "a\tb", "a;b", "a=b", "a%b", "a|b", "~a", "a ", "a\\", "a&", "lib(a)", "a\\b*", "[a]\\b"])
def test_names_that_make_cannot_read_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=r"--depfile: make cannot read the file name .* rename it"):
        rules("out", [name])
    with pytest.raises(UsageError, match="--depfile"):
        rules(name, ["in"])
