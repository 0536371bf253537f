"""Addresses that storages give away themselves, so that the bytes need not pass our door."""

import logging
from collections.abc import Iterable
from datetime import timedelta

from khomas.api.catalog.v1 import file_pb2
from khomas.storage.elements import Element, Protocols
from khomas.storage.errors import ProtocolUnknown
from khomas.storage.protocols.interface import Lending, ProtocolFault, Remote

log = logging.getLogger(__name__)

Place = tuple[Element, file_pb2.Replica]


async def lent(protocols: Protocols, places: Iterable[Place], lifetime: timedelta) -> dict[tuple[str, str], Remote]:
    """Return what is given for reading, by StorageElement and path; where nothing is, there is the door."""
    by_element: dict[str, list[Place]] = {}
    for place in places:
        by_element.setdefault(place[0].id, []).append(place)
    found: dict[tuple[str, str], Remote] = {}
    for some in by_element.values():
        element = some[0][0]
        try:
            protocol = protocols.of(element)
            if not isinstance(protocol, Lending):
                continue
            remotes = await protocol.lend([replica.path for _, replica in some], lifetime)
        except (ProtocolFault, ProtocolUnknown) as fault:
            # The door may have more luck, or tells why not.
            log.info("storage.nothing_lent", extra={"element": element.id, "error": fault.message})
            continue
        found |= {(element.id, replica.path): remote for (_, replica), remote in zip(some, remotes, strict=True)}
    return found
