"""Two XRootD servers that trust each other; the port of each speaks root:// and https://, and copies for others.

With tokens of a WLCG issuer everything can be done that their scopes allow; without one, everything below `/open`.
A third kind of server (`guarded`) speaks roots:// and lets nobody in who does not log in, with a token or a proxy.
"""

import pwd
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbeds import install, packages, voms, web
from tests.testbeds.tokens import AUDIENCE, ISSUER, Issuer
from tests.testbeds.web import WebServer

USER = "xrootd"
_CONF = """
all.role server
xrd.port {port}
xrd.network nodnr noipv6
xrd.protocol http:{port} libXrdHttp.so
all.adminpath {folder}/admin
all.pidpath {folder}/run
oss.localroot {folder}/data
all.export / r/w nocheck
xrootd.chksum max 4 adler32 crc32c md5
ofs.tpc ttl 30 60 xfr 4 pgm /usr/bin/xrdcp --server
ofs.authorize 1
ofs.authlib ++ libXrdAccSciTokens.so config={folder}/scitokens.conf
acc.authdb {folder}/authdb
http.header2cgi Authorization authz
http.cert {folder}/host.pem
http.key {folder}/host.key
http.cadir {authorities}
http.listingdeny no
http.desthttps yes
http.exthandler xrdtpc libXrdHttpTPC.so
"""
_GUARDED = """
all.role server
xrd.port {port}
xrd.network nodnr noipv6
all.adminpath {folder}/admin
all.pidpath {folder}/run
oss.localroot {folder}/data
all.export / r/w nocheck
xrootd.chksum max 4 adler32 md5
xrootd.seclib libXrdSec.so
xrd.tls {folder}/host.pem {folder}/host.key
xrd.tlsca certdir {authorities}
xrootd.tls all
ofs.authorize 1
acc.authdb {folder}/authdb
"""
_BY_TOKEN = """
sec.protocol ztn
ofs.authlib ++ libXrdAccSciTokens.so config={folder}/scitokens.conf
"""
_BY_PROXY = """
sec.protocol gsi -certdir:{authorities} -cert:{folder}/host.pem -key:{folder}/host.key -crl:0 -gmapopt:2 \
             -gridmap:{folder}/gridmap
"""
_SCITOKENS = """
[Global]
audience = {audience}
[Issuer khomas]
issuer = {issuer}
base_path = /
"""


@dataclass(frozen=True, slots=True)
class Xrootd:
    """Both servers, and whose tokens they believe."""

    issuer: Issuer
    servers: tuple[WebServer, WebServer]

    @property
    def address(self) -> str:
        """Of both."""
        return " ".join(f"{one.address} root://127.0.0.1:{one.port}" for one in self.servers)


@contextmanager
def running(folder: Path) -> Iterator[Xrootd]:
    """Install, make an issuer, configure, start."""
    install.debian(*packages.XROOTD)
    folder.chmod(0o755)
    issuer = Issuer.new(folder)
    token = issuer.token("all", "storage.read:/ storage.modify:/")
    with ExitStack() as stack:
        # One authority for both, so that each believes the other.
        first = stack.enter_context(_one(folder / "a", issuer, token, None))
        second = stack.enter_context(_one(folder / "b", issuer, token, first))
        yield Xrootd(issuer, (first, second))


@contextmanager
def _one(folder: Path, issuer: Issuer, token: Path, sibling: WebServer | None) -> Iterator[WebServer]:
    folder.mkdir()
    with web.prepared(folder, "xrootd", token=token) as server:
        if sibling is not None:
            server.authorities = sibling.authorities
            for name in ("host.pem", "host.key"):
                shutil.copy(sibling.folder / name, folder / name)
        (folder / "xrootd.cfg").write_text(
            _CONF.format(folder=folder, port=server.port, authorities=server.authorities)
        )
        (folder / "scitokens.conf").write_text(_SCITOKENS.format(audience=AUDIENCE, issuer=ISSUER))
        (folder / "authdb").write_text("u * /open a\n")
        issuer.keep_for_scitokens(folder / "cache")
        (server.data / "open").mkdir()
        (server.data / "open").chmod(0o777)
        for name in ("admin", "run", "cache", "cache/scitokens", "cache/scitokens/scitokens_cpp.sqllite", "host.key"):
            _give(folder / name)
        _give(folder / "log")
        server.argv = [
            "/usr/bin/xrootd", "-R", USER, "-c", str(folder / "xrootd.cfg"), "-l", str(folder / "log/server.log"),
        ]  # fmt: skip
        server.env = {"XDG_CACHE_HOME": str(folder / "cache")}
        server.start()
        yield server


@contextmanager
def guarded(folder: Path, by: str) -> Iterator[WebServer]:
    """Start a server into which one logs in by `token` or by `proxy`; its file `token` is that token or that proxy."""
    install.debian(*packages.XROOTD)
    folder.chmod(0o755)
    issuer = Issuer.new(folder)
    token = issuer.token("all", "storage.read:/ storage.modify:/")
    with web.prepared(folder, "xrootd-guarded", token=token) as server:
        written = _GUARDED + (_BY_TOKEN if by == "token" else _BY_PROXY)
        (folder / "xrootd.cfg").write_text(
            written.format(folder=folder, port=server.port, authorities=server.authorities)
        )
        (folder / "scitokens.conf").write_text(_SCITOKENS.format(audience=AUDIENCE, issuer=ISSUER))
        (folder / "authdb").write_text("u ada / a\n" if by == "proxy" else "u * /open r\n")
        (folder / "gridmap").write_text(f'"/O={voms.ORGANISATION}/CN=Ada Robot" ada\n')
        issuer.keep_for_scitokens(folder / "cache")
        for name in ("admin", "run", "cache", "cache/scitokens", "cache/scitokens/scitokens_cpp.sqllite", "host.key"):
            _give(folder / name)
        _give(folder / "log")
        server.argv = [
            "/usr/bin/xrootd", "-R", USER, "-c", str(folder / "xrootd.cfg"), "-l", str(folder / "log/server.log"),
        ]  # fmt: skip
        server.env = {"XDG_CACHE_HOME": str(folder / "cache")}
        if by == "proxy":
            people = folder / "people"
            argv = ["grid-proxy-init", "-q", "-rfc", "-bits", "2048", "-valid", "12:00", "-out", str(folder / "proxy")]
            argv += ["-cert", str(people / "user.pem"), "-key", str(people / "user.key")]
            voms.run(argv, {"X509_CERT_DIR": str(server.authorities)})
            server.token = folder / "proxy"
        server.start()
        yield server


def _give(path: Path) -> None:
    """Let the server have it."""
    if not path.exists():
        path.mkdir()
    user = pwd.getpwnam(USER)
    shutil.chown(path, user.pw_uid, user.pw_gid)
