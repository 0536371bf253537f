"""A real HTCondor pool of one machine: Debian 13's daemons in a chroot, on loopback, reached by token."""

import os
import pwd
import shutil
import signal
import subprocess
import sysconfig
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.testbeds import install, packages
from tests.testbeds.processes import Processes, end, free_ports, until
from tests.testbeds.users import unprivileged

DOMAIN = "localhost"
_STOP_SECONDS = 30.0
_CONFIG = """
RELEASE_DIR = /usr
BIN = /usr/bin
SBIN = /usr/sbin
LIB = /usr/lib/condor
LIBEXEC = /usr/libexec/condor
SHARE = /usr/share/condor
use security:recommended_v9_0
use ROLE: CentralManager
use ROLE: Submit
use ROLE: Execute
CONDOR_HOST = 127.0.0.1
COLLECTOR_HOST = 127.0.0.1:{port}
SHARED_PORT_PORT = {port}
COLLECTOR_PORT = {port}
NETWORK_INTERFACE = 127.0.0.1
BIND_ALL_INTERFACES = False
ENABLE_IPV6 = False
UID_DOMAIN = localhost
FILESYSTEM_DOMAIN = localhost
TRUST_UID_DOMAIN = True
CONDOR_IDS = {ids}
LOCAL_DIR = {folder}
RUN = {folder}/run
LOCK = {folder}/lock
LOG = {folder}/log
SPOOL = {folder}/spool
EXECUTE = {folder}/execute
SEC_PASSWORD_DIRECTORY = {folder}/passwords.d
SEC_TOKEN_SYSTEM_DIRECTORY = {folder}/system-tokens.d
SEC_DEFAULT_AUTHENTICATION = REQUIRED
SEC_DEFAULT_AUTHENTICATION_METHODS = FS, IDTOKENS
ALLOW_READ = *
ALLOW_WRITE = *
ALLOW_DAEMON = condor@localhost, root@localhost
ALLOW_ADMINISTRATOR = condor@localhost, root@localhost
ALLOW_NEGOTIATOR = condor@localhost, root@localhost
DAEMON_LIST = MASTER, COLLECTOR, NEGOTIATOR, SCHEDD, STARTD
NUM_CPUS = {slots}
MEMORY = 64000
SLOT_TYPE_1 = 100%
SLOT_TYPE_1_PARTITIONABLE = True
NUM_SLOTS_TYPE_1 = 1
START = True
SUSPEND = False
PREEMPT = False
KILL = False
MachineMaxVacateTime = 30
KILLING_TIMEOUT = 10
SCHEDD_INTERVAL = 2
NEGOTIATOR_MIN_INTERVAL = 1
NEGOTIATOR_INTERVAL = 2
NEGOTIATOR_CYCLE_DELAY = 1
UPDATE_INTERVAL = 5
JOB_START_DELAY = 0
JOB_START_COUNT = 50
MAX_JOBS_SUBMITTED = 200000
USE_PROCD = False
MOUNT_UNDER_SCRATCH =
MOUNT_PRIVATE_DEV_SHM = False
STARTER_ALLOW_RUNAS_OWNER = True
PERIODIC_EXPR_INTERVAL = 5
# A claim of which the schedd never learned, because it was busy, keeps its slot for six of these (by itself: 300 s).
ALIVE_INTERVAL = 10
RUNBENCHMARKS = 0
MAIL = /bin/true
DISCARD_SESSION_KEYRING_ON_STARTUP = False
"""


@dataclass(slots=True)
class Htcondor:
    """A running pool."""

    folder: Path
    processes: Processes
    root: Path
    user: pwd.struct_passwd
    port: int
    slots: int
    master: "list[subprocess.Popen[bytes]]" = field(default_factory=list)

    @property
    def collector(self) -> str:
        """Where it answers."""
        return f"127.0.0.1:{self.port}"

    @property
    def tokens(self) -> Path:
        """Folder with the user's token."""
        return self.folder / "tokens.d"

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command so that it runs as the user whose jobs they are."""
        return ("setpriv", f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--init-groups", "--")

    @property
    def bindings(self) -> Mapping[str, str]:
        """What makes the user's Python find the bindings: that of the virtual environment may be out of its reach."""
        return {"PYTHONPATH": sysconfig.get_path("platlib")}

    def run(self, *words: str) -> str:
        """Run a command of HTCondor as root, inside."""
        done = subprocess.run(
            ["chroot", str(self.root), "env", f"CONDOR_CONFIG={self.folder}/condor_config", *words],
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout

    def start(self) -> None:
        """Start the daemons; return when there are slots."""
        config = f"CONDOR_CONFIG={self.folder}/condor_config"
        inside = ["chroot", str(self.root), "env", config, "condor_master", "-f"]
        self.master.append(self.processes.start(inside, name="condor_master"))
        until(lambda: self.run("condor_status", "-af", "Name"), 90, "the pool has slots", self.processes)
        until(lambda: self.run("condor_status", "-schedd", "-af", "Name"), 60, "it has a schedd", self.processes)

    def stop(self) -> None:
        """End the daemons; the jobs end with them."""
        master = self.master.pop()
        # SIGQUIT: at once.
        master.send_signal(signal.SIGQUIT)
        with suppress(subprocess.TimeoutExpired):
            master.wait(_STOP_SECONDS)
        end(master)
        # A master that had to be killed leaves its daemons, and a schedd its shadows.
        self.processes.end_left()

    def freeze(self) -> None:
        """Let collector and schedd answer no more; jobs go on."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Let them go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        [master] = self.master
        pattern = "^condor_(schedd|collecto)"
        found = subprocess.run(
            ["pgrep", "--parent", str(master.pid), pattern], check=True, capture_output=True, text=True, timeout=20
        )
        for pid in found.stdout.split():
            os.kill(int(pid), number)


@contextmanager
def running(folder: Path, slots: int = 64) -> Iterator[Htcondor]:
    """Install, configure and start; end all of it afterwards."""
    root = install.trixie(*packages.HTCONDOR)
    [port] = free_ports(1)
    with Processes(folder / "log") as processes:
        pool = Htcondor(folder, processes, root, unprivileged(), port, slots)
        _configure(pool)
        try:
            pool.start()
            _make_token(pool)
            yield pool
        finally:
            if pool.master:
                pool.stop()


def _configure(pool: Htcondor) -> None:
    _add_user(pool)
    uid, gid = _condor(pool.root)
    pool.folder.chmod(0o755)
    for name in ("run", "lock", "log", "spool", "execute"):
        (pool.folder / name).mkdir(exist_ok=True)
        shutil.chown(pool.folder / name, uid, gid)
    for name in ("passwords.d", "system-tokens.d"):
        (pool.folder / name).mkdir(mode=0o700, exist_ok=True)
    text = _CONFIG.format(port=pool.port, folder=pool.folder, slots=pool.slots, ids=f"{uid}.{gid}")
    (pool.folder / "condor_config").write_text(text)


def _add_user(pool: Htcondor) -> None:
    """The same user inside as outside."""
    line = f"{pool.user.pw_name}:x:{pool.user.pw_uid}:{pool.user.pw_gid}::/tmp:/bin/sh\n"
    with install.locked("users"):
        path = pool.root / "etc/passwd"
        others = [one for one in path.read_text().splitlines(keepends=True) if one.split(":")[0] != pool.user.pw_name]
        path.write_text("".join([*others, line]))


def _condor(root: Path) -> tuple[int, int]:
    """The daemons' own user."""
    rows = (line.split(":") for line in (root / "etc/passwd").read_text().splitlines())
    return next((int(row[2]), int(row[3])) for row in rows if row[0] == "condor")


def _make_token(pool: Htcondor) -> None:
    token = pool.run("condor_token_create", "-identity", f"{pool.user.pw_name}@{DOMAIN}")
    pool.tokens.mkdir(mode=0o700, exist_ok=True)
    path = pool.tokens / "khomas"
    path.touch(mode=0o600)
    path.write_text(token)
    for one in (pool.tokens, path):
        shutil.chown(one, pool.user.pw_uid, pool.user.pw_gid)
