"""Hands jobs over to a batch system exactly once, and finds them again after every doubt."""

import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from khomas.scheduler.backends.interface import SubmitItem, SubmitOutcome, Submitted
from khomas.scheduler.backends.spool.dialect import Dialect, Needs, answer_of, names, needs_of
from khomas.scheduler.backends.spool.hosts import Keeper
from khomas.scheduler.backends.spool.settings import SpoolSettings
from khomas.scheduler.wrapper import JOB_WRAPPER

_RUNS = """exec {wrapper} element "@SPOOL@" "@BATCH@" "$KHOMAS_INDEX"
"""


class Handover:
    """Submits, and looks for what an earlier submission left in doubt."""

    def __init__(self, keeper: Keeper, settings: SpoolSettings, dialect: Dialect, tokens: dict[str, str]) -> None:
        self._keeper = keeper
        self._settings = settings
        self._dialect = dialect
        # Tokens by native id, shared with the backend.
        self._tokens = tokens

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Hand over jobs that ask for the same as one array."""
        refused = {item.token: why for item in items if (why := self._refusal(item))}
        wanted = [item for item in items if item.token not in refused]
        outcomes = {token: SubmitOutcome(token, Submitted.REJECTED, message=why) for token, why in refused.items()}
        doubtful: dict[str, str] = {}
        if wanted:
            doubtful = await self._hand_over(wanted, outcomes, ())
        if doubtful:
            again = await self._settle(doubtful, outcomes)
            if again:
                await self._hand_over([item for item in wanted if item.token in again], outcomes, sorted(again))
        return [outcomes[item.token] for item in items]

    async def _hand_over(
        self, items: Sequence[SubmitItem], outcomes: dict[str, SubmitOutcome], take_over: Sequence[str]
    ) -> dict[str, str]:
        """Hand over; return the batches of tokens that an earlier submission left in doubt."""
        batches = [self._batch(needs, some, take_over) for needs, some in self._groups(items)]
        answer = await self._keeper.ask(
            "submit", commands_each=len(items) if self._each() else len(batches), batches=batches
        )
        doubtful: dict[str, str] = {}
        for one in answer["batches"]:
            for token, place in one["known"].items():
                if place is not None and place["native"]:
                    outcomes[token] = self._accepted(token, place)
                else:
                    doubtful[token] = place["batch"] if place is not None else ""
                    outcomes[token] = SubmitOutcome(token, Submitted.UNKNOWN, message="an earlier submission has it")
            self._fresh(one, outcomes)
        return doubtful

    def _fresh(self, batch: Mapping[str, Any], outcomes: dict[str, SubmitOutcome]) -> None:
        for first, native in batch.get("natives", {}).items():
            tokens = [first] if self._each() else batch["fresh"]
            if native["native"]:
                for index, token in enumerate(tokens):
                    outcomes[token] = self._accepted(token, {**native, "index": index})
                continue
            why = self._dialect.refusal(answer_of(native["command"]))
            kind = why.kind if native["refused"] else Submitted.UNKNOWN
            outcomes |= {
                token: SubmitOutcome(token, kind, message=why.message, retry_after=why.retry_after) for token in tokens
            }

    def _accepted(self, token: str, place: Mapping[str, Any]) -> SubmitOutcome:
        native_id = self._dialect.element(place["native"], place["index"]) if place["array"] else place["native"]
        self._tokens[native_id] = token
        return SubmitOutcome(token, Submitted.ACCEPTED, native_id=native_id)

    async def _settle(self, doubtful: Mapping[str, str], outcomes: dict[str, SubmitOutcome]) -> set[str]:
        """Look for submissions whose end nobody has noted; return tokens that certainly did not arrive."""
        natives = await self._search({batch for batch in doubtful.values() if batch})
        places = (await self._keeper.ask("find", tokens=sorted(doubtful)))["found"]
        # Begun, and forgotten by the batch system since: the name of its submission takes the place of the native id.
        forgotten = {
            place["batch"]: place["batch"]
            for place in places.values()
            if place and place["begun"] and not place["native"]
        }
        if forgotten:
            await self._keeper.ask("adopt", natives=forgotten)
            places = (await self._keeper.ask("find", tokens=sorted(doubtful)))["found"]
        for token, place in places.items():
            if place is not None and place["native"]:
                outcomes[token] = self._accepted(token, place)
        return {token for token, batch in doubtful.items() if batch not in natives and batch not in forgotten}

    async def _search(self, batches: Iterable[str]) -> Mapping[str, str]:
        names = sorted(batches)
        if not names:
            return {}
        answer = await self._keeper.ask("commands", commands=self._dialect.search(names))
        natives = self._dialect.found([answer_of(one) for one in answer["commands"]])
        natives = {name: natives[name] for name in names if name in natives}
        if natives:
            await self._keeper.ask("adopt", natives=natives)
        return natives

    def _groups(self, items: Sequence[SubmitItem]) -> list[tuple[Needs, list[SubmitItem]]]:
        """Jobs that can be elements of one array."""
        groups: dict[str, tuple[Needs, list[SubmitItem]]] = {}
        for item in items:
            needs = needs_of(item)
            groups.setdefault(repr(needs), (needs, []))[1].append(item)
        size = self._settings.max_array
        return [
            (needs, some[start : start + size])
            for needs, some in groups.values()
            for start in range(0, len(some), size)
        ]

    def _batch(self, needs: Needs, items: Sequence[SubmitItem], take_over: Sequence[str]) -> dict[str, Any]:
        runs = _RUNS.format(wrapper=" ".join(self._keeper.command(self._settings.node_python, JOB_WRAPPER)))
        how = self._dialect.submission(needs, runs)
        jobs = [{"token": item.token, "manifest": manifest(item, self._settings)} for item in items]
        return {
            "batch": f"khomas-{uuid.uuid4().hex}",
            "jobs": jobs,
            "take_over": list(take_over),
            "script": how.script,
            "native": how.native,
            "refused": how.refused,
            "helper": list(how.helper),
            "single": list(how.single),
            **({"each": list(how.single)} if how.array is None else {"array": list(how.array)}),
        }

    def _each(self) -> bool:
        return self._dialect.submission(Needs(), "").array is None

    def _refusal(self, item: SubmitItem) -> str:
        if not item.token or len(item.token) > 64 or not item.token.replace("-", "").isalnum():
            return f"{item.token!r} is no token: 1 to 64 letters, digits and '-'"
        unknown = sorted(item.native.keys() - self._dialect.native_options)
        if unknown:
            known = ", ".join(sorted(self._dialect.native_options)) or "none"
            return f"{self._dialect.kind} has no option {', '.join(unknown)}; there are: {known}"
        try:
            self._dialect.submission(needs_of(item), "")
        except ValueError as error:
            return str(error)
        return ""

    async def find(self, tokens: Sequence[str]) -> dict[str, str]:
        """Look into the job folders, and for submissions in doubt ask the batch system by their name."""
        found = (await self._keeper.ask("find", tokens=names(tokens)))["found"]
        doubtful = {token: place["batch"] for token, place in found.items() if place and not place["native"]}
        outcomes = {token: self._accepted(token, place) for token, place in found.items() if place and place["native"]}
        if doubtful:
            await self._settle(doubtful, outcomes)
        return {token: outcome.native_id for token, outcome in outcomes.items()}


def manifest(item: SubmitItem, settings: SpoolSettings) -> dict[str, Any]:
    """What the wrapper is told."""
    path = {"path": settings.path} if settings.path else {}
    return {**path, **item.manifest, "token": item.token}
