"""One kept connection to one server, with a few sessions of SFTP over it; opened again when it breaks."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from time import monotonic
from typing import TypeVar

import asyncssh

from khomas.kit.credentials import CredentialProvider
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.protocols.sftp.answers import fault_of, is_lost
from khomas.storage.protocols.sftp.login import connected
from khomas.storage.protocols.sftp.settings import Place, SftpSettings

Result = TypeVar("Result")


@dataclass(eq=False, slots=True)
class _Session:
    """A process on the server that answers one request after the other."""

    client: asyncssh.SFTPClient
    # Bytes go over it: a question behind them would wait for them.
    moving: bool
    users: int = 0


class Host:
    """Gives sessions; opens nothing before the first one."""

    def __init__(self, place: Place, settings: SftpSettings, credential: CredentialProvider | None) -> None:
        self._place = place
        self._settings = settings
        self._credential = credential
        self._connection: asyncssh.SSHClientConnection | None = None
        self._sessions: list[_Session] = []
        self._most = settings.sessions
        self._opening = asyncio.Lock()
        self._failed: tuple[float, ProtocolFault] | None = None

    async def ready(self) -> None:
        """Have a session for questions, or raise why there is none."""
        await self._chosen(moving=False)

    async def call(self, action: Callable[[asyncssh.SFTPClient], Awaitable[Result]], *, again: bool = True) -> Result:
        """Ask something; again over a new connection if a kept one was broken, which says nothing of the server."""
        try:
            async with self.session() as client:
                return await action(client)
        except ProtocolFault as fault:
            # A login that failed is no such thing: servers shut out those who try too often.
            broken = fault.problem is Problem.PASSING and is_lost(fault.__cause__)
            if not again or not broken or isinstance(fault.__cause__, TimeoutError):
                raise
        async with self.session() as client:
            return await action(client)

    @asynccontextmanager
    async def session(self, *, moving: bool = False) -> AsyncIterator[asyncssh.SFTPClient]:
        """Lend a session, for questions or for bytes; errors come out as ProtocolFault."""
        session = await self._chosen(moving=moving)
        session.users += 1
        try:
            yield session.client
        except (asyncssh.Error, OSError) as error:
            if is_lost(error) and session in self._sessions:
                self._sessions.remove(session)
            raise fault_of(error) from error
        finally:
            session.users -= 1
            if not session.users and session not in self._sessions:
                # Given up; on a connection that is gone there is nothing to end.
                with suppress(asyncssh.Error, OSError):
                    session.client.exit()

    async def close(self) -> None:
        """End the connection."""
        connection, self._connection, self._sessions = self._connection, None, []
        if connection is None:
            return
        connection.close()
        try:
            async with asyncio.timeout(self._settings.connect_seconds):
                await connection.wait_closed()
        except TimeoutError:
            connection.abort()

    async def _chosen(self, *, moving: bool) -> _Session:
        if (session := self._there(moving)) is not None:
            return session
        # Whoever asked may go away: what is half open then would be open for ever, and known to nobody.
        return await asyncio.shield(asyncio.ensure_future(self._opened_once(moving, monotonic())))

    async def _opened_once(self, moving: bool, asked: float) -> _Session:
        """Open a session, one after the other; an attempt that failed speaks for all who waited for it."""
        async with self._opening:
            if (session := self._there(moving)) is not None:
                return session
            if self._failed is not None and self._failed[0] >= asked:
                raise self._failed[1]
            try:
                return await self._opened(moving)
            except ProtocolFault as fault:
                self._failed = (monotonic(), fault)
                raise

    def _there(self, moving: bool) -> _Session | None:
        """Return the session with the fewest users, unless a new one may be opened instead."""
        if self._connection is None or self._connection.is_closed():
            self._connection, self._sessions = None, []
            return None
        best = self._least_used(moving)
        if self._sessions and len(self._sessions) >= self._most:
            return best or self._least_used(not moving)
        return None if best is None or (moving and best.users) else best

    def _least_used(self, moving: bool) -> _Session | None:
        alike = (session for session in self._sessions if session.moving == moving)
        return min(alike, key=lambda session: session.users, default=None)

    async def _opened(self, moving: bool) -> _Session:
        if self._connection is not None:
            try:
                return await self._another(self._connection, moving)
            except (asyncssh.Error, OSError):
                # It breaks without a word when a firewall has forgotten it.
                self._connection.abort()
                self._connection, self._sessions = None, []
        self._connection = connection = await connected(self._place, self._settings, self._credential)
        self._most = self._settings.sessions
        try:
            return await self._another(connection, moving)
        except (asyncssh.ChannelOpenError, asyncssh.SFTPError) as error:
            raise ProtocolFault(Problem.CONFIGURATION, f"{self._place} offers no SFTP: {error}") from error
        except (asyncssh.Error, OSError) as error:
            raise fault_of(error) from error

    async def _another(self, connection: asyncssh.SSHClientConnection, moving: bool) -> _Session:
        try:
            async with asyncio.timeout(self._settings.connect_seconds):
                client = await connection.start_sftp_client(path_errors="surrogateescape")
        except asyncssh.ChannelOpenError:
            # The server allows no more: we share what there is.
            self._most = len(self._sessions)
            shared = self._least_used(moving) or self._least_used(not moving)
            if shared is None:
                raise
            return shared
        session = _Session(client, moving)
        self._sessions.append(session)
        return session
