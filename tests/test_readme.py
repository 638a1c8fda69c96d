"""The documents say what is so: help texts, options, choices, links, fields of the report, and the examples, which run.

    python tests/test_readme.py

writes the help texts of the command line into the README anew.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import click
import pytest

import onnxprune
from onnxprune import errors, pipeline, report, running
from onnxprune.cli import cli
from onnxprune.comparing import Comparison, LayerDensity
from onnxprune.options import ALLOCS, DEFAULT_REPAIR, REPAIRS
from onnxprune.runtime.finding import ARRAYS, LINES
from onnxprune.runtime.images import SUFFIXES

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md", "examples/01_digits/README.md", "examples/04_makefile/README.md"]
COMMANDS = ["", *sorted(cli.commands)]
HELP = re.compile(r"(?<=^```text\n)\$ (onnxprune(?: \w+)? --help)\n(.*?)(?=^```$)", re.DOTALL | re.MULTILINE)
# Heading in the README -> the dataclass whose fields the table below it lists.
FIELDS = {
    "Top level": report.Report,
    "`input` and `output`": report.FileReport,
    "`layers[]`": report.LayerReport,
    "`norms[]`": report.NormReport,
    "`skipped[]`": report.SkippedReport,
    "`calibration`": report.CalibrationReport,
    "`agreement`": report.AgreementReport,
    "`agreement.masked[]` and `agreement.repaired[]`": report.OutputAgreement,
    "`choice`": report.ChoiceReport,
    "`choice.candidates[]`": report.CandidateReport,
    "`memory`": report.MemoryReport,
    "`changes`": report.ChangesReport,
}


def read(document: str) -> str:
    return (ROOT / document).read_text(encoding="utf-8")


def section(title: str, level: str) -> str:
    """The text below a heading, down to the next one of its level or above."""
    start = README.index(f"\n{level} {title}\n") + len(title) + len(level) + 3
    end = re.search(rf"^#{{1,{len(level)}}} ", README[start:], re.MULTILINE)
    return README[start : start + end.start()] if end else README[start:]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row, headers left out."""
    lines = text.splitlines()
    for line, following in zip(lines, [*lines[1:], ""], strict=True):
        if line.startswith("| ") and not following.startswith("|---"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def help_of(command: str) -> str:
    """What --help prints where the terminal is 80 columns wide."""
    words = [command, "--help"] if command else ["--help"]
    # Not click's CliRunner, whose terminal is 2 columns wider than a real one.
    with mock.patch.dict(os.environ, {"COLUMNS": "80"}), contextlib.redirect_stdout(io.StringIO()) as out:
        cli.main(words, prog_name="onnxprune", standalone_mode=False)
    return out.getvalue()


def options_of(command: str) -> set[str]:
    parameters = cli.commands[command].params
    return {name for entry in parameters if isinstance(entry, click.Option) for name in (*entry.opts, *entry.secondary_opts)}


# ---- pictures


def test_the_pictures_are_there_and_small_and_fetch_nothing() -> None:
    shown = re.findall(r"^!\[([^\]]+)\]\(([^)]+)\)$", README, re.MULTILINE)
    assert [place for _, place in shown] == ["docs/terminal.svg", "docs/page.png"]
    for told, place in shown:
        assert len(told) > 20
        assert 1000 < (ROOT / place).stat().st_size < 300_000
    assert "url(http" not in read("docs/terminal.svg") and "@font-face" not in read("docs/terminal.svg")
    assert (ROOT / "docs" / "page.png").read_bytes().startswith(b"\x89PNG")


# ---- the command line


@pytest.mark.parametrize("command", COMMANDS)
def test_the_help_texts_are_those_of_the_command(command: str) -> None:
    shown = {words.removeprefix("onnxprune").removesuffix("--help").strip(): text for words, text in HELP.findall(README)}
    assert shown[command] == help_of(command), "run python tests/test_readme.py to write the help texts anew"


def test_every_option_of_prune_is_explained() -> None:
    explained = "\n".join(cells[0] for cells in rows(section("onnxprune prune", "###")))
    missing = {name for name in options_of("prune") if not re.search(rf"(?<![\w-]){name}(?![\w-])", explained)}
    assert missing <= {"--unfold"}, missing  # the default; explained beside --no-unfold


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_option_named_exists(document: str) -> None:
    known = {"--help", "--version", *(name for command in cli.commands for name in options_of(command))}
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]*", read(document)))
    assert named <= known, named - known


def test_every_allocation_and_repair_is_listed_once_and_the_default_is_named() -> None:
    assert [cells[0].strip("`") for cells in rows(section("Allocations", "###"))] == list(ALLOCS)
    repairs = {cells[0].strip("`"): cells[1] for cells in rows(section("Repairs", "###"))}
    assert list(repairs) == list(REPAIRS)
    assert [name for name, text in repairs.items() if "The default" in text] == [DEFAULT_REPAIR]


def test_every_exit_code_is_listed() -> None:
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, errors.OnnxpruneError)]
    listed = {int(cells[0]) for cells in rows(section("Exit codes", "###"))}
    assert listed == {0, 130, *(kind.exit_code for kind in kinds)}


def test_every_image_suffix_is_listed() -> None:
    assert set(re.findall(r"`(\.\w+)`", section("Calibration data", "##"))) == {*SUFFIXES, *ARRAYS, *LINES}


# ---- the report


def test_every_dataclass_of_the_report_has_a_table() -> None:
    kinds = {kind for kind in vars(report).values() if isinstance(kind, type) and dataclasses.is_dataclass(kind)}
    assert kinds == set(FIELDS.values())


@pytest.mark.parametrize("title", FIELDS)
def test_the_table_lists_the_fields_in_order_and_says_where_null_may_be(title: str) -> None:
    fields = {field.name: str(field.type) for field in dataclasses.fields(FIELDS[title])}
    if "schema" in fields:
        fields = {"schema": fields.pop("schema"), **fields}
    told = {cells[0].strip("`"): cells[1] for cells in rows(section(title, "####"))}
    assert list(told) == list(fields)
    kinds = {"str": "string", "int": "integer", "float": "number", "bool": "boolean", "tuple": "list", "Mapping": "object"}
    for name, kind in fields.items():
        plain = re.split(r"[\[ ]", kind)[0]
        assert told[name].startswith(kinds.get(plain, "object")), (name, kind, told[name])
        # A number may also be null because it is infinite, which the type does not say.
        assert "null" in told[name] or "None" not in kind, (name, kind, told[name])


@pytest.mark.parametrize("kind", [Comparison, LayerDensity])
def test_the_fields_of_compare_are_named(kind: type) -> None:
    text = section("onnxprune compare", "###")
    names = {field.name for field in dataclasses.fields(kind)} - {"schema"}
    assert names <= set(re.findall(r"`(\w+)`", text))


def test_every_phase_of_the_clock_is_named() -> None:
    source = "".join(Path(module.__file__ or "").read_text(encoding="utf-8") for module in (pipeline, running))
    phases = [*re.findall(r'clock\.phase\("([\w ]+)"\)', source), "save", "total"]
    (told,) = [cells[2] for cells in rows(section("Top level", "####")) if cells[0] == "`seconds`"]
    assert not [phase for phase in phases if phase not in told]


# ---- links


def anchors(text: str) -> set[str]:
    """The anchors that a heading gets where Markdown is shown."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", text, flags=re.DOTALL | re.MULTILINE), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_and_files_exist(document: str) -> None:
    text = read(document)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / document).parent / path if path else ROOT / document
        assert target.exists(), link
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), link
    for name in re.findall(r"(?<![\w/.<])(?:examples|tools|tests|onnxprune)/[\w./-]*\w", text):
        assert (ROOT / name).exists(), name


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_make_target_exists(document: str) -> None:
    makefile = read("Makefile") + "\n".join(blocks("make"))
    for name in re.findall(r"(?:`|^    )make ([a-z][a-z-]*)\b(?!\.)", read(document), re.MULTILINE):
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), name


# ---- the examples


@pytest.fixture
def place(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder with the example in it; the current one."""
    shutil.copytree(digits, tmp_path / "examples" / digits.name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_the_python_examples_run(number: int, place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = blocks("python")[number]
    exec(compile(text, "README.md", "exec"), {"__name__": "readme"})
    printed = capsys.readouterr().out
    for said in re.findall(r"print\(error\)  # (.+)", text):
        assert said in printed
    if "digits.pruned.onnx" in text:
        assert (place / "digits.pruned.onnx").exists()


def test_what_python_offers_is_what_the_readme_names() -> None:
    text = section("Use from Python", "##")
    for name in onnxprune.__all__:
        assert name.startswith("__") or re.search(rf"\b{name}\b", text), name


@pytest.mark.skipif(shutil.which("make") is None or shutil.which("gzip") is None, reason="needs make and gzip")
def test_the_make_example_builds_and_its_gates_hold(digits: Path, place: Path) -> None:
    (makefile,) = blocks("make")
    (place / "Makefile").write_text(makefile, encoding="utf-8")
    for name in ("digits.onnx", "calib.npz"):
        shutil.copy(digits / name, place / name)
    script = place / "bin" / "onnxprune"
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnxprune "$@"\n', encoding="utf-8")
    script.chmod(0o755)
    env = {**os.environ, "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def make(*words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["make", "digits.pruned.onnx", *words], env=env, capture_output=True, text=True)

    missed = make("SPARSITY=0.995")
    assert missed.returncode == 2
    assert "Error 3" in missed.stderr
    too_large = make("BUDGET=1000")
    assert too_large.returncode == 2
    assert not (place / "digits.pruned.onnx").exists()
    built = make()
    assert built.returncode == 0, built.stderr
    assert (place / "digits.pruned.json").exists()
    assert "up to date" in make().stdout


def fill() -> None:
    """Write the help texts into the README anew."""

    def fresh(found: re.Match[str]) -> str:
        command = found[1].removeprefix("onnxprune").removesuffix("--help").strip()
        return f"$ {found[1]}\n{help_of(command)}"

    (ROOT / "README.md").write_text(HELP.sub(fresh, README), encoding="utf-8")


if __name__ == "__main__":
    fill()
