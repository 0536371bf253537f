"""Calls of a cluster's API server; some look like commands, so that one keeper of job folders serves both."""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import aiohttp
from yarl import URL

from khomas.scheduler.backends.commands import redacted

AT_ONCE = 16
CREATED, CONFLICT, NOT_FOUND = 201, 409, 404
_UNAUTHORIZED, _FORBIDDEN, _GONE, _TOO_MANY = 401, 403, 410, 429
# Names in one call: they stand in its address.
_IN_ADDRESS = 100
# Before what certainly did not reach the cluster, and before what it certainly did not take.
NOT_SENT = "not sent: "
REFUSED = "refused: "
# The label that repeats the name of an object, so that many can be chosen in one call.
NAME = "khomas.io/name"
_AREAS = {"jobs": "apis/batch/v1"}
_MERGE = "application/merge-patch+json"


@dataclass(frozen=True, slots=True)
class Reply:
    """What the API server answered; status 0 = nothing."""

    status: int
    content: bytes
    # What went wrong, in a sentence; empty = nothing.
    said: str = ""
    # Those of all pages of a list.
    items: Sequence[Mapping[str, Any]] = ()

    @property
    def good(self) -> bool:
        """Whether it did what was wanted."""
        return 200 <= self.status < 300

    def document(self) -> Any:
        """The object, list or status."""
        return json.loads(self.content or b"{}")


class KubernetesApi:
    """Speaks to one namespace; the token is read again for every call."""

    def __init__(self, url: str, token_file: Path, ca_file: Path | None, namespace: str, page: int = 500) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._ca_file = ca_file
        self._namespace = namespace
        # Objects in one answer.
        self._page = page
        self._session: aiohttp.ClientSession | None = None
        self._some = asyncio.Semaphore(AT_ONCE)

    async def command(self, argv: Sequence[str], seconds: float) -> dict[str, Any]:
        """Make a call: `GET kind [selector]`, `POST kind object`, `DELETE kind name…`."""
        began = time.time()
        reply = await self.within(self._made(*argv), seconds)
        return {
            "argv": list(argv),
            "exit_code": 0 if reply.good else reply.status or None,
            "status": reply.status or None,
            "stdout": reply.content.decode("utf-8", "replace") if reply.good else "",
            "stderr": redacted(reply.said),
            "time": began,
            "seconds": time.time() - began,
        }

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def within(self, call: Any, seconds: float) -> Reply:
        """Wait for a call; no answer is an answer too."""
        try:
            async with asyncio.timeout(seconds):
                reply: Reply = await call
                return reply
        except aiohttp.ClientConnectorError as error:
            return Reply(0, b"", f"{NOT_SENT}no API server answers at {self._url}: {error.strerror or error}")
        except OSError as error:
            if isinstance(error, TimeoutError):
                return Reply(0, b"", f"the API server at {self._url} did not answer within {seconds:g} s")
            return Reply(0, b"", f"{NOT_SENT}{error}")
        except aiohttp.ClientError as error:
            return Reply(0, b"", f"the connection to the API server at {self._url} broke: {error}")

    async def _made(self, method: str, kind: str, *rest: str) -> Reply:
        if method == "POST":
            return await self._created(kind, json.loads(rest[0]))
        if method == "GET":
            reply = await self.listed(kind, *rest)
            return replace(reply, content=await asyncio.to_thread(_encoded, {"items": reply.items}))
        return await self.deleted(kind, NAME, rest)

    async def _created(self, kind: str, item: dict[str, Any]) -> Reply:
        """Create an object; one of this name that is there already is the one that was meant."""
        name = item["metadata"]["name"] = item["metadata"]["name"].lower()
        for metadata in (item["metadata"], item["spec"]["template"]["metadata"]):
            metadata["labels"][NAME] = name
        reply = await self.call("POST", kind, item)
        return Reply(CREATED, json.dumps({"name": name}).encode()) if reply.good or reply.status == CONFLICT else reply

    async def listed(self, kind: str, selector: str = "") -> Reply:
        """All objects with these labels, by pages; from the start in one page when the cluster lost its place."""
        items: list[Any] = []
        place, size = "", self._page
        while True:
            query = f"labelSelector={quote(selector)}&limit={size}&continue={quote(place)}"
            reply = await self.call("GET", f"{kind}?{query}")
            if reply.status == _GONE and place:
                items, place, size = [], "", 0
                continue
            if not reply.good:
                return reply
            page = await asyncio.to_thread(reply.document)
            items += page["items"]
            place = page.get("metadata", {}).get("continue", "")
            if not place:
                return Reply(200, b"", items=items)

    async def deleted(self, kind: str, label: str, values: Sequence[str], fields: str = "", **options: Any) -> Reply:
        """Delete those with these values of a label, with all that belongs to them; what is not there is no error."""
        chosen = quote(f"{label} in ({','.join(values)})")
        where = f"labelSelector={chosen}" + (f"&fieldSelector={quote(fields)}" if fields else "")
        return await self.call("DELETE", f"{kind}?{where}", {"propagationPolicy": "Background", **options})

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Reply:
        """Make one call; nodes are those of the cluster, everything else is of the namespace."""
        kind = path.partition("?")[0].partition("/")[0]
        area = _AREAS.get(kind, "api/v1") + ("" if kind == "nodes" else f"/namespaces/{self._namespace}")
        url = URL(f"{self._url}/{area}/{path}", encoded=True)
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
        data = await asyncio.to_thread(_encoded, body) if body is not None else None
        if data is not None:
            headers["Content-Type"] = _MERGE if method == "PATCH" else "application/json"
        if self._session is None:
            # The deadline is that of the whole command.
            connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self._ca_file), limit=AT_ONCE)
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), connector=connector)
        async with self._some, self._session.request(method, url, headers=headers, data=data) as answer:
            content = await answer.read()
        return Reply(answer.status, content, self._said(method, answer.status, content))

    def _said(self, method: str, status: int, content: bytes) -> str:
        if 200 <= status < 300:
            return ""
        why = _message(content)
        if status == _UNAUTHORIZED:
            return f"{NOT_SENT}the API server does not accept the token in {self._token_file} (401): {why}"
        if status == _FORBIDDEN and " cannot " in why:
            return (
                f"{NOT_SENT}the account of the token may not do this (403), give it the role in deploy/k8s/jobs: {why}"
            )
        before = NOT_SENT if status == _TOO_MANY else REFUSED if method == "POST" and 400 <= status < 500 else ""
        return f"{before}the API server answered {status}: {why}"


def in_calls(names: Sequence[str]) -> list[Sequence[str]]:
    """Names for one call each."""
    return [names[start : start + _IN_ADDRESS] for start in range(0, len(names), _IN_ADDRESS)]


def _message(content: bytes) -> str:
    text = content[:500].decode("utf-8", "replace")
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, Mapping):
        text = str(document.get("message") or text)
    return text or "and said nothing"


def _encoded(document: Any) -> bytes:
    return json.dumps(document).encode()
