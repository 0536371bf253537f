"""The protocol `cvmfs`: a repository of CVMFS as this machine mounts it, or any other tree that is only read."""

from pathlib import Path

from khomas.storage.checksums import Algorithm
from khomas.storage.protocols.interface import Abilities, Access, Plugin
from khomas.storage.protocols.posix import PosixProtocol
from khomas.storage.protocols.reading_only import ReadingOnly


def _open(access: Access) -> ReadingOnly:
    root = Path(access.address)
    if not root.is_absolute() or ".." in root.parts:
        raise ValueError("the address of a repository is an absolute path: /cvmfs/software.example.org")
    if access.options:
        raise ValueError(f"a repository takes no options, and not {', '.join(access.options)}")
    # Repositories are full of links into one another.
    reader = PosixProtocol(root, follow_out=True)
    return ReadingOnly(reader, Abilities(local=True, writes=False, checksums=tuple(Algorithm)))


plugin = Plugin(open=_open)
