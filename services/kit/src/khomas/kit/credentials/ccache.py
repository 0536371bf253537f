"""Reads Kerberos credential caches of version 4: principals and times, never a key.

https://web.mit.edu/kerberos/krb5-devel/doc/formats/ccache_file_format.html
"""

import struct
from dataclasses import dataclass
from datetime import UTC, datetime

_RENEWABLE = 0x00800000


class NotCache(ValueError):
    """The bytes are not a credential cache."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """One ticket, without what is secret in it."""

    server: str
    start: datetime
    end: datetime
    # None = it cannot be renewed.
    renewable_until: datetime | None


@dataclass(frozen=True, slots=True)
class Cache:
    """Whose tickets these are, and the tickets."""

    principal: str
    tickets: tuple[Ticket, ...]


class _Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def number(self, kind: str) -> int:
        size = struct.calcsize(f">{kind}")
        value: int = struct.unpack(f">{kind}", self.take(size))[0]
        return value

    def take(self, size: int) -> bytes:
        if len(self._data) < self._at + size:
            raise NotCache("the cache is cut off")
        self._at += size
        return self._data[self._at - size : self._at]

    def text(self) -> str:
        return self.take(self.number("I")).decode("utf-8", "replace")

    def principal(self) -> str:
        self.number("I")
        count = self.number("I")
        realm = self.text()
        return "/".join(self.text() for _ in range(count)) + f"@{realm}"

    def ticket(self) -> Ticket:
        self.principal()
        server = self.principal()
        self.number("H")
        self.take(self.number("I"))  # the session key
        auth, start, end, renew = (self.number("I") for _ in range(4))
        self.number("B")
        flags = self.number("I")
        for _ in range(2):  # addresses, then authorization data
            for _ in range(self.number("I")):
                self.number("H")
                self.take(self.number("I"))
        self.take(self.number("I"))
        self.take(self.number("I"))
        return Ticket(server, _moment(start or auth), _moment(end), _moment(renew) if flags & _RENEWABLE else None)


def read(data: bytes) -> Cache:
    """Read a cache. Raises `NotCache`."""
    reader = _Reader(data)
    if reader.number("H") != 0x0504:
        raise NotCache("it is no Kerberos credential cache of version 4")
    reader.take(reader.number("H"))
    principal = reader.principal()
    tickets = []
    while reader.more:
        tickets.append(reader.ticket())
    return Cache(principal, tuple(tickets))


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
