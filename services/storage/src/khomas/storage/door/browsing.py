"""Folders as pages for a browser: names, sizes, times; everything escaped, and nothing that runs."""

from html import escape
from typing import Final

from khomas.storage.door.asking import Place
from khomas.storage.protocols.interface import Entry, Kind

HEADERS: Final = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_STYLE: Final = "body{font-family:sans-serif}td{padding:0 1em 0 0}td+td{text-align:right;font-family:monospace}"


def head(place: Place, prefix: str) -> str:
    """Return the beginning of a page."""
    name = escape(f"/{place.element}/{place.path}" if place.path else f"/{place.element}")
    up = (
        f'<tr><td><a href="{escape(prefix + _above(place).href)}">..</a></td><td></td><td></td></tr>\n'
        if place.element
        else ""
    )
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{name}</title>'
        f"<style>{_STYLE}</style></head>\n<body><h1>{name}</h1>\n<table>\n{up}"
    )


def row(href: str, entry: Entry) -> str:
    """Return the line of one entry."""
    folder = entry.kind is Kind.FOLDER
    name = entry.path.rpartition("/")[2] + ("/" if folder else "")
    size = "" if folder else f"{entry.size_bytes:,}"
    time = f"{entry.modify_time:%Y-%m-%d %H:%M:%S}" if entry.modify_time else ""
    return f'<tr><td><a href="{escape(href)}">{escape(name)}</a></td><td>{size}</td><td>{time}</td></tr>\n'


TAIL: Final = "</table></body></html>\n"


def _above(place: Place) -> Place:
    return Place(place.element, place.path.rpartition("/")[0], slash=True) if place.path else Place()
