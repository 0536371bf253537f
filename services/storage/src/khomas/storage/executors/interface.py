"""What an executor is: an engine that moves files between storages for us.

It takes a batch, is asked how far its batches are, and cancels. It never decides anything about our files: it writes to
hidden names, and what it says it has moved is verified and named by us. After a crash the ids of its batches are known
from the database; a batch that it took before we could note that is moved for nothing, and tidied away.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from khomas.kit.credentials import CredentialProvider
from khomas.storage.landing import Wanted


class Phase(StrEnum):
    """Where one file of a batch stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Order:
    """One file to move."""

    # Of the transfer.
    uid: str
    source_url: str
    destination_url: str
    wanted: Wanted
    priority: int


@dataclass(frozen=True, slots=True)
class Standing:
    """How far one file is."""

    phase: Phase
    bytes: int = 0
    # The engine's own words.
    message: str = ""


class ExecutorFault(Exception):
    """The engine does not answer, or refuses; `passing` tells whether asking again may help."""

    def __init__(self, message: str, *, passing: bool) -> None:
        super().__init__(message)
        self.message = message
        self.passing = passing


class Executor(Protocol):
    """One engine. Every method bounds its time, and raises only ExecutorFault."""

    async def take(self, orders: Sequence[Order]) -> str:
        """Take a batch and return its id there."""

    async def poll(self, batches: Sequence[str]) -> Mapping[str, Mapping[str, Standing]]:
        """Tell for each batch how far its files are, by transfer; one that it does not know is left out."""

    async def cancel(self, batches: Sequence[str]) -> None:
        """Move nothing more of them."""

    async def close(self) -> None:
        """End connections."""


@dataclass(frozen=True, slots=True)
class Settings:
    """How an executor is reached, from the settings of the service."""

    address: str
    credential: CredentialProvider | None
    options: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Plugin:
    """What an entry point gives: opens an executor without any connection, or raises ValueError."""

    open: Callable[[Settings], Executor]
