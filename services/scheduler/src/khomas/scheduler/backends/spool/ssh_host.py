"""A submit host behind ssh: one connection for everything, opened again when it breaks."""

import asyncio
import shlex
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from khomas.scheduler.backends.commands import CommandFailedError, Result

_CONNECT_SECONDS = 15.0
_KEEPALIVE_SECONDS = 15


class SshHost:
    """One persistent connection, many channels."""

    local = False

    def __init__(self, address: str, key: Path | None, known_hosts: Path | None, python: str) -> None:
        user, _, place = address.rpartition("@")
        host, _, port = place.partition(":")
        self.python = python
        self._options: dict[str, Any] = {"host": host, "port": int(port or 22)}
        if user:
            self._options["username"] = user
        if key is not None:
            self._options["client_keys"] = [str(key)]
        if known_hosts is not None:
            self._options["known_hosts"] = str(known_hosts)
        self._connection: Any = None
        self._opening = asyncio.Lock()

    async def run(self, argv: Sequence[str], stdin: bytes, seconds: float) -> Result:
        """Run one program. Raises `CommandFailedError`."""
        import asyncssh

        try:
            async with asyncio.timeout(seconds):
                connection = await self._connected()
                done = await connection.run(shlex.join(argv), input=stdin, encoding=None, check=False)
        except (asyncssh.Error, OSError, TimeoutError) as error:
            self._drop()
            raise CommandFailedError(f"{self._options['host']} does not answer over ssh: {_said(error)}") from error
        if done.exit_status is None and done.exit_signal is None:
            self._drop()
            raise CommandFailedError(f"the connection to {self._options['host']} broke")
        return Result(done.exit_status, done.stdout or b"", done.stderr or b"")

    async def install(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Write files that are not there yet."""
        import asyncssh

        try:
            async with asyncio.timeout(4 * _CONNECT_SECONDS):
                connection = await self._connected()
                async with connection.start_sftp_client() as sftp:
                    await sftp.makedirs(folder, exist_ok=True)
                    for name, content in files.items():
                        if await sftp.exists(f"{folder}/{name}"):
                            continue
                        # Several services may install at the same time.
                        hidden = f"{folder}/.{name}.{uuid.uuid4().hex}"
                        async with sftp.open(hidden, "wb") as target:
                            await target.write(content)
                        await sftp.posix_rename(hidden, f"{folder}/{name}")
        except (asyncssh.Error, OSError, TimeoutError) as error:
            self._drop()
            raise CommandFailedError(f"{self._options['host']} takes no files: {_said(error)}") from error

    async def get(self, path: str, target: str) -> None:
        """Bring a file here."""
        connection = await self._connected()
        async with connection.start_sftp_client() as sftp:
            await sftp.get(path, target)

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connection is not None:
            self._connection.close()
            await self._connection.wait_closed()
            self._connection = None

    async def _connected(self) -> Any:
        import asyncssh

        async with self._opening:
            if self._connection is None or self._connection.is_closed():
                async with asyncio.timeout(_CONNECT_SECONDS):
                    self._connection = await asyncssh.connect(**self._options, keepalive_interval=_KEEPALIVE_SECONDS)
            return self._connection

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.abort()
            self._connection = None


def _said(error: Exception) -> str:
    return str(error) or "no answer in time"
