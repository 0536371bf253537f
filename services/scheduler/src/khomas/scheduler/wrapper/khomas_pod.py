#!/usr/bin/env python3
# Runs on Python 3.6 and newer with the standard library alone.
"""Run one Khomas job in a pod without a shared volume: `python3 khomas_pod.py MANIFEST JOBDIR MESSAGE`.

Starts `khomas_job.py` beside this file, and brings out by the pod's own log what it leaves in JOBDIR: both streams
while it runs, then files that have no other way, then a record that is too long for MESSAGE, the pod's termination
message; that gets it without the outputs. A piece is a line `#khomas NAME OFFSET LENGTH` and as many bytes; files and
the record are in base64, and offsets count what they were before.
"""

import base64
import json
import os
import shutil
import signal
import subprocess
import sys
from typing import Any, BinaryIO, Dict, List
from urllib.parse import quote

# A container runtime cuts lines at 16 KiB; who reads puts them together again.
PIECE = 48 * 1024
MESSAGE_BYTES = 4096
# Logs are not made for more, and a cluster keeps 10 MiB of them by default.
FILES_BYTES = 4 << 20
STREAMS = ("stdout", "stderr")
PAUSE_SECONDS = 0.5
SENTENCE = 1000

Record = Dict[str, Any]


class Shipper:
    """Prints what is new in a file."""

    def __init__(self, folder: str, name: str, out: BinaryIO) -> None:
        self.path = os.path.join(folder, name)
        self.name = name
        self.out = out
        self.offset = 0

    def ship(self) -> None:
        try:
            with open(self.path, "rb") as stream:
                stream.seek(self.offset)
                for data in iter(lambda: stream.read(PIECE), b""):
                    piece(self.out, self.name, self.offset, data)
                    self.offset += len(data)
        except FileNotFoundError:
            pass  # the wrapper has not begun


def piece(out: BinaryIO, name: str, offset: int, data: bytes) -> None:
    out.write(b"#khomas %s %d %d\n" % (name.encode(), offset, len(data)) + data)
    if not data.endswith(b"\n"):
        out.write(b"\n")
    out.flush()


def file(out: BinaryIO, folder: str, location: str) -> None:
    """Print a file as base64."""
    with open(os.path.join(folder, location), "rb") as stream:
        offset = 0
        for data in iter(lambda: stream.read(PIECE // 4 * 3), b""):
            piece(out, quote(location), offset, base64.b64encode(data))
            offset += len(data)


def too_much(record: Record) -> bool:
    """Whether the files are more than a log can bring out; then the record says so."""
    size = sum(one["size_bytes"] for one in record.get("outputs", []) if one.get("location") != "upload")
    if size <= FILES_BYTES:
        return False
    said = "files without an upload have %d bytes; without a shared volume at most %d can be brought out"
    record.update(state="FAILED", reason=502, reason_name="DATA_STAGE_OUT", message=said % (size, FILES_BYTES))
    record["outputs"] = [one for one in record["outputs"] if one.get("location") == "upload"]
    return True


def read_json(path: str) -> Any:
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


def run(manifest: str, folder: str, told: str) -> int:
    out = sys.stdout.buffer
    shutil.copyfile(manifest, os.path.join(folder, "job.json"))
    wrapper = os.path.join(os.path.dirname(os.path.abspath(__file__)), "khomas_job.py")
    process = subprocess.Popen([sys.executable, "-E", "-s", wrapper, "run", folder], stdin=subprocess.DEVNULL)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: process.terminate())
    # After the start: who is started would inherit it.
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    shippers = [Shipper(folder, name, out) for name in STREAMS]
    while process.poll() is None:
        for shipper in shippers:
            shipper.ship()
        signal.sigtimedwait([signal.SIGCHLD], PAUSE_SECONDS)
    for shipper in shippers:
        shipper.ship()
    record = read_json(os.path.join(folder, "exit.json"))
    if not too_much(record):
        for one in record.get("outputs", []):
            if one.get("location", "upload") != "upload":
                file(out, folder, one["location"])
    whole = json.dumps(record, separators=(",", ":")).encode()
    if len(whole) > MESSAGE_BYTES:
        piece(out, "record", 0, base64.b64encode(whole))
        short = dict(record, outputs=[], outputs_in_log=True, message=record["message"][:SENTENCE])
        whole = json.dumps(short, separators=(",", ":")).encode()
    with open(told, "wb") as stream:
        stream.write(whole)
    return 0 if record["state"] == "SUCCEEDED" else 1


def main(arguments: List[str]) -> int:
    if len(arguments) != 3:
        sys.stderr.write("usage: khomas_pod.py MANIFEST JOBDIR MESSAGE\n")
        return 2
    return run(*arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
