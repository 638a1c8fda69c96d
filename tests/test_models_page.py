"""docs/models.md names tests that are there, and gives a reason wherever something is not pruned or not repaired."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import zoo_exports  # noqa: F401 - enters its subjects
import zoo_odd  # noqa: F401
import zoo_strange  # noqa: F401
from zoo import SUBJECTS

ROOT = Path(__file__).resolve().parent.parent
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in (ROOT / "docs" / "models.md").read_text(encoding="utf-8").splitlines()
    if line.startswith("| ") and not line.startswith("| row ")
]


def test_the_page_has_its_tables() -> None:
    assert len(ROWS) > 40
    assert {len(row) for row in ROWS} == {3, 5}


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0][:40])
def test_a_row_names_a_test_and_a_reason(row: list[str]) -> None:
    named = re.findall(r"`([^`]+)`", row[-1])
    assert named or row[-1] == "the same", row
    for name in named:
        for file in re.findall(r"[\w/]+\.py", name):
            assert (ROOT / "tests" / file).is_file(), name
        for function in re.findall(r"(?:^|::)(test_\w+)(?!\.py)\b", re.sub(r"[\w/]+\.py", "", name)):
            assert any(f"def {function}(" in path.read_text() for path in (ROOT / "tests").rglob("test_*.py")), function
        for words in re.findall(r"-k (\w+)", name):
            assert any(words in subject for subject in SUBJECTS), words
    refusals = [cell for cell in row[1:-1] if re.match(r"no\b", cell)]
    assert not refusals or ":" in refusals[0], f"no reason: {row}"
