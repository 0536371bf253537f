"""Tells the catalogue of new and of damaged replicas, in batches, before transfers are settled."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import uuid4

import grpc

from khomas.api.catalog.v1 import catalog_service_pb2 as catalog_pb
from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import transfer_pb2 as pb
from khomas.kit.boundary.status import reason_of
from khomas.kit.errors import UpstreamUnavailable
from khomas.storage.catalog import Catalog
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.transfers.queue import Outcome

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Announcing:
    """Announces what attempts have brought."""

    catalog: Catalog
    elements: Elements
    protocols: Protocols

    async def announced(self, outcomes: Sequence[Outcome]) -> list[Outcome]:
        """Tell the catalogue in one call or, if it refuses that, one by one; return how attempts ended then."""
        updates = _updates(outcomes)
        if not updates:
            return list(outcomes)
        try:
            await self.catalog.update_replicas(updates, str(uuid4()))
        except UpstreamUnavailable as error:
            return [_unannounced(one, pb.TRANSFER_REASON_TRANSIENT, error.message) for one in outcomes]
        except grpc.aio.AioRpcError as error:
            if len(outcomes) > 1:
                return [settled for one in outcomes for settled in await self.announced([one])]
            gone = reason_of(error) in {"FILE_NOT_FOUND", "NOT_FOUND"}
            reason = pb.TRANSFER_REASON_NO_SOURCE if gone else pb.TRANSFER_REASON_CONFIGURATION
            await self._remove(outcomes[0])
            return [_unannounced(outcomes[0], reason, f"the catalogue refused: {error.details()}")]
        return list(outcomes)

    async def _remove(self, one: Outcome) -> None:
        """Remove a copy that the catalogue does not want."""
        destination = (await self.elements.all()).get(one.destination)
        if one.copied is not None and destination is not None:
            (fault,) = await self.protocols.of(destination).delete([one.path])
            if fault is not None:
                log.warning("transfer.left_behind", extra={"path": one.path, "error": fault.message})


def _updates(outcomes: Sequence[Outcome]) -> list[catalog_pb.ReplicaUpdate]:
    """Return what the catalogue must learn from outcomes, one entry a file."""
    updates: dict[str, catalog_pb.ReplicaUpdate] = {}
    for one in outcomes:
        update = updates.setdefault(one.file_uid, catalog_pb.ReplicaUpdate(name=f"files/{one.file_uid}"))
        if one.reason == pb.TRANSFER_REASON_SOURCE_CHECKSUM:
            suspect = file_pb2.Replica.STATE_SUSPECT
            update.set.add(storage_element=one.source, path=one.source_path, state=suspect)
        elif one.copied is not None:
            available = file_pb2.Replica.STATE_AVAILABLE
            replica = update.set.add(storage_element=one.destination, path=one.path, state=available)
            replica.verify_time.FromDatetime(datetime.now(UTC))
            update.size_bytes, update.adler32 = one.copied.size_bytes, one.copied.adler32
    return [update for update in updates.values() if update.set]


def _unannounced(one: Outcome, reason: pb.TransferReason.ValueType, message: str) -> Outcome:
    """Return a success that the catalogue does not know as a failure; everything else as it is."""
    return one if one.copied is None else replace(one, reason=reason, message=message)
