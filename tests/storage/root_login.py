"""Writes and reads a file over roots://, and prints it or the problem: `python -m tests.storage.root_login`."""

import asyncio
import sys
from pathlib import Path

from khomas.kit.credentials import CredentialProvider
from khomas.kit.credentials.bearer import BearerOptions, BearerToken
from khomas.kit.credentials.x509 import ProxyFile, ProxyOptions
from khomas.storage.conformance import read, write
from khomas.storage.protocols.interface import Access, ProtocolFault
from khomas.storage.protocols.xrootd.plugin import plugin


async def _main(address: str, authorities: str, kind: str, path: str) -> None:
    credential: CredentialProvider | None = None
    if kind == "bearer":
        credential = BearerToken("test", BearerOptions(file=Path(path)))
    elif kind == "x509":
        credential = ProxyFile("test", ProxyOptions(file=Path(path)))
    protocol = plugin.open(Access(address, credential=credential, options={"authorities": authorities}))
    try:
        await write(protocol, "folder/file", b"abc")
        said = (await read(protocol, "folder/file")).decode()
    except ProtocolFault as fault:
        said = fault.problem
        sys.stderr.write(fault.message)
    sys.stdout.write(said)


if __name__ == "__main__":
    asyncio.run(_main(*sys.argv[1:]))
