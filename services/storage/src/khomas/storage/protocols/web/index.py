"""Listings that web servers make of folders: the pages of nginx, Apache and others, and the JSON of nginx."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from html.parser import HTMLParser
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

from khomas.storage.protocols.interface import Problem, ProtocolFault

# How the titles of pages begin that a server has made; others were written by somebody.
_TITLES = ("index of", "directory listing", "directory:")


@dataclass(frozen=True, slots=True)
class Listed:
    """One name; its size where the listing tells it exactly."""

    name: str
    folder: bool
    size_bytes: int | None = None
    modify_time: datetime | None = None


class Page(HTMLParser):
    """Finds the links of a page that lead to what is directly below it."""

    def __init__(self, url: str) -> None:
        super().__init__(convert_charrefs=True)
        self.title = ""
        self._url = url
        self._base = urlsplit(url)
        self._in_title = False
        self._seen: set[str] = set()
        self._found: list[Listed] = []

    @property
    def is_listing(self) -> bool:
        """Tell whether the server has made it."""
        return self.title.strip().lower().startswith(_TITLES)

    def take(self, text: str) -> Sequence[Listed]:
        """Read more of the page; return what is new."""
        self.feed(text)
        found, self._found = self._found, []
        return found

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Take the beginning of an element."""
        self._in_title = tag == "title"
        href = dict(attrs).get("href") if tag == "a" else None
        if href and "?" not in href:
            self._add(urlsplit(urljoin(self._url, href)))

    def handle_endtag(self, tag: str) -> None:
        """Take the end of an element."""
        self._in_title = False

    def handle_data(self, data: str) -> None:
        """Take text."""
        if self._in_title:
            self.title += data

    def _add(self, link: SplitResult) -> None:
        if link[:2] != self._base[:2] or not link.path.startswith(self._base.path):
            return
        rest = link.path.removeprefix(self._base.path)
        name = rest.removesuffix("/")
        if name and "/" not in name and name not in self._seen:
            self._seen.add(name)
            self._found.append(Listed(unquote(name), rest.endswith("/")))


def from_json(text: str) -> Sequence[Listed]:
    """Read what nginx makes with `autoindex_format json`."""
    try:
        return [_listed(one) for one in json.loads(text)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProtocolFault(Problem.UNSUPPORTED, f"the listing cannot be read: {error}") from error


def _listed(one: dict[str, object]) -> Listed:
    folder, size, time = one["type"] == "directory", one.get("size"), one.get("mtime")
    modify_time = parsedate_to_datetime(time).astimezone(UTC) if isinstance(time, str) else None
    return Listed(str(one["name"]), folder, size if isinstance(size, int) else None, modify_time)
