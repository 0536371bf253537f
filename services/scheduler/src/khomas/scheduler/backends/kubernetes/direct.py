"""Jobs without a shared volume: manifests go by Secrets, records and logs come back by the API server.

The cluster is the truth; nothing is kept here.
"""

import asyncio
import json
import logging
import re
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from khomas.scheduler.backends import commands
from khomas.scheduler.backends.commands import CommandFailedError
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
    SubmitItem,
    SubmitOutcome,
    Submitted,
    Usage,
)
from khomas.scheduler.backends.journal import usage_of
from khomas.scheduler.backends.kubernetes import answers, logs, manifests, pods
from khomas.scheduler.backends.kubernetes.calls import CONFLICT, CREATED, NOT_FOUND, KubernetesApi, Reply, in_calls
from khomas.scheduler.backends.kubernetes.looks import CANCELLED, ends, look, overdue, pods_by_token
from khomas.scheduler.backends.kubernetes.manifests import BATCH, GROUP
from khomas.scheduler.backends.kubernetes.settings import KubernetesSettings
from khomas.scheduler.backends.kubernetes.volume import TOKEN, refusal
from khomas.scheduler.backends.script import render_script
from khomas.scheduler.backends.spool.dialect import needs_of

log = logging.getLogger(__name__)

_TOKEN = re.compile(r"[a-z0-9]([a-z0-9-]{0,48}[a-z0-9])?")
_PREFIX = "khomas-"
_STREAMS = ("stdout", "stderr")
# Up to so many jobs are asked for by name, more by the label that all of ours have.
_BY_NAME = 50
_ALIVE = "status.phase!=Succeeded,status.phase!=Failed"
_FOLDER, _BIN, _MANIFEST, _MESSAGE = "/khomas/job", "/khomas/bin", "/khomas/manifest", "/dev/termination-log"
Object = Mapping[str, Any]


class DirectBackend:
    """A namespace of a cluster."""

    def __init__(self, settings: KubernetesSettings, api: KubernetesApi) -> None:
        self._settings = settings
        self._api = api
        self.capabilities = Capabilities(
            kind="kubernetes",
            max_batch=settings.max_batch,
            min_poll_interval=timedelta(seconds=settings.poll_seconds),
            peek=True,
            native_options=pods.OPTIONS,
            wall_margin=timedelta(seconds=settings.margin_seconds),
        )

    def render(self, items: Sequence[SubmitItem]) -> list[RenderedScript]:
        """Say what submit would hand over, with the Job (but not where its manifest is) in a comment."""
        rendered = []
        for item in items:
            script = render_script(item.token, self._manifest(item).manifest)
            head, _, rest = script.content.partition("\n")
            job = self._job(item, "")
            del job["spec"]["template"]["spec"]["volumes"]
            rendered.append(replace(script, content=f"{head}\n# Handed over as: {json.dumps(job)}\n{rest}"))
        return rendered

    # ------------------------------------------------------------------------------------------- submit

    async def submit(self, items: Sequence[SubmitItem]) -> list[SubmitOutcome]:
        """Keep the manifests in Secrets, make a Job for each."""
        outcomes = {item.token: SubmitOutcome(item.token, Submitted.REJECTED, message=_wrong(item)) for item in items}
        wanted = [self._manifest(item) for item in items if not outcomes[item.token].message]
        reply = await self._ask("POST configmaps", manifests.bring_programs(self._api)) if wanted else None
        for batch in manifests.batches(wanted):
            assert reply is not None
            outcomes |= await self._hand_over(batch) if reply.good else _none_taken(batch, reply)
        return [outcomes[item.token] for item in items]

    async def _hand_over(self, batch: Sequence[SubmitItem]) -> dict[str, SubmitOutcome]:
        secret = manifests.secret(batch, self._settings.group)
        name = secret["metadata"]["name"]
        kept = await self._ask(f"POST secrets {name}", self._api.call("POST", "secrets", secret))
        if not kept.good:
            return _none_taken(batch, kept)
        replies = await asyncio.gather(*(self._create(self._job(item, name)) for item in batch))
        outcomes = {item.token: _submitted(item, reply) for item, reply in zip(batch, replies, strict=True)}
        if all(outcome.kind is not Submitted.UNKNOWN for outcome in outcomes.values()):
            # Else whoever sweeps finds out which of them there are.
            created = [reply.document() for reply in replies if reply.status == CREATED]
            done = manifests.give(self._api, name, created) if created else self._api.call("DELETE", f"secrets/{name}")
            await self._ask(f"PATCH secrets {name}", done)
        return outcomes

    async def _create(self, job: Object) -> Reply:
        return await self._ask(f"POST jobs {job['metadata']['name']}", self._api.call("POST", "jobs", job))

    def _job(self, item: SubmitItem, secret: str) -> dict[str, Any]:
        labels = {GROUP: self._settings.group, TOKEN: item.token, BATCH: secret}
        only = [{"key": item.token, "path": "job.json"}]
        program = manifests.programs()["metadata"]["name"]
        words = [f"{_BIN}/{manifests.PROGRAM}", f"{_MANIFEST}/job.json", _FOLDER, _MESSAGE]
        container = {
            "command": [self._settings.node_python, "-E", "-s", *words],
            "volumeMounts": [
                {"name": "bin", "mountPath": _BIN, "readOnly": True},
                {"name": "manifest", "mountPath": _MANIFEST, "readOnly": True},
                {"name": "job", "mountPath": _FOLDER},
            ],
            "volumes": [
                {"name": "bin", "configMap": {"name": program}},
                {"name": "manifest", "secret": {"secretName": secret, "items": only}},
                {"name": "job", "emptyDir": {}},
            ],
        }
        return pods.job(self._settings, needs_of(item), name_of(item.token), labels, container)

    def _manifest(self, item: SubmitItem) -> SubmitItem:
        path = {"path": self._settings.path} if self._settings.path else {}
        return replace(item, manifest={**path, **item.manifest, "token": item.token})

    async def find(self, tokens: Sequence[str]) -> dict[str, str]:
        """Look for Jobs by label."""
        wanted = [token for token in tokens if _TOKEN.fullmatch(token)]
        jobs = await self._listed("jobs", wanted)
        return {job["metadata"]["labels"][TOKEN]: job["metadata"]["name"] for job in jobs}

    # --------------------------------------------------------------------------------------------- look

    async def poll(self, ids: Sequence[str], cursor: str = "", measure: Collection[str] = ()) -> PollResult:
        """List Jobs and pods once."""
        if not ids:
            return PollResult([], complete=True, cursor="")
        tokens = [token_of(one) for one in ids]
        try:
            jobs, running = await asyncio.gather(self._listed("jobs", tokens), self._listed("pods", tokens))
        except CommandFailedError as error:
            log.warning("status.unanswered", extra={"backend": "kubernetes", "error": str(error)})
            seen = [Observation(token_of(one), one, Seen.NOT_ANSWERED) for one in ids]
            return PollResult(seen, complete=False, cursor="")
        by_name = {job["metadata"]["name"]: job for job in jobs}
        by_token = pods_by_token(running)
        await self._end_overdue([by_name[one] for one in ids if one in by_name], by_token)
        seen = await asyncio.gather(
            *(self._seen(one, by_name.get(one), by_token.get(token_of(one))) for one in dict.fromkeys(ids))
        )
        told = {one.native_id: one for one in seen}
        return PollResult([told[one] for one in ids], all(one.seen is not Seen.NOT_ANSWERED for one in seen), cursor="")

    async def _seen(self, native_id: str, job: Object | None, pod: Object | None) -> Observation:
        token = token_of(native_id)
        if job is None:
            return Observation(token, native_id, Seen.ABSENT)
        record = answers.record(pod, token)
        if record is not None and record.get("outputs_in_log"):
            assert pod is not None
            record = logs.record(await self._log(pod, tail=2))
            if record is None:
                return Observation(token, native_id, Seen.NOT_ANSWERED)
        return look(native_id, token, job, pod, record)

    async def _end_overdue(self, jobs: Sequence[Object], by_token: Mapping[str, Object]) -> None:
        """The cluster gives a cancelled pod its usual grace; here ends that of the order."""
        late = [
            token
            for job in jobs
            if overdue(job, by_token.get(token := job["metadata"]["labels"][TOKEN]), self._settings.cancel_seconds)
        ]
        for some in in_calls(late):
            await self._ask("DELETE pods", self._api.deleted("pods", TOKEN, some, _ALIVE, gracePeriodSeconds=1))

    async def _listed(self, kind: str, tokens: Sequence[str]) -> Sequence[Object]:
        """Objects of these jobs. Raises `CommandFailedError`."""
        selector = f"{GROUP}={self._settings.group}"
        if len(tokens) <= _BY_NAME:
            valid = [token for token in tokens if _TOKEN.fullmatch(token)]
            if not valid:
                return []
            selector += f",{TOKEN} in ({','.join(valid)})"
        reply = await self._ask(f"GET {kind} {selector}", self._api.listed(kind, selector))
        if not reply.good:
            raise CommandFailedError(reply.said)
        wanted = set(tokens)
        return [one for one in reply.items if one["metadata"].get("labels", {}).get(TOKEN) in wanted]

    async def _log(self, pod: Object, tail: int = 0) -> bytes:
        path = f"pods/{pod['metadata']['name']}/log?container=job" + (f"&tailLines={tail}" if tail else "")
        reply = await self._ask(f"GET {path}", self._api.call("GET", path))
        return reply.content if reply.good else b""

    async def _log_of(self, native_id: str) -> bytes:
        by_token = pods_by_token(await self._listed("pods", [token_of(native_id)]))
        pod = by_token.get(token_of(native_id))
        return await self._log(pod) if pod is not None else b""

    # ------------------------------------------------------------------------------------------- orders

    async def cancel(self, ids: Sequence[str], grace: timedelta) -> list[Outcome]:
        """Let the time of the Jobs be over: the cluster ends their pods and makes no others."""
        marks = {CANCELLED: json.dumps([time.time(), grace.total_seconds()])}
        patch = {"metadata": {"annotations": marks}, "spec": {"activeDeadlineSeconds": 0}}
        valid = [one for one in ids if _TOKEN.fullmatch(token_of(one))]
        replies = await asyncio.gather(
            *(self._ask(f"PATCH jobs {one}", self._api.call("PATCH", f"jobs/{one}", patch)) for one in valid)
        )
        failed = {one: reply.said for one, reply in zip(valid, replies, strict=True) if _undone(reply)}
        return [Outcome(one, done=one not in failed, message=failed.get(one, "")) for one in ids]

    async def hold(self, ids: Sequence[str], on: bool) -> list[Outcome]:
        """Not offered: to suspend a Job ends its pod."""
        raise NotSupportedError("kubernetes cannot hold jobs")

    async def peek(self, native_id: str, stream: str, offset: int, limit: int) -> Chunk:
        """Read a piece of the log; at most 1 MiB."""
        if stream not in _STREAMS:
            raise ValueError(f"no such stream: {stream!r}; there are stdout and stderr")
        return logs.part(await self._log_of(native_id), stream, offset, limit)

    async def fetch_output(self, native_id: str, location: str, target: str) -> None:
        """Read one output from the log."""
        content = logs.file(await self._log_of(native_id), location)
        if content is None:
            raise FileNotFoundError(f"the log of {native_id} has not (or not any more) the whole of {location}")
        await asyncio.to_thread(Path(target).write_bytes, content)

    async def purge(self, ids: Sequence[str]) -> list[Outcome]:
        """Delete Jobs that have ended, with their pods; the cluster deletes the Secrets after the last of a batch."""
        seen = (await self.poll(ids)).observations
        open_ones = {one.native_id for one in seen if not ends(one)}
        tokens = [one.token for one in seen if one.seen is Seen.PRESENT and one.native_id not in open_ones]
        for some in in_calls(tokens):
            reply = await self._ask("DELETE jobs", self._api.deleted("jobs", TOKEN, some))
            if not reply.good:
                raise CommandFailedError(reply.said)
        if tokens:
            await manifests.sweep(self._api, self._settings.group)
        why = "it has not ended; cancel it first"
        return [Outcome(one, one not in open_ones, why if one in open_ones else "") for one in ids]

    async def usage(self, ids: Sequence[str]) -> dict[str, Usage]:
        """Read exit records."""
        by_token = pods_by_token(await self._listed("pods", [token_of(one) for one in ids]))
        records = {one: answers.record(by_token.get(token_of(one)), token_of(one)) for one in ids}
        return {one: usage_of(record) for one, record in records.items() if record and "usage" in record}

    async def list_resources(self) -> list[ComputeResource]:
        """The namespace as it is now."""
        kinds = ("resourcequotas", "pods", "nodes")
        replies = await asyncio.gather(*(self._ask(f"GET {kind}", self._api.listed(kind)) for kind in kinds))
        failed = next((reply for reply in replies[:2] if not reply.good), None)
        if failed is not None:
            raise CommandFailedError(failed.said)
        quotas, running, nodes = (reply.items for reply in replies)
        return [answers.namespace(quotas, running, nodes)]

    async def aclose(self) -> None:
        """Close the connections. Jobs go on."""
        await self._api.aclose()

    async def _ask(self, what: str, call: Any) -> Reply:
        """Make a call that people can see afterwards."""
        began = time.time()
        reply = await self._api.within(call, self._settings.command_seconds)
        start = datetime.fromtimestamp(began, UTC)
        commands.note(what.split(), reply.status or None, reply.said, start, time.time() - began)
        return reply


def name_of(token: str) -> str:
    """The Job of a token."""
    return f"{_PREFIX}{token}"


def token_of(native_id: str) -> str:
    """The token of a Job."""
    return native_id.removeprefix(_PREFIX)


def _wrong(item: SubmitItem) -> str:
    if not _TOKEN.fullmatch(item.token):
        return f"{item.token!r} is no token: 1 to 50 of a-z, 0-9 and '-'"
    unknown = sorted(item.native.keys() - pods.OPTIONS)
    if unknown:
        return f"kubernetes has no option {', '.join(unknown)}; there are: {', '.join(sorted(pods.OPTIONS))}"
    return ""


def _submitted(item: SubmitItem, reply: Reply) -> SubmitOutcome:
    if reply.good or reply.status == CONFLICT:
        return SubmitOutcome(item.token, Submitted.ACCEPTED, native_id=name_of(item.token))
    return _refused(item, reply) or SubmitOutcome(item.token, Submitted.UNKNOWN, message=reply.said)


def _refused(item: SubmitItem, reply: Reply) -> SubmitOutcome | None:
    why = refusal(reply.said)
    if why is None:
        return None
    return SubmitOutcome(item.token, why.kind, message=why.message, retry_after=why.retry_after)


def _none_taken(batch: Sequence[SubmitItem], reply: Reply) -> dict[str, SubmitOutcome]:
    """What the jobs need is not there, so none of them is."""
    later = timedelta(seconds=30)
    return {
        item.token: _refused(item, reply)
        or SubmitOutcome(item.token, Submitted.THROTTLED, message=reply.said, retry_after=later)
        for item in batch
    }


def _undone(reply: Reply) -> bool:
    """What is not there need not be cancelled."""
    return not reply.good and reply.status != NOT_FOUND
