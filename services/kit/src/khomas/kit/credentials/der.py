"""Reads DER as far as attribute certificates need it."""

from collections.abc import Iterator
from dataclasses import dataclass

SEQUENCE, SET, OCTETS, OID, GENERALIZED_TIME = 0x30, 0x31, 0x04, 0x06, 0x18


class NotDer(ValueError):
    """The bytes are not DER."""


@dataclass(frozen=True, slots=True)
class Element:
    """A tag with its content."""

    tag: int
    content: bytes

    def children(self) -> list["Element"]:
        """What it is made of."""
        return list(elements(self.content))

    def walk(self) -> Iterator["Element"]:
        """It and all below it, outer ones first."""
        yield self
        if self.tag & 0x20:
            for child in self.children():
                yield from child.walk()


def elements(data: bytes) -> Iterator[Element]:
    """The elements that stand one after the other. Raises `NotDer`."""
    at = 0
    while at < len(data):
        if len(data) < at + 2 or data[at] & 0x1F == 0x1F:
            raise NotDer("a tag is cut off or too large")
        tag, length, at = data[at], data[at + 1], at + 2
        if length & 0x80:
            size = length & 0x7F
            if not 0 < size <= 4:
                raise NotDer("a length is not definite")
            length, at = int.from_bytes(data[at : at + size]), at + size
        if len(data) < at + length:
            raise NotDer("an element is cut off")
        yield Element(tag, data[at : at + length])
        at += length
