"""Answers of PROPFIND, read while they arrive."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final
from urllib.parse import unquote, urlsplit
from xml.parsers import expat

from khomas.storage.protocols.interface import Problem, ProtocolFault

PROPERTIES: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><D:propfind xmlns:D="DAV:"><D:prop>'
    b"<D:resourcetype/><D:getcontentlength/><D:getlastmodified/></D:prop></D:propfind>"
)
QUOTA: Final = (
    b'<?xml version="1.0" encoding="utf-8"?><D:propfind xmlns:D="DAV:"><D:prop>'
    b"<D:quota-available-bytes/><D:quota-used-bytes/></D:prop></D:propfind>"
)
_SEPARATOR: Final = "|"
_TEXTS: Final = frozenset({"href", "getcontentlength", "getlastmodified", "quota-available-bytes", "quota-used-bytes"})
_TEXT_LIMIT: Final = 64 * 1024


@dataclass(slots=True)
class Resource:
    """One `response` of a `multistatus`."""

    # Path of the URL, not quoted any more.
    path: str = ""
    folder: bool = False
    texts: dict[str, str] = field(default_factory=dict)

    def number(self, name: str) -> int | None:
        """Return a property that is a number, if it is there."""
        text = self.texts.get(name, "").strip()
        return int(text) if text.isdecimal() else None

    @property
    def modify_time(self) -> datetime | None:
        """Return when it was last written to."""
        try:
            return parsedate_to_datetime(self.texts["getlastmodified"]).astimezone(UTC)
        except (KeyError, ValueError):
            return None


class Multistatus:
    """Takes bytes as they come and gives resources as soon as they are complete.

    Documents are data: one that declares a type, and with it entities, is refused.
    """

    def __init__(self, *, quoted: bool = True) -> None:
        self._quoted = quoted
        self._parser = expat.ParserCreate(namespace_separator=_SEPARATOR)
        self._parser.buffer_text = True
        self._parser.StartDoctypeDeclHandler = self._refuse
        self._parser.StartElementHandler = self._start
        self._parser.EndElementHandler = self._end
        self._parser.CharacterDataHandler = self._data
        self._resource = Resource()
        self._text: list[str] | None = None
        self._length = 0
        self._done: list[Resource] = []

    def feed(self, data: bytes, *, last: bool = False) -> Iterator[Resource]:
        """Yield what is complete; raise ProtocolFault when it is no XML."""
        try:
            self._parser.Parse(data, last)
        except expat.ExpatError as error:
            raise ProtocolFault(Problem.PASSING, f"the listing cannot be read: {error}") from error
        done, self._done = self._done, []
        yield from done

    def _refuse(self, *_: object) -> None:
        raise ProtocolFault(Problem.REFUSED, "the listing declares a document type, which none has to")

    def _start(self, name: str, _: object) -> None:
        local = name.rpartition(_SEPARATOR)[2]
        if local == "response":
            self._resource = Resource()
        elif local == "collection":
            self._resource.folder = True
        self._text, self._length = ([], 0) if local in _TEXTS else (None, 0)

    def _data(self, data: str) -> None:
        if self._text is not None:
            self._length += len(data)
            if self._length > _TEXT_LIMIT:
                raise ProtocolFault(Problem.REFUSED, "the listing has a name that is too long")
            self._text.append(data)

    def _end(self, name: str) -> None:
        local = name.rpartition(_SEPARATOR)[2]
        if self._text is not None and local in _TEXTS:
            text = "".join(self._text)
            if local == "href" and not self._resource.path:
                self._resource.path = self._path(text)
            elif text:
                self._resource.texts[local] = text
            self._text = None
        elif local == "response":
            self._done.append(self._resource)

    def _path(self, href: str) -> str:
        if not self._quoted:
            return href
        return unquote(urlsplit(href.strip()).path)
