"""Jobs that do not keep their contract: they fail for the right reason and leave nothing in the catalogue."""

import zlib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.installation import Installation

CONTENT = b"kept\n"
# A primary HDU and the header of a table of ten rows, whose data are not there.
TRUNCATED = """
def header(*cards):
    return ''.join(card.ljust(80) for card in (*cards, 'END')).ljust(2880).encode()
primary = header('SIMPLE  =                    T', 'BITPIX  =                    8', 'NAXIS   =                    0')
table = header("XTENSION= 'BINTABLE'", 'BITPIX  =                    8', 'NAXIS   =                    2',
    'NAXIS1  =                    8', 'NAXIS2  =                   10', 'PCOUNT  =                    0',
    'GCOUNT  =                    1', 'TFIELDS =                    1', "TFORM1  = '1D      '",
    "EXTNAME = 'EVENTS  '")
open('out.fits', 'wb').write(primary + table + b'too short')
"""


def failed(khomas: Installation, tmp_path: Path, run: list[str], name: str, **keys: Any) -> dict[str, Any]:
    """Submit a job that promises out.fits with a table EVENTS, and return what became of it."""
    output = {"glob": "out.fits", "name": f"/hess/contracts/{name}.fits", "fits": {"tables": ["EVENTS"]}}
    document = tmp_path / "job.yaml"
    document.write_text(yaml.safe_dump({"run": run, "outputs": [output], "wall": "1min", **keys}))
    job = khomas.submit(document, code=1)
    assert khomas.rows("find", "/hess/contracts") == []
    (shown,) = khomas.rows("show", job)
    return shown


@pytest.mark.parametrize(
    ("name", "command", "reason", "cause", "remedy"),
    [
        ("nothing", ["true"], "APP_OUTPUT_MISSING", "0 files match 'out.fits'", "logs"),
        ("empty", ["sh", "-c", ": > out.fits"], "APP_OUTPUT_MISSING", "out.fits is empty", "logs"),
        ("truncated", ["python3", "-c", TRUNCATED], "APP_CHECK_FAILED", "bytes before the end of its data", "retry"),
    ],
)
def test_a_broken_promise_fails_the_job_and_shows_nothing(
    khomas: Installation, tmp_path: Path, name: str, command: list[str], reason: str, cause: str, remedy: str
) -> None:
    shown = failed(khomas, tmp_path, command, name)

    assert shown["status"]["reason"] == f"REASON_{reason}"
    assert len(shown["attempts"]) == 1
    said = khomas.run("why", shown["uid"])
    assert said.startswith(f"FAILED ({reason})")
    assert cause in said
    assert f"khomas {remedy} {shown['uid']}" in said


def test_a_job_over_its_memory_ends_so_and_is_not_tried_again_blindly(khomas: Installation, tmp_path: Path) -> None:
    hungry = "held = bytearray(2_000_000_000)\nfor at in range(0, len(held), 4096): held[at] = 1"
    shown = failed(khomas, tmp_path, ["python3", "-c", hungry], "memory", memory="200MB")

    assert shown["status"]["reason"] == "REASON_LIMIT_MEMORY"
    assert shown["status"]["attempt"] == 1
    said = khomas.run("why", shown["uid"])
    assert said.startswith("FAILED (LIMIT_MEMORY)")
    assert f"khomas retry {shown['uid']} --memory" in said


def test_a_kept_promise_is_catalogued_with_its_checksum(khomas: Installation, tmp_path: Path) -> None:
    document = tmp_path / "job.yaml"
    output = {"glob": "out.txt", "name": "/hess/kept/{stem}_{index}.txt"}
    document.write_text(yaml.safe_dump({"run": ["sh", "-c", "echo kept > out.txt"], "outputs": [output]}))
    khomas.submit(document)
    (found,) = khomas.rows("find", "/hess/kept")
    assert (found["name"], found["size"], found["adler32"]) == (
        "/hess/kept/out_0.txt",
        5,
        f"{zlib.adler32(CONTENT):08x}",
    )
