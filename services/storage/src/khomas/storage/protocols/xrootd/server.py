"""Requests to one server, over connections that the library keeps."""

from collections.abc import AsyncGenerator
from typing import Any

from XRootD import client
from XRootD.client.flags import QueryCode

from khomas.kit.credentials import CredentialProvider
from khomas.storage.protocols.xrootd.answers import text_of
from khomas.storage.protocols.xrootd.library import call, parts
from khomas.storage.protocols.xrootd.login import Login, Ticket
from khomas.storage.protocols.xrootd.settings import Place, XrootdSettings


class Server:
    """Names and questions; every method takes a ticket, so that a bulk call reads its credential once."""

    def __init__(self, place: Place, settings: XrootdSettings, credential: CredentialProvider | None) -> None:
        self.place = place
        self.settings = settings
        self._login = Login(place, settings, credential)
        self._systems: dict[str, Any] = {}

    async def ticket(self) -> Ticket:
        """Return what lets in, or raise CREDENTIAL."""
        return await self._login.ticket()

    def url(self, ticket: Ticket, path: str, *more: str) -> str:
        """Return the address of a path as files are opened."""
        return self._base(self.place, "/" + ticket.on(self.place.at(path), *more, ticket.login))

    async def do(self, ticket: Ticket, action: str, *arguments: Any) -> Any:
        """Have the server do something: a method of the library's FileSystem."""
        return await call(getattr(self._system(ticket), action), *arguments, seconds=self.settings.seconds)

    async def query(self, ticket: Ticket, code: int, text: str, seconds: float | None = None) -> bytes:
        """Ask it something."""
        answer: bytes = await call(self._system(ticket).query, code, text, seconds=seconds or self.settings.seconds)
        return answer or b""

    def listing(self, ticket: Ticket, path: str, flags: int) -> AsyncGenerator[Any, None]:
        """List a folder, part by part."""
        return parts(
            self._system(ticket).dirlist,
            ticket.on(self.place.at(path)),
            flags,
            seconds=self.settings.checksum_seconds,
            idle_seconds=self.settings.idle_seconds,
        )

    async def config(self, ticket: Ticket, name: str) -> str:
        """Ask for a setting of the server; one that it does not know is its own name."""
        answer = await self.query(ticket, QueryCode.CONFIG, name)
        return text_of(answer)

    def _system(self, ticket: Ticket) -> Any:
        if ticket.login not in self._systems:
            query = f"/?{ticket.login}" if ticket.login else ""
            self._systems[ticket.login] = client.FileSystem(self._base(self.place, query))
        return self._systems[ticket.login]

    @staticmethod
    def _base(place: Place, rest: str) -> str:
        return f"{place.scheme}://{place.server}{rest}"
