"""Which copy to read: near, on disk, reachable, and over the link that was the fastest."""

from collections.abc import Iterable, Mapping
from typing import Final

from khomas.api.catalog.v1 import file_pb2
from khomas.api.storage.v1 import storage_element_pb2
from khomas.storage.elements.elements import Element
from khomas.storage.links.measures import Measure

Candidate = tuple[Element, file_pb2.Replica]

# Bytes a second to expect where nothing was measured: at the same site, and elsewhere.
_NEAR: Final = 100e6
_FAR: Final = 10e6
_ENOUGH_FILES: Final = 3


def nearest(
    file: file_pb2.File,
    elements: Mapping[str, Element],
    measures: Mapping[tuple[str, str], Measure],
    *,
    destination: str = "",
    site: str = "",
) -> list[Candidate]:
    """Return the copies that can be read, the best first, for a StorageElement or for a reader at a site.

    A reader at a site is served as fast as the StorageElements there.
    """
    there = elements.get(destination)
    site = there.site if there is not None else site
    targets = [destination] if there is not None else [one.id for one in elements.values() if site and one.site == site]

    def rank(candidate: Candidate) -> tuple[bool, bool, float, str]:
        element, _ = candidate
        rate = expected_rate(element, site, targets, measures)
        disk = element.media == storage_element_pb2.StorageElement.MEDIA_DISK
        return not element.reachable, not disk, -rate, element.id

    return sorted(_readable(file, elements), key=rank)


def expected_rate(
    source: Element, site: str, targets: Iterable[str], measures: Mapping[tuple[str, str], Measure]
) -> float:
    """Return how many bytes a second one stream is likely to bring, failures counted in."""
    known = [measures[source.id, target] for target in targets if (source.id, target) in measures]
    rates = [one.stream_rate * one.success for one in known if one.files + one.errors >= _ENOUGH_FILES]
    if rates:
        return max(rates)
    return _NEAR if site and source.site == site else _FAR


def _readable(file: file_pb2.File, elements: Mapping[str, Element]) -> list[Candidate]:
    return [
        (elements[replica.storage_element], replica)
        for replica in file.replicas
        if replica.state == file_pb2.Replica.STATE_AVAILABLE and replica.storage_element in elements
    ]
