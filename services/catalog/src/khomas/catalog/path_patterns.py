"""Metadata from paths, by patterns of users."""

from collections.abc import Sequence

from khomas.kit.patterns import search

# For a batch of files.
_SECONDS = 30.0


class TooSlow(Exception):
    """The patterns were still being matched when the time was over."""


async def matched(patterns: Sequence[str], paths: Sequence[str]) -> list[dict[str, str]]:
    """Return for each path what the named groups of the patterns found; the last pattern wins. Raises TooSlow."""
    questions = [(pattern, path) for path in paths for pattern in patterns]
    answers = await search(questions, seconds=_SECONDS, in_all=_SECONDS) if questions else []
    if not all(one.answered for one in answers):
        raise TooSlow
    found: list[dict[str, str]] = [{} for _ in paths]
    for number, one in enumerate(answers):
        found[number // len(patterns)] |= {key: text for key, text in one.groups.items() if text is not None}
    return found
