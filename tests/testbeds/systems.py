"""Every system by the name of its backend: its test bed, and what the service is told of it."""

import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.testbeds import arc, at, grid_engine, htcondor, kubernetes, slurm, ssh
from tests.testbeds.foreign import python_for
from tests.testbeds.namespace import Namespace
from tests.testbeds.users import unprivileged

# Of jobs that run as we do.
_PATH = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])


# Of batch systems beside a folder of jobs: nobody wants to wait in a test.
_QUICK = {"poll_seconds": 1}


def _nothing() -> None:
    """Do nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """One that runs."""

    kind: str
    options: Mapping[str, Any] = field(default_factory=dict)
    # Where its nodes are: those elsewhere cannot see our storage.
    site: str = "local"
    # Several backends may speak to the same one; empty = there is none.
    server: str = ""
    # End and start the server that the backend speaks to; jobs go on.
    stop: Callable[[], None] = _nothing
    start: Callable[[], None] = _nothing
    # How many jobs it ever took; None = it does not count.
    taken: Callable[[], int] | None = None
    # The network of its nodes, when it is not this machine's.
    network: Namespace | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """As the scheduler's settings have it."""
        return {"kind": self.kind, "site": self.site, "options": dict(self.options)}


class _Beds:
    """Starts what is asked for, once."""

    def __init__(self, stack: ExitStack) -> None:
        self._stack = stack

    def folder(self, name: str) -> Path:
        """A folder that the users of jobs may enter, also in the chroot of the newer system."""
        made = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix=f"khomas-{name}-")))
        made.chmod(0o755)
        return made

    def theirs(self, name: str) -> Path:
        """A folder of the user of jobs."""
        made, user = self.folder(name), unprivileged()
        shutil.chown(made, user.pw_uid, user.pw_gid)
        return made

    @cached_property
    def cluster(self) -> slurm.Slurm:
        return self._stack.enter_context(slurm.running(self.folder("slurm")))

    @cached_property
    def host(self) -> ssh.Ssh:
        return self._stack.enter_context(ssh.running(self.folder("ssh")))

    @cached_property
    def programs(self) -> str:
        """PATH of jobs of another user: a python3 that finds our libraries, but nothing else of ours."""
        folder = self.folder("programs")
        python = folder / "python3"
        python.write_text(f'#!/bin/sh\nPYTHONPATH="{sysconfig.get_path("purelib")}" exec /usr/bin/python3 "$@"\n')
        python.chmod(0o755)
        return f"{folder}:/usr/bin:/bin"

    def foreign_programs(self, root: Path) -> str:
        """The same in the chroot of another system."""
        return f"{self._stack.enter_context(python_for(root, self.folder('python')))}:/usr/bin:/bin"

    # ------------------------------------------------------------------------------------------------- systems

    def local(self) -> System:
        return System(kind="local", options={"path": _PATH, "cpu_milli": 8000})

    def slurm(self) -> System:
        bed = self.cluster
        options = {**_QUICK, "spool": str(self.folder("spool")), "path": _PATH, "env": dict(bed.environment)}
        return System(kind="slurm", options=options, **_controller(bed))

    def slurm_rest(self) -> System:
        bed, folder = self.cluster, self.folder("spool")
        (folder / "slurm.token").write_text(bed.token())
        options = {"url": bed.rest_url, "token_file": str(folder / "slurm.token"), "spool": str(folder / "spool")}
        return System(kind="slurm-rest", options={**_QUICK, **options, "path": _PATH}, **_controller(bed))

    def slurm_over_ssh(self) -> System:
        options = {**self._login(), "env": dict(self.cluster.environment)}
        return System(kind="slurm", site="elsewhere", options=options, **_controller(self.cluster))

    def at(self) -> System:
        bed = self._stack.enter_context(at.running(self.folder("at")))
        folder = str(self.folder("spool"))
        options = {**_QUICK, "spool": folder, "path": _PATH, "prefix": list(bed.prefix), "slots": 12}
        counter = bed.folder / "atjobs/.SEQ"
        return System(
            kind="at",
            server="atd",
            options=options,
            stop=bed.stop,
            start=bed.start,
            taken=lambda: int(counter.read_text() or "0", 16),
        )

    def ssh(self) -> System:
        options = {**self._login(), "slots": 12}
        return System(
            kind="ssh", server="sshd", site="elsewhere", options=options, stop=self.host.stop, start=self.host.start
        )

    def _login(self) -> dict[str, Any]:
        host = self.host
        return {
            **_QUICK,
            "spool": str(self.theirs("spool")),
            "path": self.programs,
            "ssh": host.address,
            "ssh_key": str(host.key),
            "ssh_known_hosts": str(host.known_hosts),
        }

    def htcondor(self) -> System:
        bed = self._stack.enter_context(htcondor.running(self.folder("htcondor")))
        options = {
            **_QUICK,
            "spool": str(self.theirs("spool")),
            "path": self.foreign_programs(bed.root),
            "prefix": list(bed.prefix),
            "host_python": "/usr/bin/python3",
            "env": dict(bed.bindings),
            "collector": bed.collector,
            "tokens": str(bed.tokens),
            "domain": htcondor.DOMAIN,
            "variables": {"ENABLE_IPV6": "False"},
        }

        def taken() -> int:
            past = bed.run("condor_history", "-af", "ClusterId", "ProcId")
            return len(
                {*past.splitlines(), *bed.run("condor_q", "-allusers", "-af", "ClusterId", "ProcId").splitlines()}
            )

        return System(
            kind="htcondor",
            server="htcondor",
            site="elsewhere",
            options=options,
            stop=bed.freeze,
            start=bed.thaw,
            taken=taken,
        )

    def grid_engine(self) -> System:
        bed = self._stack.enter_context(grid_engine.running(self.folder("grid-engine")))
        options = {
            **_QUICK,
            "spool": str(self.folder("spool")),
            "path": _PATH,
            "prefix": list(bed.prefix),
            "tools": str(bed.tools),
            "root": str(bed.root),
            "cell": bed.cell,
            "qmaster_port": bed.qmaster_port,
            "execd_port": bed.execd_port,
            "parallel_environment": bed.parallel_environment,
            "drmaa_library": str(bed.drmaa_library),
        }
        return System(
            kind="grid-engine",
            server="qmaster",
            options=options,
            stop=bed.stop_master,
            start=bed.start_master,
            taken=lambda: len(bed.jobs()),
            network=bed.namespace,
        )

    def arc6(self) -> System:
        return self._arc(6)

    def arc7(self) -> System:
        return self._arc(7)

    def _arc(self, version: int) -> System:
        bed = self._stack.enter_context(arc.running(self.folder(f"arc{version}"), version))
        who = {"token": str(bed.token)} if version >= 7 else {"certificate": str(bed.certificate)}
        path = self.programs if bed.root == Path("/") else self.foreign_programs(bed.root)
        options = {"url": bed.url, "authorities": str(bed.authorities), "path": path, "poll_interval_s": 1.0, **who}

        def taken() -> int:
            # The one version keeps `job.ID.local`, the other a folder a job.
            return len(list((bed.folder / "control").rglob("*local")))

        return System(
            kind="arc",
            server=f"arc{version}",
            site="elsewhere",
            options=options,
            stop=lambda: bed.stop_server("arex-ws"),
            start=lambda: bed.start_server("arex-ws"),
            taken=taken,
            network=bed.namespace,
        )

    def kubernetes(self) -> System:
        """A stand-in whose pods are processes of this machine."""
        bed = self._stack.enter_context(kubernetes.running(self.folder("kubernetes")))
        options = {
            **_QUICK,
            "spool": str(self.folder("spool")),
            "path": _PATH,
            "url": bed.url,
            "token_file": str(bed.token_file),
            "namespace": kubernetes.NAMESPACE,
            "image": "python:3.12-slim",
            "volume": {"persistentVolumeClaim": {"claimName": "khomas"}},
        }
        return System(
            kind="kubernetes",
            server="kubernetes",
            options=options,
            stop=bed.stop,
            start=bed.start,
            taken=lambda: len(bed.jobs),
        )


def _controller(bed: slurm.Slurm) -> dict[str, Any]:
    def start() -> None:
        bed.start("slurmctld")
        bed.ready()

    def taken() -> int:
        rows = bed.command("sacct", "-X", "-n", "-a", "-P", "-S", "now-1days", "-o", "JobIDRaw,JobID").splitlines()
        return len({row.partition("|")[2] for row in rows if "[" not in row})

    return {"server": "slurmctld", "stop": lambda: bed.stop("slurmctld"), "start": start, "taken": taken}


# Servers of their own; Kubernetes is a stand-in.
NAMES = (
    "local",
    "ssh",
    "at",
    "slurm",
    "slurm-rest",
    "slurm-over-ssh",
    "htcondor",
    "grid-engine",
    "arc6",
    "arc7",
    "kubernetes",
)


class Systems:
    """Those that run, by name; one starts when it is asked for."""

    def __init__(self, beds: _Beds) -> None:
        self._beds = beds
        self._running: dict[str, System] = {}

    def __getitem__(self, name: str) -> System:
        if name not in self._running:
            self._running[name] = getattr(self._beds, name.replace("-", "_"))()
        return self._running[name]


@contextmanager
def running() -> Iterator[Systems]:
    """Start what is asked for; end all of it afterwards."""
    with ExitStack() as stack:
        yield Systems(_Beds(stack))
