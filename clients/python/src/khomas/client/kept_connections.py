"""HTTP connections that are kept from file to file, and cut at once when the work is to stop."""

import http.client
import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.parse import SplitResult, urlsplit

from khomas.client.errors import CANCELLED, KhomasError

_SECONDS = 60.0
Origin = tuple[str, str, int | None]


class Stopped(KhomasError):
    """The caller wants no more of it."""

    def __init__(self) -> None:
        super().__init__("stopped", "CANCELLED", exit_code=CANCELLED)


class Connections:
    """Connections by server; one is used by one thread at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._idle: dict[Origin, list[http.client.HTTPConnection]] = {}
        self._busy: dict[http.client.HTTPConnection, socket.socket] = {}
        self._stopped = threading.Event()

    @contextmanager
    def lease(self, url: str) -> Iterator[tuple[http.client.HTTPConnection, str]]:
        """Give a connection and the target of the request; kept for others unless it is left by an exception.

        Read an answer to its end, or leave by an exception.
        """
        self.check()
        parts = urlsplit(url)
        origin = (parts.scheme, parts.hostname or "", parts.port)
        connection = self._kept(origin) or _opened(parts)
        with self._lock:
            self._busy[connection] = connection.sock
        try:
            yield connection, parts.path + (f"?{parts.query}" if parts.query else "")
        except BaseException:
            self._done(connection)
            connection.close()
            raise
        self._done(connection)
        if connection.sock is not None:
            with self._lock:
                self._idle.setdefault(origin, []).append(connection)

    def check(self) -> None:
        """Raise Stopped if the work is to stop."""
        if self._stopped.is_set():
            raise Stopped

    def pause(self, seconds: float) -> None:
        """Wait, or raise Stopped as soon as the work is to stop."""
        self._stopped.wait(seconds)
        self.check()

    def stop(self) -> None:
        """Let nothing begin any more, and wake who waits for a server."""
        self._stopped.set()
        with self._lock:
            for waited_for in self._busy.values():
                with suppress(OSError):
                    waited_for.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close what is kept."""
        with self._lock:
            for kept in self._idle.values():
                for connection in kept:
                    connection.close()
            self._idle.clear()

    def _done(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            del self._busy[connection]

    def _kept(self, origin: Origin) -> http.client.HTTPConnection | None:
        while True:
            with self._lock:
                kept = self._idle.get(origin)
                connection = kept.pop() if kept else None
            if connection is None or not _has_ended(connection):
                return connection
            connection.close()


def _opened(parts: SplitResult) -> http.client.HTTPConnection:
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=_SECONDS)
    connection.connect()
    return connection


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """Tell whether the server has closed it meanwhile: nothing else can arrive before a request."""
    poll = select.poll()
    poll.register(connection.sock, select.POLLIN)
    return bool(poll.poll(0))
