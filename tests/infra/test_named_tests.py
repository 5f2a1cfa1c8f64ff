"""Runbook, operations, upgrades and security name the test of each claim, and those tests exist."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RUNBOOK, OPERATIONS = ROOT / "infra" / "RUNBOOK.md", ROOT / "docs" / "operations.md"
PAGES = (RUNBOOK, OPERATIONS)
SHORTER = (ROOT / "infra" / "SECURITY.md", ROOT / "infra" / "UPGRADE.md")  # they name a test without its module
FILES = list((ROOT / "tests").rglob("test_*.py"))
_NAME = re.compile(r"`(?:tests/[\w/]*)?(test_\w+\.py)(?:::(test_\w+))?`")
_PROGRAM = "`make rehearsal`"


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.parse(path.read_text()).body if isinstance(node, ast.FunctionDef)}


def missing(text: str) -> list[str]:
    """The modules of tests, and the tests in them, that a text names and that are not there."""
    wrong = []
    for module, function in _NAME.findall(text):
        of_name = [path for path in FILES if path.name == module]
        if not any(not function or function in functions(path) for path in of_name):
            wrong.append(f"{module}::{function}")
    return wrong


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_test_that_a_page_names_exists(page: Path) -> None:
    text = page.read_text()
    assert len(_NAME.findall(text)) > 10
    assert missing(text) == []
    assert re.findall(r"\btest_\w+(?:\.py)?", _NAME.sub("", text)) == [], "written so that the line above finds them"


@pytest.mark.parametrize("page", SHORTER, ids=lambda page: page.name)
def test_every_test_that_a_shorter_page_names_exists(page: Path) -> None:
    named = set(re.findall(r"\btest_\w+", page.read_text()))
    known = {path.stem for path in FILES}.union(*(functions(path) for path in FILES))
    assert len(named) > 10
    assert named - known == set()


def test_a_name_that_is_not_there_is_found() -> None:
    assert missing("`test_infra.py` `test_named_tests.py::test_nothing` `tests/infra/test_absent.py`") == [
        "test_named_tests.py::test_nothing",
        "test_absent.py::",
    ]


def test_each_row_and_section_of_the_runbook_names_its_tests() -> None:
    text = RUNBOOK.read_text()
    lines = text.splitlines()
    heads = {at - 1 for at, line in enumerate(lines) if re.fullmatch(r"[|-]+", line)}
    rows = [line for at, line in enumerate(lines) if line.startswith("|") and not {at, at - 1} & heads]
    assert len(heads) == 2 and len(rows) > 20
    for row in rows:
        tests = row.strip("|").split(" | ")[-1]
        assert _NAME.search(tests) or _PROGRAM in tests, row
    alerts = text[text.index("\n## Alerts") : text.index("\n### ")]
    assert _NAME.search(alerts), "what holds for every alert stands above them"


def test_each_section_and_each_case_of_operations_names_its_tests() -> None:
    sections = re.split(r"\n## ", OPERATIONS.read_text())[1:]
    for section in sections:
        assert _NAME.search(section), section.splitlines()[0]
    (production,) = [section for section in sections if section.startswith("Production")]
    cases = re.findall(r"^- (.+?)(?=^- |^$)", production.partition("these cases:")[2], re.MULTILINE | re.DOTALL)
    assert len(cases) >= 6
    assert [case for case in cases if not _NAME.search(case)] == []


def test_a_row_of_the_runbook_can_be_read_in_a_table() -> None:
    rows = [line for line in RUNBOOK.read_text().splitlines() if line.startswith("|")]
    assert len(rows) > 20
    assert [row[:40] for row in rows if len(row) > 300] == []
