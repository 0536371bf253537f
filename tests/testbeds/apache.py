"""Apache with mod_dav over TLS; without the token it answers 401."""

import pwd
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.testbeds import install, packages, web
from tests.testbeds.web import WebServer

_CONF = """
ServerRoot {folder}
ServerName localhost
Listen 127.0.0.1:{port}
PidFile {folder}/apache.pid
DefaultRuntimeDir {folder}
Mutex file:{folder}
ErrorLog {folder}/log/apache-error.log
User {user}
Group {group}
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule rewrite_module /usr/lib/apache2/modules/mod_rewrite.so
LoadModule ssl_module /usr/lib/apache2/modules/mod_ssl.so
LoadModule dav_module /usr/lib/apache2/modules/mod_dav.so
LoadModule dav_fs_module /usr/lib/apache2/modules/mod_dav_fs.so
DAVLockDB {folder}/run/locks
DocumentRoot {folder}/data
AllowEncodedSlashes NoDecode
StartServers 2
KeepAlive On
MaxKeepAliveRequests 0
SSLEngine On
SSLCertificateFile {folder}/host.pem
SSLCertificateKeyFile {folder}/host.key
RewriteEngine On
RewriteCond %{{HTTP:Authorization}} "!=Bearer {token}"
RewriteRule ^ - [R=401,L]
<Directory {folder}/data>
    Dav On
    LimitRequestBody 0
    Require all granted
</Directory>
<Location /forbidden>
    <LimitExcept GET HEAD OPTIONS PROPFIND>
        Require all denied
    </LimitExcept>
</Location>
"""


@contextmanager
def running(folder: Path) -> Iterator[WebServer]:
    """Install, configure, start."""
    install.debian(*packages.APACHE)
    with web.prepared(folder, "apache") as server:
        user = pwd.getpwnam("www-data")
        (folder / "run").mkdir()
        (folder / "run").chmod(0o777)
        text = _CONF.format(
            folder=folder, port=server.port, user=user.pw_name, group=user.pw_name, token=server.token.read_text()
        )
        (folder / "apache.conf").write_text(text)
        server.argv = ["/usr/sbin/apache2", "-f", str(folder / "apache.conf"), "-D", "FOREGROUND"]
        server.start()
        yield server
