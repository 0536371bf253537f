"""Where the commands of a batch system run: this machine, or a submit host behind ssh."""

import asyncio
import functools
import hashlib
import json
import os
import shutil
import sys
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from khomas.scheduler.backends import commands
from khomas.scheduler.backends.commands import CommandFailedError
from khomas.scheduler.wrapper import JOB_WRAPPER, LOCAL_RUNNER, PILOT, POOL_KEEPER, SPOOL_KEEPER, STARTER

# Beyond the deadline of the batch system's own commands, for the start of the keeper and the way there.
_MARGIN_SECONDS = 15.0
_PROGRAMS = (STARTER, JOB_WRAPPER, SPOOL_KEEPER, POOL_KEEPER, PILOT, LOCAL_RUNNER)
_KEPT = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TZ", "TMPDIR", "XDG_RUNTIME_DIR")


class Host(Protocol):
    """A machine with the commands of a batch system and the folder of its jobs."""

    # The service sees the folder of jobs under the same path.
    local: bool
    # Python of that machine.
    python: str

    async def run(self, argv: Sequence[str], stdin: bytes, seconds: float) -> commands.Result:
        """Run one program. Raises `CommandFailedError`."""

    async def install(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Write files that are not there yet, whole or not at all."""

    async def get(self, path: str, target: str) -> None:
        """Bring a file here."""

    async def aclose(self) -> None:
        """Let go of connections."""


@dataclass(slots=True)
class LocalHost:
    """This machine."""

    # Goes in front of every program: `nsenter …`, `setpriv …`, `sudo -u prod`.
    prefix: Sequence[str] = ()
    python: str = field(default_factory=lambda: sys.executable)
    local: bool = True

    async def run(self, argv: Sequence[str], stdin: bytes, seconds: float) -> commands.Result:
        """Run one program."""
        # The service's own environment holds secrets that are none of the batch system's business.
        env = {name: os.environ[name] for name in _KEPT if name in os.environ}
        return await commands.run([*self.prefix, *argv], stdin=stdin, env=env, seconds=seconds, noted=False)

    async def install(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Write files that are not there yet."""
        await asyncio.to_thread(_install, Path(folder), files)

    async def get(self, path: str, target: str) -> None:
        """Copy a file."""
        await asyncio.to_thread(shutil.copyfile, path, target)

    async def aclose(self) -> None:
        """Do nothing."""


def _install(folder: Path, files: Mapping[str, bytes]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        if not (folder / name).exists():
            hidden = folder / f".{name}.{uuid.uuid4().hex}"
            hidden.write_bytes(content)
            hidden.chmod(0o755)
            hidden.rename(folder / name)


class Keeper:
    """Speaks to the spool keeper on a host; brings it and the others there, into a folder named by their content."""

    def __init__(self, host: Host, spool: str, env: Mapping[str, str], seconds: float) -> None:
        self.host = host
        self.spool = spool
        self._env = dict(env)
        self._seconds = seconds
        self._ready = False

    def command(self, python: str, program: Path) -> list[str]:
        """How a program is started that was brought to the host."""
        return [python, "-E", "-s", f"{self._programs}/{STARTER.name}", program.stem]

    @property
    def _programs(self) -> str:
        return f"{self.spool}/bin/{_release()}"

    async def ask(self, op: str, *, commands_each: int = 1, **request: Any) -> dict[str, Any]:
        """Ask for one operation. Raises `CommandFailedError` when its outcome is not known."""
        await self._install()
        content = {"op": op, "spool": self.spool, "env": self._env, "seconds": self._seconds, **request}
        seconds = self._seconds * max(1, commands_each) + _MARGIN_SECONDS
        argv = self.command(self.host.python, SPOOL_KEEPER)
        try:
            result = await self.host.run(argv, json.dumps(content).encode(), seconds)
        except FileNotFoundError as error:  # the spool was deleted under our feet
            self._ready = False
            raise CommandFailedError(str(error)) from error
        if result.exit_code != 0:
            self._ready = False
            raise CommandFailedError(f"the spool keeper failed: {result.complaint}")
        answer: dict[str, Any] = json.loads(result.stdout)
        for batch in answer.get("batches", ()):
            _note(batch["commands"])
        _note(answer.get("commands", ()))
        return answer

    async def _install(self) -> None:
        if not self._ready:
            await self.host.install(self._programs, _contents())
            self._ready = True


def _note(ran: Sequence[Mapping[str, Any]]) -> None:
    for one in ran:
        began = datetime.fromtimestamp(one["time"], UTC)
        commands.note(one["argv"], one.get("status", one["exit_code"]), one["stderr"], began, one.get("seconds", 0.0))


@functools.cache
def _contents() -> dict[str, bytes]:
    """What is called must be what was brought there, also when this package is replaced meanwhile."""
    return {program.name: program.read_bytes() for program in _PROGRAMS}


@functools.cache
def _release() -> str:
    return hashlib.sha256(b"".join(_contents().values())).hexdigest()[:12]
