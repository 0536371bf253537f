"""The same request_id gives the same answer."""

import hashlib
import zlib
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Generic, Protocol, TypeVar

from google.protobuf.message import Message
from sqlalchemy import Column, LargeBinary, MetaData, Table, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.kit.boundary.call import current_call
from khomas.kit.database import Database, Rows, UtcTime
from khomas.kit.database.grouped import Grouped
from khomas.kit.errors import RequestIdReused

RETENTION = timedelta(hours=24)
_PRUNE_BATCH = 5000

Answer = TypeVar("Answer", bound=Message)
Item = TypeVar("Item")


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


@dataclass(frozen=True, slots=True)
class Asked:
    """Which request of which caller it is, and what it says."""

    request_id: str
    key: bytes
    digest: bytes

    @classmethod
    def of(cls, request: Request) -> "Asked":
        """Take it from a request and the current call."""
        digest = hashlib.sha256(request.SerializeToString(deterministic=True)).digest()
        return cls(request.request_id, _key(request), digest)


class Once:
    """Do the work of a request_id once, and give its answer to every call that carries it.

    The answer is kept for 24 h in the transaction of the change, so both are there or neither is.
    """

    def __init__(self, database: Database, table: Table) -> None:
        self.database = database
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
            async with self.database.write() as connection:
                return await work(connection)
        asked = Asked.of(request)
        try:
            async with self.database.write() as connection:
                answer = await work(connection)
                await self.keep(connection, [(asked, answer)])
        except Exception as error:
            if (before := await self.before(asked, answer_type, error)) is None:
                raise
            return before
        return answer

    async def keep(self, connection: AsyncConnection, given: Sequence[tuple[Asked, Message]]) -> None:
        """Keep answers in the transaction of their changes, at its end.

        That waits for another call with the same id that has not committed yet, and fails if it does.
        """
        rows = [(asked.key, asked.digest, _packed(answer)) for asked, answer in given]
        columns = ("key", "request_digest", "answer")
        self.database.insert_at_end(connection, Rows(self._table, columns, rows, {"create_time": _now()}))

    async def before(self, asked: Asked, answer_type: type[Answer], error: Exception | None = None) -> Answer | None:
        """Return the answer that was given before this error, None if there was none.

        Work that was done before may fail in many ways now: the name is taken, the state is final. Whoever asks
        other services before the transaction looks here first: they may have changed their mind.
        """
        query = select(self._table.c.request_digest, self._table.c.answer).where(self._table.c.key == asked.key)
        async with self.database.read() as connection:
            found = (await connection.execute(query)).one_or_none()
        if found is None:
            return None
        if found.request_digest != asked.digest:
            raise RequestIdReused(request_id=asked.request_id) from error
        return answer_type.FromString(_unpacked(found.answer))

    async def prune(self) -> None:
        """Forget the answers that are older than the retention."""
        table = self._table
        old = select(table.c.key).where(table.c.create_time < _now() - RETENTION).limit(_PRUNE_BATCH)
        deleted = _PRUNE_BATCH
        while deleted == _PRUNE_BATCH:
            async with self.database.write() as connection:
                deleted = (await connection.execute(delete(table).where(table.c.key.in_(old)))).rowcount


class OnceTogether(Generic[Item, Answer]):
    """Like `Once` for an rpc with many small calls: those that come at the same time share a transaction.

    `work` gets an item a call and returns an answer each; see `Grouped`.
    """

    def __init__(
        self,
        once: Once,
        answer_type: type[Answer],
        work: Callable[[AsyncConnection, Sequence[Item]], Awaitable[Sequence[Answer]]],
    ) -> None:
        self._once = once
        self._answer_type = answer_type
        self._work = work
        self._grouped: Grouped[tuple[Asked, Item], Answer] = Grouped(once.database, self._write)

    async def __call__(self, request: Request, item: Item) -> Answer:
        """Do the work of a request, or return the answer that was given before."""
        asked = Asked.of(request)
        try:
            return await self._grouped((asked, item))
        except Exception as error:
            if (before := await self._once.before(asked, self._answer_type, error)) is None:
                raise
            return before

    async def _write(self, connection: AsyncConnection, group: Sequence[tuple[Asked, Item]]) -> Sequence[Answer]:
        answers = await self._work(connection, [item for _, item in group])
        given = zip((asked for asked, _ in group), answers, strict=True)
        await self._once.keep(connection, [(asked, answer) for asked, answer in given if asked.request_id])
        return answers


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
