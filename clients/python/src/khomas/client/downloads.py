"""Downloads: granted a chunk at a time, from any replica, tried again."""

import asyncio
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from khomas.client.bytes_moving import Progress, nothing
from khomas.client.checksums import KnownChecksums, stamp_of
from khomas.client.connection import Connection
from khomas.client.errors import FAILED, KhomasError, from_status
from khomas.client.pairs import Pair
from khomas.client.partial import LocalFault, Wanted
from khomas.client.parts import chunks
from khomas.client.receiving import receive
from khomas.client.workers import Workers

_FILES = 1000
_PAUSES = (1.0, 5.0)
_NOBODY = "NO_REPLICA"
Failures = dict[Pair, KhomasError]


class Downloads:
    """Fetches files."""

    def __init__(self, connection: Connection, known: KnownChecksums) -> None:
        self._connection = connection
        self._known = known

    async def get(self, pairs: Sequence[Pair], progress: Progress, on_file: Progress = nothing) -> Failures:
        """Fetch files, each complete and with its checksum, or not at all; returns what could not be fetched."""
        failures: Failures = {}
        with Workers(progress) as workers:
            for part in chunks(pairs, _FILES):
                failures |= await self._tried(part, workers, on_file)
        return failures

    async def _tried(self, pairs: Sequence[Pair], workers: Workers, on_file: Progress) -> Failures:
        """Try a chunk, and with fresh grants what has failed, until three times in a row none more has come.

        Grants of many large files end before their turn; a file that was replaced meanwhile begins anew.
        """
        failures = await self._once(pairs, workers, on_file)
        pauses = iter(_PAUSES)
        while (again := _worth_another(failures)) and (pause := next(pauses, None)) is not None:
            await asyncio.sleep(pause)
            before = {pair: failures.pop(pair) for pair in again}
            after = await self._once(again, workers, on_file)
            if len(after) < len(again):
                pauses = iter(_PAUSES)
            # That nobody has a good copy left says less than what was wrong with the last one.
            failures |= {pair: before[pair] if error.reason == _NOBODY else error for pair, error in after.items()}
        return failures

    async def _once(self, pairs: Sequence[Pair], workers: Workers, on_file: Progress) -> Failures:
        downloads = await self._granted(pairs)
        failures = {pair: from_status(one.error) for pair, one in downloads.items() if not one.grants}
        ready = [pair for pair in pairs if pair not in failures]
        await asyncio.to_thread(_check_room, [_wanted(pair, downloads[pair]) for pair in ready])

        def fetch(pair: Pair) -> None:
            download = downloads[pair]
            receive(_wanted(pair, download), download.grants, workers.connections, workers.progress)
            on_file(1)

        results = await workers.each(fetch, ready)
        outcomes = dict(zip(ready, results, strict=True))
        self._remember(outcomes, downloads)
        return failures | {pair: one for pair, one in outcomes.items() if isinstance(one, KhomasError)}

    async def _granted(self, pairs: Sequence[Pair]) -> dict[Pair, Any]:
        from khomas.api.storage.v1 import storage_service_pb2 as pb

        request = pb.BatchCreateDownloadsRequest(names=[pair.name for pair in pairs])
        answer = await self._connection.call("storage", "BatchCreateDownloads", request)
        return dict(zip(pairs, answer.downloads, strict=True))

    def _remember(self, outcomes: Mapping[Pair, object], downloads: Mapping[Pair, Any]) -> None:
        fetched = [pair for pair, one in outcomes.items() if not isinstance(one, KhomasError)]
        sums = ((pair.path, downloads[pair].checksums.adler32) for pair in fetched)
        self._known.remember((path, stamp_of(path), adler32) for path, adler32 in sums if adler32)


def _wanted(pair: Pair, download: Any) -> Wanted:
    return Wanted(pair.path, pair.name, download.uid, download.size_bytes, download.checksums.adler32)


def _worth_another(failures: Failures) -> list[Pair]:
    """Return what may come with another try; nothing will while the disk has a fault."""
    if any(isinstance(error, LocalFault) for error in failures.values()):
        return []
    return [pair for pair, error in failures.items() if _may_pass(error)]


def _may_pass(error: KhomasError) -> bool:
    return error.reason in ("DOWNLOAD", "HTTP", "CHECKSUM_MISMATCH", "UNAVAILABLE", "UPSTREAM_UNAVAILABLE")


def _check_room(wanted: Sequence[Wanted]) -> None:
    """Refuse before the first byte what cannot fit on the disk."""
    missing: dict[Path, int] = {}
    for one in wanted:
        here = one.part.stat().st_size if one.part.exists() else 0
        folder = _existing(one.target.parent)
        missing[folder] = missing.get(folder, 0) + one.size - min(here, one.size)
    disks: dict[int, tuple[Path, int]] = {}
    for folder, size in missing.items():
        device = folder.stat().st_dev
        disks[device] = (folder, disks.get(device, (folder, 0))[1] + size)
    for folder, size in disks.values():
        if size > (free := shutil.disk_usage(folder).free):
            message = f"{size} bytes are to come, and the disk of {folder} has room for {free}; make room, then repeat"
            raise LocalFault(message, "NO_SPACE", exit_code=FAILED)


def _existing(folder: Path) -> Path:
    return next(one for one in (folder, *folder.parents) if one.exists())
