"""Speaks gfal2 for another process: one JSON object a line on stdin, one or more for each on stdout.

It runs on the Python of the system, for which Debian has gfal2, so it imports nothing of ours. Bytes of files go over
unix sockets that the other side listens at. The binding takes only text for writing, so data goes by ctypes.
"""

import ctypes
import ctypes.util
import json
import os
import socket
import stat
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import gfal2  # type: ignore[import-not-found]

_BLOCK = 4 * 1024 * 1024
_PAGE = 1000
_READ, _WRITE = os.O_RDONLY, os.O_WRONLY | os.O_CREAT
# Connections are kept. What is said of one that the server has closed meanwhile says nothing of the server; of one that
# broke in mid-transfer, that an idle client may not do this.
_BROKEN = ("broken pipe", "end-of-file", "end of file", "connection reset", "not allowed here")
_local = threading.local()
# Contexts that are not used any more: freeing them crashes.
_left: "list[Any]" = []
_lock = threading.Lock()


class _Error(ctypes.Structure):
    """A GError."""

    _fields_ = [("domain", ctypes.c_uint32), ("code", ctypes.c_int), ("message", ctypes.c_char_p)]


_ErrorPointer = ctypes.POINTER(_Error)
_library = ctypes.CDLL("libgfal2.so.2")
_library.gfal2_context_new.restype = ctypes.c_void_p
for _name in ("gfal2_read", "gfal2_write", "gfal2_pread"):
    getattr(_library, _name).restype = ctypes.c_ssize_t


class Failed(Exception):
    """An error of gfal2: its errno and its message."""


def call(name: str, *arguments: Any) -> int:
    """Call a function of the C library whose last argument is a GError; raise Failed."""
    error = _ErrorPointer()
    result: Any = getattr(_library, name)(*arguments, ctypes.byref(error))
    if result is None or result < 0:
        if ctypes.cast(error, ctypes.c_void_p).value:
            raise Failed(error.contents.code, (error.contents.message or b"").decode(errors="replace"))
        raise Failed(70, f"{name} failed")
    return int(result)


def context() -> Any:
    """Return the context of this thread: connections are kept in it."""
    if not hasattr(_local, "context"):
        _local.context = gfal2.creat_context()
    return _local.context


def raw_context() -> Any:
    """Return the same for the C library."""
    if not hasattr(_local, "raw"):
        _local.raw = ctypes.c_void_p(call("gfal2_context_new"))
    return _local.raw


def tell(**answer: Any) -> None:
    """Write one line."""
    with _lock:
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


# ------------------------------------------------------------------------------------------------------- names


def one_stat(url: str) -> list[Any]:
    """Return kind, size and time."""
    return shown(context().stat(url))


def shown(found: Any) -> list[Any]:
    """Return what counts of a stat."""
    kind = "folder" if stat.S_ISDIR(found.st_mode) else "file" if stat.S_ISREG(found.st_mode) else "other"
    return [kind, found.st_size, found.st_mtime]


def one_checksum(url: str, algorithm: str) -> str:
    """Return a checksum as the server tells it."""
    return str(context().checksum(url, algorithm))


def one_unlink(url: str) -> None:
    """Delete a file."""
    context().unlink(url)


def one_mkdir(url: str) -> None:
    """Make a folder and those above it."""
    context().mkdir_rec(url, 0o755)


def one_rename(source: str, target: str) -> None:
    """Rename."""
    context().rename(source, target)


ONE = {
    "stat": one_stat,
    "checksum": one_checksum,
    "unlink": one_unlink,
    "mkdir": one_mkdir,
    "rename": one_rename,
}


def renewed(action: Any, *arguments: Any) -> Any:
    """Do it; again with new connections if a kept one was broken."""
    try:
        return action(*arguments)
    except (gfal2.GError, Failed) as error:
        message = error.message if isinstance(error, gfal2.GError) else error.args[1]
        if not any(text in message.lower() for text in _BROKEN):
            raise
    for name in ("context", "raw"):
        if hasattr(_local, name):
            _left.append(getattr(_local, name))
            delattr(_local, name)
    return action(*arguments)


def guarded(action: Any, *arguments: Any) -> Any:
    """Return what an action gives, or its error."""
    try:
        return action(*arguments)
    except gfal2.GError as error:
        return {"error": [error.code, error.message]}
    except Failed as error:
        return {"error": list(error.args)}
    except OSError as error:
        return {"error": [error.errno or 5, str(error)]}


def bulk(pool: ThreadPoolExecutor, number: int, action: Any, items: list[list[Any]]) -> None:
    """Do it for all; answer when all are done."""
    if not items:
        tell(id=number, results=[])
        return
    left = [len(items)]
    futures: list[Future[Any]] = [pool.submit(guarded, renewed, action, *item) for item in items]

    def done(_: Any) -> None:
        with _lock:
            left[0] -= 1
            last = left[0] == 0
        if last:
            tell(id=number, results=[future.result() for future in futures])

    for future in futures:
        future.add_done_callback(done)


def listing(number: int, url: str) -> None:
    """List a folder page by page."""

    def work() -> None:
        folder, page = renewed(lambda: context().opendir(url)), []
        while True:
            entry, found = folder.readpp()
            if entry is None:
                break
            if entry.d_name not in (".", ".."):
                page.append([entry.d_name, *shown(found)])
            if len(page) >= _PAGE:
                tell(id=number, page=page)
                page = []
        tell(id=number, page=page)

    tell(id=number, result=guarded(work))


# -------------------------------------------------------------------------------------------------------- data


def get(number: int, url: str, start: int, size: "int | None", where: str) -> None:
    """Send the bytes of a file to a socket; all of them, or a part."""

    def first() -> "tuple[int, int]":
        opened = call("gfal2_open", raw_context(), url.encode(), _READ)
        return opened, more(opened, 0)

    def more(opened: int, sent: int) -> int:
        wanted = len(buffer) if size is None else min(len(buffer), size - sent)
        target = (raw_context(), opened, buffer, ctypes.c_size_t(wanted))
        if size is None:
            return call("gfal2_read", *target)
        return call("gfal2_pread", *target, ctypes.c_long(start + sent))

    def work() -> int:
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(where)
            stream.sendall(b"%d\n" % number)
            (opened, count), sent = renewed(first), 0
            try:
                while count:
                    stream.sendall(memoryview(buffer)[:count])
                    sent += count
                    count = 0 if sent == size else more(opened, sent)
            finally:
                call("gfal2_close", raw_context(), opened)
        return sent

    buffer = ctypes.create_string_buffer(_BLOCK if size is None else min(size, _BLOCK))
    tell(id=number, result=guarded(work))


def put(number: int, url: str, size: int, where: str) -> None:
    """Write what comes over a socket."""

    def write(opened: int, pointer: Any, count: int) -> None:
        written = 0
        while written < count:
            part = ctypes.byref(pointer, written)
            written += call("gfal2_write", raw_context(), opened, part, ctypes.c_size_t(count - written))

    def begun(pointer: Any, count: int) -> int:
        opened = call("gfal2_open2", raw_context(), url.encode(), _WRITE, 0o644)
        write(opened, pointer, count)
        return opened

    def work() -> int:
        buffer = bytearray(min(_BLOCK, max(size, 1)))
        pointer = (ctypes.c_char * len(buffer)).from_buffer(buffer)
        with socket.socket(socket.AF_UNIX) as stream:
            stream.connect(where)
            stream.sendall(b"%d\n" % number)
            received = filled(stream, memoryview(buffer)[:size])
            came(received, min(len(buffer), size))
            opened = renewed(begun, pointer, received)
            try:
                while received < size:
                    count = filled(stream, memoryview(buffer)[: size - received])
                    came(count, 1)
                    write(opened, pointer, count)
                    received += count
            except (Failed, OSError) as error:
                # Only the end of the conversation may say why the data connection broke.
                last = guarded(call, "gfal2_close", raw_context(), opened)
                told = last["error"] if isinstance(last, dict) else [5, ""]
                raise Failed(told[0], f"{error.args[-1]} {told[1]}") from error
            call("gfal2_close", raw_context(), opened)
        return received

    tell(id=number, result=guarded(work))


def came(count: int, least: int) -> None:
    """Raise Failed unless so many bytes came: the sender has given up."""
    if count < least:
        raise Failed(104, "the sender has given up")


def filled(stream: socket.socket, view: memoryview) -> int:
    """Fill a buffer as far as the stream goes."""
    count = 0
    while count < len(view):
        more = stream.recv_into(view[count:])
        if not more:
            break
        count += more
    return count


def copy(number: int, source: str, target: str, seconds: int) -> None:
    """Let one server send a file to another one."""

    def marked(_source: str, _target: str, _average: int, _instant: int, moved: int, _elapsed: int) -> None:
        tell(id=number, page=[moved])

    def work() -> None:
        parameters = context().transfer_parameters()
        parameters.overwrite = False
        parameters.create_parent = False
        parameters.timeout = seconds
        parameters.monitor_callback = marked
        context().filecopy(parameters, source, target)

    tell(id=number, result=guarded(work))


def main() -> None:
    """Work until stdin ends."""
    at_once = int(sys.argv[1])
    # Names never wait for data.
    names, data = ThreadPoolExecutor(at_once), ThreadPoolExecutor(at_once)
    flows: dict[str, tuple[ThreadPoolExecutor, Any]] = {
        "list": (names, listing),
        "get": (data, get),
        "put": (data, put),
        "copy": (data, copy),
    }
    tell(ready=gfal2.get_version())
    for line in sys.stdin:
        request = json.loads(line)
        number, do = request["id"], request["do"]
        if do in ONE:
            bulk(names, number, ONE[do], request["items"])
        else:
            pool, action = flows[do]
            pool.submit(action, number, *request["items"])
    # Its destructors crash.
    os._exit(0)


if __name__ == "__main__":
    main()
