"""Every storage by the name of its StorageElement: its server, and what the storage service is told of it."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from khomas.api.storage.v1.storage_element_pb2 import StorageElement
from tests.testbeds import apache, doors, gridftp, nginx, s3, ssh, xrootd
from tests.testbeds.tokens import Issuer
from tests.testbeds.web import WebServer


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """One StorageElement and the server behind it."""

    protocol: str
    address: str
    options: Mapping[str, str] = field(default_factory=dict)
    # As the settings of the service have it; empty = none is needed.
    credential: Mapping[str, Any] = field(default_factory=dict)
    # Where its files lie on this machine; None = inside the server.
    folder: Path | None = None
    # Those with the same name copy from each other by themselves.
    grid: str = ""
    # Stores of one server have one name.
    server: str = ""
    # Where it is a server of files over HTTPS, and whose tokens that believes.
    web: WebServer | None = None
    issuer: Issuer | None = None
    stop: Callable[[], None] = _nothing
    start: Callable[[], None] = _nothing

    def element(self, name: str) -> StorageElement:
        """What the service is told of it; its credential has its name."""
        element = StorageElement(name=f"storageElements/{name}", media=StorageElement.MEDIA_DISK)
        element.access_points.add(
            protocol=self.protocol,
            address=self.address,
            options=self.options,
            credential=name if self.credential else "",
        )
        return element


class _Beds:
    """Starts what is asked for, once."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def folder(self, name: str) -> Path:
        """A folder that the users of servers may enter."""
        made = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=f"khomas-{name}-")))
        made.chmod(0o755)
        return made

    @cached_property
    def xrootd(self) -> xrootd.Xrootd:
        return self._stack.enter_context(xrootd.running(self.folder("xrootd")))

    @cached_property
    def gridftp(self) -> gridftp.GridFtp:
        return self._stack.enter_context(gridftp.running(self.folder("gridftp")))

    def disk(self) -> Store:
        folder = self.folder("disk")
        return Store(protocol="posix", address=str(folder), folder=folder)

    def dav_first(self) -> Store:
        return _web(self.xrootd.servers[0], "xrootd-first", "davs", self.xrootd.issuer)

    def dav_second(self) -> Store:
        return _web(self.xrootd.servers[1], "xrootd-second", "davs", self.xrootd.issuer)

    def apache(self) -> Store:
        return _web(self._stack.enter_context(apache.running(self.folder("apache"))), "apache")

    def nginx(self) -> Store:
        return _web(self._stack.enter_context(nginx.running(self.folder("nginx"))), "nginx")

    def door(self) -> Store:
        bed = self._stack.enter_context(doors.running(self.folder("doors")))
        return _web(bed.servers[0], "door")

    def root_first(self) -> Store:
        return self._root(0, "xrootd-first")

    def root_second(self) -> Store:
        return self._root(1, "xrootd-second")

    def _root(self, number: int, server: str) -> Store:
        one = self.xrootd.servers[number]
        folder = one.open_folder(f"root-{uuid4().hex}")
        return Store(
            protocol="root",
            address=f"root://127.0.0.1:{one.port}/{folder.name}",
            options={"clear_tokens": "true"},
            credential=_bearer(one),
            folder=folder,
            grid="root",
            server=server,
            stop=one.stop,
            start=one.start,
        )

    def gridftp_first(self) -> Store:
        return self._gridftp(0, "gridftp-first")

    def gridftp_second(self) -> Store:
        return self._gridftp(1, "gridftp-second")

    def _gridftp(self, number: int, server: str) -> Store:
        one = self.gridftp.servers[number]
        folder = one.open_folder(f"gsiftp-{uuid4().hex}")
        return Store(
            protocol="gsiftp",
            address=f"{one.address}/{folder.name}",
            options={"authorities": str(self.gridftp.people.authorities)},
            credential={"kind": "x509", "options": {"file": str(self.gridftp.proxy)}},
            folder=folder,
            grid="gsiftp",
            server=server,
            stop=one.stop,
            start=one.start,
        )

    def sftp(self) -> Store:
        bed = self._stack.enter_context(ssh.running(self.folder("sftp")))
        folder = bed.folder / "data"
        folder.mkdir()
        os.chown(folder, bed.user.pw_uid, bed.user.pw_gid)
        return Store(
            protocol="sftp",
            address=f"sftp://{bed.address}{quote(str(folder))}",
            options={"known_hosts": str(bed.known_hosts)},
            credential={"kind": "ssh", "options": {"key": str(bed.key)}},
            folder=folder,
            server="sshd",
            stop=bed.stop,
            start=bed.start,
        )

    def rclone(self) -> Store:
        bed = self._stack.enter_context(s3.rclone(self.folder("rclone")))
        return _objects(bed, "rclone", bed.data)

    def moto(self) -> Store:
        return _objects(self._stack.enter_context(s3.moto(self.folder("moto"))), "moto", None)


def _web(server: WebServer, name: str, grid: str = "", issuer: Issuer | None = None) -> Store:
    folder = server.open_folder(f"davs-{uuid4().hex}")
    return Store(
        protocol="davs",
        address=f"{server.address}/{folder.name}",
        options={"authorities": str(server.authorities)} if server.scheme == "davs" else {},
        credential=_bearer(server),
        folder=folder,
        grid=grid,
        server=name,
        web=server,
        issuer=issuer,
        stop=server.stop,
        start=server.start,
    )


def _bearer(server: WebServer) -> Mapping[str, Any]:
    return {"kind": "bearer", "options": {"file": str(server.token)}}


def _objects(bed: s3.ObjectStore, name: str, folder: Path | None) -> Store:
    return Store(
        protocol="s3",
        address=bed.address,
        options={"plain": "true"},
        credential={"kind": "access-key", "options": {"file": str(bed.keys)}},
        folder=folder,
        server=name,
        stop=bed.stop,
        start=bed.start,
    )


_OPENED: Mapping[str, Callable[[_Beds], Store]] = {
    "disk": _Beds.disk,
    "dav-first": _Beds.dav_first,
    "dav-second": _Beds.dav_second,
    "dav-apache": _Beds.apache,
    "dav-nginx": _Beds.nginx,
    "dav-door": _Beds.door,
    "root-first": _Beds.root_first,
    "root-second": _Beds.root_second,
    "gridftp-first": _Beds.gridftp_first,
    "gridftp-second": _Beds.gridftp_second,
    "sftp": _Beds.sftp,
    "s3-rclone": _Beds.rclone,
    "s3-moto": _Beds.moto,
}
NAMES = tuple(_OPENED)


@contextmanager
def running(*names: str) -> Iterator[Mapping[str, Store]]:
    """Start stores, or all of them."""
    with ExitStack() as stack:
        beds = _Beds(stack)
        yield {name: _OPENED[name](beds) for name in names or NAMES}
