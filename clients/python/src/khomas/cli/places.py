"""What people write for a file: on this machine, in the catalogue, or a StorageElement."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from khomas.client.async_client import AsyncClient

HELP = "file:PATH, lfn:NAME and se:NAME are explicit"


class Kind(StrEnum):
    """Where a place is."""

    LOCAL = "file"
    LFN = "lfn"
    ELEMENT = "se"


@dataclass(frozen=True, slots=True)
class Place:
    """A place as it was meant."""

    kind: Kind
    text: str
    # Named with a slash at the end: what comes goes into it.
    folder: bool = False

    @property
    def path(self) -> Path:
        """Return it as a path of this machine."""
        return Path(self.text)


async def place_of(client: "AsyncClient", text: str) -> Place:
    """Tell what is meant: relative paths are local, absolute ones are LFNs if the catalogue has their first segment."""
    kind, colon, rest = text.partition(":")
    if colon and kind in list(Kind):
        return _place(Kind(kind), rest)
    if not text.startswith("/"):
        return _place(Kind.LOCAL, text)
    return _place(await _kind_of(client, text), text)


def _place(kind: Kind, text: str) -> Place:
    if not text:
        raise click.UsageError(f"{kind}: needs a name after it")
    if kind is Kind.LFN and not text.startswith("/"):
        raise click.UsageError(f"an LFN begins with /: lfn:/{text}")
    # The top of the catalogue is "".
    bare = text if kind is Kind.LOCAL else text.rstrip("/")
    return Place(kind, bare, folder=text.endswith("/"))


async def _kind_of(client: "AsyncClient", text: str) -> Kind:
    top = "/" + text.strip("/").partition("/")[0]
    here, there = _is_here(top), await _is_in_catalogue(client, top)
    if here == there:
        where = "both on this machine and in the catalogue" if here else "neither on this machine nor in the catalogue"
        raise click.UsageError(f"{top} is {where}; write file:{text} or lfn:{text}")
    return Kind.LOCAL if here else Kind.LFN


def _is_here(top: str) -> bool:
    return top != "/" and Path(top).exists()


async def _is_in_catalogue(client: "AsyncClient", top: str) -> bool:
    from khomas.api.catalog.v1 import catalog_service_pb2 as pb
    from khomas.client.errors import UNREACHABLE, KhomasError

    request = pb.ListDirectoryRequest(directory=top, page_size=1)
    try:
        return bool((await client.connection.call("catalog", "ListDirectory", request)).entries)
    except KhomasError as error:
        if error.exit_code == UNREACHABLE:
            raise
        # Who may not look there has to say what is meant.
        return False
