"""What the cards of a copy say about where it comes from."""

from pathlib import Path
from typing import Any

from astropy.io import fits

from khomas.api.bookkeeping.v1 import bookkeeping_service_pb2_grpc
from khomas.api.bookkeeping.v1.provenance_pb2 import Trace, TraceNode
from khomas.archive.app import service
from khomas.archive.testing import Archive
from khomas.catalog.app import service as catalog
from khomas.kit.config import ServiceSettings
from khomas.kit.errors import NotFound
from khomas.kit.service import Host, Running, Service
from khomas.kit.testing import serve
from khomas.storage.app import service as storage

ATTEMPT = "0190aaaa-bbbb-7ccc-8ddd-eeeeeeeeeeee"
NODES = [
    TraceNode(kind="attempt", uid=ATTEMPT),
    TraceNode(kind="job", name="jobs/0190aaaa-bbbb-7ccc-8ddd-000000000001"),
    TraceNode(kind="production", name="productions/crab"),
    TraceNode(kind="job", name="jobs/an-older-one"),
]


class _Bookkeeping(bookkeeping_service_pb2_grpc.BookkeepingServiceServicer):
    async def GetTrace(self, request: Any, context: Any) -> Trace:  # noqa: N802  the contract's name
        if request.id != ATTEMPT:
            raise NotFound(name=request.id)
        return Trace(subject=request.id, nodes=NODES)


async def _start(_: ServiceSettings, __: Host) -> Running:
    servicer = _Bookkeeping()  # type: ignore[abstract]  # only what the archive calls
    return Running(
        add_to=lambda server: bookkeeping_service_pb2_grpc.add_BookkeepingServiceServicer_to_server(servicer, server)
    )


async def test_copy_names_attempt_job_and_production(tmp_path: Path, run_file: Path) -> None:
    bookkeeping = Service("bookkeeping", ServiceSettings, _start)
    settings = {"archive": {"poll": 0.02}}
    async with serve(catalog, storage, bookkeeping, service, state=tmp_path / "state", settings=settings) as served:
        archive = Archive(served)
        await archive.store("datasets/d", {"/hess/a_obs_id_1.fits.gz": run_file}, origin=ATTEMPT)
        await archive.store("datasets/d", {"/hess/b_obs_id_1.fits.gz": run_file}, origin="unknown")
        await archive.create("releases/crab/1", "datasets/d")
        release = await archive.settled("releases/crab/1")
        made, unknown = [fits.getheader(await archive.path(product.file)) for product in release.products]

    assert made["KHATTEMP"] == ATTEMPT
    assert made["KHJOB"] == "jobs/0190aaaa-bbbb-7ccc-8ddd-000000000001"
    assert made["KHPROD"] == "productions/crab"
    assert unknown["KHORIGIN"] == "unknown"
    assert "KHJOB" not in unknown
