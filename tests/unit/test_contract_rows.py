"""The page that says what of the three assistant APIs is served, and the tests that it names."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
ROWS = range(1, 85)


def test_every_row_of_the_contract_has_its_line_and_a_test_named_by_its_number() -> None:
    lines = re.findall(r"^\| (\d+) \|", (ROOT / "ops" / "contract.md").read_text("utf-8"), flags=re.MULTILINE)
    assert [int(number) for number in lines] == list(ROWS)
    tests = "\n".join(path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    tested = {int(number) for number in re.findall(r"def test_row_(\d+)_", tests)}
    assert set(ROWS) - tested == set()


def test_every_file_that_the_page_names_is_there() -> None:
    named = set(re.findall(r"`(test_\w+\.py)`", (ROOT / "ops" / "contract.md").read_text("utf-8")))
    assert named - {path.name for path in (ROOT / "tests").rglob("test_*.py")} == set()
