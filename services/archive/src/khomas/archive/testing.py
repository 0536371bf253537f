"""For tests: runs to release, and a running archive with ways to talk to it."""

import asyncio
import itertools
import subprocess
import zlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from astropy.io import fits

from khomas.api.archive.v1 import archive_service_pb2 as pb
from khomas.api.archive.v1 import obscore_pb2, release_pb2
from khomas.api.archive.v1.archive_service_pb2_grpc import ArchiveServiceStub
from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import dataset_pb2, file_pb2
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.common.v1 import checksum_pb2
from khomas.api.storage.v1 import grant_pb2
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.testing import Served

EVENT_COLUMNS = {
    "dataproduct_type": '"event"',
    "calib_level": "2",
    "obs_id": "@OBS_ID",
    "target_name": "@OBJECT",
    "s_ra": "@RA_PNT",
    "s_dec": "@DEC_PNT",
    "s_fov": "5",
    "s_region": '"CIRCLE ICRS {@RA_PNT} {@DEC_PNT} 2.5"',
    "t_min": "@MJDREFI + @MJDREFF + @TSTART / 86400",
    "t_max": "@MJDREFI + @MJDREFF + @TSTOP / 86400",
    "t_exptime": "@LIVETIME",
    "em_min": "1.239841984332e-6 / 100e12",
    "em_max": "1.239841984332e-6 / 0.1e12",
    "o_ucd": '"phot.count"',
    "facility_name": "@TELESCOP",
    "instrument_name": "@INSTRUME",
}

_UNITS = {"TIME": "s", "RA": "deg", "DEC": "deg", "ENERGY": "TeV", "START": "s", "STOP": "s"}


def event_rule(match: str = "*_obs_id_*.fits.gz", **fields: Any) -> release_pb2.MappingRule:
    """Return the rule of event lists."""
    columns = {**EVENT_COLUMNS, **fields.pop("columns", {})}
    return release_pb2.MappingRule(match=match, hdu="EVENTS", columns=columns, **fields)


def event_list(path: Path, run: int, events: int = 100, **cards: Any) -> Path:
    """Write a simulated event list with GTI and effective area, as GADF has them, without checksums."""
    random = np.random.default_rng(run)
    table = _table(
        "EVENTS",
        {
            "EVENT_ID": np.arange(events),
            "TIME": np.sort(random.uniform(0, 1000, events)),
            "RA": np.full(events, 83.63),
            "DEC": np.full(events, 22.01),
            "ENERGY": np.ones(events),
        },
        HDUCLAS1="EVENTS",
        OBS_ID=run,
        OBJECT="Simulated nebula",
        RA_PNT=83.63,
        DEC_PNT=round(22.01 + run / 1000, 3),
        ALT_PNT=50.0,
        MJDREFI=51910,
        MJDREFF=0.000742870370370241,
        TIMESYS="TT",
        TIMEUNIT="s",
        TSTART=123890826.0 + 2000 * run,
        TSTOP=123892513.0 + 2000 * run,
        LIVETIME=1500.5,
        TELESCOP="SIMULATED",
        INSTRUME="Simulated camera",
        **cards,
    )
    gti = _table("GTI", {"START": np.zeros(1), "STOP": np.ones(1)}, HDUCLAS1="GTI", MJDREFI=51910)
    area = _table("AEFF", {"EFFAREA": np.ones(3)}, HDUCLAS1="RESPONSE", HDUCLAS2="EFF_AREA", HDUCLAS4="AEFF_2D")
    fits.HDUList([fits.PrimaryHDU(), table, gti, area]).writeto(path)
    return path


async def until(condition: Callable[[], Awaitable[object]], seconds: float = 90) -> None:
    """Wait for something that a background loop does."""
    async with asyncio.timeout(seconds):
        for pause in itertools.repeat(0.02):
            if await condition():
                return
            await asyncio.sleep(pause)


def told(*command: str) -> str:
    """Return what a checker prints, whatever its exit status."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def _table(name: str, columns: Mapping[str, Any], **cards: Any) -> fits.BinTableHDU:
    made = [
        fits.Column(key, "K" if values.dtype.kind == "i" else "D", unit=_UNITS.get(key), array=values)
        for key, values in columns.items()
    ]
    table = fits.BinTableHDU.from_columns(made, name=name)
    table.header["HDUCLASS"] = "GADF"
    table.header.update(cards)
    return table


@dataclass(frozen=True, slots=True)
class Archive:
    """A running archive."""

    served: Served

    @property
    def stub(self) -> ArchiveServiceStub:
        """Return a client that may do everything."""
        return ArchiveServiceStub(self.served.channel)

    @property
    def catalog(self) -> CatalogServiceStub:
        """Return a client of the catalogue."""
        return CatalogServiceStub(self.served.channel)

    @property
    def storage(self) -> StorageServiceStub:
        """Return a client of the storage."""
        return StorageServiceStub(self.served.channel)

    async def store(self, dataset: str, files: Mapping[str, Path], origin: str = "") -> None:
        """Bring files in and make them members of a dataset, which is made if it is not there."""
        if not [one async for one in self._datasets(dataset)]:
            new = dataset_pb2.Dataset(name=dataset)
            await self.catalog.CreateDataset(catalog_pb.CreateDatasetRequest(dataset=new, request_id=str(uuid4())))
        opened = storage_pb.BatchCreateUploadsRequest(
            uploads=[grant_pb2.Upload(max_files=len(files))], request_id=str(uuid4())
        )
        upload = (await self.storage.BatchCreateUploads(opened)).uploads[0]
        commits = []
        for index, (name, path) in enumerate(files.items()):
            content = path.read_bytes()
            Path(upload.grant.local_path, str(index)).write_bytes(content)  # noqa: ASYNC240  a test may block
            sums = checksum_pb2.Checksums(adler32=f"{zlib.adler32(content):08x}")
            commits.append(
                storage_pb.UploadCommit(
                    upload=upload.name, index=index, name=name, checksums=sums, size_bytes=-1, datasets=[dataset]
                )
            )
        request = storage_pb.BatchCommitUploadsRequest(files=commits, origin=origin, request_id=str(uuid4()))
        await self.storage.BatchCommitUploads(request)

    async def _datasets(self, name: str) -> Any:
        listed = await self.catalog.ListDatasets(catalog_pb.ListDatasetsRequest(filter=f'name = "{name}"'))
        for one in listed.datasets:
            yield one

    async def create(
        self,
        name: str,
        dataset: str,
        *rules: release_pb2.MappingRule,
        request_id: str = "",
        terms: str = "",
        **options: Any,
    ) -> release_pb2.Release:
        """Ask for a release."""
        wanted = release_pb2.Release(
            name=name,
            title="Simulated",
            dataset=dataset,
            mapping=release_pb2.Mapping(rules=rules or [event_rule()]),
            authority="example.hess",
            terms=terms,
        )
        request = pb.CreateReleaseRequest(release=wanted, request_id=request_id or str(uuid4()), **options)
        return await self.stub.CreateRelease(request)

    async def settled(self, name: str) -> release_pb2.Release:
        """Wait until a release is no longer prepared."""

        async def done() -> bool:
            return (await self.get(name)).state != release_pb2.Release.STATE_PREPARING

        await until(done)
        return await self.get(name)

    async def get(self, name: str) -> release_pb2.Release:
        """Read a release."""
        return await self.stub.GetRelease(pb.GetReleaseRequest(name=name))

    async def publish(self, name: str) -> release_pb2.Release:
        """Publish a release."""
        return await self.stub.PublishRelease(pb.PublishReleaseRequest(name=name, request_id=str(uuid4())))

    async def export(self, name: str, exporter: str, **options: Any) -> release_pb2.Export:
        """Run an exporter."""
        request = pb.ExportReleaseRequest(name=name, exporter=exporter, request_id=str(uuid4()))
        request.options.update(options)
        return await self.stub.ExportRelease(request)

    async def records(self, name: str) -> list[obscore_pb2.ObsCoreRecord]:
        """Read all records."""
        stream = self.stub.StreamRecords(pb.StreamRecordsRequest(name=name))
        return [record async for answer in stream for record in answer.records]

    async def file(self, name: str) -> file_pb2.File:
        """Read a file of the catalogue."""
        request = catalog_pb.BatchGetFilesRequest(names=[name], view=catalog_pb.FILE_VIEW_FULL)
        return (await self.catalog.BatchGetFiles(request)).results[0].file

    async def path(self, name: str) -> Path:
        """Return where a file lies."""
        return (await self.paths([name]))[0]

    async def paths(self, names: Sequence[str]) -> list[Path]:
        """Return where files lie."""
        answer = await self.storage.BatchCreateDownloads(storage_pb.BatchCreateDownloadsRequest(names=names))
        return [Path(download.grants[0].local_path) for download in answer.downloads]
