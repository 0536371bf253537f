"""Which of our tokens a CE has, and under which ids. It has no search: names are read once and kept."""

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from khomas.scheduler.backends.arc.answers import STATES, activity, code, job_name
from khomas.scheduler.backends.arc.client import ArcClient
from khomas.scheduler.backends.arc.description import SCRIPT


@dataclass(frozen=True, slots=True)
class Found:
    """A job of ours that the CE has."""

    native_id: str
    # It has what it needs to run; the others never begin.
    released: bool
    ended: bool


class Lookup:
    """Names of jobs by id. What is kept can be read again at any time."""

    def __init__(self, client: ArcClient) -> None:
        self._client = client
        self._names: dict[str, str] = {}

    def note(self, native_id: str, token: str) -> None:
        """Keep the name of a job that was just made."""
        self._names[native_id] = token

    async def names(self, ids: Iterable[str]) -> dict[str, str]:
        """Names of jobs that the CE has."""
        missing = [one for one in ids if one not in self._names]
        told = await self._client.act("info", missing)
        there = {one: str(activity(entry).get("Name", "")) for one, entry in told.items() if code(entry) == 200}
        # The document of a job has no name until the information provider has run.
        late = [one for one, name in there.items() if not name]
        notes = await asyncio.gather(*[self._client.diagnosis(one, "local") for one in late])
        there |= {one: job_name(text) for one, text in zip(late, notes, strict=True)}
        self._names |= {one: name for one, name in there.items() if name}
        return {one: self._names[one] for one in ids if one in self._names}

    async def find(self, tokens: Sequence[str]) -> dict[str, Found]:
        """Look for tokens among all our jobs: those that can run before those that never got their script."""
        wanted = set(tokens)
        listed = {str(entry["id"]): str(entry.get("state", "")) for entry in await self._client.jobs(STATES)}
        names = await self.names(list(listed))
        self._names = dict(names)
        mine = [one for one in listed if names.get(one) in wanted]
        sizes = await asyncio.gather(*[self._client.size(one, SCRIPT) for one in mine])
        found: dict[str, Found] = {}
        for one, size in zip(mine, sizes, strict=True):
            state = STATES.get(listed[one])
            candidate = Found(one, size is not None, state is not None and state.final)
            if names[one] not in found or _rank(candidate) < _rank(found[names[one]]):
                found[names[one]] = candidate
        return found


def _rank(found: Found) -> tuple[bool, bool, str]:
    return not found.released, found.ended, found.native_id
