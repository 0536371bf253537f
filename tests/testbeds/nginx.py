"""nginx with its WebDAV modules over TLS; without the token it answers 401."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testbeds import install, packages, web
from tests.testbeds.web import WebServer

_CONF = """
load_module /usr/lib/nginx/modules/ngx_http_dav_ext_module.so;
daemon off;
user www-data;
worker_processes 2;
pid {folder}/nginx.pid;
error_log {folder}/log/nginx-error.log;
events {{ worker_connections 512; }}
http {{
    access_log off;
    client_max_body_size 0;
    client_body_temp_path {folder}/data/.parts;
    proxy_temp_path {folder}/run;
    fastcgi_temp_path {folder}/run;
    uwsgi_temp_path {folder}/run;
    scgi_temp_path {folder}/run;
    keepalive_requests 100000;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {folder}/host.pem;
        ssl_certificate_key {folder}/host.key;
        root {folder}/data;
        if ($http_authorization != "Bearer {token}") {{ return 401; }}
        location /forbidden {{
            dav_ext_methods PROPFIND OPTIONS;
            dav_methods PUT DELETE MKCOL COPY MOVE;
            limit_except GET PROPFIND OPTIONS {{ deny all; }}
        }}
        location / {{
            dav_methods PUT DELETE MKCOL COPY MOVE;
            dav_ext_methods PROPFIND OPTIONS;
            create_full_put_path on;
            dav_access user:rw group:rw all:rw;
        }}
    }}
}}
"""


@contextmanager
def running(folder: Path) -> Iterator[WebServer]:
    """Install, configure, start."""
    install.debian(*packages.NGINX)
    with web.prepared(folder, "nginx") as server:
        (folder / "run").mkdir()
        (folder / "run").chmod(0o777)
        text = _CONF.format(folder=folder, port=server.port, token=server.token.read_text())
        (folder / "nginx.conf").write_text(text)
        server.argv = ["/usr/sbin/nginx", "-c", str(folder / "nginx.conf"), "-e", str(folder / "log/nginx-start.log")]
        server.start()
        yield server
