"""Calls of the service's own methods by who comes over HTTP: the same token, policy and rules as over gRPC."""

import asyncio
import time
from dataclasses import dataclass
from typing import Any

from google.protobuf.message import Message

from khomas.api.scheduler.v1 import scheduler_service_pb2 as pb
from khomas.kit.auth.policy import policies_of
from khomas.kit.auth.principal import Principal
from khomas.kit.auth.verifier import Verifier
from khomas.kit.boundary import validation
from khomas.kit.boundary.call import Call, enter_call
from khomas.kit.errors import TokenMissing
from khomas.scheduler.servicer import SchedulerServicer

_SERVICE = pb.DESCRIPTOR.services_by_name["SchedulerService"]
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Calls:
    """The methods of the service."""

    servicer: SchedulerServicer
    verifier: Verifier

    async def admit(self, method: str, authorization: str) -> Principal:
        """Return who bears the token, if they may call this method at all."""
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise TokenMissing("The request carries no token; send one in the header Authorization: Bearer …")
        principal = await self.verifier.verify(token.strip())
        _POLICIES[method].check_caller(principal)
        return principal

    async def call(self, method: str, request: Message, authorization: str) -> Any:
        """Make a call for the bearer of a token."""
        principal = await self.admit(method, authorization)
        _POLICIES[method].check_request(principal, request)
        validation.check(request)
        name = f"/{_SERVICE.full_name}/{method}"
        enter_call(Call(method=name, principal=principal, origin="", deadline=time.monotonic() + _SECONDS))
        async with asyncio.timeout(_SECONDS):
            # Its methods need nothing of a connection.
            return await getattr(self.servicer, method)(request, None)


_POLICIES = policies_of(_SERVICE)
