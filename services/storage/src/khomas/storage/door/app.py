"""Routes of the door, and how its errors look over HTTP."""

import errno
import json
import logging
from concurrent.futures import Executor
from datetime import UTC, datetime

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from khomas.kit.errors import DomainError
from khomas.storage.door.downloads import Reading
from khomas.storage.door.grant import GRANT
from khomas.storage.door.uploads import Writing
from khomas.storage.elements import Elements, Protocols
from khomas.storage.errors import (
    GrantRefused,
    PathNotFound,
    PathRefused,
    StorageElementNotFound,
    UploadNotFound,
    UploadState,
)
from khomas.storage.grants import Right, Signer
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.uploads import Uploads

log = logging.getLogger(__name__)


_STATUS: dict[type[DomainError], int] = {
    GrantRefused: 401,
    PathRefused: 400,
    PathNotFound: 404,
    StorageElementNotFound: 404,
    UploadNotFound: 404,
    UploadState: 409,
}
_PROBLEM_STATUS = {Problem.ABSENT: 404, Problem.REFUSED: 403, Problem.FULL: 507}
_FULL = (errno.ENOSPC, errno.EDQUOT)


def door(
    signer: Signer, uploads: Uploads, elements: Elements, protocols: Protocols, executor: Executor
) -> web.Application:
    """Build the application."""
    # Without limit: the body of a PUT is a file, and is never held in memory.
    application = web.Application(client_max_size=0, middlewares=[_errors, _guard(signer)])
    reading, writing = Reading(elements, protocols), Writing(uploads, protocols, executor)
    application.router.add_get("/files/{element}/{path:.+}", reading.get)
    application.router.add_get("/uploads/{upload}/{index:[0-9]{1,5}}", writing.get)
    application.router.add_put("/uploads/{upload}/{index:[0-9]{1,5}}", writing.put)
    application.router.add_delete("/uploads/{upload}/{index:[0-9]{1,5}}", writing.delete)
    return application


def _guard(signer: Signer) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Let nobody in without a grant for this very address; then 401, or 403 for another address."""
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        if scheme.lower() != "bearer":
            raise GrantRefused
        grant = signer.grant(token, datetime.now(UTC))
        right = Right.READ if request.path.startswith("/files/") else Right.WRITE
        if not grant.covers(right, request.path):
            return _answer(403, "The grant is for another path.", "GRANT_REFUSED")
        request[GRANT] = grant
        return await handler(request)

    return guard


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except DomainError as error:
        return _answer(_STATUS.get(type(error), 500), error.message, error.reason)
    except ProtocolFault as fault:
        return _answer(_PROBLEM_STATUS.get(fault.problem, 503), fault.message, fault.problem.name)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        log.warning("door.full", extra={"path": request.path})
        return _answer(507, "The storage is full.", "NO_SPACE")


def _answer(status: int, message: str, reason: str) -> web.Response:
    body = json.dumps({"reason": reason, "message": message})
    headers = {"WWW-Authenticate": "Bearer"} if status == web.HTTPUnauthorized.status_code else None
    # The rest of a refused body is not worth reading.
    response = web.Response(status=status, text=body, content_type="application/json", headers=headers)
    response.force_close()
    return response
