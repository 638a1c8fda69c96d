"""Pages: complete, escaped, the same every time, and right in a browser."""

from __future__ import annotations

import dataclasses
import html
import importlib.resources
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
from conftest import Ran
from hypothesis import example, given, settings
from hypothesis import strategies as st
from networks import mlp, samples, twins

from onnxprune import Report, prune
from onnxprune.job import is_page
from onnxprune.masking import allocations
from onnxprune.numerics.allocation import ALLOCATIONS
from onnxprune.options import ALLOCS, REPAIRS, Options
from onnxprune.page import prune_page, sweep_page
from onnxprune.plots import ALLOC_STYLE, REPAIR_STYLE, Change, change_chart, density_chart
from onnxprune.report import CalibrationReport, FileReport, SkippedReport
from onnxprune.svg import COLOUR, shown
from onnxprune.sweep_report import Best, Regime, RegimePoint, SweepReport, SweepRow

Call = Callable[..., Ran]
BROWSER = next((found for name in ("chromium", "chromium-browser", "google-chrome") if (found := shutil.which(name))), None)
EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&amp;$\\frac{1}{2}$]]>--><!--\x1b[31m\u202e\x00\n\udce9層"
VOID = ("meta", "input", "br", "img", "link", "wbr")


class Elements(HTMLParser):
    """The elements of a page with their attributes and the text inside them; refuses tags that do not match."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        if tag == "wbr":
            self.text = self.text[:-1]
        elif tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("script", "style"):
            self.text += f"{data} "

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.found)


def charts(page: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(text) for text in re.findall(r"<svg .*?</svg>", page, re.DOTALL)]


@pytest.fixture(scope="module")
def report() -> Report:
    """A run on four layers with another name each, one of them left dense, and a node that was skipped."""
    model = mlp()
    model.graph.node[3].input[1] = "computed"
    model.graph.node.insert(3, onnx.helper.make_node("Abs", ["w1"], ["computed"], "abs"))
    found = prune(model, samples(60, (8,)), sparsity=0.5).report
    assert len(found.skipped) == 1
    return found


def many(report: Report, names: list[str]) -> Report:
    """The report with a layer for each name, all like its first."""
    layers = tuple(dataclasses.replace(report.layers[0], name=name) for name in names)
    return dataclasses.replace(report, layers=layers)


def sweep_of(**values: object) -> SweepReport:
    """A sweep of two allocations, three sparsities and two repairs, with a regime for the first allocation and a row that failed."""
    score = {"bn": (0.9, 0.4, 0.1), "reconstruct": (0.95, 0.9, 0.5)}
    rows = [
        SweepRow(f"{alloc}{s}{repair}", alloc, s, repair, s, 1000, round(1000 * (1 - s)), 0, y, 0.1, 0.77, 8.0, None, 1.5, None)
        for alloc in ("erk", "lamp")
        for place, s in enumerate((0.8, 0.9, 0.98))
        for repair in ("bn", "reconstruct")
        for y in [score[repair][place] - (alloc == "lamp") * 0.05]
    ]
    nothing = dict.fromkeys(("sparsity", "weights", "kept", "dead_channels", "score", "kl", "cosine", "sqnr_db"))
    rows[-1] = dataclasses.replace(rows[-1], **nothing, error="out of <b>memory</b>")
    best = tuple(Best(s, "erk", "reconstruct", y, 0.1, None) for s, y in zip((0.8, 0.9, 0.98), score["reconstruct"], strict=True))
    points = (RegimePoint(0.9, 0.4, "reconstruct", 0.9),)
    whole = SweepReport(
        model="models/net.onnx", sha256="ab" * 32, options={"alloc": ["erk", "lamp"]}, versions={"onnxprune": "0.1.0", "numpy": "2"},
        provider="CPUExecutionProvider", calibration=CalibrationReport(("calib.npz",), 512, 410, 102, 32, False, 0), labels=None,
        measure="top1", output="logits", dense_accuracy=None, rows=tuple(rows), best=best,
        regimes=(Regime("erk", 0.5, 0.8, 0.9, 0.9, points), Regime("lamp", 0.5, 0.8, None, None, ())), seconds=18.0, notes=(),
    )  # fmt: skip
    return dataclasses.replace(whole, **values)  # type: ignore[arg-type]


# ---- what is on it


def test_the_page_of_a_run_has_every_layer_and_what_was_skipped(report: Report) -> None:
    page = Elements(prune_page(report, {"lamp": [entry.kept for entry in report.layers]}, "onnxprune a.onnx --sparsity 0.5"))
    for entry in report.layers:
        assert entry.name in page.text and f" {entry.kept:,} " in page.text and f"{100 * entry.density:.2f} %" in page.text
    (skipped,) = report.skipped
    assert skipped.name in page.text and skipped.reason in page.text
    assert "onnxprune a.onnx --sparsity 0.5" in page.text
    assert report.agreement is not None
    assert f"{100 * report.agreement.score:.2f} %" in page.text and f"{report.agreement.samples} held-out samples" in page.text
    for name, version in report.versions.items():
        assert f"{name} {version}" in page.text
    assert page.count("svg") == 3
    assert "lamp" in page.text


@pytest.mark.parametrize("repair", REPAIRS)
def test_every_repair_has_a_page(repair: str) -> None:
    found = prune(twins(depth=3)[1], samples(40), sparsity=0.5, repair=repair).report
    page = Elements(prune_page(found))
    assert page.count("svg") == (1 if repair == "none" else 3)
    assert ("masks alone" in page.text, "not repaired" in page.text) == (True, repair == "none")
    assert ("Relative error" in page.text) == (repair == "reconstruct")


def test_a_page_without_samples_says_why_there_is_no_agreement() -> None:
    page = Elements(prune_page(prune(mlp(), sparsity=0.5, repair="none").report))
    assert "not measured: no calibration samples" in page.text


def test_a_pattern_has_no_other_allocations(digits: Path) -> None:
    options = Options(pattern="2:4", repair="none")
    assert allocations(onnx.load(digits / "digits.onnx"), options, 0.5) == {}
    page = Elements(prune_page(prune(digits / "digits.onnx", pattern="2:4", repair="none").report))
    assert "pruned by 2:4" in page.text and "the other allocations" not in page.text


def test_the_other_allocations_keep_as_many_weights(digits: Path) -> None:
    model = onnx.load(digits / "digits.onnx")
    found = allocations(model, Options(sparsity=0.5, exclude=("stem",)), 0.95)
    run = prune(model, sparsity=0.95, alloc="erk", repair="none", exclude=("stem",)).report
    assert list(found) == list(ALLOCATIONS)
    assert found["erk"] == tuple(entry.kept for entry in run.layers)
    assert {sum(kept) for kept in found.values()} == {sum(found["erk"])}
    assert len(set(found.values())) == len(found)


def test_the_page_of_a_sweep_has_every_row_and_marks_the_best() -> None:
    text = sweep_page(sweep_of(), "onnxprune sweep models/net.onnx")
    page = Elements(text)
    assert page.count("svg") == 2
    assert text.count("★") == 3
    assert page.text.count("0.9000") == 4  # rows: erk with bn at 0.8, with reconstruct at 0.9, lamp with reconstruct at 0.8; and one best
    assert "onnxprune sweep models/net.onnx" in page.text
    assert "out of <b>memory</b>" in page.text
    assert "No transition regime among these sparsities." in page.text


def test_the_transition_regime_is_shaded_where_there_is_one() -> None:
    erk, lamp = charts(sweep_page(sweep_of()))
    assert ["var(--band)" in ElementTree.tostring(chart, "unicode") for chart in (erk, lamp)] == [True, False]
    assert "The transition regime: 90 %." in erk.attrib["aria-label"]


def test_a_sweep_of_one_sparsity_and_one_that_failed_whole_have_pages() -> None:
    whole = sweep_of()
    one = tuple(row for row in whole.rows if row.sparsity_asked == 0.9)
    assert Elements(sweep_page(dataclasses.replace(whole, rows=one))).count("svg") == 2
    failed = tuple(dataclasses.replace(row, score=None, error="no") for row in one)
    assert Elements(sweep_page(dataclasses.replace(whole, rows=failed, best=(), regimes=(), measure=None, output=None))).count("svg") == 2


def test_every_allocation_and_repair_has_its_look() -> None:
    assert set(ALLOC_STYLE) == set(ALLOCS) and set(REPAIR_STYLE) == set(REPAIRS)
    for styles in (ALLOC_STYLE, REPAIR_STYLE):
        assert len(set(styles.values())) == len(styles)


# ---- names are text


def test_a_hostile_name_stays_text(report: Report) -> None:
    evil = many(report, [EVIL, EVIL + "2"])
    skipped = (SkippedReport(EVIL, "<i>Op</i>", EVIL),)
    evil = dataclasses.replace(evil, skipped=skipped, notes=(EVIL,), versions={**report.versions, EVIL: EVIL})
    for text in (prune_page(evil, {"lamp": [1, 2]}, EVIL), sweep_page(sweep_of(model=EVIL, notes=(EVIL,), output=EVIL), EVIL)):
        page = Elements(text)
        assert page.count("script") == 1 and page.count("img") == 0 and page.count("i") == 0
        assert not any(name.startswith("on") for _, attributes in page.found for name in attributes)
        assert "<script>alert(1)</script>" in page.text
        assert not set("\x00\x1b\u202e\udce9") & set(text)
        assert r"\x1b[31m\u202e\x00\n\udce9層" in page.text
        text.encode()


def test_a_hostile_name_stays_text_in_a_chart() -> None:
    drawn = density_chart([EVIL, "$x_1$"], [0.5, 0.1], [True, True], "erk", {})
    root = ElementTree.fromstring(drawn)
    assert {element.tag.rpartition("}")[2] for element in root.iter()} <= {
        "svg",
        "g",
        "path",
        "text",
        "use",
        "defs",
        "clipPath",
        "rect",
        "title",
    }
    said = "\n".join(root.itertext())
    assert "$x_1$  2" in said  # as it is, and not as mathematics
    assert shown(EVIL) in said


@example("\U000e0001" * 40)
@example("a\u2028b\uffff\u0085\ufeff")
@settings(max_examples=10, deadline=None)
@given(st.text(max_size=40))
def test_any_name_makes_a_chart(name: str) -> None:
    assert shown(name) in "\n".join(ElementTree.fromstring(density_chart([name], [0.5], [True], "lamp", {"erk": [0.0]})).itertext())


def test_what_cannot_be_seen_is_shown() -> None:
    assert shown("a\tb\u202e\ud800é 層") == r"a\tb\u202e\ud800é 層"


# ---- the file


def test_nothing_is_fetched(report: Report) -> None:
    for text in (prune_page(report), sweep_page(sweep_of())):
        page = Elements(text)
        for _, attributes in page.found:
            assert not {"src", "action", "srcset", "data", "poster"} & set(attributes)
            for name in ("href", "xlink:href"):
                assert (attributes.get(name) or "#").startswith("#")
        assert "url(http" not in text and "@import" not in text
        assert set(re.findall(r"https?://[^\s\"'<)]+", text)) == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_are_there_once_and_those_named_exist(report: Report) -> None:
    for text in (prune_page(report, {"lamp": [1] * len(report.layers)}), sweep_page(sweep_of())):
        page = Elements(text)
        outside = [attributes["id"] for tag, attributes in page.found if "id" in attributes and tag not in ("path", "clippath")]
        assert len(set(outside)) == len(outside)
        known = set(re.findall(r'\bid="([^"]+)"', text))
        for _, attributes in page.found:
            for name in ("aria-labelledby", "aria-controls"):
                assert attributes.get(name) is None or attributes[name] in known
        assert set(re.findall(r'href="#([^"]+)"|url\(#([^)]+)\)', text)) <= {(one, "") for one in known} | {("", one) for one in known}


def test_it_can_be_read_out(report: Report) -> None:
    for text in (prune_page(report), sweep_page(sweep_of())):
        page = Elements(text)
        for tag, attributes in page.found:
            assert tag != "svg" or (attributes["role"] == "img" and attributes["aria-label"])
            assert tag != "th" or attributes["scope"] in ("row", "col")
            assert tag != "input" or attributes["aria-label"]
            assert "tabindex" not in attributes or attributes.get("aria-labelledby") or attributes.get("aria-label")
        assert ("html", {"lang": "en"}) in page.found and page.count("h1") == 1 and page.count("main") == 1


def luminance(colour: str) -> float:
    """WCAG 2's relative luminance."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return float(np.dot([0.2126, 0.7152, 0.0722], linear))


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_both_themes_have_contrast() -> None:
    assert contrast("#000000", "#ffffff") == 21
    style = importlib.resources.files("onnxprune").joinpath("templates/page.css").read_text()
    themes = [dict(re.findall(r"--(\w+):(#\w{6})\b", block)) for block in re.findall(r"\{(color-scheme[^}]*)\}", style)]
    assert len(themes) == 3 and themes[1] == themes[2]  # light, dark by the system, dark by the button
    for theme in themes:
        assert set(COLOUR) <= set(theme)
        for name in ("ink", "muted", "accent", "good", "bad"):  # WCAG AA: 4.5 for text, 3 for graphics
            assert min(contrast(theme[name], theme[back]) for back in ("surface", "page")) >= 4.5, name
        for name in ("s0", "s1", "s2", "s3", "s4", "s5", "muted"):
            assert contrast(theme[name], theme["surface"]) >= 3, name
            assert contrast(theme[name], theme["band"]) >= 3, name


@pytest.mark.slow
def test_four_hundred_layers_stay_readable(report: Report) -> None:
    names = [f"/encoder/layer.{number}/attention/self/query/MatMul" for number in range(400)]
    text = prune_page(many(report, names), {"lamp": [1] * 400})
    assert len(text) < 2_000_000
    for chart in charts(text):
        width, height = (float(number) for number in chart.attrib["viewBox"].split()[2:])
        assert width == pytest.approx(360) and height > 400 * 12
        rows = [element for element in chart.iter() if element.get("class") == "row"]
        tops = [float(row.attrib["y"]) for row in rows]
        assert len(rows) == 400 and np.diff(tops) == pytest.approx(12)
        sizes = {float(size) for size in re.findall(r"font-size:([\d.]+)px", ElementTree.tostring(chart, "unicode"))}
        assert 8 <= min(sizes) <= max(sizes) < 12


def test_a_chart_takes_numbers_from_nothing_to_everything() -> None:
    wild = [Change(0.0, 0.0), Change(1e-300, 1e300), Change(None, 1.0), Change(float("inf"), 1.0), Change(float("nan"), 0.0)]
    for ratio in (True, False):
        assert "2 of 5 layers" in change_chart(list("abcde"), wild, "title", ratio=ratio)
    density_chart(["a", "b"], [0.0, 1.0], [True, False], "2:4", {"global": [0.0, 0.0]})


def test_the_same_report_gives_the_same_bytes_in_another_process_home_and_theme(report: Report, tmp_path: Path) -> None:
    """A home that cannot be written to, a backend that there is not, the user's own settings: none of it matters, and none is told."""
    first = prune_page(report, {"lamp": [1] * len(report.layers)}, "onnxprune")
    (tmp_path / "matplotlibrc").write_text("axes.linewidth: 9\nlines.markeredgewidth: 7\nxtick.labelsize: 30\nsvg.fonttype: path\n")
    (tmp_path / "report.txt").write_text(repr(report))
    code = (
        "from onnxprune.report import *; from onnxprune.report import SkippedReport; from onnxprune.runtime.calibration import Preprocess\n"
        "from onnxprune.page import prune_page; from math import inf\n"
        "report = eval(open('report.txt').read())\n"
        "open('page.html', 'w').write(prune_page(report, {'lamp': [1] * len(report.layers)}, 'onnxprune'))\n"
    )
    home = {"HOME": "/dev/null/home", "XDG_CONFIG_HOME": "/dev/null/config", "XDG_CACHE_HOME": "/dev/null/cache"}
    environment = {**os.environ, **home, "MPLBACKEND": "none of them", "PYTHONHASHSEED": "7", "PYTHONPATH": os.pathsep.join(sys.path)}
    environment.pop("MPLCONFIGDIR", None)
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not re.search("matplotlib|font|Traceback", ran.stderr)  # ONNX Runtime has a word to say about such a home
    assert (tmp_path / "page.html").read_text() == first


def test_a_run_without_a_page_loads_neither_matplotlib_nor_jinja2() -> None:
    code = "import sys, onnxprune.cli; print(sorted({'matplotlib', 'jinja2'} & set(sys.modules)))"
    ran = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True
    )
    assert ran.stdout == "[]\n"


def test_the_templates_are_data_of_the_package() -> None:
    """A wheel has what setup.cfg names: every file of the folder must match."""
    root = Path(__file__).resolve().parent.parent
    patterns = re.findall(
        r"^    (\S+)$", (root / "setup.cfg").read_text().partition("[options.package_data]")[2].partition("[")[0], re.MULTILINE
    )
    there = sorted((root / "onnxprune" / "templates").iterdir())
    assert {path.name for path in there} == {"page.css", "page.html", "page.js", "parts.html", "prune.html", "sweep.html"}
    for path in there:
        assert any(path.relative_to(root / "onnxprune").match(pattern) for pattern in patterns), path


@pytest.mark.slow
def test_an_installed_wheel_writes_pages(tmp_path: Path) -> None:
    root = Path(__file__).resolve().parent.parent
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    source = tmp_path / "source"
    shutil.copytree(
        root, source, ignore=lambda folder, names: {name for name in names if name not in kept} if Path(folder) == root else set()
    )
    subprocess.run([*pip, "install", "--no-deps", "--target", tmp_path / "site", source], check=True, cwd=tmp_path)
    code = "import onnxprune, onnxprune.page as p, sys; print(onnxprune.__file__); print(p._environment().list_templates())"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    ran = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    place, templates = ran.stdout.splitlines()
    assert place.startswith(str(tmp_path / "site"))
    assert "prune.html" in templates and "page.css" in templates


kept = ("onnxprune", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")


# ---- the command line


def test_a_name_decides_the_form() -> None:
    assert [is_page(Path(name)) for name in ("a.html", "b.HTM", "c.json", "html", "d.html.json")] == [True, True, False, False, False]


def test_the_command_writes_a_page_and_json_side_by_side(digits: Path, tmp_path: Path, onnxprune: Call) -> None:
    words = [digits / "digits.onnx", "--sparsity", 0.9, "--calib", digits / "calib.npz", "--samples", 40, "-o", tmp_path / "o.onnx"]
    reports = ["--report", tmp_path / "r.html", "--report", tmp_path / "r.json"]
    assert onnxprune(*words, *reports, "--layer-sparsity", "/classifier/Gemm=0.5").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["o.onnx", "r.html", "r.json"]
    page = Elements((tmp_path / "r.html").read_text(encoding="utf-8"))
    assert f"onnxprune {digits}/digits.onnx --sparsity 0.9" in page.text and "--layer-sparsity /classifier/Gemm=0.5" in page.text
    assert all(rule in page.text for rule in ALLOCATIONS)
    assert '"schema": 1' in (tmp_path / "r.json").read_text()
    page_before = (tmp_path / "r.html").read_bytes()
    again = onnxprune(*words, *reports)
    assert again.code == 2 and "exists; give --force" in again.err
    failed = onnxprune(*words, *reports, "--force", "--min-agreement", 1, "--repair", "none")
    assert failed.code == 3 and (tmp_path / "r.html").read_bytes() == page_before
    twice = onnxprune(*words, "--force", "--report", tmp_path / "r.html", "--report", tmp_path / "r.html")
    assert twice.code == 2 and "would be written twice" in twice.err


def test_a_sweep_writes_a_page_beside_json(digits: Path, tmp_path: Path, onnxprune: Call) -> None:
    words = ["sweep", digits / "digits.onnx", "--calib", digits / "calib.npz", "--samples", 40, "--jobs", 1, "--quiet"]
    words += ["--alloc", "erk", "--sparsity", "0.8,0.9", "--repair", "none,bn"]
    assert onnxprune(*words, "-o", tmp_path / "s.json", "--report", tmp_path / "s.html").code == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.html", "s.json"]
    page = Elements((tmp_path / "s.html").read_text(encoding="utf-8"))
    assert f"onnxprune sweep {digits}/digits.onnx" in page.text and page.count("svg") == 1
    for row in json.loads((tmp_path / "s.json").read_text())["rows"]:
        assert f" {row['score']:.4f} " in page.text and f" {row['kept']:,} " in page.text
    refused = onnxprune(*words, "--report", tmp_path / "s.json", "--force")
    assert refused.code == 2 and "is no page" in refused.err
    for flag in ("-o", "--csv"):
        refused = onnxprune(*words, flag, tmp_path / "other.html")
        assert refused.code == 2 and "in the name of a page" in refused.err
    assert onnxprune(*words, "--report", tmp_path / "s.html").code == 2


def test_a_page_tells_what_auto_tried() -> None:
    found = prune(twins(depth=3)[1], samples(60), sparsity=0.5, alloc="auto", repair="channel")
    page = Elements(prune_page(found.report))
    assert found.report.choice is not None
    for entry in found.report.choice.candidates:
        assert f" {entry.score:.4f} " in page.text
    assert page.text.count("★ chosen") == 1
    assert f"pruned by {found.report.options['alloc']}" in page.text


# ---- in a browser

PROBE = """
<script>
const names = () => [...document.querySelectorAll("#%s tbody tr")].filter((row) => !row.hidden).map((row) => row.cells[%d].textContent);
const head = (text) => [...document.querySelectorAll("#%s thead button")].find((button) => button.textContent === text);
const said = {wide: [document.documentElement.clientWidth, document.documentElement.scrollWidth], names: names()};
head("%s").click(); said.up = names(); said.sort = head("%s").parentElement.getAttribute("aria-sort");
head("%s").click(); said.down = names();
const input = document.querySelector(".find input"); input.value = "%s"; input.dispatchEvent(new Event("input")); said.found = names();
document.querySelector(".theme").click(); said.theme = document.documentElement.dataset.theme;
const back = getComputedStyle(document.body).backgroundColor; said.light = back;
document.querySelector(".theme").click(); said.dark = getComputedStyle(document.body).backgroundColor;
said.bar = [...document.querySelectorAll("svg [style*='--s']")].map((mark) => getComputedStyle(mark)).map((s) => s.fill + s.stroke).join();
parent.postMessage(JSON.stringify(said), "*");
</script>
"""
PHONE = """<!doctype html><pre id="said"></pre><iframe src="page.html" width="375" height="800" style="border:0"></iframe>
<script>addEventListener("message", (event) => { document.getElementById("said").textContent = event.data; });</script>
"""  # the window of a headless browser is 500 pixels wide at least


def opened(page: str, folder: Path, shell: str | None = None) -> tuple[str, list[str]]:
    """The elements after all scripts of the page, or of the shell that holds it in a frame; and what was said on the console."""
    if BROWSER is None:
        pytest.skip("no chromium, chromium-browser or google-chrome in PATH")
    (folder / "page.html").write_text(page, encoding="utf-8")
    (folder / "shell.html").write_text(shell or "", encoding="utf-8")
    place = folder / ("page.html" if shell is None else "shell.html")
    flags = [
        "--headless",
        "--hide-scrollbars",
        "--virtual-time-budget=2000",
        "--no-sandbox",
        "--disable-gpu",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
    ]
    ran = subprocess.run(
        [BROWSER, *flags, "--dump-dom", place.as_uri()],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    return ran.stdout, [line for line in ran.stderr.splitlines() if "CONSOLE" in line]


def probed(page: str, folder: Path, *words: object) -> dict[str, object]:
    """What the probe found on a page of 375 pixels; the policy that keeps foreign scripts out is taken off for it."""
    bare = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert bare != page
    dom, console = opened(bare.replace("</body>", PROBE % words + "</body>"), folder, PHONE)
    assert console == []
    found = re.search(r'<pre id="said">(.*?)</pre>', dom, re.DOTALL)
    assert found is not None
    return dict(json.loads(html.unescape(found[1])))


def test_a_browser_sorts_filters_and_has_no_sideways_scroll(report: Report, tmp_path: Path) -> None:
    names = ["a" * 120, "b/" * 60, "c" + EVIL]
    layers = [dataclasses.replace(report.layers[0], name=name, kept=kept) for name, kept in zip(names, (10, 2, 30), strict=True)]
    file = FileReport("models/" + "m" * 200, ("models/" + "m" * 200,), 1000, 500, 510, 900, "ab" * 32)
    wide = dataclasses.replace(report, layers=tuple(layers), input=file, output=file)
    page = prune_page(wide, {"lamp": [1, 2, 3]}, "onnxprune " + "x" * 400)
    dom, console = opened(page, tmp_path)  # as it is: the policy lets its own script run
    assert console == []
    assert "Theme: auto" in dom
    said = probed(page, tmp_path, "layers", 1, "layers", "kept", "kept", "kept", "b/b")
    first, second, third = (shown(name) for name in names)
    assert said["wide"] == [375, 375]
    assert said["names"] == [first, second, third]
    assert (said["up"], said["sort"], said["down"]) == ([second, first, third], "ascending", [third, first, second])
    assert said["found"] == [second]
    assert (said["theme"], said["light"], said["dark"]) == ("light", "rgb(244, 246, 248)", "rgb(15, 20, 26)")
    assert "rgb(108, 178, 255)" in str(said["bar"])  # the charts follow the theme: --s0 of the dark one


def test_a_browser_sorts_a_sweep_with_what_failed_last(tmp_path: Path) -> None:
    said = probed(sweep_page(sweep_of()), tmp_path, "rows", 4, "rows", "agreement", "agreement", "agreement", "erk")
    assert said["wide"] == [375, 375]
    numbers = [text.strip("★ ") for text in said["down"]]  # type: ignore[attr-defined]
    assert numbers == ["0.9500", "0.9000", "0.9000", "0.9000", "0.8500", "0.8500", "0.5000", "0.4000", "0.3500", "0.1000", "0.0500", "–"]
    assert said["up"][-1] == "–"  # type: ignore[index]
    assert len(said["found"]) == 6  # type: ignore[arg-type]
