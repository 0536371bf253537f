"""Two storage services that serve their disks through their doors, and an nginx in front of the first one.

The nginx speaks HTTPS, as a site would have it. At its other port it lets anybody in, with a token of its own: for
clients that know no tokens.
"""

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbeds import install, packages, web
from tests.testbeds.processes import free_ports, until
from tests.testbeds.web import WebServer

_ROOT = Path(__file__).parents[2]
_NGINX = """
daemon off;
user root;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/log/nginx-error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/run;
    proxy_temp_path {folder}/run;
    fastcgi_temp_path {folder}/run;
    uwsgi_temp_path {folder}/run;
    scgi_temp_path {folder}/run;
    proxy_http_version 1.1;
    proxy_request_buffering off;
    proxy_buffering off;
    proxy_set_header Host $http_host;
    proxy_pass_header Server;
    server {{
        listen 127.0.0.1:{secure} ssl;
        ssl_certificate {folder}/host.pem;
        ssl_certificate_key {folder}/host.key;
        location / {{ proxy_pass http://127.0.0.1:{door}; }}
    }}
    server {{
        listen 127.0.0.1:{simple};
        location / {{
            proxy_pass http://127.0.0.1:{door};
            proxy_set_header Host $http_host;
            proxy_set_header Authorization "Bearer {token}";
        }}
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Doors:
    """Both, and the addresses of the tree of the first one as others reach it."""

    servers: tuple[WebServer, WebServer]
    # With a token, over TLS.
    secure: str
    # Without a token.
    simple: str


@contextmanager
def running(folder: Path) -> Iterator[Doors]:
    """Start them."""
    install.debian(*packages.NGINX)
    folder.chmod(0o755)
    with ExitStack() as stack:
        first = stack.enter_context(_one(folder / "a", None))
        # Both believe one authority.
        second = stack.enter_context(_one(folder / "b", first.authorities))
        secure, simple = free_ports(2)
        (first.folder / "run").mkdir()
        text = _NGINX.format(
            folder=first.folder, secure=secure, simple=simple, door=first.port, token=first.token.read_text()
        )
        (first.folder / "nginx.conf").write_text(text)
        first.processes.start(["/usr/sbin/nginx", "-c", str(first.folder / "nginx.conf")], name="nginx")
        front = WebServer("front", folder, first.processes, secure, first.data, first.authorities, first.token)
        until(front.listens, 60, "nginx", first.processes)
        yield Doors((first, second), f"https://localhost:{secure}/dav/local", f"http://127.0.0.1:{simple}/dav/local")


@contextmanager
def _one(folder: Path, authorities: Path | None) -> Iterator[WebServer]:
    folder.mkdir()
    with web.prepared(folder, "door", token=folder / "token") as server:
        server.scheme, server.host, server.root = "dav", "127.0.0.1", "/dav/local"
        server.authorities = authorities or server.authorities
        arguments = [str(folder), str(server.port), str(server.authorities)]
        server.argv = [sys.executable, "-m", "tests.testbeds.door_server", *arguments]
        server.env = {"PYTHONPATH": ":".join([str(_ROOT), *sys.path])}
        server.start()
        until((folder / "ready").exists, 90, "the storage elements of the door", server.processes)
        yield server
