"""A door between this machine's loopback and that of a network namespace.

`python doorway.py NAMESPACE PORT` leads from PORT here to PORT there; with a third argument, `out`, the other way.
"""

import asyncio
import ctypes
import os
import socket
import sys

_PIECE = 1 << 16


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(_PIECE):
            writer.write(data)
            await writer.drain()
    except OSError:
        pass  # one side has gone
    finally:
        writer.close()


async def _serve(door: socket.socket, port: int) -> None:
    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inside = await asyncio.open_connection("127.0.0.1", port)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_copy(reader, inside[1]), _copy(inside[0], writer))

    async with await asyncio.start_server(forward, sock=door) as server:
        await server.serve_forever()


def main(namespace: str, port: int, *, out: bool = False) -> None:
    """Listen on one side, then work on the other: a socket stays in the network where it was made."""
    here, there = os.open("/proc/self/ns/net", os.O_RDONLY), os.open(namespace, os.O_RDONLY)
    _enter(there if out else here)
    door = socket.create_server(("127.0.0.1", port), backlog=128)
    _enter(here if out else there)
    asyncio.run(_serve(door, port))


def _enter(network: int) -> None:
    if ctypes.CDLL(None, use_errno=True).setns(network, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the namespace")


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), out=sys.argv[3:] == ["out"])
