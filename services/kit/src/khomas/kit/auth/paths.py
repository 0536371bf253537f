"""The one rule for paths in scopes and requests: refuse what is odd, never normalise it."""

import re
import unicodedata
from collections.abc import Sequence
from urllib.parse import unquote_to_bytes

# In the text "\n" + "\n".join(paths): a control character, a path that is not absolute, an empty, "." or ".."
# segment, an invalid percent escape, an escaped control character, dot, slash or DEL.
_ODD = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f]|\n(?!/)|//|/\.{1,2}(?=[/\n]|\Z)"
    r"|%(?![0-9A-Fa-f]{2})|%[01][0-9A-Fa-f]|%2[EeFf]|%7[Ff]"
)


def odd_path(paths: Sequence[str]) -> str | None:
    """Return the first path that the rule refuses. One slash at the end, for a directory, is allowed."""
    if not paths or not _odd(paths):
        return None
    return next(path for path in paths if _odd([path]))


def _odd(paths: Sequence[str]) -> bool:
    text = "\n" + "\n".join(paths)
    if text.count("\n") != len(paths) or _ODD.search(text):
        return True
    return not (text.isascii() or unicodedata.is_normalized("NFC", text))


def decoded_path(path: str) -> str | None:
    """Return a scope's path with its percent escapes decoded, or None where the rule refuses it."""
    if odd_path([path]) is not None:
        return None
    try:
        plain = unquote_to_bytes(path).decode()
    except UnicodeError:
        return None
    # Decoding may uncover C1 controls or a text that is not NFC; a literal percent sign is allowed here.
    return None if odd_path([plain.replace("%", "")]) is not None else plain


class Cover:
    """The paths that some scopes of one capability cover, by whole segments.

    "/foo" covers "/foo" and "/foo/bar" but not "/foobar"; "/foo/" covers what is inside and the directory
    itself when it is named with its slash.
    """

    __slots__ = ("_exact", "_inside")

    def __init__(self, scope_paths: Sequence[str]) -> None:
        self._exact = frozenset(path for path in scope_paths if not path.endswith("/"))
        self._inside = tuple(path if path.endswith("/") else path + "/" for path in scope_paths)

    def uncovered(self, paths: Sequence[str]) -> str | None:
        """Return the first path outside; 10,000 paths take about a millisecond."""
        inside, exact = self._inside, self._exact
        for path in paths:
            if not path.startswith(inside) and path not in exact:
                return path
        return None
