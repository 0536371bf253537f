"""A real sshd on loopback that lets the unprivileged user in with a key."""

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.testbeds import install, packages
from tests.testbeds.processes import Processes, answers, end, free_ports, until
from tests.testbeds.users import unprivileged

_CONF = """
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
MaxSessions {sessions}
MaxStartups 100
PrintMotd no
UseDNS no
Subsystem sftp internal-sftp
"""


@dataclass(slots=True)
class Ssh:
    """A running one."""

    folder: Path
    processes: Processes
    port: int
    user: pwd.struct_passwd
    server: "subprocess.Popen[bytes] | None" = None
    # Over one connection at once.
    sessions: int = 100

    @property
    def address(self) -> str:
        """Where to log in: `user@host:port`."""
        return f"{self.user.pw_name}@127.0.0.1:{self.port}"

    @property
    def key(self) -> Path:
        """The private key that lets in."""
        return self.folder / "key"

    @property
    def known_hosts(self) -> Path:
        """What says that it is this server."""
        return self.folder / "known_hosts"

    @property
    def command(self) -> list[str]:
        """An ssh by hand; the command for the other side goes behind."""
        options = ["-i", str(self.key), "-o", f"UserKnownHostsFile={self.known_hosts}", "-o", "BatchMode=yes"]
        return ["ssh", "-F", "none", *options, "-p", str(self.port), f"{self.user.pw_name}@127.0.0.1"]

    def start(self) -> None:
        """Start it unless it runs; return when it lets the user in."""
        if self.server is not None and self.server.poll() is None:
            return
        argv = ["/usr/sbin/sshd", "-D", "-e", "-f", str(self.folder / "sshd_config")]
        self.server = self.processes.start(argv, name="sshd")
        until(lambda: answers([*self.command, "true"]), 30, "sshd", self.processes)

    def stop(self) -> None:
        """Stop it and break its connections; what was started over them in a session of its own goes on."""
        assert self.server is not None
        connections = _children(self.server.pid)
        end(self.server)
        _signal(connections, signal.SIGKILL)

    def freeze(self) -> None:
        """Let it answer no more, with its connections open."""
        self._signal_all(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        self._signal_all(signal.SIGCONT)

    def _signal_all(self, number: signal.Signals) -> None:
        assert self.server is not None
        _signal([self.server.pid, *_children(self.server.pid)], number)


@contextmanager
def running(folder: Path, sessions: int = 100) -> Iterator[Ssh]:
    """Install, make keys, start; `folder` is one that the user may enter."""
    install.debian(*packages.SSH)
    with Processes(folder / "log") as processes:
        ssh = Ssh(folder, processes, free_ports(1)[0], unprivileged(), sessions=sessions)
        _configure(ssh)
        ssh.start()
        try:
            yield ssh
        finally:
            ssh.stop()


def _configure(ssh: Ssh) -> None:
    # sshd refuses to start without the empty folder of its unprivileged half.
    Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)
    ssh.folder.chmod(0o755)
    for name in ("host_key", "key"):
        argv = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", name, "-f", str(ssh.folder / name)]
        subprocess.run(argv, check=True, timeout=30)
    (ssh.folder / "sshd_config").write_text(_CONF.format(port=ssh.port, folder=ssh.folder, sessions=ssh.sessions))
    allowed = ssh.folder / "authorized_keys"
    allowed.write_text((ssh.folder / "key.pub").read_text())
    allowed.chmod(0o644)
    ssh.known_hosts.write_text(f"[127.0.0.1]:{ssh.port} {(ssh.folder / 'host_key.pub').read_text()}")


def _children(pid: int) -> list[int]:
    """The processes of its connections, two for each: sshd and its unprivileged half."""
    found: list[int] = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and _parent(entry) == pid and (entry / "comm").read_text().startswith("sshd"):
            found += [int(entry.name), *_children(int(entry.name))]
    return found


def _parent(entry: Path) -> int:
    try:
        return int((entry / "stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def _signal(pids: list[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue
