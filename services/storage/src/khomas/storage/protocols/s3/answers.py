"""What errors of object stores mean, and what they say of objects."""

import base64
import re
from collections.abc import Mapping
from typing import Any, Final

from aiohttp import ClientError as ConnectionFailed
from botocore import exceptions as boto
from obstore import exceptions as obs

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.interface import Problem, ProtocolFault

_CODES: Final[Mapping[str, Problem]] = {
    **dict.fromkeys(
        (
            "AuthFailure",
            "ExpiredToken",
            "InvalidAccessKeyId",
            "InvalidClientTokenId",
            "InvalidToken",
            "SignatureDoesNotMatch",
        ),
        Problem.CREDENTIAL,
    ),
    **dict.fromkeys(("AccessDenied", "AllAccessDisabled", "KeyTooLongError"), Problem.REFUSED),
    **dict.fromkeys(("NoSuchKey", "NoSuchUpload"), Problem.ABSENT),
    # Not one file is lost when the bucket is not there.
    "NoSuchBucket": Problem.UNREACHABLE,
    **dict.fromkeys(("PreconditionFailed", "ConditionalRequestConflict"), Problem.TAKEN),
    **dict.fromkeys(("QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity"), Problem.FULL),
    **dict.fromkeys(("BadDigest", "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch"), Problem.CHECKSUM),
    **dict.fromkeys(
        ("AuthorizationHeaderMalformed", "InvalidBucketName", "PermanentRedirect", "RequestTimeTooSkewed"),
        Problem.CONFIGURATION,
    ),
    **dict.fromkeys(("NotImplemented", "MethodNotAllowed"), Problem.UNSUPPORTED),
    # In an archive: good once it is restored.
    "InvalidObjectState": Problem.PASSING,
}
_STATUS: Final[Mapping[int, Problem]] = {
    301: Problem.CONFIGURATION,
    401: Problem.CREDENTIAL,
    403: Problem.REFUSED,
    404: Problem.ABSENT,
    405: Problem.UNSUPPORTED,
    409: Problem.PASSING,
    412: Problem.TAKEN,
    501: Problem.UNSUPPORTED,
    507: Problem.FULL,
}
# What never came to an answer; the first that fits.
_KINDS: Final[tuple[tuple[type[Exception] | tuple[type[Exception], ...], Problem], ...]] = (
    (boto.SSLError, Problem.CONFIGURATION),
    ((boto.EndpointConnectionError, boto.ConnectTimeoutError, ConnectionRefusedError), Problem.UNREACHABLE),
    ((boto.ParamValidationError, ValueError), Problem.REFUSED),
)
_OBS_STATUS = re.compile(r"status code: (\d{3})")
_OBS_CODE = re.compile(r"<Code>(\w+)</Code>")
_OBS_WORDS = re.compile(r"\s*Debug source:.*", re.DOTALL)
_AWAY = re.compile(r"connect|dns error|error sending request", re.IGNORECASE)
_DISTRUST = re.compile(r"certificate|UnknownIssuer", re.IGNORECASE)
_RANGE_STATUS: Final = 416
_MESSAGE: Final = 400
_MD5 = re.compile(r"[0-9a-f]{32}")
ERRORS: Final = (boto.BotoCoreError, boto.ClientError, obs.BaseError, ConnectionFailed, OSError, ValueError)


def fault_of(error: Exception) -> ProtocolFault:
    """Return what an error of the libraries means."""
    if isinstance(error, boto.ClientError):
        said = error.response.get("Error", {})
        status = int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
        return ProtocolFault(problem_of(status, said.get("Code", "")), str(error)[:_MESSAGE])
    if isinstance(error, obs.BaseError | FileNotFoundError):
        return _obstore(error)
    problem = next((problem for kinds, problem in _KINDS if isinstance(error, kinds)), Problem.PASSING)
    return ProtocolFault(problem, (str(error) or type(error).__name__)[:_MESSAGE])


def problem_of(status: int, code: str) -> Problem:
    """Return what a status and the code that came with it mean."""
    if code in _CODES:
        return _CODES[code]
    return _STATUS.get(status) or (Problem.PASSING if status >= 500 or status in (0, 408, 429) else Problem.REFUSED)


def past_the_end(error: Exception) -> bool:
    """Tell whether a range begins where there is nothing any more."""
    status = _OBS_STATUS.search(str(error))
    return status is not None and int(status[1]) == _RANGE_STATUS


def ignores_ranges(error: Exception) -> bool:
    """Tell whether a server answers ranges with the status of the whole."""
    return "NotPartial" in str(error)


def _obstore(error: Exception) -> ProtocolFault:
    text = str(error)
    words = " ".join(_OBS_WORDS.sub("", text).split())[:_MESSAGE]
    status, code = _OBS_STATUS.search(text), _OBS_CODE.search(text)
    if status is not None:
        return ProtocolFault(problem_of(int(status[1]), code[1] if code else ""), words)
    if isinstance(error, FileNotFoundError):
        return ProtocolFault(Problem.ABSENT, words)
    if _DISTRUST.search(text):
        return ProtocolFault(Problem.CONFIGURATION, f"no trust: {words}")
    return ProtocolFault(Problem.UNREACHABLE if _AWAY.search(text) else Problem.PASSING, words)


def md5_of(etag: str | None, encryption: str = "") -> str | None:
    """Return the MD5 in an ETag; None where it is something else, as of objects that came in parts."""
    value = (etag or "").strip('"').lower()
    return value if _MD5.fullmatch(value) and encryption in ("", "AES256") else None


def digest_in(head: Mapping[str, Any], algorithm: Algorithm) -> str | None:
    """Return the checksum of the whole object in an answer to HEAD, in hexadecimal digits."""
    if algorithm is Algorithm.MD5:
        special = head.get("SSECustomerAlgorithm") and "customer"
        return md5_of(head.get("ETag"), special or head.get("ServerSideEncryption", ""))
    name = {Algorithm.SHA256: "ChecksumSHA256", Algorithm.CRC32: "ChecksumCRC32"}.get(algorithm, "")
    value = head.get(name)
    # That of an object in parts is one of its parts' checksums, with their number behind a dash.
    if not value or head.get("ChecksumType", "FULL_OBJECT") != "FULL_OBJECT" or "-" in value:
        return None
    return base64.b64decode(value).hex()
