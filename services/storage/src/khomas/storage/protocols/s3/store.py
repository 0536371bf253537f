"""The two libraries that reach a bucket, open with the keys that are good now."""

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore import UNSIGNED
from obstore.store import S3Store

from khomas.kit.credentials import CredentialProvider
from khomas.kit.credentials.access_key import Keys, keys_in
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.protocols.s3.answers import ERRORS, fault_of
from khomas.storage.protocols.s3.settings import Bucket, S3Settings

if TYPE_CHECKING:
    # A type alone, which is not there at run time.
    from obstore.store import ClientConfig

_RETRIES: Final = 2
_KEYS_SECONDS: Final = 1.0
# Of a whole request, which may be a large file: what limits it is silence.
_DAY: Final = timedelta(days=1)


class Store:
    """A bucket. Opens nothing before it is needed, and opens again when the keys change."""

    def __init__(self, bucket: Bucket, settings: S3Settings, credential: CredentialProvider | None) -> None:
        self.bucket = bucket
        self.settings = settings
        self._credential = credential
        self._keys: Keys | None = None
        self._good_until = 0.0
        self._objects: S3Store | None = None
        self._client: Any = None
        self._stack = AsyncExitStack()
        self._opening = asyncio.Lock()

    async def objects(self) -> S3Store:
        """Return what moves bytes."""
        await self._renewed()
        if self._objects is None:
            self._objects = await asyncio.to_thread(self._object_store)
        return self._objects

    async def client(self) -> Any:
        """Return what knows all requests."""
        await self._renewed()
        async with self._opening:
            if self._client is None:
                self._client = await self._stack.enter_async_context(self._boto())
        return self._client

    async def close(self) -> None:
        """End all connections."""
        self._objects = self._client = None
        stack, self._stack = self._stack, AsyncExitStack()
        await stack.aclose()

    async def _renewed(self) -> None:
        """Read the keys again after a moment."""
        if self._credential is None or self._good_until > time.monotonic():
            return
        keys = await asyncio.to_thread(self._current)
        self._good_until = time.monotonic() + _KEYS_SECONDS
        if keys != self._keys:
            # Who works with the old client ends with it.
            self._objects = self._client = None
            self._keys = keys

    def _current(self) -> Keys:
        """Read the keys. What their end makes of them is found out here: stores say only that they refuse."""
        assert self._credential is not None
        known, name = self._credential.status(), self._credential.name
        if not known.usable(datetime.now(UTC)):
            trouble = known.trouble or "it is not valid now"
            raise ProtocolFault(Problem.CREDENTIAL, f"credential {name}: {trouble}. {known.remedy}".rstrip())
        path = self._credential.files().get("keys")
        if path is None:
            message = f"credential {name} is of kind {self._credential.kind}, which has no access key"
            raise ProtocolFault(Problem.CONFIGURATION, message)
        try:
            return keys_in(path.read_text(), self._credential.environment().get("AWS_PROFILE", "default"))
        except (OSError, ValueError) as error:
            raise ProtocolFault(Problem.CREDENTIAL, f"credential {name}: {error}") from None

    @property
    def _endpoint(self) -> str:
        return f"{'http' if self.settings.plain else 'https'}://{self.bucket.host}"

    def _object_store(self) -> S3Store:
        settings, keys = self.settings, self._keys
        endpoint = self._endpoint
        if settings.bucket_in_host:
            endpoint = endpoint.replace("://", f"://{self.bucket.name}.")
        options: ClientConfig = {
            "allow_http": settings.plain,
            "connect_timeout": timedelta(seconds=settings.connect_seconds),
            "read_timeout": timedelta(seconds=settings.idle_seconds),
            "timeout": _DAY,
        }
        if settings.authorities is not None:
            options["root_certificate"] = _authorities(settings.authorities)
        login: dict[str, Any] = {"skip_signature": True}
        if keys is not None:
            login = {"access_key_id": keys.access_key, "secret_access_key": keys.secret_key}
            if keys.session_token is not None:
                login["session_token"] = keys.session_token
        return S3Store(
            self.bucket.name,
            endpoint=endpoint,
            region=settings.region,
            virtual_hosted_style_request=settings.bucket_in_host,
            # Only over TLS nobody changes them on the way.
            unsigned_payload=not settings.plain,
            client_options=options,
            retry_config={
                "max_retries": _RETRIES,
                "retry_timeout": timedelta(seconds=settings.seconds),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=2),
                    "base": 2,
                },
            },
            **login,
        )

    @asynccontextmanager
    async def _boto(self) -> AsyncIterator[Any]:
        settings, keys = self.settings, self._keys
        config = AioConfig(
            signature_version="s3v4" if keys is not None else UNSIGNED,
            s3={"addressing_style": "virtual" if settings.bucket_in_host else "path"},
            connect_timeout=settings.connect_seconds,
            read_timeout=settings.idle_seconds,
            max_pool_connections=settings.requests,
            retries={"total_max_attempts": _RETRIES + 1, "mode": "standard"},
            # Servers that do not know the newer checksums refuse them, or answer with those of the whole to parts.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        async with _session().create_client(
            "s3",
            region_name=settings.region,
            endpoint_url=self._endpoint,
            verify=str(settings.authorities) if settings.authorities is not None else None,
            aws_access_key_id=keys.access_key if keys is not None else None,
            aws_secret_access_key=keys.secret_key if keys is not None else None,
            aws_session_token=keys.session_token if keys is not None else None,
            config=config,
        ) as client:
            yield client

    @asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        """Turn errors of the libraries into ProtocolFault."""
        try:
            yield
        except ERRORS as error:
            fault = fault_of(error)
            if fault.problem is Problem.CREDENTIAL:
                # There may be better ones meanwhile.
                self._good_until = 0.0
            raise fault from error


@cache
def _session() -> AioSession:
    """Return what has read how S3 is spoken, which takes as long as a hundred requests."""
    # What somebody has set for tools of AWS is not meant for this.
    unset = (None, None, None, None)
    nowhere = (None, None, os.devnull, None)
    return AioSession({"profile": unset, "config_file": nowhere, "credentials_file": nowhere})


def _authorities(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ProtocolFault(Problem.CONFIGURATION, f"the authorities {path}: {error.strerror}") from error
