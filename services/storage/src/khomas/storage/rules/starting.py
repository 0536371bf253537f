"""Transfers that rules want: made and cancelled in batches, in the name of the rule's owner."""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from contextvars import copy_context
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from google.rpc import status_pb2
from sqlalchemy import select

from khomas.api.storage.v1 import rule_pb2 as pb
from khomas.api.storage.v1 import storage_service_pb2, transfer_pb2
from khomas.kit.auth.principal import Kind, Principal
from khomas.kit.boundary.call import Call, enter_call
from khomas.kit.boundary.status import info_of
from khomas.kit.database import Database, in_values
from khomas.storage.rules.placing import Copy, CopyState
from khomas.storage.rules.tables import rule_copy
from khomas.storage.tables import transfer
from khomas.storage.transfers.transfers import PREFIX, Transfers

T = TypeVar("T")
_NO_SOURCE = frozenset({"NO_REPLICA", "FILE_NOT_FOUND", "NOT_FOUND"})


class Starting:
    """Asks for transfers like any other caller: what is wanted already is not wanted twice."""

    def __init__(self, database: Database, transfers: Transfers) -> None:
        self._database = database
        self._transfers = transfers

    async def start(self, row: Mapping[str, Any], wanted: Sequence[Copy]) -> list[Copy]:
        """Make transfers; return the copies with theirs, STUCK where there is none."""
        request = storage_service_pb2.BatchCreateTransfersRequest(
            transfers=[
                transfer_pb2.Transfer(
                    file=copy.file,
                    destination=copy.storage_element,
                    priority=row["priority"],
                    share=row["share"],
                    origin=row["uid"],
                )
                for copy in wanted
            ]
        )
        answer = await in_the_name_of(row["owner"], self._transfers.create(request))
        return [_started(copy, result) for copy, result in zip(wanted, answer.results, strict=True)]

    async def cancel(self, row: Mapping[str, Any], uids: Sequence[str]) -> None:
        """Cancel those of the transfers that this rule has made and that no rule wants any more."""
        if not uids:
            return
        wanted = select(rule_copy.c.rule_uid).where(rule_copy.c.transfer_uid == transfer.c.uid).exists()
        ours = select(transfer.c.uid).where(in_values(transfer.c.uid, uids), transfer.c.origin == row["uid"], ~wanted)
        async with self._database.read() as connection:
            names = [PREFIX + uid for uid in (await connection.scalars(ours)).all()]
        if names:
            request = storage_service_pb2.BatchCancelTransfersRequest(names=names)
            await in_the_name_of(row["owner"], self._transfers.cancel(request))


async def in_the_name_of(owner: str, work: Coroutine[Any, Any, T]) -> T:
    """Do something for a person who is not there, with no right but to be named."""
    principal = Principal(
        vo="",
        issuer="",
        subject=owner,
        kind=Kind.SERVICE,
        groups=(),
        capabilities=(),
        roles=(),
        token_id="",
        expires_at=datetime.now(UTC) + timedelta(hours=1),
    )
    context = copy_context()
    context.run(enter_call, Call(method="rules", principal=principal, origin="", deadline=None))
    return await asyncio.create_task(work, context=context)


def _started(copy: Copy, result: storage_service_pb2.TransferResult) -> Copy:
    if result.HasField("transfer"):
        there = result.transfer.state == transfer_pb2.Transfer.STATE_SUCCEEDED
        state = CopyState.OK if there else CopyState.REPLICATING
        return replace(copy, transfer_uid=result.transfer.name.removeprefix(PREFIX), state=state, reason=0, message="")
    return replace(copy, state=CopyState.STUCK, reason=_reason(result.error), message=result.error.message)


def _reason(error: status_pb2.Status) -> pb.CopyReason.ValueType:
    return pb.COPY_REASON_NO_SOURCE if info_of(error).reason in _NO_SOURCE else pb.COPY_REASON_NO_ELEMENT
