"""The README's pictures from a real run on the example: docs/terminal.svg, what it prints, and docs/page.png, the top of its page.

    python tools/make_pictures.py

Needs Chromium (chromium, chromium-browser or google-chrome in PATH). Times in the pictures are those of the machine.
"""

from __future__ import annotations

import contextlib
import io
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest import mock

from PIL import Image
from rich.console import Console
from rich.text import Text

from onnxprune import cli, terminal

ROOT = Path(__file__).resolve().parent.parent
EXAMPLE = ROOT / "examples" / "01_digits"
WORDS = "onnxprune digits.onnx --alloc erk --sparsity 0.95 --calib calib.npz --report page.html"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
COLUMNS = 124
SIZE = (1280, 1000)
"""Pixels of the page that are shown."""


def run() -> str:
    """Run WORDS in this folder; returns what it printed as SVG, without the fonts that rich would have a browser fetch."""
    console = Console(record=True, file=io.StringIO(), width=COLUMNS, force_terminal=True, highlight=False)
    console.print(Text(f"$ {WORDS}", style="bold"))
    with mock.patch.object(sys, "argv", WORDS.split()), mock.patch.object(terminal, "stdout", return_value=console):
        cli.main()
    return re.sub(r"@font-face \{.*?\}\s*", "", console.export_svg(title="onnxprune"), flags=re.DOTALL)


def photograph(page: Path, target: Path, browser: str) -> None:
    """A picture of the page's top in the light theme."""
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--blink-settings=preferredColorScheme=1"]
    shot = page.with_suffix(".png")
    command = [browser, *flags, f"--window-size={SIZE[0]},{SIZE[1]}", f"--screenshot={shot}", page.as_uri()]
    subprocess.run(command, check=True, stderr=subprocess.DEVNULL)
    with Image.open(shot) as picture:
        picture.convert("RGB").save(target, optimize=True)


def main() -> None:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        sys.exit(f"none of {', '.join(BROWSERS)} is in PATH; install one of them")
    docs = ROOT / "docs"
    with tempfile.TemporaryDirectory() as name, contextlib.chdir(name):
        for file in ("digits.onnx", "calib.npz"):
            shutil.copy(EXAMPLE / file, file)
        (docs / "terminal.svg").write_text(run(), encoding="utf-8")
        photograph(Path(name).resolve() / "page.html", docs / "page.png", browser)
    for file in ("terminal.svg", "page.png"):
        print(f"docs/{file}: {(docs / file).stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
