"""Lets this machine's loopback into a network namespace: `python doorway.py NAMESPACE PORT` forwards PORT to itself."""

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


def main(namespace: str, port: int) -> None:
    """Listen outside, then go inside: a socket stays in the network where it was made."""
    door = socket.create_server(("127.0.0.1", port), backlog=128)
    handle = os.open(namespace, os.O_RDONLY)
    if ctypes.CDLL(None, use_errno=True).setns(handle, 0) != 0:
        raise OSError(ctypes.get_errno(), "cannot enter the namespace")
    asyncio.run(_serve(door, port))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
