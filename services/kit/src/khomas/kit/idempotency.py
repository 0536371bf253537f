"""The same request_id gives the same answer."""

import hashlib
import zlib
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Protocol, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Column, LargeBinary, MetaData, Row, Table, delete, insert, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.boundary.call import current_call
from khomas.kit.database import Database, UtcTime
from khomas.kit.errors import RequestIdReused

RETENTION = timedelta(hours=24)
_PRUNE_BATCH = 5000

Answer = TypeVar("Answer", bound=Message)


class Request(Protocol):
    """A request of a mutating rpc."""

    request_id: str

    def SerializeToString(self, *, deterministic: bool = ...) -> bytes:  # noqa: N802  protobuf's name
        """Return the wire form."""


def answer_table(metadata: MetaData) -> Table:
    """Declare the table of given answers; it belongs into the service's tables.py."""
    return Table(
        "answer",
        metadata,
        # Digest of caller, method and request_id.
        Column("key", LargeBinary, primary_key=True),
        Column("request_digest", LargeBinary, nullable=False),
        Column("answer", LargeBinary, nullable=False),
        Column("create_time", UtcTime, nullable=False, index=True),
    )


class Once:
    """Do the work of a request_id once, and give its answer to every call that carries it.

    The answer is kept for 24 h in the transaction of the change, so both are there or neither is.
    """

    def __init__(self, database: Database, table: Table) -> None:
        self._database = database
        self._table = table

    async def __call__(
        self,
        request: Request,
        answer_type: type[Answer],
        work: Callable[[AsyncConnection], Awaitable[Answer]],
    ) -> Answer:
        """Run `work` in a transaction and return its answer, or the answer that was given before.

        `work` changes nothing but the database: a repeated request runs it again and takes it back. That
        costs the first request, which is the usual one, a single statement. Without a request_id every call
        does the work. Raises `RequestIdReused` when the request differs from the first one.
        """
        if not request.request_id:
            async with self._database.write() as connection:
                return await work(connection)
        key, digest = _key(request), hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        try:
            return await self._first(key, digest, work)
        except Exception as error:
            # Work that was done before may fail in many ways now: the name is taken, the state is final.
            before = await self._before(key)
            if before is None:
                raise
            if before.request_digest != digest:
                raise RequestIdReused(request_id=request.request_id) from error
            return answer_type.FromString(_unpacked(before.answer))

    async def _first(self, key: bytes, digest: bytes, work: Callable[[AsyncConnection], Awaitable[Answer]]) -> Answer:
        async with self._database.write() as connection:
            answer = await work(connection)
            row = {"key": key, "request_digest": digest, "answer": _packed(answer), "create_time": _now()}
            # Waits for another call with the same id that has not committed yet, and fails if it does.
            await connection.execute(insert(self._table), row)
        return answer

    async def _before(self, key: bytes) -> Row[bytes, bytes] | None:
        query = select(self._table.c.request_digest, self._table.c.answer).where(self._table.c.key == key)
        async with self._database.read() as connection:
            return (await connection.execute(query)).one_or_none()

    async def prune(self) -> None:
        """Forget the answers that are older than the retention."""
        table = self._table
        old = select(table.c.key).where(table.c.create_time < _now() - RETENTION).limit(_PRUNE_BATCH)
        deleted = _PRUNE_BATCH
        while deleted == _PRUNE_BATCH:
            async with self._database.write() as connection:
                deleted = (await connection.execute(delete(table).where(table.c.key.in_(old)))).rowcount


def _now() -> datetime:
    return datetime.now(UTC)


def _key(request: Request) -> bytes:
    call = current_call()
    method = call.method if call else ""
    caller = (call.principal.issuer, call.principal.subject) if call and call.principal else ()
    return hashlib.blake2b(repr((caller, method, request.request_id)).encode(), digest_size=16).digest()


# Answers to batches are long and repetitive; level 1 takes 3 us an entry.
def _packed(answer: Message) -> bytes:
    return zlib.compress(answer.SerializeToString(), level=1)


def _unpacked(stored: bytes) -> bytes:
    return zlib.decompress(stored)
