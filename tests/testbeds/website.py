"""A plain nginx over TLS: files to be read, with listings as pages (`/html`), as JSON (`/json`), and with none."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testbeds import install, packages, web
from tests.testbeds.web import WebServer

_CONF = """
daemon off;
user www-data;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/log/nginx-error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_body_temp_path {folder}/run;
    proxy_temp_path {folder}/run;
    fastcgi_temp_path {folder}/run;
    uwsgi_temp_path {folder}/run;
    scgi_temp_path {folder}/run;
    keepalive_requests 100000;
    default_type application/octet-stream;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/host.pem;
        ssl_certificate_key {folder}/host.key;
        location /html/ {{ alias {folder}/data/; autoindex on; }}
        location /json/ {{ alias {folder}/data/; autoindex on; autoindex_format json; }}
        location /none/ {{ alias {folder}/data/; index index.html; }}
    }}
}}
"""


@contextmanager
def running(folder: Path) -> Iterator[WebServer]:
    """Install, configure, start."""
    install.debian(*packages.NGINX)
    with web.prepared(folder, "website") as server:
        server.scheme = "https"
        (folder / "run").mkdir()
        (folder / "run").chmod(0o777)
        (folder / "nginx.conf").write_text(_CONF.format(folder=folder, port=server.port))
        server.argv = ["/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "log/nginx-start.log")]
        server.start()
        yield server
