"""For tests: a storage with two storage elements beside the real catalogue, and ways to damage one of them."""

import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import aiohttp

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.catalog.v1.file_pb2 import File, Replica
from khomas.api.storage.v1 import integrity_service_pb2 as pb
from khomas.api.storage.v1 import storage_element_pb2, storage_service_pb2
from khomas.api.storage.v1.incident_pb2 import REPAIR_UNSPECIFIED, Incident, Repair
from khomas.api.storage.v1.integrity_service_pb2_grpc import IntegrityServiceStub
from khomas.api.storage.v1.reconciliation_pb2 import Reconciliation
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.plugins import installed, load
from khomas.kit.testing import serve
from khomas.storage.app import service
from khomas.storage.testing import MemoryCatalog, Storage, until

# Seconds that a loaded machine may take for anything.
PATIENCE: Final = 90.0
_OLD: Final = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Place:
    """A storage with two storage elements beside the real catalogue."""

    storage: Storage
    catalog: CatalogServiceStub
    integrity: IntegrityServiceStub
    # Where the files of the storage element "mirror" lie on this machine.
    mirror: Path

    async def stored(self, *names: str) -> None:
        """Bring files in, each with its name as content, and a second copy at the same path of the mirror."""
        for name in names:
            content = name.encode()
            await self.storage.store(name, content)
            self.lay(name[1:], content)
        self.old()
        await self.copied(*names)

    async def copied(self, *names: str) -> None:
        """Tell the catalogue that the mirror has files."""
        replicas = [Replica(storage_element="mirror", path=name[1:]) for name in names]
        updates = [catalog_pb.ReplicaUpdate(name=n, set=[r]) for n, r in zip(names, replicas, strict=True)]
        request = catalog_pb.BatchUpdateReplicasRequest(updates=updates, request_id=str(uuid4()))
        await self.catalog.BatchUpdateReplicas(request)

    def lay(self, path: str, content: bytes) -> None:
        """Put a file on the mirror without telling anybody, as if it had been there for years."""
        target = self.mirror / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
        os.utime(target, (_OLD, _OLD))

    def old(self) -> None:
        """Let everything that is visible be years old."""
        for path in [*self.storage.root.rglob("*"), *self.mirror.rglob("*")]:
            if path.is_file():
                os.utime(path, (_OLD, _OLD))

    async def compared(self, mode: Reconciliation.Mode.ValueType = Reconciliation.MODE_QUICK, **more: Any) -> Any:
        """Compare the mirror with the catalogue to the end, or until it is held."""
        wanted = Reconciliation(storage_element="mirror", mode=mode, **more)
        request = pb.CreateReconciliationRequest(reconciliation=wanted, request_id=str(uuid4()))
        made = await self.integrity.CreateReconciliation(request)
        return await self.ended(made.name)

    async def ended(self, name: str) -> Reconciliation:
        """Wait for a comparison."""
        found = Reconciliation()

        async def over() -> bool:
            found.CopyFrom(await self.integrity.GetReconciliation(pb.GetReconciliationRequest(name=name)))
            return found.state not in (Reconciliation.STATE_WAITING, Reconciliation.STATE_RUNNING)

        await until(over, PATIENCE)
        return found

    async def incidents(self, filter_text: str = "") -> list[Incident]:
        """List them by path."""
        request = pb.ListIncidentsRequest(filter=filter_text, order_by="path")
        return list((await self.integrity.ListIncidents(request)).incidents)

    async def kinds(self, filter_text: str = "") -> dict[str, str]:
        """Return what is wrong, by path."""
        found = await self.incidents(filter_text)
        return {one.path: Incident.Kind.Name(one.kind).removeprefix("KIND_") for one in found}

    async def apply(self, filter_text: str, repair: Repair.ValueType = REPAIR_UNSPECIFIED) -> int:
        """Accept repairs."""
        request = pb.ApplyRepairsRequest(
            filter=filter_text, repair=repair, reason="a test says so", request_id=str(uuid4())
        )
        return (await self.integrity.ApplyRepairs(request)).accepted

    async def settled(self) -> None:
        """Wait until nothing is being repaired."""

        async def quiet() -> bool:
            return not await self.incidents("state = REPAIRING")

        await until(quiet, PATIENCE)

    async def file(self, name: str) -> File:
        """Read a file of the catalogue."""
        request = catalog_pb.BatchGetFilesRequest(names=[name], view=catalog_pb.FILE_VIEW_FULL)
        return (await self.catalog.BatchGetFiles(request)).results[0].file

    async def replica(self, name: str, element: str = "mirror") -> Replica | None:
        """Read a replica of the catalogue."""
        return next((one for one in (await self.file(name)).replicas if one.storage_element == element), None)

    def lies(self) -> list[str]:
        """List what lies on the mirror, without what is hidden."""
        files = (path.relative_to(self.mirror) for path in self.mirror.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if path.parts[0] != ".khomas")


@asynccontextmanager
async def damageable(
    folder: Path,
    mirror: Path,
    access_point: storage_element_pb2.AccessPoint,
    *,
    database_url: str = "",
    made: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> AsyncIterator[Place]:
    """Run it: `mirror` is the folder behind the access point; `made` where it ran in this folder before."""
    catalog = load(installed("khomas.services")["catalog"])
    fast = {"poll": 0.05, "transfer_pause": 0.05, "repair_pause": 0.1, "deletion_pause": 0.05}
    async with (
        serve(
            catalog,
            service,
            state=folder / "state",
            settings={"storage": fast | dict(settings or {})},
            database_urls={"storage": database_url} if database_url else None,
        ) as served,
        aiohttp.ClientSession() as http,
    ):
        root = folder / "state" / "storage" / "local"
        storage = Storage(served, StorageServiceStub(served.channel), MemoryCatalog(), http, root)
        place = Place(storage, CatalogServiceStub(served.channel), IntegrityServiceStub(served.channel), mirror)
        if not made:
            await _create(storage, access_point)
        yield place


async def _create(storage: Storage, access_point: storage_element_pb2.AccessPoint) -> None:
    element = storage_element_pb2.StorageElement(name="storageElements/mirror", access_points=[access_point])
    element.media = storage_element_pb2.StorageElement.MEDIA_DISK
    request = storage_service_pb2.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
    await storage.stub.CreateStorageElement(request)
