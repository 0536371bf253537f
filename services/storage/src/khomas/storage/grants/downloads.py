"""Where the bytes of files can be read."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import grant_pb2, storage_service_pb2
from khomas.kit.boundary.status import status_of
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.errors import NoReplica, PathRefused
from khomas.storage.grants.granting import Granting
from khomas.storage.grants.lending import Place, lent
from khomas.storage.links.choosing import nearest
from khomas.storage.links.measures import Measures
from khomas.storage.protocols.interface import Remote
from khomas.storage.recalls.errors import Offline
from khomas.storage.recalls.online import Online
from khomas.storage.rules.accesses import Accesses


class Downloads:
    """Grants reading."""

    def __init__(
        self,
        catalog: Catalog,
        elements: Elements,
        protocols: Protocols,
        granting: Granting,
        online: Online,
        measures: Measures,
        accesses: Accesses,
    ) -> None:
        self._catalog = catalog
        self._elements = elements
        self._protocols = protocols
        self._granting = granting
        self._online = online
        self._measures = measures
        self._accesses = accesses

    async def create(
        self, request: storage_service_pb2.BatchCreateDownloadsRequest
    ) -> storage_service_pb2.BatchCreateDownloadsResponse:
        """Answer for every name with grants, or with why there is none."""
        lifetime = request.lifetime if request.HasField("lifetime") else None
        now = datetime.now(UTC)
        end = self._granting.end(lifetime, now)
        elements = await self._elements.all()
        results = await self._catalog.files(request.names)
        offline = await self._online.offline(one.file for one in results if one.HasField("file"))
        orders = [nearest(result.file, elements, self._measures.known, site=request.site) for result in results]
        given = await lent(self._protocols, (place for order in orders for place in order), end - now)
        return storage_service_pb2.BatchCreateDownloadsResponse(
            downloads=[
                self._download(name, result, self._grants(result, order, given, end, offline, in_url=request.in_url))
                for name, result, order in zip(request.names, results, orders, strict=True)
            ]
        )

    def _download(self, name: str, result: catalog_pb.FileResult, grants: "Grants") -> storage_service_pb2.Download:
        if result.HasField("error"):
            return storage_service_pb2.Download(name=name, error=result.error)
        file = result.file
        download = storage_service_pb2.Download(
            name=name, size_bytes=file.size_bytes, checksums=file.checksums, uid=file.uid, grants=grants.found
        )
        if grants.found:
            self._accesses.note(file.uid, grants.found[0].storage_element)
        else:
            on_tape = grants.on_tape
            error = Offline(file=name, storage_element=on_tape) if on_tape else NoReplica(file=name)
            download.error.CopyFrom(status_of(error))
        return download

    def _grants(
        self,
        result: catalog_pb.FileResult,
        order: Sequence[Place],
        given: Mapping[tuple[str, str], Remote],
        end: datetime,
        offline: Collection[tuple[str, str]],
        *,
        in_url: bool,
    ) -> "Grants":
        """Return ways to read a file, the nearest copy first."""
        found: list[grant_pb2.AccessGrant] = []
        on_tape = ""
        for element, replica in order:
            if (result.file.uid, element.id) in offline:
                on_tape = on_tape or element.id
                continue
            try:
                local = self._protocols.local(element, replica.path) if self._protocols.is_local(element) else None
            except PathRefused:
                # It has become a link that leads out of the root; another copy may be fine.
                continue
            remote = given.get((element.id, replica.path))
            if remote is not None and not (in_url and remote.headers):
                found.append(self._granting.lent(remote, element.id, end))
            adler32 = result.file.checksums.adler32
            if in_url:
                found.append(self._granting.download_in_url(replica.path, adler32, element.id, end))
            else:
                found.append(self._granting.download(replica.path, adler32, element.id, local, end))
        return Grants(found, on_tape)


@dataclass(frozen=True, slots=True)
class Grants:
    """Ways to read one file."""

    found: Sequence[grant_pb2.AccessGrant]
    # A StorageElement where it would have to come from tape first.
    on_tape: str
