"""A real Grid Engine: one qmaster, one execd and a private cell in a network namespace of its own.

Grid Engine listens on every address of the machine and cannot be told otherwise, hence the namespace.
"""

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from xml.etree import ElementTree

from tests.testbeds import install, packages
from tests.testbeds.namespace import Namespace
from tests.testbeds.processes import Processes, until

TOOLS = Path("/usr/lib/gridengine")
DRMAA_LIBRARY = Path("/usr/lib/gridengine-drmaa/lib/libdrmaa.so.1.0")
QUEUE = "batch.q"
PARALLEL_ENVIRONMENT = "smp"
_PACKAGED = Path("/usr/share/gridengine")
_LINKED = Path("/var/lib/gridengine")
_ADMINISTRATOR = "sgeadmin"
_SMP = """
pe_name {name}
slots 999
user_lists NONE
xuser_lists NONE
start_proc_args NONE
stop_proc_args NONE
allocation_rule $pe_slots
control_slaves FALSE
job_is_first_task TRUE
urgency_slots min
accounting_summary FALSE
qsort_args NONE
"""


@dataclass(slots=True)
class GridEngine:
    """A running one; commands that shall reach it are put behind `prefix`."""

    folder: Path
    namespace: Namespace
    processes: Processes
    slots: int
    tools: Path = TOOLS
    cell: str = "default"
    qmaster_port: int = 6444
    execd_port: int = 6445
    queue: str = QUEUE
    parallel_environment: str = PARALLEL_ENVIRONMENT
    drmaa_library: Path = DRMAA_LIBRARY
    daemons: "dict[str, subprocess.Popen[bytes]]" = field(default_factory=dict)

    def __str__(self) -> str:
        """Say how to use it by hand."""
        variables = " ".join(f"{name}={value}" for name, value in self.environment.items())
        return f"{variables} {' '.join(self.prefix)} {self.tools}/qstat -f"

    @property
    def root(self) -> Path:
        """SGE_ROOT."""
        return self.folder / "root"

    @property
    def common(self) -> Path:
        return self.root / self.cell / "common"

    @property
    def environment(self) -> Mapping[str, str]:
        """What a command needs to find the cell."""
        return {
            "SGE_ROOT": str(self.root),
            "SGE_CELL": self.cell,
            "SGE_QMASTER_PORT": str(self.qmaster_port),
            "SGE_EXECD_PORT": str(self.execd_port),
        }

    @property
    def prefix(self) -> tuple[str, ...]:
        """What goes before a command."""
        return tuple(self.namespace.enter([]))

    def run(self, tool: str, *arguments: str) -> str:
        """Run a tool as the operator; return what it prints."""
        done = subprocess.run(
            [*self.prefix, str(self.tools / tool), *arguments],
            env={**os.environ, **self.environment},
            check=True,
            capture_output=True,
            text=True,
            timeout=20,
        )
        return done.stdout

    def jobs(self) -> set[tuple[str, str]]:
        """All jobs that it ever took, by number and task; what ended while it was away comes late into its books."""
        listed = ElementTree.fromstring(self.run("qstat", "-u", "*", "-g", "d", "-xml"))  # noqa: S314  its own tool
        known = {(one.findtext("JB_job_number", ""), one.findtext("tasks", "0")) for one in listed.iter("job_list")}
        books = self.common / "accounting"
        lines = books.read_text(errors="replace").splitlines() if books.exists() else []
        past = [line.split(":") for line in lines if not line.startswith("#")]
        return known | {(fields[5], fields[35]) for fields in past}

    def change(self, **values: str) -> None:
        """Change the configuration of the whole cluster."""
        # The name of the file is the name of the configuration.
        path = self.folder / "global"
        path.write_text(_changed(self.run("qconf", "-sconf"), values))
        self.run("qconf", "-Mconf", str(path))

    def start_master(self) -> None:
        """Start the qmaster; return when it answers."""
        self._start("qmaster")
        until(lambda: self.run("qconf", "-sh"), 30, "the qmaster answers", self.processes)

    def stop_master(self) -> None:
        """End the qmaster as an operator does; jobs go on."""
        self.daemons["qmaster"].send_signal(signal.SIGTERM)
        self.daemons["qmaster"].wait(timeout=30)

    def freeze_master(self, *, frozen: bool) -> None:
        """Make the qmaster deaf and mute, or let it go on."""
        self.daemons["qmaster"].send_signal(signal.SIGSTOP if frozen else signal.SIGCONT)

    def start_execd(self) -> None:
        """Start the daemon of the node; return when its queue takes jobs."""
        self._start("execd")
        until(self._queue_is_up, 60, "the queue takes jobs", self.processes)

    def _start(self, name: str) -> None:
        # SGE_ND: stay in the foreground.
        env = {"SGE_ND": "1", **self.environment}
        self.daemons[name] = self.processes.start(
            [str(self.tools / f"sge_{name}")], name=name, env=env, namespace=self.namespace
        )

    def _queue_is_up(self) -> bool:
        answer = self.run("qstat", "-f", "-q", self.queue)
        lines = [line.split() for line in answer.splitlines() if line.startswith(f"{self.queue}@")]
        # A sixth column would be a state such as "au".
        return bool(lines) and all(len(line) == 5 and line[3] != "-NA-" for line in lines)


@contextmanager
def running(folder: Path, slots: int = 64) -> Iterator[GridEngine]:
    """Install, configure and start; end all of its processes and jobs afterwards."""
    install.debian(*packages.GRID_ENGINE)
    namespace = Namespace()
    with Processes(folder / "log") as processes:
        engine = GridEngine(folder, namespace, processes, slots)
        try:
            _make_cell(engine)
            engine.start_master()
            _configure(engine)
            engine.start_execd()
            yield engine
        finally:
            # The daemons take five seconds each to end by themselves.
            for daemon in engine.daemons.values():
                daemon.kill()
            namespace.stop()


def _make_cell(engine: GridEngine) -> None:
    spool = engine.folder / "qmaster"
    for path in (engine.common, spool / "job_scripts", engine.folder / "execd"):
        path.mkdir(parents=True)
    for name in ("bin", "lib", "utilbin", "util"):
        (engine.root / name).symlink_to(_LINKED / name)
    host = socket.gethostname()
    (engine.common / "act_qmaster").write_text(f"{host}\n")
    # The reverse of the loopback address is localhost; Grid Engine refuses two names of one host.
    (engine.common / "host_aliases").write_text(f"{host} localhost\n")
    where = f"{engine.common};{spool}"
    bootstrap = {
        "spooling_method": "classic",
        "spooling_lib": "libspoolc",
        "spooling_params": where,
        "qmaster_spool_dir": str(spool),
        "binary_path": str(engine.tools),
    }
    (engine.common / "bootstrap").write_text(_changed((_PACKAGED / "default-bootstrap").read_text(), bootstrap))
    configuration = {
        "execd_spool_dir": str(engine.folder / "execd"),
        "min_uid": "0",
        "min_gid": "0",
        "load_report_time": "00:00:02",
        "mailer": "/bin/true",
        "reporting_params": "accounting=true reporting=false flush_time=00:00:01 accounting_flush_time=00:00:00 "
        "joblog=false sharelog=00:00:00",
    }
    written = engine.folder / "configuration"
    written.write_text(_changed((_PACKAGED / "default-configuration").read_text(), configuration))
    for path in (engine.folder, *engine.folder.rglob("*")):
        if not path.is_symlink():
            shutil.chown(path, _ADMINISTRATOR, _ADMINISTRATOR)
    engine.folder.chmod(0o755)
    _as_administrator(engine, "spoolinit", "classic", "libspoolc", where, "init")
    _as_administrator(engine, "spooldefaults", "configuration", str(written))
    _as_administrator(engine, "spooldefaults", "complexes", str(_PACKAGED / "util/resources/centry"))
    _as_administrator(engine, "spooldefaults", "usersets", str(_PACKAGED / "util/resources/usersets"))
    _as_administrator(engine, "spooldefaults", "managers", "root", _ADMINISTRATOR)


def _as_administrator(engine: GridEngine, tool: str, *arguments: str) -> None:
    subprocess.run(
        [str(engine.tools / tool), *arguments],
        env={**os.environ, **engine.environment},
        user=_ADMINISTRATOR,
        group=_ADMINISTRATOR,
        extra_groups=(),
        check=True,
        capture_output=True,
        timeout=30,
    )


def _configure(engine: GridEngine) -> None:
    """Tell the master its node, a parallel environment, a queue, and to schedule without delay."""
    host = socket.gethostname()
    engine.run("qconf", "-as", host)
    _apply(engine, "-Ahgrp", f"group_name @allhosts\nhostlist {host}\n")
    _apply(engine, "-Ap", _SMP.lstrip().format(name=engine.parallel_environment))
    queue = {
        "qname": engine.queue,
        "hostlist": "@allhosts",
        # A busy machine shall not stop its queue.
        "load_thresholds": "NONE",
        "pe_list": engine.parallel_environment,
        "slots": str(engine.slots),
        "shell_start_mode": "unix_behavior",
    }
    _apply(engine, "-Aq", _changed(engine.run("qconf", "-sq"), queue))
    schedule = {
        "schedule_interval": "0:0:1",
        "flush_submit_sec": "1",
        "flush_finish_sec": "1",
        "job_load_adjustments": "NONE",
    }
    _apply(engine, "-Msconf", _changed(engine.run("qconf", "-ssconf"), schedule))


def _apply(engine: GridEngine, option: str, content: str) -> None:
    path = engine.folder / f"qconf{option}"
    path.write_text(content)
    engine.run("qconf", option, str(path))


def _changed(text: str, values: Mapping[str, str]) -> str:
    """Give keys of a configuration other values."""
    for key, value in values.items():
        line = re.search(rf"(?m)^{key}\s.*$", text)
        assert line is not None, f"{key} is not in the packaged configuration"
        text = text.replace(line[0], f"{key} {value}", 1)
    return text
