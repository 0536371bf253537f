"""StorageElements as places for the copies of a rule."""

from collections.abc import Mapping

from khomas.storage.elements.elements import Element, Usage
from khomas.storage.elements.space import available
from khomas.storage.protocols.interface import Room
from khomas.storage.rules.expressions import parse
from khomas.storage.rules.placing import Place


def places_of(expression: str, elements: Mapping[str, Element], used: Mapping[str, Usage]) -> list[Place]:
    """Return the places that an expression means, and those that are being drained: nothing stays there."""
    node = parse(expression)
    return [
        _place(element, used.get(element.id, Usage()))
        for element in elements.values()
        if node.matches(element) or element.draining
    ]


def _place(element: Element, usage: Usage) -> Place:
    return Place(
        id=element.id,
        site=element.site,
        weight=element.weight or 1,
        free_bytes=free_bytes(element, usage),
        reachable=element.reachable,
        takes_files=element.takes_files,
        draining=element.draining,
    )


def free_bytes(element: Element, usage: Usage) -> int | None:
    """Return the space that nobody has been promised, as of the last look; None if it cannot be told."""
    return available(element, usage, Room(element.free_bytes if element.free_bytes >= 0 else None, None))
