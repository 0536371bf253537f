"""Requests and answers of PROPFIND (RFC 4918) and quotas (RFC 4331)."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from email.utils import format_datetime
from typing import Final
from xml.parsers import expat
from xml.sax.saxutils import escape

from khomas.storage.door.refusal import Refusal
from khomas.storage.protocols.interface import Entry, Kind, Room

_SEPARATOR: Final = "|"
_DAV: Final = "DAV:"
# Told to who asks for all; those of the quota only to who names them.
_ALL: Final = ("resourcetype", "getcontentlength", "getlastmodified", "getcontenttype", "displayname")
_QUOTA: Final = frozenset({"quota-available-bytes", "quota-used-bytes"})
_LIMIT: Final = 200
HEAD: Final = b'<?xml version="1.0" encoding="utf-8"?>\n<D:multistatus xmlns:D="DAV:">\n'
TAIL: Final = b"</D:multistatus>\n"

# Namespace and local name.
Name = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request asks for."""

    names: tuple[Name, ...]
    # Only whether there are such properties, not what they say.
    only_names: bool = False
    # What is not there was asked for by name.
    by_name: bool = False

    @property
    def quota(self) -> bool:
        """Tell whether the space has to be looked up."""
        return not self.only_names and any(space == _DAV and name in _QUOTA for space, name in self.names)


class _Reader:
    """Takes the body apart. It is data: one that declares a document type is refused."""

    def __init__(self) -> None:
        self.depth = 0
        self.kind = ""
        self.names: list[Name] = []
        self.parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
        self.parser.StartDoctypeDeclHandler = self._doctype
        self.parser.StartElementHandler = self._start
        self.parser.EndElementHandler = self._end

    def _doctype(self, *_: object) -> None:
        raise Refusal(400, "XML", "The body declares a document type.")

    def _start(self, name: str, _: object) -> None:
        space, _, local = name.rpartition(_SEPARATOR)
        match self.depth:
            case 0 if (space, local) != (_DAV, "propfind"):
                raise Refusal(400, "XML", "The body is no propfind.")
            case 1 if space == _DAV and local in ("prop", "allprop", "propname"):
                self.kind = self.kind or local
            case 2 if self.kind == "prop":
                self.names.append((space, local))
        if len(self.names) > _LIMIT:
            raise Refusal(400, "XML", f"More than {_LIMIT} properties are asked for.")
        self.depth += 1

    def _end(self, _: str) -> None:
        self.depth -= 1


def wanted(body: bytes) -> Wanted:
    """Return what the body of a PROPFIND asks for; without a body it is everything."""
    everything = tuple((_DAV, name) for name in _ALL)
    if not body:
        return Wanted(everything)
    reader = _Reader()
    try:
        reader.parser.Parse(body, True)
    except expat.ExpatError as error:
        raise Refusal(400, "XML", f"The body cannot be read: {error}.") from None
    match reader.kind:
        case "prop":
            return Wanted(tuple(dict.fromkeys(reader.names)), by_name=True)
        case "allprop":
            return Wanted(everything)
        case "propname":
            return Wanted((*everything, *((_DAV, name) for name in sorted(_QUOTA))), only_names=True)
        case _:
            raise Refusal(400, "XML", "The body asks for nothing.")


def response(href: str, entry: Entry, wanted: Wanted, room: Room | None) -> str:
    """Return what is told of one file or folder."""
    known = _values(entry, room)
    if wanted.only_names:
        known = dict.fromkeys(known, "")
    there = [f"<D:{name}>{known[name]}</D:{name}>" for space, name in wanted.names if space == _DAV and name in known]
    missing = [_empty(one) for one in wanted.names if wanted.by_name and (one[0] != _DAV or one[1] not in known)]
    parts = [
        f"<D:propstat><D:prop>{''.join(some)}</D:prop><D:status>HTTP/1.1 {status}</D:status></D:propstat>"
        for some, status in ((there, "200 OK"), (missing, "404 Not Found"))
        if some
    ]
    nothing = "<D:propstat><D:prop/><D:status>HTTP/1.1 200 OK</D:status></D:propstat>"
    return f"<D:response><D:href>{escape(href)}</D:href>{''.join(parts) or nothing}</D:response>\n"


def encoded(responses: Iterable[str]) -> bytes:
    """Return some of them as bytes."""
    return "".join(responses).encode()


def _values(entry: Entry, room: Room | None) -> Mapping[str, str]:
    folder = entry.kind is Kind.FOLDER
    values = {
        "resourcetype": "<D:collection/>" if folder else "",
        "displayname": escape(entry.path.rpartition("/")[2]),
    }
    if not folder:
        values |= {"getcontentlength": str(entry.size_bytes), "getcontenttype": "application/octet-stream"}
    if entry.modify_time is not None:
        values["getlastmodified"] = format_datetime(entry.modify_time, usegmt=True)
    if folder and room is not None and room.free_bytes is not None:
        values["quota-available-bytes"] = str(room.free_bytes)
        if room.total_bytes is not None:
            values["quota-used-bytes"] = str(room.total_bytes - room.free_bytes)
    return values


def _empty(name: Name) -> str:
    space, local = name
    return f"<D:{local}/>" if space == _DAV else f'<x:{local} xmlns:x="{escape(space, {chr(34): "&quot;"})}"/>'
