"""For tests: a storage with the catalogue that is installed beside it, and folders as StorageElements."""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from zlib_ng.zlib_ng import adler32

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.catalog.v1.catalog_service_pb2_grpc import CatalogServiceStub
from khomas.api.common.v1 import checksum_pb2, explanation_pb2
from khomas.api.storage.v1 import rule_pb2, storage_element_pb2
from khomas.api.storage.v1 import rule_service_pb2 as pb
from khomas.api.storage.v1 import storage_service_pb2 as storage_pb
from khomas.api.storage.v1.placement_service_pb2_grpc import PlacementServiceStub
from khomas.api.storage.v1.rule_service_pb2_grpc import RuleServiceStub
from khomas.api.storage.v1.storage_service_pb2_grpc import StorageServiceStub
from khomas.kit.plugins import installed, load
from khomas.kit.testing import Served, serve
from khomas.storage.app import service
from khomas.storage.testing import until

Rule = rule_pb2.ReplicationRule
PATIENCE = 90.0
CONTENT = b"bytes"
FAST = {
    "poll": 0.1,
    "transfer_pause": 0.05,
    "deletion_pause": 0.05,
    "rule_pause": 0.5,
    "drain_pause": 0.2,
    "check_interval": 1.0,
    "transfer_attempts": 5,
}


@dataclass(frozen=True, slots=True)
class World:
    """A storage with a catalogue and some folders as StorageElements."""

    served: Served
    folder: Path

    @property
    def storage(self) -> StorageServiceStub:
        """Return the stub."""
        return StorageServiceStub(self.served.channel)

    @property
    def rules(self) -> RuleServiceStub:
        """Return the stub."""
        return RuleServiceStub(self.served.channel)

    @property
    def placement(self) -> PlacementServiceStub:
        """Return the stub."""
        return PlacementServiceStub(self.served.channel)

    @property
    def catalog(self) -> CatalogServiceStub:
        """Return the stub."""
        return CatalogServiceStub(self.served.channel)

    async def element(self, name: str, site: str = "", **fields: Any) -> None:
        """Make a folder a StorageElement."""
        (self.folder / name).mkdir()
        fields.setdefault("media", storage_element_pb2.StorageElement.MEDIA_DISK)
        element = storage_element_pb2.StorageElement(name=f"storageElements/{name}", site=site, **fields)
        element.access_points.add(protocol="posix", address=str(self.folder / name))
        request = storage_pb.CreateStorageElementRequest(storage_element=element, request_id=str(uuid4()))
        await self.storage.CreateStorageElement(request)

    async def files(self, names: Sequence[str], element: str = "one", dataset: str = "") -> None:
        """Lay files of five bytes down and make them known."""
        files = []
        for name in names:
            path = self.folder / element / name.lstrip("/")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(CONTENT)
            checksums = checksum_pb2.Checksums(adler32=f"{adler32(CONTENT):08x}")
            file = file_pb2.File(name=name, size_bytes=len(CONTENT), checksums=checksums)
            file.replicas.add(storage_element=element, path=name.lstrip("/"))
            files.append(file)
        request = catalog_pb.BatchCreateFilesRequest(files=files, request_id=str(uuid4()))
        if dataset:
            request.datasets.append(dataset)
        await self.catalog.BatchCreateFiles(request)

    async def rule(self, expression: str, copies: int = 1, **fields: Any) -> Rule:
        """Make a rule, on the dataset crab if nothing else is said."""
        if "directory" not in fields:
            fields.setdefault("dataset", "datasets/crab")
        rule = Rule(expression=expression, copies=copies, **fields)
        return await self.rules.CreateRule(pb.CreateRuleRequest(rule=rule, request_id=str(uuid4())))

    async def becomes(self, rule: Rule, state: Rule.State.ValueType, **counts: int) -> Rule:
        """Wait until a rule is in a state, with these counts."""
        found = Rule()

        async def there() -> bool:
            found.CopyFrom(await self.rules.GetRule(pb.GetRuleRequest(name=rule.name)))
            return found.state == state and all(getattr(found.counts, name) == n for name, n in counts.items())

        try:
            await until(there, PATIENCE)
        except TimeoutError:
            raise AssertionError(f"the rule stays like this: {found}") from None
        return found

    async def where(self, rule: Rule) -> dict[str, set[str]]:
        """Return the StorageElements of each file of a rule."""
        found: dict[str, set[str]] = {}
        for copy in (await self.rules.ListRuleCopies(pb.ListRuleCopiesRequest(name=rule.name))).copies:
            found.setdefault(copy.file, set()).add(copy.storage_element)
        return found

    def lying(self, element: str) -> list[str]:
        """List what lies on a StorageElement, without what is hidden."""
        top = self.folder / element
        files = (path.relative_to(top) for path in top.rglob("*") if path.is_file())
        return sorted(str(path) for path in files if path.parts[0] != ".khomas")

    async def explained(self, rule: Rule) -> explanation_pb2.Explanation:
        """Ask why a rule is not satisfied."""
        return await self.rules.ExplainRule(pb.ExplainRuleRequest(name=rule.name))


@asynccontextmanager
async def running(
    folder: Path,
    settings: Mapping[str, Any] | None = None,
    database_urls: Mapping[str, str] | None = None,
    *,
    again: bool = False,
) -> AsyncIterator[World]:
    """Run both services, with three StorageElements; `again` when they were made in this folder before."""
    catalog = load(installed("khomas.services")["catalog"])
    all_settings = {"storage": {**FAST, **(settings or {})}}
    async with serve(
        catalog, service, state=folder / "state", settings=all_settings, database_urls=database_urls
    ) as served:
        world = World(served, folder)
        if not again:
            await world.element("one", "hd", labels={"tier": "1"})
            await world.element("two", "hd", labels={"tier": "2"})
            await world.element("three", "lyon", labels={"tier": "2"})
        yield world
