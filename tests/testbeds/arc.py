"""A real ARC CE in a network of its own, with jobs as processes of this machine.

Version 6 is that of Debian 12 and knows people by certificates; 7 is that of Debian 13 and knows them by tokens here.
A-REX listens on every address and cannot be told otherwise, hence the namespace.
"""

import os
import pwd
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.testbeds import doorway, install, packages
from tests.testbeds.namespace import Namespace
from tests.testbeds.processes import Processes, free_ports, until
from tests.testbeds.users import unprivileged

HOST = "vm"
QUEUE = "fork"
_PROGRAMS = Path("/usr/share/arc")
# The packaged scripts with shorter pauses.
_HASTE = {
    # A-REX starts it every ten seconds at most, so it does not end.
    "scan-fork-job": (r"(?m)^sleep 10$", 'sleep 1\nexec "$0" --config "$ARC_CONFIG" "$@"'),
    "submit-fork-job": (r"(?m)^    sleep 1$", "    sleep 0.1"),
    "cancel-fork-job": (r"(?m)sleep 5$", "sleep 1"),
    "arc-arex-start": (
        r"(?m)<arex:gmconfig>.*$",
        r"\g<0>\n      <arex:InfoproviderWakeupPeriod>{wakeup}</arex:InfoproviderWakeupPeriod>",
    ),
}
_CONFIGURATION = """
[common]
hostname = {host}
x509_host_key = {folder}/host.key
x509_host_cert = {folder}/host.pem
x509_cert_dir = {folder}/authorities
[authgroup:people]
file = {folder}/allowed
{tokens}
[mapping]
map_to_user = people {user}:{user}
{token_mapping}
[lrms]
lrms = fork
[arex]
sessiondir = {folder}/session
controldir = {folder}/control
logfile = {folder}/log/arex.log
pidfile = {folder}/run/arched-arex.pid
wakeupperiod = 1
maxjobs = -1 {running} -1 -1 4
[arex/ws]
wsurl = https://{host}:{port}/arex
logfile = {folder}/log/arex-ws.log
pidfile = {folder}/run/arched-ws.pid
[arex/ws/jobs]
allowaccess = people {token_group}
[infosys]
logfile = {folder}/log/infoprovider.log
[infosys/glue2]
[infosys/cluster]
[queue:fork]
"""


@dataclass(slots=True)
class Arc:
    """A running CE and what a client of it needs."""

    folder: Path
    version: int
    port: int
    root: Path
    user: pwd.struct_passwd
    namespace: Namespace
    processes: Processes
    servers: dict[str, "subprocess.Popen[bytes]"] = field(default_factory=dict)

    @property
    def url(self) -> str:
        """Of the web service."""
        return f"https://{HOST}:{self.port}/arex"

    @property
    def authorities(self) -> Path:
        """Certificates of who signed the host's."""
        return self.folder / "authorities"

    @property
    def certificate(self) -> Path:
        """Somebody whom the CE knows, with the key in the same file."""
        return self.folder / "user.pem"

    @property
    def stranger(self) -> Path:
        """Somebody whom the same authority vouches for, but the CE does not know."""
        return self.folder / "stranger.pem"

    @property
    def token(self) -> Path:
        """File with the token of somebody whom a CE of version 7 knows."""
        return self.folder / "token"

    def run(self, *command: str) -> str:
        """Run a program of the CE's installation."""
        done = subprocess.run(
            [*self.inside, *command],
            check=True,
            capture_output=True,
            text=True,
            timeout=60,
            cwd=self.folder,
            env={**os.environ, **self.environment},
        )
        return done.stdout

    @property
    def inside(self) -> list[str]:
        """What goes before a command of the CE."""
        return [] if self.root == Path("/") else ["chroot", str(self.root)]

    @property
    def environment(self) -> Mapping[str, str]:
        """What the CE's programs need."""
        return {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "LC_ALL": "C.UTF-8",
            "ARC_LOCATION": str(self.folder / "arc"),
            "ARC_CONFIG": str(self.folder / "arc.conf"),
            "TMPDIR": str(self.folder / "run"),
            "X509_USER_CERT": "",
            "X509_USER_KEY": "",
        }

    def start_server(self, name: str) -> None:
        """Start one of the two servers: "arex" works on jobs, "arex-ws" is what clients speak to."""
        program = self.folder / f"arc/share/arc/arc-{name}-start"
        self.servers[name] = self.processes.start(
            [*self.inside, str(program), "-f"],
            name=name,
            cwd=self.folder,
            env=self.environment,
            namespace=self.namespace,
        )
        if name == "arex-ws":
            until(self.answers, 60, "the CE answers", self.processes)

    def stop_server(self, name: str) -> None:
        """End one of the servers; jobs go on."""
        server = self.servers.pop(name)
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)

    def answers(self) -> bool:
        """Whether the CE has told about its queue."""
        who = ["--cert", str(self.certificate)]
        if self.version >= 7:
            who = ["--header", f"Authorization: Bearer {self.token.read_text().strip()}"]
        command = ["curl", "--silent", "--max-time", "5", "--capath", str(self.authorities), *who]
        done = subprocess.run([*command, f"{self.url}/rest/1.0/info"], check=False, capture_output=True, timeout=15)
        return b"ComputingShare" in done.stdout

    def make_token(self, *options: str) -> str:
        """Make a token of the issuer that the CE trusts."""
        return self.run("arcctl", *self._issuer, "token", "-n", "prod", *options).strip()

    @property
    def _issuer(self) -> list[str]:
        return ["test-jwt", "--iss-id", "bed", "--jwk-dir", str(self.folder / "jwt")]

    def trust_tokens(self) -> None:
        """Make an issuer of tokens and have the CE trust it."""
        (self.folder / "jwt").mkdir()
        self.run("arcctl", *self._issuer, "init")
        told = self.run("arcctl", *self._issuer, "export")
        found = re.search(r"test-jwt://\S+", told)
        assert found, told
        self.run("arcctl", "-c", str(self.folder / "arc.conf"), "deploy", "jwt-issuer", found.group())
        self.token.write_text(self.make_token() + "\n")
        self.token.chmod(0o600)


@contextmanager
def running(folder: Path, version: int = 6, jobs: int = 16, wakeup: int = 30) -> Iterator[Arc]:
    """Install, configure and start; end all of its processes and jobs afterwards.

    `jobs` run at the same time; `wakeup` is the pause between two runs of the information provider.
    """
    root = _installed(version)
    namespace = Namespace(f"10.255.6{version}.1")
    with Processes(folder / "log") as processes:
        try:
            [port] = free_ports(1)
            bed = Arc(folder, version, port, root, unprivileged(), namespace, processes)
            _configure(bed, jobs, wakeup)
            bed.start_server("arex")
            processes.start(
                [sys.executable, doorway.__file__, str(namespace.path), str(port)], name="doorway", cwd=folder
            )
            bed.start_server("arex-ws")
            yield bed
        finally:
            namespace.stop()


def _installed(version: int) -> Path:
    install.debian(*packages.CURL)
    if version < 7:
        install.debian(*packages.ARC)
        return Path("/")
    root = install.trixie(*packages.ARC, *packages.PYTHON)
    _know(root, unprivileged())
    return root


def _know(root: Path, user: pwd.struct_passwd) -> None:
    """Give the user the same name and number inside."""
    known = (root / "etc/passwd").read_text()
    if f"\n{user.pw_name}:" in known:
        return
    for name, line in (
        ("passwd", f"{user.pw_name}:x:{user.pw_uid}:{user.pw_gid}::/tmp:/bin/bash\n"),
        ("group", f"{user.pw_name}:x:{user.pw_gid}:\n"),
    ):
        with (root / "etc" / name).open("a") as stream:
            stream.write(line)


def _configure(bed: Arc, jobs: int, wakeup: int) -> None:
    folder = bed.folder
    folder.chmod(0o755)
    for name in ("control", "run", "people"):
        (folder / name).mkdir()
    (folder / "session").mkdir()
    (folder / "session").chmod(0o1777)
    _programs(bed, wakeup)
    _certificates(bed)
    # Else the first start computes one for minutes.
    strong = folder / "control/dhparam.pem"
    _quiet("openssl", "dhparam", "-dsaparam", "-out", str(strong), "2048")
    strong.chmod(0o600)
    tokens = bed.version >= 7
    name = bed.user.pw_name
    text = _CONFIGURATION.format(
        host=HOST,
        folder=folder,
        user=name,
        running=jobs,
        port=bed.port,
        tokens="[authtokens]\n[authgroup:tokens]\nauthtokens = * * * * *" if tokens else "",
        token_mapping=f"map_to_user = tokens {name}:{name}" if tokens else "",
        token_group="tokens" if tokens else "",
    )
    (folder / "arc.conf").write_text(text.lstrip())
    if tokens:
        bed.trust_tokens()


def _programs(bed: Arc, wakeup: int) -> None:
    """A tree of links to the installed programs, but for those with other pauses."""
    tree = bed.folder / "arc"
    (tree / "share/arc").mkdir(parents=True)
    for name in ("sbin", "lib", "libexec", "bin"):
        (tree / name).symlink_to(f"/usr/{name}")
    for path in (bed.root / _PROGRAMS.relative_to("/")).iterdir():
        target = tree / "share/arc" / path.name
        if path.name not in _HASTE:
            target.symlink_to(_PROGRAMS / path.name)
            continue
        pattern, change = _HASTE[path.name]
        text, count = re.subn(pattern, change.replace("{wakeup}", str(wakeup)), path.read_text())
        assert count == 1, f"{path} is not as expected"
        target.write_text(text)
        target.chmod(0o755)


def _certificates(bed: Arc) -> None:
    people = bed.folder / "people"
    arcctl = ["arcctl", "test-ca", "--ca-id", "bed", "--ca-dir", str(bed.authorities)]
    there = ["sh", "-c", 'cd "$0" && exec "$@"', str(people)]  # it writes where it is
    bed.run(*arcctl, "init")
    bed.run(*there, *arcctl, "hostcert", "-n", HOST)
    _move(people / f"host-{HOST}-key.pem", bed.folder / "host.key", 0o600)
    _move(people / f"host-{HOST}-cert.pem", bed.folder / "host.pem", 0o644)
    for name, target in (("Prod", bed.certificate), ("Stranger", bed.stranger)):
        bed.run(*there, *arcctl, "usercert", "-n", name, "--no-auth")
        parts = [people / f"client-{name}-{part}.pem" for part in ("cert", "key")]
        target.write_bytes(b"".join(part.read_bytes() for part in parts))
        target.chmod(0o600)
    told = _quiet("openssl", "x509", "-in", str(bed.certificate), "-noout", "-subject", "-nameopt", "compat")
    subject = told.split("=", 1)[1].strip()
    (bed.folder / "allowed").write_text(f'"{subject}"\n')


def _move(source: Path, target: Path, mode: int) -> None:
    target.write_bytes(source.read_bytes())
    target.chmod(mode)


def _quiet(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout
