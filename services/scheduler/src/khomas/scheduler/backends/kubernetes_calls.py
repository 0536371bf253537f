"""Calls of a cluster's API server that look like commands, so that one keeper of job folders serves both."""

import asyncio
import json
import ssl
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import aiohttp
from yarl import URL

from khomas.scheduler.backends.commands import redacted

_AT_ONCE = 16
_CONFLICT, _NOT_FOUND = 409, 404
_UNAUTHORIZED, _TOO_MANY = 401, 429
# Before what certainly did not reach the cluster, and before what it certainly did not take.
NOT_SENT = "not sent: "
REFUSED = "refused: "
_AREAS = {"jobs": "apis/batch/v1", "pods": "api/v1", "resourcequotas": "api/v1"}


class KubernetesApi:
    """Speaks to one namespace; the token is read again for every call."""

    def __init__(self, url: str, token_file: Path, ca_file: Path | None, namespace: str) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._ca_file = ca_file
        self._namespace = namespace
        self._session: aiohttp.ClientSession | None = None

    async def command(self, argv: Sequence[str], seconds: float) -> dict[str, Any]:
        """Make a call: `GET kind[?query]`, `POST kind object`, `DELETE kind name…`."""
        began = time.time()
        status, text, said = await self._within(argv, seconds)
        good = 200 <= status < 300
        return {
            "argv": list(argv),
            "exit_code": 0 if good else status or None,
            "status": status or None,
            "stdout": text if good else "",
            "stderr": redacted(said),
            "time": began,
            "seconds": time.time() - began,
        }

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _within(self, argv: Sequence[str], seconds: float) -> tuple[int, str, str]:
        try:
            async with asyncio.timeout(seconds):
                return await self._made(*argv)
        except aiohttp.ClientConnectorError as error:
            return 0, "", f"{NOT_SENT}no API server answers at {self._url}: {error.strerror or error}"
        except OSError as error:
            if isinstance(error, TimeoutError):
                return 0, "", f"the API server at {self._url} did not answer within {seconds:g} s"
            return 0, "", f"{NOT_SENT}{error}"
        except aiohttp.ClientError as error:
            return 0, "", f"the connection to the API server at {self._url} broke: {error}"

    async def _made(self, method: str, kind: str, *rest: str) -> tuple[int, str, str]:
        if method == "POST":
            return await self._create(kind, json.loads(rest[0]))
        if method == "GET":
            return await self._call(method, kind)
        some = asyncio.Semaphore(_AT_ONCE)

        async def delete(name: str) -> tuple[int, str, str]:
            async with some:
                return await self._call(method, f"{kind}/{name}", {"propagationPolicy": "Background"})

        made = await asyncio.gather(*(delete(name) for name in rest))
        # What is not there need not be deleted.
        wrong = [one for one in made if one[0] != _NOT_FOUND and not 200 <= one[0] < 300]
        return wrong[0] if wrong else (200, "{}", "")

    async def _create(self, kind: str, item: dict[str, Any]) -> tuple[int, str, str]:
        """Create an object; one of this name that is there already is the one that was meant."""
        item["metadata"]["name"] = item["metadata"]["name"].lower()
        status, text, said = await self._call("POST", kind, item)
        if status == _CONFLICT or 200 <= status < 300:
            return 200, json.dumps({"name": item["metadata"]["name"]}), ""
        certain = REFUSED if 400 <= status < 500 and status not in (_UNAUTHORIZED, _TOO_MANY) else ""
        return status, text, certain + said

    async def _call(self, method: str, path: str, body: Any = None) -> tuple[int, str, str]:
        area = _AREAS[path.partition("?")[0].partition("/")[0]]
        url = URL(f"{self._url}/{area}/namespaces/{self._namespace}/{path}", encoded=True)
        headers = {"Authorization": f"Bearer {self._token_file.read_text().strip()}"}
        if self._session is None:
            # The deadline is that of the whole command.
            connector = aiohttp.TCPConnector(ssl=ssl.create_default_context(cafile=self._ca_file), limit=_AT_ONCE)
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None), connector=connector)
        async with self._session.request(method, url, headers=headers, json=body) as answer:
            text = await answer.text()
        return answer.status, text, _said(answer.status, text)


def _said(status: int, text: str) -> str:
    if 200 <= status < 300:
        return ""
    try:
        document = json.loads(text)
    except ValueError:
        document = {}
    why = document.get("message", text[:200]) if isinstance(document, Mapping) else text[:200]
    before = NOT_SENT if status in (_UNAUTHORIZED, _TOO_MANY) else ""
    return f"{before}the API server answered {status}: {why or 'and said nothing'}"
