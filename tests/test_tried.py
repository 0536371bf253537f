"""The pages that say what was tried are of the tests and the systems that there are."""

import ast
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.backends.reference import PAGE as BACKENDS
from tests.storage.reference import PAGE as STORAGES
from tests.tried import Page, results, sentence

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Tried:
    """A page, and where the classes are that it must have columns for: those with one of these bases."""

    page: Page
    files: Sequence[Path]
    bases: frozenset[str]

    def table(self) -> list[list[str]]:
        """Its rows as they stand there."""
        lines = [line for line in self.page.path.read_text().splitlines() if line.startswith("| ")]
        return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]

    def running(self) -> set[str]:
        """Classes that run a suite."""
        trees = [ast.parse(path.read_text()) for path in self.files]
        classes = [one for tree in trees for one in ast.walk(tree) if isinstance(one, ast.ClassDef)]
        return {
            one.name for one in classes if {base.id for base in one.bases if isinstance(base, ast.Name)} & self.bases
        }


PAGES = [
    Tried(
        BACKENDS,
        [*(ROOT / "tests/backends").glob("test_*.py"), ROOT / "services/scheduler/tests/test_local_backend.py"],
        frozenset({"BackendConformance", "ArcSuite", "EmulatedConformance"}),
    ),
    Tried(
        STORAGES,
        list((ROOT / "tests/storage").glob("test_*.py")),
        frozenset({"DavSuite", *(suite.__name__ for suite in STORAGES.suites)}),
    ),
]


@pytest.mark.parametrize("tried", PAGES, ids=["backends", "storages"])
def test_page_has_a_row_for_every_test_of_the_suites(tried: Tried) -> None:
    assert [row[0] for row in tried.table()[2:]] == [sentence(test) for test in tried.page.tests()]


@pytest.mark.parametrize("tried", PAGES, ids=["backends", "storages"])
def test_page_has_a_column_for_every_system_that_runs_them(tried: Tried) -> None:
    columns = tried.page.columns
    assert {name for key, column in columns.items() for name in (key, *column.also)} == tried.running()
    for title, column in zip(tried.table()[0][1:], columns.values(), strict=True):
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
    shown = BACKENDS.text(results([second]), {"TestAt": "3.2.5"})
    assert " at 3.2.5 " in shown
    assert "| Nothing to submit is no error | - | - | ✗ |" in shown
