"""Routes of the door, and how its errors look over HTTP."""

import errno
import json
import logging
from concurrent.futures import Executor
from datetime import UTC, datetime

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware
from grpc import StatusCode

from khomas.kit.errors import DomainError
from khomas.storage.door.dav import NAME, Dav
from khomas.storage.door.downloads import Reading
from khomas.storage.door.grant import GRANT
from khomas.storage.door.refusal import Refusal
from khomas.storage.door.uploads import Writing
from khomas.storage.elements.elements import Elements, Protocols
from khomas.storage.errors import (
    GrantRefused,
    PathNotFound,
    PathRefused,
    StorageElementNotFound,
    UploadNotFound,
    UploadState,
)
from khomas.storage.grants.granting import IN_URL
from khomas.storage.grants.grants import Right, Signer
from khomas.storage.protocols.interface import Problem, ProtocolFault
from khomas.storage.uploads.uploads import Uploads

log = logging.getLogger(__name__)


_STATUS: dict[type[DomainError], int] = {
    PathRefused: 400,
    PathNotFound: 404,
    StorageElementNotFound: 404,
    UploadNotFound: 404,
    UploadState: 409,
}
_PROBLEM_STATUS = {Problem.ABSENT: 404, Problem.REFUSED: 403, Problem.FULL: 507}
_SERVER = "Khomas"
_BASIC = 'Basic realm="the token is the password", charset="UTF-8"'
_FULL = (errno.ENOSPC, errno.EDQUOT)


def door(
    signer: Signer, uploads: Uploads, elements: Elements, protocols: Protocols, executor: Executor, dav: Dav
) -> web.Application:
    """Build the application."""
    # Without limit: the body of a PUT is a file, and is never held in memory.
    application = web.Application(client_max_size=0, middlewares=[_errors, _guard(signer)])
    application.on_response_prepare.append(_sign)
    dav.add_to(application)
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
        if request.match_info.route.name == NAME:
            # The tree wants another kind of token, and asks for it itself.
            return await handler(request)
        grant = signer.grant(_token(request), datetime.now(UTC))
        right = Right.READ if request.path.startswith("/files/") else Right.WRITE
        if not grant.covers(right, request.path):
            return _answer(403, "The grant is for another path.", "GRANT_REFUSED")
        request[GRANT] = grant
        return await handler(request)

    return guard


def _token(request: web.Request) -> str:
    """Return what comes in the header, or in the address for those who send no headers."""
    scheme, _, token = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return token
    if (token := request.query.get(IN_URL, "")) == "":
        raise GrantRefused
    return token


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        return await handler(request)
    except Refusal as refusal:
        return _answer(refusal.status, refusal.message, refusal.reason)
    except DomainError as error:
        return _answer(_status(error), error.message, error.reason)
    except ProtocolFault as fault:
        return _answer(_PROBLEM_STATUS.get(fault.problem, 503), fault.message, fault.problem.name)
    except OSError as error:
        if error.errno not in _FULL:
            raise
        log.warning("door.full", extra={"path": request.path})
        return _answer(507, "The storage is full.", "NO_SPACE")


async def _sign(_: web.Request, response: web.StreamResponse) -> None:
    # Others speak to us as our name lets them expect.
    response.headers["Server"] = _SERVER
    # An address may be a grant: pages that it leads to need not know it.
    response.headers["Referrer-Policy"] = "no-referrer"


def _status(error: DomainError) -> int:
    if error.code is StatusCode.UNAUTHENTICATED:
        return 401
    return _STATUS.get(type(error), 503 if error.code is StatusCode.UNAVAILABLE else 500)


def _answer(status: int, message: str, reason: str) -> web.Response:
    body = json.dumps({"reason": reason, "message": message})
    # The rest of a refused body is not worth reading.
    response = web.Response(status=status, text=body, content_type="application/json")
    if status == web.HTTPUnauthorized.status_code:
        # Browsers know only the second one.
        response.headers.extend([("WWW-Authenticate", "Bearer"), ("WWW-Authenticate", _BASIC)])
    response.force_close()
    return response
