"""The backend of every batch system that is driven by commands beside a folder of jobs."""

import base64
import logging
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from khomas.scheduler.backends.interface import (
    Capabilities,
    Chunk,
    ComputeResource,
    NotSupportedError,
    Observation,
    Outcome,
    PollResult,
    RenderedScript,
    Seen,
    State,
    SubmitItem,
    SubmitOutcome,
    Usage,
)
from khomas.scheduler.backends.journal import usage_of, usage_so_far
from khomas.scheduler.backends.script import render_script
from khomas.scheduler.backends.spool.dialect import Dialect, Status, UnreadableAnswerError, answer_of, names, needs_of
from khomas.scheduler.backends.spool.handover import Handover, manifest
from khomas.scheduler.backends.spool.hosts import Host, Keeper
from khomas.scheduler.backends.spool.pilots import Pilots
from khomas.scheduler.backends.spool.settings import PilotSettings, SpoolSettings
from khomas.scheduler.backends.spool.verdicts import Look, observation, running

log = logging.getLogger(__name__)

_STREAMS = ("stdout", "stderr")


class SpooledBackend:
    """Jobs of one batch system. The folder of jobs and the batch system are the truth; what is here is a cache."""

    def __init__(self, host: Host, settings: SpoolSettings, dialect: Dialect) -> None:
        self._settings = settings
        self._keeper = Keeper(host, str(settings.spool), settings.env, settings.command_seconds)
        self._pilots: Pilots | None = None
        if isinstance(settings, PilotSettings) and settings.pilots:
            self._pilots = Pilots(self._keeper, settings, dialect)
            dialect = self._pilots.dialect
        self._dialect: Dialect = dialect
        # Tokens by native id.
        self._tokens: dict[str, str] = {}
        self._handover = Handover(self._keeper, settings, dialect, self._tokens)
        # When a job was first missed that left no record.
        self._missed: dict[str, float] = {}
        self.capabilities = Capabilities(
            kind=dialect.kind,
            max_batch=settings.max_batch,
            min_poll_interval=timedelta(seconds=settings.poll_seconds),
            hold=dialect.can_hold,
            peek=True,
            live_usage=True,
            shared_folder=settings.shared_state,
            avoids_nodes=dialect.avoids_nodes,
            native_options=dialect.native_options,
            wall_margin=timedelta(seconds=dialect.margin_seconds),
        )

    def render(self, items: Sequence[SubmitItem]) -> list[RenderedScript]:
        """Say what submit would hand over, with the command in a comment."""
        rendered = []
        for item in items:
            script = render_script(item.token, manifest(item, self._settings))
            words = " ".join(self._dialect.submission(needs_of(item), "").single)
            head, _, rest = script.content.partition("\n")
            rendered.append(replace(script, content=f"{head}\n# Handed over with: {words}\n{rest}"))
        return rendered

    # ------------------------------------------------------------------------------------------- submit

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Hand over jobs that ask for the same as one array."""
        if self._pilots is not None:
            self._pilots.before_submission(items)
        outcomes = await self._handover.submit(items)
        if self._pilots is not None:
            await self._pilots.after_submission(outcomes)
        return outcomes

    async def find(self, tokens: Sequence[str]) -> dict[str, str]:
        """Look into the job folders, and for submissions in doubt ask the batch system by their name."""
        return await self._handover.find(tokens)

    # --------------------------------------------------------------------------------------------- look

    async def poll(self, ids: Sequence[str], cursor: str = "", measure: Collection[str] = ()) -> PollResult:
        """Ask once for all jobs; look closely at those that are not there any more."""
        tokens = await self._known(ids)
        if not tokens:
            return PollResult([Observation(one, one, Seen.ABSENT) for one in ids], complete=True, cursor="")
        wanted = [tokens[one] for one in ids if one in tokens]
        wholes = list(dict.fromkeys(self._dialect.whole(one)[0] for one in tokens))
        answer = await self._keeper.ask(
            "look",
            commands=self._dialect.status(wholes),
            wanted=wanted,
            processes=self._dialect.by_process,
            measure=[tokens[one] for one in measure if one in tokens],
        )
        statuses, answered = self._statuses(answer)
        records, used = answer["records"], answer["used"]
        looks = {
            one: Look(one, token, records.get(token), statuses.get(one), usage=_so_far(used.get(token)))
            for one, token in tokens.items()
        }
        complete = answered
        if answered and self._pilots is not None:
            await self._pilots.tend()
        if answered:
            missing = [look for look in looks.values() if look.record is None and look.gone]
            if missing:
                complete = await self._judge(missing, looks)
        seen = []
        for one in ids:
            look = looks.get(one)
            if look is None:
                seen.append(Observation(one, one, Seen.ABSENT))
            elif look.record is None and look.status is None and not (answered and complete):
                seen.append(Observation(look.token, one, Seen.NOT_ANSWERED))
            else:
                seen.append(self._seen(look))
        return PollResult(seen, complete, cursor="")

    def _statuses(self, answer: Mapping[str, Any]) -> tuple[dict[str, Status], bool]:
        """What the status commands and the processes on the host tell; False when the batch system did not answer."""
        try:
            statuses = dict(self._dialect.statuses([answer_of(one) for one in answer["commands"]]))
        except UnreadableAnswerError as error:
            log.warning("status.unanswered", extra={"backend": self._dialect.kind, "error": str(error)})
            return {}, False
        processes = answer.get("processes", {})
        natives = {token: native for native, token in self._tokens.items() if token in processes}
        for token, process in processes.items():
            native = natives[token]
            if process["lives"] and process["started"]:
                statuses[native] = running(process["started"])
            elif process["lives"]:
                statuses.setdefault(native, Status(State.QUEUED, "waiting"))
            elif process["started"]:
                statuses.pop(native, None)
        return statuses, True

    async def _judge(self, missing: Sequence[Look], looks: dict[str, Look]) -> bool:
        """Look closely at jobs that are not in the batch system any more, or ended there without a record."""
        accounting = self._dialect.accounting([look.native_id for look in missing])
        tokens = [look.token for look in missing]
        answer = await self._keeper.ask("judge", commands=accounting, commands_each=len(accounting), tokens=tokens)
        try:
            accounts = self._dialect.accounts([answer_of(one) for one in answer["commands"]]) if accounting else {}
        except UnreadableAnswerError:
            accounts = {}
        for look in missing:
            told = answer["jobs"][look.token]
            account = accounts.get(look.native_id)
            status = account[0] if account is not None and account[0].state.final else look.status
            looks[look.native_id] = replace(
                look,
                record=told["record"],
                status=status,
                there=told["there"],
                cancelled=told["cancelled"],
                started=told["started"],
                judged=True,
            )
        return True

    def _seen(self, look: Look) -> Observation:
        if look.record is not None or not look.judged:
            self._missed.pop(look.token, None)
            return observation(look, settled=True)
        first = self._missed.setdefault(look.token, time.monotonic())
        return observation(look, settled=time.monotonic() - first >= self._settings.settle_seconds)

    async def _known(self, ids: Sequence[str]) -> dict[str, str]:
        """Tokens by native id; those that the spool does not know are left out."""
        unknown = {self._dialect.whole(one)[0] for one in ids if one not in self._tokens}
        if unknown:
            answer = await self._keeper.ask("tokens", natives=names(sorted(unknown)))
            for native, batch in answer["tokens"].items():
                array = len(batch["tokens"]) > 1
                for index, token in enumerate(batch["tokens"]):
                    self._tokens[self._dialect.element(native, index) if array else native] = token
        return {one: self._tokens[one] for one in ids if one in self._tokens}

    # ------------------------------------------------------------------------------------------- orders

    async def cancel(self, ids: Sequence[str], grace: timedelta) -> list[Outcome]:
        """Leave word for the wrappers, then tell the batch system."""
        tokens = await self._known(ids)
        if tokens:
            answer = await self._keeper.ask(
                "cancel",
                tokens=list(tokens.values()),
                grace_s=grace.total_seconds(),
                processes=self._dialect.by_process,
            )
            await self._tell_to_end(tokens, set(answer["waiting"]), set(answer["running"]))
        return [Outcome(one, done=True) for one in ids]

    async def _tell_to_end(self, tokens: Mapping[str, str], waiting: set[str], running: set[str]) -> None:
        wait = [one for one, token in tokens.items() if token in waiting]
        run = [one for one, token in tokens.items() if token in running]
        orders = [*(self._dialect.cancel(wait, running=False) if wait else [])]
        orders += self._dialect.cancel(run, running=True) if run else []
        if orders:
            await self._keeper.ask("commands", commands=orders, commands_each=len(orders))

    async def hold(self, ids: Sequence[str], on: bool) -> list[Outcome]:
        """Hold waiting jobs, or let them go on."""
        if not self._dialect.can_hold:
            raise NotSupportedError(f"{self._dialect.kind} cannot hold jobs")
        tokens = await self._known(ids)
        orders = self._dialect.hold(list(tokens), on) if tokens else []
        answer = await self._keeper.ask("commands", commands=orders, commands_each=len(orders)) if orders else {}
        failed = next((one for one in answer.get("commands", ()) if one["exit_code"] != 0), None)
        message = " ".join(failed["stderr"].split()) if failed is not None else ""
        return [Outcome(one, done=failed is None, message=message) for one in ids]

    async def peek(self, native_id: str, stream: str, offset: int, limit: int) -> Chunk:
        """Read a piece of the log; at most 1 MiB."""
        if stream not in _STREAMS:
            raise ValueError(f"no such stream: {stream!r}; there are stdout and stderr")
        tokens = await self._known([native_id])
        if not tokens:
            return Chunk(0, b"", 0)
        answer = await self._keeper.ask("peek", token=tokens[native_id], stream=stream, offset=offset, limit=limit)
        return Chunk(answer["offset"], base64.b64decode(answer["data"]), answer["size"])

    async def fetch_output(self, native_id: str, location: str, target: str) -> None:
        """Copy one output from the job folder."""
        tokens = await self._known([native_id])
        if native_id not in tokens:
            raise FileNotFoundError(f"no job {native_id}")
        if location.startswith("/") or ".." in location.split("/"):
            raise ValueError(f"{location!r} leads out of the job folder")
        await self._keeper.host.get(f"{self._settings.spool}/jobs/{tokens[native_id]}/{location}", target)

    async def purge(self, ids: Sequence[str]) -> list[Outcome]:
        """Delete the folders of jobs that have ended."""
        tokens = await self._known(ids)
        refused: set[str] = set()
        if tokens:
            answer = await self._keeper.ask("purge", tokens=list(tokens.values()))
            refused = set(answer["refused"])
        if refused:
            looks = (await self.poll([one for one, token in tokens.items() if token in refused])).observations
            gone = [look.token for look in looks if look.state.final or look.seen is Seen.ABSENT]
            if gone:
                await self._keeper.ask("purge", tokens=gone, gone=gone)
            refused -= set(gone)
        for one, token in tokens.items():
            if token not in refused:
                self._tokens.pop(one, None)
                self._missed.pop(token, None)
        why = "it has not ended; cancel it first"
        return [
            Outcome(one, done=tokens.get(one) not in refused, message=why if tokens.get(one) in refused else "")
            for one in ids
        ]

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Read exit records, and the accounting of jobs that left none."""
        tokens = await self._known(ids)
        if not tokens:
            return {}
        answer = await self._keeper.ask("judge", tokens=list(tokens.values()))
        used = {}
        for one, token in tokens.items():
            record = answer["jobs"][token]["record"]
            if record and "usage" in record:
                used[one] = usage_of(record)
        orders = self._dialect.accounting([one for one in tokens if one not in used])
        if orders and len(used) < len(tokens):
            told = await self._keeper.ask("commands", commands=orders, commands_each=len(orders))
            accounts = self._dialect.accounts([answer_of(one) for one in told["commands"]])
            used |= {one: usage for one, (_, usage) in accounts.items() if one in tokens and one not in used}
        return used

    async def list_resources(self) -> list[ComputeResource]:
        """The queues as they are now."""
        orders = self._dialect.resources()
        answer = await self._keeper.ask("commands", commands=orders, commands_each=len(orders))
        return self._dialect.queues([answer_of(one) for one in answer["commands"]])

    async def aclose(self) -> None:
        """Let go of the host. Jobs go on."""
        await self._keeper.host.aclose()


def _so_far(told: Mapping[str, Any] | None) -> Usage | None:
    return usage_so_far(told["started"], told["beat"]) if told else None
