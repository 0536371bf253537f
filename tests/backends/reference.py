"""Writes docs/reference/backends.md from what the tests said: `python -m tests.backends.reference junit.xml...`."""

import sys
from collections.abc import Mapping
from pathlib import Path

from khomas.scheduler.conformance import BackendConformance
from tests.tried import Column, Page

_INTRODUCTION = """# What was tried with which backend

Written by `make conformance` from its own run; do not edit it. Every row is one test of the package
`khomas.scheduler.conformance`, which all backends pass through the same interface: ✓ passed, ✗ failed, - not run.
Where a backend declares that it lacks something (peeking at running jobs, what they have used, holding, polling for
changes alone), its test asks for that declaration.

A real server was started for each, unless the heading says: *emulated* are commands that answer as documented and run
the jobs as processes; *fake* is a stand-in for the API server whose pods are processes.
"""
_COLUMNS: Mapping[str, Column] = {
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

PAGE = Page(Path(__file__).parents[2] / "docs/reference/backends.md", _INTRODUCTION, [BackendConformance], _COLUMNS)

if __name__ == "__main__":
    PAGE.write(map(Path, sys.argv[1:]))
