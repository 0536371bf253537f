"""Writes docs/reference/backends.md from what the tests said: `python -m tests.backends.reference junit.xml...`."""

import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from khomas.scheduler.conformance import BackendConformance
from tests.testbeds import install

PAGE = Path(__file__).parents[2] / "docs/reference/backends.md"
_PASSED, _FAILED, _NOT_RUN = "✓", "✗", "-"
_INTRODUCTION = """# What was tried with which backend

Written by `make conformance` from its own run; do not edit it. Every row is one test of the package
`khomas.scheduler.conformance`, which all backends pass through the same interface: ✓ passed, ✗ failed, - not run.
Where a backend declares that it lacks something (peeking at running jobs, holding, polling for changes alone), its
test asks for that declaration.
"""
_MARKS = """
A real server was started for each, unless the heading says: *emulated* are commands that answer as documented and run
the jobs as processes; *fake* is a stand-in for the API server whose pods are processes.
"""


@dataclass(frozen=True, slots=True)
class Column:
    """One backend as it was tried."""

    title: str
    # What the versions are asked of: a package of this machine, or of the newer system beside it.
    package: str = ""
    newer: bool = False
    note: str = ""


# By the name of the test class.
COLUMNS: Mapping[str, Column] = {
    "TestLocalBackend": Column("local"),
    "TestSsh": Column("ssh", "openssh-server"),
    "TestAt": Column("at", "at"),
    "TestSlurm": Column("Slurm", "slurmctld"),
    "TestPilots": Column("Slurm by pilots", "slurmctld"),
    "TestSlurmOverSsh": Column("Slurm over ssh", "slurmctld"),
    "TestSlurmRest": Column("Slurm REST", "slurmrestd"),
    "TestNewestSlurmRest": Column("Slurm REST, newer", "slurmrestd", newer=True),
    "TestHtcondor": Column("HTCondor", "condor", newer=True),
    "TestGridEngine": Column("Grid Engine", "gridengine-master"),
    "TestArc6": Column("ARC 6, certificate", "nordugrid-arc-arex"),
    "TestArc7": Column("ARC 7, token", "nordugrid-arc-arex", newer=True),
    "TestKubernetes": Column("Kubernetes", note="fake"),
    "TestWithoutVolume": Column("Kubernetes without volume", note="fake"),
    "TestPbs": Column("PBS", note="emulated"),
    "TestLsf": Column("LSF", note="emulated"),
}


def tests() -> list[str]:
    """Names of the tests of the suite, in their order."""
    return [name for name in vars(BackendConformance) if name.startswith("test_")]


def sentence(test: str) -> str:
    """What a test says, in words."""
    return test.removeprefix("test_").replace("_", " ").capitalize()


def results(reports: Iterable[Path]) -> dict[tuple[str, str], bool]:
    """Whether each test passed, by class and name."""
    found: dict[tuple[str, str], bool] = {}
    for report in reports:
        for case in ET.parse(report).iter("testcase"):  # noqa: S314  our own file
            key = (case.get("classname", "").rpartition(".")[2], case.get("name", ""))
            bad = any(case.find(what) is not None for what in ("failure", "error"))
            found[key] = found.get(key, True) and not bad
    return found


def page(told: Mapping[tuple[str, str], bool], versions: Mapping[str, str]) -> str:
    """The whole document."""
    head = ["what must be so", *(heading(column, versions.get(name, "")) for name, column in COLUMNS.items())]
    rows = [[sentence(test), *(_cell(told.get((name, test))) for name in COLUMNS)] for test in tests()]
    return "\n".join([_INTRODUCTION.rstrip(), _MARKS, *_table([head, ["---"] * len(head), *rows])]) + "\n"


def heading(column: Column, version: str) -> str:
    """Name, version and what it is not."""
    return " ".join([column.title, *([version] if version else []), *([f"*{column.note}*"] if column.note else [])])


def _cell(passed: bool | None) -> str:
    return _NOT_RUN if passed is None else _PASSED if passed else _FAILED


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in rows]


def _version(column: Column) -> str:
    """Of the package that is installed, without what the packagers appended."""
    if not column.package:
        return ""
    inside = ["chroot", str(install.cache() / install.SUITE)] if column.newer else []
    command = [*inside, "dpkg-query", "--show", "--showformat=${Version}", column.package]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=30)
    return done.stdout.rpartition(":")[2].partition("-")[0].partition("+")[0]


def main(arguments: Sequence[str]) -> None:
    """Read the reports and write the page."""
    versions = {name: _version(column) for name, column in COLUMNS.items()}
    PAGE.write_text(page(results(map(Path, arguments)), versions))


if __name__ == "__main__":
    main(sys.argv[1:])
