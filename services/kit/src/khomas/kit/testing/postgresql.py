"""A real PostgreSQL server for tests, thrown away afterwards, and fixtures on top of it."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import asyncpg
import pytest
from sqlalchemy import make_url

_STARTUP_SECONDS = 30
_ROOM_BYTES = 2**31
# Speed over safety: the data does not outlive the test.
_SETTINGS = {
    "listen_addresses": "",
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "shared_buffers": "32MB",
    "max_connections": "60",
    "autovacuum": "off",
}
_DURABLE = {"listen_addresses": "", "shared_buffers": "256MB", "max_connections": "60"}


@dataclass(frozen=True, slots=True)
class PostgresqlServer:
    """A running server, reachable through a socket in its folder only."""

    folder: Path
    user: str

    def url(self, database: str) -> str:
        """Return the SQLAlchemy address of one of its databases."""
        return f"postgresql+asyncpg://{self.user}@/{database}?host={self.folder}"

    async def create_database(self) -> str:
        """Make an empty database and return its address."""
        name = f"test_{uuid4().hex}"
        await self._run(f'CREATE DATABASE "{name}" STRATEGY FILE_COPY')
        return self.url(name)

    async def drop_database(self, url: str) -> None:
        """Remove a database that `create_database` made."""
        await self._run(f'DROP DATABASE "{make_url(url).database}" WITH (FORCE)')

    async def _run(self, statement: str) -> None:
        connection = await asyncpg.connect(host=str(self.folder), user=self.user, database="postgres")
        try:
            await connection.execute(statement)
        finally:
            await connection.close()


@contextmanager
def postgresql_server(*, durable: bool = False) -> Iterator[PostgresqlServer]:
    """Run a server in a temporary folder; started by root it runs as `postgres` or `nobody`.

    A durable one keeps what it acknowledged through a power cut, on a disk, as in production: for measurements.
    """
    user = _unprivileged()
    folder = Path(tempfile.mkdtemp(prefix="khomas-pg-", dir=None if durable else _memory()))
    data = folder / "data"
    try:
        if user is not None:
            shutil.chown(folder, user)
        setup: list[str | Path] = [_program("initdb"), "--pgdata", data, "--username", "khomas", "--auth", "trust"]
        setup += ["--encoding", "UTF8", "--locale", "C.UTF-8", "--no-sync"]
        _run_as(user, setup, folder).wait(_STARTUP_SECONDS)
        settings = _DURABLE if durable else _SETTINGS
        options = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
        server: list[str | Path] = [_program("postgres"), "-D", data, "-k", folder, *options]
        process = _run_as(user, server, folder)
        try:
            _wait_until_ready(process, folder)
            yield PostgresqlServer(folder, "khomas")
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(_STARTUP_SECONDS)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _memory() -> Path | None:
    """Find a file system in memory, where a new database takes 15 ms instead of 110."""
    place = Path("/dev/shm")  # noqa: S108  mkdtemp makes the folder ours alone
    roomy = place.is_dir() and shutil.disk_usage(place).free > _ROOM_BYTES
    return place if roomy else None


def _run_as(user: str | None, command: Sequence[str | Path], folder: Path) -> "subprocess.Popen[bytes]":
    with (folder / "log").open("ab") as log:
        if user is None:
            return subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        group = pwd.getpwnam(user).pw_gid
        return subprocess.Popen(command, cwd=folder, user=user, group=group, extra_groups=[], stdout=log, stderr=log)


def _unprivileged() -> str | None:
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return next(name for name in ("postgres", "nobody") if name in names)


def _program(name: str) -> str:
    """Find a server program on the PATH or where Debian keeps the newest version."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name))
    found = shutil.which(name, path=os.pathsep.join([*map(str, reversed(folders)), os.defpath, os.environ["PATH"]]))
    if found is None:
        raise RuntimeError(f"{name} is not installed; install the PostgreSQL server (Debian: postgresql)")
    return found


def _wait_until_ready(process: "subprocess.Popen[bytes]", folder: Path) -> None:
    deadline = time.monotonic() + _STARTUP_SECONDS
    # The server writes "ready" into its lock file when it takes connections.
    lock = folder / "data" / "postmaster.pid"
    while not (lock.exists() and "ready" in lock.read_text()):
        if process.poll() is not None or time.monotonic() > deadline:
            raise RuntimeError(f"the server does not start: {(folder / 'log').read_text()}")
        time.sleep(0.02)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgresqlServer]:
    """Run one server for the whole test session."""
    with postgresql_server() as server:
        yield server


@pytest.fixture
async def postgresql_url(postgresql: PostgresqlServer) -> AsyncIterator[str]:
    """Give an empty PostgreSQL database."""
    url = await postgresql.create_database()
    yield url
    await postgresql.drop_database(url)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Give an empty database of each kind in turn."""
    if request.param == "sqlite":
        return f"sqlite+aiosqlite:///{tmp_path / 'test.db'}"
    return str(request.getfixturevalue("postgresql_url"))
