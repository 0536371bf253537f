"""Inputs and outputs of jobs under the wrapper, over real HTTP."""

import base64
import hashlib
import json
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from astropy.io import fits

from khomas.scheduler.wrapper import JOB_WRAPPER

RunJob = Callable[..., dict[str, Any]]


@dataclass
class Door:
    """A storage door of its own: files to GET, a place to PUT, and faults to give on the way."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    faults: list[int] = field(default_factory=list)
    answer_digest: str = ""
    tokens: list[str | None] = field(default_factory=list)


def handler(door: Door) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
            pass

        def faulty(self) -> bool:
            door.tokens.append(self.headers.get("Authorization"))
            if door.faults:
                self.send_error(door.faults.pop(0))
                return True
            return False

        def do_GET(self) -> None:
            if self.faulty():
                return
            if self.path not in door.files:
                self.send_error(404)
                return
            self.send_response(200)
            self.end_headers()
            self.wfile.write(door.files[self.path])

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if self.faulty():
                return
            door.files[self.path] = body
            self.send_response(201)
            self.send_header("Digest", door.answer_digest or f"adler32={zlib.adler32(body):08x}")
            self.send_header("Content-Length", "0")
            self.end_headers()

    return Handler


@pytest.fixture
def door() -> Iterator[Door]:
    door = Door()
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler(door))
    door.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield door
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def run_job(tmp_path: Path) -> RunJob:
    def run(command: str, **manifest: Any) -> dict[str, Any]:
        folder = tmp_path / "job"
        folder.mkdir()
        transfer = {"attempts": 2, "pause_s": 0.01}
        document = {"token": "t1", "command": ["sh", "-c", command], "transfer": transfer, **manifest}
        (folder / "job.json").write_text(json.dumps(document))
        subprocess.run([sys.executable, str(JOB_WRAPPER), "run", str(folder)], timeout=30, check=False)
        record: dict[str, Any] = json.loads((folder / "exit.json").read_text())
        return record

    return run


def ending(record: dict[str, Any]) -> tuple[str, str]:
    return record["state"], record["reason_name"]


def stdout(tmp_path: Path) -> str:
    return (tmp_path / "job" / "stdout").read_text()


def adler32(data: bytes) -> str:
    return f"{zlib.adler32(data):08x}"


# ------------------------------------------------------------------------------------------------------ inputs


def test_inline_input_is_there_and_executable(run_job: RunJob, tmp_path: Path) -> None:
    content = base64.b64encode(b"#!/bin/sh\necho hello $1\n").decode()
    record = run_job("./bin/hello world", inputs=[{"path": "bin/hello", "content": content, "executable": True}])
    assert ending(record) == ("SUCCEEDED", "NONE")
    assert stdout(tmp_path) == "hello world\n"


def test_input_over_http_is_verified(run_job: RunJob, tmp_path: Path, door: Door) -> None:
    door.files["/a"] = b"data"
    sources = [{"url": f"{door.url}/a", "headers": {"Authorization": "Bearer s"}}]
    entry = {"path": "in.txt", "sources": sources, "size_bytes": 4, "adler32": adler32(b"data")}
    assert ending(run_job("cat in.txt", inputs=[entry])) == ("SUCCEEDED", "NONE")
    assert (stdout(tmp_path), door.tokens) == ("data", ["Bearer s"])


def test_input_from_a_file_is_a_copy_or_a_link(run_job: RunJob, tmp_path: Path) -> None:
    source = tmp_path / "with space"
    source.write_text("data")
    url = source.as_uri()
    inputs = [{"path": "a", "sources": [{"url": url}]}, {"path": "b", "sources": [{"url": url, "link": True}]}]
    record = run_job("cat a b; test -L b && ! test -L a", inputs=inputs)
    assert (ending(record), stdout(tmp_path)) == (("SUCCEEDED", "NONE"), "datadata")
    assert source.read_text() == "data"


def test_second_source_stands_in_for_a_broken_one(run_job: RunJob, tmp_path: Path, door: Door) -> None:
    door.files.update({"/bad": b"dat", "/good": b"data"})
    sources = [{"url": f"{door.url}/{name}"} for name in ("missing", "bad", "good")]
    record = run_job("cat in", inputs=[{"path": "in", "sources": sources, "adler32": adler32(b"data")}])
    assert (ending(record), stdout(tmp_path)) == (("SUCCEEDED", "NONE"), "data")


def test_passing_fault_is_tried_again(run_job: RunJob, door: Door) -> None:
    door.files["/a"] = b"data"
    door.faults = [503]
    assert ending(run_job("true", inputs=[{"path": "in", "sources": [{"url": f"{door.url}/a"}]}]))[0] == "SUCCEEDED"


@pytest.mark.parametrize(
    ("faults", "change", "reason"),
    [
        ([404], {}, "DATA_INPUT_MISSING"),
        ([503, 503], {}, "DATA_STAGE_IN"),
        ([403], {}, "DATA_STAGE_IN"),
        ([], {"adler32": "00000001"}, "DATA_CHECKSUM"),
        ([], {"size_bytes": 5}, "DATA_CHECKSUM"),
    ],
)
def test_failed_input_is_named(
    run_job: RunJob, door: Door, tmp_path: Path, faults: list[int], change: dict[str, Any], reason: str
) -> None:
    door.files["/a"] = b"data"
    door.faults = faults
    url = f"{door.url}/a?signature=secret"
    door.files["/a?signature=secret"] = b"data"
    record = run_job("echo ran", inputs=[{"path": "in", "sources": [{"url": url}], **change}])
    assert ending(record) == ("FAILED", reason)
    assert "in" in record["message"]
    assert "secret" not in record["message"]
    assert stdout(tmp_path) == ""


def test_missing_file_is_a_missing_input(run_job: RunJob, tmp_path: Path) -> None:
    record = run_job("true", inputs=[{"path": "in", "sources": [{"url": (tmp_path / "none").as_uri()}]}])
    assert ending(record) == ("FAILED", "DATA_INPUT_MISSING")


def test_input_cannot_leave_the_work_directory(run_job: RunJob, tmp_path: Path) -> None:
    record = run_job("true", inputs=[{"path": "../../evil", "content": ""}])
    assert ending(record)[0] == "FAILED"
    assert not (tmp_path / "evil").exists()


# ----------------------------------------------------------------------------------------------------- outputs


def test_output_stays_with_the_job_without_an_upload(run_job: RunJob, tmp_path: Path) -> None:
    record = run_job("echo b > b.txt; mkdir d; echo aa > d/a.txt", outputs=[{"glob": "**/*.txt"}])
    assert ending(record) == ("SUCCEEDED", "NONE")
    found = [(entry["path"], entry["index"], entry["location"], entry["size_bytes"]) for entry in record["outputs"]]
    assert found == [("b.txt", 0, "outputs/0", 2), ("d/a.txt", 1, "outputs/1", 3)]
    assert (tmp_path / "job" / "outputs" / "1").read_bytes() == b"aa\n"
    assert record["outputs"][1]["adler32"] == adler32(b"aa\n")
    assert record["outputs"][1]["sha256"] == hashlib.sha256(b"aa\n").hexdigest()


def test_output_is_uploaded_by_index(run_job: RunJob, door: Door) -> None:
    door.faults = [503]
    upload = {"url_prefix": f"{door.url}/up/", "headers": {"Authorization": "Bearer u"}}
    outputs = [{"glob": "*.log", "sandbox": True}, {"glob": "*.dat"}]
    record = run_job("echo l > x.log; echo 1 > a.dat; echo 2 > b.dat", outputs=outputs, upload=upload)
    assert ending(record) == ("SUCCEEDED", "NONE")
    assert door.files == {"/up/0": b"1\n", "/up/1": b"2\n"}
    assert [(entry["location"], entry.get("index")) for entry in record["outputs"]] == [
        ("sandbox/x.log", None),
        ("upload", 0),
        ("upload", 1),
    ]
    assert door.tokens == ["Bearer u"] * 3


@pytest.mark.parametrize(
    ("faults", "digest", "reason"),
    [([507], "", "DATA_SPACE"), ([500, 500], "", "DATA_STAGE_OUT"), ([], "adler32=00000000", "DATA_CHECKSUM")],
)
def test_failed_upload_is_named(run_job: RunJob, door: Door, faults: list[int], digest: str, reason: str) -> None:
    door.faults, door.answer_digest = faults, digest
    record = run_job("echo 1 > a.dat", outputs=[{"glob": "a.dat"}], upload={"url_prefix": f"{door.url}/up/"})
    assert ending(record) == ("FAILED", reason)


@pytest.mark.parametrize(
    ("command", "contract", "reason"),
    [
        ("true", {}, "APP_OUTPUT_MISSING"),
        (": > a.dat", {}, "APP_OUTPUT_MISSING"),
        ("echo 1 > a.dat", {"min_files": 2}, "APP_OUTPUT_MISSING"),
        ("echo 1 > a.dat; echo 2 > b.dat", {"max_files": 1}, "APP_CHECK_FAILED"),
        ("echo 1 > a.dat", {"min_bytes": 3}, "APP_CHECK_FAILED"),
        ("echo 1 > a.dat", {"max_bytes": 1}, "APP_CHECK_FAILED"),
        ("head -c 11000000 /dev/zero > a.dat", {"sandbox": True}, "APP_CHECK_FAILED"),
        ("ln -s /etc/passwd a.dat", {}, "APP_CHECK_FAILED"),
        ("true", {"glob": "../../*"}, "APP_CHECK_FAILED"),
    ],
)
def test_broken_contract_fails_the_job(run_job: RunJob, command: str, contract: dict[str, Any], reason: str) -> None:
    record = run_job(command, outputs=[{"glob": "*.dat", **contract}])
    assert (ending(record), record["exit_code"]) == (("FAILED", reason), 0)
    assert record["message"]


def test_output_that_need_not_be_may_be_missing(run_job: RunJob) -> None:
    assert ending(run_job("true", outputs=[{"glob": "*.dat", "min_files": -1}])) == ("SUCCEEDED", "NONE")


def test_input_is_no_output(run_job: RunJob) -> None:
    inputs = [{"path": "in.dat", "content": base64.b64encode(b"x").decode()}]
    record = run_job("echo 1 > out.dat", inputs=inputs, outputs=[{"glob": "*.dat"}])
    assert [entry["path"] for entry in record["outputs"]] == ["out.dat"]


def test_file_belongs_to_the_first_output_that_matches(run_job: RunJob) -> None:
    record = run_job("echo 1 > a.dat; echo 2 > b.dat", outputs=[{"glob": "a.*"}, {"glob": "*.dat"}])
    assert [(entry["output"], entry["path"]) for entry in record["outputs"]] == [(0, "a.dat"), (1, "b.dat")]


def test_failed_job_brings_what_helps_to_find_the_cause(run_job: RunJob, tmp_path: Path) -> None:
    outputs = [{"glob": "*.dat"}, {"glob": "*.log", "when": "ALWAYS"}, {"glob": "core", "when": "ON_FAILURE"}]
    record = run_job("echo 1 > a.dat; echo 2 > a.log; echo 3 > core; exit 1", outputs=outputs)
    assert ending(record) == ("FAILED", "APP_EXIT_CODE")
    assert [(entry["path"], entry["location"]) for entry in record["outputs"]] == [
        ("a.log", "sandbox/a.log"),
        ("core", "sandbox/core"),
    ]
    assert (tmp_path / "job" / "sandbox" / "core").read_text() == "3\n"


# -------------------------------------------------------------------------------------------------------- FITS


def event_list(rows: int) -> fits.HDUList:
    """An event list as a telescope leaves it, with all kinds of HDUs and odd sizes."""
    rng = np.random.default_rng(rows)
    energy = fits.Column("ENERGY", "E", array=rng.random(rows))
    name = fits.Column("NAME", "7A", array=np.array(["abc"] * rows))
    events = fits.BinTableHDU.from_columns([energy, name], name="EVENTS")
    events.header["OBS_ID"] = 23523
    events.header["OBJECT"] = "O'Brien's star"
    text = fits.TableHDU.from_columns([fits.Column("A", "I4", array=np.arange(5))], name="ASCII")
    image = fits.ImageHDU(rng.integers(0, 99, (7, 3)).astype("u2"))
    cube = fits.ImageHDU(rng.random((3, 5, 11)), name="cube")
    return fits.HDUList([fits.PrimaryHDU(), events, text, image, cube])


def astropy_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with fits.open(path, disable_image_compression=True, do_not_scale_image_data=True) as hdus:
        for index, hdu in enumerate(hdus):
            name = hdu.name or str(index)
            digest.update(f"{name}:{hdu._calculate_datasum()}\n".encode())
    return digest.hexdigest()


@pytest.mark.parametrize("name", ["events.fits", "events.fits.gz"])
def test_content_digest_is_what_astropy_computes(run_job: RunJob, tmp_path: Path, name: str) -> None:
    made = tmp_path / name
    event_list(101).writeto(made)
    contract = {"hdus": ["primary", "CUBE"], "tables": ["EVENTS"]}
    output = {"glob": "*.fits*", "fits": contract, "header_cards": ["OBS_ID", "OBJECT", "NONE"]}
    record = run_job(f"cp {made} .", outputs=[output])
    assert ending(record) == ("SUCCEEDED", "NONE")
    entry = record["outputs"][0]
    assert entry["content_digest"] == astropy_digest(made)
    assert entry["header"] == {"OBS_ID": 23523, "OBJECT": "O'Brien's star"}
    assert [(hdu["name"], hdu["rows"]) for hdu in entry["hdus"]] == [
        ("PRIMARY", None),
        ("EVENTS", 101),
        ("ASCII", 5),
        ("3", None),
        ("CUBE", None),
    ]


def test_content_digest_ignores_compression_and_cards(run_job: RunJob, tmp_path: Path) -> None:
    hdus = event_list(9)
    hdus.writeto(tmp_path / "a.fits")
    hdus[0].header["CREATED"] = "later"
    hdus.writeto(tmp_path / "b.fits.gz")
    record = run_job(f"cp {tmp_path}/*.fits* .", outputs=[{"glob": "*.fits*"}])
    first, second = record["outputs"]
    assert first["content_digest"] == second["content_digest"]
    assert first["sha256"] != second["sha256"]


@pytest.mark.parametrize(
    ("command", "contract", "what"),
    [
        ("head -c 7000 whole.fits > a.fits", {}, "ends"),
        ("head -c 1000 whole.fits > a.fits", {}, "within a header"),
        ("gzip < whole.fits | head -c 2000 > a.fits", {}, "cannot be read"),
        ("echo no fits > a.fits", {}, "does not begin with a FITS header"),
        ("cp whole.fits a.fits", {"hdus": ["GTI"]}, "has no HDU GTI"),
        ("cp empty.fits a.fits", {"tables": ["EVENTS"]}, "has no rows in EVENTS"),
        ("cp whole.fits a.fits", {"tables": ["CUBE"]}, "has no rows in CUBE"),
    ],
)
def test_broken_fits_fails_the_job(
    run_job: RunJob, tmp_path: Path, command: str, contract: dict[str, Any], what: str
) -> None:
    event_list(101).writeto(tmp_path / "whole.fits")
    event_list(0).writeto(tmp_path / "empty.fits")
    inputs = [{"path": name, "sources": [{"url": (tmp_path / name).as_uri()}]} for name in ("whole.fits", "empty.fits")]
    record = run_job(command, inputs=inputs, outputs=[{"glob": "a.fits", "fits": contract}])
    assert ending(record) == ("FAILED", "APP_CHECK_FAILED")
    assert what in record["message"]
