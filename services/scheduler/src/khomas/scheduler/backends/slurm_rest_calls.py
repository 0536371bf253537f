"""Calls of slurmrestd, and a host on which they are the commands."""

import asyncio
import base64
import binascii
import json
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import aiohttp
from yarl import URL

from khomas.scheduler.backends import slurm_rest_answers as answers
from khomas.scheduler.backends.commands import CommandFailedError, Result, redacted
from khomas.scheduler.backends.spool.hosts import LocalHost
from khomas.scheduler.wrapper.khomas_spool import OPERATIONS, Spool

# One of them is spoken by every Slurm from 22.05 to 24.11.
VERSIONS = ("v0.0.40", "v0.0.38")
_AT_ONCE = 8
_NOT_FOUND = 404
_NOT_ACCEPTED = (401, 511)
# More than a call takes at most, for the thread that waits for it: its loop may have ended.
_MARGIN_SECONDS = 5.0
# Before what certainly did not reach Slurm, and before what Slurm certainly did not take.
NOT_SENT = "not sent: "
REFUSED = "refused: "


@dataclass(frozen=True, slots=True)
class Token:
    """A JWT that Slurm knows: who it is for, and until when."""

    text: str
    user: str
    expires: float | None

    @classmethod
    def read(cls, path: Path) -> "Token":
        """Read what `scontrol token` printed. Raises ValueError that says what to do."""
        try:
            text = path.read_text().strip().removeprefix("SLURM_JWT=")
            claims = text.split(".")[1]
            content = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
        except OSError as error:
            raise ValueError(f"no token of Slurm can be read from {path}: {error.strerror}") from error
        except (IndexError, ValueError, binascii.Error) as error:
            raise ValueError(f"{path} holds no token of Slurm; write what `scontrol token` prints there") from error
        return cls(text, str(content.get("sun", "")), content.get("exp"))


class SlurmRest:
    """Speaks to one slurmrestd as the user of the token, which is read again for every call."""

    def __init__(self, url: str, token_file: Path, user: str) -> None:
        self._url = url.rstrip("/")
        self._token_file = token_file
        self._user = user
        self._session: aiohttp.ClientSession | None = None
        self._version = ""

    async def command(self, argv: Sequence[str], seconds: float) -> dict[str, Any]:
        """Make a call; the answer looks like that of a command, so that one keeper serves both.

        `GET path [prefix]` (of a list of jobs, only those whose names begin so), `POST path body`,
        `DELETE path id…` (with each id in the place of {}).
        """
        began = time.time()
        status, document, said = await self._within(argv, seconds)
        good = status == 200
        if good and argv[0] == "GET":
            document = await asyncio.to_thread(answers.shrunk, document, argv[2]) if argv[2:] else document
        return {
            "argv": list(argv),
            "exit_code": 0 if good else status or None,
            "status": status or None,
            "stdout": json.dumps(document) if good else "",
            "stderr": redacted(said),
            "time": began,
            "seconds": time.time() - began,
        }

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def _within(self, argv: Sequence[str], seconds: float) -> tuple[int, answers.Document, str]:
        try:
            async with asyncio.timeout(seconds):
                return await self._made(argv)
        except ValueError as error:
            return 0, {}, f"{NOT_SENT}{error}"
        except aiohttp.ClientConnectorError as error:
            return 0, {}, f"{NOT_SENT}slurmrestd does not answer at {self._url}: {error.strerror or error}"
        except TimeoutError:
            return 0, {}, f"slurmrestd at {self._url} did not answer within {seconds:g} s"
        except aiohttp.ClientError as error:
            return 0, {}, f"the connection to slurmrestd at {self._url} broke: {error}"

    async def _made(self, argv: Sequence[str]) -> tuple[int, answers.Document, str]:
        token = self._token()
        version = await self._spoken(token)
        method, path, *rest = argv
        if method != "DELETE":
            return await self._call(token, method, _path(path, version), _body(rest, version))
        some = asyncio.Semaphore(_AT_ONCE)

        async def delete(one: str) -> tuple[int, answers.Document, str]:
            async with some:
                return await self._call(token, method, _path(path.replace("{}", one), version), None)

        made = await asyncio.gather(*(delete(one) for one in rest))
        return next((one for one in made if one[0] != 200), made[0])

    async def _spoken(self, token: Token) -> str:
        """Find the version, once a server."""
        if not self._version:
            for version in VERSIONS:
                status, _, _ = await self._call(token, "GET", _path("slurm/ping", version), None)
                if status != _NOT_FOUND:
                    self._version = version
                    break
            else:
                raise ValueError(f"slurmrestd at {self._url} speaks none of {', '.join(VERSIONS)}")
        return self._version

    async def _call(self, token: Token, method: str, path: str, body: Any) -> tuple[int, answers.Document, str]:
        headers = {"X-SLURM-USER-NAME": self._user or token.user, "X-SLURM-USER-TOKEN": token.text}
        if self._session is None:
            # The deadline is that of the whole command.
            self._session = aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=None))
        # Encoded already: slurmrestd understands no plain comma in a query.
        url = URL(f"{self._url}{path}", encoded=True)
        async with self._session.request(method, url, headers=headers, json=body) as answer:
            content = await answer.read()
            document = await asyncio.to_thread(_document, content)
        if answer.status == _NOT_FOUND:
            self._version = ""  # another server has taken its place
        return answer.status, document, _said(answer.status, document, method)

    def _token(self) -> Token:
        token = Token.read(self._token_file)
        if token.expires is not None and token.expires <= time.time():
            when = datetime.fromtimestamp(token.expires, UTC).strftime("%Y-%m-%d %H:%M:%S")
            raise ValueError(
                f"the token in {self._token_file} expired at {when} UTC; write a new one of `scontrol token`"
            )
        if not (self._user or token.user):
            raise ValueError(f"the token in {self._token_file} does not say for whom it is; set `user`")
        return token


def _path(path: str, version: str) -> str:
    area, _, rest = path.partition("/")
    return f"/{area}/{version}/{rest}"


def _body(rest: Sequence[str], version: str) -> Any:
    """The body of a submission, in the words of the version."""
    if not rest or not rest[0].startswith("{"):
        return None
    body = json.loads(rest[0])
    if version == "v0.0.38":
        return body
    return {**body, "job": dict(_newer(name, value) for name, value in body["job"].items())}


def _newer(name: str, value: Any) -> tuple[str, Any]:
    """A property as v0.0.40 has it: it takes no notice of those that it does not know."""
    match name:
        case "environment":
            return name, [f"{key}={text}" for key, text in value.items()]
        case "memory_per_node" | "time_limit":
            return name, {"set": True, "number": value}
        case "nodelist":
            return "required_nodes", [value]
        case "exclude_nodes":
            return "excluded_nodes", [value]
        case "gres":
            return "tres_per_node", ",".join(f"gres/{one}" for one in str(value).split(","))
    return name, value


def _document(content: bytes) -> answers.Document:
    try:
        document = json.loads(content)
    except ValueError:
        document = None
    if isinstance(document, Mapping):
        return document
    return {"errors": [{"error": content[:200].decode("utf-8", "replace")}]}


def _said(status: int, document: answers.Document, method: str) -> str:
    wrong = "; ".join(f"{text} ({code})" if code > 0 else text for code, text in answers.errors(document))
    if status == 200:
        return wrong
    if status in _NOT_ACCEPTED:
        return f"{NOT_SENT}Slurm does not accept the token: {wrong}"
    if status == _NOT_FOUND:
        return f"{NOT_SENT}slurmrestd does not know this call: {wrong}"
    certain = REFUSED if method == "POST" and answers.refused(status, document) else ""
    return f"{certain}slurmrestd answered {status}: {wrong or 'and said nothing'}"


class Rest(Protocol):
    """A server whose calls stand for commands."""

    async def command(self, argv: Sequence[str], seconds: float) -> dict[str, Any]:
        """Make a call; the answer looks like that of a command."""

    async def aclose(self) -> None:
        """Close the connections."""


class RestHost:
    """This machine, with calls of a server as its commands: the keeper works in threads of this process."""

    local = True

    def __init__(self, rest: Rest) -> None:
        self._rest = rest
        self._files = LocalHost()
        self._threads = ThreadPoolExecutor(_AT_ONCE, "rest-host")
        self.python = self._files.python

    async def run(self, argv: Sequence[str], stdin: bytes, seconds: float) -> Result:
        """Do what the keeper is asked for. Raises `CommandFailedError`."""
        loop = asyncio.get_running_loop()

        def command(argv: list[str], env: Mapping[str, str], patience: float) -> dict[str, Any]:
            call = asyncio.run_coroutine_threadsafe(self._rest.command(argv, patience), loop)
            return call.result(patience + _MARGIN_SECONDS)

        def work() -> bytes:
            request = json.loads(stdin)
            assert request["op"] in OPERATIONS
            return json.dumps(getattr(Spool(request["spool"], command), request["op"])(request)).encode()

        try:
            async with asyncio.timeout(seconds):
                return Result(0, await loop.run_in_executor(self._threads, work), b"")
        except FileNotFoundError:
            raise  # the spool is gone; whoever asked makes it again
        except OSError as error:
            said = str(error) or "no answer in time"
            raise CommandFailedError(f"the spool could not be worked on: {said}") from error

    async def install(self, folder: str, files: Mapping[str, bytes]) -> None:
        """Write files that are not there yet."""
        await self._files.install(folder, files)

    async def get(self, path: str, target: str) -> None:
        """Copy a file."""
        await self._files.get(path, target)

    async def aclose(self) -> None:
        """Close the connections; what is under way ends by its own deadline."""
        self._threads.shutdown(wait=False)
        await self._rest.aclose()
