"""What was said to batch systems: noted beside the calls of backends, written later, kept for a while."""

import contextlib
import logging
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.ext.asyncio import AsyncConnection

from khomas.api.scheduler.v1.job_command_pb2 import JobCommand
from khomas.kit.database import Database, in_values, insert_many
from khomas.kit.ids import is_uid, new_uid, new_uids
from khomas.scheduler import tables
from khomas.scheduler.backends.commands import Command, recording
from khomas.scheduler.records import uid_of_token
from khomas.scheduler.storable import storable

log = logging.getLogger(__name__)

Operation = JobCommand.Operation

# What waits to be written; beyond that something is wrong with the database, and jobs matter more.
_MOST_WAITING = 20_000
# Looks at a backend that are kept: those that went well, and those that failed.
_KEPT = {False: 200, True: 5000}
# Looks between two times that the old ones are deleted.
_TRIM_AFTER = 100
_ARGV_CHARS = 4096
_PRUNED = 5000
_METHODS = frozenset({"GET", "POST", "PUT", "PATCH", "DELETE", "HEAD"})
_TOKEN = re.compile(r"(?<![0-9a-f])[0-9a-f]{12}7[0-9a-f]{3}[89ab][0-9a-f]{15}(?![0-9a-f])")
_command, _link = tables.command, tables.attempt_call


@dataclass(frozen=True, slots=True)
class _Call:
    """One call of a backend that ran commands."""

    backend: str
    operation: Operation.ValueType
    attempts: Sequence[str]
    jobs: int
    commands: Sequence[Command]


@dataclass(slots=True)
class Transcript:
    """Notes what is said; neither waits nor fails. What was not written yet is lost with the process."""

    database: Database
    _calls: list[_Call] = field(default_factory=list)
    _waiting: int = 0
    # Looks since the old ones of a backend were deleted.
    _looks: dict[str, int] = field(default_factory=dict)

    @contextlib.contextmanager
    def of(self, backend: str, operation: Operation.ValueType, attempts: Sequence[str]) -> Iterator[None]:
        """Note the commands that are run inside, about these attempts."""
        with recording() as commands:
            try:
                yield
            finally:
                self._add(_Call(backend, operation, attempts, len(attempts), commands))

    @contextlib.contextmanager
    def look(self, backend: str, operation: Operation.ValueType, jobs: int = 0) -> Iterator[None]:
        """Note the commands that are run inside, which look at a backend as a whole."""
        with recording() as commands:
            try:
                yield
            finally:
                self._add(_Call(backend, operation, (), jobs, commands))

    def _add(self, call: _Call) -> None:
        if not call.commands:
            return
        if self._waiting + len(call.commands) > _MOST_WAITING:
            log.warning("transcript.dropped", extra={"backend": call.backend, "commands": len(call.commands)})
            return
        self._calls.append(call)
        self._waiting += len(call.commands)

    async def write(self) -> None:
        """Write down what waits. What cannot be written is lost: it must not hold up the rest."""
        calls, self._calls, self._waiting = self._calls, [], 0
        if not calls:
            return
        commands, links = _rows(calls)
        try:
            async with self.database.write() as connection:
                await insert_many(connection, _command, commands)
                await insert_many(connection, _link, links)
                for backend in self._overdue(commands):
                    await _trim(connection, backend)
        except Exception:
            log.exception("transcript.lost", extra={"commands": len(commands)})

    def _overdue(self, commands: Sequence[dict[str, Any]]) -> list[str]:
        """Backends that were looked at often since their old looks were deleted."""
        for row in commands:
            if row["look"]:
                self._looks[row["backend"]] = self._looks.get(row["backend"], _TRIM_AFTER) + 1
        overdue = [backend for backend, looks in self._looks.items() if looks > _TRIM_AFTER]
        self._looks |= dict.fromkeys(overdue, 0)
        return overdue

    async def prune(self, before: datetime) -> None:
        """Forget a batch of what was said before."""
        query = select(_command.c.uid, _command.c.call).where(_command.c.start_time < before)
        async with self.database.read() as connection:
            rows = (await connection.execute(query.order_by(_command.c.start_time).limit(_PRUNED))).all()
        if not rows:
            return
        async with self.database.write() as connection:
            await connection.execute(delete(_command).where(in_values(_command.c.uid, [row.uid for row in rows])))
            left = select(_command.c.uid).where(_command.c.call == _link.c.call).exists()
            calls = {row.call for row in rows}
            await connection.execute(delete(_link).where(in_values(_link.c.call, calls), ~left))


async def _trim(connection: AsyncConnection, backend: str) -> None:
    for failed, number in _KEPT.items():
        mine = (_command.c.backend == backend, _command.c.failed.is_(failed), tables.LOOK)
        newest = select(_command.c.uid).where(*mine).order_by(_command.c.uid.desc())
        oldest_kept = newest.offset(number - 1).limit(1).scalar_subquery()
        await connection.execute(delete(_command).where(*mine, _command.c.uid < oldest_kept))


def _rows(calls: Sequence[_Call]) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    commands, links = [], []
    for call in calls:
        uid = new_uid()
        uids = new_uids(len(call.commands))
        commands += [_row(one, command, call, uid) for one, command in zip(uids, call.commands, strict=True)]
        links += [{"attempt": attempt, "call": uid} for attempt in dict.fromkeys(call.attempts)]
    return commands, links


def _row(uid: str, command: Command, call: _Call, call_uid: str) -> dict[str, Any]:
    return {
        "uid": uid,
        "call": call_uid,
        "backend": call.backend,
        "operation": call.operation,
        "attempt": _named(command, call),
        "look": not call.attempts,
        "failed": _failed(command),
        "argv": _shortened(command.argv),
        "exit_code": command.exit_code,
        "stderr": storable(command.stderr),
        "start_time": command.start_time,
        "duration_us": command.duration // timedelta(microseconds=1),
        "jobs": call.jobs,
    }


def _named(command: Command, call: _Call) -> str:
    """The one attempt that a command names by its token; most name none or many."""
    if len(call.attempts) < 2:
        return ""
    tokens = {token for word in command.argv for token in _TOKEN.findall(word)}
    uids = {uid_of_token(token) for token in tokens}
    named = {uid for uid in uids if is_uid(uid)} & set(call.attempts)
    return named.pop() if len(named) == 1 else ""


def _failed(command: Command) -> bool:
    if command.exit_code is None:
        return True
    if command.argv and command.argv[0] in _METHODS:
        return not 200 <= command.exit_code < 400
    return command.exit_code != 0


def _shortened(argv: Sequence[str]) -> list[str]:
    """As many words as one can read."""
    words: list[str] = []
    room = _ARGV_CHARS
    for word in argv:
        if len(word) > room:
            return [*words, f"{storable(word[:room])}… and {len(argv) - len(words) - 1} more words"]
        words.append(storable(word))
        room -= len(word)
    return words
