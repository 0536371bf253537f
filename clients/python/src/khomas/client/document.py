"""Reads a document by its keys, and refuses those that mean nothing."""

import difflib
from collections.abc import Mapping
from typing import Any

from khomas.client.errors import UsageError
from khomas.client.units import MOST_INT32, count, number


class Document:
    """A mapping that is read key by key; `done` refuses what was not read."""

    def __init__(self, content: object, place: str) -> None:
        if not isinstance(content, Mapping):
            raise UsageError(f"{place}: expected keys and values, found {content!r}")
        # YAML reads the key `on` as true.
        self._content = {"on" if key is True else key: value for key, value in content.items()}
        self._known: set[str] = set()
        self.place = place

    def take(self, key: str, default: Any = None) -> Any:
        """Return the value of a key, or the default."""
        self._known.add(key)
        value = self._content.get(key, default)
        return default if value is None else value

    def need(self, key: str) -> Any:
        """Return the value of a key that must be there."""
        value = self.take(key)
        if value is None:
            raise UsageError(f"{self.place}: {key} is missing")
        return value

    def list(self, key: str) -> list[Any]:
        """Return a list; a single value is a list of one."""
        value = self.take(key, [])
        return value if isinstance(value, list) else [value]

    def whole(self, key: str, default: int = 0) -> int:
        """Return a whole number that the contract can carry."""
        return count(self.take(key, default), key, MOST_INT32)

    def number(self, key: str) -> float:
        """Return a finite number, 0 without the key."""
        return number(self.take(key, 0), key)

    def text(self, key: str, default: str = "") -> str:
        """Return text; numbers and booleans are written as YAML has them."""
        value = self.take(key, default)
        if isinstance(value, Mapping | list):
            raise UsageError(f"{self.place}: {key} takes one value")
        return str(value).lower() if isinstance(value, bool) else str(value)

    def texts(self, key: str) -> dict[str, str]:
        """Return a mapping of texts."""
        value = self.take(key, {})
        if not isinstance(value, Mapping):
            raise UsageError(f"{self.place}: {key} takes keys and values")
        return {str(name): str(one) for name, one in value.items()}

    def inner(self, key: str) -> "Document | None":
        """Return the document under a key, None if there is none."""
        value = self.take(key)
        return None if value is None else Document(value, f"{self.place}.{key}")

    def done(self) -> None:
        """Refuse keys that nobody asked for."""
        for key in self._content:
            if key not in self._known:
                near = difflib.get_close_matches(str(key), self._known, 1)
                hint = f"did you mean {near[0]}?" if near else f"there are: {', '.join(sorted(self._known))}"
                raise UsageError(f"{self.place}: unknown key {key}; {hint}")
