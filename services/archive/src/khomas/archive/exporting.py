"""Runs exporters over releases and brings what they write into the catalogue."""

import difflib
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

from google.protobuf.json_format import MessageToDict
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.archive.v1 import archive_service_pb2
from khomas.api.archive.v1 import release_pb2 as pb
from khomas.api.catalog.v1 import file_pb2
from khomas.archive import names
from khomas.archive.errors import ExporterUnknown
from khomas.archive.exporters.interface import Content, Exporter, check_options
from khomas.archive.fits_cards import content_digest, looks_like_fits, read_hdus
from khomas.archive.records import Records
from khomas.archive.releases import OFFERED, Releases, changed, wrong_state
from khomas.archive.rows import export_message, release_message
from khomas.archive.tables import export
from khomas.archive.upstream import NewFile, Unreadable, Upstream, adler32_of
from khomas.kit.database import Database
from khomas.kit.errors import FieldInvalid
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Asked, Once
from khomas.kit.ids import new_uid


class Exporting:
    """Knows the exporters and what they made."""

    def __init__(
        self,
        database: Database,
        once: Once,
        log: EventLog,
        releases: Releases,
        records: Records,
        upstream: Upstream,
        exporters: Mapping[str, Exporter],
        vo: str,
    ) -> None:
        self._database = database
        self._once = once
        self._log = log
        self._releases = releases
        self._records = records
        self._upstream = upstream
        self._exporters = exporters
        self._vo = vo

    def exporters(self) -> archive_service_pb2.ListExportersResponse:
        """List what is installed."""
        return archive_service_pb2.ListExportersResponse(
            exporters=[
                archive_service_pb2.Exporter(name=name, description=exporter.description)
                for name, exporter in sorted(self._exporters.items())
            ]
        )

    async def export(self, request: archive_service_pb2.ExportReleaseRequest) -> pb.Export:
        """Write the files, bring them in, then note the export.

        A second export writes the same bytes again; the catalogue has them already then.
        """
        if (before := await self._once.before(Asked.of(request), pb.Export)) is not None:
            return before
        exporter = self._exporter(request.exporter)
        options = MessageToDict(request.options)
        check_options(exporter, options)
        row = await self._releases.row(request.name)
        if row.state not in OFFERED:
            raise wrong_state(row)
        content = await self._content(release_message(row))
        async with self._upstream.workspace() as folder:
            paths = await exporter.export(content, options, folder)
            files = await self._brought_in(content, paths)
        values = {
            "uid": new_uid(),
            "release_uid": row.uid,
            "exporter": request.exporter,
            "files": files,
            "options": request.options.SerializeToString(deterministic=True),
            "create_time": datetime.now(UTC),
        }

        async def work(connection: AsyncConnection) -> pb.Export:
            made = (await connection.execute(insert(export).values(values).returning(*export.c))).one()
            await changed(connection, self._log, row.uid)
            return export_message(made)

        return await self._once(request, pb.Export, work)

    def _exporter(self, name: str) -> Exporter:
        if name not in self._exporters:
            known = sorted(self._exporters)
            raise ExporterUnknown(exporter=name, nearest=difflib.get_close_matches(name, known) or known)
        return self._exporters[name]

    async def _content(self, release: pb.Release) -> Content:
        async def files(lfns: Sequence[str]) -> Sequence[file_pb2.File]:
            return list((await self._upstream.files(lfns)).values())

        return Content(
            release=release,
            products=await self._records.products(release.uid),
            records=lambda: self._records.records(release.uid),
            files=files,
            members=self._upstream.members,
            opened=self._opened,
        )

    @asynccontextmanager
    async def _opened(self, files: Sequence[file_pb2.File]) -> AsyncIterator[Mapping[str, Path]]:
        async with self._upstream.workspace() as folder:
            paths = await self._upstream.fetch(files, folder) if files else {}
            broken = [f"{name}: {path}" for name, path in paths.items() if isinstance(path, Unreadable)]
            if broken:
                raise FieldInvalid.of("name", f"a file of it cannot be read: {broken[0]}")
            yield {name: path for name, path in paths.items() if isinstance(path, Path)}

    async def _brought_in(self, content: Content, paths: Sequence[Path]) -> list[str]:
        """Catalogue files next to the products; those that are there already must be the same."""
        folder = names.folder(self._vo, content.release.name)
        parents = [product.file for product in content.products]
        new = [NewFile(f"{folder}/{path.name}", path, parents, {}, await self._digest(path)) for path in paths]
        there = await self._upstream.files([file.name for file in new])
        for file in new:
            known = there.get(file.name)
            if known and known.checksums.adler32 != await self._upstream.in_thread(adler32_of, file.path):
                message = f"{file.name} was made before with other options, and files of a release never change"
                raise FieldInvalid.of("options", f"{message}; repeat the export with those, or make the next version")
        missing = [file for file in new if file.name not in there]
        if missing:
            await self._upstream.put(missing, content.release.uid, content.release.owner)
        return [file.name for file in new]

    async def _digest(self, path: Path) -> str:
        if not looks_like_fits(path.name):
            return ""
        return content_digest(await self._upstream.in_thread(read_hdus, path))
