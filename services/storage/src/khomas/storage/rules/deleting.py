"""Deletions of single replicas that people ask for."""

from google.rpc import code_pb2, status_pb2
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.storage.v1 import placement_service_pb2 as pb
from khomas.kit.boundary.status import status_of
from khomas.kit.errors import DomainError
from khomas.kit.events import EventLog
from khomas.kit.idempotency import Once
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Elements, known
from khomas.storage.rules.protection import ReplicaKey
from khomas.storage.rules.removal import remove

_OK = status_pb2.Status(code=code_pb2.OK)


class ReplicaDeletions:
    """Plans deletions of those replicas that nobody needs, and says why the others stay."""

    def __init__(self, once: Once, log: EventLog, elements: Elements, catalog: Catalog) -> None:
        self._once = once
        self._log = log
        self._elements = elements
        self._catalog = catalog

    async def delete(self, request: pb.BatchDeleteReplicasRequest) -> pb.BatchDeleteReplicasResponse:
        """Answer for every replica: OK, or why not."""
        elements = await self._elements.all()
        for one in request.replicas:
            known(elements, one.storage_element)
        found = await self._catalog.files([one.file for one in request.replicas])
        files = {result.file.uid: result.file for result in found if not result.HasField("error")}
        keys = [
            ReplicaKey(result.file.uid, one.storage_element)
            for one, result in zip(request.replicas, found, strict=True)
        ]

        async def work(connection: AsyncConnection) -> pb.BatchDeleteReplicasResponse:
            refused = await remove(connection, self._log, [key for key in keys if key.file_uid in files], files)
            results = [_answer(result, refused.get(key)) for key, result in zip(keys, found, strict=True)]
            return pb.BatchDeleteReplicasResponse(results=results)

        return await self._once(request, pb.BatchDeleteReplicasResponse, work)


def _answer(result: catalog_pb.FileResult, refusal: DomainError | None) -> status_pb2.Status:
    if result.HasField("error"):
        return result.error
    return _OK if refusal is None else status_of(refusal)
