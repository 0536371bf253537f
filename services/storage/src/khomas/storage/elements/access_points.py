"""How StorageElements are reached, as it is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from khomas.api.storage.v1 import storage_element_pb2 as pb


@dataclass(frozen=True, slots=True)
class AccessPoint:
    """A protocol, an address, and what is needed to be let in."""

    protocol: str
    address: str
    credential: str = ""
    options: tuple[tuple[str, str], ...] = ()

    @classmethod
    def of(cls, message: pb.AccessPoint) -> "AccessPoint":
        """Return what a caller has given."""
        options = tuple(sorted(message.options.items()))
        return cls(message.protocol, message.address, message.credential, options)

    @classmethod
    def stored(cls, row: Sequence[Any]) -> "AccessPoint":
        """Return what lies in the database: protocol, address, and in newer rows credential and options."""
        protocol, address, credential, options = (*row, "", [])[:4]
        return cls(protocol, address, credential, tuple((name, value) for name, value in options))

    def row(self) -> list[Any]:
        """Return it as it is stored."""
        return [self.protocol, self.address, self.credential, [list(option) for option in self.options]]

    def message(self) -> pb.AccessPoint:
        """Return it as callers see it."""
        return pb.AccessPoint(
            protocol=self.protocol, address=self.address, credential=self.credential, options=dict(self.options)
        )
