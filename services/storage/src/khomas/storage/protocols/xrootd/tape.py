"""Recalls by `prepare`: one request for many files, asked after in bulk. CTA, EOS, HPSS behind XRootD.

The answers are those of CTA: https://eoscta.docs.cern.ch/#query-prepare
"""

import json
import random
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import timedelta
from typing import Any, Final, TypeVar

from XRootD.client.flags import PrepareFlags, QueryCode, StatInfoFlags

from khomas.storage.protocols.interface import Locality, Problem, ProtocolFault, Recall, Recalling
from khomas.storage.protocols.many import each
from khomas.storage.protocols.xrootd.answers import text_of
from khomas.storage.protocols.xrootd.login import Ticket
from khomas.storage.protocols.xrootd.server import Server

Result = TypeVar("Result")

# Of questions at once: each starts a program at the server.
_QUESTIONS: Final = 4
# Of one question: servers before 5.6 tell nothing where the answer would have more than 2 KiB.
_FEW: Final = 8
_MANY: Final = 500
# Asked at once how far they are; of the others the files are looked for, and they have their turn the next time.
_QUESTIONED: Final = 200
_ANY_REQUEST: Final = "*"
_STILL_WAITING: Final[Mapping[str, Any]] = {"has_reqid": True}


class RootTape:
    """The tape behind an XRootD server."""

    def __init__(self, server: Server) -> None:
        self._server = server
        # Files of one question: grows until the server cannot answer.
        self._asking = _FEW
        self._most = _MANY

    async def locality(self, paths: Sequence[str]) -> list[Locality | ProtocolFault]:
        """Look at the files, then ask about those that are not on disk."""
        return await self._about(paths, _ANY_REQUEST, _online_locality, _locality)

    async def stage(self, paths: Sequence[str], lifetime: timedelta) -> list[str | ProtocolFault]:
        """Send as few requests as the server takes; it has no words for a lifetime."""

        async def ask(ticket: Ticket, some: Sequence[str]) -> str:
            answer = await self._prepare(ticket, [self._on(ticket, path) for path in some], PrepareFlags.STAGE)
            return text_of(answer)

        return await self._some(paths, ask)

    async def staging(self, request: str, paths: Sequence[str]) -> list[Recalling | ProtocolFault]:
        """Look at the files, then ask about those that are not on disk, or about some of them if they are many."""
        told = _recalling_any if request == _ANY_REQUEST else _recalling
        most = None if request == _ANY_REQUEST else max(_QUESTIONED, _QUESTIONS * self._asking)
        return await self._about(paths, request, lambda: Recalling(Recall.DONE), told, most)

    async def cancel(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Take these files out of the request, or, where the server can only do that, the whole of it."""

        async def ask(ticket: Ticket, some: Sequence[str]) -> None:
            names = [request, *(self._on(ticket, path) for path in some)]
            await self._prepare(ticket, names, PrepareFlags.CANCEL)

        return await self._some(paths, ask)

    async def release(self, request: str, paths: Sequence[str]) -> list[ProtocolFault | None]:
        """Let go of the copies on disk."""

        async def ask(ticket: Ticket, some: Sequence[str]) -> None:
            await self._prepare(ticket, [self._on(ticket, path) for path in some], PrepareFlags.EVICT)

        done = await self._some(paths, ask)
        return [None if isinstance(one, ProtocolFault) and one.problem is Problem.ABSENT else one for one in done]

    # ------------------------------------------------------------------------------------------------ requests

    async def _some(
        self, paths: Sequence[str], ask: Callable[[Ticket, Sequence[str]], Awaitable[Result]]
    ) -> list[Result | ProtocolFault]:
        """Ask about as many at once as the server takes; all of a request share its answer."""
        if not paths:
            return []
        try:
            ticket = await self._server.ticket()
        except ProtocolFault as fault:
            return [fault for _ in paths]
        size = self._server.settings.stage_files
        groups = [paths[start : start + size] for start in range(0, len(paths), size)]
        done = await each(
            lambda some: ask(ticket, some), groups, at_once=_QUESTIONS, seconds=2 * self._server.settings.seconds
        )
        return [result for some, result in zip(groups, done, strict=True) for _ in some]

    async def _prepare(self, ticket: Ticket, names: list[str], flags: int) -> bytes:
        answer: bytes = await self._server.do(ticket, "prepare", names, flags)
        return answer or b""

    async def _about(
        self,
        paths: Sequence[str],
        request: str,
        online: Callable[[], Result],
        told: Callable[[Mapping[str, Any]], Result | ProtocolFault],
        most: int | None = None,
    ) -> list[Result | ProtocolFault]:
        if not paths:
            return []
        try:
            ticket = await self._server.ticket()
        except ProtocolFault as fault:
            return [fault for _ in paths]
        seen = await each(
            lambda path: self._flags(ticket, path), paths, at_once=self._server.settings.requests,
            seconds=2 * self._server.settings.seconds,
        )  # fmt: skip
        # Not told by a look: what is on tape alone, and, of what is on disk too, whether it is on tape.
        asked = [path for path, flags in zip(paths, seen, strict=True) if not _is_plainly_online(flags, online)]
        some = asked if most is None or len(asked) <= most else random.sample(asked, most)
        answers = await self._answers(ticket, request, some)
        unasked = {path: told(_STILL_WAITING) for path in asked if path not in answers}
        return [
            _of(answers[path], told) if path in answers else unasked[path] if path in unasked else online()
            for path in paths
        ]

    async def _flags(self, ticket: Ticket, path: str) -> int:
        found = await self._server.do(ticket, "stat", self._on(ticket, path))
        return int(found.flags)

    async def _answers(
        self, ticket: Ticket, request: str, paths: Sequence[str]
    ) -> dict[str, Mapping[str, Any] | ProtocolFault]:
        answers: dict[str, Mapping[str, Any] | ProtocolFault] = {}
        left = list(paths)
        while left:
            size = self._asking
            groups = [left[start : start + size] for start in range(0, len(left), size)]
            done = await each(
                lambda some: self._question(ticket, request, some), groups, at_once=_QUESTIONS,
                seconds=2 * self._server.settings.seconds,
            )  # fmt: skip
            left = []
            for some, told in zip(groups, done, strict=True):
                if told is None and len(some) > 1:
                    left.extend(some)
                    self._most = self._asking = max(1, min(self._asking, len(some) // 2))
                elif isinstance(told, ProtocolFault) or told is None:
                    cut = ProtocolFault(Problem.PASSING, "the answer of the tape system was cut off")
                    answers.update(dict.fromkeys(some, told or cut))
                else:
                    answers.update(zip(some, told, strict=True))
            if not left and len(paths) >= size:
                self._asking = min(2 * self._asking, self._most)
        return answers

    async def _question(
        self, ticket: Ticket, request: str, paths: Sequence[str]
    ) -> list[Mapping[str, Any] | ProtocolFault] | None:
        """Ask about some files; None if the answer was cut off."""
        names = [self._on(ticket, path) for path in paths]
        answer = await self._server.query(ticket, QueryCode.PREPARE, "\n".join([request, *names]))
        return answered(answer, [self._server.place.at(path) for path in paths])

    def _on(self, ticket: Ticket, path: str) -> str:
        return ticket.on(self._server.place.at(path))


def answered(answer: bytes, paths: Sequence[str]) -> list[Mapping[str, Any] | ProtocolFault] | None:
    """Return what an answer tells of each path, in order; None if it is not whole."""
    try:
        told = json.loads(text_of(answer))
        by_path = {_path(one): one for one in _responses(told)}
    except (ValueError, AttributeError, TypeError):
        return None
    missing = ProtocolFault(Problem.PASSING, "the tape system says nothing about this file")
    return [by_path.get(path, missing) for path in paths]


def _responses(told: Any) -> Iterable[Mapping[str, Any]]:
    responses: Iterable[Mapping[str, Any]] = told["responses"] if isinstance(told, dict) else told
    return responses


def _path(one: Mapping[str, Any]) -> str:
    return str(one.get("path", "")).partition("?")[0]


def _is_plainly_online(flags: int | ProtocolFault, online: Callable[[], object]) -> bool:
    if isinstance(flags, ProtocolFault) or flags & StatInfoFlags.OFFLINE:
        return False
    return online is not _online_locality or bool(flags & StatInfoFlags.BACKUP_EXISTS)


def _online_locality() -> Locality:
    return Locality.BOTH


def _locality(told: Mapping[str, Any]) -> Locality | ProtocolFault:
    if told.get("online"):
        return Locality.BOTH if told.get("on_tape") else Locality.DISK
    if told.get("on_tape"):
        return Locality.TAPE
    if told.get("path_exists", True) and (text := told.get("error_text")):
        return ProtocolFault(Problem.PASSING, str(text))
    return Locality.LOST if told.get("path_exists") else Locality.NONE


def _recalling(told: Mapping[str, Any]) -> Recalling:
    place = told.get("queue_position")
    if told.get("online"):
        return Recalling(Recall.DONE)
    if text := told.get("error_text"):
        return Recalling(Recall.FAILED, str(text))
    if told.get("has_reqid"):
        return Recalling(Recall.WAITING, queue_position=place if isinstance(place, int) else None)
    # Asked after before the request has come there, which happens.
    return Recalling(Recall.UNKNOWN, "the tape system does not know the request")


def _recalling_any(told: Mapping[str, Any]) -> Recalling:
    # Whether anybody has asked for it: nobody remembers which request it was.
    return _recalling({"has_reqid": told.get("requested"), **{k: v for k, v in told.items() if k != "has_reqid"}})


def _of(
    told: Mapping[str, Any] | ProtocolFault, meaning: Callable[[Mapping[str, Any]], Result | ProtocolFault]
) -> Result | ProtocolFault:
    return told if isinstance(told, ProtocolFault) else meaning(told)
