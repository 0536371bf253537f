"""A backend plug-in that puts another one in a process that kills itself in the middle of a submission.

No test can do that in time from outside. It is found by the entry point that `entry_point` writes.
"""

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from khomas.kit import plugins
from khomas.scheduler.backends.commands import recording
from khomas.scheduler.backends.interface import Backend, BackendPlugin, SubmitItem, SubmitOutcome
from khomas.scheduler.placement.sites import PLUGINS, with_paths

KIND = "killing"
_ROOT = Path(__file__).parents[2]
_DURING_SECONDS = 0.2


class Moment(StrEnum):
    """When the power is cut."""

    # The attempts are durable, the backend was asked, and has done nothing.
    BEFORE = "before"
    # Somewhere on the way to the batch system.
    DURING = "during"
    # The batch system has answered, the backend has not come to think about it.
    AFTER = "after"
    # The scheduler has the answer, and has not written it down.
    REPLY = "reply"


@dataclass(frozen=True, slots=True)
class KillingSettings:
    """The backend inside, and when to die."""

    kind: str
    options: Mapping[str, Any]
    moment: str


class KillingBackend:
    """Does what the other one does, until something is submitted."""

    def __init__(self, backend: Backend, moment: Moment) -> None:
        self._backend = backend
        self._moment = moment

    def __getattr__(self, name: str) -> Any:
        return getattr(self._backend, name)

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Die at the moment."""
        if self._moment is Moment.BEFORE:
            _die()
        if self._moment is Moment.DURING:
            asyncio.get_running_loop().call_later(_DURING_SECONDS, _die)
        with recording() as commands:
            submission = asyncio.ensure_future(self._backend.submit(items))
            while self._moment is Moment.AFTER and not (commands or submission.done()):
                await asyncio.sleep(0.0005)
            if self._moment is Moment.AFTER:
                _die()
            outcomes = await submission
        _die()
        return outcomes


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _open(settings: KillingSettings) -> Backend:
    plugin: BackendPlugin[Any] = plugins.load(plugins.installed(PLUGINS)[settings.kind])
    backend = plugin.open(plugin.settings(**with_paths(plugin, settings.options)))
    return cast("Backend", KillingBackend(backend, Moment(settings.moment)))


plugin = BackendPlugin(name=KIND, settings=KillingSettings, open=_open)


def entry_point(folder: Path) -> dict[str, str]:
    """Install it there; the environment in which it is found."""
    installed = folder / "khomas_killing-0.dist-info"
    installed.mkdir(parents=True, exist_ok=True)
    (installed / "METADATA").write_text("Metadata-Version: 2.1\nName: khomas-killing\nVersion: 0\n")
    (installed / "entry_points.txt").write_text(f"[{PLUGINS}]\n{KIND} = {__name__}:plugin\n")
    before = os.environ.get("PYTHONPATH", "")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(_ROOT), *([before] if before else [])])}
