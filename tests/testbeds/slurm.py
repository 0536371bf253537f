"""A real Slurm on loopback: a controller, four nodes of four cores, accounting and the REST server if wanted."""

import contextlib
import os
import pwd
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.testbeds import install, packages
from tests.testbeds.processes import NotReadyError, Processes, answers, end, free_ports, until
from tests.testbeds.users import unprivileged

_NODES = ("n1", "n2", "n3", "n4")
_CORES = 4
_MEMORY_MIB = 8000
_CONF = """
ClusterName=sim
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={root}/etc/jwt.key
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
ReturnToService=2
StateSaveLocation={root}/spool/ctld
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/run/slurmctld.pid
SlurmdPidFile={root}/run/slurmd.%n.pid
SlurmctldLogFile={root}/log/slurmctld.log
SlurmdLogFile={root}/log/slurmd.%n.log
SchedulerParameters=batch_sched_delay=0,bf_interval=5,default_queue_depth=500,sched_min_interval=100000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
MaxArraySize=10001
MaxJobCount=200000
MinJobAge=60
KillWait=5
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
SlurmdParameters=config_overrides
GresTypes=tape
Licenses=mars:4
{accounting}
NodeName=DEFAULT CPUs={cores} CoresPerSocket={cores} RealMemory={memory} Feature=common Gres=tape:2
{nodes}
PartitionName=batch Nodes=ALL Default=YES DefMemPerCPU=100 State=UP
PartitionName=long Nodes=n3,n4 MaxTime=7-0 DefMemPerCPU=100 State=UP
PartitionName=shut Nodes=ALL DefMemPerCPU=100 State=DOWN
"""
_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageEnforce=associations,limits
AccountingStorageHost=127.0.0.1
AccountingStoragePort={dbd}
AccountingStoragePass={root}/run/munge.sock
"""
_NO_ACCOUNTING = """
JobCompType=jobcomp/filetxt
JobCompLoc={root}/log/jobcomp.txt
"""
_DBD = """
AuthType=auth/munge
AuthInfo=socket={root}/run/munge.sock
AuthAltTypes=auth/jwt
AuthAltParameters=jwt_key={root}/etc/jwt.key
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={dbd}
SlurmUser=root
CommunicationParameters=NoInAddrAny
LogFile={root}/log/slurmdbd.log
PidFile={root}/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={mysql}
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""


@dataclass(slots=True)
class Slurm:
    """A running one."""

    root: Path
    processes: Processes
    ports: Mapping[str, int]
    user: pwd.struct_passwd
    database: bool
    # Goes before its commands.
    prefix: tuple[str, ...] = ()
    servers: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    @property
    def environment(self) -> Mapping[str, str]:
        """What its commands need."""
        return {"SLURM_CONF": str(self.root / "etc/slurm.conf")}

    @property
    def rest_url(self) -> str:
        """Where slurmrestd answers."""
        return f"http://127.0.0.1:{self.ports['rest']}"

    def token(self, lifespan_s: int = 3600, user: str = "root") -> str:
        """A JWT for the REST server."""
        told = self.command("scontrol", "token", f"username={user}", f"lifespan={lifespan_s}")
        return told.strip().partition("=")[2]

    def command(self, *argv: str) -> str:
        """Run one of its commands as root; return what it printed."""
        done = subprocess.run(
            [*self.prefix, *argv],
            check=True,
            capture_output=True,
            text=True,
            timeout=30,
            env={**os.environ, **self.environment},
        )
        return done.stdout

    def start(self, name: str) -> None:
        """Start a server by its name; whoever calls slurmrestd need not wait for it."""
        argv = [*self.prefix, *self._argv(name)]
        self.servers[name] = self.processes.start(argv, name=name, env=self._environment(name))
        if name == "slurmrestd":
            until(self._rest_listens, 60, name, self.processes)

    def stop(self, name: str) -> None:
        """Stop a server; jobs on the nodes go on."""
        end(self.servers.pop(name))

    def freeze(self, name: str) -> None:
        """Let a server answer no more, with its connections open."""
        os.killpg(self.servers[name].pid, signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        """Let it go on."""
        os.killpg(self.servers[name].pid, signal.SIGCONT)

    def ready(self) -> None:
        """Wait until the controller answers and the nodes are up."""
        until(lambda: answers([*self.prefix, "scontrol", "ping"], self.environment), 60, "slurmctld", self.processes)
        until(self._nodes_up, 60, "the nodes of Slurm", self.processes)

    def _rest_listens(self) -> bool:
        with socket.create_connection(("127.0.0.1", self.ports["rest"]), timeout=5):
            return True

    def _nodes_up(self) -> bool:
        told = self.command("sinfo", "-h", "-N", "-p", "batch", "-o", "%N %T").split("\n")
        states = [line.split()[1] for line in told if line]
        return len(states) == len(_NODES) and all(state in ("idle", "mixed", "allocated") for state in states)

    def _argv(self, name: str) -> list[str]:
        if name == "slurmctld":
            return ["slurmctld", "-D"]
        if name == "slurmdbd":
            return ["slurmdbd", "-D"]
        if name == "slurmrestd":
            drop = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
            # The newer one refuses to start when it shall answer for a database that is not there.
            parts = ["-s", "openapi/slurmctld"] if self.prefix else []
            return [*drop, "slurmrestd", *parts, "-a", "rest_auth/jwt", f"127.0.0.1:{self.ports['rest']}"]
        return ["slurmd", "-D", "-N", name]

    def _environment(self, name: str) -> dict[str, str]:
        if name == "slurmdbd":
            return {**self.environment, "SLURM_CONF": str(self.root / "etc/slurm.conf")}
        return {**self.environment, **({"SLURM_JWT": "daemon"} if name == "slurmrestd" else {})}


@contextmanager
def running(folder: Path, *, database: bool = True, newest: bool = False) -> Iterator[Slurm]:
    """Start Slurm; without a database there is no sacct. The `newest` is that of the next Debian, without one."""
    database = database and not newest
    prefix: tuple[str, ...] = ()
    if newest:
        prefix = ("chroot", str(install.trixie(*packages.SLURM, *packages.PYTHON)))
    else:
        install.debian(*packages.SLURM, *(packages.SLURM_DATABASE if database else ()))
    ports = dict(zip(("ctld", "dbd", "mysql", "rest", *_NODES), free_ports(8), strict=True))
    with Processes(folder / "log") as processes:
        slurm = Slurm(folder, processes, ports, unprivileged(), database, prefix)
        _configure(slurm)
        _start_munge(slurm)
        if database:
            _start_database(slurm)
        slurm.start("slurmctld")
        for node in _NODES:
            slurm.start(node)
        slurm.ready()
        if database or newest:  # that of 22.05 does not start without accounting
            slurm.start("slurmrestd")
        try:
            yield slurm
        finally:
            _end_jobs(slurm)


def _configure(slurm: Slurm) -> None:
    root, ports = slurm.root, slurm.ports
    root.chmod(0o755)
    for name in ("etc", "run", "log", "spool", "spool/ctld", *(f"spool/{node}" for node in _NODES)):
        (root / name).mkdir(mode=0o755, parents=True, exist_ok=True)
    accounting = (_ACCOUNTING if slurm.database else _NO_ACCOUNTING).format(root=root, dbd=ports["dbd"])
    host = os.uname().nodename
    nodes = "\n".join(f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[node]}" for node in _NODES)
    values = {"root": root, "host": host, "ctld": ports["ctld"], "accounting": accounting, "nodes": nodes}
    (root / "etc/slurm.conf").write_text(_CONF.format(**values, cores=_CORES, memory=_MEMORY_MIB))
    if slurm.prefix:
        # It finds no cgroups in its chroot; the older one does not know the word.
        (root / "etc/cgroup.conf").write_text("CgroupPlugin=disabled\n")
    (root / "etc/gres.conf").write_text("Name=tape Count=2\n")
    for name in ("munge.key", "jwt.key"):
        _secret(root / "etc" / name, secrets.token_bytes(64))
    _secret(root / "etc/slurmdbd.conf", _DBD.format(root=root, dbd=ports["dbd"], mysql=ports["mysql"]).encode())


def _secret(path: Path, content: bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(content)


def _start_munge(slurm: Slurm) -> None:
    root = slurm.root
    options = {"key-file": "etc/munge.key", "socket": "run/munge.sock", "pid-file": "run/munged.pid"}
    options |= {"log-file": "log/munged.log", "seed-file": "run/munged.seed"}
    flags = [f"--{name}={root / path}" for name, path in options.items()]
    slurm.processes.start([*slurm.prefix, "munged", "--foreground", "--force", *flags], name="munged-out")
    socket = root / "run/munge.sock"
    until(lambda: answers([*slurm.prefix, "munge", "-n", f"--socket={socket}"]), 30, "munge", slurm.processes)


def _start_database(slurm: Slurm) -> None:
    root, socket = slurm.root, slurm.root / "run/mysql.sock"
    data = root / "db"
    user = pwd.getpwnam("mysql")
    data.mkdir(mode=0o700)
    os.chown(data, user.pw_uid, user.pw_gid)
    (root / "run").chmod(0o777)  # munge wants its own folder safe, hence --force above
    init = ["mariadb-install-db", "--no-defaults", "--user=mysql", f"--datadir={data}"]
    made = subprocess.run(
        [*init, "--auth-root-authentication-method=normal", "--skip-test-db"],
        check=False,
        timeout=120,
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, f"{made.stdout}{made.stderr}"
    server = ["mariadbd", "--no-defaults", "--user=mysql", f"--datadir={data}", f"--socket={socket}"]
    address = [f"--port={slurm.ports['mysql']}", "--bind-address=127.0.0.1", "--innodb-buffer-pool-size=64M"]
    slurm.processes.start([*server, *address], name="mariadb")
    client = ["mariadb", "--no-defaults", f"--socket={socket}", "--user=root"]
    until(lambda: answers([*client, "-e", "SELECT 1"]), 60, "MariaDB", slurm.processes)
    rights = "CREATE DATABASE slurm_acct_db; GRANT ALL ON slurm_acct_db.* TO slurm@'%' IDENTIFIED BY 'slurm';"
    rights += "GRANT ALL ON slurm_acct_db.* TO slurm@localhost IDENTIFIED BY 'slurm';"
    subprocess.run([*client, "-e", rights], check=True, timeout=30)
    slurm.start("slurmdbd")
    until(lambda: answers(["sacctmgr", "-n", "show", "cluster"], slurm.environment), 60, "slurmdbd", slurm.processes)
    slurm.command("sacctmgr", "-i", "add", "cluster", "sim")
    slurm.command("sacctmgr", "-i", "add", "account", "ctao")
    for name in ("root", slurm.user.pw_name):
        slurm.command("sacctmgr", "-i", "add", "user", name, "Account=ctao")


def _end_jobs(slurm: Slurm) -> None:
    """Leave no job on the nodes, nor a step that asks for ever for the controller that it wants to tell of its end."""
    if "slurmctld" not in slurm.servers:  # a test has stopped it: there is nobody to end them
        return

    def told(*words: str) -> str:
        env = {**os.environ, **slurm.environment}
        return subprocess.run(
            [*slurm.prefix, *words], check=True, timeout=30, env=env, capture_output=True, text=True
        ).stdout

    with contextlib.suppress(NotReadyError, subprocess.SubprocessError):
        told("scancel", "--state=PENDING")
        told("scancel", "--signal=KILL", "--full", "--state=RUNNING")
        until(lambda: not told("squeue", "--noheader", "--states=RUNNING,COMPLETING"), 15, "the end of the jobs")


if __name__ == "__main__":
    sys.exit("use: python -m tests.testbeds slurm")
