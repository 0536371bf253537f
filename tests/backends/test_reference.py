"""The page about backends is of the tests and the backends that there are."""

import ast
from pathlib import Path

import pytest

from tests.backends.reference import PAGE
from tests.tried import results, sentence

ROOT = Path(__file__).parents[2]
SUITES = {"BackendConformance", "ArcSuite", "EmulatedConformance"}


@pytest.fixture(scope="module")
def table() -> list[list[str]]:
    lines = [line for line in PAGE.path.read_text().splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_page_has_a_row_for_every_test_of_the_suite(table: list[list[str]]) -> None:
    assert [row[0] for row in table[2:]] == [sentence(test) for test in PAGE.tests()]


def test_page_has_a_column_for_every_backend_that_runs_the_suite(table: list[list[str]]) -> None:
    paths = [*(ROOT / "tests/backends").glob("test_*.py"), ROOT / "services/scheduler/tests/test_local_backend.py"]
    classes = [one for path in paths for one in ast.walk(ast.parse(path.read_text())) if isinstance(one, ast.ClassDef)]
    running = {one.name for one in classes if {base.id for base in one.bases if isinstance(base, ast.Name)} & SUITES}
    assert set(PAGE.columns) == running
    for title, column in zip(table[0][1:], PAGE.columns.values(), strict=True):
        assert title.startswith(column.title)
        assert column.note in title


def test_report_is_read_and_one_failure_counts(tmp_path: Path) -> None:
    first, second = tmp_path / "a.xml", tmp_path / "b.xml"
    case = '<testcase classname="tests.backends.test_at.TestAt" name="test_nothing_to_submit_is_no_error"'
    first.write_text(f"<testsuites><testsuite>{case}/></testsuite></testsuites>")
    second.write_text(f"<testsuites><testsuite>{case}><failure/></testcase></testsuite></testsuites>")
    key = ("TestAt", "test_nothing_to_submit_is_no_error")
    assert results([first]) == {key: True}
    assert results([first, second]) == {key: False}
    shown = PAGE.text(results([second]), {"TestAt": "3.2.5"})
    assert " at 3.2.5 " in shown
    assert "| Nothing to submit is no error | - | - | ✗ |" in shown
