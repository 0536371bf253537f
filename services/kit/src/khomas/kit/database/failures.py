"""What a failing database means to a caller."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from khomas.kit.errors import DiskFull, DomainError, Overloaded, UpstreamUnavailable

# https://www.postgresql.org/docs/current/errcodes-appendix.html
_DISK_FULL = ("53100",)
_BUSY = ("40001", "40P01", "53300", "55P03", "57014")
_GONE = ("08", "57P0")


@contextmanager
def translated() -> Iterator[None]:
    """Turn failures that the caller can do something about into domain errors."""
    try:
        yield
    except PoolTimeout as error:
        raise Overloaded from error
    except DBAPIError as error:
        meaning = _meaning(error)
        if meaning is None:
            raise
        raise meaning from error


def _meaning(error: DBAPIError) -> DomainError | None:
    cause = error.orig
    code = str(getattr(cause, "sqlstate", None) or getattr(cause, "sqlite_errorname", ""))
    if isinstance(cause, sqlite3.Error):
        return _SQLITE[code]() if code in _SQLITE else None
    if code in _DISK_FULL:
        return DiskFull()
    if code in _BUSY:
        return Overloaded()
    if code.startswith(_GONE) or error.connection_invalidated:
        return UpstreamUnavailable(service="database")
    return None


_SQLITE: dict[str, type[DomainError]] = {
    "SQLITE_FULL": DiskFull,
    "SQLITE_BUSY": Overloaded,
    "SQLITE_BUSY_SNAPSHOT": Overloaded,
}
