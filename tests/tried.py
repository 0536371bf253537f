"""Pages of the documentation that say what was tried with what, written from reports of tests."""

import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from tests.testbeds import install

_PASSED, _FAILED, _NOT_RUN = "✓", "✗", "-"
Results = Mapping[tuple[str, str], bool]


@dataclass(frozen=True, slots=True)
class Column:
    """One system as it was tried."""

    title: str
    # What the versions are asked of: a package of this machine, or of the newer system beside it.
    package: str = ""
    newer: bool = False
    # Or, from PyPI.
    distribution: str = ""
    note: str = ""
    # Further test classes of the same system.
    also: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Page:
    """A table with a row for each test of some suites, and a column for each class that runs them."""

    path: Path
    introduction: str
    suites: Sequence[type]
    # By the name of the test class.
    columns: Mapping[str, Column]

    def tests(self) -> list[str]:
        """Names of the tests, in their order."""
        classes = [one for suite in self.suites for one in (suite, *suite.__bases__)]
        return list(dict.fromkeys(name for one in classes for name in vars(one) if name.startswith("test_")))

    def write(self, reports: Iterable[Path]) -> None:
        """Write it from the reports of pytest."""
        versions = {name: _version(column) for name, column in self.columns.items()}
        self.path.write_text(self.text(results(reports), versions))

    def text(self, told: Results, versions: Mapping[str, str]) -> str:
        """The whole document."""
        head = ["what must be so", *(heading(one, versions.get(name, "")) for name, one in self.columns.items())]
        classes = [(name, *one.also) for name, one in self.columns.items()]
        rows = [[sentence(test), *(_cell(told, names, test) for names in classes)] for test in self.tests()]
        table = [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]
        return "\n".join([self.introduction, *table]) + "\n"


def sentence(test: str) -> str:
    """What a test says, in words."""
    return test.removeprefix("test_").replace("_", " ").capitalize()


def results(reports: Iterable[Path]) -> dict[tuple[str, str], bool]:
    """Whether each test passed, by class and name, with all of its parameters."""
    found: dict[tuple[str, str], bool] = {}
    for report in reports:
        for case in ET.parse(report).iter("testcase"):  # noqa: S314  our own file
            key = (case.get("classname", "").rpartition(".")[2], case.get("name", "").partition("[")[0])
            if case.find("skipped") is not None:
                continue
            bad = any(case.find(what) is not None for what in ("failure", "error"))
            found[key] = found.get(key, True) and not bad
    return found


def heading(column: Column, version: str) -> str:
    """Name, version and what it is not."""
    return " ".join([column.title, *([version] if version else []), *([f"*{column.note}*"] if column.note else [])])


def _cell(told: Results, names: Sequence[str], test: str) -> str:
    passed = [told[name, test] for name in names if (name, test) in told]
    return (_PASSED if all(passed) else _FAILED) if passed else _NOT_RUN


def _version(column: Column) -> str:
    """Of the package that is installed, without what the packagers appended."""
    if column.distribution:
        return metadata.version(column.distribution)
    if not column.package:
        return ""
    inside = ["chroot", str(install.cache() / install.SUITE)] if column.newer else []
    command = [*inside, "dpkg-query", "--show", "--showformat=${Version}", column.package]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.rpartition(":")[2].partition("-")[0].partition("+")[0]
