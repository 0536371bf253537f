"""Addresses that storages give away themselves, so that the bytes need not pass our door."""

import logging
from collections.abc import Iterable, Sequence
from datetime import timedelta

from khomas.api.catalog.v1 import file_pb2
from khomas.storage.elements.elements import Element, Protocols
from khomas.storage.errors import ProtocolUnknown
from khomas.storage.protocols.interface import Lending, Problem, ProtocolFault, Remote

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
        for (_, replica), given in zip(some, await _given(protocols, element, some, lifetime), strict=True):
            if isinstance(given, Remote):
                found[element.id, replica.path] = given
            elif given.problem is not Problem.UNSUPPORTED:
                # The door may have more luck, or tells why not.
                log.info("storage.nothing_lent", extra={"element": element.id, "error": given.message})
    return found


async def _given(
    protocols: Protocols, element: Element, places: Sequence[Place], lifetime: timedelta
) -> list[Remote | ProtocolFault]:
    try:
        protocol = protocols.of(element)
        if isinstance(protocol, Lending):
            return await protocol.lend([replica.path for _, replica in places], lifetime)
    except ProtocolUnknown as error:
        return [ProtocolFault(Problem.UNSUPPORTED, error.message)] * len(places)
    except ProtocolFault as fault:
        return [fault] * len(places)
    return [ProtocolFault(Problem.UNSUPPORTED, "it lends nothing")] * len(places)
