"""The worked example on every batch system that a test bed can start: `python -m tests.testbeds.demo slurm at`.

Nothing differs between them but the word behind `--on`.
"""

import argparse
import json
import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.testbeds import at, slurm, ssh

_DEMO = Path(__file__).parents[2] / "examples/hess/demo.py"
_PATH = os.pathsep.join([str(Path(sys.executable).parent), "/usr/local/bin", "/usr/bin", "/bin"])
_MINUTES = 60
Options = Mapping[str, Any]


@contextmanager
def _slurm(folder: Path) -> Iterator[Options]:
    with slurm.running(folder / "bed", database=False) as bed:
        yield {"spool": str(folder / "spool"), "env": dict(bed.environment), "accounting": False}


@contextmanager
def _at(folder: Path) -> Iterator[Options]:
    with at.running(folder / "bed") as bed:
        yield {"spool": str(folder / "spool"), "prefix": list(bed.prefix), "slots": 2}


@contextmanager
def _ssh(folder: Path) -> Iterator[Options]:
    with ssh.running(folder / "bed") as bed:
        yield {**_login(bed, folder), "slots": 2}


@contextmanager
def _slurm_over_ssh(folder: Path) -> Iterator[Options]:
    with slurm.running(folder / "bed", database=False) as cluster, ssh.running(folder / "host") as host:
        yield {**_login(host, folder), "env": dict(cluster.environment), "accounting": False}


def _login(host: ssh.Ssh, folder: Path) -> Options:
    """Options of a host whose user may see nothing of ours but the libraries that the jobs import."""
    programs = folder / "bin"
    programs.mkdir(mode=0o755)
    python = programs / "python3"
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{sysconfig.get_path("purelib")}" exec /usr/bin/python3 "$@"\n')
    python.chmod(0o755)
    return {
        "path": f"{programs}:/usr/bin:/bin",
        "spool": f"{host.user.pw_dir}/{folder.name}",
        "ssh": host.address,
        "ssh_key": str(host.key),
        "ssh_known_hosts": str(host.known_hosts),
    }


# By the name of the backend: the plug-in, and the bed.
_BEDS: Mapping[str, tuple[str, Callable[[Path], Any]]] = {
    "slurm": ("slurm", _slurm),
    "at": ("at", _at),
    "ssh": ("ssh", _ssh),
    "slurm-over-ssh": ("slurm", _slurm_over_ssh),
}


def run(name: str, data: Path | None, state: Path) -> dict[str, Any]:
    """Run the example on one system; return its report."""
    kind, bed = _BEDS[name]
    folder = state / name
    folder.mkdir(parents=True, mode=0o755)
    with bed(folder) as options:
        site = "elsewhere" if "ssh" in options else "local"
        backends = {name: {"kind": kind, "site": site, "options": {"path": _PATH, "poll_seconds": 1, **options}}}
        command = [sys.executable, str(_DEMO), "--state", str(folder / "demo"), "--on", name]
        subprocess.run(
            [*command, *(["--data", str(data)] if data else [])],
            check=True,
            env={**os.environ, "KHOMAS_SCHEDULER_BACKENDS": json.dumps(backends)},
            timeout=20 * _MINUTES,
        )
    report: dict[str, Any] = json.loads((folder / "demo/demo-report.json").read_text())
    return report


def main() -> None:
    """Run it on those that were named, or on all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", choices=[*_BEDS, []], help="all")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--state", type=Path, required=True)
    arguments = parser.parse_args()
    state = arguments.state.resolve()
    reports = {name: run(name, arguments.data, state) for name in arguments.names or _BEDS}
    for name, report in reports.items():
        sys.stdout.write(f"{name:16} index {report['index']:.3f}  ON {report['on_counts']}  {report['seconds']} s\n")


if __name__ == "__main__":
    main()
