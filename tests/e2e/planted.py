"""A storage element with very many files, some of which are lost, dark, truncated and flipped."""

import asyncio
import json
import os
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import grpc
from zlib_ng.zlib_ng import adler32

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.storage.v1 import integrity_service_pb2 as pb
from khomas.api.storage.v1 import storage_element_pb2, storage_service_pb2
from khomas.api.storage.v1.incident_pb2 import Incident
from khomas.api.storage.v1.integrity_service_pb2_grpc import IntegrityServiceStub
from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.channel import ServiceChannel, open_channel

ROOT = Path(__file__).resolve().parents[2]
PATIENCE = 600.0
_BATCH = 5000
_IN_A_FOLDER = 500
_OLD = 1_000_000_000
LOST, SHORT, FLIPPED, DARK = 13, 11, 7, 17


@dataclass(frozen=True, slots=True)
class _Token:
    value: str

    def token(self) -> str:
        return self.value


@dataclass(frozen=True, slots=True)
class Process:
    """Catalogue and storage in a process of their own."""

    process: "subprocess.Popen[str]"
    channel: grpc.aio.Channel

    def peak_bytes(self) -> int:
        """Return the most memory that it ever held."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024


@asynccontextmanager
async def process(folder: Path) -> AsyncIterator[Process]:
    """Run one until the block ends."""
    running = await asyncio.to_thread(_started, folder)
    try:
        assert running.stdout is not None
        line = await asyncio.to_thread(running.stdout.readline)
        assert line, (folder / "log").read_text()[-3000:]
        where = json.loads(line)
        async with open_channel(where["endpoint"], plaintext=True) as bare:
            yield Process(running, ServiceChannel(bare, "server", _Token(where["token"])))
    finally:
        assert running.stdin is not None
        running.stdin.close()
        await asyncio.to_thread(running.wait, PATIENCE)
        assert running.stdout is not None
        running.stdout.close()


def _started(folder: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "tests.e2e.two_services", str(folder / "state")]
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True)


@dataclass(frozen=True, slots=True)
class Planted:
    """What differs, by path, and the files that have a second copy."""

    files: int
    wrong: dict[str, str]


def content(number: int) -> bytes:
    """Return what a file should hold."""
    return b"%d bytes of event %08d" % (number % 97, number)


def path(number: int) -> str:
    """Return where it lies."""
    return f"hess/raw/{number // _IN_A_FOLDER:04}/run {number:06}.fits"


def _spread(files: int, how_many: int, start: int) -> Iterator[int]:
    return (start + one * (files // how_many) for one in range(how_many))


async def plant(running: Process, folder: Path, files: int) -> Planted:
    """Make two storage elements, one with all files and one with good copies of those that will be damaged."""
    full, spare = folder / "full", folder / "spare"
    lost, short = set(_spread(files, LOST, 1)), set(_spread(files, SHORT, 2))
    flipped, dark = set(_spread(files, FLIPPED, 3)), range(DARK)
    for root in (full, spare):
        root.mkdir()
        await _element(running, root)
    damaged = lost | short | flipped
    catalog = CatalogServiceStub(running.channel)
    for start in range(0, files, _BATCH):
        numbers = range(start, min(start + _BATCH, files))
        await asyncio.to_thread(_lay, full, [number for number in numbers if number not in lost], short, flipped)
        await asyncio.to_thread(_lay, spare, [number for number in numbers if number in damaged], (), ())
        request = catalog_pb.BatchCreateFilesRequest(
            files=[_file(number, spare=number in damaged) for number in numbers], request_id=str(uuid4())
        )
        await catalog.BatchCreateFiles(request)
    for one in dark:
        _write(full / f"hess/raw/{one:04}/dark {one}", b"nobody knows me")
    wrong = {path(one): "LOST" for one in lost} | {path(one): "SIZE" for one in short}
    wrong |= {path(one): "CHECKSUM" for one in flipped}
    return Planted(files, wrong | {f"hess/raw/{one:04}/dark {one}": "DARK" for one in dark})


def _lay(root: Path, numbers: Sequence[int], short: Collection[int], flipped: Collection[int]) -> None:
    for number in numbers:
        whole = content(number)
        if number in short:
            whole = whole[:-1]
        elif number in flipped:
            whole = bytes([whole[0] ^ 1]) + whole[1:]
        _write(root / path(number), whole)


def _write(target: Path, whole: bytes) -> None:
    try:
        target.write_bytes(whole)
    except FileNotFoundError:
        target.parent.mkdir(parents=True)
        target.write_bytes(whole)
    os.utime(target, (_OLD, _OLD))


def _file(number: int, *, spare: bool) -> File:
    whole, name = content(number), path(number)
    replicas = [Replica(storage_element=one, path=name) for one in (("full", "spare") if spare else ("full",))]
    one = File(name=f"/{name}", size_bytes=len(whole), replicas=replicas)
    one.checksums.adler32 = f"{adler32(whole):08x}"
    return one


async def _element(running: Process, root: Path) -> None:
    element = storage_element_pb2.StorageElement(name=f"storageElements/{root.name}")
    element.media = storage_element_pb2.StorageElement.MEDIA_DISK
    element.access_points.add(protocol="posix", address=str(root))
    request = storage_service_pb2.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    await StorageServiceStub(running.channel).CreateStorageElement(request)


async def compared(running: Process) -> Reconciliation:
    """Compare the full storage element with the catalogue, reading every byte."""
    stub = IntegrityServiceStub(running.channel)
    wanted = Reconciliation(storage_element="full", mode=Reconciliation.MODE_FULL)
    request = pb.CreateReconciliationRequest(reconciliation=wanted, request_id=str(uuid4()))
    made = await stub.CreateReconciliation(request)
    end = time.monotonic() + PATIENCE
    while made.state in (Reconciliation.STATE_WAITING, Reconciliation.STATE_RUNNING):
        assert time.monotonic() < end, made
        await asyncio.sleep(0.2)
        made = await stub.GetReconciliation(pb.GetReconciliationRequest(name=made.name))
    return made


async def incidents(running: Process, filter_text: str = "") -> list[Incident]:
    """List all incidents."""
    stub, token = IntegrityServiceStub(running.channel), "first"
    found: list[Incident] = []
    while token:
        page = "" if token == "first" else token
        request = pb.ListIncidentsRequest(filter=filter_text, page_size=1000, page_token=page)
        answer = await stub.ListIncidents(request)
        found += answer.incidents
        token = answer.next_page_token
    return found


async def repaired(running: Process) -> None:
    """Have what nobody knows moved aside, and wait until all else came again by itself."""
    request = pb.ApplyRepairsRequest(filter="kind = DARK", reason="planted", request_id=str(uuid4()))
    await IntegrityServiceStub(running.channel).ApplyRepairs(request)
    end = time.monotonic() + PATIENCE
    while left := await incidents(running, "NOT state = RESOLVED"):
        assert time.monotonic() < end, left[:3]
        await asyncio.sleep(0.2)
