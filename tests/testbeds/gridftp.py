"""A globus-gridftp-server with GSI, which lets one person in as an account of this machine."""

import pwd
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbeds import install, packages, voms, web
from tests.testbeds.voms import VomsBed
from tests.testbeds.web import WebServer

USER = "nobody"


@dataclass(frozen=True, slots=True)
class GridFtp:
    """Two servers, and the person whom they let in."""

    servers: tuple[WebServer, WebServer]
    people: VomsBed
    # A proxy of that person, and one whose time is over.
    proxy: Path

    @property
    def address(self) -> str:
        """Of both."""
        return " ".join(one.address for one in self.servers)


@contextmanager
def running(folder: Path) -> Iterator[GridFtp]:
    """Install, make certificates, configure, start."""
    install.debian(*packages.GRIDFTP)
    folder.chmod(0o755)
    with ExitStack() as stack:
        people = stack.enter_context(voms.running(folder / "people"))
        first = stack.enter_context(_one(folder / "a", people))
        second = stack.enter_context(_one(folder / "b", people))
        yield GridFtp((first, second), people, people.plain_proxy(folder / "proxy"))


@contextmanager
def _one(folder: Path, people: VomsBed) -> Iterator[WebServer]:
    folder.mkdir()
    with web.prepared(folder, "gridftp") as server:
        user = pwd.getpwnam(USER)
        (folder / "grid-mapfile").write_text(f'"{people.user}" {user.pw_name}\n')
        server.authorities = people.authorities
        server.scheme, server.root = "gsiftp", str(server.data)
        server.env = {
            "X509_USER_CERT": str(people.host_certificate),
            "X509_USER_KEY": str(people.host_key),
            "X509_CERT_DIR": str(people.authorities),
            "GRIDMAP": str(folder / "grid-mapfile"),
        }
        server.argv = [
            "/usr/sbin/globus-gridftp-server", "-p", str(server.port), "-control-interface", "127.0.0.1",
            "-data-interface", "127.0.0.1", "-disable-usage-stats", "-no-detach",
            "-logfile", str(folder / "log/server.log"),
        ]  # fmt: skip
        server.start()
        yield server
